"""Class maps as JSON. NumPy alone: exported models bring this along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def described(classes: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Returns a class map ``(H, W)`` as JSON: its size, the share of each class, runs of (class, pixels) by rows."""
    flat = classes.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    lengths = np.diff(starts, append=len(flat))
    shares = np.bincount(flat, minlength=len(names)) / len(flat)
    order = np.argsort(-shares, kind="stable")
    return {
        "size": list(classes.shape),
        "classes": [{"class": names[i], "share": round(float(shares[i]), 4)} for i in order if shares[i] > 0],
        "runs": [[int(c), int(n)] for c, n in zip(flat[starts], lengths, strict=True)],
    }
