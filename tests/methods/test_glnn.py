from __future__ import annotations

import torch

from kdbench.configuration.compat import bind
from kdbench.functional.divergence import categorical_kl
from kdbench.methods.glnn import GLNN
from tasks.hoi.task import HOI
from tests.methods.graphs import graphs, scores
from tests.methods.harness import Bench, Invariants, yaml


class TestGLNN(Invariants):
    name = "glnn"
    other = {"temperature": 2.0}

    def bench(self, batch=3, dtype=torch.float32, **options):
        student, teacher = ({"logits": scores(role, batch=batch, dtype=dtype)} for role in ("student", "teacher"))
        return Bench("glnn", student, {**teacher, "graph": graphs("teacher", 4, batch)}, **options)

    def test_it_is_the_divergence_of_all_nodes_that_count(self):
        bench = self.bench()
        rows = [bench.given[role]["logits"].rows().detach() for role in ("student", "teacher")]
        torch.testing.assert_close(bench.loss(), categorical_kl(*rows).mean())


def test_labels_weigh_nothing_and_the_teacher_has_a_graph():
    assert yaml("glnn")["weights"] == {"task": 0.0, "glnn": 1.0}
    graph, none = {"taps": {"context": "context"}}, {"taps": {"pooled": "pooled"}}
    found = bind(GLNN, HOI, {"name": "p", "student": none, "teacher": graph})
    assert found == {"logits": ["object", "human"], "graph": "context"}
