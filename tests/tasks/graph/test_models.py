"""Networks against torch_geometric's layers, and as what is exported."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from kdbench.errors import KDBenchError
from tasks.graph.data import views
from tasks.graph.models import GAT, GCN, MLP, SAGE, Attention
from tasks.graph.operators import Sparse, row_softmax


@pytest.fixture
def graph() -> tuple[np.ndarray, torch.Tensor]:
    draw = np.random.default_rng(0)
    pairs = np.unique(draw.integers(12, size=(30, 2)), axis=0)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    return pairs[(pairs < 11).all(1)], torch.from_numpy((draw.random((12, 9)) < 0.3).astype(np.float32))  # 11: alone


def both(edges: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.unique(np.concatenate([edges, edges[:, ::-1]]), axis=0).T.copy())


def test_gcn_is_that_of_torch_geometric(graph):
    nn = pytest.importorskip("torch_geometric.nn", reason="torch_geometric is a test oracle")
    edges, words = graph
    model = GCN(9, 3, width=4).eval()
    torch.nn.init.normal_(model.bias)
    first, last = nn.GCNConv(9, 4), nn.GCNConv(4, 3)
    first.load_state_dict({"lin.weight": model.words.weight, "bias": model.bias})
    last.load_state_dict({"lin.weight": model.classify.weight, "bias": model.classify.bias})
    expected = last(first(words, both(edges)).relu(), both(edges))
    found = model(Sparse.of(sp.csr_matrix(words.numpy())), views(edges, 12))
    torch.testing.assert_close(found, expected)


def test_sage_is_that_of_torch_geometric(graph):
    nn = pytest.importorskip("torch_geometric.nn", reason="torch_geometric is a test oracle")
    edges, words = graph
    model = SAGE(9, 3, width=4).eval()
    first, last = nn.SAGEConv(9, 4), nn.SAGEConv(4, 3)
    layers = {
        first: (model.words, model.around["neighbours"]),
        last: (model.layers[0], model.get_submodule("others.0.neighbours")),
    }
    for layer, (own, others) in layers.items():
        layer.load_state_dict({"lin_l.weight": others.weight, "lin_l.bias": own.bias, "lin_r.weight": own.weight})
    expected = last(first(words, both(edges)).relu(), both(edges))
    found = model(Sparse.of(sp.csr_matrix(words.numpy())), views(edges, 12))
    torch.testing.assert_close(found, expected)


def test_gat_is_that_of_torch_geometric(graph):
    nn = pytest.importorskip("torch_geometric.nn", reason="torch_geometric is a test oracle")
    edges, words = graph
    model = GAT(9, 3, width=6, heads=2).eval()
    (inner,) = (module for module in model.around if isinstance(module, Attention))
    layers = {nn.GATConv(9, 3, heads=2): (model.words, inner), nn.GATConv(6, 3): (model.classify, model.last)}
    for layer, (linear, around) in layers.items():
        torch.nn.init.normal_(around.bias)
        ends = {"att_src": around.source[None], "att_dst": around.target[None]}
        layer.load_state_dict({**ends, "bias": around.bias, "lin.weight": linear.weight})
    first, last = layers
    expected = last(torch.nn.functional.elu(first(words, both(edges))), both(edges))
    found = model(Sparse.of(sp.csr_matrix(words.numpy())), views(edges, 12))
    torch.testing.assert_close(found, expected)
    with pytest.raises(KDBenchError, match="architecture.width=6: 4 heads cannot share it"):
        GAT(9, 3, width=6, heads=4)


def test_a_softmax_over_the_entries_of_rows():
    scores = torch.tensor([[900.0, 0.0], [899.0, 1.0], [3.0, -900.0]], dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([0, 0, 2])
    found = row_softmax(scores, rows, 4)
    expected = torch.cat([scores[:2].softmax(0), torch.ones(1, 2, dtype=torch.float64)])
    torch.testing.assert_close(found, expected)
    weight = torch.arange(6, dtype=torch.float64).view(3, 2)
    (one,), (two,) = (torch.autograd.grad((weight * x).sum(), scores, retain_graph=True) for x in (found, expected))
    torch.testing.assert_close(one, two)
    assert row_softmax(scores[:0], rows[:0], 2).shape == (0, 2)


def test_directions_stay_apart(graph):
    edges, words = graph
    torch.manual_seed(0)
    model = SAGE(9, 3, width=4, views=["cites", "cited"]).eval()
    sparse = Sparse.of(sp.csr_matrix(words.numpy()))
    there, back = (model(sparse, views(e, 12)) for e in (edges, edges[:, ::-1]))
    assert not torch.allclose(there, back)
    with pytest.raises(KDBenchError, match="there is no view 'cite': did you mean 'cite[sd]' or 'cite[sd]'"):
        SAGE(9, 3, views=["cite"])


@pytest.mark.parametrize("model", [MLP(9, 3, layers=3), GCN(9, 3, layers=3), SAGE(9, 3, layers=3), GAT(9, 3, layers=3)])
def test_dense_and_sparse_words_and_edges_one_by_one_give_the_same(graph, model):
    edges, words = graph
    given = views(edges, 12)
    found = model.eval()(Sparse.of(sp.csr_matrix(words.numpy())), given)
    torch.testing.assert_close(model(words, {name: m.edges() for name, m in given.items()}), found)
    found.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
