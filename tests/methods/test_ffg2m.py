from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Logits, Nodes
from kdbench.functional.ffg2m import high_frequency_loss, low_frequency_loss
from kdbench.methods.ffg2m import FFG2M
from tasks.graph.task import GraphTask
from tasks.hoi.task import HOI
from tests.methods.graphs import graphs
from tests.methods.harness import Bench, knobs, normal, yaml


def bench(mask: torch.Tensor | None = None, dtype: torch.dtype = torch.float32, batch: int = 3, **options) -> Bench:
    made = {r: Logits(3 * normal(3 * batch, 5, name=r).to(dtype), mask=mask) for r in ("student", "teacher")}
    return Bench("ffg2m", {"logits": made["student"]}, {"logits": made["teacher"], "graph": nodes(batch)}, **options)


def nodes(batch: int = 3) -> Nodes:
    return graphs("teacher", 4, batch)


def between(graph: Nodes) -> torch.Tensor:
    assert graph.edges is not None
    return graph.edges[:, graph.edges[0] != graph.edges[1]]


def test_terms_are_those_of_all_nodes_and_edges():
    made = bench()
    student, teacher = (made.given[role]["logits"].values for role in ("student", "teacher"))
    terms, edges = made.checked(), between(nodes())
    torch.testing.assert_close(terms["low"], low_frequency_loss(student, teacher, edges))
    torch.testing.assert_close(terms["high"], high_frequency_loss(student, teacher, edges, 1.5))
    assert [*yaml("ffg2m")["weights"].values()] == [0.0, 1.0, 1.0]
    assert {*knobs("ffg2m")} == {"temperature", "high_temperature"}
    terms["low"].backward(retain_graph=True)
    assert made.student[0].grad is not None
    assert made.student[0].grad.abs().min() > 0
    assert made.teacher[0].grad is None


def test_edges_follow_the_rows_that_a_mask_leaves():
    mask = torch.tensor([True, False, True] * 3)
    made = bench(mask)
    student, teacher = (made.given[role]["logits"].values[mask] for role in ("student", "teacher"))
    left = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 0, 3, 2, 5, 4]])
    terms = made.terms()
    torch.testing.assert_close(terms["low"], low_frequency_loss(student, teacher, left))
    torch.testing.assert_close(terms["high"], high_frequency_loss(student, teacher, left, 1.5))


def test_options_low_precision_and_no_node():
    plain, hot = bench().terms(), bench(temperature=3.0, high_temperature=3.0).terms()
    assert all(plain[term] != hot[term] for term in plain)
    for term, value in bench(dtype=torch.bfloat16).terms().items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(plain[term].item(), rel=0.05)
    assert all(value == 0 and value.requires_grad for value in bench(batch=0).terms().values())


def test_what_it_needs():
    side = {"taps": {"hidden": "hidden"}}
    pair = {"name": "p", "student": side, "teacher": side}
    assert bind(FFG2M, GraphTask, pair) == {"logits": "logits", "graph": "hidden"}
    with pytest.raises(KDBenchError, match="node_scores"):
        bind(FFG2M, HOI, {"name": "p", "student": {"taps": {"context": "x"}}, "teacher": {"taps": {"context": "x"}}})
    bare = replace(nodes(), edges=None)
    made = {role: Logits(normal(9, 5, name=role)) for role in ("student", "teacher")}
    with pytest.raises(KDBenchError, match="the nodes of the teacher come without edges"):
        Bench("ffg2m", {"logits": made["student"]}, {"logits": made["teacher"], "graph": bare}).terms()
