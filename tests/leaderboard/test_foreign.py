from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from leaderboard.boards import build as join
from leaderboard.build import build
from leaderboard.foreign import foreign, foreign_targets, trusted
from leaderboard.rows import Found
from tests.leaderboard.rows import row

ROOT = Path(__file__).resolve().parents[2]
START = "python -m kdbench task=classification method=kd seed=0 "


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.exec",
        "kdbench.base.instantiate.locate",
        "kdbench.records.provenance.subprocess",
        "kdbench.records.record.shutil",
        "tasks.classification.models.timm",
        "torch.load",
        "torch.hub.load",
        "torch.nn.modules.module.warnings",
        "timm.models._hub.load_state_dict_from_hf",
        "timm.models.load_checkpoint",
        "torch.nn..Linear",
        "Linear",
        "",
        "torch.nn.Linear\n",
        "${oc.env:X}",
    ],
)
def test_what_is_not_trusted(target: str) -> None:
    assert not trusted(target)
    assert list(foreign_targets({"a": [{"_target_": target}]})) == [target]
    assert foreign(START + shlex.quote(f"student._target_={target}"))


@pytest.mark.parametrize(
    "target",
    ["torch.nn.Linear", "torchvision.models.resnet18", "timm.create_model", "kdbench.optim.cosine", "torch.optim.SGD"],
)
def test_what_is_trusted(target: str) -> None:
    assert trusted(target)
    assert foreign(START + f"student._target_={target}") == ()


def test_all_that_this_repository_configures_is_trusted() -> None:
    texts = (path.read_text() for path in (ROOT / "conf").rglob("*.yaml"))
    named = {name for text in texts for name in re.findall(r"^[^#\n]*_target_: *([\w.]+)", text, re.MULTILINE)}
    assert len(named) > 40
    assert [name for name in sorted(named) if not trusted(name)] == []


@pytest.mark.parametrize(
    "word",
    [
        "student={_target_: os.system, command: ls}",
        "student={'_target_': os.system}",
        "data.classes=[{_target_: os.system}]",
        "student={_target_: torch.nn.Linear},{_target_: os.system}",
        "student='{_target_: os.system}'",
        "student={_target_: [",
        "student._target_=torch.nn.Linear,os.system",
        "++student._target_=os.system",
        "+hydra.callbacks.x._target_=os.system",
        "hydra.searchpath=[file:///tmp/evil]",
        "--config-dir=/tmp/evil",
        "-cd",
        'student=${oc.decode:"{_tar"}',
    ],
)
def test_words_that_hide_it(word: str) -> None:
    assert foreign(START + shlex.quote(word))


@pytest.mark.parametrize("word", ["trainer.epochs=9", "-m", "+a.b=2", "~trainer.clip", "data.classes=[cat, dog]"])
def test_words_that_hide_nothing(word: str) -> None:
    assert foreign(START + shlex.quote(word)) == ()


def test_a_foreign_command_has_a_warning_and_no_button(tmp_path: Path) -> None:
    evil = [row("sp", s, 66.0, command=START + "student._target_=os.system") for s in range(2)]
    good = [row("kd", s, 66.0, command=START + "student._target_=torch.nn.Linear") for s in range(2)]
    found = Found([*good, *evil], [], 0, 4)
    site = build(tmp_path / "out", found, join(found.rows), run_pages=0).out
    pages = {name: (site / f"groups/{name}-{name}-a_b-4.html").read_text() for name in ("kd", "sp")}
    assert "Foreign code: this command runs or reads <code>os.system</code>" in pages["sp"]
    assert 'class="copy" hidden>Copy</button></div>' in pages["kd"]
    assert 'class="copy" hidden>Copy</button></div>' not in pages["sp"]
    assert "foreign code: os.system" in (site / "data/task-classification.csv").read_text()
    assert "os.system" not in (site / "data/holes.csv").read_text()
