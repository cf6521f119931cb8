from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional import graph as module
from kdbench.functional.graph import batch_norm_edges, edge_distances, gather_edges, knn, project_edges


def normal(*shape: int, name: str = "x", dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=rng.generator(0, "graph", name, *shape), dtype=dtype)


def nearest(
    queries: np.ndarray, points: np.ndarray, k: int, batch_q: np.ndarray, batch_p: np.ndarray
) -> list[list[int]]:
    """Brute force: every pair, then a sort by (distance, index)."""
    rows = []
    for q, sample in zip(queries, batch_q, strict=True):
        pairs = sorted((float(((q - p) ** 2).sum()), j) for j, p in enumerate(points) if batch_p[j] == sample)
        rows.append([j for _, j in pairs[:k]])
    return rows


@pytest.mark.parametrize(("n", "m", "c", "k"), [(1, 1, 3, 1), (5, 9, 1, 9), (40, 70, 8, 5), (33, 50, 3, 50)])
@pytest.mark.parametrize("chunk", [1, 7, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_knn_matches_brute_force(n, m, c, k, chunk, dtype):
    queries, points = normal(n, c, name="q", dtype=dtype), normal(m, c, name="p", dtype=dtype)
    expected = nearest(queries.numpy(), points.numpy(), k, np.zeros(n), np.zeros(m))
    found = knn(queries, points, k, chunk=chunk)
    assert found.dtype == torch.int64
    assert found.tolist() == expected


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("chunk", [1, 6, 128])
def test_knn_stays_within_the_sample(ordered, chunk):
    g = rng.generator(0, "knn batch", int(ordered))
    batch_q, batch_p = torch.randint(0, 4, (30,), generator=g) * 2, torch.randint(0, 7, (90,), generator=g)
    if ordered:
        batch_q, batch_p = batch_q.sort().values, batch_p.sort().values
    queries, points = normal(30, 3, name="q"), normal(90, 3, name="p")
    k = int(torch.bincount(batch_p).min())
    found = knn(queries, points, k, batch_q, batch_p, chunk=chunk)
    assert found.tolist() == nearest(queries.numpy(), points.numpy(), k, batch_q.numpy(), batch_p.numpy())
    assert (batch_p[found] == batch_q[:, None]).all()


def test_knn_breaks_ties_by_index():
    points = torch.tensor([[1.0], [0.0], [1.0], [0.0], [-1.0]])
    assert knn(torch.tensor([[0.0], [1.0]]), points, 4).tolist() == [[1, 3, 0, 2], [0, 2, 1, 3]]
    assert knn(torch.zeros(3, 4), torch.zeros(50, 4), 5).tolist() == [[0, 1, 2, 3, 4]] * 3


def test_knn_far_from_the_origin_and_in_low_precision():
    points = normal(60, 3, dtype=torch.float32)
    away = (points + 1024).double()
    expected = nearest(away.numpy(), away.numpy(), 4, np.zeros(60), np.zeros(60))
    assert knn(away.float(), away.float(), 4).tolist() == expected
    low = points.bfloat16()
    assert knn(low, low, 4).equal(knn(low.float(), low.float(), 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert knn(points, points, 4).equal(knn(points.double(), points.double(), 4))


def test_knn_edge_cases():
    assert knn(torch.zeros(0, 3), torch.zeros(0, 3), 4).shape == (0, 4)
    assert not knn(normal(4, 3).requires_grad_(), normal(5, 3), 2).requires_grad
    bad = torch.full((6, 2), float("nan"))
    assert ((knn(bad, bad, 3) >= 0) & (knn(bad, bad, 3) < 6)).all()
    with pytest.raises(KDBenchError, match="k=6, but a sample holds 5 points"):
        knn(torch.zeros(2, 3), torch.zeros(5, 3), 6)
    with pytest.raises(KDBenchError, match="k=3, but a sample holds 2 points"):
        knn(torch.zeros(2, 3), torch.zeros(5, 3), 3, torch.tensor([0, 1]), torch.tensor([0, 0, 0, 1, 1]))
    with pytest.raises(KDBenchError, match="2 wide and points 3"):
        knn(torch.zeros(2, 2), torch.zeros(5, 3), 1)
    with pytest.raises(KDBenchError, match="both batch_q and batch_p"):
        knn(torch.zeros(2, 3), torch.zeros(5, 3), 1, batch_q=torch.zeros(2))


def case(n: int = 6, m: int = 9, k: int = 4, c: int = 3, d: int = 5) -> tuple[torch.Tensor, ...]:
    """Centre indices, neighbour indices, features, weight and bias."""
    g = rng.generator(0, "edges", n, m, k, c, d)
    centre, neighbour = torch.randint(m, (n,), generator=g), torch.randint(m, (n, k), generator=g)
    return centre, neighbour, normal(m, c), normal(d, 2 * c, name="w"), normal(d, name="b")


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (6, 9, 4, 3, 5), (20, 7, 3, 8, 2)])
@pytest.mark.parametrize("biased", [False, True])
def test_edges_equal_the_concatenation(shape, biased):
    centre, neighbour, x, weight, bias = case(*shape)
    x.requires_grad_()
    weight.requires_grad_()
    b = bias if biased else None
    pairs = torch.cat([x[centre][:, None].expand(-1, neighbour.shape[1], -1), x[neighbour]], dim=2)
    expected = pairs @ weight.T + (bias if biased else 0)
    value = gather_edges(*project_edges(centre, x, weight, b), neighbour)
    torch.testing.assert_close(value, expected)
    upstream = normal(*value.shape)
    for got, want in zip(
        torch.autograd.grad(value, (x, weight), upstream),
        torch.autograd.grad(expected, (x, weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


def test_edges_gradcheck_and_the_released_order():
    centre, neighbour, x, weight, bias = case(3, 4, 2, 2, 3)
    inputs = x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()
    assert torch.autograd.gradcheck(lambda *t: gather_edges(*project_edges(centre, *t), neighbour), inputs)
    pairs = torch.cat([x[neighbour], x[centre][:, None].expand(-1, 2, -1)], dim=2)
    released = gather_edges(*project_edges(centre, x, weight.roll(2, dims=1)), neighbour)
    torch.testing.assert_close(released, pairs @ weight.T)
    with pytest.raises(KDBenchError, match=r"\(3, 4\), expected \(D, 2\)"):
        project_edges(centre, x[:, :1], weight)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(6, 9, 4, 3, 5), (20, 7, 3, 8, 2)])
def test_batch_norm_of_the_terms_is_batch_norm_of_the_edges(training, shape):
    index = case(*shape)[1]
    n, m, _, _, d = shape
    centre, neighbour = (3 * normal(n, d, name="a") + 5).requires_grad_(), normal(m, d, name="b").requires_grad_()
    weight, bias = normal(d, name="gamma").requires_grad_(), normal(d, name="beta").requires_grad_()
    mean, var = normal(d, name="mean"), normal(d, name="var").square() + 0.5
    ours, theirs = (mean.clone(), var.clone()), (mean.clone(), var.clone())
    edges = gather_edges(centre, neighbour, index)
    expected = F.batch_norm(edges.view(-1, d), *theirs, weight, bias, training, 0.2, 1e-3).view_as(edges)
    terms = batch_norm_edges(centre, neighbour, index, *ours, weight, bias, training, 0.2, 1e-3)
    value = gather_edges(*terms, index)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(ours, theirs)
    leaves = centre, neighbour, weight, bias
    upstream = normal(*value.shape)
    for got, want in zip(
        torch.autograd.grad(value, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_batch_norm_of_one_edge_no_edge_and_low_precision():
    d = 3
    stats = torch.zeros(d), torch.ones(d)
    affine = torch.ones(d), torch.full((d,), 0.5)
    one = batch_norm_edges(torch.ones(1, d), torch.ones(2, d), torch.tensor([[1]]), *stats, *affine, training=True)
    torch.testing.assert_close(gather_edges(*one, torch.tensor([[1]])), torch.full((1, 1, d), 0.5))
    assert all(s.isfinite().all() for s in stats)
    before = tuple(s.clone() for s in stats)
    none = torch.empty(0, 4, dtype=torch.long)
    terms = batch_norm_edges(torch.ones(0, d), torch.ones(2, d), none, *stats, *affine, training=True)
    assert gather_edges(*terms, none).shape == (0, 4, d)
    torch.testing.assert_close(stats, before)
    index = case(50, 60, 8)[1]
    centre, neighbour = normal(50, d, name="a", dtype=torch.float32), normal(60, d, name="b", dtype=torch.float32)
    full = batch_norm_edges(centre, neighbour, index, *stats, *affine, training=True)
    low = batch_norm_edges(centre.bfloat16(), neighbour.bfloat16(), index, *stats, *affine, training=True)
    assert low[0].dtype == low[1].dtype == torch.bfloat16
    for a, b in zip(full, low, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=0.02, atol=0.02)


def terms(n: int, m: int, d: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    a, b, c, e = (normal(r, d, name=name).requires_grad_() for r, name in ((n, "a"), (m, "b"), (n, "c"), (m, "d")))
    return a, b, c, e


@pytest.mark.parametrize(("n", "m", "k", "d"), [(1, 1, 1, 1), (6, 9, 4, 5), (12, 5, 3, 2)])
@pytest.mark.parametrize("block", [1, 64, 2**16])
def test_edge_distances_match_stored_edges(n, m, k, d, block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_CPU", block)
    leaves, index = terms(n, m, d), case(n, m, k)[1]
    expected = torch.zeros(n, dtype=torch.float64)
    for i in range(n):
        for j in index[i].tolist():
            student, teacher = leaves[0][i] + leaves[1][j], leaves[2][i] + leaves[3][j]
            expected[i] += (student.clamp_min(0) - teacher.clamp_min(0)).square().sum() / (k * d)
    value = edge_distances(*leaves, index)
    torch.testing.assert_close(value, expected)
    upstream = normal(n, name="upstream")
    for got, want in zip(
        torch.autograd.grad(value, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_edge_distances_minimum_gradcheck_and_low_precision():
    leaves, index = terms(3, 4, 2), case(3, 4, 2)[1]
    assert edge_distances(*leaves[:2], *leaves[:2], index).abs().max() == 0
    assert torch.autograd.gradcheck(lambda a, b, c, e: edge_distances(a, b, c, e, index), leaves)
    a, b, c, e = (t.bfloat16() for t in leaves)
    low = edge_distances(a, b, c, e, index)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, edge_distances(*leaves, index).float(), rtol=0.05, atol=0.01)


def test_edge_distances_of_no_graphs():
    leaves = terms(0, 4, 2)
    value = edge_distances(*leaves, torch.empty(0, 3, dtype=torch.long))
    value.sum().backward()
    assert value.shape == (0,)
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves)
    with pytest.raises(KDBenchError, match=r"centre terms.*\(3, 2\).*\(3, 4\)"):
        edge_distances(torch.zeros(3, 2), torch.zeros(4, 2), torch.zeros(3, 4), torch.zeros(4, 4), torch.zeros(3, 1))
