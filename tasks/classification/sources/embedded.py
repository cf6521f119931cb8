"""Data sets that need no download: real handwritten digits, and one-dimensional signals made by a published recipe."""

from __future__ import annotations

from importlib.metadata import distribution

import numpy as np
from scipy.ndimage import gaussian_filter1d

from kdbench.base import rng
from kdbench.base.digest import digest
from tasks.classification.choice import balanced, keys_of
from tasks.classification.sources.base import ImageSet, Split, array_digest, split_digest, statistics

TEST_DIGITS = 797


def digits() -> ImageSet:
    """scikit-learn's digits: 1,797 scanned 8x8 digits (Alpaydin and Kaynak, UCI, 1998), of which 797 are test.

    The test digits are a class-balanced choice by hash. The content digest covers images and labels.
    """
    # Read from the file that the library carries: to import it for that takes each run half a second.
    carried = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(carried), delimiter=",")
    images = np.rint(table[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    whole = Split.of_array(images, table[:, -1].astype(np.int64))
    held_out = np.zeros(len(images), dtype=bool)
    held_out[balanced(keys_of(whole.names), whole.labels, TEST_DIGITS, "test")] = True
    train, test = whole.take(np.flatnonzero(~held_out)), whole.take(np.flatnonzero(held_out))
    mean, std = statistics(train)
    return ImageSet("digits", True, split_digest(train, test), tuple("0123456789"), train, test, mean, std)


#: One hand-made curve of twelve points a digit: Greydanus, "Scaling down deep learning", arXiv 2011.14439.
TEMPLATES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)
PADDING = (36, 60)
SCALE = 0.4
TRANSLATION = 48
CORRELATED_NOISE, CORRELATION = 0.25, 2
NOISE = 0.02
SHEAR = 0.75
LENGTH = 40


def mnist1d(train: int = 4000, test: int = 1000) -> ImageSet:
    """MNIST-1D (Greydanus, arXiv 2011.14439): signals of 40 points in ten classes, as images of one row.

    It is the recipe with a seeded draw of our own, not the published sample, which the recipe makes with another
    generator; scores are comparable, samples are not. The digest covers labels and signals, these to 16 bits, which no
    machine's arithmetic changes.
    """
    stream = rng.numpy(0, "mnist1d")
    labels = stream.permutation(np.arange(train + test) % len(TEMPLATES))
    signals = _signals(labels, stream)
    low, high = signals.min(), signals.max()
    images = ((signals - low) / (high - low)).astype(np.float32)[:, None, None]
    made = Split.of_array(images, labels)
    splits = made.take(np.arange(train)), made.take(np.arange(train, train + test))
    identity = digest([array_digest(np.rint(images * 65535).astype(np.uint16)), array_digest(made.labels), train])
    mean, std = statistics(splits[0])
    return ImageSet("mnist1d", True, identity, tuple("0123456789"), *splits, mean, std)


def _signals(labels: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """Draws ``(N, 40)`` signals: templates padded, dilated, scaled, moved, with noise, sheared and subsampled."""
    curves = np.asarray(TEMPLATES, dtype=np.float64)
    curves = (curves - curves.mean(1, keepdims=True)) / curves.std(1, keepdims=True)
    curves = (curves - curves[:, :1]) / 6 + 1e-8  # from zero to zero; a point of the curve is known by not being zero
    count, points, length = len(labels), curves.shape[1], curves.shape[1] + PADDING[1]
    padded = np.concatenate([curves, np.zeros((len(curves), PADDING[1]))], axis=1)
    padding = PADDING[0] + np.floor(stream.random(count) * (PADDING[1] - PADDING[0] + 1))
    # The curve and its padding stretched to the full length, read between the two nearest points.
    place = np.linspace(0, 1, length) * (points + padding[:, None] - 1)
    below = np.minimum(place.astype(int), (points + padding[:, None] - 2).astype(int))
    left, right = padded[labels[:, None], below], padded[labels[:, None], below + 1]
    values = left + (place - below) * (right - left)
    values *= 1 + SCALE * (stream.random(count)[:, None] - 0.5)
    moved = stream.integers(TRANSLATION, size=count)
    values = values[np.arange(count)[:, None], (np.arange(length) - moved[:, None]) % length]
    background = gaussian_filter1d(CORRELATED_NOISE * stream.standard_normal(values.shape), CORRELATION, axis=1)
    values = np.where(values != 0, values, background) + NOISE * stream.standard_normal(values.shape)
    values -= SHEAR * (stream.random(count)[:, None] - 0.5) * np.linspace(-0.5, 0.5, length)
    place = np.linspace(0, length - 1, LENGTH)
    below = np.minimum(place.astype(int), length - 2)
    return values[:, below] + (place - below) * (values[:, below + 1] - values[:, below])
