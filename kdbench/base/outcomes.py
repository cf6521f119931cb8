"""What each test sample contributed to the primary metric of each model of a run: a small file beside the record.

A metric that can be told from sums over samples is one of :data:`LAWS`. With the contributions, and not the score
alone, anyone can say how far the score, or a difference of two models on the same samples, depends on which samples
were in the test set (:mod:`leaderboard.samples`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from kdbench.base.digest import digest
from kdbench.errors import KDBenchError, nearest

OUTCOMES = "outcomes.safetensors"
#: Most bytes of the file.
LIMIT = 64 * 1024
#: The one entry of the file's metadata (of several the order is not fixed), and the name of what all models share.
_META, _TRUTH = "outcomes", "truth"

Floats = NDArray[np.float64]


def _ratio(sums: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def _iou(sums: Floats) -> Floats:
    hit, said, true = np.moveaxis(sums, -1, 0)
    union = said + true - hit
    return _mean(100 * hit, union, union > 0)


def _f1(sums: Floats) -> Floats:
    hit, said, true = np.moveaxis(sums, -1, 0)
    return _mean(200 * hit, said + true, true > 0)


def _mean(above: Floats, below: Floats, counted: NDArray[np.bool_]) -> Floats:
    """Means of a share over the classes that count, ``(…, classes)`` to ``(…)``; nan without any."""
    shares = np.divide(above, below, out=np.zeros_like(below), where=counted)
    with np.errstate(invalid="ignore"):
        return np.asarray(shares.sum(-1) / counted.sum(-1))


#: By name, from the sums of the samples' contributions to the metric. The last number of each contribution is of the
#: truth alone, alike for every model:
#:
#: * ``percent``: ``(…, 2)``, what is right and of how much, to ``100 a / b``;
#: * ``mean``: ``(…, 2)``, a sum and of how many, to ``a / b``;
#: * ``iou``: ``(…, classes, 3)``, pixels that are met, said and true, to the mean intersection over union in percent of
#:   the classes that occur in truth or prediction;
#: * ``f1``: ``(…, classes, 3)`` likewise, to the mean F1 in percent of the classes that occur in the truth.
LAWS: Mapping[str, Callable[[Floats], Floats]] = {
    "percent": lambda sums: 100 * _ratio(sums),
    "mean": _ratio,
    "iou": _iou,
    "f1": _f1,
}


@dataclass(frozen=True)
class Outcomes:
    """Contributions of the test samples.

    Attributes:
        law: One of :data:`LAWS`.
        samples: Digest of the samples' ids in their order: only equal ones are paired.
        values: By what was scored (``student``, ``scratch``, ``teacher``, …), ``(N, 2)`` or ``(N, classes, 3)``.
    """

    law: str
    samples: str
    values: Mapping[str, Floats]

    def score(self, name: str) -> float:
        """Returns the metric of all samples."""
        return float(LAWS[self.law](self.values[name].sum(0)))


def of_files(paths: Mapping[str, Path | None], main: str) -> bytes | None:
    """Joins the files of several models, each of one entry; of other test samples than ``main`` has it keeps none.

    Returns:
        A file as :func:`pack` writes it; None where ``main`` has none.
    """
    parts = {name: unpack(path.read_bytes()) for name, path in paths.items() if path is not None}
    if main not in parts:
        return None
    law, samples = parts[main].law, parts[main].samples
    alike = {name: part.values for name, part in parts.items() if (part.law, part.samples) == (law, samples)}
    return pack(Outcomes(law, samples, {name: next(iter(own.values())) for name, own in alike.items()}))


def pack(found: Outcomes) -> bytes | None:
    """Writes outcomes in few bytes: hits as bits, counts as the shortest integers, other numbers in single precision.

    Returns:
        A safetensors file; None where it is beyond :data:`LIMIT`, or the models disagree on what is true.
    """
    truths = [values[..., -1] for values in found.values.values()]
    if any(not np.array_equal(truth, truths[0]) for truth in truths):
        return None
    meta: dict[str, Any] = {"law": found.law, "samples": found.samples, "count": len(truths[0]), "bits": []}
    tensors = {} if (truths[0] == 1).all() else {_TRUTH: _short(truths[0])}
    for name, values in found.values.items():
        own = values[..., :-1]
        if own.ndim == 2 and np.isin(own, (0, 1)).all():
            meta["bits"].append(name)
            tensors[name] = np.packbits(own[:, 0].astype(bool))
        else:
            tensors[name] = _short(own)
    content = save(tensors, {_META: json.dumps(meta)})
    return content if len(content) <= LIMIT else None


def unpack(content: bytes) -> Outcomes:
    """Reads what :func:`pack` wrote.

    Raises:
        KDBenchError: It is something else, too large, or holds what cannot be.
    """
    if len(content) > LIMIT:
        raise KDBenchError(f"{OUTCOMES}: {len(content):,} bytes, expected at most {LIMIT:,}")
    try:
        meta = json.loads(_metadata(content)[_META])
        law, samples, count, bits = str(meta["law"]), str(meta["samples"]), int(meta["count"]), meta["bits"]
        if not 0 < count <= 8 * LIMIT:
            raise ValueError(f"{count} samples")
        tensors = {name: np.asarray(value) for name, value in load(content).items()}
        truth = tensors.pop(_TRUTH, np.ones(count)).astype(np.float64)
        values = {}
        for name, packed in tensors.items():
            if name in bits and packed.size != -(-count // 8):
                raise ValueError(f"{packed.size} bytes of {count} bits")
            own = np.unpackbits(packed, count=count)[:, None] if name in bits else packed
            values[name] = np.concatenate([own.astype(np.float64), truth[..., None]], axis=-1)
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, MemoryError, OverflowError) as error:
        raise KDBenchError(f"{OUTCOMES} cannot be read: {' '.join(str(error).split())[:200]}") from None
    if law not in LAWS:
        raise KDBenchError(f"{OUTCOMES}: there is no law {law[:40]!r}: {nearest(law, LAWS)}")
    for name, found in values.items():
        shape = found.shape[1:]
        fits = len(found) == count and (shape == (2,) if law in ("percent", "mean") else shape[1:] == (3,))
        if not fits or not np.isfinite(found).all():
            raise KDBenchError(f"{OUTCOMES}: {name[:40]!r} is no {law} of {count} samples")
    if not values:
        raise KDBenchError(f"{OUTCOMES} holds no outcomes")
    return Outcomes(law, samples, values)


def named(ids: Any) -> str:
    """Digests the ids of samples, in their order."""
    return digest([int(one) for one in ids])


def _metadata(content: bytes) -> dict[str, str]:
    # The library reads metadata from files alone.
    size = int.from_bytes(content[:8], "little")
    found: dict[str, str] = json.loads(content[8 : 8 + size])["__metadata__"]
    return found


def _short(values: Floats) -> NDArray[Any]:
    if (values == np.rint(values)).all() and (values >= 0).all():
        return np.ascontiguousarray(values.astype(np.min_scalar_type(int(values.max(initial=0)))))
    return np.ascontiguousarray(values.astype(np.float32))
