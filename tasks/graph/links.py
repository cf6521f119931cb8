"""Edges of a graph told from other pairs of nodes, by a network that has to forget some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from lightning import LightningDataModule
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.functional.classification import binary_auroc

from kdbench.base.collectives import normalizer
from kdbench.base.instantiate import instantiate
from kdbench.base.store import Store
from kdbench.errors import KDBenchError
from kdbench.features import Feature, Kind, Logits, Vector
from kdbench.functional.numerics import upcast
from kdbench.task import Batch, Counts, DatasetInfo, ExportPlan, Task
from tasks.graph import layout
from tasks.graph.data import VIEWS_UNDIRECTED, normalised, views
from tasks.graph.models import Network
from tasks.graph.operators import Sparse
from tasks.graph.pairs import PairData, PairInputs, Pairs, PairTargets, open_pairs
from tasks.graph.task import ENGINE, Around

#: Sets whose laws are drawn, and what they are called.
DRAWN = {"edges": "edges never seen", "forgotten": "edges to be forgotten", "others": "no edges"}


class LinkScores(Metric):
    """How well edges are told from other pairs, in percent.

    ``auc`` of edges that no training saw, ``forget_auc`` of those to be forgotten, each against pairs without an edge;
    ``member_auc`` of the forgotten against the edges never seen, by which somebody finds out what was once learned: 50
    where they are alike, below where they stand out as too unlikely. ``nll`` is the binary cross-entropy of the first.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in DRAWN:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, sets: Mapping[str, Tensor]) -> None:
        """Adds pairs.

        Args:
            scores: ``(P,)`` logits.
            sets: By name of :data:`DRAWN`, ``(P,)`` bool.
        """
        for name in DRAWN:
            getattr(self, name).append(scores[sets[name]].float())

    def compute(self) -> dict[str, Tensor]:
        """Returns the scores of all pairs so far."""
        edges, forgotten, others = (torch.cat([*getattr(self, name)]) for name in DRAWN)
        found = {"auc": _auc(edges, others), "nll": _cross_entropy(edges, others)}
        if len(forgotten):
            found |= {"forget_auc": _auc(forgotten, others), "member_auc": _auc(forgotten, edges)}
        return found


def _auc(high: Tensor, low: Tensor) -> Tensor:
    truth = torch.cat([torch.ones_like(high), torch.zeros_like(low)]).long()
    return 100 * binary_auroc(torch.cat([high, low]), truth, validate_args=False)


def _cross_entropy(edges: Tensor, others: Tensor) -> Tensor:
    truth = torch.cat([torch.ones_like(edges), torch.zeros_like(others)])
    return F.binary_cross_entropy_with_logits(torch.cat([edges, others]), truth)


class LinkTask(Task):
    """Tells edges from other pairs of nodes.

    The student alone is trained as if what is to be forgotten had never been there: it is what others are to equal.

    Args:
        data: Options of :class:`~tasks.graph.pairs.PairOptions`.
        store: Where made data lie.
        noise: Points of AUC that two runs differ by through chance; the engine reads it.
    """

    name: ClassVar[str] = "graph"
    capabilities: ClassVar[frozenset[str]] = frozenset({"forgets"})
    primary: ClassVar[str] = "forget_distance"
    aim: ClassVar[str] = "forget_auc"
    selection: ClassVar[str] = "nll"
    higher_is_better: ClassVar[bool] = False
    suffixes: ClassVar[tuple[str, ...]] = (".npz",)

    def __init__(self, data: Mapping[str, Any], store: Store, noise: float | None = None) -> None:
        self.options = {name: value for name, value in data.items() if name not in ENGINE}
        self.store = store
        self.restored: DatasetInfo | None = None

    @classmethod
    def kinds(cls, side: Mapping[str, Any]) -> dict[str, Kind]:
        """Taps are one vector a pair; then the score of each pair."""
        return {**dict.fromkeys(side.get("taps") or {}, Vector), "logits": Logits}

    # ---- data -------------------------------------------------------------------------------------------------

    @cached_property
    def opened(self) -> Pairs:
        """The graph."""
        return open_pairs(self.options, self.store)

    def prepare(self, progress: bool = True) -> None:
        """Makes or reads the graph."""
        _ = self.opened

    @property
    def features(self) -> int:
        """Features of a node."""
        return self.opened.features.shape[1] if self.restored is None else int(self.restored.inputs["features"])

    def dataset(self) -> DatasetInfo:
        """Returns what a record says of the graph; samples are edges."""
        if self.restored is not None:
            return self.restored
        opened, graph = self.opened, self.opened.graph
        return DatasetInfo(
            graph.name,
            graph.embedded,
            opened.digest,
            {"train": len(opened.learned), "val": len(opened.val), "test": len(opened.test)},
            learned=opened.taught,
            inputs={
                "features": graph.words.shape[1],
                "normalise": opened.options.normalise,
                "forgotten": len(opened.forgotten),
            },
            notes=graph.notes,
        )

    def restore(self, info: DatasetInfo) -> None:
        """Takes the features of a record."""
        self.restored = info

    def counts(self) -> Mapping[str, Counts]:
        """Returns the edges of each split, and those that are to be forgotten."""
        opened = self.opened
        return {
            "train": Counts(len(opened.learned), {"edges": len(opened.learned)}, unit="edges"),
            "val": Counts(len(opened.val), {"edges": len(opened.val)}, unit="edges"),
            "test": Counts(len(opened.test), {"edges": len(opened.test)}, {"forgotten": len(opened.forgotten)}),
        }

    def example(self) -> Batch:
        """Returns a pair of two nodes without words, which have no edge."""
        none = sp.csr_matrix((2, self.features), dtype=np.float32)
        return _whole(none, np.empty((0, 2), np.int64), np.array([[0, 1]]))

    def data(self, seed: int) -> LightningDataModule:
        """Returns the loaders."""
        return PairData(self.opened, seed)

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """Returns which pairs of a batch are to be forgotten."""
        return {"forgotten": lambda batch: batch.targets.sets["forgotten"]}

    # ---- models -----------------------------------------------------------------------------------------------

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """Creates a model, whose ``features`` come from the data."""
        model: nn.Module = instantiate("architecture", {"features": self.features, **architecture})
        return model

    def forward(self, model: nn.Module, inputs: PairInputs) -> Tensor:
        """Runs a model on pairs."""
        reads = getattr(model, "reads", VIEWS_UNDIRECTED)
        found = model(inputs.words, {view: inputs.views[view] for view in reads}, inputs.pairs)
        count = inputs.pairs.shape[1]
        if not isinstance(found, Tensor) or found.shape != (count,):
            shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise KDBenchError(f"{type(model).__name__} gives {shown}, expected scores ({count},) of pairs")
        return found

    def describe(self, outputs: Tensor, taps: Mapping[str, Tensor], batch: Batch) -> dict[str, Feature]:
        """Tapped tensors are one vector a pair; scores are a sigmoid's, with the mask of pairs that are distilled."""
        features: dict[str, Feature] = {}
        for name, value in taps.items():
            if value.dim() != 2 or len(value) != len(outputs):
                raise KDBenchError(
                    f"tap {name!r} has shape {tuple(value.shape)}, expected ({len(outputs)}, D): tap another module"
                )
            features[name] = Vector(value)
        return {**features, "logits": self.mark(Logits(outputs[:, None], law="bernoulli"), batch)}

    def mark(self, feature: Feature, batch: Batch) -> Feature:
        """Gives scores the mask of pairs that are distilled: those that are not to be forgotten."""
        if not isinstance(feature, Logits) or batch.distilled is None:
            return feature
        return replace(feature, mask=batch.distilled)

    def loss(self, model: nn.Module, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Mean binary cross-entropy of the labelled pairs; zero where there is none."""
        known = torch.ones_like(outputs) if batch.supervised is None else batch.supervised
        rows = F.binary_cross_entropy_with_logits(upcast(outputs), batch.targets.labels, reduction="none")
        return {"pairs": (rows * known).sum() / normalizer(known.sum())}

    # ---- scores -----------------------------------------------------------------------------------------------

    def metrics(self, split: str) -> MetricCollection:
        """Of edges never seen and of those to be forgotten."""
        return MetricCollection([LinkScores()], compute_groups=False)

    def score(self, metrics: MetricCollection, model: nn.Module, outputs: Tensor, batch: Batch) -> None:
        """Feeds pairs to the metrics."""
        metrics.update(outputs, batch.targets.sets)

    @torch.no_grad()
    def compare(self, models: Mapping[str, nn.Module], loader: Iterable[Batch]) -> Mapping[str, Mapping[str, float]]:
        """Returns ``forget_auc_cut`` of the teacher: its own, where it no longer reads the edges to be forgotten.

        That is what leaving them out of the graph does by itself, without any training.
        """
        if "teacher" not in models:
            return {}
        metric, model = LinkScores(), models["teacher"].eval()
        for batch in loader:
            metric.update(self.forward(model, batch.inputs).cpu(), {n: m.cpu() for n, m in batch.targets.sets.items()})
        return {"teacher": {"forget_auc_cut": float(metric.compute()["forget_auc"])}}

    # ---- what people ask for ----------------------------------------------------------------------------------

    def export(self, model: nn.Module) -> ExportPlan:
        """The model for one pair: dense features of the nodes within two steps of both, the pair first, and edges."""
        device = next(model.parameters()).device
        count, links = Network.neighbourhood
        draw = torch.Generator().manual_seed(0)
        words = (torch.rand(count, self.features, generator=draw) < 0.02).float().to(device)
        example, names, dynamic = [words], ["words"], {"words": {0: "nodes"}}
        for view in getattr(model, "reads", VIEWS_UNDIRECTED):
            parts = {part: torch.randint(count, (links,), generator=draw) for part in ("source", "target")}
            for part, value in {**parts, "weight": torch.full((links,), count / links)}.items():
                example.append(value.to(device))
                names.append(f"{view}_{part}")
                dynamic[names[-1]] = {0: f"{view}_edges"}
        module = OnePair(model, tuple(getattr(model, "reads", VIEWS_UNDIRECTED))).eval()
        return ExportPlan(module, tuple(example), tuple(names), ("logits",), dynamic, {"nodes": 2})

    @torch.no_grad()
    def picture(self, batch: Batch, models: Mapping[str, nn.Module]) -> Image.Image:
        """Draws, by model, how it scores edges never seen, those to be forgotten, and other pairs."""
        figure = Figure(figsize=(4.2 * max(len(models), 1), 3.4), dpi=90)
        FigureCanvasAgg(figure)
        for axes, (name, model) in zip(figure.subplots(1, len(models), squeeze=False)[0], models.items(), strict=True):
            said = self.forward(model.eval(), batch.inputs).sigmoid().numpy()
            for key, label in DRAWN.items():
                own = np.sort(said[batch.targets.sets[key].numpy()])
                axes.plot(own, np.linspace(0, 100, len(own)), label=label)
            axes.set_title(name, fontsize=10)
            axes.set_xlabel("probability of an edge", fontsize=9)
            axes.grid(alpha=0.3)
        figure.axes[0].set_ylabel("share of pairs below, %", fontsize=9)
        figure.axes[0].legend(fontsize=8, frameon=False)
        figure.tight_layout()
        stream = BytesIO()
        figure.savefig(stream, format="png")
        return Image.open(stream).convert("RGB")

    def read(self, path: Path) -> Batch:
        """Reads a graph of the user's, ``.npz`` in :mod:`tasks.graph.layout`, whose pairs are its edges."""
        graph = layout.read(path, path.stem)
        if graph.words.shape[1] != self.features:
            raise KDBenchError(f"{path}: {graph.words.shape[1]} features a node, expected {self.features}")
        normal = self.opened.options.normalise if self.restored is None else bool(self.restored.inputs["normalise"])
        return _whole(normalised(graph.words) if normal else graph.words, graph.edges, graph.edges)

    @torch.no_grad()
    def predictions(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Returns of each pair the probability that it is an edge."""
        said = self.forward(model.eval(), batch.inputs).sigmoid().tolist()
        pairs = batch.inputs.pairs.T.tolist()
        return [{"pair": pair, "probability": round(p, 4)} for pair, p in zip(pairs, said, strict=True)]


def _whole(words: sp.csr_matrix, edges: np.ndarray, pairs: np.ndarray) -> Batch:
    """Returns pairs of which nothing is known."""
    count = len(pairs)
    inputs = PairInputs(
        Sparse.of(words), views(edges, words.shape[0], VIEWS_UNDIRECTED), torch.from_numpy(pairs.T.copy())
    )
    sets = {name: torch.full((count,), name == "edges") for name in DRAWN}
    return Batch(inputs, PairTargets(torch.zeros(count), sets), torch.arange(count))


class OnePair(Around):
    """A model as what is exported: for the first two of some nodes, whose edges are given one by one."""

    def forward(self, words: Tensor, *parts: Tensor) -> Tensor:
        """Returns the score ``(1,)``, given dense features ``(N, V)`` and, by view, source, target and weight."""
        found: Tensor = self.model(words, self.given(parts), torch.tensor([[0], [1]], device=words.device))
        return found
