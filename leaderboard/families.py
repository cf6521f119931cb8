"""Groups that stand beside the same scratch twins, compared with each other: corrected differences, and ranks.

The seeds are blocks and the scratch twin is one of the methods, so that one error and one critical value serve the
colours against scratch and the baseline and the places of a table: they cannot contradict each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leaderboard.groups import Group
from leaderboard.stats import Blocks, Contrast

#: The scratch score of each seed; groups of equal ones were run by the same recipe on the same kind of machine.
Twins = frozenset[tuple[int, float]]


def twins_of(group: Group) -> Twins:
    """Returns the seeds of a group that have a scratch twin, each with its score."""
    return frozenset((row.seed, alone) for row in group.scored if (alone := row.of("scratch")) is not None)


@dataclass(frozen=True)
class Family:
    """What groups say over the same twins; the last of the methods is the scratch student.

    Attributes:
        members: Place of each group among the methods, by its index.
    """

    blocks: Blocks
    members: dict[int, int]

    @property
    def size(self) -> int:
        """How many differences one correction is for."""
        return len(self.members)


class Families:
    """The groups of one board and one number of tuning trials."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = groups
        self.twins = [twins_of(g) for g in groups]
        self._found: dict[Twins, Family | None] = {}

    def over(self, twins: Twins) -> Family | None:
        """Joins all groups that have these twins; None where there are not two seeds."""
        if twins not in self._found:
            self._found[twins] = self._join(twins)
        return self._found[twins]

    def _join(self, twins: Twins) -> Family | None:
        if len(twins) < 2:
            return None
        seeds = {seed for seed, _ in twins}
        members = [i for i, own in enumerate(self.twins) if twins <= own]
        scores = [[row.score for row in self.groups[i].scored if row.seed in seeds] for i in members]
        if not members:
            return None
        scores.append([alone for _, alone in sorted(twins)])
        blocks = Blocks.of(np.array(scores, dtype=float))
        return Family(blocks, {i: place for place, i in enumerate(members)})

    def to_scratch(self, index: int) -> tuple[Contrast, int] | None:
        """Compares a group with its scratch twins; returns also how many were compared with them."""
        family = self.over(self.twins[index])
        if family is None:
            return None
        return family.blocks.contrast(family.members[index], len(family.members)), family.size

    def between(self, index: int, other: int) -> tuple[Contrast, int] | None:
        """Compares two groups over the twins that they share."""
        family = self.over(self.twins[index] & self.twins[other])
        if family is None:
            return None
        return family.blocks.contrast(family.members[index], family.members[other]), family.size

    def places(self, ranked: Sequence[int], higher_is_better: bool) -> list[tuple[int, int]]:
        """Returns the best and the worst place of each of the groups ``ranked`` among these.

        A place leaves out those that are surely better or worse: within a family by the corrected difference, which
        makes it a 95% confidence set of the rank (Mogstad et al., Rev. Econ. Stud. 2024); beyond, by intervals of the
        means that do not overlap. A group of one seed is sure of nothing.
        """
        sign = 1.0 if higher_is_better else -1.0
        ends = [_ends(self.groups[i], sign) for i in ranked]
        low, high = np.array([e[0] for e in ends]), np.array([e[1] for e in ends])
        column = {index: place for place, index in enumerate(ranked)}
        found = []
        for own, index in enumerate(ranked):
            better, worse = low > high[own], high < low[own]
            family = self.over(self.twins[index])
            if family is not None:
                inside = [(column[i], place) for i, place in family.members.items() if i in column]
                columns, places = np.array(inside).T
                ahead = sign * (family.blocks.means[places] - family.blocks.means[family.members[index]])
                # Equal scores differ in their last digits.
                half = family.blocks.half + 1e-9 * float(np.abs(family.blocks.means).max())
                better[columns], worse[columns] = ahead > half, ahead < -half
            found.append((1 + int(better.sum()), len(ranked) - int(worse.sum())))
        return found


def _ends(group: Group, sign: float) -> tuple[float, float]:
    score = group.score
    if score is None or score.low is None or score.high is None:
        return -math.inf, math.inf
    low, high = sorted((sign * score.low, sign * score.high))
    return low, high
