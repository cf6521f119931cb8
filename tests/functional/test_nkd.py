"""Against the authors' code (yzd-v/cls_KD, run outside of this repository on the same tensors up to 33 x 1000, T 1 and
4, gamma 1.5): value and gradient the same bit for bit in float64 and float32."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.nkd import nkd_non_target_loss, nkd_target_loss
from tests.functional.checks import check_empty, check_low_precision

LOSSES = {"target": nkd_target_loss, "non_target": nkd_non_target_loss}


def rows(n: int, c: int) -> tuple[torch.Tensor, ...]:
    """Logits of both, true classes and row weights."""
    g = rng.generator(0, "nkd", n, c)
    student, teacher = (3 * torch.randn(n, c, generator=g, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.randint(c, (n,), generator=g), torch.rand(n, generator=g, dtype=torch.float64)


def softmax(values: list[float]) -> list[float]:
    return [math.exp(v) / sum(math.exp(u) for u in values) for v in values]


def reference(
    student: np.ndarray, teacher: np.ndarray, target: np.ndarray, t: float, weight: np.ndarray
) -> dict[str, float]:
    """Both terms, one row at a time."""
    totals = {"target": 0.0, "non_target": 0.0}
    for z_s, z_t, y, w in zip(student, teacher, target, weight, strict=True):
        totals["target"] -= w * softmax(list(z_t))[y] * math.log(softmax(list(z_s))[y])
        q_s, q_t = (softmax([v / t for c, v in enumerate(z) if c != y]) for z in (z_s, z_t))
        totals["non_target"] -= w * t * t * sum(a * math.log(b) for a, b in zip(q_t, q_s, strict=True))
    return {name: value / weight.sum() for name, value in totals.items()}


@pytest.mark.parametrize("shape", [(1, 2), (5, 3), (9, 100)])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_matches_the_equations(shape, temperature, weighted):
    student, teacher, target, weight = rows(*shape)
    given = weight if weighted else None
    expected = reference(
        student.numpy(),
        teacher.numpy(),
        target.numpy(),
        temperature,
        weight.numpy() if weighted else np.ones(shape[0]),
    )
    value = nkd_target_loss(student, teacher, target, weight=given)
    assert value.item() == pytest.approx(expected["target"], rel=1e-6)
    value = nkd_non_target_loss(student, teacher, target, temperature, weight=given)
    assert value.item() == pytest.approx(expected["non_target"], rel=1e-6, abs=1e-12)


def test_every_option_changes_the_value():
    student, teacher, target, weight = rows(6, 5)
    for loss in LOSSES.values():
        values = [
            loss(student, teacher, target),
            loss(student, teacher, (target + 1) % 5),
            loss(student, teacher, target, weight=weight),
        ]
        assert len({round(v.item(), 6) for v in values}) == len(values)
    assert nkd_non_target_loss(student, teacher, target) != nkd_non_target_loss(student, teacher, target, 2.0)


def test_minimum():
    _, teacher, target, _ = rows(6, 5)
    student = teacher.clone().requires_grad_()
    value = nkd_non_target_loss(student, teacher, target, 2.0)
    value.backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12
    q = torch.stack([torch.cat([z[:y], z[y + 1 :]]) for z, y in zip(teacher, target.tolist(), strict=True)]) / 2
    entropy = torch.distributions.Categorical(logits=q).entropy().mean()
    torch.testing.assert_close(value.detach(), 4 * entropy)
    # The first term falls to zero as the student becomes sure of the true class.
    sure = 50 * torch.nn.functional.one_hot(target, 5).double()
    assert nkd_target_loss(sure, teacher, target).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("loss", LOSSES.values())
def test_gradients(loss):
    student, teacher, target, weight = rows(3, 4)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, target, weight=weight), (student,))


@pytest.mark.parametrize("loss", LOSSES.values())
def test_low_precision(loss):
    student, teacher, target, _ = rows(64, 100)
    check_low_precision(loss, student, teacher, target)


@pytest.mark.parametrize("loss", LOSSES.values())
def test_no_rows(loss):
    check_empty(loss, (0, 5), (0, 5), torch.zeros(0, dtype=torch.long))


def test_errors():
    none = torch.zeros(2, dtype=torch.long)
    for loss in LOSSES.values():
        with pytest.raises(KDBenchError, match=r"\(2, 3\).*\(2, 4\)"):
            loss(torch.zeros(2, 3), torch.zeros(2, 4), none)
    with pytest.raises(KDBenchError, match="1 class, expected at least 2"):
        nkd_non_target_loss(torch.zeros(2, 1), torch.zeros(2, 1), none)
