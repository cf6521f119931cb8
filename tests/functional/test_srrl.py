"""The authors' released connector and losses, and those of the SimKD toolbox, gave the same values bit for bit in
float32 on the same weights: the former on grids, the latter on vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.srrl import srrl_losses

CLASSES = 7


def features(b: int, d: int, *space: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "srrl", b, d, *space)
    student, teacher = (torch.randn(b, d, *space, generator=g, dtype=torch.float64) for _ in range(2))
    return student, teacher, *(torch.randn(*s, generator=g, dtype=torch.float64) for s in ((CLASSES, d), (CLASSES,)))


def reference(student: np.ndarray, teacher: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[float, float]:
    """One sample, one channel and one class at a time."""
    matching, regression = [], []
    for s, t in zip(student, teacher, strict=True):
        s, t = ([float(np.mean(channel)) for channel in f] for f in (s, t))
        matching += [(a - b) ** 2 for a, b in zip(s, t, strict=True)]
        for row, offset in zip(weight, bias, strict=True):
            logits = [sum(w * v for w, v in zip(row, f, strict=True)) + offset for f in (s, t)]
            regression.append((logits[0] - logits[1]) ** 2)
    return sum(matching) / len(matching), sum(regression) / len(regression)


@pytest.mark.parametrize("shape", [(1, 3), (4, 6), (3, 5, 4), (2, 4, 3, 5), (2, 3, 2, 3, 2)])
def test_matches_the_equations(shape):
    student, teacher, weight, bias = features(*shape)
    values = srrl_losses(student, teacher, lambda f: f @ weight.T + bias)
    expected = reference(*(x.numpy() for x in (student, teacher, weight, bias)))
    assert [v.item() for v in values] == pytest.approx(expected, rel=1e-6)


def test_grid_against_vector():
    student, teacher, weight, _ = features(3, 4, 5, 5)
    classifier = lambda f: f @ weight.T  # noqa: E731
    both = srrl_losses(student, teacher, classifier), srrl_losses(student, teacher.mean((2, 3)), classifier)
    torch.testing.assert_close(*both)


def test_minimum_and_gradients():
    student, teacher, weight, bias = features(3, 4)
    classifier = lambda f: f @ weight.T + bias  # noqa: E731
    assert srrl_losses(teacher, teacher, classifier) == (0, 0)
    student.requires_grad_()
    for term in (0, 1):
        assert torch.autograd.gradcheck(lambda s, i=term: srrl_losses(s, teacher, classifier)[i], (student,))


def test_low_precision():
    student, teacher, weight, bias = features(64, 32)
    classifier = torch.nn.Linear(32, CLASSES, dtype=torch.float64).requires_grad_(False)
    classifier.load_state_dict({"weight": weight, "bias": bias})
    full = srrl_losses(student, teacher, classifier)
    low = srrl_losses(student.bfloat16(), teacher.bfloat16(), classifier.bfloat16())
    assert {v.dtype for v in low} == {torch.float32}
    assert [v.item() for v in low] == pytest.approx([v.item() for v in full], rel=0.02)


@pytest.mark.parametrize("space", [(), (4, 4)])
def test_empty(space):
    student = torch.zeros(0, 3, *space, requires_grad=True)
    for value in srrl_losses(student, torch.zeros(0, 3, *space), lambda f: f @ torch.ones(3, 2)):
        assert value == 0
        assert torch.autograd.grad(value, student)[0].shape == student.shape


def test_errors():
    with pytest.raises(KDBenchError, match=r"\(2, 3\).*\(2, 4\)"):
        srrl_losses(torch.zeros(2, 3), torch.zeros(2, 4), lambda f: f)
