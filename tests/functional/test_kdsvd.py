"""RepDistiller (BSD-2), once its vectors get the same signs, gave the same loss within 2e-14 in float64, and with
``eps=1e-9`` its gradient within 2e-11 (k of 1 and 3; with the default ``eps`` within 2e-5 for k = 1). With the signs
that LAPACK happens to return its loss was up to 47 times as large, and dead channels made its gradient NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.kdsvd import kdsvd_loss, right_singular_vectors
from tests.functional.checks import check_autocast, check_empty, check_low_precision

Layers = list[torch.Tensor]
SHAPES = [((3, 4), (4, 3)), ((4, 5), (2, 2)), ((6, 3), (2, 2, 3)), ((3, 4, 5), (7,))]


def layers(b: int, widths: tuple[int, ...], *space: int) -> tuple[Layers, Layers]:
    g = rng.generator(0, "kdsvd", b, *widths, *space)
    both = ([torch.randn(b, c, *space, generator=g, dtype=torch.float64).relu() for c in widths] for _ in range(2))
    return next(both), next(both)


def vectors(feature: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    _, values, rows = np.linalg.svd(feature.reshape(len(feature), -1).T, full_matrices=False)
    rows = np.stack([row * (-1 if row.sum() < 0 else 1) for row in rows[:k]])
    return rows, values[:k] / np.sqrt((values[:k] ** 2).sum())


def reference(student: Layers, teacher: Layers, k: int) -> float:
    """One sample, layer, vector and pair of channels at a time."""
    total = 0.0
    for b in range(len(student[0])):
        before: tuple[list, list] | None = None
        for s, t in zip(student, teacher, strict=True):
            (mine, _), (theirs, weight) = vectors(s[b].numpy(), k + 3), vectors(t[b].numpy(), k)
            chosen = []
            for row in theirs:
                cosines = [float(candidate @ row) for candidate in mine]
                best = int(np.argmax(np.abs(cosines)))
                chosen.append(mine[best] * (1 if cosines[best] >= 0 else -1))
            now = ([v * w for v, w in zip(chosen, weight, strict=True)], list(theirs * weight[:, None]))
            if before is not None:
                for n in range(min(len(theirs), len(before[0]))):
                    for i in range(len(theirs[0])):
                        for j in range(len(before[0][n])):
                            kernels = [
                                np.exp(-((v[n][i] - u[n][j]) ** 2) / 8) for v, u in zip(now, before, strict=True)
                            ]
                            total += (kernels[0] - kernels[1]) ** 2
            before = now
    return total / len(student[0])


@pytest.mark.parametrize(("widths", "space"), SHAPES)
@pytest.mark.parametrize("k", [1, 2])
def test_matches_the_definition(widths, space, k):
    student, teacher = layers(3, widths, *space)
    assert kdsvd_loss(student, teacher, k).item() == pytest.approx(reference(student, teacher, k), rel=1e-6)


def test_minimum():
    student, teacher = layers(2, (4, 5), 3, 3)
    assert kdsvd_loss(teacher, teacher) == pytest.approx(0, abs=1e-20)
    # Directions do not see the size of a feature or where in the map it is; neither must sizes of maps agree.
    moved = [3 * x.flip(2).repeat(1, 1, 2, 1) for x in teacher]
    assert kdsvd_loss(moved, teacher) == pytest.approx(0, abs=1e-20)
    assert kdsvd_loss(student, teacher) > 1e-5


@pytest.mark.parametrize(("widths", "space"), SHAPES)
@pytest.mark.parametrize("k", [1, 2])
def test_gradients(widths, space, k):
    student, teacher = layers(2, widths, *space)
    for x in student:
        x.requires_grad_()
    check = torch.autograd.gradcheck
    assert check(lambda *s: kdsvd_loss(s, teacher, k, eps=1e-9), tuple(student), atol=1e-6, rtol=1e-4, fast_mode=True)


def test_gradient_is_that_of_an_svd_where_that_has_one():
    (feature,), _ = layers(2, (4,), 3, 3)
    feature.requires_grad_()
    ours, _ = right_singular_vectors(feature, 2, eps=1e-9)
    rows = torch.linalg.svd(feature.flatten(2).mT, full_matrices=False).Vh[:, :2]
    theirs = (rows * rows.sum(2, keepdim=True).sign()).mT
    torch.testing.assert_close(ours, theirs)
    probe = torch.randn(ours.shape, generator=rng.generator(0, "probe"), dtype=torch.float64)
    grads = [torch.autograd.grad((v * probe).sum(), feature)[0] for v in (ours, theirs)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("case", ["zero", "one channel", "rank one", "equal values", "one cell", "tiny", "huge"])
@pytest.mark.parametrize("k", [1, 3])
def test_degenerate_features_have_a_finite_gradient(case, k):
    _, (first, second) = ([x.float() for x in side] for side in layers(2, (4, 6), 3, 3))
    degenerate = {
        "zero": torch.zeros(2, 4, 3, 3),
        "one channel": first * torch.tensor([1.0, 0, 0, 0]).reshape(4, 1, 1),
        "rank one": first[:, :1].expand(2, 4, 3, 3).clone(),
        "equal values": torch.eye(9)[:4].reshape(1, 4, 3, 3).repeat(2, 1, 1, 1),
        "one cell": first[:, :, :1, :1].clone(),
        "tiny": 1e-18 * first,
        "huge": 1e15 * first,
    }[case]
    student = [degenerate.requires_grad_(), second.clone().requires_grad_()]
    value = kdsvd_loss(student, [first, second], k)
    value.backward()
    assert value.isfinite()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in student)
    assert kdsvd_loss([first, second], [degenerate.detach(), second], k).isfinite()


def two_layers(*tensors: torch.Tensor) -> torch.Tensor:
    """The loss of two layers of the student and two of the teacher."""
    return kdsvd_loss(tensors[:2], tensors[2:])


def test_low_precision_also_under_autocast():
    student, teacher = ([x.float() for x in side] for side in layers(4, (16, 32), 6, 6))
    check_low_precision(two_layers, *student, *teacher, rel=0.05)
    check_autocast(two_layers, *student, *teacher)


def test_empty():
    check_empty(two_layers, *2 * [(0, 3, 4, 4), (0, 5, 2, 2)])


def test_errors():
    a, b = torch.zeros(2, 3, 4), torch.zeros(2, 5, 4)
    with pytest.raises(KDBenchError, match="found 1 layers of the student and 2 of the teacher"):
        kdsvd_loss([a], [a, b])
    with pytest.raises(KDBenchError, match=r"layer 1 has shape \(2, 5, 4\).*\(2, 3, 4\)"):
        kdsvd_loss([a, b], [a, a])
