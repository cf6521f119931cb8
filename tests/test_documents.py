"""Every command and setting that the documents show: it composes, and (slow) a run of it ends well."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose
from hydra.errors import HydraException
from markdown_it import MarkdownIt
from safetensors.torch import save_file

from kdbench.configuration import config
from kdbench.errors import KDBenchError
from kdbench.records.record import find_records, read_record
from tests.cli import EXAMPLE, PLUGINS, ROOT, install, run
from tests.tasks.classification import layouts
from tests.tasks.graph.tiny import write_cora, write_hypergraph, write_ratings
from tests.tasks.hoi.tiny import released, write_released
from tests.tasks.pointcloud import test_layouts as test_scans
from tests.tasks.pointcloud import tiny
from tests.tasks.pointcloud.tiny import RANGE
from tests.tasks.segmentation import test_layouts

#: Not what changed, nor what is generated from YAML and classes.
APART = {".venv", "results", "CHANGELOG.md", "reference.md", "methods.md"}
DOCUMENTS = sorted(p for p in ROOT.glob("**/*.md") if not APART & set(p.relative_to(ROOT).parts))
HEADERS = sorted((ROOT / "conf").glob("**/*.yaml"))
#: What stands for something of the reader's, and names of the worked examples, which are not there.
STAND_INS = {
    "<task>": "classification",
    "<method>": "fitnet",
    "method=cosine": "method=kd",
    "task=mytask": "task=toy",
    "$(python -m kdbench.matrix --task classification --names)": "kd,at",
    "$(python -m kdbench.matrix --task classification --names --replay)": "kd,at",
    "=DIR": "=/data",
    "=PATH": "=/data",
    "=FILE": "=teacher.safetensors",
    "=N": "=3",
    "[key=value …] ": "",
    "PYTHONPATH=. ": "",
    ".venv/bin/python": "python",
}


def shown(path: Path) -> list[str]:
    """The lines of code that a document shows, joined where they go on, and what it shows within a line."""
    if path.suffix == ".yaml":
        return [m[1] for m in re.finditer(r"^\s*#? ?(python -m .*?)(?:  .*)?$", path.read_text(), re.MULTILINE)]
    found: list[str] = []
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text()):
        if token.type == "code_block" or (token.type == "fence" and token.info in ("bash", "sh")):
            found += token.content.replace("\\\n", " ").splitlines()
        found += [child.content for child in token.children or [] if child.type == "code_inline"]
    return found


def read(line: str) -> list[list[str]]:
    """The words of a command or setting: one list for each of the alternatives a|b, what is optional included."""
    for shown_as, meant in STAND_INS.items():
        line = line.replace(shown_as, meant)
    words = shlex.split(
        re.sub(r"[\[\]](?=-|\w*…|\s|$)", "", line) if line.startswith("python") else line, comments=True
    )
    ways = [[word[: word.rfind("=") + 1] + value for value in word[word.rfind("=") + 1 :].split("|")] for word in words]
    return [list(way) for way in itertools.product(*ways)]


@cache
def commands() -> list[tuple[str, str]]:
    """(file, command) of all that begins with python or make."""
    starts = re.compile(r"(PYTHONPATH=\. |\.venv/bin/)?(python -m|make) ")
    return [(p.relative_to(ROOT).as_posix(), c) for p in (*DOCUMENTS, *HEADERS) for c in shown(p) if starts.match(c)]


@cache
def settings() -> list[tuple[str, str]]:
    """(file, setting) of all that reads key=value, each setting once."""
    assigns = re.compile(r"['\"]?[+~]*[a-z_]+[a-z_0-9]*([./][a-z_0-9]+)*=[^=\s]")
    found = {c: p.relative_to(ROOT).as_posix() for p in reversed(DOCUMENTS) for c in shown(p) if assigns.match(c)}
    return sorted((file, setting) for setting, file in found.items())


@pytest.fixture(autouse=True)
def packages(tmp_path, monkeypatch):
    """The packages of the examples, as they would be installed."""
    for example in (EXAMPLE, PLUGINS):
        monkeypatch.syspath_prepend(str(example))
    monkeypatch.syspath_prepend(install(tmp_path / "toy"))
    install(tmp_path / "own", "kdbench_plugins", "kdbench_plugins.conf")
    monkeypatch.syspath_prepend(install(tmp_path / "own", "kdbench_diabetes", "kdbench_diabetes.conf"))


def composes(overrides: list[str], sweep: bool) -> None:
    """Composes what the command line would, Hydra's own keys included where the plugin is installed."""
    config.register()
    overrides = config.at_home(overrides)
    plain = [o for o in overrides if not o.lstrip("+").startswith("hydra")]
    config.choices(plain, sweep)
    expanded = config.expanded(plain)
    config.load(config.first(expanded))
    own = [o for o in overrides if o not in plain]
    chosen = dict(o.split("=", 1) for o in own if "/" in o.partition("=")[0])
    if own and all(option in config.options(group) for group, option in chosen.items()):
        with config._initialized():
            compose("config", overrides=own, return_hydra_config=True)


def contexts(keys: list[str]) -> list[list[str]]:
    """Choices under which settings that stand alone may be meant."""
    options = [key.split(".")[1] for key in keys if key.startswith("method.")]
    if options:
        wanted = re.compile(rf"^\s*{options[0]}:", re.MULTILINE)
        methods = [p.stem for p in sorted((ROOT / "conf" / "method").glob("*.yaml")) if wanted.search(p.read_text())]
        return [
            ["task=pointcloud", "method=pointdistiller"],
            *(["task=classification", f"method={m}"] for m in methods),
        ]
    for axis in ("augment", "quant"):
        own = [key.split(".")[-1] for key in keys if key.startswith(f"{axis}.")]
        if own:
            wanted = re.compile(rf"^\s*{own[0]}:", re.MULTILINE)
            found = [p.stem for p in sorted((ROOT / "conf" / axis).glob("*.yaml")) if wanted.search(p.read_text())]
            return [["task=classification", f"{axis}={name}"] for name in found]
    if any(key.startswith("hydra.") for key in keys):
        return [[f"hydra/launcher={option}"] for option in config.options("hydra/launcher")]
    return [
        [],
        ["task=classification"],
        ["task=classification", "data=imagefolder"],
        ["task=segmentation"],
        ["task=hoi"],
        ["task=graph"],
        ["task=graph", "data=interactions"],
        ["task=detection"],
        ["task=pointcloud", "data=nuscenes"],
        ["task=text"],
        ["task=text", "data=kgqa"],
        ["task=diabetes"],
        ["logger=wandb"],
    ]


def test_there_is_something_to_read():
    files = {file for file, _ in commands()}
    assert files >= {
        "README.md",
        "docs/sweeps.md",
        "conf/config.yaml",
        "conf/experiment/smoke.yaml",
        "conf/trainer/ddp.yaml",
    }
    assert len(commands()) > 40
    assert len(settings()) > 40
    assert ("README.md", "make demo") in {(file, c.partition("  ")[0]) for file, c in commands()}


@pytest.mark.parametrize(("file", "command"), [c for c in commands() if re.search(r"-m kdbench(\.doctor)? ", c[1])])
def test_a_command_composes(file, command):
    for words in read(command):
        arguments = words[words.index("-m") + 2 :]
        composes([a for a in arguments if not a.startswith("-")], "-m" in arguments)


@pytest.mark.parametrize(("file", "setting"), settings())
def test_a_setting_composes(file, setting):
    for words in read(setting):
        keys = [word.partition("=")[0] for word in words]
        if any(word.lstrip("+").startswith(("hydra/sweeper", "hydra.sweeper", "hydra.launcher.ray")) for word in words):
            pytest.skip("its plugin does not go together with the others")
        errors = []
        for context in contexts(keys):
            try:
                composes([*context, *words], sweep=True)
                break
            except (KDBenchError, HydraException) as error:
                errors.append(str(error))
        else:
            pytest.fail(f"{setting}: {errors[-1]}")


def test_targets_of_make_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown_as = {word for _, c in commands() if c.startswith("make ") for word in shlex.split(c, comments=True)[1:]}
    assert {word for word in shown_as if "=" not in word} <= targets


OTHERS = sorted({(words[2], *words[3:]) for _, c in commands() if c.startswith("python -m") for words in read(c)})
#: Commands within one module, each with options of its own.
WITHIN = {("leaderboard", name) for name in ("check", "compare", "recommend", "release", "reproduce", "schema")}


def options_by_command() -> dict[tuple[str, ...], set[str]]:
    found: dict[tuple[str, ...], set[str]] = {}
    for module, *words in OTHERS:
        command = (module, *words[:1]) if (module, *words[:1]) in WITHIN else (module,)
        found.setdefault(command, set()).update(word for word in words if word.startswith("--"))
    return {command: options for command, options in found.items() if command[0] not in ("kdbench", "pip", "pytest")}


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(options_by_command()), ids=" ".join)
def test_options_of_the_other_commands_exist(command):
    said = subprocess.run(
        [sys.executable, "-m", *command, "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert {option for option in options_by_command()[command] if option not in said.stdout} == set()


# ---- as they run ----------------------------------------------------------------------------------------------

#: How a sweep is spread and repeated, which its first job does not show.
ASIDE = ("hydra", "trainer.threads=", "seed=", "tuning.trials=")
RUNS = sorted(
    {
        tuple(a for a in words[words.index("kdbench") + 1 :] if not a.startswith(ASIDE))
        for file, command in commands()
        for words in read(command)
        if re.search(r"python -m kdbench ", command) and file.endswith(".md") and "--help" not in words
    }
)

FLATNET = """
from torch import nn

class FlatNet(nn.Module):
    def __init__(self, width, num_classes, in_chans):
        super().__init__()
        self.conv, self.head = nn.Conv2d(in_chans, width, 3, 2, 1), nn.Linear(width, num_classes)

    def forward(self, images):
        return self.head(self.conv(images).relu().mean((2, 3)))
"""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small real data in the official layouts, a student of the reader's own, and a cache for all runs."""
    folder = tmp_path_factory.mktemp("shelf")
    (folder / "code").mkdir()
    (folder / "code" / "flatnet.py").write_text(FLATNET)
    labels = np.arange(200) % 100
    for part, seed in (("train", 0), ("test", 1)):
        layouts.cifar_binary(folder / "cifar-100-binary", part, layouts.images(200, seed), labels, coarse=True)
    tiny.write(folder / "kitti", train=5, test=1)
    test_scans.nuscenes(folder / "nuscenes")
    test_scans.own(folder / "own")
    layouts.mnist(folder / "mnist", train=200, test=60)
    write_released(folder / "cad120", **released(videos=48))
    write_cora(folder)
    write_ratings(folder)
    write_hypergraph(folder / "hyper_cora_coauthorship.npz", nodes=800)
    (folder / "texts").mkdir()
    lines = "".join(f"text {'abcd'[n % 4]} of {n},{'xy'[n % 2]}\n" for n in range(400))
    (folder / "texts" / "train.csv").write_text(f"text,label\n{lines}")
    save_file({"ids": torch.arange(2500), "outputs": torch.zeros(2500, 6)}, folder / "reader.safetensors")
    test_layouts.camvid(folder / "camvid")
    test_layouts.cityscapes(folder / "cityscapes")
    return folder


def few_nodes(data: str, shelf: Path) -> list[str]:
    """A small graph, made up or from the shelf."""
    if data.startswith(("cora", "coauthorship", "movielens")):
        return [f"data.root={shelf}"]
    return ["data.made={users: 40, items: 60}"] if data == "interactions" else ["data.citations.papers=250"]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", RUNS, ids=" ".join)
def test_a_command_runs(arguments, shelf, tmp_path, monkeypatch, capsys):
    """The first job of what is shown, on little data for an epoch."""
    given = [a for a in arguments if a != "-m"]
    first = config.first(config.expanded(config.at_home(given))) if "-m" in arguments else given
    first = [o for o in first if not o.startswith(("data.root=", "tuning.trials=", "trainer.epochs="))]
    composed = config.load(first)
    small = ["trainer.epochs=1", "trainer.val_every=1", "trainer.threads=1", "data.batch_size=16", "data.workers=0"]
    if composed["task"]["name"] == "pointcloud":
        widths = [f"pair.{side}.architecture.width={w}" for side, w in (("teacher", 0.25), ("student", 0.125))]
        held = {"kitti": "kitti", "nuscenes": "nuscenes", "kitti_like": "own"}[composed["data"]["name"]]
        small = [*small[:3], "data.batch_size=2", f"data.root={shelf}/{held}", f"task.point_range={RANGE}", *widths]
    elif composed["task"]["name"] == "hoi":
        few = [f"data.root={shelf}/cad120"] if composed["data"]["name"] == "cad120" else ["data.kitchen.videos=40"]
        small = [*small[:3], "data.batch_size=2", *few]
    elif composed["task"]["name"] == "graph":
        small = [*small[:3], *few_nodes(composed["data"]["name"], shelf)]
    elif composed["task"]["name"] == "text":
        texts = {
            "grammar": ["data.grammar.texts=2400", "data.grammar.test=8", "data.grammar.length=12", "data.labels=64"],
            "owntext": [f"data.root={shelf}/texts"],
            "ownlabels": [f"data.root={shelf}/texts", "data.labels=64", "data.unlabelled=rest"],
            "canaries": ["data.grammar.length=16", "data.canaries.times=[1,16]"],
            "kgqa": ["data.kgqa={people: 8, relations: 2, questions: [20, 30], test: [5, 10]}"],
            "topics": ["data.topics.texts=2400", "data.topics.test=40", "data.labels=64"],
        }
        small = [*small[:3], "data.batch_size=64", *texts[composed["data"]["name"]]]
        first = [re.sub(r"^(data\.(?:labels|unlabelled)=)\d+$", r"\g<1>64", o) for o in first]
    elif composed["task"]["name"] == "detection":
        few = ["data.render.train=12", "data.render.test=3", "data.train=12", "data.render.size=[64,96]"]
        small = [*small[:3], "data.batch_size=4", *few]
    elif composed["data"]["name"] == "cifar100":
        small += [f"data.root={shelf}"]
    elif composed["data"]["name"] == "shifted_mnist":
        small += [f"data.root={shelf}/mnist"]
    elif composed["data"]["name"] == "streets":
        small += ["data.render.size=[32,64]", "data.train=10", "data.test=2"]
    elif composed["data"]["name"] in ("camvid", "cityscapes"):
        root, few = f"data.root={shelf}/{composed['data']['name']}", ["data.batch_size=2", "data.workers=0"]
        small = [*small[:3], *few, root, "data.transforms.crop=[64,64]"]
        pretrained = [side for side in ("teacher", "student") if "pretrained" in composed["pair"][side]["architecture"]]
        small += [
            f"{side}.{o}" for side in pretrained for o in ("pretrained=false", "layers=[1,1,1,1]", "head_width=16")
        ]
    if not any(o.startswith("preset=") for o in first) and composed["task"]["name"] != "diabetes":
        small += ["preset=smoke"]
    taken = {o.partition("=")[0] for o in first}
    small = [o for o in small if o.partition("=")[0] not in taken]
    if composed["task"]["name"] == "diabetes":
        small = ["trainer.epochs=1"]
    monkeypatch.syspath_prepend(shelf / "code")
    monkeypatch.chdir(shelf)
    done = run([*first, *small, f"results={tmp_path}/r", f"cache={shelf}/cache"], monkeypatch, capsys)
    assert done.code == 0, done.err[-2000:]
    (folder,) = find_records(tmp_path / "r")
    assert read_record(folder).status == "ok"
