"""CONTRIBUTING.md followed to the letter, in a copy of the checkout, with the command that it names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from kdbench.matrix import AXES
from tests.cli import EXAMPLE, ROOT

pytestmark = pytest.mark.slow
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
LEFT_OUT = (".*", "__pycache__", "results", "build", "dist", "outputs", "multirun")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return shutil.copytree(ROOT, tmp_path / "checkout", ignore=shutil.ignore_patterns(*LEFT_OUT))


def passes(checkout: Path, *arguments: str) -> tuple[int, str]:
    """Runs the tests of the copy; returns how many passed, and what was said."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "KDBENCH_CACHE": str(checkout / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    said = done.stdout[-3000:] + done.stderr[-1000:]
    passed = re.search(r"(\d+) passed", said)
    assert done.returncode == 0, said
    assert passed is not None, said
    return int(passed[1]), said


def test_a_new_method(checkout: Path) -> None:
    section = TEXT[TEXT.index("## A new method") : TEXT.index("## A new task")]
    for suffix, language in ((r"\.py", "python"), (r"\.yaml", "yaml")):
        found = re.findall(rf"`(\S+/cosine{suffix})`[^`]*\n\n   ```{language}\n(.*?)\n   ```", section, re.DOTALL)
        assert found
        for path, content in found:
            assert not (checkout / path).exists()
            (checkout / path).write_text(textwrap.dedent(content) + "\n")
    tools = [sys.executable, "-m", "ruff", "check", "kdbench"], [sys.executable, "-m", "ruff", "format", "--check", "."]
    for tool in tools:
        subprocess.run(tool, cwd=checkout, check=True)
    files = [f"tests/{name}.py" for name in ("functional/test_examples", "test_matrix", "test_ddp")]
    # Its example; each task there is, three toys of the tests; two processes.
    passed, said = passes(checkout, "--method=cosine", *files)
    assert passed == 1 + len(list((checkout / "conf" / "task").glob("*.yaml"))) + 3 + 1, said


def test_a_new_task(checkout: Path) -> None:
    """The example as a task of the repository itself, under another name."""
    code, conf = EXAMPLE / "kdbench_diabetes", checkout / "conf"
    (checkout / "tasks" / "patients").mkdir()
    for path in code.rglob("*.*"):
        if path.suffix in (".py", ".yaml") and path.name != "__init__.py":
            folder = (
                checkout / "tasks" / "patients"
                if path.suffix == ".py"
                else conf / path.relative_to(code / "conf").parent
            )
            text = path.read_text().replace("kdbench_diabetes.task", "tasks.patients.task")
            text = re.sub(
                r"\b(name: |task: |name: ClassVar\[str\] = \"|- |_global_.pair: )diabetes", r"\1patients", text
            )
            (folder / path.name.replace("diabetes", "patients")).write_text(text)
    passed, said = passes(checkout, "--task=patients", "tests/test_matrix.py", "tests/test_task.py")
    options = [
        n for top in (conf, checkout / "tests" / "conf") for axis in AXES for n in (top / axis).glob("[!_]*.yaml")
    ]
    assert passed == len(options) + 1, said
