"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) in the official binary layout or in the official python batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.base.pickles import read_pickle
from kdbench.errors import KDBenchError, printable
from tasks.classification.sources.base import ImageSet, Split, checked_labels, split_digest

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """Official file names and formats of one of the two data sets.

    Attributes:
        binary: Folder of the binary layout.
        python: Folder of the python batches.
        train: Training files, without ``.bin``.
        test: Test file, likewise.
        names: Text file and python file that hold the class names, and the key in the latter.
        label: Key of the labels in a python batch.
        prefix: Label bytes before the pixels of a binary record; the last one is the class.
        classes: How many.
    """

    binary: str
    python: str
    train: tuple[str, ...]
    test: str
    names: tuple[str, str, bytes]
    label: bytes
    prefix: int
    classes: int


CIFAR10 = Layout(
    "cifar-10-batches-bin",
    "cifar-10-batches-py",
    tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test_batch",
    ("batches.meta.txt", "batches.meta", b"label_names"),
    b"labels",
    prefix=1,
    classes=10,
)
CIFAR100 = Layout(
    "cifar-100-binary",
    "cifar-100-python",
    ("train",),
    "test",
    ("fine_label_names.txt", "meta", b"fine_label_names"),
    b"fine_labels",
    prefix=2,
    classes=100,
)


def cifar10(root: Path) -> ImageSet:
    """CIFAR-10: ``cifar-10-batches-bin`` or ``cifar-10-batches-py``, at ``root`` or in it."""
    return _open("cifar10", root, CIFAR10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def cifar100(root: Path) -> ImageSet:
    """CIFAR-100 with its fine labels: ``cifar-100-binary`` or ``cifar-100-python``, at ``root`` or in it."""
    return _open("cifar100", root, CIFAR100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


def _open(name: str, root: Path, layout: Layout, mean: tuple[float, ...], std: tuple[float, ...]) -> ImageSet:
    formats: tuple[tuple[str, str, Callable[[Path, Layout], tuple[np.ndarray, np.ndarray]]], ...] = (
        (layout.binary, ".bin", _read_binary),
        (layout.python, "", _read_python),
    )
    for inner, suffix, read in formats:
        for folder in (root / inner, root):
            if any((folder / f"{file}{suffix}").is_file() for file in (*layout.train, layout.test)):
                train = _join([read(_present(folder / f"{file}{suffix}"), layout) for file in layout.train])
                test = Split.of_array(*read(_present(folder / f"{layout.test}{suffix}"), layout))
                identity, learned = split_digest(train, test), split_digest(train)
                classes = _class_names(folder, layout)
                return ImageSet(name, False, identity, classes, train, test, mean, std, learned=learned)
    raise KDBenchError(
        f"data.root={root}: no {name} there; expected {layout.binary}/{layout.train[0]}.bin … {layout.test}.bin "
        f"or {layout.python}/{layout.train[0]} … {layout.test}"
    )


def _present(path: Path) -> Path:
    if not path.is_file():
        raise KDBenchError(f"{path}: there is no such file; this batch is part of the data set")
    return path


def _join(batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> Split:
    images, labels = zip(*batches, strict=True)
    return Split.of_array(np.concatenate(images), np.concatenate(labels))


def _read_binary(path: Path, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Reads records of label bytes and 3,072 pixels, channel by channel."""
    record = layout.prefix + PIXELS
    content = np.fromfile(path, dtype=np.uint8)
    if not content.size or content.size % record:
        whole = f"{content.size // record} records and {content.size % record} bytes"
        raise KDBenchError(f"{path}: {content.size} bytes are {whole}; expected records of {record} bytes each")
    rows = content.reshape(-1, record)
    labels = checked_labels(path, rows[:, layout.prefix - 1], layout.classes)
    return rows[:, layout.prefix :].reshape(-1, *SHAPE), labels


def _read_python(path: Path, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    batch = read_batch(path)
    for key in (b"data", layout.label):
        if key not in batch:
            found = ", ".join(sorted(str(k, "latin1") if isinstance(k, bytes) else str(k) for k in batch))
            raise KDBenchError(f"{path}: no {key.decode()!r} in this batch; found {found or 'nothing'}")
    images, labels = batch[b"data"], batch[layout.label]
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != PIXELS or not len(images):
        shape = images.shape if isinstance(images, np.ndarray) else type(images).__name__
        raise KDBenchError(f"{path}: data of shape {shape}; expected (images, {PIXELS})")
    if images.dtype != np.uint8:
        raise KDBenchError(f"{path}: data of {images.dtype}; expected bytes")
    if not isinstance(labels, list) or len(labels) != len(images) or not all(isinstance(v, int) for v in labels):
        found = f"{len(labels)} labels" if isinstance(labels, list) else type(labels).__name__
        raise KDBenchError(f"{path}: {found} for {len(images)} images; expected an integer for each")
    return images.reshape(-1, *SHAPE), checked_labels(path, np.array(labels), layout.classes)


def _class_names(folder: Path, layout: Layout) -> tuple[str, ...]:
    text, batch, key = layout.names
    names: Sequence[str] = ()
    if (folder / text).is_file():
        names = (folder / text).read_text(encoding="latin1").split()
    elif (folder / batch).is_file():
        names = [str(name, "latin1") for name in read_batch(folder / batch).get(key, ()) if isinstance(name, bytes)]
    return tuple(names) if len(names) == layout.classes else tuple(str(i) for i in range(layout.classes))


def read_batch(path: Path) -> dict[bytes, Any]:
    """Reads a python batch without running anything that it names.

    Raises:
        KDBenchError: The pickle is broken, is no dict, or names something that no official batch does.
    """
    held = read_pickle(path, "a python batch", encoding="bytes")
    if not isinstance(held, dict):
        raise KDBenchError(f"{printable(path)}: holds {type(held).__name__}; expected a dict")
    # Written by Python 3 its keys are text.
    return {key.encode() if isinstance(key, str) else key: item for key, item in held.items()}
