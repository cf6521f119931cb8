"""Tasks: a domain's batches, models, supervised loss, metrics and pictures. A task knows no teacher and no method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from kdbench.base.startup import stand_ins

# It loads half of SciPy to give one of its metrics of speech an old name of this function.
with stand_ins({"scipy.signal": SimpleNamespace(hamming=None)}):
    from torchmetrics import Metric, MetricCollection

from kdbench.errors import KDBenchError
from kdbench.features import Feature, Kind

if TYPE_CHECKING:
    from lightning import LightningDataModule
    from PIL.Image import Image


@dataclass(frozen=True)
class Counts:
    """What a split holds.

    Attributes:
        samples: Its samples.
        labels: What of its labels a model can learn from, by class.
        scored: What of them the primary metric counts, by class; all by default.
        reason: Why a class has none, and the nearest fix; for the end of an error line.
        unit: What is labelled.
    """

    samples: int
    labels: Mapping[str, int]
    scored: Mapping[str, int] | None = None
    reason: str = ""
    unit: str = "samples"

    @property
    def judged(self) -> Mapping[str, int]:
        """What the primary metric counts, by class."""
        return self.labels if self.scored is None else self.scored


@dataclass
class Batch:
    """A batch of samples, as a task's loader collates it.

    Attributes:
        inputs: What a model reads; the task knows its structure.
        targets: What the supervised loss and the metrics read.
        ids: ``(B,)`` integer sample ids, stable over epochs; with the capability ``sample_id`` those of the N training
            samples are 0 to N - 1.
        supervised: ``(B,)`` samples whose labels count, or None for all.
        distilled: ``(B,)`` samples that are distilled, or None for all.
        memo: Values that a task works out once per batch (e.g. anchor assignment), shared by all roles.
        drawn: Which view of a pool of views its samples are seen in (``teacher.replay``); None of other inputs.
    """

    inputs: Any
    targets: Any
    ids: Tensor
    supervised: Tensor | None = None
    distilled: Tensor | None = None
    memo: dict[str, Any] = field(default_factory=dict)
    drawn: int | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def with_inputs(self, inputs: Any, **changes: Any) -> Batch:
        """Returns this batch with other inputs (and other fields) and an empty memo."""
        return replace(self, **{"inputs": inputs, "memo": {}, "drawn": None, **changes})


@dataclass(frozen=True)
class ExportPlan:
    """The exportable part of a model.

    Attributes:
        module: What is exported and whose latency is measured.
        example: Positional example inputs.
        names: Input names.
        outputs: Output names, of all tensors that the module returns; the exporter chooses where it is empty.
        dynamic: By input, what its axes of any length count: ``{"images": {0: "batch"}}``. Other axes are as long as
            those of the example; axes that count the same are equally long.
        least: Smallest length of what axes count, where that is more than one: ``{"height": 64}``.
        facts: What using it takes beside the record's ``dataset``, as JSON.
        script: Modules that read an input, run the ONNX file and print predictions as ``kdbench.predict`` does, by
            :func:`kdbench.script.main`. With that they are joined to one file beside the ONNX file, and import the
            standard library, NumPy, Pillow and ONNX Runtime alone.
    """

    module: nn.Module
    example: tuple[Any, ...]
    names: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    least: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    script: tuple[str, ...] = ()


#: Takes a feature of samples as they were to where they are after they have been moved.
Carry: TypeAlias = Callable[[Feature], Feature]


@dataclass(frozen=True)
class Warp:
    """How samples are moved in space by a few numbers, with gradients to these.

    Attributes:
        moves: Names of the numbers. All zero leave a sample where it is; 1 is a move by about its own size.
        move: Takes a batch and numbers ``(B, len(moves))`` and returns it moved, labels and all, and what carries a
            feature of it along.
    """

    moves: tuple[str, ...]
    move: Callable[[Batch, Tensor], tuple[Batch, Carry]]

    def __call__(self, batch: Batch, numbers: Tensor) -> tuple[Batch, Carry]:
        """Moves a batch."""
        return self.move(batch, numbers)


@dataclass(frozen=True)
class DatasetInfo:
    """What a record says of the data.

    Attributes:
        name: Of the data set.
        embedded: Whether it comes without files.
        digest: Of its content and cuts.
        sizes: Samples by split.
        learned: Digest of what a training reads of it, training and validation samples, in the form in which it does.
            While it stays, models are not trained anew but only scored where the test set has changed. Empty: any
            change trains anew.
        fold: Which cut it is, of several.
        classes: Names in the order of the outputs; empty where there are none.
        inputs: How a user's file becomes what a model reads (size, normalisation, …), as JSON; the task knows its keys.
        notes: Further flags of the record, e.g. how values were scaled.
    """

    name: str
    embedded: bool
    digest: str
    sizes: Mapping[str, int]
    learned: str = ""
    fold: str | int | None = None
    classes: Sequence[str] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Task:
    """Base of all tasks; a domain overrides what differs.

    Attributes:
        name: As in ``task=``.
        capabilities: What methods may rely on. Where one does, these are checked before anything trains
            (:mod:`kdbench.training.promises`):

            * ``sample_id``: ids of training samples are 0 to N - 1, where N is ``dataset().sizes["train"]``;
            * ``single_label``: class scores are a softmax's and come with the one true class of each row;
            * ``differentiable_input``: inputs are one floating-point tensor, to which gradients reach;
            * ``meta``: the data module has ``meta_dataloader()`` and ``train_dataloader(without_meta=True)``;
            * ``rotate``, ``strong_view``: :meth:`ops` has ``rotate(inputs, quarters)``, ``strong(inputs, generator)``;
            * ``dense_label``: class scores are a softmax's, maps ``(B, C, *space)``, and :meth:`ops` has
              ``dense_label(batch)``: the class of each position of the inputs, integers ``(B, *size)``, -1 where it is
              unknown or does not count. It reads the batch's targets alone;
            * ``pyramid``: the grids that :meth:`kinds` names are the levels of one pyramid, shallow to deep, and its
              head reads them all;
            * ``label_as_input``: inputs are one tensor ``(B, C, *size)``, and :meth:`ops` has
              ``label_as_input(architecture)``: the architecture of the network that takes one more input channel. That
              network reads inputs without it as if it were zero; given its own architecture, the op returns it;
            * ``mixable``: :meth:`ops` has ``mix(batch, order, own)``: the batch whose samples are mixed, inputs and
              targets, with those at ``order`` ``(B,)``; ``own`` says how much of each is its own, ``(B,)`` from 0 to 1,
              or by position of the inputs ``(B, *size)``. Ones give the inputs back;
            * ``class_scores``: :meth:`ops` has ``with_scores(outputs, values)``: raw outputs with other class scores,
              of the shape that :meth:`describe` gives, for the supervised loss;
            * ``warp``: :meth:`ops` has ``warp``, a :class:`Warp`: samples are moved in space, and what belongs to them;
            * ``deform``: :meth:`ops` has ``deform(batch, source)``, which does so along ``source``: positions of the
              moved samples ``(N, 2)`` to those they come from ``(B, N, 2)``, across and down, edges at -1 and 1;
            * ``pixels``: inputs are one tensor ``(B, C, H, W)``, :meth:`ops` has ``to_pixels(inputs)``, the same from 0
              to 1, and ``to_inputs(pixels)``. All three pass gradients on;
            * ``sectors``: :meth:`ops` has ``swap_sectors(batch, order, start, width)``: each sample with what its
              partner has in a sector of azimuths, labels and all; ``start`` and ``width`` ``(B,)`` are shares of those
              covered. A width of zero gives the sample back. There may be ``paste_instances(batch, source, order,
              turns, pasted)``: R copies of the objects of partners in ``source``, turned by shares ``turns`` ``(B, R)``
              of those azimuths, are added to the samples that ``pasted`` ``(B,)`` names;
            * ``boxes``: :meth:`ops` has ``boxes(batch)``: the true boxes ``(B, M, 4)`` float, left, top, right, bottom
              in input pixels, and their classes ``(B, M)`` integers, -1 in rows of no box, by the targets alone;
            * ``cross_head``: :meth:`ops` has ``cross_head(model, cls, reg)``: features by name, ``logits`` and
              ``boxes`` among them, that the rest of a detector's head makes of maps ``(B, C, h, w)`` of all levels,
              which its last stacked convolutions read; ``Levels`` called ``cls_tower`` and ``reg_tower`` are these;
            * ``node_scores``: class scores are a softmax's, ``(N, C)``, one row for each node of every feature of the
              kind ``Nodes``, in their order, whose edges count all rows;
            * ``assigned``: :meth:`ops` has ``assigned(model, batch, boxes)``: for each row of such a feature the true
              box that the detector's own assigner gives it, ``(B, A)`` integers into the M of ``boxes``, -1 for none.
            * ``objects``: :meth:`ops` has ``objects(model, outputs)``, what a detector finds, one row each: ``labels``,
              ``scores``, ``batch``, …; ``true_objects(batch)``, too; ``with_objects(batch, objects)``, its inverse;
            * ``peaks``: :meth:`ops` has ``peaks(batch, count)``: how near an object's centre each row of scores is;
            * ``generates``: :meth:`ops` has ``generate(model, batch, generator, temperature=1.0)``: the batch whose
              samples the model writes itself behind what is given of each, drawn from a generator; none of them is
              supervised, and its memo says under ``tokens`` how many were written. A plugin calls it by
              :meth:`kdbench.signals.Signals.generate`;
            * ``writes``: :meth:`ops` has ``write(model, count, generator, temperature)``: ``count`` samples that the
              model writes, drawn from a generator, or the most probable ones where the temperature is None: tensors by
              name, one row a sample, among them ``tokens`` ``(N,)``, how many were written of each. With
              ``data.corpus=DIR``, where they lie as ``corpus.safetensors``, the task's training samples are these, all
              supervised; ``data.beside=true`` leaves its own beside them (``teacher.corpus``);
            * ``forgets``: :meth:`ops` has ``forgotten(batch)``: ``(B,)`` bool, samples that are to be forgotten, by the
              batch's targets alone; none of them is supervised;
            * ``translates``: :meth:`ops` has ``translate(batch, other)``: the batch of the same samples as another task
              of this kind, whose classes are called otherwise, reads them.

            Others are between a task and the plugins that know them.
        primary: Key of the primary metric in :meth:`metrics`.
        higher_is_better: Direction of the primary metric.
        aim: Metric of :meth:`metrics` whose distance to that of the student trained alone is the primary one: others
            are to equal that student, not to beat it (unlearning: it was trained without what is to be forgotten). Then
            lower is better, and :attr:`selection` is a metric of :meth:`metrics`. Empty elsewhere.
        selection: Metric that picks epochs and factors on validation, of the same direction; the primary one by
            default. A task whose primary metric needs a large set names one that does not.
        unit: Of the primary metric: ``%`` where it goes to 100; None where it has none.
        metric_law: How the primary metric is made of the sums of what samples contribute, one of
            :data:`kdbench.base.outcomes.LAWS`; then a run keeps :meth:`contributions` beside its record. Empty where it
            cannot be told from sums.
        suffixes: Lower-case endings of the files in a folder that :meth:`read` reads; empty for all of them.
        renamed: Keys of ``data`` in earlier records by their names of today, so that those are still read.
    """

    name: ClassVar[str]
    capabilities: ClassVar[frozenset[str]] = frozenset()
    primary: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    aim: ClassVar[str] = ""
    selection: ClassVar[str] = ""
    unit: ClassVar[str | None] = None
    metric_law: ClassVar[str] = ""
    no_twin: str = ""
    suffixes: ClassVar[tuple[str, ...]] = ()
    renamed: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.selection = cls.selection or getattr(cls, "primary", "")

    @classmethod
    def _lacks(cls, method: str) -> KDBenchError:
        return KDBenchError(f"task {getattr(cls, 'name', cls.__name__)} does not implement {method}()")

    @classmethod
    def kinds(cls, side: Mapping[str, Any]) -> dict[str, Kind]:
        """Returns the features, shallow to deep, that a pair's ``student`` or ``teacher`` entry can produce.

        It reads the configuration alone, so that compatibility is computed without running anything.
        """
        raise cls._lacks("kinds")

    @classmethod
    def networks(
        cls, named: Mapping[str, Mapping[str, Any]], other: Mapping[str, Any] | None
    ) -> dict[str, dict[str, Any]]:
        """Returns sides of a pair for networks that a user names: ``student=NAME``, ``teacher=NAME``.

        Args:
            named: By side, ``model_name`` and the options that the user gives beside it.
            other: The other side of the pair, where one alone is named.

        Returns:
            By side, ``architecture``, ``taps`` and what else an entry of a pair holds.
        """
        side, own = next(iter(named.items()))
        raise KDBenchError(
            f"{side}={own['model_name']}: task {cls.name} knows no networks by name: {side}._target_=package.Class"
        )

    def prepare(self, progress: bool = True) -> None:
        """Makes or checks the data once; may be called by several processes at a time."""

    def dataset(self) -> DatasetInfo:
        """Returns what a record says of the data set."""
        raise self._lacks("dataset")

    def restore(self, info: DatasetInfo) -> None:
        """Takes what a record says of the data from now on, instead of opening them: they need not be there.

        Models that are built then get the weights of the record. Nothing by default, which suits a task that reads
        inputs and builds models by its options alone.
        """

    def example(self) -> Batch:
        """Returns a made-up batch of one sample, without labels, of the shape that models read; opens no data."""
        raise self._lacks("example")

    def counts(self) -> Mapping[str, Counts]:
        """Returns what each split holds by class, so that a lack is found before training; nothing by default."""
        return {}

    def data(self, seed: int) -> LightningDataModule:
        """Returns train, val and test loaders; order and augmentation follow ``seed``.

        With the capability ``meta``, for bilevel methods, also ``meta_dataloader()``, a further cut of train, and what
        is left of train by ``train_dataloader(without_meta=True)``.
        """
        raise self._lacks("data")

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """Creates a model; its initial weights come from torch's global generator."""
        raise self._lacks("build")

    def forward(self, model: nn.Module, inputs: Any) -> Any:
        """Returns the raw outputs of ``model``, without any loss."""
        return model(inputs)

    def describe(self, outputs: Any, taps: Mapping[str, Any], batch: Batch) -> dict[str, Feature]:
        """Gives raw outputs and tapped tensors their kind, coordinates and masks."""
        raise self._lacks("describe")

    def mark(self, feature: Feature, batch: Batch) -> Feature:
        """Gives class scores and predicted values what belongs to the batch: ``mask``, ``weight``, ``target``.

        :meth:`describe` gives the same; stored values get it here (``teacher.replay``). By default there is none.
        """
        return feature

    def augmented(self) -> bool:
        """Says whether training samples differ from epoch to epoch."""
        return True

    def loss(self, model: nn.Module, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Returns the supervised terms, unweighted."""
        raise self._lacks("loss")

    def loss_weights(self) -> Mapping[str, float]:
        """Returns the weight of each supervised term; 1 where absent."""
        return {}

    def metrics(self, split: str) -> MetricCollection:
        """Returns the metrics of a split; one of them is :attr:`primary`."""
        raise self._lacks("metrics")

    def score(self, metrics: MetricCollection, model: nn.Module, outputs: Any, batch: Batch) -> None:
        """Feeds one batch to the metrics."""
        raise self._lacks("score")

    def contributions(self, outputs: Any, batch: Batch) -> Tensor:
        """Returns what each sample of a test batch contributes to the primary metric, as :attr:`metric_law` says.

        Rows are those of the batch that count, in its order; their last numbers say what is true, whatever the model.
        """
        raise self._lacks("contributions")

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """Returns what ``mix``, ``warp``, ``noise_labels``, … mean in this domain, by capability."""
        return {}

    def export(self, model: nn.Module) -> ExportPlan:
        """Returns what of ``model`` is exported and an example."""
        raise self._lacks("export")

    def measured(self, model: nn.Module) -> ExportPlan:
        """Returns what of ``model`` has its operations and its latency recorded: by default what is exported."""
        return self.export(model)

    def picture(self, batch: Batch, models: Mapping[str, nn.Module]) -> Image:
        """Draws what a person would look at: one test batch through each of the named models."""
        raise self._lacks("picture")

    def side_by_side(self, views: Mapping[str, Batch], models: Mapping[str, nn.Module]) -> Image:
        """Draws the same samples in several views, each with what the models say of it.

        By default :meth:`picture` of each view, one below the other.
        """
        from PIL import Image

        drawn = [self.picture(batch, models) for batch in views.values()]
        width, height = max(image.width for image in drawn), sum(image.height for image in drawn)
        joined, top = Image.new("RGB", (width, height), "white"), 0
        for image in drawn:
            joined.paste(image, (0, top))
            top += image.height
        return joined

    def media(self, batch: Batch, models: Mapping[str, nn.Module]) -> Mapping[str, Any]:
        """Returns interactive media for W&B as plain arrays by kind; nothing by default."""
        return {}

    def compare(self, models: Mapping[str, nn.Module], loader: Iterable[Batch]) -> Mapping[str, Mapping[str, float]]:
        """Returns, by model, metrics that take several of them, e.g. agreement with ``teacher``; none by default."""
        return {}

    def read(self, path: Path) -> Batch:
        """Reads one file of a user as a batch of one, for ``python -m kdbench.predict``."""
        raise self._lacks("read")

    @property
    def reads_text(self) -> bool:
        """Whether words can be given themselves, instead of a file: :meth:`parse`."""
        return type(self).parse is not Task.parse

    def parse(self, text: str) -> Batch:
        """Reads words of a user as a batch of one; a task that does is given what is no file (``kdbench.predict``)."""
        raise self._lacks("parse")

    def show(self, batch: Batch, model: nn.Module, name: str) -> Image:
        """Draws one input of a user, called ``name``, with what the model says of it; as :meth:`picture` by default."""
        return self.picture(batch, {name: model})

    def predictions(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Returns JSON-ready predictions for each sample."""
        raise self._lacks("predictions")

    def beside(self, data: Any) -> Mapping[str, Iterable[Batch]]:
        """Returns what scoring takes beside the test set (validation to calibrate on, a second test set).

        Args:
            data: What :meth:`data` returned.

        Returns:
            Loaders by the argument of :meth:`evaluate` that takes them, as the model that is scored reads them; none by
            default.
        """
        return {}

    def standard_error(self, first: float, second: float) -> float:
        """Returns the standard error of the difference of two primary scores of the test set; 0 where it is unknown.

        It is asked for where the configuration gives no ``task.noise``.
        """
        return 0.0

    @torch.no_grad()
    def evaluate(
        self, artifact: nn.Module, loader: Iterable[Batch], split: str, device: torch.device
    ) -> dict[str, float]:
        """Scores what training produced: here a model, in eval mode, over one pass of ``loader``.

        Returns:
            Flat metrics; ``self.primary`` is among them.
        """
        artifact.eval()
        metrics = self.metrics(split).to(device)
        for batch in loader:
            batch = move(batch, device)
            self.score(metrics, artifact, self.forward(artifact, batch.inputs), batch)
        return scalars(metrics)


def move(batch: Batch, device: torch.device) -> Batch:
    """Moves a batch to a device; a batch that is there already is returned as it is."""
    if batch.ids.device == device:
        return batch
    from lightning.fabric.utilities import move_data_to_device

    return move_data_to_device(batch, device)


def scalars(metrics: MetricCollection | Metric) -> dict[str, float]:
    """Computes metrics as plain floats, those in dictionaries by joined names; what is undefined is left out.

    Every process scores all of a set, so metrics have nothing to exchange.
    """
    for metric in metrics.values() if isinstance(metrics, MetricCollection) else [metrics]:
        metric.distributed_available_fn = _alone
    values: dict[str, float] = {}
    for name, value in _flat(metrics.compute()):
        if name in values:
            raise KDBenchError(f"two metrics are called {name!r}: give one of them another name")
        values[name] = value
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields every number under one name: ``{"iou": {"road": 0.5}}`` is ``iou.road``."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, int | float) or (hasattr(value, "item") and math.prod(value.shape) == 1):
            yield name, float(value)
        else:
            shape = f" of the shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
            raise KDBenchError(
                f"metric {name!r} is a {type(value).__name__}{shape}, expected a number, or a dictionary that names "
                "each"
            )


def _alone() -> bool:
    return False
