"""Frequencies of predictions against edges one by one."""

from __future__ import annotations

import math

import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.ffg2m import high_frequency_loss, low_frequency_loss

EDGES = torch.tensor([[1, 2, 3, 0, 4, 2], [0, 0, 0, 1, 1, 3]])


def made(nodes: int = 6, classes: int = 3, name: str = "x") -> torch.Tensor:
    return torch.randn(nodes, classes, generator=rng.generator(0, "ffg2m", name), dtype=torch.float64)


def law(scores: list[float], temperature: float) -> list[float]:
    powers = [math.exp(s / temperature) for s in scores]
    return [p / sum(powers) for p in powers]


def divergence(first: list[float], second: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(first, second, strict=True))


def test_low_matches_the_equation():
    student, teacher = made(), made(name="y")
    pairs = [*map(tuple, EDGES.T.tolist()), *((i, i) for i in range(6))]
    expected = [divergence(law(teacher[j].tolist(), 2.0), law(student[i].tolist(), 2.0)) for j, i in pairs]
    found = low_frequency_loss(student, teacher, EDGES, 2.0)
    assert found.item() == pytest.approx(sum(expected) / len(pairs), rel=1e-10)


def test_high_matches_the_equation():
    student, teacher = made(), made(name="y")
    laws = [[law((z[i] - z[j]).abs().tolist(), 1.5) for j, i in EDGES.T.tolist()] for z in (teacher, student)]
    expected = [divergence(t, s) for t, s in zip(*laws, strict=True)]
    found = high_frequency_loss(student, teacher, EDGES, 1.5)
    assert found.item() == pytest.approx(sum(expected) / len(expected), rel=1e-10)


def test_without_edges_low_is_the_divergence_of_nodes_and_high_is_zero():
    student, teacher, none = made(), made(name="y"), EDGES[:, :0]
    expected = [divergence(law(t, 1.0), law(s, 1.0)) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert low_frequency_loss(student, teacher, none).item() == pytest.approx(sum(expected) / 6, rel=1e-10)
    assert high_frequency_loss(student.requires_grad_(), teacher, none).item() == 0
    assert low_frequency_loss(student[:0], teacher[:0], none).item() == 0


def test_the_order_of_nodes_and_a_shift_of_all_scores_change_nothing():
    student, teacher, order = made(), made(name="y"), torch.tensor([3, 1, 5, 0, 2, 4])
    place = order.argsort()
    for loss in (low_frequency_loss, high_frequency_loss):
        value = loss(student, teacher, EDGES)
        torch.testing.assert_close(loss(student[order], teacher[order], place[EDGES]), value)
    torch.testing.assert_close(
        high_frequency_loss(student + made(1), teacher, EDGES), high_frequency_loss(student, teacher, EDGES)
    )


@pytest.mark.parametrize("loss", [low_frequency_loss, high_frequency_loss])
def test_gradients_and_minimum(loss):
    student, teacher = made().requires_grad_(), made(name="y")
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, EDGES), student)
    if loss is high_frequency_loss:
        assert loss(teacher, teacher, EDGES).item() == pytest.approx(0, abs=1e-12)
    low = loss(student.to(torch.bfloat16), teacher.to(torch.bfloat16), EDGES)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(loss(student, teacher, EDGES).item(), rel=0.05)
    with pytest.raises(KDBenchError, match="expected"):
        loss(student, teacher[:, :2], EDGES)
