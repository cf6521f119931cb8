"""What other test samples would have given: the bootstrap of the samples behind a score.

A record may keep what each test sample contributed to its score (:mod:`kdbench.base.outcomes`). Samples are drawn with
replacement, the same ones for every model, seed and method of a test set, and each draw is scored. So differences are
paired by sample as well as by seed; :func:`leaderboard.crossed.variance` joins both axes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdbench.base.outcomes import LAWS, LIMIT, OUTCOMES, unpack
from kdbench.errors import KDBenchError
from leaderboard.crossed import Draws
from leaderboard.row import Row

#: How often samples are drawn; the standard error of a standard error is 1 / sqrt(2 x 500), or 3%.
DRAWS = 500
#: Samples beyond are drawn in so many groups, made at random. With fewer than ``FEWEST`` a bootstrap says little.
GROUPS, FEWEST = 2000, 20
#: How far a score of the record may be from that of its samples, in single precision.
NEAR = 1e-4
#: Runs whose draws are kept; those of a board are asked for again and again.
KEPT = 4096

Floats = NDArray[np.float64]


class Drawn(NamedTuple):
    """One run under every draw of test samples.

    Attributes:
        key: What two runs have in common to be paired: the samples and the law of the metric.
        size: How many samples there are.
        scores: By what was scored, ``(DRAWS,)`` float32.
    """

    key: tuple[str, ...]
    size: int
    scores: Mapping[str, NDArray[np.float32]]


def drawn(rows: Sequence[Row], teachers: int, role: str | None = None) -> Draws | None:
    """Returns the draws of a grid of runs.

    Args:
        rows: The runs, by seed, then by teacher.
        teachers: How many each seed has.
        role: What was scored; what the run is about by default.

    Returns:
        None unless every run has the outcomes of the same samples, of this role.
    """
    if not all(row.outcomes for row in rows):
        return None
    found = [of(row) for row in rows]
    kept = [one for one in found if one is not None]
    if not kept or len(kept) < len(found) or len({one.key for one in kept}) > 1:
        return None
    scores = [one.scores.get(role or row.role) for one, row in zip(kept, rows, strict=True)]
    there = [values for values in scores if values is not None]
    if len(there) < len(scores):
        return None
    values = np.stack(there, axis=1, dtype=np.float64)
    return Draws(values.reshape(DRAWS, -1, max(1, teachers)), kept[0].size, kept[0].key)


def of(row: Row) -> Drawn | None:
    """Scores every draw of a run's test samples; None where its outcomes are absent or are not those of the record."""
    return _of(row.path, row.outcomes, row.primary, tuple((n, row.of(n)) for n in row.scores.names), row.digest)


@functools.lru_cache(KEPT)
def _of(
    path: str, expected: str, primary: str | None, scores: tuple[tuple[str, float | None], ...], data: str | None
) -> Drawn | None:
    if not expected:
        return None
    try:
        with Path(path).with_name(OUTCOMES).open("rb") as stream:
            content = stream.read(LIMIT + 1)
        if sha256(content).hexdigest() != expected:
            return None
        found = unpack(content)
    except (OSError, KDBenchError):
        return None
    known = dict(scores)
    count = len(next(iter(found.values.values())))
    names = [name for name in found.values if agrees(found.score(name), known.get(name))]
    if count < FEWEST or not names:
        return None
    sums = _sums(np.stack([_grouped(found.values[name]) for name in names], axis=1))
    drawn = LAWS[found.law](sums).astype(np.float32)  # (DRAWS, models)
    values = {name: np.ascontiguousarray(drawn[:, i]) for i, name in enumerate(names) if np.isfinite(drawn[:, i]).all()}
    return Drawn((found.law, found.samples, data or ""), count, values)


def agrees(score: float, recorded: float | None) -> bool:
    """Tells whether a score of samples is that of the record."""
    return recorded is not None and math.isclose(score, recorded, rel_tol=NEAR, abs_tol=NEAR)


def _sums(contributions: Floats) -> Floats:
    """Returns the sums over each draw of ``(N, …)``; a number that all samples share, such as one, is not drawn."""
    flat = contributions.reshape(len(contributions), -1)
    same = (flat == flat[0]).all(axis=0)
    sums = np.tile(flat[0] * len(flat), (DRAWS, 1))
    sums[:, ~same] = _weights(len(flat)) @ flat[:, ~same].astype(np.float32)
    return sums.reshape(DRAWS, *contributions.shape[1:])


def _grouped(contributions: Floats) -> Floats:
    count = len(contributions)
    if count <= GROUPS:
        return contributions
    order = np.random.default_rng(0).permutation(count)
    return np.add.reduceat(contributions[order], np.linspace(0, count, GROUPS, endpoint=False).astype(int))


@functools.lru_cache(4)
def _weights(count: int) -> NDArray[np.float32]:
    """Returns how often each draw takes each sample, ``(DRAWS, count)``."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), DRAWS).astype(np.float32)
