"""RepDistiller's (BSD-2) code gave the same loss to the bit and its gradients, that of the variances included, within
2e-16 in float64."""

from __future__ import annotations

import math

import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.vid import softplus_inverse, vid_loss
from tests.functional.checks import check_empty, check_low_precision


def inputs(*shape: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "vid", *shape)
    mean, teacher = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    return mean, teacher, torch.randn(shape[1], generator=g, dtype=torch.float64)


def reference(mean: torch.Tensor, teacher: torch.Tensor, scale: torch.Tensor, eps: float) -> float:
    """Negative log-likelihood without its constant, one element at a time."""
    terms = []
    for b in range(len(mean)):
        for c in range(mean.shape[1]):
            variance = math.log(1 + math.exp(float(scale[c]))) + eps
            for m, t in zip(mean[b, c].flatten().tolist(), teacher[b, c].flatten().tolist(), strict=True):
                terms.append(-math.log(math.exp(-((t - m) ** 2) / (2 * variance)) / math.sqrt(variance)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 4, 2, 3), (2, 3, 2, 2, 2)])
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_matches_the_equation(shape, eps):
    mean, teacher, scale = inputs(*shape)
    assert vid_loss(mean, teacher, scale, eps).item() == pytest.approx(reference(mean, teacher, scale, eps), rel=1e-6)


def test_minimum_is_at_the_mean_squared_error_of_each_channel():
    mean, teacher, _ = inputs(4, 3, 5, 5)
    errors = (mean - teacher).square().mean((0, 2, 3))
    scale = torch.tensor([softplus_inverse(float(e)) for e in errors], dtype=torch.float64, requires_grad=True)
    value = vid_loss(mean, teacher, scale, eps=0.0)
    value.backward()
    assert value.item() == pytest.approx((1 + errors.log()).mean().item() / 2)
    assert scale.grad is not None
    assert scale.grad.abs().max() < 1e-12
    # At the teacher's own feature the logarithm of the variance is left.
    assert vid_loss(teacher, teacher, torch.full((3,), softplus_inverse(1.0)), 0.0) == pytest.approx(0, abs=1e-6)


def test_gradients():
    mean, teacher, scale = (x.requires_grad_(i != 1) for i, x in enumerate(inputs(2, 3, 2)))
    assert torch.autograd.gradcheck(lambda m, s: vid_loss(m, teacher, s), (mean, scale))


@pytest.mark.parametrize("value", [1e-4, 1.0, 5.0, 200.0])
def test_softplus_inverse(value):
    start = torch.tensor(softplus_inverse(value), dtype=torch.float64)
    assert torch.nn.functional.softplus(start).item() == pytest.approx(value, rel=1e-6)


def test_low_precision_and_empty():
    mean, teacher, scale = inputs(4, 16, 6, 6)
    check_low_precision(lambda m, t: vid_loss(m, t, scale.float()), mean, teacher)
    check_empty(vid_loss, (0, 3, 2), (0, 3, 2), torch.zeros(3))


def test_errors():
    with pytest.raises(KDBenchError, match=r"vid_loss.*\(2, 4, 3\).*\(2, 1, 3\)"):
        vid_loss(torch.zeros(2, 4, 3), torch.zeros(2, 1, 3), torch.zeros(4))
    with pytest.raises(KDBenchError, match=r"found scale \(1,\), expected \(4,\)"):
        vid_loss(torch.zeros(2, 4, 3), torch.zeros(2, 4, 3), torch.zeros(1))
