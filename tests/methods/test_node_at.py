from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdbench.errors import KDBenchError
from kdbench.functional.node_at import edge_attention_loss, node_energy_loss
from tests.methods.graphs import graphs
from tests.methods.harness import Bench, Invariants


class TestNodeAT(Invariants):
    name = "node_at"
    other = {"p": 1.0}
    apart = ("form",)

    def bench(self, batch=3, dtype=torch.float32, **options):
        roles = {role: {"local": graphs(role, width, batch, dtype)} for role, width in (("student", 4), ("teacher", 6))}
        return Bench("node_at", roles["student"], roles["teacher"], **options)

    def test_both_forms_are_those_of_the_equations(self):
        bench = self.bench()
        student, teacher = graphs("student", 4), graphs("teacher", 6)
        assert student.edges is not None
        assert student.edge_values is not None
        assert teacher.edge_values is not None
        torch.testing.assert_close(bench.loss(), node_energy_loss(student.values, teacher.values, student.sample()))
        expected = edge_attention_loss(student.edge_values, teacher.edge_values, student.edges[1])
        torch.testing.assert_close(self.bench(form="edges").loss(), expected)

    def test_nodes_without_attention_are_one_line(self):
        bare = {"local": replace(graphs("student", 4), edge_values=None)}
        with pytest.raises(KDBenchError, match="node_at: the nodes of the student come without the attention"):
            Bench("node_at", bare, {"local": graphs("teacher", 6)}, form="edges")
