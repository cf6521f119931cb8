from __future__ import annotations

import math

import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.gcrd import node_contrast_loss
from tests.functional.checks import check_autocast, check_empty, check_low_precision


def made(name: str, nodes: int = 6) -> torch.Tensor:
    return torch.randn(nodes, 4, generator=rng.generator(0, "gcrd", name), dtype=torch.float64)


def reference(student, teacher, temperature: float) -> float:
    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    rows = []
    for i, own in enumerate(student.tolist()):
        scores = [math.exp(cosine(own, other) / temperature) for other in teacher.tolist()]
        rows.append(-math.log(scores[i] / sum(scores)))
    return sum(rows) / len(rows)


@pytest.mark.parametrize("temperature", [0.075, 1.0])
def test_matches_the_equation(temperature):
    student, teacher = made("s"), made("t")
    value = node_contrast_loss(student, teacher, temperature)
    assert value.item() == pytest.approx(reference(student, teacher, temperature), rel=1e-8)
    assert node_contrast_loss(5 * student, teacher, temperature).item() == pytest.approx(value.item(), rel=1e-8)


def test_nodes_find_themselves():
    teacher = torch.eye(5, dtype=torch.float64)
    assert node_contrast_loss(teacher, teacher) < 1e-4
    assert node_contrast_loss(teacher.roll(1, 0), teacher) > 10
    assert node_contrast_loss(teacher[:1], teacher[:1]) == 0


def test_gradients_precision_and_nothing():
    student, teacher = made("s").requires_grad_(), made("t")
    assert torch.autograd.gradcheck(lambda s, t: node_contrast_loss(s, t, 0.5), (student, teacher.requires_grad_()))
    check_low_precision(node_contrast_loss, made("s").float(), made("t").float(), rel=0.05)
    check_autocast(node_contrast_loss, made("s"), made("t"))
    check_empty(node_contrast_loss, (0, 3), (0, 3))
    with pytest.raises(KDBenchError, match="node_contrast_loss: the student has shape"):
        node_contrast_loss(student, teacher[:3])
