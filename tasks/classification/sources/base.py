"""What every source delivers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.base.digest import digest
from kdbench.errors import KDBenchError
from tasks.classification.sources.files import ImageFiles


@dataclass(frozen=True)
class Split:
    """Labelled images.

    Attributes:
        images: ``(N, C, H, W)`` uint8 or, for signals, float32 in 0..1; or image files.
        labels: ``(N,)`` int64.
        names: Sample ids, by whose hash every cut is made.
    """

    images: Tensor | ImageFiles
    labels: np.ndarray
    names: Sequence[str]

    @classmethod
    def of_array(cls, images: np.ndarray, labels: np.ndarray) -> Split:
        """Makes a split of arrays, whose samples are named by their positions."""
        images, labels = np.require(images, requirements=["C", "W"]), np.asarray(labels, dtype=np.int64)
        return cls(torch.from_numpy(images), labels, [str(i) for i in range(len(labels))])

    @property
    def array(self) -> np.ndarray:
        """The images where they are held in memory."""
        assert isinstance(self.images, Tensor)
        return self.images.numpy()

    def take(self, rows: np.ndarray) -> Split:
        """Returns samples that are held in memory; they keep their names."""
        assert isinstance(self.images, Tensor)
        return Split(self.images[torch.from_numpy(rows)], self.labels[rows], [self.names[i] for i in rows])

    def read_by(self, **options: Any) -> Split:
        """Returns image files with other options of reading; images in memory have been read."""
        if isinstance(self.images, Tensor):
            return self
        return replace(self, images=replace(self.images, **options))

    def resized(self, size: int) -> Split:
        """Returns the images at another size; what has one row (a signal) keeps one."""
        if isinstance(self.images, ImageFiles):
            return replace(self, images=replace(self.images, size=(size, size)))
        shape = (1 if self.images.shape[2] == 1 else size, size)
        if shape == self.images.shape[2:]:
            return self
        return replace(self, images=torch.cat([_resize(part, shape) for part in self.images.split(1024)]))


@dataclass(frozen=True)
class ImageSet:
    """A data set as it is published.

    Attributes:
        name: Of the data set.
        embedded: Whether it comes without files.
        digest: Of its content (see each source for what that is).
        classes: Class names, in the order of the labels.
        train: Training images.
        test: Test images; the published validation set where test labels are not published.
        val: Validation images where three labelled splits are published.
        mean: Per channel, of images in 0..1.
        std: Likewise.
        notes: What a record has to say of how the images were read.
        shifted: A second test set, of images unlike those of training.
        learned: Digest of the content of what is not test; None where files of it cannot change (embedded).
    """

    name: str
    embedded: bool
    digest: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    val: Split | None = None
    notes: tuple[str, ...] = ()
    shifted: Split | None = None
    learned: str | None = None

    def resized(self, size: int) -> ImageSet:
        """Returns the data set with images of another size."""
        return self.each(lambda split: split.resized(size))

    def read_by(self, **options: Any) -> ImageSet:
        """Returns the data set with other options of its :class:`~tasks.classification.sources.files.ImageFiles`."""
        return self.each(lambda split: split.read_by(**options))

    def each(self, change: Callable[[Split], Split]) -> ImageSet:
        """Returns the data set with every split changed."""
        val, shifted = (None if split is None else change(split) for split in (self.val, self.shifted))
        return replace(self, train=change(self.train), test=change(self.test), val=val, shifted=shifted)


def statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation per channel of images in 0..1."""
    values = split.array / np.float64(255 if split.array.dtype == np.uint8 else 1)
    mean, std = values.mean((0, 2, 3)), values.std((0, 2, 3))
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())


def array_digest(array: np.ndarray) -> str:
    """Digests an array by shape and content."""
    return digest([list(array.shape), array.dtype.str, hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()])


def split_digest(*splits: Split) -> str:
    """Digests images and labels by content, so that one data set is known again in another layout or compression."""
    return digest([[array_digest(split.array), array_digest(split.labels)] for split in splits])


def checked_labels(path: Path, labels: np.ndarray, classes: int) -> np.ndarray:
    """Returns labels as int64.

    Raises:
        KDBenchError: One is not a class.
    """
    labels = np.asarray(labels, dtype=np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        first = wrong[0]
        raise KDBenchError(
            f"{path}: label {labels[first]} of sample {first} is out of range ({wrong.size} such); "
            f"expected 0 to {classes - 1}"
        )
    return labels


def _resize(images: Tensor, shape: tuple[int, int]) -> Tensor:
    values = torch.nn.functional.interpolate(images.float(), shape, mode="bilinear", antialias=True)
    return values.round_().clamp_(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else values
