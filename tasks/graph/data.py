"""A graph opened: what is hidden from training, the views of its edges, whole-graph batches, loaders."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from lightning import LightningDataModule
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdbench.base.collectives import share
from kdbench.base.digest import digest
from kdbench.base.instantiate import check
from kdbench.base.store import Store
from kdbench.data import Batches, EpochSampler, Key
from kdbench.errors import KDBenchError
from kdbench.splits import limited
from kdbench.task import Batch
from tasks.graph.hyper import among, matrix, memberships
from tasks.graph.layout import UNKNOWN, Graph
from tasks.graph.models import PLACES
from tasks.graph.operators import Sparse
from tasks.graph.positions import places, positions
from tasks.graph.sources import open_source


class Inputs(NamedTuple):
    """A whole graph of N nodes.

    Attributes:
        words: ``(N, V)`` features.
        views: By name, matrices ``(N, N)`` of its edges (:func:`views`), and which rows of a table of the nodes that
            training sees each node reads (:func:`~tasks.graph.positions.places`).
        edges: ``(2, E)`` source and target of each edge, both ways and none of a node with itself.
    """

    words: Sparse
    views: Mapping[str, Sparse]
    edges: Tensor


class Targets(NamedTuple):
    """What is known of the nodes of a batch.

    Attributes:
        labels: ``(N,)`` classes; :data:`~tasks.graph.layout.UNKNOWN` for none that may be seen here.
        sets: ``(N,)`` bool by name: nodes of which a metric of that name counts.
        members: ``(2, K)`` nodes and the hyperedges that they are in (:mod:`tasks.graph.hyper`).
    """

    labels: Tensor
    sets: Mapping[str, Tensor]
    members: Tensor


@dataclass(frozen=True)
class DataOptions:
    """Options of ``data``.

    Attributes:
        source: Which data set: a key of :data:`~tasks.graph.sources.HOLDS`.
        root: Its folder; None for the embedded one.
        cold: Share of the test nodes that are hidden from training with their edges; 0 for the published transductive
            split. None where the data set says which are cold.
        labels: Most labelled nodes of a class, by hash; None for all.
        unlabelled: Whether nodes without a label that training sees are distilled too, or the labelled alone.
        normalise: Whether the features of a node are divided by their sum.
        directed: Of tables of one's own, whether an edge goes from its source to its target.
        hyper: Whether networks may read hyperedges (the view ``hyper``), too.
        self_hyperedges: Whether each node is a hyperedge by itself, too.
        split: Of hypergraphs, which of the published training sets.
        steps: Times that an epoch sees the graph.
        citations: Of the embedded data, options of :class:`~tasks.graph.citations.Citations`.
    """

    source: str
    root: str | None = None
    cold: Annotated[float, Field(ge=0, lt=1)] | None = None
    labels: PositiveInt | None = None
    unlabelled: bool = True
    normalise: bool = True
    directed: bool = False
    hyper: bool = False
    self_hyperedges: bool = True
    split: NonNegativeInt = 0
    steps: PositiveInt = 20
    citations: dict[str, Any] = field(default_factory=dict)


class Opened:
    """A graph and its cuts. Nodes that training sees come first in the ids, in their order, then the cold ones.

    Attributes:
        graph: As it was read.
        seen: Nodes of the graph that training sees, with the edges among them.
        train: Labelled ones.
        val: Validation nodes.
        tran: Test nodes that training sees, without their labels.
        cold: Test nodes that it does not see.
        digest: Of content and cuts.
        learned: Of what training and validation read.
        notes: Flags of the record.
    """

    def __init__(self, graph: Graph, options: DataOptions) -> None:
        self.graph, self.options = graph, options
        if len(graph.classes) < 2:
            raise KDBenchError(f"{graph.name}: found {len(graph.classes)} class, expected two at least")
        absent = next((name for name in ("train", "val", "test") if name not in graph.splits), None)
        if absent:
            raise KDBenchError(f"{graph.name}: there is no split {absent!r}: name its nodes, or leave out all splits")
        self.train, self.val, test = (graph.splits[name] for name in ("train", "val", "test"))
        if options.labels is not None:
            self.train = _few(graph, self.train, options.labels)
        self.cold, self.tran = _cold(graph, test, options.cold)
        hidden = np.zeros(len(graph), bool)
        hidden[self.cold] = True
        self.seen = np.flatnonzero(~hidden)
        self.features = normalised(graph.words) if options.normalise else graph.words
        self.views = (VIEWS_DIRECTED if graph.directed else VIEWS_UNDIRECTED) + ((HYPER,) if options.hyper else ())
        self.members = memberships(graph)
        bare = int((np.bincount(graph.edges.ravel(), minlength=len(graph)) == 0).sum())
        unlabelled = int((graph.labels == UNKNOWN).sum())
        self.notes = (
            *graph.notes,
            *([] if len(self.cold) else ["transductive: every test node was answered by the teacher"]),
            *([f"isolated:{bare} nodes have no edge"] if bare else []),
            *([f"unlabelled:{unlabelled} nodes have no label"] if unlabelled else []),
        )
        inside = _inside(graph.edges, self.seen)
        self.learned = digest(
            [
                *(hashed(x) for x in (graph.labels[self.train], graph.labels[self.val], inside)),
                *(hashed(x) for x in (self.seen, self.train, self.val, *arrays(self.features[self.seen]))),
                [options.unlabelled, list(graph.classes), graph.directed, options.hyper, options.self_hyperedges],
                hashed(self.members[np.isin(self.members[:, 0], self.seen)]),
            ]
        )
        everything = (graph.labels, graph.edges, self.cold, self.tran, *arrays(self.features))
        self.digest = digest([self.learned, *(hashed(x) for x in everything)])

    def ids(self, nodes: np.ndarray) -> np.ndarray:
        """Returns the ids of nodes of the graph."""
        order = np.empty(len(self.graph), np.int64)
        order[np.concatenate([self.seen, self.cold])] = np.arange(len(self.graph))
        found: np.ndarray = order[nodes]
        return found

    def positions(self, width: int) -> np.ndarray:
        """Returns where the nodes that training sees stand among each other, ``(S, width)`` in the order of ids."""
        edges = self.graph.edges[_both(self.graph.edges, self.seen, len(self.graph))]
        return positions(self.ids(edges), len(self.seen), width)

    def training(self) -> Batch:
        """Returns the graph that training sees, with the labels of training nodes alone."""
        batch = self._batch(self.seen, self.graph.edges, {"train": self.train}, self.train)
        known = batch.targets.sets["train"]
        return Batch(
            batch.inputs, batch.targets, batch.ids, known, distilled=None if self.options.unlabelled else known
        )

    def validation(self) -> Batch:
        """Returns the same graph with the labels of validation nodes."""
        return self._batch(self.seen, self.graph.edges, {"scored": self.val}, self.val)

    def tests(self) -> list[Batch]:
        """Returns the whole graph with all its edges, then, where nodes are cold, without the edges of these."""
        graph, every = self.graph, np.arange(len(self.graph))
        scored = self.cold if len(self.cold) else self.tran
        joined = self.members[:, 0] if self.options.hyper else graph.edges.ravel()
        degree = np.bincount(joined, minlength=len(graph))
        sets = {"scored": scored, "isolated": scored[degree[scored] == 0]}
        if graph.blank is not None:
            sets["blank"] = scored[graph.blank[scored]]
        first = self._batch(every, graph.edges, sets, scored)
        if not len(self.cold):
            return [first]
        seen = graph.edges[_both(graph.edges, self.seen, len(graph))]
        both = np.concatenate([self.tran, self.cold])
        return [first, self._batch(every, seen, {"tran": self.tran, "unlinked": self.cold}, both)]

    def _batch(self, nodes: np.ndarray, edges: np.ndarray, sets: Mapping[str, np.ndarray], shown: np.ndarray) -> Batch:
        """Returns some nodes with the edges among them, and the labels of those that are shown."""
        count = len(self.graph)
        place = np.full(count, -1)
        place[nodes] = np.arange(len(nodes))
        own = place[edges[_both(edges, nodes, count)]]
        labels = np.full(len(nodes), UNKNOWN)
        labels[place[shown]] = self.graph.labels[shown]
        masks = {}
        for name, members in sets.items():
            mask = np.zeros(len(nodes), bool)
            mask[place[members]] = True
            masks[name] = torch.from_numpy(mask)
        members = among(self.members, place)
        read = views(own, len(nodes), tuple(view for view in self.views if view != HYPER))
        if self.options.hyper:
            read[HYPER] = Sparse.of(matrix(members, len(nodes), self.options.self_hyperedges))
        where = places(nodes, edges, self.ids(np.arange(count)), len(self.seen))
        inputs = Inputs(
            Sparse.of(self.features[nodes]),
            {**read, PLACES: Sparse.of(where)},
            torch.from_numpy(np.concatenate([own, own[:, ::-1]]).T.copy()),
        )
        targets = Targets(torch.from_numpy(labels), masks, torch.from_numpy(members.T.copy()))
        return Batch(inputs, targets, torch.from_numpy(self.ids(nodes)))


VIEWS_UNDIRECTED = ("undirected", "neighbours")
HYPER = "hyper"
VIEWS_DIRECTED = (*VIEWS_UNDIRECTED, "cites", "cited")


def views(edges: np.ndarray, count: int, names: tuple[str, ...] = VIEWS_DIRECTED) -> dict[str, Sparse]:
    """Returns matrices of the edges by name.

    ``undirected`` is ``D^-1/2 (A + A' + 1) D^-1/2``, an edge in either direction being one; ``neighbours`` the mean
    over the neighbours in either direction; ``cites`` that over the nodes that a node's edges go to, ``cited`` over
    those that they come from. A row of a node without such neighbours is zero.

    Args:
        edges: ``(E, 2)`` from the first node to the second.
        count: Nodes.
        names: Which are wanted.
    """
    ones = np.ones(len(edges), np.float32)
    forth = sp.csr_matrix((ones, (edges[:, 0], edges[:, 1])), (count, count))
    forth.data[:] = 1
    either = ((forth + forth.T) > 0).astype(np.float32)

    def mean(matrix: sp.csr_matrix) -> sp.csr_matrix:
        return sp.diags(1 / np.maximum(matrix.sum(1).A1, 1)) @ matrix

    def normal(matrix: sp.csr_matrix) -> sp.csr_matrix:
        looped = matrix + sp.eye(count, dtype=np.float32)
        scale = sp.diags(np.asarray(looped.sum(1)).ravel() ** -0.5)
        return scale @ looped @ scale

    made = {
        "undirected": lambda: normal(either),
        "neighbours": lambda: mean(either),
        "cites": lambda: mean(forth),
        "cited": lambda: mean(forth.T.tocsr()),
    }
    return {name: Sparse.of(made[name]()) for name in names}


def _few(graph: Graph, train: np.ndarray, most: int) -> np.ndarray:
    """Returns at most so many nodes of each class, by the hash of their numbers."""
    kept = []
    for label in range(len(graph.classes)):
        own = train[graph.labels[train] == label]
        kept.append(own[limited([str(node) for node in own], most, "labels")])
    return np.sort(np.concatenate(kept))


def _cold(graph: Graph, test: np.ndarray, asked: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the test nodes that are hidden, and the others."""
    given = graph.splits.get("cold")
    if given is not None:
        if asked is not None:
            raise KDBenchError(f"data.cold={asked:g}: {graph.name} says itself which nodes are cold: leave it out")
        return given, test
    hidden = test[limited([str(node) for node in test], round((0.5 if asked is None else asked) * len(test)), "cold")]
    return hidden, np.setdiff1d(test, hidden)


def _inside(edges: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    return edges[_both(edges, nodes, int(max(edges.max(initial=0), nodes.max(initial=0))) + 1)]


def _both(edges: np.ndarray, nodes: np.ndarray, count: int) -> np.ndarray:
    """Says of which edges both ends are among the nodes."""
    there = np.zeros(count, bool)
    there[nodes] = True
    found: np.ndarray = there[edges].all(1)
    return found


def normalised(words: sp.csr_matrix) -> sp.csr_matrix:
    """Divides each row by the sum of its absolute values."""
    total = np.abs(words).sum(1).A1
    return sp.csr_matrix(sp.diags(1 / np.where(total > 0, total, 1)) @ words, dtype=np.float32)


def arrays(matrix: sp.csr_matrix) -> tuple[np.ndarray, ...]:
    """Returns what a matrix is made of."""
    return matrix.indptr, matrix.indices, matrix.data


def hashed(values: np.ndarray) -> str:
    """Digests an array by type, shape and content."""
    wide = np.ascontiguousarray(values.astype(np.int64) if values.dtype.kind in "iub" else values.astype(np.float64))
    return hashlib.sha256(repr(wide.shape).encode() + wide.tobytes()).hexdigest()[:16]


class Looks(Dataset[Batch]):
    """Looks at whole graphs: each sample is one of the batches.

    Args:
        batches: Them.
        times: How often each comes.
    """

    def __init__(self, batches: list[Batch], times: int = 1) -> None:
        self.batches = batches
        self.times = times

    def __len__(self) -> int:
        return len(self.batches) * self.times

    def __getitem__(self, key: Key) -> Batch:
        return self.batches[key.sample % len(self.batches)]

    def __getitems__(self, keys: list[Key]) -> Batch:
        """Fetches the batch of the only key."""
        return self[keys[0]]


class Drawn(Dataset[Batch]):
    """Looks that are drawn, each anew.

    Args:
        draw: Returns the look of a key.
        steps: How many an epoch has.
    """

    def __init__(self, draw: Callable[[Key], Batch], steps: int) -> None:
        self.draw = draw
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, key: Key) -> Batch:
        return self.draw(key)

    def __getitems__(self, keys: list[Key]) -> Batch:
        """Fetches the batch of the only key."""
        return self[keys[0]]


class GraphData(LightningDataModule):
    """Loaders of an opened graph.

    Args:
        opened: It.
        seed: Of a run.
    """

    def __init__(self, opened: Opened, seed: NonNegativeInt) -> None:
        super().__init__()
        self.opened = opened
        self.seed = seed

    def train_dataloader(self) -> DataLoader[Batch]:
        """Returns as many looks at the graph as an epoch has steps."""
        alone(self.opened.graph.name)
        return looks(Looks([self.opened.training()], self.opened.options.steps), self.seed, train=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Returns the graph with its validation labels."""
        return looks([self.opened.validation()])

    def test_dataloader(self) -> DataLoader[Batch]:
        """Returns the graph with its test labels, with and without the edges of cold nodes."""
        return looks(self.opened.tests())


def alone(name: str) -> None:
    """Refuses several processes that train together.

    Args:
        name: Of the graph.

    Raises:
        KDBenchError: There are several.
    """
    if share()[1] > 1:
        raise KDBenchError(
            f"trainer.devices={share()[1]}: {name} is one graph, which processes cannot share: leave out trainer=ddp"
        )


def looks(found: Dataset[Batch] | list[Batch], seed: int = 0, train: bool = False) -> DataLoader[Batch]:
    """Returns a loader of samples that are whole batches.

    Args:
        found: A data set of such, or they themselves.
        seed: Of a run.
        train: Whether they come in an order of their own in each epoch.
    """
    held = Looks(found) if isinstance(found, list) else found
    sampler = EpochSampler(len(held), seed, train=train)  # type: ignore[arg-type]
    return DataLoader(Batches(held, None), 1, sampler=sampler, collate_fn=_only)


def _only(batch: Any) -> Any:
    """Takes the place of a collation: the data set gives a whole batch."""
    return batch


def open_graph(options: Mapping[str, Any], store: Store) -> Opened:
    """Opens a data set and cuts its splits.

    Args:
        options: Of :class:`DataOptions`.
        store: Where made data lie.

    Raises:
        KDBenchError: Options or files that are not as they should be.
    """
    given = DataOptions(**check("data", DataOptions, options))
    return Opened(open_source(given.source, given.root, store, given.citations, given.directed, given.split), given)
