"""Hyperedges: which there are, what a network reads of them, and files of such."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.errors import KDBenchError
from tasks.graph import hyper
from tasks.graph.citations import Citations, make
from tasks.graph.task import GraphTask
from tests.tasks.graph import tiny

HGNN = {"_target_": "tasks.graph.models.HGNN", "width": 8}
SETS = [(0, 1, 2), (2, 3)]
MEMBERS = np.array([(node, number) for number, own in enumerate(SETS) for node in own])


def sets(members: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(members[members[:, 1] == e, 0].tolist()) for e in range(int(members[:, 1].max(initial=-1)) + 1)]


def test_hyperedges_are_what_one_paper_cites():
    graph = make(Citations(papers=80))
    cited = [tuple(sorted(graph.edges[graph.edges[:, 0] == t, 1].tolist())) for t in range(80)]
    assert sets(hyper.memberships(graph)) == [own for own in cited if len(own) > 1]


def test_among_some_nodes_a_hyperedge_keeps_two_at_least():
    place = np.array([-1, 0, 1, 2])
    assert sets(hyper.among(MEMBERS, place)) == [(0, 1), (1, 2)]
    assert sets(hyper.among(MEMBERS, np.array([0, 1, -1, 2]))) == [(0, 1)]


@pytest.mark.parametrize("own", [True, False])
def test_the_matrix_is_that_of_the_paper(own):
    edges = [*SETS, *(((i,) for i in range(5)) if own else ())]
    incidence = np.array([[float(v in e) for e in edges] for v in range(5)])
    degree, size = incidence.sum(1), incidence.sum(0)
    left = np.diag([d**-0.5 if d else 0.0 for d in degree])
    expected = left @ incidence @ np.diag(1 / size) @ incidence.T @ left
    np.testing.assert_allclose(hyper.matrix(MEMBERS, 5, own).toarray(), expected, atol=1e-12)
    oracle = pytest.importorskip("torch_geometric.nn", reason="torch_geometric is not installed").HypergraphConv(3, 3)
    if own:  # its layer divides by degrees on one side, where the paper has both
        eye = torch.eye(3)
        oracle.lin.weight.data, oracle.bias.data = eye, torch.zeros(3)
        values = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        given = torch.tensor([[v, e] for e, nodes in enumerate(edges) for v in nodes]).T
        said = oracle(values, given).detach().double().numpy()
        both = np.diag(degree**-0.5) @ expected @ np.diag(degree**0.5)
        np.testing.assert_allclose(said, both @ values.double().numpy(), atol=1e-5)


def test_a_network_reads_hyperedges_where_the_data_make_them(tmp_path):
    made = tiny.task(tmp_path, {**tiny.OPTIONS, "hyper": True})
    batch = next(iter(made.data(0).train_dataloader()))
    members = batch.targets.members
    assert torch.equal(made.ops()["hyperedges"](batch), members)
    assert int(members[0].max()) < 240
    torch.manual_seed(0)
    model = made.build(HGNN).eval()
    bare = tiny.task(tmp_path, {**tiny.OPTIONS, "hyper": True, "self_hyperedges": False})
    alone = torch.ones(240, dtype=torch.bool)
    alone[members[0]] = False
    assert 0 < alone.sum() < 240
    with torch.no_grad():
        own, none = (made.forward(model, next(iter(t.data(0).train_dataloader())).inputs) for t in (made, bare))
    assert len(own[alone].unique(dim=0)) > 5
    assert len(none[alone].unique(dim=0)) == 1  # its bias, whatever the node
    noised = made.ops()["noised"](batch, torch.Generator().manual_seed(0))
    assert not torch.allclose(made.forward(model, noised.inputs), own)
    plan = made.export(model)
    assert plan.module(*plan.example).shape == (1, 6)
    other = tiny.task(tmp_path / "none", {"source": "cora", "root": "/nonexistent"})
    other.restore(bare.dataset())
    assert not other.self_hyperedges
    assert "hyper" in other.example().inputs.views
    with pytest.raises(KDBenchError, match="HGNN reads the view 'hyper'.*data.hyper=true makes it"):
        tiny.task(tmp_path).build(HGNN)


def test_a_file_of_a_hypergraph(tmp_path, monkeypatch):
    monkeypatch.setattr(hyper, "HELD", 20)
    tiny.write_hypergraph(tmp_path / "hyper_cora_cocitation.npz")
    given = {"source": "cocitation", "root": str(tmp_path), "hyper": True, "cold": 0.0, "split": 1}
    made: GraphTask = tiny.task(tmp_path / "cache", given)
    assert made.dataset().sizes == {"train": 60, "val": 20, "test": 28}
    assert made.opened.train.tolist() == [*range(12, 24)]
    assert len(sets(made.opened.members)) == 30
    (batch,) = made.data(0).test_dataloader()
    isolated = np.setdiff1d(np.arange(60), made.opened.members[:, 0])
    assert int(batch.targets.sets["isolated"].sum()) == len(np.intersect1d(isolated, made.opened.tran))
    tiny.write_hypergraph(tmp_path / "hyper_cora_cocitation.npz", edge_ptr=np.array([0, 3]))
    for changes, line in (({}, "edge_ptr does not cut members"), ({"split": 5}, "has 2 training sets")):
        with pytest.raises(KDBenchError, match=line):
            _ = tiny.task(tmp_path / "cache", {**given, **changes}).opened
    with pytest.raises(KDBenchError, match="data.split=2: citations"):
        _ = tiny.task(tmp_path / "cache", {**tiny.OPTIONS, "split": 2}).opened


def test_hyperedges_too_large_for_a_matrix_are_one_line(monkeypatch):
    monkeypatch.setattr(hyper, "MOST", 10)
    with pytest.raises(KDBenchError, match="hyperedges of up to 3 nodes join more than 10 pairs"):
        hyper.matrix(MEMBERS, 5, True)
