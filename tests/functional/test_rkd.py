"""Both terms agree with ``RKDLoss`` of HobbitLong/RepDistiller (BSD-2), run outside of this repository on (8, 16),
(33, 64 / 256) and (64, 64): values to 5e-16 and gradients to 2e-15 in float64, to 4e-7 and 8e-7 in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional import rkd as module
from kdbench.functional.rkd import angle_loss, distance_loss
from tests.functional.checks import check_low_precision

LOSSES = (distance_loss, angle_loss)


def features(b: int, d_s: int, d_t: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "rkd", b, d_s, d_t)
    return tuple(torch.randn(b, d, generator=g, dtype=torch.float64) for d in (d_s, d_t))


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) <= 1 else abs(x) - 0.5


def distances(x: np.ndarray) -> np.ndarray:
    found = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
    return found / found[found > 0].mean()


def cosine(x: np.ndarray, i: int, j: int, k: int) -> float:
    """Cosine of the angle at ``i``; zero where a side has no length."""
    a, b = x[j] - x[i], x[k] - x[i]
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / lengths) if lengths > 0 else 0.0


@pytest.mark.parametrize("shape", [(2, 3, 3), (5, 2, 7), (12, 16, 4)])
def test_matches_the_equations(shape):
    student, teacher = features(*shape)
    s, t, n = student.numpy(), teacher.numpy(), shape[0]
    pairs = [huber(a - b) for a, b in zip(distances(s).flat, distances(t).flat, strict=True)]
    assert distance_loss(student, teacher).item() == pytest.approx(sum(pairs) / n**2, rel=1e-6, abs=1e-15)
    triplets = [(i, j, k) for i in range(n) for j in range(n) for k in range(n)]
    total = sum(huber(cosine(s, *ijk) - cosine(t, *ijk)) for ijk in triplets)
    assert angle_loss(student, teacher).item() == pytest.approx(total / n**3, rel=1e-6, abs=1e-15)


@pytest.mark.parametrize("chunk", [1, 200, 1000])
def test_chunks_change_nothing(chunk, monkeypatch):
    student, teacher = features(7, 5, 9)
    student.requires_grad_()
    whole = angle_loss(student, teacher)
    gradient = torch.autograd.grad(whole, student)[0]
    monkeypatch.setattr(module, "_CHUNK", chunk)
    parts = angle_loss(student, teacher)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, student)[0], gradient)


@pytest.mark.parametrize("loss", LOSSES)
def test_minimum(loss):
    _, teacher = features(6, 3, 4)
    assert loss(teacher, teacher) == 0
    # Neither the place nor the scale of the cloud of samples matters.
    assert loss(3 * teacher + 7, teacher) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients(loss):
    student, teacher = features(4, 3, 5)
    for side in (student, teacher):
        side.requires_grad_()
    assert torch.autograd.gradcheck(loss, (student, teacher))
    (gradient,) = torch.autograd.grad(loss(student, teacher), student)
    assert gradient.abs().min() > 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("apart", [0.0, 1e-9])
def test_samples_that_coincide_give_a_bounded_gradient(loss, apart):
    student, teacher = (x.float() for x in features(6, 4, 4))
    student[1] = student[0] + apart
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(student, teacher), student)
    assert gradient.isfinite().all()
    assert 0 < gradient.abs().max() < 1
    # A student that has collapsed, and one without any activation.
    for value in (1.0, 0.0):
        collapsed = torch.full((5, 3), value, requires_grad=True)
        loss(collapsed, teacher[:5]).backward()
        assert collapsed.grad is not None
        assert collapsed.grad.isfinite().all()
        assert collapsed.grad.abs().max() < 1


@pytest.mark.parametrize("loss", LOSSES)
def test_low_precision_and_other_shapes(loss):
    student, teacher = features(16, 32, 24)
    check_low_precision(loss, student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(student.float(), teacher.float()).item() == pytest.approx(loss(student, teacher).item(), rel=1e-4)
    torch.testing.assert_close(loss(student.unflatten(1, (2, 4, 4)), teacher), loss(student, teacher))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [0, 1, 2])
def test_too_few_samples(loss, size):
    student, teacher = features(size, 5, 3)
    student.requires_grad_()
    value = loss(student, teacher)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-30)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_errors():
    with pytest.raises(KDBenchError, match="angle_loss.*one batch size"):
        angle_loss(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(KDBenchError, match="distance_loss"):
        distance_loss(torch.zeros(2), torch.zeros(2))
