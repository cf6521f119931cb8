from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Logits
from kdbench.functional.vqgraph import code_loss, quantisation_loss
from kdbench.methods.vqgraph import VQGraph
from kdbench.needs import Stage
from tasks.graph.task import GraphTask
from tests.methods.graphs import graphs
from tests.methods.harness import Bench, knobs, normal, yaml


def bench(dtype: torch.dtype = torch.float32, batch: int = 3, **options: Any) -> Bench:
    made = {
        role: {
            "logits": Logits(normal(3 * batch, 5, name=role).to(dtype)),
            "nodes": graphs(role, width, batch, dtype),
        }
        for role, width in (("student", 4), ("teacher", 6))
    }
    return Bench("vqgraph", made["student"], made["teacher"], codes=3, **options)


def test_terms_are_those_of_projected_nodes_and_the_codebook():
    made = bench()
    terms, method = made.checked(), made.method
    student, teacher = (made.given[role]["nodes"].values for role in ("student", "teacher"))
    expected = code_loss(method.project(student), teacher, method.codebook, 0.1)
    torch.testing.assert_close(terms["codes"], expected)
    torch.testing.assert_close(terms["codebook"], quantisation_loss(teacher, method.codebook))
    assert {*knobs("vqgraph")} == {"codes", "temperature", "kd_temperature"}
    assert yaml("vqgraph")["weights"]["task"] == 0
    assert method.used.sum() == 9
    assert method.notes()[0].startswith("codes: perplexity ")


def test_each_term_reaches_what_its_stage_trains():
    made = bench()
    first, second = made.method.stages()
    assert (first.name, second.name) == ("codebook", "distil")
    for term, reached in (("codebook", "codebook"), ("edges", "decode.weight"), ("codes", "project.weight")):
        made.method.zero_grad()
        made.terms()[term].backward()
        grad = made.method.get_parameter(reached).grad
        assert grad is not None
        assert grad.any()
    assert made.student[1].grad is not None
    assert made.teacher[1].grad is None or not isinstance(first, Stage)
    made.method.zero_grad()
    made.terms()["codes"].backward()
    assert made.method.codebook.grad is None


def test_other_options_and_low_precision():
    plain = bench().terms()
    assert bench(temperature=1.0).terms()["codes"] != plain["codes"]
    assert bench(kd_temperature=3.0).terms()["kd"] != plain["kd"]
    for term, value in bench(torch.bfloat16).terms().items():
        assert value.dtype == torch.float32, term


def test_what_it_needs():
    side = {"taps": {"hidden": "hidden"}}
    pair = {"name": "p", "student": side, "teacher": side}
    assert bind(VQGraph, GraphTask, pair) == {"logits": "logits", "nodes": "hidden"}
    student, teacher = bench().given.values()
    bare = {**teacher, "nodes": replace(graphs("teacher", 6), edges=None)}
    with pytest.raises(KDBenchError, match="the nodes of the teacher come without edges"):
        Bench("vqgraph", student, bare).terms()
    with pytest.raises(KDBenchError, match="the first batch has no node"):
        bench(batch=0)
