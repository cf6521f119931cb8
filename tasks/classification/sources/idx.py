"""MNIST (LeCun et al.) and Fashion-MNIST (Xiao et al., 2017) in the idx format, plain or compressed."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from kdbench.errors import KDBenchError
from tasks.classification.sources.base import ImageSet, Split, checked_labels, split_digest

GARMENTS = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def mnist(root: Path) -> ImageSet:
    """MNIST: the four idx files, at ``root``, in its ``raw`` or ``MNIST/raw``."""
    return _open("mnist", root, "MNIST", tuple("0123456789"), 0.1307, 0.3081)


def fashion_mnist(root: Path) -> ImageSet:
    """Fashion-MNIST: the four idx files, at ``root``, in its ``raw`` or ``FashionMNIST/raw``."""
    return _open("fashion_mnist", root, "FashionMNIST", GARMENTS, 0.2860, 0.3530)


def _open(name: str, root: Path, folder: str, classes: tuple[str, ...], mean: float, std: float) -> ImageSet:
    train, test = (read_split(root, part, len(classes), folder) for part in ("train", "t10k"))
    identity, learned = split_digest(train, test), split_digest(train)
    return ImageSet(name, False, identity, classes, train, test, (mean,), (std,), learned=learned)


def read_split(root: Path, part: str, classes: int, folder: str = "", channels: int = 1) -> Split:
    """Reads the images and the labels of a split.

    Args:
        root: Where the files are, in its ``raw`` or in ``raw`` of its ``folder``.
        part: Begins the names of both files.
        classes: How many there are.
        folder: Name of the data set, as torchvision's folders have it.
        channels: Images of several have an axis for them behind that of the images.
    """
    dimensions = 3 if channels == 1 else 4
    images_at, labels_at = (
        _find(root, folder, f"{part}-{file}") for file in (f"images-idx{dimensions}-ubyte", "labels-idx1-ubyte")
    )
    images, labels = read_idx(images_at, dimensions), read_idx(labels_at, 1)
    if len(images) != len(labels):
        raise KDBenchError(f"{labels_at}: {len(labels)} labels for the {len(images)} images of {images_at.name}")
    if not len(images):
        raise KDBenchError(f"{images_at}: no images")
    images = images[:, None] if channels == 1 else images
    return Split.of_array(images, checked_labels(labels_at, labels, classes))


def write_split(root: Path, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes ``(N, C, H, W)`` uint8 images and their labels as :func:`read_split` reads them."""
    images = images[:, 0] if images.shape[1] == 1 else images
    for name, values in (("images", images), ("labels", labels.astype(np.uint8))):
        header = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
        (root / f"{part}-{name}-idx{values.ndim}-ubyte").write_bytes(header + values.tobytes())


def _find(root: Path, folder: str, name: str) -> Path:
    places = [place / f"{name}{end}" for place in (root, root / "raw", root / folder / "raw") for end in ("", ".gz")]
    for path in places:
        if path.is_file():
            return path
    raise KDBenchError(
        f"data.root={root}: there is no {name} or {name}.gz; expected images and labels of train and t10k"
    )


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Reads an idx file of unsigned bytes: two zeros, the type 8, the number of dimensions, each size, the values.

    Args:
        path: Plain or, where its name ends so, ``.gz``.
        dimensions: 3 for images, 4 for those of several channels, 1 for labels.

    Raises:
        KDBenchError: It does not decompress, is of another type, or is longer or shorter than it says.
    """
    content = path.read_bytes()
    try:
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise KDBenchError(f"{path}: does not decompress ({error}); download it again") from None
    header = 4 + 4 * dimensions
    magic = bytes((0, 0, 8, dimensions))
    if content[:4] != magic or len(content) < header:
        found = content[:4].hex() or "nothing"
        raise KDBenchError(f"{path}: begins with {found}; expected {magic.hex()}, an idx{dimensions} file of bytes")
    shape = tuple(int(v) for v in np.frombuffer(content[4:header], dtype=">u4"))
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise KDBenchError(f"{path}: {len(content)} bytes; expected {expected} for shape {shape}")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy()
