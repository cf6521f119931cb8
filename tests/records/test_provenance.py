from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdbench.configuration import config
from kdbench.records import provenance as module
from kdbench.records.provenance import provenance

ROOT = Path(__file__).resolve().parents[2]
STARTED = datetime(2024, 5, 1, 12, tzinfo=UTC)


def test_provenance_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / "kdbench"
    (package / "records").mkdir(parents=True)
    (package / "records" / "provenance.py").write_text("")
    monkeypatch.setattr(module, "__file__", str(package / "records" / "provenance.py"))
    outside = provenance("e" * 16, STARTED)
    assert (outside.commit, outside.dirty) == (None, None)

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    clean = provenance("e" * 16, STARTED)
    assert (clean.commit, clean.dirty) == (git("rev-parse", "HEAD"), False)
    (tmp_path / ".gitignore").write_text("ignored*\n")
    git("add", ".gitignore")
    assert provenance("e" * 16, STARTED).dirty is True
    git("commit", "-q", "-m", "second")
    notes, option, own = tmp_path / "notes.txt", tmp_path / "own.yaml", package / "ignored.py"
    for untracked in (notes, option, own):
        untracked.write_text("")
        assert provenance("e" * 16, STARTED).dirty is False
    assert provenance("e" * 16, STARTED, [option]).dirty is True
    installed = tmp_path / "env" / "site-packages" / "own.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    for place, dirty in ((own, True), (installed, False), (Path("_ops.py"), False)):
        with monkeypatch.context() as loading:
            loading.chdir(tmp_path)
            loading.setitem(sys.modules, "own", SimpleNamespace(__file__=str(place)))
            assert provenance("e" * 16, STARTED).dirty is dirty
    assert provenance("e" * 16, STARTED).dirty is False
    (package / "records" / "provenance.py").write_text("changed")
    assert provenance("e" * 16, STARTED).dirty is True

    nested = tmp_path / ".venv" / "site-packages" / "kdbench"
    nested.mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(nested / "records" / "provenance.py"))
    assert provenance("e" * 16, STARTED).commit is None  # the checkout around an environment is another project


def test_provenance_of_this_machine() -> None:
    code = """if True:
        import sys
        from datetime import UTC, datetime
        from kdbench.records.provenance import provenance
        print(provenance("e", datetime.now(UTC)).model_dump_json())
        assert "torch" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["hardware"]["gpu"] is None
    assert found["hardware"]["cpu"]
    assert 1 <= found["threads"] == found["hardware"]["cores"]
    assert {"torch", "numpy"} <= set(found["packages"])
    assert found["started"] < found["finished"]


@pytest.mark.parametrize("distribution", ["open3d", "open3d-cpu"])
def test_a_package_is_recorded_whichever_build_brings_it(monkeypatch: pytest.MonkeyPatch, distribution: str) -> None:
    def version(name: str) -> str:
        if name != distribution:
            raise PackageNotFoundError(name)
        return "0.19"

    monkeypatch.setattr("importlib.metadata.version", version)
    assert provenance("e" * 16, STARTED).packages == {"open3d": "0.19"}


def test_provenance_asks_torch_where_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(is_available=lambda: True, get_device_name=lambda: "a card")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, get_num_threads=lambda: 3))
    found = provenance("e" * 16, STARTED)
    assert (found.hardware.gpu, found.threads) == ("a card", 3)


def test_the_files_of_a_configuration_are_those_of_its_options() -> None:
    found = config.load(["task=classification", "method=dkd", "preset=smoke"])
    names = {path.relative_to(config.folder()).as_posix() for path in module.files_of(found)}
    assert names >= {"config.yaml", "method/dkd.yaml", "preset/task/classification_smoke.yaml", "preset/smoke.yaml"}
    assert not {name for name in names if name.startswith(("experiment/", "method/")) and name != "method/dkd.yaml"}
    # The data set, what it shares with others, and who made it the default.
    assert names >= {"data/glyphs.yaml", "data/_images.yaml", "data/classification.yaml", "pair/resnet8_w24_w8.yaml"}
    assert "preset/data/glyphs_smoke.yaml" in names
    others = {"data/cifar10.yaml", "preset/data/glyphs_quick.yaml", "task/pointcloud.yaml", "pair/pointpillars_4x.yaml"}
    assert not others & names
