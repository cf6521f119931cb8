"""Named random streams: every random number belongs to a (seed, purpose, …) and never to a generator's position.

A student and its scratch twin therefore start from the same weights and see the same samples in the same order,
whatever modules a method adds, and a resumed run repeats its epoch exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: str | int) -> int:
    """Derives a 63-bit seed from ``seed`` and the names of its purpose, e.g. ``derive(0, "augment", epoch, sample)``."""
    text = "\x1f".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """Returns a CPU ``torch.Generator`` for the named purpose."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))


def numpy(seed: int, *names: str | int) -> np.random.Generator:
    """Returns a NumPy generator for the named purpose."""
    return np.random.default_rng(derive(seed, *names))


@contextmanager
def scope(seed: int, *names: str | int) -> Iterator[None]:
    """Runs a block that draws from torch's global generators (weight initialisation) under a named stream.

    The global generators are as before afterwards.
    """
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, *names))
        yield
