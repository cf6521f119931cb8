"""2-D object detection with detectors of mmdet or torchvision, in COCO's layout and with COCO's evaluation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning import LightningDataModule
from PIL.Image import Image
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kdbench.base import rng
from kdbench.base.collectives import normalizer
from kdbench.base.instantiate import instantiate
from kdbench.base.store import Store
from kdbench.errors import KDBenchError
from kdbench.features import Boxes, Edges, Feature, Grid, Kind, Levels, Logits
from kdbench.task import Batch, Counts, DatasetInfo, ExportPlan, Task
from tasks.detection import mm, picture, tv
from tasks.detection.data import DetectionData, Part, Preprocess, Source, collate, open_source
from tasks.detection.metrics import CocoAP
from tasks.detection.outputs import Adapter, Found, Inputs, Outputs, Target, chosen
from tasks.detection.picture import Drawn, Row
from tasks.images import Reader

#: Keys of ``data`` that the engine and the presets read.
ENGINE = ("name", "task")
#: Taps ``<name>.1``, ``<name>.2``, … are the levels of one feature.
TOWERS = ("cls_tower", "reg_tower")
EDGES = "edges"
#: Joined to a script beside an exported detector.
SCRIPT = ("tasks.pixels", "tasks.detection.script")


class Detection(Task):
    """Finds objects in images, by their boxes and classes.

    Args:
        data: Options of :class:`~tasks.detection.data.DataOptions`.
        store: Where prepared data lives.
        noise: Points of AP that two runs differ by through chance; the engine reads it.
    """

    name: ClassVar[str] = "detection"
    capabilities: ClassVar[frozenset[str]] = frozenset(
        {"sample_id", "meta", "boxes", "pyramid", "cross_head", "assigned"}
    )
    primary: ClassVar[str] = "ap"
    unit: ClassVar[str | None] = "%"
    suffixes: ClassVar[tuple[str, ...]] = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")

    def __init__(self, data: Mapping[str, Any], store: Store, noise: float = 0.0) -> None:
        self.options = {name: value for name, value in data.items() if name not in ENGINE}
        self.store = store
        self.restored: DatasetInfo | None = None
        self.progress = False

    @classmethod
    def kinds(cls, side: Mapping[str, Any]) -> dict[str, Kind]:
        """Taps are grids, those of what lies inside a head aside; class scores and boxes are always there."""
        kinds: dict[str, Kind] = {}
        for name in side.get("taps") or {}:
            tower = name.partition(".")[0]
            if tower in TOWERS:
                kinds[tower] = Levels
            else:
                kinds[name] = Edges if name == EDGES else Grid
        return kinds | {"boxes": Boxes, "logits": Logits}

    # ---- data -------------------------------------------------------------------------------------------------

    @functools.cached_property
    def source(self) -> Source:
        """The data set."""
        return open_source(self.options, self.store, self.progress)

    @property
    def preprocess(self) -> Preprocess:
        """What models read, and the names of the classes."""
        if self.restored is None:
            return self.source.preprocess
        told: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in self.restored.inputs.items()}
        reader = Reader(told["background"], told["range"])
        return Preprocess(self.restored.name, tuple(self.restored.classes), told["size"], told["typical"], reader)

    def prepare(self, progress: bool = True) -> None:
        """Renders or reads the images, once."""
        self.progress = progress
        _ = self.source

    def dataset(self) -> DatasetInfo:
        """Returns what a record says of the data set."""
        if self.restored is not None:
            return self.restored
        source, reading = self.source, self.source.preprocess
        sizes = {"train": len(source.train), "val": len(source.val), "test": len(source.test)}
        return DatasetInfo(
            reading.name,
            source.embedded,
            source.digest,
            sizes,
            source.learned,
            classes=reading.classes,
            inputs=reading.as_inputs(),
        )

    def restore(self, info: DatasetInfo) -> None:
        """Takes classes and size of a record; no model fetches weights any more."""
        self.restored = info

    def example(self) -> Batch:
        """Returns an image of noise."""
        noise = torch.rand(3, *self.preprocess.typical, generator=rng.generator(0, "example"))
        return self._unknown([(255 * noise).byte()])

    def batch(self, images: Sequence[Image]) -> Batch:
        """Returns RGB images as a batch of which nothing is known."""
        return self._unknown([self.preprocess.scaled(image) for image in images])

    def _unknown(self, images: list[Tensor]) -> Batch:
        nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
        return collate(images, [nothing] * len(images), torch.arange(len(images)))

    def counts(self) -> Mapping[str, Counts]:
        """Returns the objects by split and class; crowds are none."""
        source = self.source
        return {name: self._count(getattr(source, name)) for name in ("train", "val", "test")}

    def _count(self, part: Part) -> Counts:
        classes = self.preprocess.classes
        labels = [sample.truth.labels[~sample.truth.crowd] for sample in part.samples]
        counted = np.bincount(np.concatenate(labels), minlength=len(classes)).tolist()
        return Counts(len(part), dict(zip(classes, counted, strict=True)), unit="boxes")

    def data(self, seed: int) -> LightningDataModule:
        """Returns the loaders."""
        return DetectionData(self.source, seed)

    def augmented(self) -> bool:
        """Says whether images are mirrored or lit otherwise."""
        return self.source.transforms.active

    # ---- models -----------------------------------------------------------------------------------------------

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """Creates a detector for the classes of the data."""
        classes = len(self.preprocess.classes)
        if architecture.get("num_classes", classes) != classes:
            raise KDBenchError(
                f"architecture.num_classes={architecture['num_classes']}, but {self.preprocess.name} has {classes}"
            )
        if self.restored is not None:
            architecture = {name: value for name, value in architecture.items() if name != "pretrained"}
        model: nn.Module = instantiate("architecture", {"num_classes": classes, **architecture})
        return model

    def forward(self, model: nn.Module, inputs: Inputs) -> Outputs:
        """Runs a detector on a batch of images, its own preprocessor included."""
        return adapter(model).forward(model, inputs)

    def describe(self, outputs: Outputs, taps: Mapping[str, Any], batch: Batch) -> dict[str, Feature]:
        """Levels of the pyramid are grids; class scores and boxes are one row for each anchor."""
        features: dict[str, Feature] = {}
        towers: dict[str, dict[int, Tensor]] = {}
        for name, value in taps.items():
            tower, _, number = name.partition(".")
            if tower in TOWERS:
                towers.setdefault(tower, {})[int(number)] = value
            elif name == EDGES:
                features[name] = replace(mm.edges(value), mask=self._mask(outputs, batch))
            else:
                features[name] = self._grid(name, value, batch)
        features |= {name: Levels.of([own[i] for i in sorted(own)]) for name, own in towers.items()}
        mask = self._mask(outputs, batch)
        features["boxes"] = Boxes(outputs.boxes, outputs.anchors, outputs.level(), mask)
        foreground = self._foreground(outputs, batch)
        count = normalizer(foreground.sum())
        weight = torch.where(foreground, 1.0 / count, 1.0 / (foreground.numel() - count).clamp(min=1))
        return features | {"logits": Logits(outputs.logits, mask=mask, weight=weight, law="bernoulli")}

    def _grid(self, name: str, value: Any, batch: Batch) -> Grid:
        if not isinstance(value, Tensor) or value.dim() != 4:
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise KDBenchError(f"tap {name!r} has {found}, expected a map (B, C, h, w): tap another module")
        # A detector pads its images: the stride is a power of two.
        lengths = zip(batch.inputs.images.shape[2:], value.shape[2:], strict=True)
        exponent = max(round(float(np.log2(max(pixels / cells, 1)))) for pixels, cells in lengths)
        return Grid(value, (2.0**exponent, 2.0**exponent))

    def _mask(self, outputs: Outputs, batch: Batch) -> Tensor | None:
        return None if batch.distilled is None else batch.distilled[:, None].expand(outputs.logits.shape[:2])

    def _foreground(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Says which rows start in a true box, ``(B, A)``; once per batch, whoever asks first."""
        key = f"foreground {outputs.logits.shape[1]}"
        if key not in batch.memo:
            boxes, labels = boxes_of(batch)
            middle = (outputs.anchors[:, :2] + outputs.anchors[:, 2:]) / 2
            inside = (middle[:, None] >= boxes[:, None, :, :2]) & (middle[:, None] < boxes[:, None, :, 2:])
            batch.memo[key] = (inside.all(-1) & (labels >= 0)[:, None]).any(-1)
        found: Tensor = batch.memo[key]
        return found

    def loss(self, model: nn.Module, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """The detector's own terms; zero where no image of the batch is supervised."""
        inputs, targets = batch.inputs, batch.targets
        if batch.supervised is not None:
            rows = batch.supervised.nonzero()[:, 0]
            if not len(rows):
                first = torch.zeros(1, dtype=torch.long, device=rows.device)
                kept, given = chosen(outputs, inputs, first)
                terms = adapter(model).loss(model, kept, given, targets[:1])
                return {name: 0.0 * value for name, value in terms.items()}
            outputs, inputs = chosen(outputs, inputs, rows)
            targets = [targets[i] for i in rows.tolist()]
        return adapter(model).loss(model, outputs, inputs, targets)

    # ---- scores -----------------------------------------------------------------------------------------------

    def metrics(self, split: str) -> MetricCollection:
        """COCO's average precision."""
        return MetricCollection([CocoAP(self.preprocess.classes)])

    def score(self, metrics: MetricCollection, model: nn.Module, outputs: Outputs, batch: Batch) -> None:
        """Feeds detections to the metrics, in the pixels of the image files."""
        samples = [self.source.sample(number) for number in batch.ids.tolist()]
        factors = [self.preprocess.factor(sample.size) for sample in samples]
        found = adapter(model).predict(model, outputs, batch.inputs)
        scaled = [own._replace(boxes=own.boxes / factor) for own, factor in zip(found, factors, strict=True)]
        metrics.update(batch.ids, scaled, [sample.truth for sample in samples])

    # ---- what methods and people ask for ----------------------------------------------------------------------

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """``boxes(batch)``, ``cross_head(model, cls, reg)`` and ``assigned(model, batch, boxes)``."""
        return {"boxes": boxes_of, "cross_head": cross_head, "assigned": self._assigned}

    @torch.no_grad()
    def _assigned(self, model: nn.Module, batch: Batch, boxes: Boxes) -> Tensor:
        found = adapter(model).assigned(model, boxes, batch.targets)
        return found if batch.supervised is None else torch.where(batch.supervised[:, None], found, -1)

    def export(self, model: nn.Module) -> ExportPlan:
        """Images of one size to the class scores and boxes of all anchors, before non-maximum suppression.

        The script beside the file goes on from there to detections, where the adapter has :class:`Rules`.
        """
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        tall, wide = (-(-side // 32) * 32 for side in self.preprocess.typical)
        image = 255 * torch.rand(1, 3, tall, wide, generator=rng.generator(0, "example"))
        image = image.to(device)
        with torch.no_grad():
            outputs = self.forward(model.eval(), Inputs(image, torch.tensor([[tall, wide]])))
        facts: dict[str, Any] = {
            "canvas": [tall, wide],
            "levels": outputs.level().bincount().tolist(),
            "outputs": "class scores and boxes (left, top, right, bottom) of anchors",
        }
        rules = adapter(model).rules(model, outputs)
        if rules is not None:
            told = rules._asdict()
            facts |= {"padding": told.pop("mean"), "rules": told}
        script = () if rules is None else SCRIPT
        return ExportPlan(Whole(model).eval(), (image,), ("images",), ("scores", "boxes"), facts=facts, script=script)

    @torch.no_grad()
    def _found(self, model: nn.Module, batch: Batch) -> list[Found]:
        return adapter(model).predict(model, self.forward(model.eval(), batch.inputs), batch.inputs)

    def _rows(self, batch: Batch, models: Mapping[str, nn.Module], known: bool = True) -> list[Row]:
        found = {name: self._found(model, batch) for name, model in models.items()}
        rows = []
        for i, (tall, wide) in enumerate(batch.inputs.shapes()):
            target = batch.targets[i]
            truth = Drawn(target.boxes.cpu().numpy(), target.labels.cpu().numpy())
            said = {name: Drawn(*(value.float().cpu().numpy() for value in own[i])) for name, own in found.items()}
            image = batch.inputs.images[i, :, :tall, :wide].cpu().numpy()
            rows.append(Row(image, truth if known else None, said))
        return rows

    def picture(self, batch: Batch, models: Mapping[str, nn.Module]) -> Image:
        """The images of a batch with the most objects, with the boxes of the truth and of each model."""
        rows = self._rows(batch, models)
        rows.sort(key=lambda row: -len(row.truth.boxes) if row.truth is not None else 0)
        return picture.render(rows, self.preprocess.classes)

    def read(self, path: Path) -> Batch:
        """Reads an image file."""
        return self._unknown([self.preprocess.decode(path)])

    def show(self, batch: Batch, model: nn.Module, name: str) -> Image:
        """An image with the boxes that are found."""
        return picture.render(self._rows(batch, {name: model}, known=False), self.preprocess.classes)

    def predictions(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Returns class, score and box (left, top, right, bottom, pixels of the input) of every detection."""
        classes = self.preprocess.classes
        return [
            {
                "size": [tall, wide],
                "objects": [
                    {"class": classes[label], "score": round(score, 4), "box": [round(v, 2) for v in box]}
                    for box, label, score in zip(*(value.tolist() for value in found), strict=True)
                ],
            }
            for found, (tall, wide) in zip(self._found(model, batch), batch.inputs.shapes(), strict=True)
        ]


class Whole(nn.Module):
    """A detector from images ``(B, 3, H, W)`` to scores ``(B, A, C)`` and boxes ``(B, A, 4)``.

    Args:
        model: The detector.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns class scores and boxes."""
        return adapter(self.model).raw(self.model, images)


def adapter(model: nn.Module) -> Adapter:
    """Returns what speaks with the detectors of a model's package.

    Raises:
        KDBenchError: The model is of neither.
    """
    if tv.serves(model):
        return tv
    if hasattr(model, "data_preprocessor") and hasattr(model, "extract_feat"):
        return mm
    raise KDBenchError(f"{type(model).__name__} is no detector of mmdet or torchvision")


def boxes_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """Returns true boxes ``(B, M, 4)``, input pixels, and their classes ``(B, M)``, -1 in rows of no box."""
    targets: Sequence[Target] = batch.targets
    supervised = [True] * len(targets) if batch.supervised is None else batch.supervised.tolist()
    counts = [len(t.labels) if own else 0 for t, own in zip(targets, supervised, strict=True)]
    boxes = targets[0].boxes.new_zeros(len(targets), max(counts), 4)
    labels = targets[0].labels.new_full((len(targets), max(counts)), -1)
    for i, (target, count) in enumerate(zip(targets, counts, strict=True)):
        boxes[i, :count], labels[i, :count] = target.boxes[:count], target.labels[:count]
    return boxes, labels


def cross_head(model: nn.Module, cls: Sequence[Tensor], reg: Sequence[Tensor]) -> dict[str, Feature]:
    """Returns what the rest of a detector's head makes of what its last stacked convolutions read."""
    return adapter(model).cross_head(model, cls, reg)
