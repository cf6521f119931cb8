"""Sparse products against dense ones."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from tasks.graph.operators import Edges, Sparse, dropped, product


def made(rows: int = 7, columns: int = 5, seed: int = 0) -> tuple[Sparse, torch.Tensor]:
    draw = np.random.default_rng(seed)
    dense = draw.normal(size=(rows, columns)) * (draw.random((rows, columns)) < 0.4)
    dense[2] = 0
    return Sparse.of(sp.csr_matrix(dense)), torch.from_numpy(dense).float()


def test_a_product_and_its_gradients_are_those_of_a_dense_matrix():
    matrix, dense = made()
    values = matrix.values.double().requires_grad_()
    right = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, x: product(matrix._replace(values=v), x), (values, right))
    torch.testing.assert_close(product(matrix, right.float()), dense @ right.float())
    assert matrix.size == (7, 5)


def test_edges_multiply_as_the_matrix_they_are_of():
    matrix, dense = made(6, 6)
    nodes = torch.randn(6, 4)
    torch.testing.assert_close(product(matrix.edges(), nodes), dense @ nodes)
    assert isinstance(matrix.edges(), Edges)


def test_an_empty_matrix_and_one_row():
    empty = Sparse.of(sp.csr_matrix((3, 2)))
    right = torch.randn(2, 4, requires_grad=True)
    found = product(empty, right)
    assert torch.equal(found, torch.zeros(3, 4))
    found.sum().backward()
    assert right.grad is not None
    assert not right.grad.any()
    one = Sparse.of(sp.csr_matrix([[2.0, 0.0]]))
    assert torch.equal(product(one, torch.ones(2, 1)), torch.tensor([[2.0]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    matrix, dense = made()
    right = torch.randn(5, 3).to(dtype).requires_grad_()
    found = product(matrix, right)
    assert found.dtype == torch.promote_types(torch.float32, dtype)
    torch.testing.assert_close(found, dense.to(found.dtype) @ right.to(found.dtype))
    found.sum().backward()
    assert right.grad is not None
    assert right.grad.dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert product(matrix, right).dtype == found.dtype


def test_it_is_copied_and_some_entries_are_dropped():
    matrix, _ = made(50, 40)
    again = copy.deepcopy(matrix)
    assert all(torch.equal(a, b) for a, b in zip(matrix, again, strict=True))
    torch.manual_seed(0)
    kept = dropped(matrix, 0.5).values
    assert {0.0, 2.0} >= {round(float(r), 5) for r in kept / matrix.values}
    assert 0.3 < float((kept != 0).float().mean()) < 0.7
