"""What fits what: as computed, as printed, and as it is: every green cell trains, every red one is refused."""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from kdbench import matrix
from kdbench.base import digest as module
from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.configuration.resolved import resolve
from kdbench.errors import KDBenchError
from kdbench.matrix import AXES, Cell
from kdbench.runs.trainings import Trainings
from kdbench.training.fit import Training
from kdbench.training.promises import check_promises
from kdbench.training.trained import score
from tests import tiny
from tests.cli import EXAMPLE, ROOT, CliToy, install

#: The configuration of this repository, of the toy and of the example; what is installed here stands beside it.
CONF = (ROOT / "conf", ROOT / "tests" / "conf", EXAMPLE / "kdbench_diabetes" / "conf")


def names(group: str) -> list[str]:
    return sorted({path.stem for top in CONF for path in (top / group).glob("[!_]*.yaml")} | {*config.options(group)})


#: Networks of a task that a quantisation refuses, which no class tells before they are built.
REFUSED = {
    ("dense", "qat_int4_weight"): "has no linear or embedding layer",
    ("segmentation", "qat_int4_weight"): "has no linear or embedding layer",
    ("detection", "qat_int4_weight"): "has no linear or embedding layer",
    # What is exported takes dense features, what is trained sparse ones.
    ("graph", "qat_int8"): "does not take a training batch",
    ("graph", "ptq_int8"): "does not take a training batch",
}
CELLS = [(task, axis, name) for task in names("task") for axis in AXES for name in names(axis)]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, together: Path) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("matrix")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(install(folder / "site"))
        patch.syspath_prepend(str(EXAMPLE))
        patch.syspath_prepend(install(folder / "example", "kdbench_diabetes", "kdbench_diabetes.conf"))
        patch.setenv("KDBENCH_CACHE", str(together / "matrix"))
        yield together / "matrix"


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str, str], Cell]:
    return {(cell.task, cell.axis, cell.name): cell for cell in matrix.cells()}


@pytest.fixture(scope="module")
def default() -> Callable[[str], DictConfig]:
    """A task under its own pair, composed once."""
    return functools.cache(lambda task: config._composed([f"task={task}", "method=none", "preset=smoke"]))


#: An option of an axis.
option = functools.cache(config.option)


def placed(default: DictConfig, axis: str, name: str) -> dict[str, Any]:
    """What is composed of a task and an option that no recipe has in one."""
    composed = copy.deepcopy(default)
    OmegaConf.set_struct(composed, False)
    composed[axis] = option(axis, name)
    return config.check(composed)


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """The overrides of a task, whose data is written once."""
    return functools.cache(lambda task: tiny.overrides(task, tmp_path_factory.mktemp("data")))


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert matrix.main(list(arguments)) == 0
    return capsys.readouterr().out


# ---- as printed -----------------------------------------------------------------------------------------------


def test_every_choice_has_its_cell(found):
    assert sorted(found) == sorted(CELLS)
    for cell in found.values():
        assert (cell.pair is not None) == cell.ok == (cell.reason is None)


def test_json(capsys, found):
    content = json.loads(printed(capsys, "--format", "json"))
    assert content["methods"] == names("method")
    assert content["tasks"] == names("task")
    assert content["cells"][0].keys() == {"axis", "name", "task", "pair", "ok", "reason", "no_replay", "refuses"}
    assert [Cell(**cell) for cell in content["cells"]] == list(found.values())
    one = json.loads(printed(capsys, "--format", "json", "--task", "toy"))
    assert {cell["task"] for cell in one["cells"]} == {"toy"} == set(one["tasks"])


def test_a_red_cell_says_why(found):
    assert found["toy", "method", "toy_mixed"].reason == "Mixed requires mixable, which task toy lacks"
    assert found["pointcloud", "method", "toy_mutual"].ok
    assert found["toy", "method", "kd"].pair == "toy"
    assert found["pointcloud", "method", "kd"].pair == config.load(["task=pointcloud"])["pair"]["name"]


def test_an_augmentation_says_which_methods_it_leaves_without_what_they_require(found):
    mixed, cut = found["classification", "augment", "mixup"], found["segmentation", "augment", "cutmix"]
    names, _, required = mixed.refuses.partition(": each requires some of ")
    assert {"crd", "dkd", "nkd"} <= set(names.split(", "))
    assert not {"kd", "fitnet", "mixkd"} & set(names.split(", "))
    assert required == "sample_id, single_label"
    assert not {"cirkd", "dist"} & set(cut.refuses.partition(":")[0].split(", "))  # each pixel keeps one class
    assert "cirkd" in found["segmentation", "augment", "mixup"].refuses
    assert found["classification", "augment", "regmixup"].refuses == ""
    assert found["pointcloud", "augment", "polarmix"].refuses == "ssld: each requires some of sample_id"
    assert found["pointcloud", "augment", "mixup"].reason == "Mixup requires mixable, which task pointcloud lacks"


def test_a_regression_is_served_by_what_reads_values_and_vectors(found):
    green = {name for (task, axis, name), cell in found.items() if (task, axis) == ("diabetes", "method") and cell.ok}
    assert {"kd", "dml", "fitnet", "rkd", "sp", "pkt", "cc", "none"} <= green
    assert not {"ctkd", "lskd", "dkd", "bdkd", "crd", "at", "tgeo"} & green
    assert found["diabetes", "method", "ctkd"].reason.startswith("CTKD needs Logits ('logits'), which task diabetes")


def test_a_task_without_a_meta_cut_is_none_for_a_bilevel_method(monkeypatch, found):
    assert found["toy", "method", "tgeo"].ok
    monkeypatch.setattr(CliToy, "capabilities", CliToy.capabilities - {"meta"})
    spec, default = config.option("method", "tgeo"), config.load(["task=toy"])
    with pytest.raises(KDBenchError, match="^TGeo requires meta, which task toy lacks$"):
        matrix._serving(spec, default, [])


def test_text(capsys):
    rows: list[list[str]] = []
    for line in printed(capsys, "--task", "toy").splitlines():
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        if len(cells) > 1 and cells[0]:
            rows.append(cells)
        elif len(cells) > 1:  # what went to another line
            rows[-1] = [" ".join(filter(None, both)) for both in zip(rows[-1], cells, strict=True)]
    said = {" ".join(filter(None, cells)) for cells in rows}
    assert "method kd toy yes" in said
    assert "method srrl toy it calls the classifier of the teacher" in said
    assert "method toy_mixed Mixed requires mixable, which task toy lacks" in said


def test_names_are_ready_for_a_sweep(capsys, found):
    green = [n for (t, a, n), cell in found.items() if (t, a) == ("toy", "method") and cell.ok]
    assert printed(capsys, "--task", "toy", "--names") == ",".join(green) + "\n"
    assert "kd" in green
    assert "toy_mixed" not in green
    stored = printed(capsys, "--task", "toy", "--names", "--replay").strip().split(",")
    assert set(green) - set(stored) >= {"srrl", "toy_reuse"}
    assert {"kd", "fitnet", "none"} <= set(stored) <= set(green)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--task", "tou"], "task=tou: there is no such task: did you mean 'toy'?"),
        (["--names"], "--names needs --task T"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, line):
    assert matrix.main(arguments) == 1
    assert capsys.readouterr().err == f"kdbench: error: {line}\n"


def test_it_is_computed_once_for_one_state_of_the_sources(found, monkeypatch):
    monkeypatch.setattr(matrix, "compute", lambda: pytest.fail("computed again"))
    assert matrix.cells() == list(found.values())
    monkeypatch.setattr(matrix, "compute", lambda: [])
    monkeypatch.setattr(matrix, "digest_files", lambda *_: "other sources")
    assert matrix.cells() == []


@pytest.fixture
def plugin(tmp_path, monkeypatch, request) -> Path:
    """A package of somebody's own: a task without kinds(), a method that cannot be imported, one beside it."""
    top = f"plugin_of_{request.node.name}"
    package = tmp_path / top
    files = {
        "__init__.py": "",
        "conf/__init__.py": "",
        "conf/method/broken.yaml": f"name: broken\n_target_: {top}.broken.Broken\nweights: {{}}\n",
        "conf/method/fine.yaml": f"name: fine\n_target_: {top}.fine.Fine\nweights: {{}}\n",
        "conf/pair/damaged.yaml": "name: [damaged\n",
        "conf/task/mute.yaml": f"name: mute\n_target_: {top}.task.Mute\n",
        "conf/data/mute.yaml": "defaults: [{/pair@_global_.pair: mute}, _self_]\nname: mute\ntask: mute\n",
        "conf/pair/mute.yaml": "name: mute\ntask: mute\nteacher: {architecture: {}}\nstudent: {architecture: {}}\n",
        "conf/preset/task/mute_quick.yaml": "# @package _global_\ntrainer: {epochs: 1}\n",
        "broken.py": "raise ImportError('no backend')\n",
        "fine.py": "from kdbench.methods.fitnet import FitNet\nclass Fine(FitNet): ...\n",
        "task.py": "from kdbench.task import Task\nclass Mute(Task):\n    name = 'mute'\n",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    about = tmp_path / f"{top}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {top}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[kdbench.conf]\n{top} = {top}.conf\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return package


def test_what_is_wrong_in_another_package_is_the_reason_of_its_own_cells(plugin, found, monkeypatch):
    assert {"broken", "fine"} <= set(config.options("method"))
    few = {"method": ["kd", "broken", "fine"], "task": ["toy", "mute"], "pair": ["toy", "damaged", "mute"]}
    monkeypatch.setattr(config, "options", few.__getitem__)
    monkeypatch.setattr(matrix, "AXES", ("method",))
    cells = {(cell.task, cell.name): cell for cell in matrix.compute()}
    assert cells["toy", "kd"] == found["toy", "method", "kd"]
    assert cells["toy", "fine"].ok
    assert cells["toy", "broken"].reason == "ImportError: no backend"
    assert cells["mute", "kd"].reason == "task mute does not implement kinds()"


def test_another_package_that_changes_is_seen(plugin):
    seen = [list(matrix._others())]
    for name, text in (("conf/method/fine.yaml", "# changed\n"), ("fine.py", "# changed\n")):
        (plugin / name).write_text((plugin / name).read_text() + text)
        module._source_digest.cache_clear()
        seen.append(list(matrix._others()))
    assert len({str(others) for others in seen}) == 3
    assert seen[2] == list(matrix._others())


# ---- as it is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axis", "name"), [("method", "at"), ("augment", "mixup"), ("quant", "qat_int8")])
def test_an_option_is_placed_as_it_is_composed(axis, name, default):
    for task in ("classification", "graph"):
        words = [f"task={task}", f"{axis}={name}", *(["method=none"] if axis != "method" else []), "preset=smoke"]
        assert placed(default(task), axis, name) == config.load(words)


@pytest.mark.parametrize(("task", "axis", "name"), CELLS)
def test_green_cells_train_and_red_ones_are_refused(task, axis, name, found, default, overrides, cache, tmp_path):
    cell, store = found[task, axis, name], Store(cache)
    if not cell.ok:
        with pytest.raises(KDBenchError, match=f"^{re.escape(cell.reason)}$"):
            resolve(placed(default(task), axis, name), store)
        return
    choice = [f"task={task}", f"{axis}={name}", *(["method=none"] if axis != "method" else []), "preset=smoke"]
    own = [f"pair={cell.pair}"] if cell.pair != default(task).pair.name else []
    settings = ["trainer.epochs=1", "trainer.accelerator=cpu", f"cache={cache}"]
    resolved = config.load([*choice, *own, *settings, *overrides(task)])
    run = resolve(resolved, store)
    made: Any = run.task
    made.prepare()
    training = Training(Trainings(run).student_recipe(), made, untrained=True)
    check_promises(training, training.first_batch())
    if (task, name) in REFUSED:
        with pytest.raises(KDBenchError, match=REFUSED[task, name]):
            training.run(tmp_path)
        return
    manifest = training.run(tmp_path)
    assert (manifest["cost"]["student_passes"] > 0) == any(stage.epochs for stage in training.stages)
    assert made.primary in score(training.recipe, made, tmp_path)["test"]
    weights = resolved[axis].get("weights") or {}
    updates = [update for plugin in training.plugins.values() for update in plugin.updates()]
    by_need = {term for update in updates if update.when is not None for term in update.terms or ()}
    wanted = {term for term, weight in weights.items() if weight != 0.0} - by_need
    # A term of each head is called by it, too.
    assert not wanted - {name for term in manifest["terms"] for name in (term, term.rpartition(".")[0])}
