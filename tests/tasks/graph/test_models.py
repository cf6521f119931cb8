"""Networks against torch_geometric's layers, and as what is exported."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from kdbench.errors import KDBenchError
from tasks.graph.data import views
from tasks.graph.models import GCN, MLP, SAGE
from tasks.graph.operators import Sparse


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


def test_directions_stay_apart(graph):
    edges, words = graph
    torch.manual_seed(0)
    model = SAGE(9, 3, width=4, views=["cites", "cited"]).eval()
    sparse = Sparse.of(sp.csr_matrix(words.numpy()))
    there, back = (model(sparse, views(e, 12)) for e in (edges, edges[:, ::-1]))
    assert not torch.allclose(there, back)
    with pytest.raises(KDBenchError, match="there is no view 'cite': did you mean 'cite[sd]' or 'cite[sd]'"):
        SAGE(9, 3, views=["cite"])


@pytest.mark.parametrize("model", [MLP(9, 3, layers=3), GCN(9, 3, layers=3), SAGE(9, 3, layers=3)])
def test_dense_and_sparse_words_and_edges_one_by_one_give_the_same(graph, model):
    edges, words = graph
    given = views(edges, 12)
    found = model.eval()(Sparse.of(sp.csr_matrix(words.numpy())), given)
    torch.testing.assert_close(model(words, {name: m.edges() for name, m in given.items()}), found)
    found.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
