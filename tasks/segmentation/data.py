"""Images and masks of any source: validation cut where the data set has none, read, augmented and batched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from kdbench.base.digest import digest
from kdbench.base.instantiate import check
from kdbench.base.store import Store
from kdbench.data import Key
from kdbench.errors import KDBenchError
from kdbench.task import Batch
from tasks import parts
from tasks.images import Reader
from tasks.parts import KEPT, Part, at_most, held_out
from tasks.pixels import BACKGROUND
from tasks.segmentation.preprocess import MEAN, STD, Preprocess
from tasks.segmentation.sources import RENDERED, Source, open_source
from tasks.segmentation.sources.base import Sample
from tasks.segmentation.transforms import Transforms


@dataclass(frozen=True)
class DataOptions:
    """Options of ``data``.

    Attributes:
        source: Which data set: ``streets``, or one of :data:`~tasks.segmentation.sources.layouts.LAYOUTS`.
        root: Its folder; None for the rendered one.
        classes: Names of those that are learned; what is of another one is ignored. None for all.
        ignore: Numbers in masks that are of no class, beside those of the data set.
        size: Height and width to which images and masks are resized; None as they are.
        mean: Per channel, of images in 0..1; None for ImageNet's.
        std: Likewise.
        background: Colour under transparent pixels; None for gray.
        render: Of rendered images, options of :class:`~tasks.segmentation.streets.Render`.
        train: Most training images, validation included; how many are rendered.
        test: Most test images; how many are rendered.
        batch_size: Images a batch.
        workers: Loader processes; 0 reads in the training process.
        transforms: Options of :class:`~tasks.segmentation.transforms.Transforms`.
    """

    source: str
    root: str | None = None
    classes: list[str] | None = None
    ignore: list[int] = field(default_factory=list)
    size: tuple[PositiveInt, PositiveInt] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    background: str | None = None
    render: dict[str, Any] = field(default_factory=dict)
    train: PositiveInt | None = None
    test: PositiveInt | None = None
    batch_size: PositiveInt = 8
    workers: NonNegativeInt = 0
    transforms: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.std is not None and len(self.std) != len(STD):
            raise KDBenchError(f"data.std={list(self.std)}: expected a number for each of {len(STD)} channels")


class Scenes:
    """An opened data set, its splits cut.

    Sample ids count through train, validation and test, so that training ids are 0 to N - 1.

    Attributes:
        source: Where files are read.
        options: Of the data.
        preprocess: What a model needs to read such images, and the names of data set and classes.
        train: The training samples.
        val: The validation samples.
        test: The test samples.
        transforms: Of training.
        digest: Of content, classes, size and cuts.
        learned: The same of what is not test, and how its values are scaled.
    """

    def __init__(self, source: Source, options: DataOptions) -> None:
        layout = source.layout
        self.source = source
        self.options = options
        self.preprocess = Preprocess(
            layout.name,
            layout.labels.classes,
            options.mean or MEAN,
            options.std or STD,
            options.size,
            options.size or _most_common([source.facts[sample.name].size for sample in layout.test]),
            Reader(options.background or BACKGROUND, source.range),
        )
        if layout.val is None:
            train, val = held_out(layout.train, options.train, layout.name)
        else:
            train, val = at_most(layout.train, options.train, "train"), layout.val
        test = at_most(layout.test, options.test, "test")
        self.train, self.val = Part(train), Part(val, len(train))
        self.test = Part(test, len(train) + len(val))
        self.transforms = Transforms(**check("data.transforms", Transforms, options.transforms))
        names = [[sample.name for sample in part.samples] for part in (self.train, self.val, self.test)]
        self.digest = digest([source.digest, options.size, names])
        self.learned = digest([source.content((*train, *val)), options.size, names[:2], source.range])
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}
        sizes = {self.size(sample) for sample in train}
        if len(sizes) > 1 and self.transforms.crop is None:
            found = ", ".join(f"{wide} x {tall}" for tall, wide in sorted(sizes)[:3])
            raise KDBenchError(
                f"{layout.name}: training images are of {len(sizes)} sizes ({found}, …); set "
                "data.transforms.crop=[H,W], which cuts batches of one size, or data.size=[H,W], which resizes all"
            )

    @property
    def embedded(self) -> bool:
        """Whether the data set came without files."""
        return self.source.layout.embedded

    def size(self, sample: Sample) -> tuple[int, int]:
        """Returns height and width of a sample as it is read."""
        return self.options.size or self.source.facts[sample.name].size

    def read(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Returns image ``(3, H, W)`` and mask ``(H, W)``, both uint8."""
        found = self._kept.get(sample.name)
        if found is None:
            image = self.preprocess.decode(sample.image)
            found = image, self.preprocess.fit(self.source.reader.read(sample.mask))
            if self.keeps:
                self._kept[sample.name] = found
        return found

    @property
    def keeps(self) -> bool:
        """Whether decoded images stay in memory."""
        every = (*self.train.samples, *self.val.samples, *self.test.samples)
        return not self.options.workers and sum(4 * tall * wide for tall, wide in map(self.size, every)) <= KEPT

    def module(self, seed: int) -> SceneData:
        """Returns the loaders; order and augmentation follow ``seed``."""
        return SceneData(self, seed)


class Samples(parts.Samples[Sample, Scenes]):
    """Batches of images and masks; see :class:`tasks.parts.Samples`."""

    def __getitems__(self, keys: list[Key]) -> Batch:
        """Fetches a whole batch."""
        chosen = [key.sample for key in keys]
        read = [self.source.read(self.samples[i]) for i in chosen]
        preprocess, ids = self.source.preprocess, self.ids[chosen]
        if self.transforms is None:
            images = torch.stack([image for image, _ in read]).float() / 255
            return Batch(preprocess.normalise(images), torch.stack([mask for _, mask in read]).long(), ids)
        drawn = self.keys[chosen], keys[0].seed, keys[0].epoch
        mean = torch.tensor(preprocess.mean)[:, None, None]  # what padding is
        images, masks = self.transforms.crops([i.float() / 255 - mean for i, _ in read], [m for _, m in read], *drawn)
        return Batch(preprocess.normalise(self.transforms.light(images + mean, *drawn)), masks, ids)


class SceneData(parts.PartLoaders):
    """Loaders of an opened data set; images of several sizes are scored one by one, whole.

    Args:
        scenes: The data set.
        seed: Of order and augmentation.
    """

    def __init__(self, scenes: Scenes, seed: int) -> None:
        super().__init__(scenes, Samples, seed)
        self.scenes = scenes

    def together(self, part: Part[Sample]) -> bool:
        """Says whether all images are of one size."""
        return len({self.scenes.size(sample) for sample in part.samples}) == 1


def open_scenes(options: Mapping[str, Any], store: Store, progress: bool = True) -> Scenes:
    """Opens a data set and cuts its splits.

    Args:
        options: Of :class:`DataOptions`.
        store: Where rendered images lie, and what was found out about files.
        progress: Whether to show one while images are rendered.

    Raises:
        KDBenchError: Options or files that are not as they should be.
    """
    given = DataOptions(**check("data", DataOptions, options))
    rendered = {"train": given.train, "test": given.test} if given.source == RENDERED else {}
    source = open_source(
        given.source,
        given.root,
        store,
        classes=given.classes,
        ignore=given.ignore,
        render=given.render,
        progress=progress,
        **rendered,
    )
    return Scenes(source, given)


def _most_common(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return Counter(sizes).most_common(1)[0][0]
