"""Edges of a graph to be told from other pairs, some of which a training is to forget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from lightning import LightningDataModule
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.utils.data import DataLoader

from kdbench.base import rng
from kdbench.base.digest import digest
from kdbench.base.instantiate import check
from kdbench.base.store import Store
from kdbench.data import Key
from kdbench.errors import KDBenchError
from kdbench.splits import limited
from kdbench.task import Batch
from tasks.graph.data import VIEWS_UNDIRECTED, Drawn, alone, arrays, hashed, looks, normalised, views
from tasks.graph.layout import Graph
from tasks.graph.operators import Sparse
from tasks.graph.sources import open_source

Share = Annotated[float, Field(gt=0, lt=0.5)]


class PairInputs(NamedTuple):
    """A graph of N nodes and P pairs of them.

    Attributes:
        words: ``(N, V)`` features.
        views: By name, matrices ``(N, N)`` of the edges that may be read (:func:`tasks.graph.data.views`).
        pairs: ``(2, P)`` nodes.
    """

    words: Sparse
    views: Mapping[str, Sparse]
    pairs: Tensor


class PairTargets(NamedTuple):
    """What is known of pairs.

    Attributes:
        labels: ``(P,)`` one for edges, zero for others.
        sets: ``(P,)`` bool by name: ``edges`` and ``others`` that a metric counts, and ``forgotten`` edges.
    """

    labels: Tensor
    sets: Mapping[str, Tensor]


@dataclass(frozen=True)
class PairOptions:
    """Options of ``data``.

    Attributes:
        source: Which data set: a key of :data:`~tasks.graph.sources.HOLDS`.
        root: Its folder; None for the embedded one.
        forget: Share of the edges that is to be forgotten.
        unlearn: Whether training has them to forget: not in the graph and not among the labelled pairs. False: they are
            learned as all others are.
        test: Share of the edges that is the test.
        val: Share of the edges that is validation.
        normalise: Whether the features of a node are divided by their sum.
        steps: Times that an epoch sees the graph.
        citations: Of the embedded data, options of :class:`~tasks.graph.citations.Citations`.
    """

    source: str
    root: str | None = None
    forget: Share = 0.05
    unlearn: bool = True
    test: Share = 0.1
    val: Share = 0.05
    normalise: bool = True
    steps: PositiveInt = 20
    citations: dict[str, Any] = field(default_factory=dict)


class Pairs:
    """A graph whose edges are cut into those that are learned, to be forgotten, validation and test.

    An edge in either direction is one; the cut is by the hash of its nodes. Against validation and test edges stand as
    many pairs without an edge, always the same.

    Attributes:
        graph: As it was read.
        edges: ``(E, 2)`` all of them, the smaller node first.
        forgotten: Rows of edges.
        val: Rows of edges.
        test: Rows of edges.
        learned: Rows of edges that training learns.
        digest: Of content and cuts.
        taught: Of what training and validation read.
    """

    def __init__(self, graph: Graph, options: PairOptions) -> None:
        self.graph, self.options = graph, options
        self.edges: np.ndarray = np.unique(np.sort(graph.edges, axis=1), axis=0)
        count = len(self.edges)
        if count < 40:
            raise KDBenchError(
                f"{graph.name}: found {count} edges, expected 40 at least to learn, to forget and to test"
            )
        rest: np.ndarray = np.arange(count)
        cuts = {}
        for name in ("test", "val", "forget"):
            names = [f"{a}-{b}" for a, b in self.edges[rest]]
            chosen = limited(names, max(1, round(getattr(options, name) * count)), f"edges {name}")
            cuts[name], rest = rest[chosen], np.delete(rest, chosen)
        self.test, self.val, self.forgotten = cuts["test"], cuts["val"], cuts["forget"]
        self.learned: np.ndarray = rest if options.unlearn else np.sort(np.concatenate([rest, self.forgotten]))
        self.features = normalised(graph.words) if options.normalise else graph.words
        self.words = Sparse.of(self.features)
        self.seen = views(self.edges[self.learned], len(graph), VIEWS_UNDIRECTED)
        self.taught = digest(
            [
                *(hashed(x) for x in (self.edges[self.learned], self.edges[self.val], *arrays(self.features))),
                hashed(self.edges[self.forgotten]),
            ]
        )
        self.digest = digest([self.taught, hashed(self.edges[self.test])])

    def others(self, count: int, *names: str | int, seed: int = 0) -> np.ndarray:
        """Draws pairs of different nodes without an edge that training sees, ``(count, 2)``."""
        draw, nodes = rng.numpy(seed, "pairs", *names), len(self.graph)
        known = {*(self.edges[self.learned] @ [nodes, 1]).tolist()}
        found: np.ndarray = np.empty((0, 2), np.int64)
        for _ in range(100):
            drawn = np.sort(draw.integers(nodes, size=(2 * count, 2)), axis=1)
            new = (drawn[:, 0] < drawn[:, 1]) & ~np.isin(drawn @ [nodes, 1], [*known])
            found = np.concatenate([found, drawn[new]])
            if len(found) >= count:
                return found[:count]
        raise KDBenchError(f"{self.graph.name}: almost every two of its nodes have an edge; there is nothing to tell")

    def training(self, key: Key) -> Batch:
        """Returns what is learned, what is to be forgotten, and as many other pairs as are learned, drawn anew."""
        learned, forgotten = self.learned, self.forgotten if self.options.unlearn else self.forgotten[:0]
        others = self.others(len(learned), key.epoch, key.sample, seed=key.seed)
        return self._batch({"edges": learned, "forgotten": forgotten}, others, ("edges", "others"))

    def validation(self) -> Batch:
        """Returns validation edges and other pairs."""
        return self._batch({"edges": self.val}, self.others(len(self.val), "val"))

    def tests(self) -> Batch:
        """Returns test edges, forgotten ones, and other pairs."""
        return self._batch({"edges": self.test, "forgotten": self.forgotten}, self.others(len(self.test), "test"))

    def _batch(
        self, edges: Mapping[str, np.ndarray], others: np.ndarray, labelled: tuple[str, ...] | None = None
    ) -> Batch:
        """Returns pairs; all are labelled, or of training those of some sets."""
        rows = np.concatenate([*edges.values()])
        sizes = {**{name: len(own) for name, own in edges.items()}, "others": len(others)}
        names = np.repeat([*sizes], [*sizes.values()])
        sets = {name: torch.from_numpy(names == name) for name in ("edges", "forgotten", "others")}
        pairs = torch.from_numpy(np.concatenate([self.edges[rows], others]).T.copy())
        ids = torch.from_numpy(np.concatenate([rows, len(self.edges) + np.arange(len(others))]))
        known = None if labelled is None else torch.from_numpy(np.isin(names, labelled))
        targets = PairTargets((~sets["others"]).float(), sets)
        kept = ~sets["forgotten"] if labelled else None
        return Batch(PairInputs(self.words, self.seen, pairs), targets, ids, known, distilled=kept)


class PairData(LightningDataModule):
    """Loaders of an opened graph.

    Args:
        pairs: It.
        seed: Of a run.
    """

    def __init__(self, pairs: Pairs, seed: int) -> None:
        super().__init__()
        self.pairs = pairs
        self.seed = seed

    def train_dataloader(self) -> DataLoader[Batch]:
        """Returns as many looks at the graph as an epoch has steps."""
        alone(self.pairs.graph.name)
        return looks(Drawn(self.pairs.training, self.pairs.options.steps), self.seed, train=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Returns validation edges and other pairs."""
        return looks([self.pairs.validation()])

    def test_dataloader(self) -> DataLoader[Batch]:
        """Returns test edges, forgotten ones and other pairs."""
        return looks([self.pairs.tests()])


def open_pairs(options: Mapping[str, Any], store: Store) -> Pairs:
    """Opens a data set and cuts its edges.

    Args:
        options: Of :class:`PairOptions`.
        store: Where made data lie.

    Raises:
        KDBenchError: Options or files that are not as they should be.
    """
    given = PairOptions(**check("data", PairOptions, options))
    return Pairs(open_source(given.source, given.root, store, given.citations, False), given)
