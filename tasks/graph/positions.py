"""Where nodes stand in the graph that training sees: a table of positions, and which rows of it a node reads.

After NOSMOG (Tian, Zhang, Guo, Zhang, Chawla: Learning MLPs on Graphs, ICLR 2023), approximately: eigenvectors of the
normalised matrix of edges take the place of DeepWalk. As there, a new node takes the mean of its neighbours' positions.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import eigsh


def positions(edges: np.ndarray, count: int, width: int) -> np.ndarray:
    """Returns eigenvectors 2 to ``width + 1`` of ``D^-1/2 A D^-1/2``, largest eigenvalues first.

    An edge goes both ways. Solver and signs are fixed: the entry of each that is farthest from zero is positive. Where
    an eigenvalue comes several times, as with several components, which vectors stand for it is the solver's choice.

    Args:
        edges: ``(E, 2)``.
        count: Nodes N.
        width: Columns W; those that N nodes have no vectors for are zero.

    Returns:
        ``(N, W)``, columns of length ``sqrt(N)``.
    """
    found = np.zeros((count, width), np.float32)
    known = min(width, count - 2)
    if known < 1 or not len(edges):
        return found
    ones = np.ones(len(edges))
    forth = sp.csr_matrix((ones, (edges[:, 0], edges[:, 1])), (count, count))
    either = ((forth + forth.T) > 0).astype(np.float64)
    scale = sp.diags(np.maximum(either.sum(1).A1, 1) ** -0.5)
    start = np.random.default_rng(0).random(count)
    values, vectors = eigsh(scale @ either @ scale, known + 1, which="LA", v0=start)
    vectors = vectors[:, np.argsort(-values)[1:]]
    far = vectors[np.abs(vectors).argmax(0), np.arange(known)]
    found[:, :known] = vectors * np.where(far < 0, -1, 1) * count**0.5
    return found


def places(nodes: np.ndarray, edges: np.ndarray, rows: np.ndarray, size: int) -> sp.csr_matrix:
    """Returns which rows of the table each node reads.

    That is its own row, or for a node without one the mean over those of its neighbours; nothing where it has none.

    Args:
        nodes: ``(M,)`` some nodes of a graph.
        edges: ``(E, 2)`` of that graph.
        rows: ``(N,)`` row of each of its nodes in the table; ``size`` or more for none.
        size: Rows of the table.

    Returns:
        ``(M, size)``, whose rows sum to one or are zero.
    """
    place = np.full(len(rows), -1)
    place[nodes] = np.arange(len(nodes))
    own = np.flatnonzero(rows[nodes] < size)
    target, source = np.concatenate([edges, edges[:, ::-1]]).T
    new = (place[target] >= 0) & (rows[target] >= size) & (rows[source] < size)
    ends = np.concatenate([own, place[target[new]]]), np.concatenate([rows[nodes][own], rows[source[new]]])
    counted = sp.csr_matrix((np.ones(len(ends[0])), ends), (len(nodes), size))
    return sp.csr_matrix(sp.diags(1 / np.maximum(counted.sum(1).A1, 1)) @ counted)
