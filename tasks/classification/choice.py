"""Which samples of a data set are used, and with which labels: every choice is made by the hash of the sample ids.

A choice of fewer samples is therefore part of a choice of more, and nothing moves with the seed of a run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdbench.base import rng
from kdbench.errors import KDBenchError


def keys_of(names: Sequence[str]) -> np.ndarray:
    """Returns a stable 63-bit number for each sample id."""
    return np.array([rng.derive(0, "sample", name) for name in names], dtype=np.uint64)


def shuffled(keys: np.ndarray, purpose: str) -> np.ndarray:
    """Returns all positions in an order that belongs to the keys and the purpose."""
    return np.argsort(rng.uniform(0, purpose, index=keys)[:, 0], kind="stable")


def ranks(keys: np.ndarray, labels: np.ndarray, purpose: str) -> np.ndarray:
    """Returns the place of each sample within its class, in the order of :func:`shuffled`."""
    order = shuffled(keys, purpose)
    order = order[np.argsort(labels[order], kind="stable")]
    firsts = np.searchsorted(labels[order], labels[order])
    place = np.empty(len(labels), dtype=np.int64)
    place[order] = np.arange(len(labels)) - firsts
    return place


def balanced(keys: np.ndarray, labels: np.ndarray, count: int, purpose: str) -> np.ndarray:
    """Chooses ``count`` samples, as many of each class as of any other while there are any; ascending positions."""
    drawn = rng.uniform(0, purpose, index=keys)[:, 0]
    return np.sort(np.lexsort((drawn, ranks(keys, labels, purpose)))[:count])


def long_tail(counts: np.ndarray, ratio: float, total: int | None = None) -> np.ndarray:
    """Returns how many samples of each class make an exponential long tail, the first class being the largest.

    Class c of C gets a share proportional to ``ratio ** (-c / (C - 1))``, the largest thus ``ratio`` times the smallest
    (Cui et al., Class-balanced loss, CVPR 2019; Cao et al., LDAM, NeurIPS 2019).

    Args:
        counts: ``(C,)`` samples that there are.
        ratio: Largest over smallest class.
        total: Samples to choose; None for the most that keep the ratio.
    """
    shares = ratio ** (-np.arange(len(counts)) / max(1, len(counts) - 1))
    if total is None:
        return np.maximum(1, np.floor((counts / shares).min() * shares + 1e-9).astype(np.int64))
    exact = total * shares / shares.sum()
    quotas = np.maximum(1, np.floor(exact).astype(np.int64))
    left = total - int(quotas.sum())
    quotas[np.argsort(quotas - exact, kind="stable")[: max(0, left)]] += 1
    return quotas


def labelled(
    keys: np.ndarray, labels: np.ndarray, classes: Sequence[str], count: int | None, imbalance: float | None
) -> np.ndarray:
    """Chooses the training samples whose labels are used.

    Args:
        keys: Of the samples to choose from.
        labels: Their classes.
        classes: Class names.
        count: How many; None for all, or for the most that ``imbalance`` leaves.
        imbalance: Largest over smallest class; None for as balanced as the data are.

    Returns:
        Ascending positions.

    Raises:
        KDBenchError: There are fewer, or not one of each class is asked for.
    """
    present = len(np.unique(labels))
    if count is not None and count < present:
        raise KDBenchError(
            f"data.labels={count}: there are {present} classes; expected one of each at least, or null for all"
        )
    if count is not None and count > len(labels):
        raise KDBenchError(
            f"data.labels={count}: {len(labels)} training samples are left beside validation; "
            f"expected at most {len(labels)}, or null for all"
        )
    if imbalance is None:
        return np.arange(len(labels)) if count is None else balanced(keys, labels, count, "labels")
    found = np.bincount(labels, minlength=len(classes))
    wanted = long_tail(found, imbalance, count)
    if (wanted > found).any():
        short = int(np.argmax(wanted - found))
        raise KDBenchError(
            f"data.imbalance={imbalance:g} with data.labels={count} takes {wanted[short]} samples of class "
            f"{classes[short]!r}; there are {found[short]}: ask for fewer labels"
        )
    return np.flatnonzero(ranks(keys, labels, "labels") < wanted[labels])


def noisy(keys: np.ndarray, labels: np.ndarray, share: float, classes: int) -> np.ndarray:
    """Gives a share of the samples another class, each other one being as likely."""
    flipped = shuffled(keys, "noise")[: round(share * len(labels))]
    drawn = rng.uniform(0, "noisy class", index=keys[flipped])[:, 0]
    other = 1 + np.floor(drawn * (classes - 1)).astype(np.int64)
    labels = labels.copy()
    labels[flipped] = (labels[flipped] + other) % classes
    return labels
