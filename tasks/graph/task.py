"""Nodes of a graph: classes of papers by their words and by what they cite, taught to networks that see words alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from lightning import LightningDataModule
from PIL.Image import Image
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kdbench.base.collectives import normalizer
from kdbench.base.instantiate import instantiate, locate
from kdbench.base.store import Store
from kdbench.errors import KDBenchError, nearest
from kdbench.features import Feature, Kind, Logits, Nodes, Vector
from kdbench.functional.numerics import upcast
from kdbench.task import Batch, Counts, DatasetInfo, ExportPlan, Task
from tasks.graph import layout
from tasks.graph.data import HYPER, GraphData, Inputs, Opened, Targets, open_graph, views
from tasks.graph.hyper import matrix, memberships
from tasks.graph.layout import UNKNOWN
from tasks.graph.metrics import Scores, structure_map
from tasks.graph.models import PLACES, Network, PositionMLP
from tasks.graph.operators import Edges, Sparse
from tasks.graph.picture import render

#: Keys of ``data`` that the engine and the presets read.
ENGINE = ("name", "task", "protocol")
#: What makes a view that is not always there.
MADE = {"cites": "data.directed=true reads tables with directions", HYPER: "data.hyper=true makes it"}
#: Taps of this name are one vector a node, others nodes of the graph.
VECTOR = "pooled"


class GraphTask(Task):
    """Tells the class of nodes.

    Args:
        data: Options of :class:`~tasks.graph.data.DataOptions`.
        store: Where made data lie.
        noise: Points of accuracy that two runs differ by through chance; the engine reads it.
    """

    name: ClassVar[str] = "graph"
    capabilities: ClassVar[frozenset[str]] = frozenset({"single_label", "sample_id", "node_scores", "hyperedges"})
    primary: ClassVar[str] = "accuracy"
    unit: ClassVar[str | None] = "%"
    metric_law: ClassVar[str] = "percent"
    suffixes: ClassVar[tuple[str, ...]] = (".npz",)

    def __init__(self, data: Mapping[str, Any], store: Store, noise: float = 0.0) -> None:
        self.options = {name: value for name, value in data.items() if name not in ENGINE}
        self.store = store
        self.restored: DatasetInfo | None = None

    @classmethod
    def kinds(cls, side: Mapping[str, Any]) -> dict[str, Kind]:
        """Taps are nodes, ``pooled`` one vector a node; then the scores of each node."""
        taps = side.get("taps") or {}
        return {**{name: Vector if name == VECTOR else Nodes for name in taps}, "logits": Logits}

    # ---- data -------------------------------------------------------------------------------------------------

    @cached_property
    def opened(self) -> Opened:
        """The graph."""
        return open_graph(self.options, self.store)

    def prepare(self, progress: bool = True) -> None:
        """Makes or reads the graph."""
        _ = self.opened

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names."""
        return self.opened.graph.classes if self.restored is None else tuple(self.restored.classes)

    @property
    def features(self) -> int:
        """Features of a node."""
        return self.opened.graph.words.shape[1] if self.restored is None else int(self.restored.inputs["features"])

    @property
    def seen(self) -> int:
        """Nodes that training sees."""
        return len(self.opened.seen) if self.restored is None else self.restored.sizes["train"]

    @property
    def views(self) -> tuple[str, ...]:
        """What networks may read of the edges."""
        return self.opened.views if self.restored is None else tuple(self.restored.inputs["views"])

    @property
    def self_hyperedges(self) -> bool:
        """Whether each node is a hyperedge by itself."""
        given = None if self.restored is None else self.restored.inputs.get("self_hyperedges", True)
        return self.opened.options.self_hyperedges if given is None else bool(given)

    def dataset(self) -> DatasetInfo:
        """Returns what a record says of the graph. Its training samples are all nodes that training sees."""
        if self.restored is not None:
            return self.restored
        opened, graph = self.opened, self.opened.graph
        scored = opened.cold if len(opened.cold) else opened.tran
        known: dict[str, Any] = {}
        if graph.law is not None:
            right = graph.law.argmax(1) == graph.labels
            known = {"reader": {"cold": round(100 * float(right[scored].mean()), 2)}}
        return DatasetInfo(
            graph.name,
            graph.embedded,
            opened.digest,
            {"train": len(opened.seen), "val": len(opened.val), "test": len(scored)},
            learned=opened.learned,
            classes=graph.classes,
            inputs={
                "features": graph.words.shape[1],
                "normalise": bool(self.options.get("normalise", True)),
                "views": list(opened.views),
                **({"self_hyperedges": opened.options.self_hyperedges} if opened.options.hyper else {}),
                "labelled": len(opened.train),
                **known,
            },
            notes=opened.notes,
        )

    def restore(self, info: DatasetInfo) -> None:
        """Takes classes and features of a record."""
        self.restored = info

    def example(self) -> Batch:
        """Returns a graph of one node without words, which has no edge."""
        none, pairs = sp.csr_matrix((1, self.features), dtype=np.float32), np.empty((0, 2), np.int64)
        return self._whole(none, pairs, pairs)

    def _whole(self, words: sp.csr_matrix, edges: np.ndarray, members: np.ndarray) -> Batch:
        """Returns a graph without labels."""
        count = words.shape[0]
        both = torch.from_numpy(np.concatenate([edges, edges[:, ::-1]]).T.copy())
        seen = views(edges, count, tuple(view for view in self.views if view != HYPER))
        if HYPER in self.views:
            seen[HYPER] = Sparse.of(matrix(members, count, self.self_hyperedges))
        seen[PLACES] = Sparse.of(sp.csr_matrix((count, self.seen), dtype=np.float32))  # nodes that training did not see
        inputs = Inputs(Sparse.of(words), seen, both)
        return Batch(
            inputs, Targets(torch.full((count,), UNKNOWN), {}, torch.from_numpy(members.T.copy())), torch.arange(count)
        )

    def counts(self) -> Mapping[str, Counts]:
        """Returns the labelled nodes by split and class."""
        opened, labels = self.opened, self.opened.graph.labels
        scored = opened.cold if len(opened.cold) else opened.tran
        found = {}
        for split, samples, known in (
            ("train", opened.seen, opened.train),
            ("val", opened.val, opened.val),
            ("test", scored, scored),
        ):
            each = np.bincount(labels[known], minlength=len(self.classes)).tolist()
            found[split] = Counts(len(samples), dict(zip(self.classes, each, strict=True)), unit="nodes")
        return found

    def data(self, seed: int) -> LightningDataModule:
        """Returns the loaders."""
        return GraphData(self.opened, seed)

    def augmented(self) -> bool:
        """A graph is seen as it is."""
        return False

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """Returns the hyperedges of a batch, and how it is with noise on its features."""
        return {"hyperedges": lambda batch: batch.targets.members, "noised": _noised}

    # ---- models -----------------------------------------------------------------------------------------------

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """Creates a model; ``features``, ``classes`` and ``nodes`` come from the data, where it asks for them."""
        facts = {"features": self.features, "classes": len(self.classes), "nodes": self.seen}
        asked = inspect.signature(locate(architecture["_target_"])).parameters
        given = {name: value for name, value in facts.items() if name in asked}
        model: nn.Module = instantiate("architecture", {**given, **architecture})
        self._read(model)
        if isinstance(model, PositionMLP) and self.restored is None:
            model.place(torch.from_numpy(self.opened.positions(model.table.shape[1])))
        return model

    def _read(self, model: nn.Module) -> tuple[str, ...]:
        """Returns what a model reads of the edges: what its ``reads`` names, all there is where it has none.

        Raises:
            KDBenchError: The data have no such view.
        """
        wanted = tuple(getattr(model, "reads", self.views))
        absent = next((view for view in wanted if view not in (*self.views, PLACES)), None)
        if absent is not None:
            raise KDBenchError(
                f"{type(model).__name__} reads the view {absent!r}, which these data do not have: "
                f"{nearest(absent, self.views)}; {MADE.get(absent, MADE['cites'])}"
            )
        return wanted

    def forward(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Runs a model on a graph, of whose edges it is given what it reads and nothing else."""
        found = model(inputs.words, {view: inputs.views[view] for view in self._read(model)})
        count = inputs.words.size[0]
        if not isinstance(found, Tensor) or found.shape != (count, len(self.classes)):
            shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise KDBenchError(
                f"{type(model).__name__} gives {shown}, expected logits ({count}, {len(self.classes)}) of nodes"
            )
        return found

    def describe(self, outputs: Tensor, taps: Mapping[str, Tensor], batch: Batch) -> dict[str, Feature]:
        """Tapped nodes come with all edges, whose numbers count their rows; scores with the mask of those distilled."""
        features: dict[str, Feature] = {}
        owner = torch.zeros(len(outputs), dtype=torch.long, device=outputs.device)
        for name, value in taps.items():
            if value.dim() != 2 or len(value) != len(outputs):
                raise KDBenchError(
                    f"tap {name!r} has shape {tuple(value.shape)}, expected ({len(outputs)}, D): tap another module"
                )
            nodes = Nodes(value, batch.inputs.edges, owner, mask=batch.distilled)
            features[name] = Vector(value) if name == VECTOR else nodes
        features["logits"] = self.mark(Logits(outputs), batch)
        return features

    def mark(self, feature: Feature, batch: Batch) -> Feature:
        """Gives scores the mask of nodes that are distilled; where all of these have a label, their true classes."""
        if not isinstance(feature, Logits):
            return feature
        labels, mask = batch.targets.labels, batch.distilled
        known = mask is not None and batch.supervised is not None and bool(batch.supervised[mask].all())
        return replace(feature, mask=mask, target=labels if known else None)

    def loss(self, model: nn.Module, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Mean cross-entropy of the labelled nodes; zero where there is none."""
        labels = batch.targets.labels
        if batch.supervised is not None:
            labels = torch.where(batch.supervised, labels, UNKNOWN)
        total = F.cross_entropy(upcast(outputs), labels, ignore_index=UNKNOWN, reduction="sum")
        return {"nodes": total / normalizer((labels != UNKNOWN).sum())}

    # ---- scores -----------------------------------------------------------------------------------------------

    def metrics(self, split: str) -> MetricCollection:
        """Of cold nodes, of those that training saw, and of parts of these."""
        return MetricCollection([Scores(len(self.classes))], compute_groups=False)

    def score(self, metrics: MetricCollection, model: nn.Module, outputs: Tensor, batch: Batch) -> None:
        """Feeds a graph to the metrics."""
        metrics.update(outputs, batch.targets.labels, batch.targets.sets)

    def contributions(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Returns for each scored node whether its class is found, and one; graphs for other metrics have none."""
        sets, labels = batch.targets.sets, batch.targets.labels
        rows = sets["scored"] if "scored" in sets else torch.zeros_like(labels, dtype=torch.bool)
        hit = outputs.argmax(1)[rows] == labels[rows]
        return torch.stack([hit, torch.ones_like(hit)], 1)

    @torch.no_grad()
    def compare(self, models: Mapping[str, nn.Module], loader: Iterable[Batch]) -> Mapping[str, Mapping[str, float]]:
        """Returns ``structure_map`` of each model with a module ``hidden``, and ``agreement`` with the teacher.

        Both are of the first test graph: agreement of its scored nodes, in percent; of all its nodes how well what the
        model holds of them tells their edges.
        """
        batch = next(iter(loader))
        found: dict[str, dict[str, float]] = {name: {} for name in models}
        said = {}
        for name, model in models.items():
            said[name], held = self._seen(model, batch)
            if held is not None:
                found[name]["structure_map"] = structure_map(held, batch.inputs.edges)
        for name in models.keys() - {"teacher"} if "teacher" in models else ():
            same = (said[name] == said["teacher"])[batch.targets.sets["scored"]]
            found[name]["agreement"] = 100 * float(same.float().mean())
        return found

    def _seen(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Returns the classes that a model says, and what its classifier reads where it says so."""
        held: list[Tensor] = []
        hidden = getattr(model, "hidden", None)
        hook = hidden.register_forward_hook(lambda *given: held.append(given[2])) if hidden is not None else None
        try:
            said = self.forward(model.eval(), batch.inputs).argmax(1)
        finally:
            if hook is not None:
                hook.remove()
        return said, held[-1] if held else None

    # ---- what people ask for ----------------------------------------------------------------------------------

    def export(self, model: nn.Module) -> ExportPlan:
        """The model for one node: of dense features, and where it reads edges, of the nodes within two steps too.

        A graph network takes these nodes, the one that is asked about first, and of every view of their edges source,
        target and weight; it gives the logits of the first. One that reads positions takes the node alone and which
        rows of its table count.
        """
        read = self._read(model)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        count, links = getattr(model, "neighbourhood", Network.neighbourhood) if read else (1, 0)
        draw = torch.Generator().manual_seed(0)
        words = (torch.rand(count, self.features, generator=draw) < 0.02).float().to(device)
        if not read:
            return ExportPlan(Alone(model).eval(), (words,), ("words",), ("logits",), {"words": {0: "batch"}})
        weight = torch.full((links,), count / links, device=device)
        example, names, dynamic = [words], ["words"], {"words": {0: "nodes"}}
        for view in read:
            rows = self.seen if view == PLACES else count
            source, target = (torch.randint(n, (links,), generator=draw).to(device) for n in (rows, count))
            for part, value in (("source", source), ("target", target), ("weight", weight)):
                example.append(value.clone())
                names.append(f"{view}_{part}")
                dynamic[names[-1]] = {0: f"{view}_edges"}
        return ExportPlan(Around(model, read).eval(), tuple(example), tuple(names), ("logits",), dynamic)

    @torch.no_grad()
    def picture(self, batch: Batch, models: Mapping[str, nn.Module]) -> Image:
        """Two steps around the cold node on which the last two models differ and which has most neighbours."""
        said = {name: self.forward(model.eval(), batch.inputs).argmax(1).numpy() for name, model in models.items()}
        labels, edges = batch.targets.labels.numpy(), batch.inputs.edges.numpy()
        scored = np.flatnonzero(batch.targets.sets["scored"].numpy())
        degree = np.minimum(np.bincount(edges[1], minlength=len(labels))[scored], 8)
        last = said[[*said][-1]][scored]
        other = said[[*said][-2]][scored] if len(said) > 1 else last
        gained = (last == labels[scored]).astype(int) - (other == labels[scored])
        centre = int(scored[np.lexsort((degree, gained))[-1]])
        opened = self.opened
        shown = np.where(labels == UNKNOWN, opened.graph.labels, labels)
        arrival = opened.graph.arrival
        ordered = scored if arrival is None else scored[np.argsort(arrival[scored], kind="stable")]
        return render(centre, edges, shown, said, ordered, self.classes, opened.graph.blank)

    def read(self, path: Path) -> Batch:
        """Reads a graph of the user's, ``.npz`` in :mod:`tasks.graph.layout`; its labels are not looked at."""
        graph = layout.read(path, path.stem)
        if graph.words.shape[1] != self.features:
            raise KDBenchError(f"{path}: {graph.words.shape[1]} features a node, expected {self.features}")
        normal = self.opened.options.normalise if self.restored is None else bool(self.restored.inputs["normalise"])
        total = np.abs(graph.words).sum(1).A1
        words = sp.diags(1 / np.where(total > 0, total, 1)) @ graph.words if normal else graph.words
        return self._whole(sp.csr_matrix(words, dtype=np.float32), graph.edges, memberships(graph))

    @torch.no_grad()
    def show(self, batch: Batch, model: nn.Module, name: str) -> Image:
        """Two steps around the node with most neighbours, with what the model says."""
        said = self.forward(model.eval(), batch.inputs).argmax(1).numpy()
        edges = batch.inputs.edges.numpy()
        centre = int(np.bincount(edges[1], minlength=len(said)).argmax())
        unknown = np.full(len(said), UNKNOWN)
        return render(centre, edges, unknown, {name: said}, np.empty(0, np.int64), self.classes)

    @torch.no_grad()
    def predictions(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Returns of each node its class and the probability of that."""
        laws = self.forward(model.eval(), batch.inputs).softmax(1)
        best = laws.max(1)
        return [
            {"node": node, "class": self.classes[c], "probability": round(p, 4)}
            for node, (c, p) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        ]


def _noised(batch: Batch, generator: torch.Generator) -> Batch:
    """Returns a batch each of whose features is multiplied by a number of mean and deviation one."""
    words = batch.inputs.words
    factor = 1 + torch.randn(words.values.shape, generator=generator).to(words.values)
    return batch.with_inputs(batch.inputs._replace(words=words._replace(values=words.values * factor)))


class Alone(nn.Module):
    """A model that reads no edges, as what is exported.

    Args:
        model: It.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, words: Tensor) -> Tensor:
        """Returns logits ``(N, classes)`` of dense features ``(N, V)``."""
        found: Tensor = self.model(words, {})
        return found


class Around(nn.Module):
    """A graph network as what is exported: for the first of some nodes, whose edges are given one by one.

    Args:
        model: It.
        reads: Its views, in the order of the inputs.
    """

    def __init__(self, model: nn.Module, reads: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.reads = reads

    def forward(self, words: Tensor, *parts: Tensor) -> Tensor:
        """Returns logits ``(1, classes)`` of dense features ``(N, V)`` and, by view, source, target and weight."""
        found: Tensor = self.model(words, self.given(parts))
        return found[:1]

    def given(self, parts: tuple[Tensor, ...]) -> dict[str, Edges]:
        """Returns the edges by view."""
        return {view: Edges(*parts[3 * i : 3 * i + 3]) for i, view in enumerate(self.reads)}
