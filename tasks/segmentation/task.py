"""Semantic segmentation with any backbone of timm under one of several heads, or a network of the user's own."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from lightning import LightningDataModule
from PIL.Image import Image
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kdbench.base import rng
from kdbench.base.collectives import normalizer
from kdbench.base.instantiate import instantiate, locate
from kdbench.base.store import Store
from kdbench.errors import KDBenchError, nearest
from kdbench.features import Activated, Feature, Grid, Kind, Logits
from kdbench.functional.mix import distributions, known_mixture, mix
from kdbench.functional.numerics import upcast
from kdbench.task import Batch, Counts, DatasetInfo, ExportPlan, Task
from tasks import warping
from tasks.mixing import mixed
from tasks.overlap import overlaps
from tasks.segmentation import networks, picture
from tasks.segmentation.data import Part, Scenes, open_scenes
from tasks.segmentation.metrics import Boundary, Overlap
from tasks.segmentation.models import create
from tasks.segmentation.picture import Row
from tasks.segmentation.preprocess import Preprocess
from tasks.segmentation.runs import described
from tasks.segmentation.sources.base import IGNORED

#: Keys of ``data`` that the engine and the presets read.
ENGINE = ("name", "task", "protocol")
#: Least height and width of the images of an exported model: two cells of the deepest level.
SMALLEST = 64
#: What runs an exported model.
SCRIPT = ("tasks.pixels", "tasks.segmentation.runs", "tasks.segmentation.script")
#: Options of an architecture by which it gets weights from elsewhere.
FETCHED = ("pretrained", "checkpoint_path")
#: ``<tap>.pre`` is what the activation behind ``<tap>`` reads.
PRE = ".pre"
#: Further input channel, of codes for the true classes.
LABEL = 1


class Outputs(NamedTuple):
    """Raw outputs: logits ``(B, classes, h, w)``, and those of an auxiliary head, which training alone has."""

    logits: Tensor
    aux: Tensor | None = None


class Segmentation(Task):
    """Tells the class of every pixel of an image.

    Args:
        data: Options of :class:`~tasks.segmentation.data.DataOptions`.
        store: Where prepared data lives.
        aux_weight: Weight of the loss of an auxiliary head.
        noise: Points of mIoU that two runs differ by through chance; the engine reads it.
    """

    name: ClassVar[str] = "segmentation"
    capabilities: ClassVar[frozenset[str]] = frozenset(
        {"single_label", "dense_label", "sample_id", "differentiable_input", "meta", "label_as_input"}
        | {"mixable", "class_scores", *warping.IMAGES}
    )
    primary: ClassVar[str] = "miou"
    unit: ClassVar[str | None] = "%"
    metric_law: ClassVar[str] = "iou"
    suffixes: ClassVar[tuple[str, ...]] = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
    renamed: ClassVar[Mapping[str, str]] = {"augment": "transforms"}

    def __init__(
        self, data: Mapping[str, Any], store: Store, aux_weight: NonNegativeFloat = 0.4, noise: float = 0.0
    ) -> None:
        self.options = {name: value for name, value in data.items() if name not in ENGINE}
        self.store = store
        self.aux_weight = aux_weight
        self.restored: DatasetInfo | None = None
        self.progress = False

    @classmethod
    def kinds(cls, side: Mapping[str, Any]) -> dict[str, Kind]:
        """Taps are grids, activated ones where ``<tap>.pre`` is there too; class scores are always there."""
        taps = side.get("taps") or {}
        for name in taps:
            if name.endswith(PRE) and name.removesuffix(PRE) not in taps:
                bare = name.removesuffix(PRE)
                raise KDBenchError(f"pair: there is no tap {bare!r} beside {name!r}: {nearest(bare, taps)}")
        grids = [name for name in taps if not name.endswith(PRE)]
        return {name: Activated if name + PRE in taps else Grid for name in grids} | {"logits": Logits}

    @classmethod
    def networks(
        cls, named: Mapping[str, Mapping[str, Any]], other: Mapping[str, Any] | None
    ) -> dict[str, dict[str, Any]]:
        """Any backbone of timm that gives maps, by ``timm/NAME`` or ``NAME``, under the head of the other network."""
        return networks.sides(named, other)

    # ---- data -------------------------------------------------------------------------------------------------

    @functools.cached_property
    def scenes(self) -> Scenes:
        """The data set."""
        return open_scenes(self.options, self.store, self.progress)

    @property
    def preprocess(self) -> Preprocess:
        """What models read, and the names of the classes."""
        return self.scenes.preprocess if self.restored is None else Preprocess.of(self.restored)

    def prepare(self, progress: bool = True) -> None:
        """Renders or reads the images, once."""
        self.progress = progress
        _ = self.scenes

    def dataset(self) -> DatasetInfo:
        """Returns what a record says of the data set."""
        if self.restored is not None:
            return self.restored
        scenes, reading = self.scenes, self.scenes.preprocess
        sizes = {"train": len(scenes.train), "val": len(scenes.val), "test": len(scenes.test)}
        return DatasetInfo(
            reading.name,
            scenes.embedded,
            scenes.digest,
            sizes,
            scenes.learned,
            classes=reading.classes,
            inputs=reading.as_inputs(),
            notes=scenes.source.notes,
        )

    def restore(self, info: DatasetInfo) -> None:
        """Takes classes, size and normalisation of a record; no model fetches weights any more."""
        self.restored = info

    def example(self) -> Batch:
        """Returns an image of noise."""
        reading = self.preprocess
        size = reading.size or reading.typical
        image = torch.randn(1, len(reading.mean), *size, generator=rng.generator(0, "example"))
        return Batch(image, torch.full((1, *size), IGNORED), torch.tensor([0]))

    def counts(self) -> Mapping[str, Counts]:
        """Returns the pixels by split and class."""
        scenes = self.scenes
        return {name: self._count(getattr(scenes, name)) for name in ("train", "val", "test")}

    def _count(self, part: Part) -> Counts:
        pixels = self.scenes.source.counted(part.samples).tolist()
        return Counts(len(part), dict(zip(self.preprocess.classes, pixels, strict=True)), unit="pixels")

    def data(self, seed: int) -> LightningDataModule:
        """Returns the loaders."""
        return self.scenes.module(seed)

    # ---- models -----------------------------------------------------------------------------------------------

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """Creates a model; classes and channels of the images come from the data, where it asks for them.

        ``in_chans`` may be greater by one, for a label channel. Activations do not overwrite what they read, because it
        may be tapped.
        """
        classes, channels = len(self.preprocess.classes), len(self.preprocess.mean)
        if self.restored is not None:
            architecture = {name: value for name, value in architecture.items() if name not in FETCHED}
        asked = inspect.signature(locate(architecture["_target_"])).parameters
        allowed = {"num_classes": (classes,), "in_chans": (channels, channels + LABEL)}
        for name, values in allowed.items():
            if architecture.get(name, values[0]) not in values:
                expected = " or ".join(map(str, values))
                raise KDBenchError(
                    f"architecture.{name}={architecture[name]}, but the data {self.preprocess.name} needs {expected}"
                )
        facts = {name: values[0] for name, values in allowed.items() if name in asked}
        model: nn.Module = instantiate("architecture", {**facts, **architecture})
        for module in model.modules() if isinstance(model, nn.Module) else ():  # the engine refuses what is none
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]
        return model

    def forward(self, model: nn.Module, inputs: Tensor) -> Outputs:
        """Runs a model on images ``(B, C, H, W)``."""
        found = model(inputs)
        outputs = Outputs(*found) if isinstance(found, tuple) else Outputs(found)
        logits, classes = outputs.logits, len(self.preprocess.classes)
        if not isinstance(logits, Tensor) or logits.dim() != 4 or logits.shape[1] != classes:
            shown = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            expected = f"logits (batch, {classes}, h, w) for the {classes} classes of {self.preprocess.name}"
            raise KDBenchError(f"{type(model).__name__} gives {shown}, expected {expected}")
        return outputs

    def describe(self, outputs: Outputs | Tensor, taps: Mapping[str, Tensor], batch: Batch) -> dict[str, Feature]:
        """Tapped maps are grids; class scores come at the stride of the model, with the true class of each cell.

        Cells whose class is not known are masked, and hold :data:`~tasks.segmentation.sources.base.IGNORED`.
        """
        logits = _outputs(outputs).logits
        features: dict[str, Feature] = {
            name: self._grid(name, value, taps.get(name + PRE), batch)
            for name, value in taps.items()
            if not name.endswith(PRE)
        }
        return features | {"logits": self.mark(Logits(logits, 1), batch)}

    def mark(self, feature: Feature, batch: Batch) -> Feature:
        """Gives class scores the mask of cells whose class is known, and the true classes where they have one each."""
        if not isinstance(feature, Logits):
            return feature
        target = self.labels(batch, (feature.values.shape[2], feature.values.shape[3]))
        mixtures = target.is_floating_point()
        mask = target.sum(1) > 0 if mixtures else target != IGNORED
        if batch.distilled is not None:
            mask = mask & batch.distilled[:, None, None]
        return replace(feature, mask=mask, target=None if mixtures or batch.supervised is not None else target)

    def augmented(self) -> bool:
        """Says whether images are cropped, mirrored or lit otherwise."""
        return self.scenes.transforms.active

    def _grid(self, name: str, value: Tensor, pre: Tensor | None, batch: Batch) -> Grid:
        if value.dim() != 4:
            raise KDBenchError(
                f"tap {name!r} has shape {tuple(value.shape)}, expected a grid (B, C, h, w): tap another module"
            )
        sizes = zip(batch.inputs.shape[2:], value.shape[2:], strict=True)
        stride = tuple(of_image / cells for of_image, cells in sizes)
        return Grid(value, stride) if pre is None else Activated(value, stride, pre=pre)

    def labels(self, batch: Batch, size: tuple[int, int]) -> Tensor:
        """Returns the true classes of a batch at the middle of each cell of a grid, ``(B, h, w)`` int64.

        Of a batch whose pixels are mixed they are distributions ``(B, C, h, w)``, zero where no class is known.
        """
        targets: Tensor = batch.targets
        if tuple(targets.shape[-2:]) == size:
            return targets
        key = f"labels {size}"
        if key not in batch.memo:
            maps = targets if targets.is_floating_point() else targets[:, None].float()
            smaller = F.interpolate(maps, size, mode="nearest-exact")
            batch.memo[key] = smaller if targets.is_floating_point() else smaller[:, 0].long()
        found: Tensor = batch.memo[key]
        return found

    def loss(self, model: nn.Module, outputs: Outputs | Tensor, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy at the size of the labels, the mean over pixels that have a class; zero where none has.

        Pixels may have distributions over the classes, zero where none is known.
        """
        outputs, targets = _outputs(outputs), batch.targets
        heads = {"ce": outputs.logits} | ({} if outputs.aux is None else {"aux": outputs.aux})
        if targets.is_floating_point():
            if batch.supervised is not None:
                targets = targets * batch.supervised[:, None, None, None]
            count = normalizer((targets.sum(1) > 0).sum())
            return {
                name: -(targets * upcast(enlarged(logits, targets)).log_softmax(1)).sum() / count
                for name, logits in heads.items()
            }
        if batch.supervised is not None:
            targets = torch.where(batch.supervised[:, None, None], targets, IGNORED)
        count = normalizer((targets != IGNORED).sum())
        return {
            name: F.cross_entropy(upcast(stretched(logits, targets)), targets, ignore_index=IGNORED, reduction="sum")
            / count
            for name, logits in heads.items()
        }

    def loss_weights(self) -> Mapping[str, float]:
        """The auxiliary head weighs less."""
        return {"aux": self.aux_weight}

    # ---- scores -----------------------------------------------------------------------------------------------

    def metrics(self, split: str) -> MetricCollection:
        """Overlap and boundaries."""
        classes = self.preprocess.classes
        return MetricCollection([Overlap(classes), Boundary(len(classes))], compute_groups=False)

    def score(self, metrics: MetricCollection, model: nn.Module, outputs: Outputs | Tensor, batch: Batch) -> None:
        """Feeds the most probable class of every pixel to the metrics."""
        metrics.update(enlarged(_outputs(outputs).logits, batch.targets).argmax(1), batch.targets)

    def contributions(self, outputs: Outputs | Tensor, batch: Batch) -> Tensor:
        """Returns for each image by class the pixels that are met, said and true, of those that have a class."""
        said = enlarged(_outputs(outputs).logits, batch.targets).argmax(1)
        return overlaps(said, batch.targets, len(self.preprocess.classes), IGNORED)

    @torch.no_grad()
    def compare(self, models: Mapping[str, nn.Module], loader: Iterable[Batch]) -> Mapping[str, Mapping[str, float]]:
        """Returns for each model but ``teacher`` the ``agreement`` of their classes, in percent of labelled pixels."""
        if "teacher" not in models:
            return {}
        agreed, pixels = dict.fromkeys(models, 0), 0
        for batch in loader:
            known = batch.targets != IGNORED
            found = {name: self._classes(model, batch) for name, model in models.items()}
            pixels += int(known.sum())
            for name, classes in found.items():
                agreed[name] += int(((classes == found["teacher"]) & known).sum())
        del agreed["teacher"]
        return {name: {"agreement": 100 * count / max(pixels, 1)} for name, count in agreed.items()}

    @torch.no_grad()
    def _classes(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the most probable class of every pixel, ``(B, H, W)``."""
        return enlarged(self.forward(model.eval(), batch.inputs).logits, batch.targets).argmax(1)

    # ---- what methods and people ask for ----------------------------------------------------------------------

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """``dense_label(batch)``: class of each pixel; ``label_as_input(architecture)``: a channel more; mix, warps."""
        deform = functools.partial(warping.deform_labelled, ignored=IGNORED)
        own: dict[str, Callable[..., Any]] = {"label_as_input": self.label_as_input, "mix": self.mix}
        own |= warping.image_ops(self.preprocess, deform)
        return {"dense_label": dense_label, "with_scores": with_scores, **own}

    def mix(self, batch: Batch, order: Tensor, own: Tensor) -> Batch:
        """Mixes images and what is known of their pixels.

        Args:
            batch: Of B images.
            order: Partner of each ``(B,)``.
            own: Share of the image itself ``(B,)``: pixels get distributions ``(B, C, H, W)`` over the classes. Or
                ``(B, H, W)`` which pixels are its own, zero or one: each keeps one class.
        """
        if own.dim() > 1:
            if batch.targets.is_floating_point():
                return mixed(batch, order, own, mix(batch.targets, order, own))
            return mixed(batch, order, own, torch.where(own > 0.5, batch.targets, batch.targets[order]))
        targets, known = distributions(batch.targets, len(self.preprocess.classes))
        targets = mix(targets, order, own) * known_mixture(known, order, own)[:, None]
        return mixed(batch, order, own, targets)

    def label_as_input(self, architecture: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the architecture of the network that takes one more input channel, which it reads as zero if absent.

        Raises:
            KDBenchError: The network is of another package, of which nothing is known.
        """
        target = f"{create.__module__}.{create.__name__}"
        if architecture["_target_"] != target:
            raise KDBenchError(f"{architecture['_target_']}: a label channel needs a network of {target}")
        return {**architecture, "in_chans": len(self.preprocess.mean) + LABEL}

    def export(self, model: nn.Module) -> ExportPlan:
        """The whole model and the enlargement to the size of its image, of any size where the model allows it."""
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        image = self.example().inputs.to(device).contiguous(memory_format=torch.channels_last)
        plan = ExportPlan(Enlarged(model).eval(), (image,), ("images",), ("logits",), {"images": {0: "batch"}})
        plan = replace(plan, facts={"any_size": False}, script=SCRIPT)
        if not getattr(model, "any_size", False) or min(image.shape[2:]) < SMALLEST:
            return plan
        sides = {2: "height", 3: "width"}
        axes = {"images": {0: "batch", **sides}}
        return replace(plan, dynamic=axes, least=dict.fromkeys(sides.values(), SMALLEST), facts={"any_size": True})

    @torch.no_grad()
    def picture(self, batch: Batch, models: Mapping[str, nn.Module]) -> Image:
        """The test images on which the last two models differ most, with the truth and what each model says."""
        others = (b for b in self.data(0).test_dataloader() if not torch.isin(b.ids, batch.ids).any())
        parts = itertools.islice(itertools.chain([batch], others), picture.BATCHES)
        rows = [row for part in parts for row in self._rows(part, models)]
        return picture.render(rows, self.preprocess.classes)

    @torch.no_grad()
    def side_by_side(self, views: Mapping[str, Batch], models: Mapping[str, nn.Module]) -> Image:
        """Every image in one view after the other, with its truth and what each model says."""
        rows = zip(*(self._rows(batch, models) for batch in views.values()), strict=True)
        shown = itertools.islice(rows, max(1, picture.ROWS // len(views)))
        return picture.render([*itertools.chain.from_iterable(shown)], self.preprocess.classes, in_order=True)

    def _rows(self, batch: Batch, models: Mapping[str, nn.Module]) -> list[Row]:
        found = {name: self._classes(model, batch).cpu().numpy() for name, model in models.items()}
        images, truth = self.preprocess.denormalise(batch.inputs).cpu().numpy(), batch.targets
        if truth.is_floating_point():  # of mixed pixels the class with the largest share
            truth = torch.where(truth.sum(1) > 0, truth.argmax(1), IGNORED)
        return [
            Row(image, labels, {name: classes[i] for name, classes in found.items()})
            for i, (image, labels) in enumerate(zip(images, truth.cpu().numpy(), strict=True))
        ]

    def read(self, path: Path) -> Batch:
        """Reads an image file."""
        image = self.preprocess.decode(path)[None].float() / 255
        targets = torch.full((1, *image.shape[2:]), IGNORED)
        return Batch(self.preprocess.normalise(image), targets, torch.tensor([0]))

    def show(self, batch: Batch, model: nn.Module, name: str) -> Image:
        """An image with the class of every pixel."""
        (pixels,) = self.preprocess.denormalise(batch.inputs).cpu().numpy()
        (classes,) = self._classes(model, batch).cpu().numpy()
        return picture.render([picture.Row(pixels, None, {name: classes})], self.preprocess.classes)

    def predictions(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Returns of each image the share of every class, and the classes of all pixels as runs along the rows."""
        names = self.preprocess.classes
        return [described(classes.cpu().numpy(), names) for classes in self._classes(model, batch)]


def dense_label(batch: Batch) -> Tensor:
    """Returns the class of each pixel, ``(B, H, W)`` int64, -1 where it is unknown or does not count."""
    known = batch.targets != IGNORED
    if batch.supervised is not None:
        known = known & batch.supervised[:, None, None]
    return torch.where(known, batch.targets, -1)


def with_scores(outputs: Outputs | Tensor, values: Tensor) -> Outputs:
    """Returns raw outputs with other logits ``(B, classes, h, w)``; those of an auxiliary head stay."""
    return _outputs(outputs)._replace(logits=values)


class Enlarged(nn.Module):
    """A model whose logits come at the size of its images.

    Args:
        model: Gives them at its own stride.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Returns ``(B, classes, H, W)``."""
        return enlarged(self.model(images), images)


def enlarged(logits: Tensor, like: Tensor) -> Tensor:
    """Brings logits ``(B, C, h, w)`` to the height and width of ``like`` ``(..., H, W)``, bilinearly."""
    size = like.shape[-2:]
    return logits if logits.shape[2:] == size else F.interpolate(logits, size, mode="bilinear", align_corners=False)


def stretched(logits: Tensor, like: Tensor) -> Tensor:
    """Does what :func:`enlarged` does, on a processor by products of matrices, whose gradient is faster."""
    size = like.shape[-2:]
    if logits.shape[2:] == size or logits.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return enlarged(logits, like)
    rows, columns = (_weights(*ends).to(logits) for ends in zip(logits.shape[2:], size, strict=True))
    return rows @ (logits @ columns.T)


@functools.lru_cache(maxsize=8)
def _weights(cells: int, pixels: int) -> Tensor:
    """Returns how much of each cell is in each pixel along one axis, ``(pixels, cells)``."""
    return F.interpolate(torch.eye(cells)[None], pixels, mode="linear", align_corners=False)[0].T


def _outputs(outputs: Outputs | Tensor) -> Outputs:
    """Logits alone, e.g. out of a table, are outputs too."""
    return outputs if isinstance(outputs, Outputs) else Outputs(outputs)
