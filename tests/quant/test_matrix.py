"""Every quantisation with methods of every kind of feature and task, and with those that have stages of their own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.configuration.resolved import resolve
from kdbench.quant.weights import quantizers
from kdbench.runs.trainings import Trainings
from kdbench.training.fit import Training
from kdbench.training.promises import check_promises
from kdbench.training.trained import score
from tests import tiny
from tests.cli import ROOT, install

QUANTISATIONS = ("quantized_distillation", "differentiable_quantization", "post_training")
#: One method for each kind of feature that a task has, and those whose stages, roles, steps or banks are their own.
METHODS = {
    "classification": ("kd", "fitnet", "crd"),
    "pointcloud": ("kd", "fitnet", "pointdistiller"),
    "segmentation": ("cwd", "fitnet"),
    "toy": ("none", "self_guided", "tf_kd", "ft", "dml", "crd", "bdkd", "tgeo"),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("quant")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(install(folder / "site"))
        patch.chdir(ROOT)
        yield folder


@pytest.fixture(scope="module")
def overrides(shared: Path) -> Callable[[str], list[str]]:
    """The overrides of a task, whose data is written once."""
    return functools.cache(lambda task: tiny.overrides(task, shared))


@pytest.mark.parametrize("quant", QUANTISATIONS)
@pytest.mark.parametrize(("task", "method"), [(task, m) for task, methods in METHODS.items() for m in methods])
def test_a_student_of_any_method_is_trained_and_quantised(task, method, quant, shared, overrides, tmp_path):
    settings = ["preset=smoke", "trainer.epochs=1", "trainer.accelerator=cpu", f"cache={shared / 'cache'}"]
    words = [f"task={task}", f"method={method}", f"quant={quant}", "quant.bits=3", *settings]
    run = resolve(config.load([*words, *overrides(task)]), Store(shared / "cache"))
    run.task.prepare()
    training = Training(Trainings(run).student_recipe(), run.task, untrained=True)
    check_promises(training, training.first_batch())
    manifest = training.run(tmp_path)
    assert (manifest["cost"]["epochs"] == 0) == (quant == "post_training")
    assert manifest["packed"]["packed_bytes"] == (tmp_path / "packed.safetensors").stat().st_size
    assert manifest["beside"].keys() >= {"float"}
    found = score(training.recipe, run.task, tmp_path, ["float"])
    assert run.task.primary in found["test"]
    # Taps are where they were: the trained student answers with all features of the plain one.
    batch = next(iter(run.task.data(0).test_dataloader()))
    student = training.cast.sources["student"].eval()
    assert len(list(quantizers(training.cast.model("student")))) > 5
    with torch.no_grad():
        taps = student.answer(batch).features
    assert taps.keys() == run.task.kinds(training.pair["student"]).keys()


class Killed(Exception):
    """Stands for a kill."""


class Kill(Callback):
    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise Killed


@pytest.mark.parametrize("words", [("differentiable_quantization",), ("quantized_distillation", "stochastic=true")])
def test_an_interrupted_training_ends_where_a_whole_one_does(words, shared, tmp_path):
    """Points, which tensor has how many of them, and random rounding are as they were."""
    quant, *options = words
    given = [f"task=toy quant={quant} method=kd preset=smoke trainer.epochs=4 trainer.accelerator=cpu".split()]
    given += [[f"quant.{option}" for option in options]]
    given += [["quant.epochs=1"]] if quant == "differentiable_quantization" else []
    run = resolve(config.load([word for part in given for word in part]), Store(shared / "cache"))
    recipe = Trainings(run).student_recipe()
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    Training(recipe, run.task, untrained=True).run(whole)
    with pytest.raises(Killed):
        Training(recipe, run.task, untrained=True).run(broken, [Kill()])
    Training(recipe, run.task, untrained=True).run(broken)
    for name in ("model.safetensors", "packed.safetensors"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
