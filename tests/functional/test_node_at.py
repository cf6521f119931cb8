from __future__ import annotations

import math

import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.node_at import edge_attention_loss, node_energy, node_energy_loss
from tests.functional.checks import check_empty, check_low_precision

GRAPH = torch.tensor([0, 0, 0, 2, 2, 3])
TARGET = torch.tensor([0, 0, 0, 4, 4, 1])


def made(name: str, width: int = 4) -> torch.Tensor:
    return torch.randn(6, width, generator=rng.generator(0, "node_at", name), dtype=torch.float64)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_energy_matches_the_equation(power):
    maps = []
    student, teacher = made("s"), made("t", 7)
    for nodes in (student, teacher):
        energy = [sum(abs(x) ** power for x in row) for row in nodes.tolist()]
        lengths = {
            g: math.sqrt(sum(e * e for e, o in zip(energy, GRAPH.tolist(), strict=True) if o == g)) for g in (0, 2, 3)
        }
        maps.append([e / lengths[g] for e, g in zip(energy, GRAPH.tolist(), strict=True)])
    expected = sum((s - t) ** 2 for s, t in zip(*maps, strict=True)) / 6
    assert node_energy_loss(student, teacher, GRAPH, power).item() == pytest.approx(expected, rel=1e-8)
    assert node_energy_loss(5 * teacher, teacher, GRAPH, power) < 1e-12


def test_a_dead_graph_gives_no_nan():
    student = torch.zeros(6, 3, requires_grad=True)
    value = node_energy_loss(student, made("t").float(), GRAPH)
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert not node_energy(student, GRAPH).any()


def laws(name: str) -> torch.Tensor:
    scores = made(name, 1)[:, 0].exp()
    return scores / torch.zeros(6, dtype=torch.float64).index_add(0, TARGET, scores)[TARGET]


def test_attention_to_neighbours_matches_the_equation():
    student, teacher = laws("s"), laws("t")
    total = sum(t * math.log(t / s) for s, t in zip(student.tolist(), teacher.tolist(), strict=True))
    assert edge_attention_loss(student, teacher, TARGET).item() == pytest.approx(total / 3, rel=1e-8)
    assert edge_attention_loss(teacher, teacher, TARGET) == 0
    assert edge_attention_loss(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]), torch.zeros(2).long()).isfinite()


def test_gradients_precision_and_nothing():
    student, teacher = made("s").requires_grad_(), made("t")
    assert torch.autograd.gradcheck(lambda s: node_energy_loss(s, teacher, GRAPH), (student,))
    attention, target = laws("s").requires_grad_(), laws("t")
    assert torch.autograd.gradcheck(lambda s: edge_attention_loss(s, target, TARGET), (attention,))
    check_low_precision(node_energy_loss, made("s").float(), made("t").float(), GRAPH, rel=0.05)
    check_empty(node_energy_loss, (0, 3), (0, 5), torch.zeros(0, dtype=torch.long))
    check_empty(edge_attention_loss, (0,), (0,), torch.zeros(0, dtype=torch.long))
    with pytest.raises(KDBenchError, match="edge_attention_loss: the student has shape"):
        edge_attention_loss(attention, target[:3], TARGET)
