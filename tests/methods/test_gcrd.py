from __future__ import annotations

import pytest
import torch

from kdbench.functional.gcrd import node_contrast_loss
from kdbench.functional.lsp import global_structure_loss
from tests.methods.graphs import graphs
from tests.methods.harness import Bench, differ, knobs


def bench(batch=3, dtype=torch.float32, **options):
    roles = {role: {"nodes": graphs(role, width, batch, dtype)} for role, width in (("student", 4), ("teacher", 6))}
    return Bench("gcrd", roles["student"], roles["teacher"], **options)


def test_terms_are_those_of_the_equations():
    made = bench()
    terms = made.checked()
    nodes = [leaf.detach() for leaf in (made.student[0], made.teacher[0])]
    projected = made.method.student(nodes[0]), made.method.teacher(nodes[1])
    torch.testing.assert_close(terms["gcrd"], node_contrast_loss(*projected, 0.075))
    torch.testing.assert_close(terms["gsp"], global_structure_loss(*nodes))


def test_gradients_reach_the_student_and_both_projections():
    made = bench()
    sum(made.checked().values()).backward()
    assert made.student[0].grad is not None
    assert made.teacher[0].grad is None
    assert all(p.grad is not None and p.grad.any() for p in made.method.parameters())


def test_of_many_nodes_some_are_drawn_by_step():
    made = bench(nodes=4)
    first, again, other = (made.terms(step)["gcrd"].detach() for step in (1, 1, 2))
    assert first == again != other
    assert {*knobs("gcrd")} == {"width", "temperature", "nodes"}
    for options in ({"width": 8}, {"temperature": 1.0}, {"nodes": 4}):
        assert differ([bench().terms()["gcrd"]], [bench(**options).terms()["gcrd"]])


def test_nothing_and_low_precision():
    empty = bench(batch=0).checked()
    assert all(value == 0 and value.requires_grad for value in empty.values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = bench(dtype=torch.bfloat16).terms()["gcrd"]
    assert low.item() == pytest.approx(bench().terms()["gcrd"].item(), rel=0.1)
