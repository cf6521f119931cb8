"""``faithful="code"`` agrees with ``PKT`` of HobbitLong/RepDistiller (BSD-2; the authors' own), run outside of this
repository on (8, 16), (33, 64 / 256) and (64, 64): values to 2e-15 and gradients to 3e-15 in float64, to 4e-6 and 2e-6
in float32."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.pkt import neighbour_probabilities, pkt_loss
from tests.functional.checks import check_low_precision


def features(b: int, d_s: int, d_t: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "pkt", b, d_s, d_t)
    return tuple(torch.randn(b, d, generator=g, dtype=torch.float64) for d in (d_s, d_t))


def reference(student: np.ndarray, teacher: np.ndarray, faithful: str, eps: float) -> float:
    n, total = len(student), 0.0
    for i in range(n):
        rows = []
        for x in (student, teacher):
            unit = [v / (math.sqrt(float((v * v).sum())) + eps) for v in x]
            kernel = [(float(unit[i] @ u) + 1) / 2 if faithful == "code" or j != i else 0.0 for j, u in enumerate(unit)]
            rows.append([k / max(sum(kernel), eps) for k in kernel])
        total += sum(t * math.log((t + eps) / (s + eps)) for s, t in zip(*rows, strict=True))
    return total / n**2 if faithful == "code" else total


@pytest.mark.parametrize("shape", [(2, 3, 3), (5, 2, 7), (12, 16, 4)])
@pytest.mark.parametrize("faithful", ["paper", "code"])
@pytest.mark.parametrize("eps", [1e-7, 1e-2])
def test_matches_the_equations(shape, faithful, eps):
    student, teacher = features(*shape)
    expected = reference(student.numpy(), teacher.numpy(), faithful, eps)
    value = pkt_loss(student, teacher, faithful=faithful, eps=eps)
    assert value.item() == pytest.approx(expected, rel=1e-6, abs=1e-15)


@pytest.mark.parametrize("itself", [False, True])
def test_rows_are_probabilities(itself):
    found = neighbour_probabilities(features(6, 3, 3)[0], itself=itself)
    torch.testing.assert_close(found.sum(1), torch.ones(6, dtype=torch.float64))
    assert (found.diagonal() > 0).all() == itself


@pytest.mark.parametrize("faithful", ["paper", "code"])
def test_minimum_and_gradients(faithful):
    student, teacher = features(5, 3, 4)
    assert pkt_loss(teacher, teacher, faithful=faithful) == 0
    assert pkt_loss(3 * teacher, teacher, faithful=faithful) == pytest.approx(0, abs=1e-7)
    for side in (student, teacher):
        side.requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t: pkt_loss(s, t, faithful=faithful), (student, teacher))
    (gradient,) = torch.autograd.grad(pkt_loss(student, teacher, faithful=faithful), student)
    assert gradient.abs().min() > 0


@pytest.mark.parametrize("faithful", ["paper", "code"])
def test_a_dead_sample_gives_no_nan(faithful):
    student, teacher = features(4, 3, 3)
    student[1] = 0
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(pkt_loss(student, teacher, faithful=faithful), student)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 10
    assert not gradient[1].any()


@pytest.mark.parametrize("faithful", ["paper", "code"])
def test_low_precision(faithful):
    student, teacher = features(16, 32, 24)
    check_low_precision(pkt_loss, student, teacher, faithful=faithful)


@pytest.mark.parametrize("faithful", ["paper", "code"])
@pytest.mark.parametrize("size", [0, 1])
def test_too_few_samples(faithful, size):
    student, teacher = features(size, 5, 3)
    student.requires_grad_()
    value = pkt_loss(student, teacher, faithful=faithful)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-15)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_errors():
    with pytest.raises(KDBenchError, match="one batch size"):
        pkt_loss(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(KDBenchError, match="did you mean 'paper'"):
        pkt_loss(torch.zeros(2, 3), torch.zeros(2, 3), faithful="papr")  # type: ignore[arg-type]
