from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.sp import similarity_preserving_loss
from tests.functional.checks import check_autocast, check_empty, check_low_precision


def features(b: int, student: tuple[int, ...], teacher: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "sp", b, *student, *teacher)
    return tuple(torch.randn(b, *shape, generator=g, dtype=torch.float64) for shape in (student, teacher))


def reference(student: np.ndarray, teacher: np.ndarray) -> float:
    """Eq. 1 to 4, one pair of samples at a time."""
    b = len(student)
    gram = []
    for feature in (student, teacher):
        rows = [[float((feature[i] * feature[j]).sum()) for j in range(b)] for i in range(b)]
        gram.append([[v / sum(u * u for u in row) ** 0.5 for v in row] for row in rows])
    return sum((gram[1][i][j] - gram[0][i][j]) ** 2 for i in range(b) for j in range(b)) / b**2


@pytest.mark.parametrize("b", [2, 5, 9])
@pytest.mark.parametrize("shapes", [((4,), (4,)), ((3, 2, 2), (5, 4, 4)), ((2, 3), (7,))])
def test_matches_the_equations(b, shapes):
    student, teacher = features(b, *shapes)
    value = similarity_preserving_loss(student, teacher).item()
    assert value == pytest.approx(reference(student.numpy(), teacher.numpy()), rel=1e-6)


def test_minimum():
    student, teacher = features(6, (4, 2), (4, 2))
    assert similarity_preserving_loss(teacher, teacher) == 0
    # Similarities do not see the size or the order of the channels.
    assert similarity_preserving_loss(3 * teacher.flip(1), teacher) == pytest.approx(0, abs=1e-12)
    assert similarity_preserving_loss(student, teacher) > 1e-3


def test_gradients():
    student, teacher = features(4, (3,), (2, 2))
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: similarity_preserving_loss(s, teacher), (student,))
    similarity_preserving_loss(student, teacher).backward()
    assert student.grad is not None
    assert student.grad.abs().min() > 0


def test_low_precision_also_under_autocast():
    student, teacher = features(16, (32, 4, 4), (64, 4, 4))
    check_low_precision(similarity_preserving_loss, student, teacher)
    check_autocast(similarity_preserving_loss, student, teacher)


def test_batch_of_one_and_dead_features():
    student, teacher = features(1, (3,), (4,))
    assert similarity_preserving_loss(student, teacher) == pytest.approx(0, abs=1e-12)
    dead = torch.zeros(3, 4, requires_grad=True)
    value = similarity_preserving_loss(dead, torch.eye(3))
    value.backward()
    assert value.item() == pytest.approx(1 / 3)
    assert dead.grad is not None
    assert dead.grad.isfinite().all()


def test_empty():
    check_empty(similarity_preserving_loss, (0, 8, 2), (0, 8))


def test_errors():
    with pytest.raises(KDBenchError, match=r"\(2, 3\).*\(3, 3\)"):
        similarity_preserving_loss(torch.zeros(2, 3), torch.zeros(3, 3))
