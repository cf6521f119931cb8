"""Sparse products in torch: a matrix that holds its transpose, and edges for what runs elsewhere."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kdbench.functional.numerics import full_precision

for said in ("Sparse CSR tensor support is in beta state", "Sparse invariant checks are implicitly disabled"):
    warnings.filterwarnings("ignore", message=said)


class Sparse(NamedTuple):
    """A sparse matrix (N, M) with its transpose, as plain tensors, which copy, save and move as any other.

    A tensor in CSR form cannot be copied deeply nor saved, and its backward makes the transpose in every step.

    Attributes:
        crow: ``(N + 1,)`` where each row begins among the entries.
        col: ``(E,)`` column of each entry.
        values: ``(E,)``.
        crow_t: ``(M + 1,)`` where each column begins in the transpose.
        row: ``(E,)`` row of each entry of the transpose.
        order: ``(E,)`` place among ``values`` of each entry of the transpose.
    """

    crow: Tensor
    col: Tensor
    values: Tensor
    crow_t: Tensor
    row: Tensor
    order: Tensor

    @classmethod
    def of(cls, matrix: sp.spmatrix) -> Sparse:
        """Takes a SciPy matrix."""
        csr = sp.csr_matrix(matrix, dtype=np.float32)
        csr.sum_duplicates()
        places = sp.csr_matrix((np.arange(csr.nnz), csr.indices, csr.indptr), csr.shape).tocsc()
        parts = (csr.indptr, csr.indices, csr.data, places.indptr, places.indices, places.data)
        return cls(*(torch.from_numpy(x.astype(np.float32 if x is csr.data else np.int64)) for x in parts))

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.crow) - 1, len(self.crow_t) - 1

    def entry_rows(self) -> Tensor:
        """Returns the row of each entry, ``(E,)``."""
        return torch.arange(self.size[0], device=self.crow.device).repeat_interleave(self.crow.diff())

    def edges(self) -> Edges:
        """Returns its entries one by one: what is in column j goes to row i."""
        return Edges(self.col, self.entry_rows(), self.values)


class Edges(NamedTuple):
    """The entries of a matrix, for runtimes that know no sparse one.

    Attributes:
        source: ``(E,)`` column of each.
        target: ``(E,)`` row of each.
        weight: ``(E,)`` value of each.
    """

    source: Tensor
    target: Tensor
    weight: Tensor


Operator: TypeAlias = Sparse | Edges


def product(matrix: Operator, dense: Tensor, rows: int | None = None) -> Tensor:
    """Multiplies a matrix (N, M) with a dense one (M, D), in single precision at least.

    Gradients reach the dense side and the values of the matrix.

    Args:
        matrix: As :class:`Sparse` or :class:`Edges`.
        dense: ``(M, D)``.
        rows: N of edges; M by default.

    Returns:
        ``(N, D)``.
    """
    if isinstance(matrix, Edges):
        sent = dense.index_select(0, matrix.source) * matrix.weight[:, None]
        none = dense.new_zeros(dense.shape[0] if rows is None else rows, dense.shape[1])
        return none.index_add(0, matrix.target, sent)
    found: Tensor = _Product.apply(*matrix, dense)
    return found


def dropped(matrix: Sparse, share: float) -> Sparse:
    """Drops a share of the entries and scales the others up, one random number an entry."""
    return matrix._replace(values=F.dropout(matrix.values, share))


def entries(matrix: Operator) -> Edges:
    """Returns the entries of a square matrix one by one."""
    return matrix if isinstance(matrix, Edges) else matrix.edges()


def row_softmax(scores: Tensor, rows: Tensor, count: int) -> Tensor:
    """Softmax over the entries of each row of a sparse matrix.

    Args:
        scores: ``(E, H)`` of each entry, H times.
        rows: ``(E,)`` row of each.
        count: Rows, some of which may have no entry.

    Returns:
        ``(E, H)``, which sums to one in each row that has an entry.
    """
    places = rows[:, None].expand_as(scores)
    top = scores.new_full((count, scores.shape[1]), -torch.inf).scatter_reduce(0, places, scores.detach(), "amax")
    powers = (scores - top.index_select(0, rows)).exp()
    total = torch.zeros_like(top).index_add(0, rows, powers)
    return powers / total.index_select(0, rows)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        crow, col, values, crow_t, row, order, dense = inputs
        ctx.save_for_backward(crow, col, values, crow_t, row, order, dense if ctx.needs_input_grad[2] else None)
        ctx.given = dense.dtype
        return _times(crow, col, values, len(crow_t) - 1, dense)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> Any:
        crow, col, values, crow_t, row, order, dense = ctx.saved_tensors  # type: ignore[attr-defined]
        grad = grads[0].contiguous()
        by_values = by_dense = None
        if ctx.needs_input_grad[2]:  # type: ignore[attr-defined]
            rows = torch.arange(len(crow) - 1, device=grad.device).repeat_interleave(crow.diff())
            by_values = (grad[rows] * dense[col]).sum(1).to(values.dtype)
        if ctx.needs_input_grad[6]:  # type: ignore[attr-defined]
            found = _times(crow_t, row, values[order], len(crow) - 1, grad)
            by_dense = found.to(ctx.given)  # type: ignore[attr-defined]
        return None, None, by_values, None, None, None, by_dense


def _times(crow: Tensor, col: Tensor, values: Tensor, columns: int, dense: Tensor) -> Tensor:
    """Multiplies in the wider of both types; half precision has no sparse product."""
    dtype = torch.promote_types(values.dtype, dense.dtype)
    with full_precision(dense):
        size = (len(crow) - 1, columns)
        matrix = torch.sparse_csr_tensor(crow, col, values.to(dtype), size, check_invariants=False)
        return matrix @ dense.to(dtype)
