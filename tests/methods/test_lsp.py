from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdbench.errors import KDBenchError
from kdbench.functional.lsp import local_structure_loss
from tests.methods.graphs import graphs
from tests.methods.harness import Bench, Invariants


class TestLSP(Invariants):
    name = "lsp"
    other = {"kernel": "cosine", "faithful": "code"}

    def bench(self, batch=3, dtype=torch.float32, **options):
        roles = {role: {"nodes": graphs(role, width, batch, dtype)} for role, width in (("student", 4), ("teacher", 6))}
        return Bench("lsp", roles["student"], roles["teacher"], **options)

    def test_a_node_is_no_neighbour_of_itself(self):
        bench = self.bench()
        edges = graphs("teacher", 6).edges
        assert edges is not None
        between = edges[:, edges[0] != edges[1]]
        assert between.shape[1] == 18
        expected = local_structure_loss(bench.student[0], bench.teacher[0], between)
        torch.testing.assert_close(bench.loss(), expected)

    def test_nodes_without_edges_are_one_line(self):
        bare = {"nodes": replace(graphs("teacher", 6), edges=None)}
        with pytest.raises(KDBenchError, match="lsp: the nodes of the teacher come without edges"):
            Bench("lsp", {"nodes": graphs("student", 4)}, bare).loss()
