from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.base.digest import digest, digest_files, drop_nonfinite, source_digest, sources
from kdbench.errors import KDBenchError

ROOT = Path(__file__).resolve().parents[2]


def test_the_form_of_a_value_does_not_matter_but_its_content_does() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": (1, 2), "a": 1})
    values = [{"a": 1}, {"a": 1.0}, {"a": True}, {"a": "1"}, {"a": None}, {}, {"a": [1]}, {"a": 0.1 + 0.2}, {"a": 0.3}]
    assert len({digest(value) for value in values}) == len(values)


def test_digest_is_the_same_in_every_process_and_version() -> None:
    assert digest({"lr": 0.1, "name": "résnet"}) == "bc6a2775532dd2e6"
    assert len(digest(1)) == 16
    assert digest(1, 64).startswith(digest(1))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"a": [1.0, float("nan")]}, r"a\[1\]: found nan"),
        ({"a": {"b": {1, 2}}}, r"a\.b: found set"),
        (Path("x"), "the value: found"),
        ({"a": b"x"}, "found bytes"),
        ({"a": {1: 2, "1": 3}}, "two of its keys"),
    ],
)
def test_what_json_has_no_form_for_is_refused(value: object, says: str) -> None:
    with pytest.raises(KDBenchError, match=says):
        digest(value)


def test_files_are_digested_by_content_and_relative_name(tmp_path: Path) -> None:
    for place in ("one", "two"):
        (tmp_path / place / "sub").mkdir(parents=True)
        (tmp_path / place / "a.txt").write_text("a")
        (tmp_path / place / "sub" / "b.txt").write_text("b")
    one, two = ([tmp_path / place / "a.txt", tmp_path / place / "sub" / "b.txt"] for place in ("one", "two"))
    before = digest_files(one, tmp_path / "one")
    assert before == digest_files(two[::-1], tmp_path / "two")
    two[0].write_text("b")
    two[1].write_text("a")
    assert before != digest_files(two, tmp_path / "two")
    with pytest.raises(KDBenchError, match=r"missing\.txt"):
        digest_files([tmp_path / "missing.txt"], tmp_path)
    with pytest.raises(KDBenchError, match="below"):
        digest_files(one, tmp_path / "two")


def test_non_finite_numbers_become_null_and_are_named() -> None:
    value = {"a": [1.0, float("nan")], "b": {"c": float("-inf"), "d": "nan"}, "e": (1, 2)}
    assert drop_nonfinite(value) == ({"a": [1.0, None], "b": {"c": None, "d": "nan"}, "e": [1, 2]}, ["a.1", "b.c"])


PACKAGE = {
    "__init__.py": "",
    "loss.py": "from .deep.leaf import value\n",
    "lazy.py": "def f():\n    from . import inside\n    import {name}.absolute\n",
    "inside.py": "from .deep import attribute\n",
    "absolute.py": "import {name}.does_not_exist\n",
    "deep/__init__.py": "from .reexported import attribute\n",
    "deep/leaf.py": "from ..sibling import x\nvalue = 1\n",
    "deep/reexported.py": "attribute = 1\n",
    "sibling.py": "import json, other_top_level_package\nfrom . import loss\n",
    "unrelated.py": "raise RuntimeError('is never run')\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> tuple[str, Path]:
    name = f"package_of_{request.node.name}"
    for file, text in PACKAGE.items():
        path = tmp_path / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{name}", name))
    monkeypatch.syspath_prepend(str(tmp_path))
    return name, tmp_path / name


def fresh_digest(folder: Path, *modules: str) -> str:
    code = f"from kdbench.base.digest import source_digest; print(source_digest({list(modules)!r}))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return done.stdout.strip()


def test_sources_follow_every_form_of_import(package: tuple[str, Path]) -> None:
    name, _ = package
    deep = {f"{name}.deep", f"{name}.deep.reexported"}
    found = set(sources([f"{name}.loss"]))
    assert found == {name, f"{name}.loss", f"{name}.deep.leaf", f"{name}.sibling"} | deep
    found = set(sources([f"{name}.lazy"]))
    assert found == {name, f"{name}.lazy", f"{name}.inside", f"{name}.absolute"} | deep


def test_only_what_is_imported_changes_the_digest(package: tuple[str, Path]) -> None:
    name, folder = package
    start = fresh_digest(folder.parent, f"{name}.loss")
    assert start == source_digest([f"{name}.loss"])
    (folder / "unrelated.py").write_text("x = 1\n")
    leaf = folder / "deep" / "leaf.py"
    leaf.write_bytes(leaf.read_bytes().replace(b"\n", b"\r\n"))
    assert fresh_digest(folder.parent, f"{name}.loss") == start
    leaf.write_text("from ..sibling import x\nvalue = 2\n")
    assert fresh_digest(folder.parent, f"{name}.loss") != start


def test_the_engine_is_found_from_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "foreign_task.py").write_text("from kdbench.base import store\nimport os\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = set(sources(["foreign_task"]))
    assert {"foreign_task", "kdbench.base.store", "kdbench.base.digest", "kdbench.errors"} <= found
    assert "os" not in found
    assert "kdbench.records.record" not in found


def test_a_module_beside_that_of_the_user_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flat_net.py").write_text("import json, torch\nfrom flat_layers import block\n")
    (tmp_path / "flat_layers.py").write_text("import flat_package.deep.inner\nblock = 1\n")
    (tmp_path / "flat_package" / "deep").mkdir(parents=True)
    (tmp_path / "flat_package" / "deep" / "inner.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert set(sources(["flat_net"])) == {"flat_net", "flat_layers", "flat_package.deep.inner"}
    installed = tmp_path / "site-packages"
    installed.mkdir()
    for name in ("one", "other"):
        (installed / f"installed_{name}.py").write_text("import installed_other\n")
    monkeypatch.syspath_prepend(str(installed))
    assert set(sources(["installed_one"])) == {"installed_one"}


def test_a_missing_or_broken_module_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_source.py").write_text("def (:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("kdbench.no_such_module", "no_such_package.x", "__main__x", "", ".x"):
        with pytest.raises(KDBenchError, match="no module"):
            source_digest([name])
    with pytest.raises(KDBenchError, match=r"broken_source\.py: cannot be parsed"):
        source_digest(["broken_source"])


@pytest.mark.parametrize("module", ["base.digest", "base.store", "records.record"])
def test_module_does_not_import_torch(module: str) -> None:
    code = f"import sys, kdbench.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
