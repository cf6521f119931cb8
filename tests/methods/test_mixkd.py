from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kdbench.errors import KDBenchError
from kdbench.features import Logits
from kdbench.functional.kd import std_rescale, z_score
from kdbench.needs import State
from kdbench.roles.cast import Cast
from kdbench.signals import EVERY, Context, Signals
from kdbench.task import Batch
from tasks.classification.task import with_scores
from tests.methods.harness import Bench, Hand, check_gradients, normal, yaml
from tests.tasks.classification import tiny

CLASSES = 5


class Hands(Cast):
    """Features made by hand, of no model."""

    def model(self, role: str) -> nn.Module:
        return nn.Identity()


class Mixed(Bench):
    """A student of images whose targets are mixtures."""

    def make_cast(self) -> Cast:
        sources = {role: Hand(features) for role, features in self.given.items()}
        task = tiny.shaped((4, 4), 1, CLASSES)
        task.ops = lambda: {"with_scores": with_scores}  # type: ignore[method-assign]
        return Hands(task, self.method.roles, sources)

    def signals(self, step: int = 0) -> Signals:
        rows = len(self.student[0])
        self.targets = normal(rows, CLASSES, name="targets").softmax(1)
        batch = Batch(torch.zeros(rows, 1, 4, 4), self.targets, torch.arange(rows))
        self.views = {role: {"main": batch} for role in self.method.roles}
        return super().signals(step)

    def loss(self, step: int = 0) -> torch.Tensor:
        terms, weights = self.checked(step), yaml("mixkd")["weights"]
        return sum((weights[name] * value for name, value in terms.items()), torch.zeros(()))


def bench(batch: int = 6, dtype: torch.dtype = torch.float32, name: str = "mixkd", **options: Any) -> Mixed:
    student, teacher = (Logits((3 * normal(batch, CLASSES, name=n)).to(dtype)) for n in ("s", "t"))
    return Mixed(name, {"logits": student}, {"logits": teacher}, **options)


def reference(student: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """gamma CE + alpha KL of logits over their unbiased standard deviation, row by row, in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for s, t, y in zip(student.double(), teacher.double(), targets.double(), strict=True):
        s, t = (z / ((z - z.mean()).square().sum() / (len(z) - 1)).sqrt() for z in (s, t))
        p, q = t.exp() / t.exp().sum(), s.exp() / s.exp().sum()
        total = total + 0.1 * -(y * q.log()).sum() + 0.9 * (p * (p.log() - q.log())).sum()
    return total / len(student)


def test_the_loss_and_its_gradient_are_those_of_the_equations():
    found = bench()
    loss = found.loss()
    (grad,) = torch.autograd.grad(loss, found.student)
    leaf = found.student[0].detach().double().requires_grad_()
    expected = reference(leaf, found.teacher[0].detach(), found.targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(grad.double(), torch.autograd.grad(expected, leaf)[0], rtol=1e-4, atol=1e-6)


def test_kd_rescales_likewise():
    terms, own = bench().terms(), bench(name="kd", rescale="std", temperature=1.0).terms()
    assert {name: value.item() for name, value in terms.items()} == {name: value.item() for name, value in own.items()}
    assert yaml("mixkd")["weights"] == {"task": 0.0, "rescaled": 0.1, "kd": 0.9}


def test_a_temperature_stands_beside_the_deviation():
    assert bench(temperature=4.0).terms()["kd"].item() != pytest.approx(bench().terms()["kd"].item(), rel=0.01)
    assert bench(temperature=4.0).terms()["rescaled"].item() == bench().terms()["rescaled"].item()


def test_the_supervised_loss_is_left_out_where_it_weighs_nothing():
    made = bench()
    context = Context(State(0, 0, 0.0), 0, frozenset({"kd"}))
    assert made.method.terms(made.signals(), context).keys() == {"kd"}
    assert EVERY not in context.wanted


def test_gradients_reach_the_student_alone_in_any_batch():
    check_gradients(bench())
    check_gradients(bench(batch=1))
    assert bench(batch=0).loss() == 0
    low, full = (bench(dtype=dtype).loss() for dtype in (torch.bfloat16, torch.float32))
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(full.item(), rel=0.05)


def test_scale_and_shift_of_logits_do_not_count():
    logits = 3 * normal(4, CLASSES).double()
    torch.testing.assert_close(std_rescale(7 * logits), std_rescale(logits))
    shifted = std_rescale(logits + 100).softmax(1)
    torch.testing.assert_close(shifted, std_rescale(logits).softmax(1))
    torch.testing.assert_close(z_score(logits, eps=0.0).softmax(1), shifted)


def test_rescaling_goes_along_any_class_axis_and_leaves_constant_rows_at_zero():
    maps = normal(2, CLASSES, 3, 4).double()
    rows = maps.movedim(1, -1).reshape(-1, CLASSES)
    torch.testing.assert_close(std_rescale(maps).movedim(1, -1).reshape(-1, CLASSES), std_rescale(rows))
    constant = torch.full((1, CLASSES), 2.0, requires_grad=True)
    std_rescale(constant).sum().backward()
    assert constant.grad is not None
    assert not std_rescale(constant).any()
    assert constant.grad.isfinite().all()
    with pytest.raises(KDBenchError, match="found 1 class, expected at least 2"):
        std_rescale(torch.zeros(3, 1))


def test_a_task_whose_scores_cannot_be_given_anew_is_one_line():
    student = {"logits": Logits(normal(2, 3))}
    with pytest.raises(KDBenchError, match=r"method.rescale=std is of scores of a softmax .* leave it out"):
        Bench("kd", student, {"logits": Logits(normal(2, 3, name="t"))}, rescale="std")
