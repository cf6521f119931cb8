from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from kdbench.configuration import config
from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Logits
from kdbench.functional.ssld import label_free_divergence
from kdbench.methods.ssld import SSLD
from kdbench.needs import Stage, State
from kdbench.signals import EVERY, Context
from kdbench.task import DatasetInfo, Task
from tests.methods.harness import Bench, check_deterministic, check_gradients, differ, knobs, normal
from tests.toy import Toy

OTHER: dict[str, Any] = {"divergence": "soft_ce", "keep": 0.5, "finetune": 0.5, "finetune_lr": 0.1}
SIZE = 12


def info(self: Task) -> DatasetInfo:
    return DatasetInfo("toy", True, "toy", {"train": SIZE, "val": 4, "test": 4})


def bench(batch: int = SIZE, dtype: torch.dtype = torch.float32, labelled: int = 4, **options: Any) -> Bench:
    """The first ``labelled`` samples of the batch have labels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Task, "dataset", info)
        student, teacher = (Logits((3 * normal(batch, 3, name=n)).to(dtype)) for n in ("s", "t"))
        made = Bench("ssld", {"logits": student}, {"logits": teacher}, **options)
    supervised = torch.arange(batch) < labelled
    made.views = {role: {"main": replace(v["main"], supervised=supervised)} for role, v in made.views.items()}
    return made


def at(made: Bench, epoch: int) -> Tensor:
    return made.method.terms(made.signals(), Context(State(epoch, epoch, 0.0), 0, frozenset({EVERY})))["ssld"]


def show(made: Bench, epoch: int = 0) -> None:
    with torch.no_grad():
        made.method.after_step(made.signals(), State(epoch, epoch, 0.0))


def test_binds_to_the_logits():
    side = {"taps": {"body": "body"}}
    assert bind(SSLD, Toy, {"name": "toy", "student": side, "teacher": side}) == {"logits": "logits"}


def test_gradients_and_determinism():
    check_gradients(bench())
    check_gradients(bench(batch=1))
    check_deterministic(bench())


@pytest.mark.parametrize("divergence", ["js", "symmetric_kl", "soft_ce"])
@pytest.mark.parametrize("law", ["categorical", "bernoulli"])
def test_is_the_mean_divergence_without_any_label(divergence, law):
    student, teacher = (Logits(3 * normal(6, 3, name=n), law=law) for n in ("s", "t"))
    made = Bench("ssld", {"logits": student}, {"logits": teacher}, divergence=divergence)
    expected = label_free_divergence(student.values, teacher.values, divergence, law).mean()
    assert made.loss().item() == pytest.approx(expected.item())


@pytest.mark.parametrize("knob", knobs("ssld"))
def test_every_knob_counts(knob):
    first, second = bench(), bench(**{knob: OTHER[knob]})
    if knob.startswith("finetune"):
        assert first.method.stages() != second.method.stages()
        return
    for made in (first, second):
        show(made)
    assert differ([at(first, 1).detach()], [at(second, 1).detach()])


def test_finetunes_on_the_labels_after_the_distillation():
    distil, finetune = bench().method.stages()
    assert (distil.terms, finetune.terms) == (("ssld",), ("task",))
    assert distil.epochs + finetune.epochs == pytest.approx(1)
    assert finetune.lr == 0.01
    (alone,) = bench(finetune=0.0).method.stages()
    assert (alone.epochs, alone.terms) == (1, ("ssld",))


def test_from_the_second_epoch_on_the_surest_unlabelled_samples_of_each_class_stay():
    made = bench(keep=0.3)
    whole = label_free_divergence(made.student[0], made.teacher[0])
    assert at(made, 0).item() == pytest.approx(whole.mean().item())
    show(made)
    confidence, predicted = made.teacher[0].detach().softmax(1).max(1)
    stay = list(range(4))
    for c in range(3):
        of_class = sorted((i for i in range(4, SIZE) if predicted[i] == c), key=lambda i: -float(confidence[i]))
        stay += of_class[: -(-3 * len(of_class) // 10)]
    assert 4 < len(stay) < SIZE
    value = at(made, 1)
    assert value.item() == pytest.approx(whole[stay].mean().item(), rel=1e-6)
    value.backward()
    grad = made.student[0].grad
    assert grad is not None
    assert grad.any(1).nonzero().flatten().tolist() == sorted(stay)


def test_the_choice_is_in_the_checkpoint_and_later_steps_do_not_change_it():
    made = bench(keep=0.3)
    show(made)
    expected = at(made, 1).item()
    again = bench(keep=0.3)
    again.method.load_state_dict(made.method.state_dict())
    assert at(again, 1).item() == expected
    made.teacher[0].data.mul_(-1)
    show(made, epoch=1)
    made.method.enter(Stage("finetune"), made.signals())
    show(made)
    assert all(torch.equal(a, b) for a, b in zip(made.method.buffers(), again.method.buffers(), strict=True))


def test_samples_that_the_first_epoch_did_not_show_stay():
    made = bench(keep=0.3)
    assert at(made, 1).item() == pytest.approx(at(bench(), 0).item())


def test_with_labels_alone_everything_stays():
    made = bench(keep=0.3)
    made.views = {role: {"main": replace(v["main"], supervised=None)} for role, v in made.views.items()}
    show(made)
    assert at(made, 1).item() == pytest.approx(at(made, 0).item())


def test_masks_and_weights_of_rows_hold_beside_the_choice():
    made = bench(keep=0.3)
    show(made)
    rows = label_free_divergence(made.student[0], made.teacher[0])
    kept = made.method.kept()
    mask, weight = torch.arange(SIZE) % 2 == 0, torch.arange(SIZE) + 1.0
    for role, given in made.given.items():
        source: Any = made.cast.sources[role]
        logits: Any = given["logits"]
        source.features = {"logits": replace(logits, mask=mask, weight=weight)}
    w = weight[mask] * kept[mask]
    assert at(made, 1).item() == pytest.approx(((w * rows[mask]).sum() / w.sum()).item(), rel=1e-6)


def test_no_rows_and_low_precision():
    empty = bench(batch=0)
    assert empty.loss() == 0
    assert empty.loss().requires_grad
    assert bench(dtype=torch.bfloat16).loss().item() == pytest.approx(bench().loss().item(), rel=0.05)
    low = bench(keep=0.3, dtype=torch.bfloat16)
    show(low)
    assert at(low, 1).isfinite()


def test_the_recipe_gives_unlabelled_samples_to_the_student_alone():
    recipe = OmegaConf.load(config.folder() / "recipe" / "classification_ssld.yaml")
    assert recipe.data.unlabelled == "rest"
    assert recipe.teacher.data.unlabelled is None


def test_bad_options_are_one_line():
    with pytest.raises(KDBenchError, match=r"method.keep: found 0; input should be greater than 0"):
        bench(keep=0)
    dense = {"logits": Logits(normal(2, 3, 4, 4), class_dim=1)}
    with pytest.raises(KDBenchError, match=r"one prediction each.*set method.keep=1"):
        Bench("ssld", dense, dense, keep=0.5)
