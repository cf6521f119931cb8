"""References are the authors' mask and loss in words, one anchor and cell at a time, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.fgfi import imitated_anchors, imitation_loss
from tests.functional.checks import check_empty, check_low_precision, check_zero
from tests.functional.test_ld import iou
from tests.methods.boxes import anchors, truth


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_anchors(share):
    (boxes, labels), (start, _) = truth(3), anchors()
    expected = np.zeros((3, len(start)), bool)
    for b, m in np.ndindex(*labels.shape):
        if labels[b, m] >= 0:
            overlap = np.array([iou(boxes[b, m].double().numpy(), a)[0] for a in start.double().numpy()])
            expected[b] |= overlap > share * overlap.max()
    assert torch.equal(imitated_anchors(boxes, labels, start, share), torch.from_numpy(expected))
    assert not expected[0].any()
    assert expected[1:].any(1).all()
    assert not imitated_anchors(boxes, labels, start, 1.0).any()
    assert not imitated_anchors(boxes[:, :0], labels[:, :0], start).any()
    assert imitated_anchors(boxes, labels, start[:0]).shape == (3, 0)


def levels(batch: int = 2) -> tuple[list[torch.Tensor], ...]:
    g = rng.generator(0, "fgfi", batch)
    student, teacher = (
        [torch.randn(batch, 3, n, n + 1, generator=g, dtype=torch.float64) for n in (3, 2)] for _ in range(2)
    )
    return student, teacher, [torch.rand(batch, n, n + 1, generator=g) < 0.4 for n in (3, 2)]


def test_loss():
    student, teacher, cells = levels()
    total, count = 0.0, 0
    for s, t, mask in zip(student, teacher, cells, strict=True):
        for b, i, j in np.ndindex(*mask.shape):
            if mask[b, i, j]:
                total, count = total + ((s - t)[b, :, i, j] ** 2).sum().item(), count + 1
    assert imitation_loss(student, teacher, cells).item() == pytest.approx(total / (2 * count), rel=1e-9)
    assert imitation_loss(teacher, teacher, cells) == 0
    leaf = student[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: imitation_loss([s], teacher[:1], cells[:1]), (leaf,))
    (gradient,) = torch.autograd.grad(imitation_loss([leaf], teacher[:1], cells[:1]), leaf)
    assert torch.equal(gradient.any(1), cells[0])


def test_no_cells_and_low_precision():
    student, teacher, cells = levels()
    none = torch.zeros_like(cells[0])
    check_zero(lambda s, t: imitation_loss([s], [t], [none]), student[0].float(), teacher[0].float())
    check_empty(lambda s, t: imitation_loss([s], [t], [none[:0]]), (0, 3, 3, 4), (0, 3, 3, 4))
    s, t = student[0].float(), teacher[0].float()
    check_low_precision(lambda s, t: imitation_loss([s], [t], cells[:1]), s, t)
    with pytest.raises(KDBenchError, match="imitation_loss: the student has shape"):
        imitation_loss([s], [t[:, :2]], cells[:1])
