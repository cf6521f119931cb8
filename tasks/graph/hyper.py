"""Hyperedges: sets of nodes that belong together, what a hypergraph network reads of them, and files of such.

Feng, You, Zhang, Ji, Gao: Hypergraph Neural Networks, AAAI 2019.
"""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import scipy.sparse as sp

from kdbench.errors import KDBenchError, printable, reading
from tasks.graph.layout import Graph, checked, features

#: Papers of Cora that are validation, of each file: as many as the training set of an ordinary cut leaves open.
HELD = 700
#: Pairs of nodes in one hyperedge, in all, above which there is no matrix of them.
MOST = 50_000_000


def memberships(graph: Graph) -> np.ndarray:
    """Returns nodes and numbers of hyperedges ``(K, 2)``: those of the graph, or what follows from its edges.

    Of a directed graph what one node goes to (the co-citation of papers), where that are two at least; of another one
    each node with its neighbours.
    """
    if graph.hyper is not None:
        return graph.hyper
    edges, count = graph.edges, len(graph)
    if graph.directed:
        return _numbered(edges[:, ::-1])
    own = np.arange(count)[:, None].repeat(2, 1)
    return _numbered(np.concatenate([edges, edges[:, ::-1], own]))


def among(members: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Returns the memberships among some nodes, hyperedges of two of them at least, both numbered anew.

    Args:
        members: ``(K, 2)`` nodes and hyperedges.
        place: ``(N,)`` new number of each node, negative of one that is left out.
    """
    kept = members[place[members[:, 0]] >= 0]
    return _numbered(np.stack([place[kept[:, 0]], kept[:, 1]], 1))


def _numbered(members: np.ndarray) -> np.ndarray:
    """Leaves out hyperedges of one node, and numbers the others in their order."""
    members = np.unique(members.astype(np.int64), axis=0)
    _, which, sizes = np.unique(members[:, 1], return_inverse=True, return_counts=True)
    kept = sizes[which] > 1
    left: np.ndarray = members[kept]
    left[:, 1] = np.unique(left[:, 1], return_inverse=True)[1]
    return left[np.lexsort((left[:, 0], left[:, 1]))]


def matrix(members: np.ndarray, count: int, own: bool) -> sp.csr_matrix:
    """Returns ``Dv^-1/2 H De^-1 H' Dv^-1/2`` (Feng et al., eq. 10 with equal weights), ``(N, N)``.

    Args:
        members: ``(K, 2)`` nodes and hyperedges.
        count: Nodes N.
        own: Whether each node also is a hyperedge by itself; the row of a node in none is zero otherwise.

    Raises:
        KDBenchError: Hyperedges are so large that it would not fit.
    """
    sizes = np.bincount(members[:, 1])
    if int((sizes.astype(np.int64) ** 2).sum()) > MOST:
        raise KDBenchError(f"data.hyper=true: hyperedges of up to {sizes.max()} nodes join more than {MOST} pairs")
    nodes, edges = members.T
    incidence = sp.csr_matrix((np.ones(len(nodes)), (nodes, edges)), (count, len(sizes)))
    if own:
        incidence = sp.hstack([incidence, sp.eye(count)]).tocsr()
    degree, size = incidence.sum(1).A1, incidence.sum(0).A1
    left = sp.diags(np.where(degree > 0, np.maximum(degree, 1) ** -0.5, 0)) @ incidence
    return sp.csr_matrix(left @ sp.diags(1 / np.maximum(size, 1)) @ left.T)


def read(path: Path, name: str, split: int) -> Graph:
    """Reads a hypergraph in the arrays of HyperGCN's data: ``members`` cut by ``edge_ptr``, training sets ``train``.

    Of the papers that are not in that training set :data:`HELD` are validation, drawn once; the others are the test.
    Every two nodes of a hyperedge have an edge.

    Args:
        path: ``.npz``.
        name: Of the data set.
        split: Which training set.

    Raises:
        KDBenchError: It is no such file, or has no such training set.
    """
    where = printable(path)
    with reading(path):
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {key: file[key] for key in file.files}
        except (ValueError, BadZipFile, EOFError) as error:
            raise KDBenchError(f"{where}: no .npz of plain arrays ({' '.join(str(error).split())})") from None
    absent = [key for key in ("indptr", "indices", "shape", "y", "edge_ptr", "members", "train") if key not in found]
    if absent:
        raise KDBenchError(f"{where}: there is no array {absent[0]!r}, expected a hypergraph as of HyperGCN")
    trains = np.atleast_2d(found["train"])
    if split >= len(trains):
        raise KDBenchError(f"data.split={split}: {where} has {len(trains)} training sets, counted from 0")
    labels, sizes = found["y"].astype(np.int64), np.diff(found["edge_ptr"].astype(np.int64))
    if (sizes < 0).any() or sizes.sum() != len(found["members"]):
        raise KDBenchError(f"{where}: edge_ptr does not cut members into hyperedges")
    members = np.stack([found["members"].astype(np.int64), np.repeat(np.arange(len(sizes)), sizes)], 1)
    if len(members) and not 0 <= members[:, 0].min() <= members[:, 0].max() < len(labels):
        raise KDBenchError(f"{where}: a hyperedge has node {members[:, 0].max()}, expected 0 to {len(labels) - 1}")
    train = trains[split].astype(np.int64)
    rest = np.setdiff1d(np.arange(len(labels)), train)
    order = np.random.default_rng([split, 3]).permutation(len(rest))
    val, test = rest[order[:HELD]], rest[order[HELD:]]
    incidence = sp.csr_matrix((np.ones(len(members)), members.T), (len(labels), len(sizes)))
    pairs = sp.triu(incidence @ incidence.T, 1).tocoo()
    graph = Graph(
        name,
        features(found, where),
        labels,
        np.stack([pairs.row, pairs.col], 1).astype(np.int64),
        tuple(map(str, range(int(labels.max(initial=-1)) + 1))),
        {"train": np.sort(train), "val": np.sort(val), "test": np.sort(test)},
        hyper=_numbered(members),
    )
    return checked(graph, where)
