"""Structure of graphs against pairs of nodes one by one."""

from __future__ import annotations

import math

import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.lsp import KERNELS, global_structure_loss, local_structure, local_structure_loss
from tests.functional.checks import check_empty, check_low_precision, check_zero


def made(nodes: int = 7, width: int = 4, name: str = "x") -> torch.Tensor:
    return torch.randn(nodes, width, generator=rng.generator(0, "lsp", name), dtype=torch.float64)


#: Node 6 has no neighbour, node 5 one.
EDGES = torch.tensor([[1, 2, 3, 0, 4, 2, 5, 6, 1, 0], [0, 0, 0, 1, 1, 3, 4, 5, 4, 2]])


def likeness(a: list[float], b: list[float], kernel: str) -> float:
    squared = sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    product = sum(x * y for x, y in zip(a, b, strict=True))
    lengths = math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    return {"rbf": math.exp(-squared / 2), "l2": math.sqrt(squared), "linear": product, "cosine": product / lengths}[
        kernel
    ]


def reference(student, teacher, kernel: str, faithful: str) -> float:
    """A softmax for each node over those that have an edge to it, then their divergence."""
    total, nodes = 0.0, 0
    for i in range(len(student)):
        sources = [int(j) for j, target in EDGES.T.tolist() if target == i]
        if not sources:
            continue
        laws = []
        for x in (student.tolist(), teacher.tolist()):
            scores = [math.exp(likeness(x[i], x[j], kernel)) for j in sources]
            laws.append([s / sum(scores) for s in scores])
        s, t = laws if faithful == "paper" else laws[::-1]
        total += sum(a * math.log(a / b) for a, b in zip(s, t, strict=True))
        nodes += 1
    return total / (nodes if faithful == "paper" else EDGES.shape[1])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("faithful", ["paper", "code"])
def test_matches_the_equations(kernel, faithful):
    student, teacher = made(), made(width=6, name="y")
    value = local_structure_loss(student, teacher, EDGES, kernel, faithful)
    assert value.item() == pytest.approx(reference(student, teacher, kernel, faithful), rel=1e-8)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_and_minimum(kernel):
    student, teacher = made().requires_grad_(), made(name="y")
    assert torch.autograd.gradcheck(lambda s: local_structure_loss(s, teacher, EDGES, kernel), (student,))
    local_structure_loss(student, teacher, EDGES, kernel).backward()
    assert student.grad is not None
    assert student.grad.abs().sum(1)[:6].min() > 0  # the last one is the only neighbour of another, and has none
    assert local_structure_loss(teacher, teacher, EDGES, kernel).abs() < 1e-12
    total = torch.zeros(7, dtype=torch.float64).index_add(0, EDGES[1], local_structure(teacher, EDGES, kernel).exp())
    torch.testing.assert_close(total[:6], torch.ones(6, dtype=torch.float64))


def test_the_order_of_nodes_and_edges_means_nothing():
    student, teacher = made(), made(name="y")
    order, edges = torch.randperm(7, generator=rng.generator(0, "order")), EDGES[:, torch.arange(9, -1, -1)]
    place = order.argsort()
    moved = local_structure_loss(student[order], teacher[order], place[edges])
    torch.testing.assert_close(moved, local_structure_loss(student, teacher, EDGES))


@pytest.mark.parametrize("kernel", KERNELS)
def test_nodes_that_coincide_give_no_nan(kernel):
    student = torch.zeros(7, 3, requires_grad=True)
    value = local_structure_loss(student, made().float(), EDGES, kernel)
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_precision_and_nothing():
    check_low_precision(local_structure_loss, made().float(), made(name="y").float(), EDGES, rel=0.1)
    check_empty(local_structure_loss, (0, 3), (0, 5), torch.zeros(2, 0, dtype=torch.long))
    check_zero(local_structure_loss, made().float(), made(name="y").float(), torch.zeros(2, 0, dtype=torch.long))
    check_empty(global_structure_loss, (0, 3), (0, 5))


def test_all_pairs_against_the_equation():
    student, teacher = made(), made(width=6, name="y")
    found = [
        (likeness(a, b, "cosine") - likeness(c, d, "cosine")) ** 2
        for a, c in zip(student.tolist(), teacher.tolist(), strict=True)
        for b, d in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    assert global_structure_loss(student, teacher).item() == pytest.approx(sum(found) / len(found), rel=1e-8)
    assert global_structure_loss(3 * teacher, teacher).abs() < 1e-12
    assert torch.autograd.gradcheck(lambda s: global_structure_loss(s, teacher), (student.requires_grad_(),))


def test_errors():
    with pytest.raises(KDBenchError, match="kernel='rfb' is unknown; did you mean 'rbf'"):
        local_structure(made(), EDGES, "rfb")  # type: ignore[arg-type]
    with pytest.raises(KDBenchError, match="the student has 7 nodes and the teacher 6"):
        local_structure_loss(made(), made(6), EDGES)
    with pytest.raises(KDBenchError, match="did you mean 'paper'"):
        local_structure_loss(made(), made(), EDGES, faithful="papr")  # type: ignore[arg-type]
