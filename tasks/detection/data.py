"""Images and boxes of any source: validation cut from train, read, augmented and batched."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from kdbench.base import rng
from kdbench.base.digest import digest
from kdbench.base.instantiate import check
from kdbench.base.store import Store
from kdbench.data import Key
from kdbench.errors import KDBenchError
from kdbench.task import Batch
from tasks import parts
from tasks.detection.coco import FILES, Sample, examine, read_annotations
from tasks.detection.outputs import Inputs, Target
from tasks.detection.scenes import scenes
from tasks.images import Reader
from tasks.parts import KEPT, Part, at_most, held_out
from tasks.segmentation.transforms import Transforms as Light

#: Least side of a box that is learned, pixels of the input.
LEAST = 1.0


@dataclass(frozen=True)
class Transforms:
    """Training augmentation whose random numbers belong to (seed, epoch, sample).

    Attributes:
        flip: Mirror every other image.
        colour: Largest share by which brightness, contrast and saturation change.
    """

    flip: bool = True
    colour: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def active(self) -> bool:
        """Whether it changes anything."""
        return self.flip or self.colour > 0


@dataclass(frozen=True)
class DataOptions:
    """Options of ``data``.

    Attributes:
        root: Folder in COCO's layout, or None for rendered scenes.
        files: By split (``train``, ``test``) the annotations and the folder of the images, below ``root``.
        classes: Names of those that are learned; None for all.
        size: Lengths in pixels within which the shorter and the longer side of an image are scaled, keeping their
            ratio; None as they are.
        render: Of rendered scenes, options of :class:`~tasks.detection.scenes.Render`; nothing is with ``root``.
        train: Most training images, validation included.
        test: Most test images.
        batch_size: Images a batch.
        workers: Loader processes; 0 reads in the training process.
        transforms: Options of :class:`Transforms`.
    """

    root: str | None = None
    files: dict[str, tuple[str, str]] = field(default_factory=dict)
    classes: list[str] | None = None
    size: tuple[PositiveInt, PositiveInt] | None = None
    render: dict[str, Any] = field(default_factory=dict)
    train: PositiveInt | None = None
    test: PositiveInt | None = None
    batch_size: PositiveInt = 8
    workers: NonNegativeInt = 0
    transforms: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = self.files.keys() - FILES.keys()
        if unknown:
            raise KDBenchError(f"data.files.{min(unknown)}: expected {' or '.join(FILES)}")


@dataclass(frozen=True)
class Preprocess:
    """How image files become what a detector reads.

    Attributes:
        name: Of the data set.
        classes: Class names, in the order of the scores.
        size: As in :class:`DataOptions`.
        typical: Height and width of a made-up image.
        reader: How image files are decoded.
    """

    name: str
    classes: tuple[str, ...]
    size: tuple[int, int] | None = None
    typical: tuple[int, int] = (128, 160)
    reader: Reader = Reader()

    def factor(self, size: tuple[int, int]) -> float:
        """Returns by what an image of some height and width is scaled."""
        return 1.0 if self.size is None else min(self.size[0] / min(size), self.size[1] / max(size))

    def decode(self, path: Path) -> Tensor:
        """Decodes an image file, scaled, ``(3, H, W)`` uint8."""
        return self.scaled(self.reader.decode(path, 3))

    def scaled(self, image: Image.Image) -> Tensor:
        """Scales an RGB image, ``(3, H, W)`` uint8."""
        factor = self.factor((image.height, image.width))
        if factor != 1:
            size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
            image = image.resize(size, Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())

    def as_inputs(self) -> dict[str, Any]:
        """Returns what a record says beside the names, as JSON."""
        size = None if self.size is None else [*self.size]
        return {"size": size, "typical": [*self.typical], **asdict(self.reader)}


class Source:
    """An opened data set, its splits cut.

    Sample ids count through train, validation and test, so that training ids are 0 to N - 1.

    Args:
        options: Of the data.
        store: Where rendered scenes lie, and what was found out about files.
        progress: Whether to show one while scenes are rendered.

    Raises:
        KDBenchError: Files that are not as they should be.
    """

    def __init__(self, options: DataOptions, store: Store, progress: bool = True) -> None:
        self.options = options
        self.embedded = options.root is None
        if options.root is None:
            root = scenes(store, options.render, progress)
        else:
            root = Path(options.root).expanduser()
            if not root.is_dir():
                raise KDBenchError(f"data.root={options.root}: there is no such folder; expected COCO's layout")
        train, test = (self._read(root, split) for split in FILES)
        known = [*train.categories.values()]
        if options.classes is None and known != [*test.categories.values()]:
            raise KDBenchError(f"{train.path} and {test.path.name} have other categories: {known[:5]}, …")
        contents = [examine(store, annotated) for annotated in (train, test)]
        kept, val = held_out(train.samples, options.train, str(train.path))
        limited = at_most(test.samples, options.test, "test")
        self.train, self.val = Part(kept), Part(val, len(kept))
        self.test = Part(limited, len(kept) + len(val))
        classes = tuple(known if options.classes is None else options.classes)
        name = "streets-boxes" if self.embedded else "coco"
        factors = Preprocess(name, classes, options.size)
        typical = limited[0].size
        scaled = (round(typical[0] * factors.factor(typical)), round(typical[1] * factors.factor(typical)))
        self.preprocess = Preprocess(name, classes, options.size, scaled)
        self.transforms = Transforms(**check("data.transforms", Transforms, options.transforms))
        parts = ((self.train, contents[0]), (self.val, contents[0]), (self.test, contents[1]))
        told = [[[s.name, held[s.name], *_labels(s)] for s in part.samples] for part, held in parts]
        self.digest = digest([classes, options.size, told])
        self.learned = digest([classes, options.size, told[:2]])
        self._kept: dict[Path, Tensor] = {}

    def _read(self, root: Path, split: str) -> Any:
        annotations, images = self.options.files.get(split, FILES[split])
        return read_annotations(root / annotations, root / images, self.options.classes)

    def read(self, sample: Sample) -> Tensor:
        """Returns an image ``(3, H, W)`` uint8."""
        found = self._kept.get(sample.path)
        if found is None:
            found = self.preprocess.decode(sample.path)
            if not self.options.workers and (len(self._kept) + 1) * found.numel() <= KEPT:
                self._kept[sample.path] = found
        return found

    def target(self, sample: Sample) -> Target:
        """Returns what is on an image, in pixels of the input."""
        truth, factor = sample.truth, self.preprocess.factor(sample.size)
        boxes = torch.from_numpy(truth.boxes) * factor
        crowd, labels = torch.from_numpy(truth.crowd), torch.from_numpy(truth.labels)
        seen = ~crowd & ((boxes[:, 2:] - boxes[:, :2]) >= LEAST).all(1)
        return Target(boxes[seen], labels[seen], boxes[crowd])

    def sample(self, number: int) -> Sample:
        """Returns the sample of an id."""
        part = next(p for p in (self.test, self.val, self.train) if number >= p.first)
        return part.samples[number - part.first]


def open_source(options: Mapping[str, Any], store: Store, progress: bool = True) -> Source:
    """Opens a data set; see :class:`Source`."""
    return Source(DataOptions(**check("data", DataOptions, options)), store, progress)


def _labels(sample: Sample) -> list[str]:
    return [hashlib.sha256(b"".join(np.ascontiguousarray(v).tobytes() for v in sample.truth)).hexdigest()[:32]]


def collate(images: Sequence[Tensor], targets: list[Target], ids: Tensor) -> Batch:
    """Joins images in the upper left corner of one as large as the largest."""
    sizes = torch.tensor([image.shape[1:] for image in images])
    tall, wide = sizes.amax(0).tolist()
    joined = torch.zeros(len(images), 3, tall, wide, dtype=images[0].dtype)
    for row, image in zip(joined, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return Batch(Inputs(joined, sizes), targets, ids)


class Samples(parts.Samples[Sample, Source]):
    """Batches of images and boxes; see :class:`tasks.parts.Samples`."""

    def __getitems__(self, keys: list[Key]) -> Batch:
        """Fetches a whole batch."""
        chosen = [key.sample for key in keys]
        images = [self.source.read(self.samples[i]) for i in chosen]
        targets = [self.source.target(self.samples[i]) for i in chosen]
        if self.transforms is not None:
            drawn = self.keys[chosen], keys[0].seed, keys[0].epoch
            if self.transforms.flip:
                mirrored = rng.uniform(drawn[1], "flip", drawn[2], index=drawn[0], count=1)[:, 0] < 0.5
                for i in np.flatnonzero(mirrored).tolist():
                    images[i], targets[i] = images[i].flip(2), flipped(targets[i], images[i].shape[2])
            if self.transforms.colour:
                light = Light(colour=self.transforms.colour)
                images = [
                    (255 * light.light(image[None].float() / 255, drawn[0][i : i + 1], *drawn[1:])[0]).round().byte()
                    for i, image in enumerate(images)
                ]
        return collate(images, targets, self.ids[chosen])


def flipped(target: Target, wide: int) -> Target:
    """Mirrors what is on an image of some width."""

    def mirrored(boxes: Tensor) -> Tensor:
        return torch.stack([wide - boxes[:, 2], boxes[:, 1], wide - boxes[:, 0], boxes[:, 3]], 1)

    return Target(mirrored(target.boxes), target.labels, mirrored(target.crowd))


class DetectionData(parts.PartLoaders):
    """Loaders of an opened data set.

    Args:
        source: The data set.
        seed: Of order and augmentation.
    """

    def __init__(self, source: Source, seed: int) -> None:
        super().__init__(source, Samples, seed)
