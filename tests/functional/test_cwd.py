"""Losses and gradients agree with ``CriterionCWD`` of winycg/CIRKD, as in irfanICMLL/TorchDistiller (the authors'), run
outside of this repository on the same maps of (2, 5, 12, 24), (4, 19, 24, 48) and (1, 3, 7, 5): to 2e-16 (gradients
5e-16) in float64, 2e-7 (5e-7) in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.cwd import channel_wise_loss, spatial_log_softmax
from tests.functional.checks import check_autocast, check_empty, check_low_precision, check_zero


def maps(*shape: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "cwd", *shape)
    return tuple(3 * torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))


def some(b: int, *space: int) -> torch.Tensor:
    """Positions that count, in every sample some."""
    mask = torch.rand(b, *space, generator=rng.generator(0, "cwd", "mask", b, *space)) < 0.6
    mask.flatten(1)[:, 0] = True
    return mask


def reference(student: np.ndarray, teacher: np.ndarray, t: float, mask: np.ndarray | None = None) -> float:
    """Eq. 3 and 5, one channel of one sample at a time; an ignored position is left out."""
    losses = []
    for b, c in np.ndindex(*student.shape[:2]):
        keep = np.ones(student.shape[2:], bool) if mask is None else mask[b]
        p_s, p_t = (np.exp(x[b, c][keep] / t) / np.exp(x[b, c][keep] / t).sum() for x in (student, teacher))
        losses.append(t**2 * sum(p * np.log(p / q) for p, q in zip(p_t, p_s, strict=True)))
    return float(np.mean(losses))


@pytest.mark.parametrize("shape", [(1, 2, 5), (3, 4, 4, 3), (2, 3, 2, 3, 4), (1, 1, 1, 1)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("masked", [False, True])
def test_matches_the_equations(shape, temperature, masked):
    student, teacher = maps(*shape)
    mask = some(shape[0], *shape[2:]) if masked else None
    value = channel_wise_loss(student, teacher, temperature, mask)
    expected = reference(student.numpy(), teacher.numpy(), temperature, None if mask is None else mask.numpy())
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_invariants():
    student, teacher = maps(2, 3, 4, 5)
    student.requires_grad_()
    value = channel_wise_loss(student, teacher)
    # A constant on a channel changes no distribution over positions; the order of positions does not matter.
    shift = torch.tensor([1.0, -2.0, 7.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(channel_wise_loss(student + shift, teacher - 2 * shift), value)
    order = torch.randperm(20, generator=rng.generator(0, "order"))
    torch.testing.assert_close(channel_wise_loss(student.flatten(2)[..., order], teacher.flatten(2)[..., order]), value)
    assert channel_wise_loss(teacher, teacher) == pytest.approx(0, abs=1e-12)
    assert torch.autograd.gradcheck(lambda s: channel_wise_loss(s, teacher, mask=some(2, 4, 5)), (student,))


def test_what_does_not_count_has_no_part():
    student, teacher = maps(3, 2, 4, 4)
    mask = some(3, 4, 4)
    value = channel_wise_loss(student, teacher, mask=mask)
    other = teacher.where(mask[:, None], 1e3)
    assert channel_wise_loss(student, other, mask=mask).item() == pytest.approx(value.item(), rel=1e-12)
    mask[1] = False  # a sample of which nothing counts is as if it were not there
    kept = [x[[0, 2]] for x in (student, teacher, mask)]
    expected = channel_wise_loss(kept[0], kept[1], mask=kept[2])
    torch.testing.assert_close(channel_wise_loss(student, teacher, mask=mask), expected)
    leaf = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(channel_wise_loss(leaf, teacher, mask=mask), leaf)
    assert not gradient.where(~mask[:, None], 0.0).any()
    check_zero(channel_wise_loss, *(x.float() for x in maps(2, 3, 4, 4)), mask=torch.zeros(2, 4, 4, dtype=torch.bool))


@pytest.mark.parametrize("space", [(5,), (4, 3), (2, 3, 4)])
def test_the_log_is_that_of_a_distribution(space):
    values, mask = maps(2, 3, *space)[0], some(2, *space)
    found = spatial_log_softmax(values, 2.0, mask).exp()
    torch.testing.assert_close(found.sum(2), torch.ones(2, 3, dtype=torch.float64))
    assert not found[~mask.flatten(1)[:, None].expand(found.shape)].any()


def test_low_precision_and_no_rows():
    student, teacher = (x.float() for x in maps(2, 3, 6, 6))
    check_low_precision(channel_wise_loss, student, teacher)
    check_autocast(channel_wise_loss, student, teacher)
    check_empty(channel_wise_loss, (0, 3, 4, 4), (0, 3, 4, 4))
    check_empty(channel_wise_loss, (2, 3, 0), (2, 3, 0))
    with pytest.raises(KDBenchError, match="channel_wise_loss: the student has shape"):
        channel_wise_loss(student, teacher[:, :2])
