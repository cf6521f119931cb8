from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.graph import batch_norm_edges, edge_distances, gather_edges, knn, project_edges
from kdbench.functional.pointdistiller import importance, local_graph_loss, reweight, select, weigh_distances
from tests.functional.checks import check_empty, check_low_precision


def normal(*shape: int, name: str = "x") -> torch.Tensor:
    return torch.randn(shape, generator=rng.generator(0, "pointdistiller", name, *shape), dtype=torch.float64)


def test_importance():
    feature = torch.tensor([[1.0, -3.0], [0.5, 2.0]])
    assert importance("channel_max", feature=feature).tolist() == [1.0, 2.0]
    assert importance("channel_max", feature=feature.view(2, 2, 1)).tolist() == [1.0, 2.0]
    counts = importance("count", counts=torch.tensor([3, 32]), feature=feature)
    assert counts.tolist() == [3.0, 32.0]
    assert counts.dtype == torch.float32
    assert importance("channel_max", feature=torch.zeros(0, 4)).shape == (0,)
    with pytest.raises(KDBenchError, match="needs counts="):
        importance("count", feature=feature)
    with pytest.raises(KDBenchError, match="did you mean 'count'"):
        importance("counts", counts=counts)  # type: ignore[arg-type]


def chosen(score: list[float], members: list[int], n: int, mode: str) -> list[int]:
    """The positions that one sample contributes."""
    ranked = sorted(members, key=lambda i: (-score[i], i))
    n = min(n, len(ranked))
    top = {"top": n, "bottom": 0, "mixed": n - n // 2}[mode]
    return ranked[:top] + ranked[len(ranked) - (n - top) :]


@pytest.mark.parametrize("mode", ["top", "bottom", "mixed"])
@pytest.mark.parametrize("n", [0, 1, 3, 4, 100])
@pytest.mark.parametrize("samples", [None, 1, 4])
def test_select(mode, n, samples):
    g = rng.generator(0, "select", n, samples or 0)
    # Small integers: many ties.
    score = torch.randint(0, 6, (40,), generator=g).float()
    batch = None if samples is None else torch.randint(0, samples, (40,), generator=g)
    found = select(score, n, mode, batch=batch).tolist()
    groups = [list(range(40))] if batch is None else [[i for i in range(40) if batch[i] == b] for b in range(samples)]
    assert found == [i for members in groups for i in chosen(score.tolist(), members, n, mode)]


def test_select_with_an_empty_sample_and_no_positions():
    score = torch.tensor([1.0, 3.0, 2.0])
    assert select(score, 1, batch=torch.tensor([0, 2, 2])).tolist() == [0, 1]
    assert select(score[:0], 5).tolist() == []
    assert select(score[:0], 5, batch=torch.zeros(0, dtype=torch.long)).tolist() == []


@pytest.mark.parametrize("samples", [None, 3])
def test_random_selection(samples):
    score, batch = torch.arange(60.0), None
    if samples:
        batch = torch.arange(60) % samples
    draw = [
        select(score, 10, "random", batch=batch, generator=rng.generator(0, "draw", name)) for name in ("a", "a", "b")
    ]
    assert draw[0].equal(draw[1])
    assert not draw[0].equal(draw[2])
    for indices in draw:
        assert len(set(indices.tolist())) == 10 * (samples or 1)
        if batch is not None:
            assert torch.bincount(batch[indices]).tolist() == [10] * 3
    hits = torch.bincount(torch.cat([select(score, 30, "random", generator=rng.generator(1, i)) for i in range(200)]))
    # Every position is drawn in about half of the 200 rounds (sd 7), whatever its importance.
    assert hits.min() > 60
    assert hits.max() < 140


def test_select_errors():
    with pytest.raises(KDBenchError, match="no generator"):
        select(torch.ones(3), 1, "random")
    with pytest.raises(KDBenchError, match="did you mean 'random'"):
        select(torch.ones(3), 1, "rand")  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.01, 1.0, 30.0])
def test_reweight_matches_the_equation(temperature):
    score = torch.tensor([3, 32, 7, 32, 1, 30])
    batch = torch.tensor([1, 0, 0, 1, 3, 3])
    largest = 32 / temperature
    exp = [math.exp(v / temperature - largest) for v in score.tolist()]
    torch.testing.assert_close(reweight(score, temperature), torch.tensor([e / sum(exp) for e in exp]))
    expected = []
    for i, b in enumerate(batch.tolist()):
        group = [score[j].item() for j in range(6) if batch[j] == b]
        expected.append(1 / sum(math.exp(min((v - score[i].item()) / temperature, 700)) for v in group))
    torch.testing.assert_close(reweight(score, temperature, batch), torch.tensor(expected))


def test_reweight_gradients_precision_and_empty():
    score, batch = normal(6).requires_grad_(), torch.tensor([0, 0, 2, 2, 2, 1])
    assert torch.autograd.gradcheck(lambda s: reweight(s, 0.7), (score,))
    assert torch.autograd.gradcheck(lambda s: reweight(s, 0.7, batch), (score,))
    assert reweight(score.bfloat16(), 1.0).dtype == torch.float32
    empty = torch.zeros(0, requires_grad=True)
    assert reweight(empty, 1.0).shape == reweight(empty, 1.0, torch.zeros(0, dtype=torch.long)).shape == (0,)


def reference(graph_s: np.ndarray, graph_t: np.ndarray, phi: np.ndarray | None, faithful: str) -> float:
    """The two published forms, one element at a time."""
    n = len(graph_s)
    if faithful == "paper":
        total = 0.0
        for i in range(n):
            squares = [(t - s) ** 2 for s, t in zip(graph_s[i].flat, graph_t[i].flat, strict=True)]
            total += (1.0 if phi is None else phi[i]) * sum(squares) / len(squares)
        return total / n
    # Released form: elementwise mse times softmax * N, a mean over everything, times two.
    total = 0.0
    for i in range(n):
        for s, t in zip(graph_s[i].flat, graph_t[i].flat, strict=True):
            total += (t - s) ** 2 * (1.0 if phi is None else phi[i] * n)
    return 2 * total / graph_s.size


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 4, 3), (5, 6), (12, 3, 8)])
@pytest.mark.parametrize("faithful", ["paper", "code"])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_matches_the_equations(shape, faithful, weighted):
    graph_s, graph_t = normal(*shape, name="s"), normal(*shape, name="t")
    phi = reweight(normal(shape[0], name="score"), 0.5) if weighted else None
    value = local_graph_loss(graph_s, graph_t, phi, faithful)
    expected = reference(graph_s.numpy(), graph_t.numpy(), None if phi is None else phi.numpy(), faithful)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_scales_of_the_two_forms():
    graph_s, graph_t = normal(8, 3, 2, name="s"), normal(8, 3, 2, name="t")
    batch = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    whole, each = reweight(normal(8), 1.0), reweight(normal(8), 1.0, batch)
    for phi, factor in ((None, 2), (whole, 2 * 8), (each, 2 * 8 / 2)):
        paper, code = (local_graph_loss(graph_s, graph_t, phi, form) for form in ("paper", "code"))
        torch.testing.assert_close(code, factor * paper)
    halves = [local_graph_loss(graph_s[batch == b], graph_t[batch == b], each[batch == b]) for b in (0, 1)]
    torch.testing.assert_close(local_graph_loss(graph_s, graph_t, each), sum(halves) / 2)


@pytest.mark.parametrize("faithful", ["paper", "code"])
def test_loss_minimum_gradients_and_precision(faithful):
    graph_s, graph_t = normal(4, 3, 2, name="s").requires_grad_(), normal(4, 3, 2, name="t")
    phi = reweight(normal(4), 1.0)
    assert local_graph_loss(graph_t, graph_t, phi, faithful) == 0
    assert torch.autograd.gradcheck(
        lambda s, p: local_graph_loss(s, graph_t, p, faithful), (graph_s, phi.requires_grad_())
    )
    check_low_precision(local_graph_loss, graph_s, graph_t, phi, rel=0.03, faithful=faithful)


@pytest.mark.parametrize("faithful", ["paper", "code"])
@pytest.mark.parametrize("phi", [None, torch.zeros(0)])
def test_no_graphs(faithful, phi):
    check_empty(local_graph_loss, (0, 4, 3), (0, 4, 3), phi=phi, faithful=faithful)


def test_loss_errors():
    with pytest.raises(KDBenchError, match=r"\(3, 2, 4\).*\(3, 1, 4\)"):
        local_graph_loss(torch.zeros(3, 2, 4), torch.zeros(3, 1, 4))
    with pytest.raises(KDBenchError, match="did you mean 'code'"):
        weigh_distances(torch.zeros(3), faithful="coed")  # type: ignore[arg-type]


def test_the_whole_method_against_the_naive_form():
    """Selection, graphs, both layers and the weighted loss: gradients of both features, weights and norms agree."""
    m, n, k, d = 60, 20, 5, 4
    batch = torch.arange(m) * 3 // m
    counts = torch.randint(1, 33, (m,), generator=rng.generator(0, "counts"))
    x_s, x_t = normal(m, 3, name="xs"), normal(m, 6, name="xt")
    w_s, w_t = normal(d, 6, name="ws"), normal(d, 12, name="wt")
    affine = [normal(d, name=f"affine {i}") for i in range(4)]
    leaves = [t.requires_grad_() for t in (x_s, x_t, w_s, w_t, *affine)]

    centre = select(importance("count", counts=counts), n, batch=batch)
    index = knn(x_t.detach()[centre], x_t.detach(), k, batch[centre], batch)
    phi = reweight(counts[centre], 5.0, batch[centre])
    layers, graphs, stored = [], [], []
    for x, w, gamma, beta in ((x_s, w_s, *affine[:2]), (x_t, w_t, *affine[2:])):
        stats = torch.zeros(d, dtype=torch.float64), torch.ones(d, dtype=torch.float64)
        layer = batch_norm_edges(*project_edges(centre, x, w), index, *stats, gamma, beta, training=True)
        layers.append(layer)
        graphs.append(gather_edges(*layer, index).relu())
        edges = torch.cat([x[centre][:, None].expand(-1, k, -1), x[index]], dim=2) @ w.T
        norm = torch.nn.functional.batch_norm(edges.view(-1, d), None, None, gamma, beta, training=True)
        stored.append(norm.relu().view_as(edges))
    naive = 2 * sum(phi[i] * (stored[0][i] - stored[1][i]).square().mean() for i in range(len(centre))) / phi.sum()
    losses = [
        weigh_distances(edge_distances(*layers[0], *layers[1], index), phi),
        local_graph_loss(graphs[0], graphs[1], phi),
        naive,
    ]
    grads = [torch.autograd.grad(loss, leaves, retain_graph=True) for loss in losses]
    for loss, grad in zip(losses[:2], grads[:2], strict=True):
        torch.testing.assert_close(loss, losses[2], check_dtype=False)
        torch.testing.assert_close(grad, grads[2], check_dtype=False)
    assert all(g.abs().sum() > 0 for g in grads[2])
