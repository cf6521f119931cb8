"""Images and masks of any source: validation cut where the data set has none, read, augmented and batched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from lightning import LightningDataModule
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.utils.data import Dataset

from kdbench.base import rng
from kdbench.base.digest import digest
from kdbench.base.instantiate import check
from kdbench.base.store import Store
from kdbench.data import Key, SeededLoader
from kdbench.errors import KDBenchError
from kdbench.splits import SHARE, cut, limited
from kdbench.task import Batch
from tasks.images import Reader
from tasks.pixels import BACKGROUND
from tasks.segmentation.preprocess import MEAN, STD, Preprocess
from tasks.segmentation.sources import RENDERED, Source, open_source
from tasks.segmentation.sources.base import Sample
from tasks.segmentation.transforms import Transforms

#: Bytes of decoded images and masks that are kept in memory, where they are read in the training process.
KEPT = 2**29


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


@dataclass(frozen=True)
class Part:
    """The samples of one split.

    Attributes:
        samples: Them.
        first: Id of the first; ids count on from there.
    """

    samples: tuple[Sample, ...]
    first: int = 0

    def __len__(self) -> int:
        return len(self.samples)


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
        train, val = _held_out(source, options)
        test = _limited(layout.test, options.test, "test")
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


class Samples(Dataset[Batch]):
    """Batches by the keys of their samples; what is drawn for a sample depends on its key alone.

    Args:
        scenes: Whose.
        part: Which samples.
        positions: Which of the samples of ``part``, whose ids they keep; None for all.
        transforms: Augmentation, or None.
    """

    def __init__(
        self, scenes: Scenes, part: Part, positions: Sequence[int] | None = None, transforms: Transforms | None = None
    ) -> None:
        chosen = range(len(part)) if positions is None else positions
        self.scenes = scenes
        self.samples = [part.samples[i] for i in chosen]
        self.ids = torch.tensor([part.first + i for i in chosen], dtype=torch.long)
        self.keys = np.array([rng.derive(0, "sample", s.name) for s in self.samples], dtype=np.uint64)
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> Batch:
        return self.__getitems__([key])

    def __getitems__(self, keys: list[Key]) -> Batch:
        """Fetches a whole batch."""
        chosen = [key.sample for key in keys]
        read = [self.scenes.read(self.samples[i]) for i in chosen]
        preprocess, ids = self.scenes.preprocess, self.ids[chosen]
        if self.transforms is None:
            images = torch.stack([image for image, _ in read]).float() / 255
            return Batch(preprocess.normalise(images), torch.stack([mask for _, mask in read]).long(), ids)
        drawn = self.keys[chosen], keys[0].seed, keys[0].epoch
        mean = torch.tensor(preprocess.mean)[:, None, None]  # what padding is
        images, masks = self.transforms.crops([i.float() / 255 - mean for i, _ in read], [m for _, m in read], *drawn)
        return Batch(preprocess.normalise(self.transforms.light(images + mean, *drawn)), masks, ids)


class SceneData(LightningDataModule):
    """Loaders of an opened data set.

    Args:
        scenes: The data set.
        seed: Of order and augmentation.
    """

    def __init__(self, scenes: Scenes, seed: int) -> None:
        super().__init__()
        self.scenes = scenes
        self.seed = seed

    def _meta(self) -> list[int]:
        return cut([sample.name for sample in self.scenes.train.samples], purpose="meta")

    def _train(self, seed: int, positions: Sequence[int] | None = None) -> SeededLoader:
        scenes, options = self.scenes, self.scenes.options
        samples = Samples(scenes, scenes.train, positions, scenes.transforms)
        return SeededLoader(samples, options.batch_size, seed, None, True, options.workers)

    def _scored(self, part: Part) -> SeededLoader:
        """Images of several sizes come one by one, whole."""
        alike = len({self.scenes.size(sample) for sample in part.samples}) == 1
        options = self.scenes.options
        samples = Samples(self.scenes, part)
        return SeededLoader(samples, options.batch_size if alike else 1, 0, None, False, options.workers)

    def train_dataloader(self, without_meta: bool = False) -> SeededLoader:
        """Returns augmented training samples in the order of the seed, ``without_meta`` the rest of that cut."""
        kept = sorted({*range(len(self.scenes.train))} - {*self._meta()}) if without_meta else None
        return self._train(self.seed, kept)

    def meta_dataloader(self) -> SeededLoader:
        """Returns the further cut of the training samples that bilevel methods use."""
        return self._train(rng.derive(self.seed, "meta"), self._meta())

    def val_dataloader(self) -> SeededLoader:
        """Returns the validation samples."""
        return self._scored(self.scenes.val)

    def test_dataloader(self) -> SeededLoader:
        """Returns the test samples."""
        return self._scored(self.scenes.test)


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


def _held_out(source: Source, options: DataOptions) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Returns training and validation samples; validation never meets those of a run with more or fewer of them."""
    layout, every = source.layout, source.layout.train
    most = min(options.train or len(every), len(every))
    if layout.val is not None:
        return _limited(every, most, "train"), layout.val
    if most < 2:
        raise KDBenchError(
            f"{layout.name}: {most} image to train on (data.train={options.train}); expected two at least, as "
            "validation is cut from them"
        )
    held_out = cut([sample.name for sample in every])
    few = len(held_out) if most == len(every) else max(1, round(SHARE * most))
    val = _limited([every[i] for i in held_out], few, "val")
    rest = [sample for i, sample in enumerate(every) if i not in {*held_out}]
    return _limited(rest, most - few, "train"), val


def _limited(samples: Sequence[Sample], most: int | None, purpose: str) -> tuple[Sample, ...]:
    """Returns at most so many samples, by the hash of their names, in their order."""
    return tuple(samples[i] for i in limited([sample.name for sample in samples], most, purpose))
