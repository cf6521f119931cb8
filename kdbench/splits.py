"""Cuts of a training set: fixed by a hash of the sample id, so that they do not move when samples are added."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence

SHARE = 0.1


def cut(
    ids: Sequence[str], share: float = SHARE, purpose: str = "val", labels: Sequence[Hashable] | None = None
) -> list[int]:
    """Chooses a share of the samples by the hash of their ids.

    Args:
        ids: Sample ids.
        share: Of the samples; at least one is chosen where there are two.
        purpose: Names the cut (``val``, ``meta``), so that two cuts are independent.
        labels: Class of each sample; with it at least one sample of each class that has two is chosen, and at least one
            of every class is not.

    Returns:
        Indices of the chosen samples, ascending.
    """
    order = sorted(range(len(ids)), key=lambda i: _hash(purpose, ids[i]))
    count = min(max(1, round(share * len(ids))), len(ids) - 1) if len(ids) > 1 else 0
    if labels is None:
        return sorted(order[:count])
    left = Counter(labels)
    chosen: set[int] = set()
    present: set[Hashable] = set()
    # First the share, then the first sample of each class that is not among it.
    for full in (False, True):
        for index in order:
            label = labels[index]
            wanted = label not in present if full else len(chosen) < count
            if wanted and left[label] > 1:
                chosen.add(index)
                present.add(label)
                left[label] -= 1
    return sorted(chosen)


def limited(ids: Sequence[str], most: int | None, purpose: str) -> list[int]:
    """Chooses at most so many samples by the hash of their ids: what fewer are is among what more would be.

    Args:
        ids: Sample ids.
        most: How many at most; None for all.
        purpose: Names the choice (``train``, ``test``), so that two are independent.

    Returns:
        Indices of the chosen samples, ascending.
    """
    if most is None or most >= len(ids):
        return list(range(len(ids)))
    drawn = [hashlib.sha256(f"{purpose}/{name}".encode()).digest() for name in ids]
    return sorted(sorted(range(len(ids)), key=drawn.__getitem__)[:most])


def _hash(purpose: str, name: str) -> bytes:
    return hashlib.blake2b(f"{purpose}/{name}".encode(), digest_size=8).digest()
