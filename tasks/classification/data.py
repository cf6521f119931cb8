"""Images of any source: few labels, noise, a long tail or a pruned set as asked for, then loaded a batch at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.utils.data import Dataset

from kdbench.base import rng
from kdbench.base.digest import digest, source_digest
from kdbench.base.instantiate import check
from kdbench.base.store import Store
from kdbench.data import Key, SeededLoader
from kdbench.errors import KDBenchError
from kdbench.functional.randaugment import rand_augment
from kdbench.splits import SHARE, cut
from kdbench.task import Batch
from tasks.classification.canvas import Canvas, on_canvas
from tasks.classification.choice import balanced, keys_of, labelled, noisy, shuffled
from tasks.classification.preprocess import Preprocess
from tasks.classification.pruning import SIDE, importance
from tasks.classification.sources import open_source
from tasks.classification.sources.base import ImageSet, Split, array_digest
from tasks.classification.sources.files import ImageFiles, Resize
from tasks.classification.transforms import Transforms
from tasks.images import Reader
from tasks.pixels import BACKGROUND

SCORES = "scores.npy"


@dataclass(frozen=True)
class Keep:
    """Options of data pruning.

    Attributes:
        fraction: Share of the labelled training samples that is kept.
        by: Which are: any, or those of the highest score (:mod:`tasks.classification.pruning`).
    """

    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    by: Literal["random", "el2n", "forgetting"] = "random"


@dataclass(frozen=True)
class DataOptions:
    """Options of ``data``.

    Attributes:
        source: Which data set; see :data:`tasks.classification.sources.REAL`.
        root: Its folder; None for an embedded one.
        table: CSV file that names images and classes, for image files; see
            :func:`~tasks.classification.sources.folder.image_folder`.
        batch_size: Images a batch.
        workers: Loader processes; 0 reads in the training process.
        size: Side to which images are resized; None as they are (224 for image files).
        resize: Of image files: length of the shorter side to which evaluation resizes before it cuts the centre out.
        crop_pct: The same as a share, ``size / resize``, as timm has it. Neither: 224/256 of the shorter side, cut out
            before it is resized.
        interpolation: Of image files, in training too; None for bilinear.
        background: Colour under transparent pixels of image files, a user's among them; None for gray.
        mean: Per channel, of images in 0..1, where a teacher was trained with another one than the data set's.
        std: Likewise.
        render: Of rendered images, options of :class:`~tasks.classification.glyphs.Render`.
        test_fonts: Of rendered images; ``unseen`` keeps typefaces out of training and adds a second test set of them.
        canvas: Options of :class:`~tasks.classification.canvas.Canvas`: puts images in the middle of a larger one and
            adds a second test set in which they are elsewhere. None leaves them as they are.
        train: Most training samples, validation included; class-balanced.
        test: Most test samples; class-balanced.
        labels: Training samples whose labels are used; class-balanced. None for all.
        unlabelled: Further training samples that join without a label; ``rest`` for all that are left, if any.
        noise: Share of the training labels that are wrong; validation and test stay clean.
        imbalance: Largest over smallest class of the labelled training samples, along an exponential long tail.
        keep: Options of :class:`Keep`.
        transforms: Options of :class:`~tasks.classification.transforms.Transforms`.
    """

    source: str
    root: str | None = None
    table: str | None = None
    batch_size: PositiveInt = 64
    workers: NonNegativeInt = 0
    size: PositiveInt | None = None
    resize: PositiveInt | None = None
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = None
    background: str | None = None
    mean: list[float] | None = None
    std: list[Annotated[float, Field(gt=0)]] | None = None
    render: dict[str, Any] = field(default_factory=dict)
    test_fonts: Literal["seen", "unseen"] = "seen"
    canvas: dict[str, Any] | None = None
    train: PositiveInt | None = None
    test: PositiveInt | None = None
    labels: PositiveInt | None = None
    unlabelled: PositiveInt | Literal["rest"] | None = None
    noise: Annotated[float, Field(ge=0, lt=1)] = 0.0
    imbalance: Annotated[float, Field(ge=1)] | None = None
    keep: dict[str, Any] = field(default_factory=dict)
    transforms: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cut:
    """The samples of one split.

    Attributes:
        split: Where they are.
        rows: ``(N,)`` their positions there.
        targets: ``(N,)`` classes to learn or to score with; -1 where there is no label.
        first: Id of the first; ids count on from there.
    """

    split: Split
    rows: np.ndarray
    targets: np.ndarray
    first: int = 0

    def __len__(self) -> int:
        return len(self.rows)


class Samples(Dataset[Batch]):
    """Batches by the keys of their samples; what is drawn for a sample depends on its key alone.

    Args:
        images: Whose.
        cut: Which samples.
        positions: Which of the samples of ``cut``, whose ids they keep; None for all.
        transforms: Augmentation, or None.
    """

    def __init__(
        self, images: Images, cut: Cut, positions: np.ndarray | None = None, transforms: Transforms | None = None
    ) -> None:
        positions = np.arange(len(cut)) if positions is None else positions
        self.images = images
        self.pixels = cut.split.images
        self.rows = cut.rows[positions]
        self.keys = keys_of([cut.split.names[i] for i in self.rows])
        self.targets = torch.from_numpy(cut.targets[positions])
        self.ids = torch.from_numpy(positions + cut.first)
        self.partial = bool((self.targets < 0).any())
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> Batch:
        return self.__getitems__([key])

    def __getitems__(self, keys: list[Key]) -> Batch:
        """Fetches a whole batch."""
        chosen = np.array([key.sample for key in keys])
        pixels = self._pixels(chosen, keys[0].seed, keys[0].epoch)
        targets = self.targets[chosen]
        supervised = targets >= 0 if self.partial else None
        return Batch(self.images.preprocess.normalise(pixels), targets, self.ids[chosen], supervised)

    def _pixels(self, chosen: np.ndarray, seed: int, epoch: int) -> Tensor:
        transforms, keys, rows = self.transforms, self.keys[chosen], self.rows[chosen]
        resized = transforms is not None and transforms.scale is not None
        if isinstance(self.pixels, ImageFiles):

            def box(place: int, height: int, width: int) -> tuple[int, int, int, int]:
                assert transforms is not None
                sides = np.array([height]), np.array([width])
                return tuple(transforms.boxes(*sides, keys[place : place + 1], seed, epoch)[0].tolist())

            pixels = self.pixels.read(rows.tolist(), box if resized else None)
        else:
            pixels = self.pixels.index_select(0, torch.from_numpy(rows))
            if transforms is not None and resized:
                pixels = transforms.resized_crops(pixels, keys, seed, epoch)
        return pixels if transforms is None else transforms(pixels, keys, seed, epoch)


class Images:
    """An opened data set, its splits cut.

    Sample ids count through train (the labelled ones first), validation and test, so that training ids are 0 to N - 1.

    Attributes:
        embedded: Whether it came without files.
        digest: Of content, size, cuts and labels.
        learned: The same of what is not test.
        preprocess: What a model needs to read such images, and the names of the data set and its classes.
        sizes: Samples of each split.
        labelled: Training samples with a label.
        train: The training samples.
        val: The validation samples.
        test: The test samples.
        shifted: Those of a second test set, or None.
        notes: What a record has to say of how the images were read.
    """

    def __init__(
        self, source: ImageSet, options: DataOptions, train: Cut, val: Cut, test: Cut, shifted: Cut | None = None
    ) -> None:
        self.embedded = source.embedded
        self.notes = source.notes
        pixels = source.train.images
        if not isinstance(pixels, ImageFiles):
            height, width = pixels.shape[2:]
            pixels = ImageFiles((), (height, width), 1.0, Reader(options.background or BACKGROUND))
        files = replace(pixels, paths=())
        self.preprocess = Preprocess(source.name, source.classes, source.mean, source.std, files)
        self.train, self.val, self.test, self.shifted = train, val, test, shifted
        self.sizes = {"train": len(train), "val": len(val), "test": len(test)}
        self.labelled = int((train.targets >= 0).sum())
        cuts = [[array_digest(c.rows), array_digest(c.targets)] for c in (train, val, test, shifted) if c is not None]
        self.digest = digest([source.digest, files.size, cuts])
        self.learned = digest([source.learned or source.digest, files.size, cuts[:2]])
        self.options = options
        self.transforms = Transforms(**check("data.transforms", Transforms, options.transforms))

    def strong(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Returns a strongly augmented view of normalised inputs: RandAugment with a draw for each sample."""
        preprocess = self.preprocess
        return preprocess.normalise(rand_augment(preprocess.unit(inputs), generator)).to(inputs.dtype)

    def module(self, seed: int) -> ImageData:
        """Returns the loaders; order and augmentation follow ``seed``."""
        return ImageData(self, seed)


class ImageData(LightningDataModule):
    """Loaders of an opened data set.

    Args:
        images: The data set.
        seed: Of order and augmentation.
    """

    def __init__(self, images: Images, seed: int) -> None:
        super().__init__()
        self.images = images
        self.seed = seed

    def _loader(self, samples: Samples, seed: int = 0, train: bool = False) -> SeededLoader:
        options = self.images.options
        return SeededLoader(samples, options.batch_size, seed, None, train, options.workers)

    def _train(self, seed: int, positions: np.ndarray | None = None) -> SeededLoader:
        samples = Samples(self.images, self.images.train, positions, self.images.transforms)
        return self._loader(samples, seed, train=True)

    def _meta(self) -> np.ndarray:
        train = self.images.train
        known = np.flatnonzero(train.targets >= 0)
        names = [train.split.names[i] for i in train.rows[known]]
        return known[cut(names, purpose="meta", labels=train.targets[known].tolist())]

    def train_dataloader(self, without_meta: bool = False) -> SeededLoader:
        """Returns augmented training samples in the order of the seed, ``without_meta`` the rest of that cut."""
        rest = np.setdiff1d(np.arange(len(self.images.train)), self._meta()) if without_meta else None
        return self._train(self.seed, rest)

    def meta_dataloader(self) -> SeededLoader:
        """Returns the further cut of the labelled training samples that bilevel methods use; as noisy as they are."""
        return self._train(rng.derive(self.seed, "meta"), self._meta())

    def val_dataloader(self) -> SeededLoader:
        """Returns the validation samples."""
        return self._loader(Samples(self.images, self.images.val))

    def test_dataloader(self) -> SeededLoader:
        """Returns the test samples."""
        return self._loader(Samples(self.images, self.images.test))

    def shifted_dataloader(self) -> SeededLoader | None:
        """Returns the samples of the second test set, where there is one."""
        return None if self.images.shifted is None else self._loader(Samples(self.images, self.images.shifted))


def open_images(options: Mapping[str, Any], store: Store, progress: bool = True) -> Images:
    """Opens a data set and cuts its splits.

    Args:
        options: Of :class:`DataOptions`.
        store: Where the scores of data pruning and rendered images are kept.
        progress: Whether to show one while images are rendered.

    Raises:
        KDBenchError: Options, files or labels that are not as they should be.
    """
    given = DataOptions(**check("data", DataOptions, options))
    keep = Keep(**check("data.keep", Keep, given.keep))
    opened = open_source(
        given.source, given.root, store, given.table, given.render, given.test_fonts, progress=progress
    )
    if given.canvas is not None:
        opened = on_canvas(opened, Canvas(**check("data.canvas", Canvas, given.canvas)))
    source = _read_as(given, opened)
    pool, val = _held_out(source, given)
    train = _training(source, given, keep, pool, store)
    first = len(train)
    val = Cut(val.split, val.rows, val.targets, first)
    test = _tested(source.test, given, first + len(val))
    shifted = None if source.shifted is None else _tested(source.shifted, given, test.first + len(test))
    return Images(source, given, train, val, test, shifted)


def _read_as(options: DataOptions, source: ImageSet) -> ImageSet:
    """Returns a source whose images come at the size, in the way and with the constants that the options say."""
    if options.size is not None:
        source = source.resized(options.size)
    for name in ("mean", "std"):
        given = getattr(options, name)
        if given is not None and len(given) != len(source.mean):
            channels = len(source.mean)
            raise KDBenchError(
                f"data.{name}={given}: {source.name} has {channels} channels; expected a number for each"
            )
    source = replace(source, mean=tuple(options.mean or source.mean), std=tuple(options.std or source.std))
    pixels = source.train.images
    if not isinstance(pixels, ImageFiles):
        asked = next((n for n in ("resize", "crop_pct", "interpolation") if getattr(options, n) is not None), None)
        if asked:
            raise KDBenchError(
                f"data.{asked}={getattr(options, asked)}: {source.name} has images of one size; data.size resizes them"
            )
        return source
    if options.resize is not None and (options.crop_pct is not None or options.resize < min(pixels.size)):
        raise KDBenchError(
            f"data.resize={options.resize}, data.crop_pct={options.crop_pct}, data.size={min(pixels.size)}: "
            "expected one of the first two, and resize at least size"
        )
    return source.read_by(
        reader=replace(pixels.reader, background=options.background or BACKGROUND),
        resize=Resize(options.crop_pct, options.resize, options.interpolation or "bilinear"),
    )


def _tested(split: Split, options: DataOptions, first: int) -> Cut:
    rows = _limited(split, np.arange(len(split.labels)), options.test, "test")
    return Cut(split, rows, split.labels[rows], first)


def _limited(split: Split, rows: np.ndarray, most: int | None, purpose: str) -> np.ndarray:
    """Returns rows of a split, at most so many of them, as many of each class as of any other."""
    if most is None or most >= len(rows):
        return rows
    return rows[balanced(keys_of([split.names[i] for i in rows]), split.labels[rows], most, purpose)]


def _held_out(source: ImageSet, options: DataOptions) -> tuple[np.ndarray, Cut]:
    """Cuts validation, from all there is: it never meets the training samples of a run with more or fewer of them.

    Returns:
        The pool of training samples and validation.
    """
    split = source.train
    rows = np.arange(len(split.labels))
    if source.val is not None:
        pool = _limited(split, rows, options.train, "train")
        return pool, Cut(source.val, np.arange(len(source.val.labels)), source.val.labels)
    held_out = np.array(cut(split.names, labels=split.labels.tolist()), dtype=np.int64)
    pool, most = np.setdiff1d(rows, held_out), min(options.train or len(rows), len(rows))
    classes = len(np.unique(split.labels[held_out]))
    # A share of what is asked for, and each class.
    few = most - len(pool) if most == len(rows) else max(round(SHARE * most), classes)
    if not 0 < classes <= most - few:
        raise KDBenchError(
            f"data.train={options.train}: {most} training samples of {len(source.classes)} classes; "
            "expected two of a class at least, as validation is cut from them"
        )
    held_out, pool = _limited(split, held_out, few, "val"), _limited(split, pool, most - few, "train")
    return pool, Cut(split, held_out, split.labels[held_out])


def _training(source: ImageSet, options: DataOptions, keep: Keep, pool: np.ndarray, store: Store) -> Cut:
    """Chooses the training samples out of the pool: labelled ones, spoilt and pruned as asked for, and unlabelled."""
    split = source.train
    keys, labels = keys_of([split.names[i] for i in pool]), split.labels[pool]
    chosen = labelled(keys, labels, source.classes, options.labels, options.imbalance)
    targets = noisy(keys[chosen], labels[chosen], options.noise, len(source.classes))
    kept = _kept(source, pool[chosen], targets, keys[chosen], keep, store)
    rest = np.delete(np.arange(len(pool)), chosen)
    wanted = len(rest) if options.unlabelled == "rest" else options.unlabelled or 0
    if wanted > len(rest):
        raise KDBenchError(
            f"data.unlabelled={wanted}: {len(rest)} training samples are left beside the {len(chosen)} labelled ones; "
            f"expected at most {len(rest)}" + ("" if options.labels else ", after fewer data.labels")
        )
    joined = np.sort(rest[shuffled(keys[rest], "unlabelled")[:wanted]])
    rows = np.concatenate([pool[chosen][kept], pool[joined]])
    return Cut(split, rows, np.concatenate([targets[kept], np.full(len(joined), -1, dtype=np.int64)]))


def _kept(
    source: ImageSet, rows: np.ndarray, targets: np.ndarray, keys: np.ndarray, keep: Keep, store: Store
) -> np.ndarray:
    """Returns the positions among ``rows`` that pruning keeps."""
    if keep.fraction == 1:
        return np.arange(len(rows))
    count, present = round(keep.fraction * len(rows)), len(np.unique(targets))
    if count < present:
        raise KDBenchError(
            f"data.keep.fraction={keep.fraction:g}: {count} of {len(rows)} labelled samples are fewer than the "
            f"{present} classes; expected as many at least"
        )
    order = shuffled(keys, "keep")
    if keep.by != "random":
        scores = _scores(source, rows, targets, keep.by, store)
        order = order[np.argsort(-scores[order], kind="stable")]
    return np.sort(order[:count])


def _scores(
    source: ImageSet, rows: np.ndarray, targets: np.ndarray, by: Literal["el2n", "forgetting"], store: Store
) -> np.ndarray:
    def make(work: Path) -> dict[str, Any]:
        pixels = source.train.images
        if isinstance(pixels, ImageFiles):
            values = replace(pixels, size=(SIDE, SIDE), resize=Resize()).read(rows.tolist()).float() / 255
        else:
            values = pixels[torch.from_numpy(rows)].float() / (255 if pixels.dtype == torch.uint8 else 1)
        mean, std = (torch.tensor(v)[:, None, None] for v in (source.mean, source.std))
        scores = importance((values - mean) / std, torch.from_numpy(targets), len(source.classes), by)
        np.save(work / SCORES, scores)
        return {"by": by, "samples": len(rows), "data": source.name}

    images = source.train.images
    read = [images.size, images.reader.background] if isinstance(images, ImageFiles) else list(images.shape)
    code = source_digest(["tasks.classification.pruning"])
    made_of = [
        source.learned or source.digest,
        read,
        source.mean,
        source.std,
        array_digest(rows),
        array_digest(targets),
    ]
    key = digest([*made_of, by, code])
    message = f"the {by} scores of {source.name}"
    product = store.product("pruning-scores", key, make, wait_message=message)
    return np.load(product.path / SCORES, allow_pickle=False)
