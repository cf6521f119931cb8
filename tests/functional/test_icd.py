"""References are the authors' losses in words (MegEngine/ICD), one instance and place at a time, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.icd import describe_instances, instance_losses, instance_value_loss, sine_embedding
from kdbench.signals import total
from tests.functional.checks import check_empty, check_low_precision, check_zero


def values(*shape: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "icd", *shape)
    student, teacher = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.rand(shape[:3], generator=g, dtype=torch.float64)


def test_values():
    student, teacher, weight = values(2, 2, 3, 4)
    weight[0, 0] = 0
    expected = 0.0
    for b, h in np.ndindex(2, 2):
        rows = []
        for s in range(3):
            x, y = (z[b, h, s].numpy() for z in (student, teacher))
            x, y = ((z - z.mean()) / np.sqrt(z.var() + 1e-4) for z in (x, y))
            rows.append(np.mean((x - y) ** 2))
        w = weight[b, h].numpy()
        expected += (w * rows).sum() / w.sum() if w.any() else 0
    assert instance_value_loss(student, teacher, weight).item() == pytest.approx(expected / 4, rel=1e-9)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: instance_value_loss(s, teacher, weight), (student,))
    assert instance_value_loss(3 * teacher + 1, teacher, weight).item() == pytest.approx(0, abs=1e-3)


def test_instances():
    predicted, sides = values(2, 3, 5)[0], torch.rand(2, 3, 4, generator=rng.generator(0, "sides")).double()
    real = torch.tensor([[True, False, False], [True, True, False]])
    there = torch.tensor([[True, True, False], [True, True, True]])
    entropy, off = [], []
    for at in np.ndindex(2, 3):
        p = 1 / (1 + np.exp(-predicted[at].numpy()))
        if there[at]:
            entropy.append(-np.log(p[0] if real[at] else 1 - p[0]))
        if real[at]:
            d = sides[at].numpy()
            off.append(sum(abs(p[1 + i] - d[i]) / (d[i] + d[(i + 2) % 4]) for i in range(4)))
    losses = [loss.item() for loss in instance_losses(predicted, sides, real, there)]
    assert losses == pytest.approx([np.mean(entropy), np.mean(off)], rel=1e-6)
    none = torch.zeros_like(real)
    check_zero(lambda p: total(instance_losses(p, sides.float(), none, none)), predicted.float())


def test_descriptions():
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.25], [0.1, 0.1, 0.11, 0.9]]])
    points, extent = torch.tensor([[[0.25, 0.5], [0.0, 1.0]]]), torch.tensor([256.0, 256.0])
    found = describe_instances(boxes, torch.tensor([[2, -1]]), points, extent, 3, 4)[0]
    assert found[0, :3].tolist() == [0, 0, 1]
    x, y = 2 * np.pi * 0.25, 2 * np.pi * 0.5
    expected = [np.sin(x), np.sin(x / 100), np.cos(x), np.cos(x / 100)]
    expected += [np.sin(y), np.sin(y / 100), np.cos(y), np.cos(y / 100)]
    torch.testing.assert_close(found[0, 3:11], torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-6)
    # 128 and 64 pixels are of the sizes 2 and 1, 2.6 and 205 of 0 and 2.
    assert found[:, 11:].view(2, 2, 5).argmax(2).tolist() == [[2, 1], [0, 2]]
    assert sine_embedding(points, 6).shape == (1, 2, 2, 6)


def test_low_precision_and_no_rows():
    student, teacher, weight = (x.float() for x in values(2, 2, 3, 4))
    check_low_precision(instance_value_loss, student, teacher, weight)
    check_empty(instance_value_loss, (0, 2, 3, 4), (0, 2, 3, 4), (0, 2, 3))
    check_zero(instance_value_loss, student, teacher, torch.zeros(2, 2, 3))
    with pytest.raises(KDBenchError, match="instance_value_loss: the student has shape"):
        instance_value_loss(student, teacher[..., :2], weight)
