"""Named random streams: every random number belongs to a (seed, purpose, …) and never to a generator's position.

A student and its scratch twin therefore start from the same weights and see the same samples in the same order,
whatever modules a method adds, and a resumed run repeats its epoch exactly.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

#: 2**64 over the golden ratio: the step of SplitMix64.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def derive(seed: int, *names: str | int) -> int:
    """Derives a 63-bit seed from ``seed`` and the names of its purpose: ``derive(0, "augment", epoch, sample)``."""
    text = "\x1f".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """Returns a CPU ``torch.Generator`` for the named purpose."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))


def numpy(seed: int, *names: str | int) -> np.random.Generator:
    """Returns a NumPy generator for the named purpose."""
    return np.random.default_rng(derive(seed, *names))


def uniform(seed: int, *names: str | int, index: np.ndarray, count: int = 1) -> np.ndarray:
    """Draws numbers for many samples at once, by hashing their indices (SplitMix64) instead of a generator for each.

    Args:
        seed: With ``names``, the stream.
        names: Of the purpose.
        index: ``(N,)`` integers, each with numbers of its own, whatever the others are.
        count: Numbers for each.

    Returns:
        ``(N, count)`` float64 in [0, 1).
    """
    start = _mix(np.asarray(index).astype(np.uint64) * _GOLDEN + np.uint64(derive(seed, *names)))
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    return (_mix(start[:, None] + steps) >> np.uint64(11)) * 2.0**-53


def _mix(value: np.ndarray) -> np.ndarray:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def seed_global(seed: int, *names: str | int) -> None:
    """Puts the global generators at the start of a named stream: torch's, from which dropout draws, NumPy's, Python's.

    The last two are for libraries that draw from them. ``torch.manual_seed`` would queue a call, with a formatted
    stack, for every accelerator that is not in use yet: most of a millisecond and a leak, at each step.
    """
    import torch

    value = derive(seed, *names)
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(value)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(value)


@contextmanager
def scope(seed: int, *names: str | int, accelerators: bool = True) -> Iterator[None]:
    """Runs a block that draws from global generators (weight initialisation) under a named stream.

    They are as before afterwards; ``accelerators=False`` leaves those of devices out (loader processes have none).
    """
    import torch

    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(None if accelerators else []):
        seed_global(seed, *names)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002
