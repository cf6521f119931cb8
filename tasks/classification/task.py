"""Image classification with any model of timm, or one of the user's own."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from lightning import LightningDataModule
from PIL.Image import Image
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from kdbench.base import rng
from kdbench.base.collectives import normalizer
from kdbench.base.digest import digest, source_digest
from kdbench.base.instantiate import instantiate, locate
from kdbench.base.store import Store
from kdbench.errors import KDBenchError, nearest
from kdbench.features import Activated, Feature, Grid, Kind, Last, Logits, Tokens, Vector
from kdbench.functional.mix import distributions, known_mixture, mean_share, mix
from kdbench.functional.numerics import upcast
from kdbench.task import Batch, Counts, DatasetInfo, ExportPlan, Task, move, scalars
from tasks import warping
from tasks.classification import networks, picture
from tasks.classification.agreement import Classes
from tasks.classification.data import Cut, Images, open_images
from tasks.classification.metrics import Scores, fit_temperature
from tasks.classification.preprocess import Preprocess
from tasks.classification.sources.folder import EXTENSIONS
from tasks.mixing import mixed

#: Keys of ``data`` that the engine and the presets read.
ENGINE = ("name", "task", "protocol")
#: What runs an exported model.
SCRIPT = ("tasks.pixels", "tasks.classification.script")
#: Options of an architecture by which it gets weights from elsewhere.
FETCHED = ("pretrained", "checkpoint_path")
#: Kinds that a pair may declare for a tap.
KINDS: dict[str, Kind] = {"grid": Grid, "last": Last, "tokens": Tokens, "vector": Vector}
#: Taps whose name says their kind.
NAMED = {"pooled": "vector", "last": "last"}
#: What a tensor is by its number of axes.
AXES = {2: "a vector (B, D)", 3: "tokens (B, L, D)", 4: "a grid (B, C, H, W)"}
#: ``<tap>.pre`` is what the activation behind ``<tap>`` reads.
PRE = ".pre"
TOP = 5


class Outputs(NamedTuple):
    """Raw outputs: logits ``(B, classes)``, and how the model lays out the tensors inside of it.

    Attributes:
        prefix: Leading tokens that are not positions.
        grid: Rows and columns of the other tokens, or None.
        channels_last: Whether its maps are ``(B, H, W, C)``.
    """

    logits: Tensor
    prefix: int = 0
    grid: tuple[int, ...] | None = None
    channels_last: bool = False


class Classification(Task):
    """Tells which of several classes an image is of.

    Args:
        data: Options of :class:`~tasks.classification.data.DataOptions`.
        store: Where prepared data lives.
        label_smoothing: Share of the target that is spread over all classes.
        noise: Points of accuracy that two runs differ by through chance, None for :meth:`standard_error`; the engine
            reads it.
    """

    name: ClassVar[str] = "classification"
    capabilities: ClassVar[frozenset[str]] = frozenset(
        {"single_label", "sample_id", "differentiable_input", "meta", "rotate", "strong_view"}
        | {"mixable", "class_scores", *warping.IMAGES}
    )
    primary: ClassVar[str] = "top1"
    unit: ClassVar[str | None] = "%"
    metric_law: ClassVar[str] = "percent"
    suffixes: ClassVar[tuple[str, ...]] = EXTENSIONS
    renamed: ClassVar[Mapping[str, str]] = {"augment": "transforms"}

    def __init__(
        self, data: Mapping[str, Any], store: Store, label_smoothing: NonNegativeFloat = 0.0, noise: float | None = None
    ) -> None:
        self.options = {name: value for name, value in data.items() if name not in ENGINE}
        self.store = store
        self.label_smoothing = label_smoothing
        self.restored: DatasetInfo | None = None
        self.progress = False

    @classmethod
    def kinds(cls, side: Mapping[str, Any]) -> dict[str, Kind]:
        """Taps are grids, ``pooled`` is a vector, ``last`` what is pooled; ``kinds`` of a side says what else is."""
        taps, declared = side.get("taps") or {}, side.get("kinds") or {}
        kinds: dict[str, Kind] = {}
        for name in (*taps, *declared):
            if name not in taps or (name.endswith(PRE) and name.removesuffix(PRE) not in taps):
                raise KDBenchError(f"pair: there is no tap {name.removesuffix(PRE)!r}: {nearest(name, taps)}")
            if name.endswith(PRE):
                continue
            kind = declared.get(name, NAMED.get(name, "grid"))
            if kind not in KINDS:
                raise KDBenchError(f"pair: kinds.{name}={kind}: there is no such kind: {nearest(str(kind), KINDS)}")
            if (kind == "last") != (name == "last"):
                raise KDBenchError(f"pair: kinds.{name}={kind}: the tap named 'last', and no other, is of kind 'last'")
            kinds[name] = Activated if kind == "grid" and name + PRE in taps else KINDS[kind]
        return kinds | {"logits": Logits}

    @classmethod
    def networks(
        cls, named: Mapping[str, Mapping[str, Any]], other: Mapping[str, Any] | None
    ) -> dict[str, dict[str, Any]]:
        """Any network of timm, by ``timm/NAME`` or ``NAME``, with what it says can be read inside of it."""
        made = {role: networks.side(own["model_name"], _without(own, "model_name")) for role, own in named.items()}
        return networks.aligned(made, other)

    # ---- data -------------------------------------------------------------------------------------------------

    @cached_property
    def images(self) -> Images:
        """The data set."""
        return open_images(self.options, self.store, self.progress)

    @property
    def preprocess(self) -> Preprocess:
        """What models read, and the names of the classes."""
        return self.images.preprocess if self.restored is None else Preprocess.of(self.restored)

    def prepare(self, progress: bool = True) -> None:
        """Reads or makes the images, once."""
        self.progress = progress
        _ = self.images

    def dataset(self) -> DatasetInfo:
        """Returns what a record says of the data set."""
        if self.restored is not None:
            return self.restored
        images, reading = self.images, self.images.preprocess
        return DatasetInfo(
            reading.name,
            images.embedded,
            images.digest,
            images.sizes,
            images.learned,
            classes=reading.classes,
            inputs=reading.as_inputs(),
            notes=images.notes,
        )

    def restore(self, info: DatasetInfo) -> None:
        """Takes classes, size and normalisation of a record; no model fetches weights any more."""
        self.restored = info

    def example(self) -> Batch:
        """Returns an image of noise."""
        image = torch.randn(1, self.preprocess.channels, *self.preprocess.size, generator=rng.generator(0, "example"))
        return Batch(image, torch.tensor([-1]), torch.tensor([0]))

    def counts(self) -> Mapping[str, Counts]:
        """Returns the labelled images by split and class."""
        images = self.images
        cuts = {"train": images.train, "val": images.val, "test": images.test}
        return {name: _count(part, images.preprocess.classes) for name, part in cuts.items()}

    def data(self, seed: int) -> LightningDataModule:
        """Returns the loaders."""
        return self.images.module(seed)

    # ---- models -----------------------------------------------------------------------------------------------

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """Creates a model; classes, channels and size of the images come from the data, where it asks for them.

        Activations do not overwrite what they read, because it may be tapped.
        """
        data = self.preprocess
        facts = {"num_classes": len(data.classes), "in_chans": data.channels, "img_size": data.size}
        if self.restored is not None:
            architecture = {name: value for name, value in architecture.items() if name not in FETCHED}
        asked = inspect.signature(locate(architecture["_target_"])).parameters
        for name, value in facts.items():
            given = architecture.get(name)
            given = tuple(given) if isinstance(given, list) else given
            if given not in (None, value):
                raise KDBenchError(f"architecture.{name}={given}, but the data {data.name} has {value}: leave it out")
        facts = {name: value for name, value in facts.items() if name in asked}
        model: nn.Module = instantiate("architecture", {**architecture, **facts})
        for module in model.modules() if isinstance(model, nn.Module) else ():  # the engine refuses what is none
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]
        return model

    def forward(self, model: nn.Module, inputs: Tensor) -> Outputs:
        """Runs a model on images."""
        logits = model(inputs)
        classes = len(self.preprocess.classes)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] != classes:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            expected = f"logits (batch, {classes}) for the {classes} classes of {self.preprocess.name}"
            raise KDBenchError(f"{type(model).__name__} gives {found}, expected {expected}")
        patches = getattr(model, "patch_embed", None) or getattr(model, "stem", None)
        grid = getattr(patches, "grid_size", None)
        last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        return Outputs(logits, int(getattr(model, "num_prefix_tokens", 0)), tuple(grid) if grid else None, last)

    def describe(self, outputs: Outputs | Tensor, taps: Mapping[str, Tensor], batch: Batch) -> dict[str, Feature]:
        """Gives tapped tensors the kind that their axes say, and the logits the true classes where all are known."""
        outputs = _outputs(outputs)
        features: dict[str, Feature] = {
            name: self._feature(name, value, taps.get(name + PRE), outputs)
            for name, value in taps.items()
            if not name.endswith(PRE)
        }
        return features | {"logits": self.mark(Logits(outputs.logits), batch)}

    def mark(self, feature: Feature, batch: Batch) -> Feature:
        """Gives logits their mask, and the true classes where all are known."""
        if not isinstance(feature, Logits):
            return feature
        target = batch.targets if batch.supervised is None and not batch.targets.is_floating_point() else None
        return replace(feature, mask=batch.distilled, target=target)

    def _feature(self, name: str, value: Tensor, pre: Tensor | None, outputs: Outputs) -> Feature:
        axes = value.dim()
        possible = [2] if name == "pooled" else [2, 3, 4] if pre is None and name != "last" else [4]
        if axes not in possible:
            expected = " or ".join(AXES[n] for n in possible)
            raise KDBenchError(f"tap {name!r} has shape {tuple(value.shape)}, expected {expected}: tap another module")
        if pre is not None and pre.shape != value.shape:
            shapes = f"{tuple(value.shape)} and {tuple(pre.shape)}"
            raise KDBenchError(f"taps {name!r} and {name + PRE!r} have shapes {shapes}, expected equal ones")
        if axes == 2:
            return Vector(value)
        if axes == 3:
            positions = value.shape[1] - outputs.prefix
            grid = outputs.grid if outputs.grid and outputs.grid[0] * outputs.grid[1] == positions else None
            return Tokens(value, outputs.prefix, grid)
        if outputs.channels_last:
            value, pre = value.permute(0, 3, 1, 2), None if pre is None else pre.permute(0, 3, 1, 2)
        if name == "last":
            return Last(value)
        stride = tuple(of_image / cells for of_image, cells in zip(self.preprocess.size, value.shape[2:], strict=True))
        return Grid(value, stride) if pre is None else Activated(value, stride, pre=pre)

    def augmented(self) -> bool:
        """Says whether images are cropped or mirrored."""
        return self.images.transforms.active

    def loss(self, model: nn.Module, outputs: Outputs | Tensor, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy, the mean over supervised samples; zero where there is none. Targets may be distributions."""
        targets = batch.targets
        counted = torch.ones(len(targets), dtype=torch.bool, device=targets.device)
        if not targets.is_floating_point():
            counted = targets >= 0
        if batch.supervised is not None:
            counted = counted & batch.supervised
        losses = F.cross_entropy(
            upcast(_outputs(outputs).logits),
            targets if targets.is_floating_point() else torch.where(counted, targets, -1),
            ignore_index=-1,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        return {"ce": losses[counted].sum() / normalizer(counted.sum())}

    # ---- scores -----------------------------------------------------------------------------------------------

    def metrics(self, split: str) -> MetricCollection:
        """Accuracy and calibration."""
        return MetricCollection([Scores(len(self.preprocess.classes))])

    def score(self, metrics: MetricCollection, model: nn.Module, outputs: Outputs | Tensor, batch: Batch) -> None:
        """Feeds the labelled samples of a batch to the metrics."""
        labelled = batch.targets >= 0
        metrics.update(_outputs(outputs).logits[labelled], batch.targets[labelled])

    def contributions(self, outputs: Outputs | Tensor, batch: Batch) -> Tensor:
        """Returns for each labelled sample whether its class is found, and one."""
        labelled = batch.targets >= 0
        hit = _outputs(outputs).logits.argmax(1)[labelled] == batch.targets[labelled]
        return torch.stack([hit, torch.ones_like(hit)], 1)

    def beside(self, data: Any) -> Mapping[str, Iterable[Batch]]:
        """Returns validation and, where there is one, the second test set."""
        loaders = {"val": data.val_dataloader(), "shifted": data.shifted_dataloader()}
        return {name: loader for name, loader in loaders.items() if loader is not None}

    @torch.no_grad()
    def evaluate(
        self,
        artifact: nn.Module,
        loader: Iterable[Batch],
        split: str,
        device: torch.device,
        val: Iterable[Batch] | None = None,
        shifted: Iterable[Batch] | None = None,
    ) -> dict[str, float]:
        """Scores a model; with ``val`` also with its logits over the ``temperature`` that suits these best.

        Returns:
            The metrics of :class:`~tasks.classification.metrics.Scores`; with ``val`` also ``nll_ts`` and ``ece_ts``
            after temperature scaling, with ``shifted`` those of this set with ``shifted_`` before their names.
        """
        logits, targets = self._answers(artifact, loader, device)
        found = self._scored(logits, targets)
        # All of the test set, and as every student reads it.
        if split == "test" and isinstance(loader, DataLoader) and len(logits) == self.images.sizes["test"]:
            self._classes().keep(artifact, logits.argmax(1))
        if val is not None:
            temperature = fit_temperature(*self._answers(artifact, val, device))
            scaled = self._scored(logits / temperature, targets)
            found |= {f"{name}_ts": scaled[name] for name in ("nll", "ece") if name in scaled}
            found["temperature"] = temperature
        if shifted is not None:
            scores = self._scored(*self._answers(artifact, shifted, device))
            found |= {f"shifted_{name}": value for name, value in scores.items()}
        return found

    def _answers(self, model: nn.Module, loader: Iterable[Batch], device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns logits and true classes of the labelled samples."""
        model.eval()
        logits, targets = [], []
        for batch in loader:
            batch = move(batch, device)
            labelled = batch.targets >= 0
            logits.append(self.forward(model, batch.inputs).logits[labelled])
            targets.append(batch.targets[labelled])
        return torch.cat(logits), torch.cat(targets)

    def _scored(self, logits: Tensor, targets: Tensor) -> dict[str, float]:
        metrics = self.metrics("test").to(logits.device)
        metrics.update(logits, targets)
        return scalars(metrics)

    def standard_error(self, first: float, second: float) -> float:
        """Returns that of the difference of two accuracies, in points, which falls with the size of the test set.

        It is that of two independent samples; for two models on the same images it is rather too large.
        """
        variance = sum(score / 100 * (1 - score / 100) for score in (first, second)) / len(self.images.test)
        return 100 * math.sqrt(variance)

    @torch.no_grad()
    def compare(self, models: Mapping[str, nn.Module], loader: Iterable[Batch]) -> Mapping[str, Mapping[str, float]]:
        """Returns for each model but ``teacher`` the ``agreement`` of their classes, in percent of the images."""
        if "teacher" not in models:
            return {}

        def predict(model: nn.Module, inputs: Tensor) -> Tensor:
            return self.forward(model, inputs).logits.argmax(1)

        found = self._classes().agreement(models, loader, predict)
        return {name: {"agreement": share} for name, share in found.items()}

    def _classes(self) -> Classes:
        info = self.dataset()
        return Classes(self.store, digest([info.digest, info.inputs, source_digest([__name__])]))

    # ---- what methods and people ask for ----------------------------------------------------------------------

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """``rotate(inputs, k)`` turns by k quarters; ``strong(inputs, generator)`` augments strongly; mix, warps."""
        own: dict[str, Callable[..., Any]] = {"rotate": rotate, "strong": self.images.strong, "mix": self.mix}
        return {**own, "with_scores": with_scores, **warping.image_ops(self.preprocess, warping.deform_images)}

    def mix(self, batch: Batch, order: Tensor, own: Tensor) -> Batch:
        """Mixes images; the targets become distributions over the classes, by the share of each image in its mixture.

        Args:
            batch: Of B images.
            order: Partner of each ``(B,)``.
            own: Share of the image itself ``(B,)``, or of each pixel ``(B, H, W)``.
        """
        share = mean_share(own)
        targets, known = distributions(batch.targets, len(self.preprocess.classes))
        return mixed(batch, order, own, mix(targets, order, share), known_mixture(known, order, share))

    def export(self, model: nn.Module) -> ExportPlan:
        """The whole model, on one image."""
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        image = self.example().inputs.to(device)
        image = image.contiguous(memory_format=torch.channels_last)
        return ExportPlan(model.eval(), (image,), ("images",), ("logits",), {"images": {0: "batch"}}, script=SCRIPT)

    @torch.no_grad()
    def picture(self, batch: Batch, models: Mapping[str, nn.Module]) -> Image:
        """Test images on which the models disagree, with what each takes them for.

        Further test batches follow the given one until there are enough such images.
        """
        inputs, targets, answers = [], [], []
        others = (b for b in self.data(0).test_dataloader() if not torch.isin(b.ids, batch.ids).any())
        for part in itertools.chain([batch], others):
            inputs.append(part.inputs)
            targets.append(part.targets)
            answers.append(
                torch.stack([self.forward(m.eval(), part.inputs).logits.softmax(1) for m in models.values()])
            )
            sure, classes = torch.cat(answers, 1).max(2)
            if int((classes != classes[0]).any(0).sum()) >= picture.CARDS:
                break
        found = dict(zip(models, zip(classes.cpu().numpy(), sure.cpu().numpy(), strict=True), strict=True))
        images = self.preprocess.denormalise(torch.cat(inputs)).cpu().numpy()
        return picture.render(images, torch.cat(targets).cpu().numpy(), found, self.preprocess.classes)

    @torch.no_grad()
    def side_by_side(self, views: Mapping[str, Batch], models: Mapping[str, nn.Module]) -> Image:
        """A row for each image, a column for each view, and under each what the models say."""
        found = {}
        for view, batch in views.items():
            answers = {
                name: self.forward(m.eval(), batch.inputs).logits.softmax(1).max(1) for name, m in models.items()
            }
            said = {name: (a.indices.cpu().numpy(), a.values.cpu().numpy()) for name, a in answers.items()}
            targets = batch.targets
            truth = targets.argmax(1) if targets.is_floating_point() else targets  # the larger share of a mixture
            found[view] = self.preprocess.denormalise(batch.inputs).cpu().numpy(), truth.cpu().numpy(), said
        return picture.columns(found, self.preprocess.classes)

    def read(self, path: Path) -> Batch:
        """Reads an image file."""
        return self.preprocess.read(path)

    def show(self, batch: Batch, model: nn.Module, name: str) -> Image:
        """An image with its most probable classes."""
        (found,) = self.predictions(model, batch)
        (pixels,) = self.preprocess.denormalise(batch.inputs).cpu().numpy()
        return picture.card(pixels, [(row["class"], row["probability"]) for row in found["classes"]], name)

    @torch.no_grad()
    def predictions(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Returns the (at most five) most probable classes of each image with their probabilities."""
        probs = self.forward(model, batch.inputs).logits.softmax(1)
        names = self.preprocess.classes
        best, indices = probs.topk(min(TOP, len(names)))
        return [
            {"classes": [{"class": names[i], "probability": round(p, 4)} for i, p in zip(row, own, strict=True)]}
            for row, own in zip(indices.tolist(), best.tolist(), strict=True)
        ]


def _outputs(outputs: Outputs | Tensor) -> Outputs:
    """Logits alone, e.g. out of a table, are outputs too."""
    return outputs if isinstance(outputs, Outputs) else Outputs(outputs)


def with_scores(outputs: Outputs | Tensor, values: Tensor) -> Outputs:
    """Returns raw outputs with other logits ``(B, classes)``."""
    return _outputs(outputs)._replace(logits=values)


def _count(part: Cut, classes: Sequence[str]) -> Counts:
    numbers = np.bincount(part.targets[part.targets >= 0], minlength=len(classes)).tolist()
    return Counts(len(part), dict(zip(classes, numbers, strict=True)), unit="images")


def _without(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != name}


def rotate(inputs: Tensor, k: int) -> Tensor:
    """Turns images ``(B, C, H, W)`` by ``k`` quarters, anticlockwise.

    Raises:
        KDBenchError: The images are not square.
    """
    height, width = inputs.shape[2:]
    if height != width:
        raise KDBenchError(f"images of {height} x {width} cannot be turned by a quarter: this needs square images")
    return inputs.rot90(k, (2, 3))
