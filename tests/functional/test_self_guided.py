"""The kernel theory also reproduces the losses that the authors' README prints for their own points, to all five digits
(not in this repository); here it is proved by identities on points of our own.
"""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch

from kdbench import rng
from kdbench.errors import KDBenchError
from kdbench.functional import self_guided as module
from kdbench.functional.self_guided import (
    distillation_filter,
    distilled_fits,
    distilled_limit,
    optimal_alpha,
    ridge_fit,
    self_guided_loss,
)

PENALTY = 0.2


def logits(n: int, c: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "self_guided", n, c)
    student, teacher = (2 * torch.randn(n, c, generator=g, dtype=torch.float64) for _ in range(2))
    weight = torch.rand(n, generator=g, dtype=torch.float64)
    return student, torch.randint(c, (n,), generator=g), teacher, weight


def points() -> tuple[torch.Tensor, ...]:
    """Eleven noisy points of a sine: kernel, targets, the kernel to a fine grid, and the sine there."""
    x = torch.linspace(0, 1, 11, dtype=torch.float64)
    noise = torch.randn(11, generator=rng.generator(0, "self_guided", "points"), dtype=torch.float64)
    grid = torch.linspace(0, 1, 101, dtype=torch.float64)

    def rbf(a, b):
        return (-80 * (a[:, None] - b).square()).exp()

    wave = (2 * math.pi * grid).sin()
    return rbf(x, x), (2 * math.pi * x).sin() + 0.8 * noise, rbf(grid, x), wave


@pytest.mark.parametrize("shape", [(1, 2), (4, 10), (9, 40)])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("taught", [False, True])
def test_the_deep_loss_matches_the_equation(shape, alpha, taught):
    student, labels, teacher, weight = logits(*shape)
    total = 0.0
    for s, y, t, w in zip(student.tolist(), labels.tolist(), teacher.tolist(), weight.tolist(), strict=True):
        p, q = ([math.exp(v) / sum(map(math.exp, z)) for v in z] for z in (s, t))
        truth = sum((v - (k == y)) ** 2 for k, v in enumerate(p))
        guide = sum((a - b) ** 2 for a, b in zip(p, q, strict=True))
        total += w * (alpha * truth + (1 - alpha) * guide if taught else truth)
    value = self_guided_loss(student, labels, teacher if taught else None, alpha, weight=weight)
    assert value.item() == pytest.approx(total / weight.sum().item(), rel=1e-6)


def test_the_deep_loss_has_the_minimum_of_the_mixed_target():
    """Its gradient is that of the squared distance to ``alpha y + (1 - alpha) p_t``, which is the theory's target."""
    student, labels, teacher, _ = logits(5, 4)
    student.requires_grad_()
    (mixed,) = torch.autograd.grad(self_guided_loss(student, labels, teacher, 0.3), student)
    target = 0.3 * torch.nn.functional.one_hot(labels, 4) + 0.7 * teacher.softmax(1)
    (plain,) = torch.autograd.grad((student.softmax(1) - target).square().sum(1).mean(), student)
    torch.testing.assert_close(mixed, plain)
    assert self_guided_loss(teacher, labels, teacher, alpha=0.0) == 0
    assert self_guided_loss(200.0 * torch.eye(4)[labels], labels).item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.gradcheck(lambda s: self_guided_loss(s, labels, teacher), (student,))


def test_low_precision_no_rows_and_errors():
    student, labels, teacher, weight = logits(64, 30)
    full = self_guided_loss(student, labels, teacher)
    low = self_guided_loss(student.bfloat16(), labels, teacher.bfloat16())
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(full.item(), rel=0.02)
    assert self_guided_loss(student, labels, teacher, weight=weight) != full
    empty = torch.zeros(0, 5, requires_grad=True)
    value = self_guided_loss(empty, labels[:0], torch.zeros(0, 5))
    value.backward()
    assert value == 0
    assert empty.grad is not None
    with pytest.raises(KDBenchError, match="equal shapes"):
        self_guided_loss(student, labels, teacher[:, 1:])
    with pytest.raises(KDBenchError, match="optimal_alpha"):
        optimal_alpha(torch.zeros(3), torch.zeros(3), torch.zeros(4))


@pytest.mark.parametrize("alpha", [0.0, 0.35, 1.0])
def test_the_recursion_is_the_filter(alpha):
    kernel, targets, _, _ = points()
    fits = distilled_fits(kernel, targets, PENALTY, [alpha] * 6)
    for step, fit in enumerate(fits, start=1):
        torch.testing.assert_close(distillation_filter(kernel, PENALTY, alpha, step) @ targets, fit)
    # The recursion of the paper, as plain matrices.
    k = kernel.numpy()
    a, b = k @ np.linalg.inv(k + PENALTY * np.eye(11)), np.eye(11)
    for step in range(1, 7):
        b = a @ ((1 - alpha) * b + alpha * np.eye(11))
        np.testing.assert_allclose(distillation_filter(kernel, PENALTY, alpha, step).numpy(), b, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.1, 0.35, 1.0])
def test_the_limit_is_ridge_regression_with_the_penalty_over_alpha(alpha):
    kernel, targets, cross, _ = points()
    last = distilled_fits(kernel, targets, PENALTY, [alpha] * 300, cross)[-1]
    limit = distilled_limit(kernel, targets, PENALTY, alpha, cross)
    torch.testing.assert_close(last, limit)
    torch.testing.assert_close(limit, ridge_fit(kernel, targets, PENALTY / alpha, cross))
    torch.testing.assert_close(
        distillation_filter(kernel, PENALTY, alpha, 300) @ targets, ridge_fit(kernel, targets, PENALTY / alpha)
    )


def test_without_ground_truth_the_fits_shrink_to_zero():
    kernel, targets, cross, _ = points()
    fits = distilled_fits(kernel, targets, PENALTY, [0.0] * 400, cross)
    sizes = fits.norm(dim=1)
    assert (sizes[1:] < sizes[:-1]).all()
    assert sizes[-1] < 1e-6 * sizes[0]
    assert not distilled_limit(kernel, targets, PENALTY, 0.0, cross).any()


def test_ground_truth_alone_changes_nothing():
    kernel, targets, cross, _ = points()
    fits = distilled_fits(kernel, targets, PENALTY, [1.0] * 3, cross)
    torch.testing.assert_close(fits, fits[:1].expand_as(fits))


def test_several_targets_are_fitted_one_by_one():
    kernel, targets, cross, _ = points()
    both = torch.stack([targets, -2 * targets], 1)
    fits = distilled_fits(kernel, both, PENALTY, [0.3, 0.6], cross)
    assert fits.shape == (3, 101, 2)
    torch.testing.assert_close(fits[..., 0], distilled_fits(kernel, targets, PENALTY, [0.3, 0.6], cross))


@pytest.mark.parametrize("before", [0, 1, 2, 4, 8])
def test_the_optimal_alpha_is_that_of_a_fine_search(before):
    """After ``before`` distillations without ground truth; the first wants none of it (clipped), later ones some."""
    kernel, targets, cross, wave = points()
    previous = distilled_fits(kernel, targets, PENALTY, [0.0] * before)[-1]
    from_truth = ridge_fit(kernel, targets, PENALTY, cross)
    best = optimal_alpha(from_truth, ridge_fit(kernel, previous, PENALTY, cross), wave).item()
    grid = torch.linspace(0, 1, 101).tolist()
    losses = [
        (distilled_fits(kernel, targets, PENALTY, [0.0] * before + [alpha], cross)[-1] - wave).square().mean()
        for alpha in grid
    ]
    assert (best == 0) == (before == 0)
    assert best < 1
    assert best == pytest.approx(grid[int(torch.stack(losses).argmin())], abs=0.006)
    at_best = (distilled_fits(kernel, targets, PENALTY, [0.0] * before + [best], cross)[-1] - wave).square().mean()
    assert at_best <= min(losses) + 1e-12


def test_the_optimal_alpha_is_clipped_and_defined_where_both_fits_agree():
    u, v = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])
    assert optimal_alpha(u, v, torch.tensor([5.0, 5.0])) == 1
    assert optimal_alpha(u, v, torch.tensor([-5.0, 0.0])) == 0
    assert optimal_alpha(u, u, v) == 1


def test_examples():
    assert doctest.testmod(module).failed == 0
