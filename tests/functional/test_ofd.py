"""The authors' code (clovaai/overhaul-distillation, MIT) and mdistiller (MIT) gave the same loss and gradient to the
bit in float64; the authors' margins, which they hold in float32, agree within 2e-7."""

from __future__ import annotations

import pytest
import torch
from scipy import integrate, stats

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.ofd import gaussian_margin, partial_distance
from tests.functional.checks import check_empty, check_low_precision


def inputs(*shape: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "ofd", *shape)
    student, teacher = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    return student, teacher, -torch.rand(shape[1], generator=g, dtype=torch.float64)


def reference(student: torch.Tensor, teacher: torch.Tensor, margin: torch.Tensor) -> float:
    """One element at a time, the three cases of the margin ReLU by themselves."""
    total = 0.0
    for b in range(len(student)):
        for c in range(student.shape[1]):
            m = float(margin[c])
            for s, t in zip(student[b, c].flatten().tolist(), teacher[b, c].flatten().tolist(), strict=True):
                if t > 0:
                    total += (s - t) ** 2
                elif t > m:
                    total += (s - t) ** 2 if s > t else 0
                else:
                    total += (s - m) ** 2 if s > m else 0
    return total / len(student)


@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 4, 5, 3), (2, 3, 2, 3, 2)])
def test_matches_the_equation(shape):
    student, teacher, margin = inputs(*shape)
    value = partial_distance(student, teacher, margin).item()
    assert value == pytest.approx(reference(student, teacher, margin), rel=1e-6)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.5, 0.7), (-2.0, 0.5), (-8.0, 1.0), (3.0, 1.0)])
def test_margin_is_the_expected_negative_response(mean, std):
    law = stats.norm(mean, std)
    integral, _ = integrate.quad(lambda x: x * law.pdf(x), mean - 12 * std, 0)
    value = gaussian_margin(torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))
    assert value.item() == pytest.approx(integral / law.cdf(0), rel=1e-6)


def test_margin_of_rare_and_of_constant_responses():
    mean, std = torch.tensor([4.0, 50.0, 2.0, -2.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    torch.testing.assert_close(gaussian_margin(mean, std), torch.tensor([-3.0, -3.0, 0.0, -2.0]))
    assert (
        gaussian_margin(torch.zeros(1, dtype=torch.bfloat16), torch.ones(1, dtype=torch.bfloat16)).dtype
        == torch.float32
    )


def test_zero_at_the_teacher_and_below_what_its_activation_cuts_off():
    _, teacher, margin = inputs(2, 3, 4)
    assert partial_distance(teacher.maximum(margin[:, None]), teacher, margin) == 0
    lower = torch.where(teacher > 0, teacher, teacher.minimum(margin[:, None]) - 1).requires_grad_()
    value = partial_distance(lower, teacher, margin)
    value.backward()
    assert value == 0
    assert lower.grad is not None
    assert not lower.grad.any()


def test_gradients():
    student, teacher, margin = inputs(2, 3, 4)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: partial_distance(s, teacher, margin), (student,))


def test_low_precision_and_empty():
    student, teacher, margin = inputs(4, 16, 6, 6)
    check_low_precision(lambda s, t: partial_distance(s, t, margin.float()), student, teacher)
    check_empty(partial_distance, (0, 3, 2), (0, 3, 2), torch.zeros(3))


def test_errors():
    with pytest.raises(KDBenchError, match=r"partial_distance.*\(2, 4, 3\).*\(2, 1, 3\)"):
        partial_distance(torch.zeros(2, 4, 3), torch.zeros(2, 1, 3), torch.zeros(4))
    with pytest.raises(KDBenchError, match=r"found margin \(1,\), expected one a channel"):
        partial_distance(torch.zeros(2, 4, 3), torch.zeros(2, 4, 3), torch.zeros(1))
