"""``CriterionCWD`` of skyshoumeng/Label_Assisted_Distillation (the authors'), run outside of this repository on maps of
(2, 5, 12, 24) and (4, 22, 24, 48) once each way, gave the same consistency: exactly (gradients 6e-16) in float64, to
1e-7 (3e-7) in float32. For 21 classes their table of fixed codes is ours, and so is the channel made of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.functional.cwd import channel_wise_loss
from kdbench.functional.lad import class_codes, label_channel, path_consistency_loss
from tests.functional.checks import check_autocast, check_empty, check_low_precision, check_zero


def noise(*shape: int, name: str = "") -> torch.Tensor:
    return torch.randn(shape, generator=rng.generator(0, "lad", name, *shape), dtype=torch.float64)


def test_codes_of_the_published_size():
    torch.testing.assert_close(class_codes(21), (torch.arange(22.0) - 11) / 10)


@pytest.mark.parametrize("classes", [1, 2, 3, 12, 150])
def test_codes_are_evenly_spaced_and_apart(classes):
    codes = class_codes(classes)
    assert codes.shape == (classes + 1,)
    steps = codes.diff()
    assert (steps > 0).all()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))
    assert codes.abs().max() < 2.1


@pytest.mark.parametrize("size", [(7,), (4, 5), (2, 3, 4)])
@pytest.mark.parametrize("noisy", [True, False])
def test_the_channel_is_that_of_a_plain_loop(size, noisy):
    draw = rng.generator(0, "labels", *size)
    labels = torch.randint(-1, 3, (2, *size), generator=draw)
    codes, pixels = noise(2, 4, name="codes"), noise(2, *size, name="pixels") if noisy else None
    found = label_channel(labels, codes, pixels, scale=1.33)
    assert found.shape == (2, 1, *size)
    for at in np.ndindex(*labels.shape):
        y = int(labels[at])
        value = codes[at[0], y if y >= 0 else 3] + (0 if pixels is None else pixels[at])
        assert found[at[0], 0][at[1:]].item() == pytest.approx(1.33 * value.item(), rel=1e-12)


def reference(student: np.ndarray, teacher: np.ndarray, t: float) -> float:
    """One channel of one sample at a time."""
    losses = []
    for at in np.ndindex(*student.shape[:2]):
        p_s, p_t = (np.exp(x[at] / t) / np.exp(x[at] / t).sum() for x in (student, teacher))
        losses.append(t**2 * float((p_t * np.log(p_t / p_s)).sum()))
    return float(np.mean(losses))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_consistency_matches_the_equations(temperature):
    first, second = 3 * noise(2, 3, 4, 5, name="1"), 3 * noise(2, 3, 4, 5, name="2")
    expected = reference(first.numpy(), second.numpy(), temperature) + reference(
        second.numpy(), first.numpy(), temperature
    )
    value = path_consistency_loss(first, second, temperature)
    assert value.item() == pytest.approx(expected, rel=1e-9)
    assert path_consistency_loss(second, first, temperature).item() == pytest.approx(expected, rel=1e-9)
    assert path_consistency_loss(first, first) == pytest.approx(0, abs=1e-12)


def test_each_is_the_fixed_target_of_the_other():
    first, second = (noise(2, 3, 4, name=n).requires_grad_() for n in ("1", "2"))
    grads = torch.autograd.grad(path_consistency_loss(first, second), (first, second))
    for grad, (own, other) in zip(grads, ((first, second), (second, first)), strict=True):
        alone = torch.autograd.grad(channel_wise_loss(own, other.detach()), own)[0]
        torch.testing.assert_close(grad, alone)


def test_low_precision_and_no_positions():
    first, second = noise(2, 3, 6, 6, name="1").float(), noise(2, 3, 6, 6, name="2").float()
    check_low_precision(path_consistency_loss, first, second)
    check_autocast(path_consistency_loss, first, second)
    check_empty(path_consistency_loss, (0, 3, 4, 4), (0, 3, 4, 4))
    check_zero(path_consistency_loss, first, second, mask=torch.zeros(2, 6, 6, dtype=torch.bool))
    assert label_channel(torch.zeros(0, 4, 4, dtype=torch.long), torch.zeros(0, 3)).shape == (0, 1, 4, 4)
