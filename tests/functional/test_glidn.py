from __future__ import annotations

import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.glidn import relative_error
from tests.functional.checks import check_empty, check_low_precision


def made(name: str) -> torch.Tensor:
    return torch.randn(6, 4, generator=rng.generator(0, "glidn", name), dtype=torch.float64)


def test_matches_the_equation():
    student, teacher = made("s"), made("t")
    pairs = [(s, t) for a, b in zip(student.tolist(), teacher.tolist(), strict=True) for s, t in zip(a, b, strict=True)]
    expected = sum((s - t) ** 2 for s, t in pairs) / sum(t * t for _, t in pairs)
    assert relative_error(student, teacher).item() == pytest.approx(expected, rel=1e-10)
    assert relative_error(7 * student, 7 * teacher).item() == pytest.approx(expected, rel=1e-10)


def test_a_silent_teacher_and_a_perfect_student():
    teacher = made("t")
    assert relative_error(teacher, teacher) == 0
    teacher[2] = 0
    assert relative_error(made("s"), teacher) < 10
    assert relative_error(made("s"), torch.zeros(6, 4, dtype=torch.float64)).isfinite()


def test_gradients_precision_and_nothing():
    student, teacher = made("s").requires_grad_(), made("t")
    assert torch.autograd.gradcheck(lambda s: relative_error(s, teacher), (student,))
    check_low_precision(relative_error, made("s").float(), made("t").float())
    check_empty(relative_error, (0, 3), (0, 3))
    with pytest.raises(KDBenchError, match="relative_error: the student has shape"):
        relative_error(student, teacher[:3])
