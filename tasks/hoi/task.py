"""Human-object interaction: sub-activities of people and affordances of objects at every step, or labels of clips."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from lightning import LightningDataModule
from PIL.Image import Image
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kdbench.base.collectives import normalizer
from kdbench.base.instantiate import instantiate, locate
from kdbench.base.store import Store
from kdbench.errors import KDBenchError, nearest
from kdbench.features import Feature, Kind, Law, Logits, Nodes, Vector
from kdbench.functional.numerics import upcast
from kdbench.task import Batch, Counts, DatasetInfo, ExportPlan, Task
from tasks.hoi.batches import Inputs, Scale, collate, sample
from tasks.hoi.data import Clips, open_clips
from tasks.hoi.layout import CLIP, DTYPES, HUMAN, OBJECT, UNKNOWN, Meta, Video, arrays, check
from tasks.hoi.metrics import Scores, segments
from tasks.hoi.models import TARGETS
from tasks.hoi.models.attention import attended
from tasks.hoi.picture import Row, Track, render
from tasks.overlap import overlaps

#: Keys of ``data`` that the engine and the presets read.
ENGINE = ("name", "task", "protocol")
#: ``<tap>.attention`` is that of the graph which the nodes of ``<tap>`` come from.
ATTENTION = ".attention"
#: Taps that are one vector a video.
POOLED = "pooled"

Outputs = dict[str, Tensor]


class HOI(Task):
    """Tells what people do and what objects are for.

    Args:
        data: Options of :class:`~tasks.hoi.data.DataOptions`.
        store: Where converted data lie.
        object_weight: Weight of the loss of objects, beside that of people.
        noise: Points of macro-F1 that two runs differ by through chance; the engine reads it.
    """

    name: ClassVar[str] = "hoi"
    capabilities: ClassVar[frozenset[str]] = frozenset({"single_label", "sample_id", "meta"})
    primary: ClassVar[str] = "macro_f1"
    unit: ClassVar[str | None] = "%"
    metric_law: ClassVar[str] = "f1"
    suffixes: ClassVar[tuple[str, ...]] = (".npz",)

    def __init__(
        self, data: Mapping[str, Any], store: Store, object_weight: NonNegativeFloat = 1.0, noise: float = 0.0
    ) -> None:
        self.options = {name: value for name, value in data.items() if name not in ENGINE}
        self.store = store
        self.object_weight = object_weight
        self.restored: DatasetInfo | None = None

    @classmethod
    def kinds(cls, side: Mapping[str, Any]) -> dict[str, Kind]:
        """Taps are nodes, or vectors where their name says ``pooled``; then the scores of each head."""
        taps = side.get("taps") or {}
        for name in taps:
            bare = name.removesuffix(ATTENTION)
            if bare not in taps:
                raise KDBenchError(f"pair: there is no tap {bare!r} beside {name!r}: {nearest(bare, taps)}")
        nodes = {name: Vector if name == POOLED else Nodes for name in taps if not name.endswith(ATTENTION)}
        targets = (side.get("architecture") or {}).get("targets") or (HUMAN, OBJECT)
        # What reads one head reads that of people, whose score is primary.
        return {**nodes, **{name: Logits for name in sorted(targets, reverse=True)}}

    # ---- data -------------------------------------------------------------------------------------------------

    @cached_property
    def clips(self) -> Clips:
        """The data set."""
        return open_clips(self.options, self.store)

    def prepare(self, progress: bool = True) -> None:
        """Makes or converts the data, once."""
        _ = self.clips

    @cached_property
    def meta(self) -> Meta:
        """What the values of nodes and edges mean; of a restored task without the videos."""
        if self.restored is None:
            return self.clips.layout.meta
        held = {key: self.restored.inputs[key] for key in ("mode", "features", "classes", "categories", "rate")}
        return Meta(name=self.restored.name, videos={}, **held)

    @cached_property
    def scale(self) -> Scale:
        """How values are scaled."""
        return self.clips.scale if self.restored is None else Scale(**self.restored.inputs["scale"])

    @property
    def people(self) -> int:
        """People in a video."""
        return self.clips.people if self.restored is None else int(self.restored.inputs["people"])

    @property
    def steps(self) -> int:
        """Steps of the longest video."""
        return self.clips.steps if self.restored is None else int(self.restored.inputs["steps"])

    @property
    def objects(self) -> int:
        """Most objects of a video."""
        return self.clips.objects if self.restored is None else int(self.restored.inputs["objects"])

    def dataset(self) -> DatasetInfo:
        """Returns what a record says of the data set."""
        if self.restored is not None:
            return self.restored
        clips, meta, scale = self.clips, self.meta, self.scale
        return DatasetInfo(
            meta.name,
            clips.layout.embedded,
            clips.digest,
            {"train": len(clips.train), "val": len(clips.val), "test": len(clips.test)},
            learned=clips.learned,
            fold=clips.fold.name,
            classes=meta.classes[HUMAN] or meta.classes[CLIP],
            inputs={
                "mode": meta.mode,
                "rate": meta.rate,
                "features": {kind: list(names) for kind, names in meta.features.items()},
                "classes": {kind: list(names) for kind, names in meta.classes.items()},
                "categories": list(meta.categories),
                "steps": clips.steps,
                "people": clips.people,
                "objects": clips.objects,
                "scale": {"mean": dict(scale.mean), "std": dict(scale.std), "categories": scale.categories},
            },
        )

    def restore(self, info: DatasetInfo) -> None:
        """Takes classes, features and scale of a record."""
        self.restored = info

    def example(self) -> Batch:
        """Returns a video in which all values are average and everybody is there."""
        meta, steps, nodes = self.meta, self.steps, self.people + self.objects
        width = {kind: len(names) for kind, names in meta.features.items()}
        inputs = Inputs(
            torch.zeros(1, steps, self.people, width[HUMAN]),
            torch.zeros(1, steps, self.objects, width[OBJECT] + len(meta.categories)),
            torch.zeros(1, steps, nodes, nodes, width["edge"]),
            torch.ones(1, steps, nodes, dtype=torch.bool),
        )
        targets = {
            HUMAN: torch.full((1, steps, self.people), UNKNOWN),
            OBJECT: torch.full((1, steps, self.objects), UNKNOWN),
            CLIP: torch.zeros(1, len(meta.classes.get(CLIP, ()))),
        }
        return Batch(inputs, targets, torch.tensor([0]))

    def counts(self) -> Mapping[str, Counts]:
        """Returns the labelled steps of people by split and sub-activity."""
        names = self.meta.classes[HUMAN]
        found = {}
        for split in ("train", "val", "test"):
            samples = getattr(self.clips, split)
            labels = torch.cat([one.targets[HUMAN].flatten() for one in samples])
            steps = labels[labels != UNKNOWN].bincount(minlength=len(names)).tolist()
            found[split] = Counts(len(samples), dict(zip(names, steps, strict=True)), unit="steps")
        return found

    def data(self, seed: int) -> LightningDataModule:
        """Returns the loaders."""
        return self.clips.module(seed)

    def augmented(self) -> bool:
        """Says whether training samples are cropped, noised or lack objects."""
        return self.clips.transforms.active

    # ---- models -----------------------------------------------------------------------------------------------

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """Creates a model; ``features`` and ``classes`` come from the data, where it asks for them."""
        meta = self.meta
        features = {kind: len(names) for kind, names in meta.features.items()}
        features[OBJECT] += len(meta.categories)
        facts = {"features": features, "classes": {kind: len(names) for kind, names in meta.classes.items()}}
        asked = inspect.signature(locate(architecture["_target_"])).parameters
        for target in architecture.get("targets") or ():
            if not meta.classes.get(target):
                known = [name for name, names in meta.classes.items() if names]
                raise KDBenchError(
                    f"architecture.targets: {meta.name} has no labels for {target!r}: {nearest(str(target), known)}"
                )
        given = {name: value for name, value in facts.items() if name in asked}
        model: nn.Module = instantiate("architecture", {**given, **architecture})
        return model

    def forward(self, model: nn.Module, inputs: Inputs) -> Outputs:
        """Runs a model on videos."""
        found = model(*inputs)
        if not isinstance(found, dict) or not found.keys() <= {*TARGETS} or not found:
            raise KDBenchError(
                f"{type(model).__name__} gives {type(found).__name__}, expected logits by target: {', '.join(TARGETS)}"
            )
        for target, logits in found.items():
            classes = len(self.meta.classes.get(target, ()))
            if not isinstance(logits, Tensor) or logits.shape[-1] != classes:
                shown = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise KDBenchError(
                    f"{type(model).__name__} gives {shown} for {target!r}, expected (..., {classes}) for the classes "
                    f"of {self.meta.name}"
                )
        return found

    def describe(self, outputs: Outputs, taps: Mapping[str, Tensor], batch: Batch) -> dict[str, Feature]:
        """Tapped nodes are those that are there, joined within each step; scores come with their true classes."""
        features: dict[str, Feature] = {}
        for name, value in taps.items():
            if name.endswith(ATTENTION):
                continue
            if name == POOLED:
                features[name] = Vector(value)
            else:
                features[name] = self._nodes(name, value, taps.get(name + ATTENTION), batch)
        for target in sorted(outputs, reverse=True):
            law: Law = "bernoulli" if target == CLIP else "categorical"
            features[target] = self.mark(Logits(outputs[target], -1, law=law), batch)
        return features

    def _nodes(self, name: str, value: Tensor, attention: Tensor | None, batch: Batch) -> Nodes:
        mask = batch.inputs.mask
        if value.shape[:-1] != mask.shape:
            raise KDBenchError(
                f"tap {name!r} has shape {tuple(value.shape)}, expected nodes ({', '.join(map(str, mask.shape))}, D): "
                "tap another module"
            )
        graph = _graph(batch)
        weights = None if attention is None else attention[graph["pairs"]].mean(-1)
        return Nodes(value[mask], graph["edges"], graph["owner"], weights)

    def mark(self, feature: Feature, batch: Batch) -> Feature:
        """Gives scores the mask of nodes that are there and have a label, and the true classes."""
        if not isinstance(feature, Logits):
            return feature
        if feature.law == "bernoulli":
            mask = torch.ones(len(feature.values), dtype=torch.bool, device=feature.values.device)
            return replace(feature, mask=mask if batch.distilled is None else batch.distilled)
        target = batch.targets[self._whose(feature.values)]
        mask = target != UNKNOWN
        if batch.distilled is not None:
            mask = mask & batch.distilled[:, None, None]
        return replace(feature, mask=mask, target=target if batch.supervised is None else None)

    def _whose(self, values: Tensor) -> str:
        """Says whether scores ``(B, T, K, classes)`` are of people or of objects, which stored ones do not tell."""
        classes = {kind: len(self.meta.classes[kind]) for kind in (HUMAN, OBJECT)}
        if classes[HUMAN] == classes[OBJECT]:
            return HUMAN if values.shape[2] == self.people else OBJECT
        return HUMAN if values.shape[-1] == classes[HUMAN] else OBJECT

    def loss(self, model: nn.Module, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of labelled nodes; of clips the mean binary one of all classes. Zero where nothing counts."""
        terms = {}
        for target, logits in outputs.items():
            truth, known = batch.targets[target], batch.supervised
            if target == CLIP:
                rows = F.binary_cross_entropy_with_logits(upcast(logits), truth, reduction="none").mean(1)
                counts = torch.ones_like(rows) if known is None else known.to(rows.dtype)
                terms[target] = (rows * counts).sum() / normalizer(counts.sum())
                continue
            if known is not None:
                truth = torch.where(known[:, None, None], truth, UNKNOWN)
            total = F.cross_entropy(
                upcast(logits).flatten(0, -2), truth.flatten(), ignore_index=UNKNOWN, reduction="sum"
            )
            terms[target] = total / normalizer((truth != UNKNOWN).sum())
        return terms

    def loss_weights(self) -> Mapping[str, float]:
        """Objects may weigh otherwise than people."""
        return {OBJECT: self.object_weight}

    # ---- scores -----------------------------------------------------------------------------------------------

    def metrics(self, split: str) -> MetricCollection:
        """By step and by segment for people and objects, by ranking for clips; what has no scores stays empty."""
        return MetricCollection([Scores(self.meta.classes)], compute_groups=False)

    def score(self, metrics: MetricCollection, model: nn.Module, outputs: Outputs, batch: Batch) -> None:
        """Feeds what is said of one batch to the metrics."""
        metrics.update(outputs, batch.targets)

    def contributions(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Returns for each video by class the labelled steps of people, or the clips, that are met, said and true."""
        if CLIP in outputs:
            said, true = outputs[CLIP] > 0, batch.targets[CLIP] > 0
            return torch.stack([said & true, said, true], -1)
        logits = outputs[HUMAN]
        return overlaps(logits.argmax(-1), batch.targets[HUMAN], logits.shape[-1], UNKNOWN)

    @torch.no_grad()
    def compare(self, models: Mapping[str, nn.Module], loader: Iterable[Batch]) -> Mapping[str, Mapping[str, float]]:
        """Returns for each model but ``teacher`` the ``agreement`` of what they say, in percent of labelled nodes."""
        if "teacher" not in models:
            return {}
        agreed, rows = dict.fromkeys(models, 0), 0
        for batch in loader:
            found = {name: self._labels(model, batch) for name, model in models.items()}
            for target, said in found["teacher"].items():
                known = batch.targets[target] != UNKNOWN
                rows += int(known.sum())
                for name in models:
                    agreed[name] += int(((found[name][target] == said) & known).sum())
        del agreed["teacher"]
        return {name: {"agreement": 100 * count / max(rows, 1)} for name, count in agreed.items()}

    @torch.no_grad()
    def _labels(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns by target the most probable class of every node, ``(B, T, K)``; of clips which classes they have."""
        outputs = self.forward(model.eval(), batch.inputs)
        return {name: (x > 0).long() if name == CLIP else x.argmax(-1) for name, x in outputs.items()}

    # ---- what people ask for ----------------------------------------------------------------------------------

    def export(self, model: nn.Module) -> ExportPlan:
        """The whole model, for any number of videos, with as many objects as one of the data has at most.

        A recurrent network is exported for the longest one, others for any length; what a video lacks is masked.
        """
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        example = tuple(x.to(device) for x in self.example().inputs)
        recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
        axes = {0: "batch"} if recurrent else {0: "batch", 1: "steps"}
        names = Inputs._fields
        targets = tuple(self.forward(model.eval(), Inputs(*example)))
        plan = ExportPlan(
            Answers(model, targets).eval(),
            example,
            names,
            tuple(f"{target}_logits" for target in targets),
            dict.fromkeys(names, axes),
            facts={"objects": self.objects, "steps": self.steps if recurrent else None},
        )
        return plan if recurrent else replace(plan, least={"steps": 2})

    @torch.no_grad()
    def picture(self, batch: Batch, models: Mapping[str, nn.Module]) -> Image:
        """Timelines of the test videos on which the last two models differ most, with what the first attends to."""
        seen = attended(next(iter(models.values())).eval(), lambda model: self.forward(model, batch.inputs))
        found = {name: self._labels(model, batch) for name, model in models.items()}
        rows = [self._row(batch, row, found, True, None if seen is None else seen[row]) for row in range(len(batch))]
        return render(rows, next(iter(models)))

    def _row(
        self,
        batch: Batch,
        row: int,
        found: Mapping[str, Mapping[str, Tensor]],
        labelled: bool,
        attention: Tensor | None = None,
    ) -> Row:
        """Returns a video as it is drawn; what is never there and steps behind its end are left out."""
        inputs = batch.inputs
        steps = int((inputs.mask[row].any(1) * torch.arange(1, inputs.mask.shape[1] + 1)).max())
        tracks, nodes = [], []
        for kind in (HUMAN, OBJECT):
            if any(kind not in said for said in found.values()):
                continue
            first = 0 if kind == HUMAN else self.people
            truth = batch.targets[kind][row, :steps].numpy()
            for node in range(truth.shape[1]):
                if not inputs.mask[row, :, first + node].any():
                    continue
                said = {name: x[kind][row, :steps, node].numpy() for name, x in found.items()}
                names = self.meta.classes[kind]
                tracks.append(Track(f"{kind} {node + 1}", truth[:, node] if labelled else None, said, names, kind))
                nodes.append(first + node)
        shown = None if attention is None else attention[:steps, nodes].T.cpu().numpy()
        return Row(f"video {int(batch.ids[row])}", tracks, shown)

    def read(self, path: Path) -> Batch:
        """Reads a video of the layout, ``videos/<id>.npz``; its labels are not looked at."""
        video = Video(**arrays(path, tuple(DTYPES)))
        check(path.stem, video, self.meta)
        return collate([sample(path.stem, video, self.scale)], torch.tensor([0]))

    @torch.no_grad()
    def show(self, batch: Batch, model: nn.Module, name: str) -> Image:
        """A video's timeline, with what the model says."""
        row = self._row(batch, 0, {name: self._labels(model, batch)}, labelled=False)
        return render([replace(row, name=name)])

    @torch.no_grad()
    def predictions(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Returns of each video the classes of each person and object as runs of steps, or the scores of its labels."""
        outputs = {name: x.cpu() for name, x in self.forward(model.eval(), batch.inputs).items()}
        return [self._said(batch, row, outputs) for row in range(len(batch))]

    def _said(self, batch: Batch, row: int, outputs: Outputs) -> dict[str, Any]:
        told: dict[str, Any] = {}
        for kind, logits in outputs.items():
            names = self.meta.classes[kind]
            if kind == CLIP:
                told[kind] = {n: round(float(p), 4) for n, p in zip(names, logits[row].sigmoid(), strict=True)}
                continue
            first = 0 if kind == HUMAN else self.people
            there = batch.inputs.mask[row, :, first : first + logits.shape[2]].cpu()
            classes = logits[row].argmax(-1)
            told[kind] = [_runs(classes[:, n], there[:, n], names) for n in range(logits.shape[2])]
        return told


def _runs(classes: Tensor, there: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the classes ``(T,)`` of a node as runs of the steps at which it is there."""
    steps = torch.nonzero(there)[:, 0]
    if not len(steps):
        return []
    runs = zip(*segments(classes[steps].numpy()), strict=True)
    return [{"from": int(steps[a]), "to": int(steps[b - 1]), "class": names[c]} for a, b, c in runs]


class Answers(nn.Module):
    """A model as what is exported: a tuple of logits.

    Args:
        model: Gives them by target.
        targets: Their order.
    """

    def __init__(self, model: nn.Module, targets: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.targets = targets

    def forward(self, human: Tensor, object: Tensor, edge: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Returns the logits of each target."""
        found = self.model(human, object, edge, mask)
        return tuple(found[target] for target in self.targets)


def _graph(batch: Batch) -> dict[str, Any]:
    """Returns what all nodes of a batch share: pairs of nodes of one step, by place and by row, and whose each row is.

    Attention goes from the second node of a pair to the first, which reads it.
    """
    if "graph" not in batch.memo:
        mask: Tensor = batch.inputs.mask
        row = (mask.flatten().cumsum(0) - 1).view(mask.shape)
        place, step, reads, read = (mask[..., :, None] & mask[..., None, :]).nonzero(as_tuple=True)
        batch.memo["graph"] = {
            "pairs": (place, step, reads, read),
            "edges": torch.stack([row[place, step, read], row[place, step, reads]]),
            "owner": mask.nonzero()[:, 0],
        }
    found: dict[str, Any] = batch.memo["graph"]
    return found
