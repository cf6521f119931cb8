"""Tiny data sets written in the official layouts, for tests."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdbench.base.store import Store
from tasks.classification.data import Images, open_images


def open_with(cache: Path, **options: Any) -> Images:
    """Opens a data set with a store below ``cache``."""
    return open_images(options, Store(cache))


def images(count: int, seed: int = 0) -> np.ndarray:
    """``(N, 3, 32, 32)`` uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def cifar_binary(folder: Path, name: str, pixels: np.ndarray, labels: np.ndarray, coarse: bool) -> None:
    """One binary batch; CIFAR-100's records begin with a coarse label."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = [np.zeros_like(labels)] if coarse else []
    rows = np.column_stack([*prefix, labels, pixels.reshape(len(pixels), -1)]).astype(np.uint8)
    rows.tofile(folder / f"{name}.bin")


def cifar10_binary(root: Path, each: int = 20, test: int = 10) -> Path:
    """CIFAR-10 with ``each`` images a batch, labels in turn."""
    folder = root / "cifar-10-batches-bin"
    for i in range(5):
        cifar_binary(folder, f"data_batch_{i + 1}", images(each, i), np.arange(each) % 10, coarse=False)
    cifar_binary(folder, "test_batch", images(test, 9), np.arange(test) % 10, coarse=False)
    return root


def python2_pickle(pixels: np.ndarray, labels: list[int], key: bytes = b"labels") -> bytes:
    """A python batch opcode by opcode as Python 2 and its NumPy wrote it: byte strings, protocol 2."""

    def string(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<I", len(text)) + text

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85" + string(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + string(b"u1") + integer(0) + integer(1) + b"\x87R"
    dtype += b"(" + integer(3) + string(b"|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
    shape = integer(pixels.shape[0]) + integer(pixels.shape[1]) + b"\x86"
    array += b"(" + integer(1) + shape + dtype + b"\x89" + string(pixels.tobytes()) + b"tb"
    listed = b"](" + b"".join(integer(v) for v in labels) + b"e"
    return b"\x80\x02}(" + string(b"data") + array + string(key) + listed + b"u."


def idx(path: Path, values: np.ndarray) -> None:
    """An idx file of bytes, compressed where its name ends so."""
    content = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, dtype=">u4").tobytes() + values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def mnist(root: Path, train: int = 60, test: int = 20, end: str = ".gz") -> Path:
    """MNIST with labels in turn."""
    stream = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        idx(root / f"{part}-images-idx3-ubyte{end}", stream.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        idx(root / f"{part}-labels-idx1-ubyte{end}", (np.arange(count) % 10).astype(np.uint8))
    return root


def image_folder(root: Path, parts: tuple[str, ...] = ("train", "val"), each: int = 6) -> Path:
    """Three classes of images of several sizes, formats and modes."""
    stream = np.random.default_rng(0)
    for part in parts:
        for name in ("ant", "bee", "cat"):
            (root / part / name).mkdir(parents=True)
            for i in range(each):
                height, width = 20 + 7 * i, 60 - 5 * i
                image = Image.fromarray(stream.integers(0, 256, (height, width, 3), dtype=np.uint8))
                end, mode = (("jpg", "RGB"), ("png", "RGBA"), ("png", "L"), ("JPEG", "L"))[i % 4]
                image.convert(mode).save(root / part / name / f"{i}.{end}")
    return root
