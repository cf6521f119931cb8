"""The wheel is whole, and works from a folder that holds a `tasks.py` and a `conf/` of somebody else's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import kdbench

ROOT = Path(__file__).resolve().parents[1]

COMPOSE_ALL = """
from kdbench.configuration import config

tasks = config.options("task")
choices = [(task, f"preset={preset}") for task in tasks for preset in config.options("preset")]
# Each method with each task is a matter of tests/test_matrix.py.
choices += [(tasks[i % len(tasks)], f"method={name}") for i, name in enumerate(config.options("method"))]
for task, choice in choices:
    print(config.load([f"task={task}", choice])["task"]["name"], choice)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and, beside it, what this one has of other packages."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)],
        check=True,
    )
    (own,) = folder.glob("lib/python*/site-packages")
    # A path in a .pth is not searched for further .pth files, so this checkout stays invisible.
    (own / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text("raise RuntimeError('the wrong tasks')\n")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("wrong: conf\n")
    return tmp_path


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(file.read(name).decode())


def run(python: Path, *arguments: str, folder: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "KDBENCH_CACHE")}
    done = subprocess.run(
        [python, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_wheel_carries_every_source_and_every_config(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        carried = set(file.namelist())
    packages = {
        path.relative_to(ROOT).as_posix()
        for package in ("kdbench", "tasks", "leaderboard")
        for path in (ROOT / package).rglob("*.py")
    }
    configs = {"kdbench/" + path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    assert "kdbench/conf/config.yaml" in configs
    assert packages | configs | {"kdbench/py.typed", "tasks/py.typed", "leaderboard/py.typed"} <= carried
    folders = {name.split("/")[0] for name in carried}
    assert folders == {"kdbench", "tasks", "leaderboard", f"kdbench-{kdbench.__version__}.dist-info"}


def test_metadata_of_the_wheel(wheel: Path) -> None:
    about = metadata(wheel)
    assert (about["Name"], about["Version"]) == ("kdbench", kdbench.__version__)
    assert (about["Requires-Python"], about["License-Expression"]) == (">=3.11", "Apache-2.0")
    extras = set(about.get_all("Provides-Extra") or ())
    assert extras == {
        "pointcloud",
        "detection",
        "launch",
        "optuna",
        "ray",
        "tensorboard",
        "mlflow",
        "export",
        "quant",
        "openvino",
        "all",
        "dev",
    }
    requires = about.get_all("Requires-Dist") or []
    assert any(line.startswith("lightning>=2.6.6") for line in requires)
    with zipfile.ZipFile(wheel) as file:
        (scripts,) = (name for name in file.namelist() if name.endswith("entry_points.txt"))
        assert "kdbench = kdbench.__main__:main" in file.read(scripts).decode()


def test_constraints_pin_every_dependency_once() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    names = [pin.split("==")[0].lower().replace("_", "-") for pin in pins]
    assert all("==" in pin for pin in pins)
    assert len(names) == len(set(names))


def test_importing_kdbench_does_not_import_torch() -> None:
    code = "import sys, kdbench; print('torch' in sys.modules)"
    assert run(Path(sys.executable), "-c", code, folder=ROOT).strip() == "False"


@pytest.mark.slow
def test_wheel_composes_every_config_from_another_folder(installed: Path, elsewhere: Path) -> None:
    lines = run(installed, "-P", "-c", COMPOSE_ALL, folder=elsewhere).splitlines()
    tasks = {path.stem for path in (ROOT / "conf" / "task").glob("*.yaml")}
    methods = {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}
    assert tasks
    assert {line.split()[0] for line in lines} == tasks
    assert {line.split("method=")[1] for line in lines if "method=" in line} == methods
    shown = run(installed, "-m", "kdbench", "--cfg", "job", folder=elsewhere)
    assert "method:" in shown
    assert "wrong: conf" not in shown


@pytest.mark.slow
def test_wheel_runs_the_smoke_preset_from_another_folder(installed: Path, elsewhere: Path) -> None:
    options = ("task=pointcloud", "method=pointdistiller", "preset=smoke", "results=records", "cache=products")
    run(installed, "-m", "kdbench", *options, folder=elsewhere)
    (record,) = elsewhere.glob("records/pointcloud/pointdistiller/*/run.json")
    assert json.loads(record.read_text())["status"] == "ok"
