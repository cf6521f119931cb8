"""The references are ``FeatureLoss`` of yzd-v/FGD in words: one box, one cell, one channel at a time, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.fgd import focal_attention, focal_attention_loss, focal_feature_losses, focal_masks
from kdbench.signals import total
from tests.functional.checks import check_autocast, check_empty, check_low_precision, check_zero

SIZE, STRIDE = (5, 7), (8.0, 8.0)


def pair(*shape: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "fgd", *shape)
    return tuple(torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))


def scene(batch: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes, some over the edges, some alike or within each other, and rows of none."""
    g = rng.generator(0, "fgd", "scene", batch, count)
    corner, extent = (
        60 * torch.rand(batch, count, 2, generator=g) - 8,
        1 + 40 * torch.rand(batch, count, 2, generator=g),
    )
    labels = torch.randint(-1, 3, (batch, count), generator=g)
    return torch.cat([corner, corner + extent], 2), labels


def masks(boxes: np.ndarray, labels: np.ndarray, size: tuple[int, int], stride: tuple[float, float]) -> np.ndarray:
    """Foreground and background of each cell of each image."""
    found = np.zeros((2, len(boxes), *size))
    for b in range(len(boxes)):
        for (left, top, right, bottom), label in zip(boxes[b], labels[b], strict=True):
            x, y = (
                (math.floor(left / stride[1]), math.ceil(right / stride[1])),
                (
                    math.floor(top / stride[0]),
                    math.ceil(bottom / stride[0]),
                ),
            )
            for i, j in np.ndindex(*size):
                if label >= 0 and y[0] <= i <= y[1] and x[0] <= j <= x[1]:
                    area = (y[1] - y[0] + 1) * (x[1] - x[0] + 1)
                    found[0, b, i, j] = max(found[0, b, i, j], 1 / area)
        outside = found[0, b] == 0
        found[1, b] = outside / max(outside.sum(), 1)
    return found


def attention(feature: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Of one sample (C, H, W)."""
    spatial, channel = np.abs(feature).mean(0) / t, np.abs(feature).mean((1, 2)) / t
    cells = np.exp(spatial) / np.exp(spatial).sum() * spatial.size
    return cells, np.exp(channel) / np.exp(channel).sum() * channel.size


@pytest.mark.parametrize("count", [0, 1, 6])
@pytest.mark.parametrize("stride", [STRIDE, (8.0, 4.0), (64.0, 64.0)])
def test_masks(count, stride):
    boxes, labels = scene(3, count)
    found = focal_masks(boxes, labels, SIZE, stride)
    expected = masks(boxes.double().numpy(), labels.numpy(), SIZE, stride)
    for mask, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mask.double(), torch.from_numpy(other), rtol=1e-5, atol=1e-7)


def test_the_smallest_of_overlapping_boxes_decides():
    large, small = [0.0, 0.0, 55.0, 39.0], [16.0, 16.0, 23.0, 23.0]
    labels = torch.zeros(1, 2, dtype=torch.long)
    both, swapped = (
        focal_masks(torch.tensor([order]), labels, SIZE, STRIDE)[0] for order in ([large, small], [small, large])
    )
    assert torch.equal(both, swapped)
    assert both[0, 2, 2] == pytest.approx(1 / 4)  # cells 2 and 3 along both axes
    assert both[0, 0, 0] == pytest.approx(1 / 48)


def test_images_without_boxes_and_without_background():
    boxes, labels = torch.tensor([[[0.0, 0.0, 56.0, 40.0]], [[0.0, 0.0, 56.0, 40.0]]]), torch.tensor([[0], [-1]])
    foreground, background = focal_masks(boxes, labels, SIZE, STRIDE)
    assert not background[0].any()
    assert not foreground[1].any()
    torch.testing.assert_close(background[1], torch.full(SIZE, 1 / 35))
    empty = focal_masks(boxes[:, :0], labels[:, :0], SIZE, STRIDE)
    assert not empty[0].any()
    torch.testing.assert_close(empty[1].sum((1, 2)), torch.ones(2))


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 1), (3, 4, 6)])
@pytest.mark.parametrize("t", [0.5, 2.0])
def test_losses(shape, t):
    student, teacher = pair(*shape)
    g = rng.generator(0, "masks", *shape)
    near, far = (torch.rand(shape[0], *shape[2:], generator=g, dtype=torch.float64) for _ in range(2))
    expected = np.zeros(3)
    for b in range(shape[0]):
        s, t_ = (x[b].reshape(shape[1], -1, 1).numpy() for x in (student, teacher))
        (cells_s, channels_s), (cells_t, channels_t) = attention(s, t), attention(t_, t)
        for i, j in np.ndindex(shape[1], s.shape[1]):
            weight = cells_t[j, 0] * channels_t[i] * (t_[i, j, 0] - s[i, j, 0]) ** 2
            expected[:2] += weight * near[b].reshape(-1)[j].item(), weight * far[b].reshape(-1)[j].item()
        expected[2] += np.abs(cells_s - cells_t).sum() + np.abs(channels_s - channels_t).sum()
    expected /= shape[0]
    losses = [*focal_feature_losses(student, teacher, near, far, t), focal_attention_loss(student, teacher, t)]
    assert [loss.item() for loss in losses] == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-12)
    for found, other in zip(
        focal_attention(teacher, t),
        zip(*(attention(x.numpy().reshape(shape[1], -1, 1), t) for x in teacher), strict=True),
        strict=True,
    ):
        torch.testing.assert_close(found.flatten(), torch.from_numpy(np.stack(other)).flatten())


def test_minimum_and_gradients():
    student, teacher = pair(2, 3, 5, 7)
    given = focal_masks(*scene(2, 3), SIZE, STRIDE)
    near, far = (mask.double() for mask in given)
    assert sum(focal_feature_losses(teacher, teacher, near, far)) == 0
    assert focal_attention_loss(teacher, teacher) == 0
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: total(focal_feature_losses(s, teacher, near, 2 * far)), (student,))
    assert torch.autograd.gradcheck(lambda s: focal_attention_loss(s, teacher), (student,))
    # Nothing of the foreground without boxes, and nothing of a cell in which the masks are zero.
    none = torch.zeros_like(near)
    check_zero(
        lambda s, t: total(focal_feature_losses(s, t, none.float(), none.float())),
        student.detach().float(),
        teacher.float(),
    )


def test_low_precision_and_no_rows():
    student, teacher = (x.float() for x in pair(2, 3, 5, 7))
    near, far = focal_masks(*scene(2, 3), SIZE, STRIDE)

    def features(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return sum(focal_feature_losses(s, t, near[: len(s)], far[: len(s)]), start=torch.zeros(()))

    for loss in (features, focal_attention_loss):
        check_low_precision(loss, student, teacher)
        check_autocast(loss, student, teacher)
        check_empty(loss, (0, 3, 5, 7), (0, 3, 5, 7))
        with pytest.raises(KDBenchError, match="the student has shape"):
            loss(student, teacher[:, :2])
    assert focal_masks(torch.zeros(0, 2, 4), torch.zeros(0, 2, dtype=torch.long), SIZE, STRIDE)[1].shape == (0, *SIZE)
