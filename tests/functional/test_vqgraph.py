"""Codes of nodes one by one."""

from __future__ import annotations

import math

import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.vqgraph import (
    code_distances,
    code_loss,
    code_perplexity,
    edge_prediction_loss,
    quantisation_loss,
)


def made(rows: int = 5, width: int = 4, name: str = "x") -> torch.Tensor:
    return torch.randn(rows, width, generator=rng.generator(0, "vqgraph", name), dtype=torch.float64)


def distance(a: list[float], b: list[float]) -> float:
    """Squared, of both over their lengths."""
    lengths = [math.sqrt(sum(x * x for x in v)) for v in (a, b)]
    return sum((x / lengths[0] - y / lengths[1]) ** 2 for x, y in zip(a, b, strict=True))


def law(node: list[float], codes: list[list[float]], temperature: float) -> list[float]:
    powers = [math.exp(-distance(node, code) / temperature) for code in codes]
    return [p / sum(powers) for p in powers]


def test_distances_and_nearest_codes():
    nodes, codes = made(), made(3, name="c")
    expected = [[distance(n, c) for c in codes.tolist()] for n in nodes.tolist()]
    torch.testing.assert_close(code_distances(nodes, codes), torch.tensor(expected, dtype=torch.float64))
    nearest = sum(min(row) for row in expected) / 5
    assert quantisation_loss(nodes, codes).item() == pytest.approx(nearest, rel=1e-9)


@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_code_loss_matches_the_equation(temperature):
    student, teacher, codes = made(), made(name="y"), made(3, name="c")
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = law(t, codes.tolist(), temperature), law(s, codes.tolist(), temperature)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    found = code_loss(student, teacher, codes, temperature)
    assert found.item() == pytest.approx(temperature**2 * total / 5, rel=1e-8)
    assert code_loss(3 * teacher, teacher, codes, temperature).item() == pytest.approx(0, abs=1e-12)


def test_edge_loss_matches_the_equation():
    nodes, edges, others = made(), torch.tensor([[0, 1], [1, 2]]), torch.tensor([[3, 0], [4, 4]])
    pairs = [(0, 1, 1), (1, 2, 1), (3, 4, 0), (0, 4, 0)]
    expected = 0.0
    for a, b, truth in pairs:
        p = 1 / (1 + math.exp(-sum(x * y for x, y in zip(nodes[a].tolist(), nodes[b].tolist(), strict=True))))
        expected -= math.log(p if truth else 1 - p)
    assert edge_prediction_loss(nodes, edges, others).item() == pytest.approx(expected / 4, rel=1e-9)


def test_gradients_empty_input_and_low_precision():
    student, teacher, codes = made().requires_grad_(), made(name="y"), made(3, name="c").requires_grad_()
    assert torch.autograd.gradcheck(lambda x: code_loss(x, teacher, codes.detach(), 0.5), student)
    assert torch.autograd.gradcheck(lambda c: quantisation_loss(teacher, c), codes)
    none = torch.empty(2, 0, dtype=torch.long)
    assert code_loss(student[:0], teacher[:0], codes).item() == 0
    assert quantisation_loss(teacher[:0], codes).item() == 0
    assert edge_prediction_loss(student, none, none).item() == 0
    low = code_loss(student.bfloat16(), teacher.bfloat16(), codes.bfloat16(), 0.5)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(code_loss(student, teacher, codes, 0.5).item(), rel=0.1)
    with pytest.raises(KDBenchError, match="expected"):
        code_loss(student, teacher[:3], codes)


def test_perplexity():
    assert code_perplexity(torch.full((8,), 5)).item() == pytest.approx(8)
    assert code_perplexity(torch.tensor([0, 7, 0])).item() == pytest.approx(1)
    assert code_perplexity(torch.zeros(4)).item() == 0
