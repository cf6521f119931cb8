"""Scores against their definitions."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

from tasks.graph.metrics import Scores, structure_map


def test_scores_are_those_of_their_sets():
    torch.manual_seed(0)
    logits, labels = torch.randn(90, 3), torch.randint(3, (90,))
    index = torch.arange(90)
    sets = {"scored": index < 30, "blank": index < 10, "tran": (index >= 30) & (index < 80), "isolated": index < 0}
    metric = Scores(3)
    metric.update(logits, labels, {k: v for k, v in sets.items() if k != "tran"})
    metric.update(logits, labels, {"tran": sets["tran"]})
    found = {name: float(value) for name, value in metric.compute().items()}
    right = (logits.argmax(1) == labels).float() * 100
    assert found["accuracy"] == pytest.approx(right[:30].mean().item())
    assert found["accuracy_blank"] == pytest.approx(right[:10].mean().item())
    assert found["accuracy_tran"] == pytest.approx(right[30:80].mean().item())
    assert found["accuracy_prod"] == pytest.approx(0.8 * found["accuracy_tran"] + 0.2 * found["accuracy"])
    assert "accuracy_isolated" not in found
    truth, said = labels[:30].numpy(), logits[:30].argmax(1).numpy()
    assert found["macro_f1"] == pytest.approx(100 * f1_score(truth, said, average="macro"))
    assert found["nll"] == pytest.approx(torch.nn.functional.cross_entropy(logits[:30], labels[:30]).item(), rel=1e-5)
    assert Scores(3).compute() == {}


def test_a_structure_map_is_the_mean_average_precision_of_neighbours():
    torch.manual_seed(0)
    nodes = torch.randn(20, 4)
    pairs = torch.triu(torch.rand(20, 20) < 0.15, 1)
    pairs[5] = pairs[:, 5] = False
    edges = (pairs | pairs.T).nonzero().T
    unit = torch.nn.functional.normalize(nodes.double(), dim=1)
    scores = unit @ unit.T
    expected = []
    for node in range(20):
        others = torch.arange(20) != node
        truth = (pairs | pairs.T)[node][others]
        if truth.any():
            expected.append(average_precision_score(truth, scores[node][others]))
    wanted = 100 * sum(expected) / len(expected)
    assert structure_map(nodes, edges, chunk=7) == pytest.approx(wanted, rel=1e-4)
    assert structure_map(nodes, torch.empty(2, 0, dtype=torch.long)) == 0
