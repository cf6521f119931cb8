"""Groups that stand beside the same scratch twins, compared with each other: corrected differences, and ranks.

The seeds are blocks and the scratch twin is one of the methods, so that one error and one critical value serve the
colours against scratch and the baseline and the places of a table: they cannot contradict each other.

Groups that share several teachers are compared over the grid of seeds and teachers. There the scratch twin is none of
the methods: it has no teacher, so that differences to it vary with what the teacher is worth, and those of two methods
do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leaderboard import samples
from leaderboard.crossed import Draws, largest, together
from leaderboard.groups import Group
from leaderboard.row import Row
from leaderboard.stats import Blocks, Contrast, Floats, Places

#: Numbers that the draws of a family hold at most, and the draws that are kept all the same.
LARGEST, LEAST = 20_000_000, 100
#: Seed and teacher with the score of the scratch twin; groups of equal ones were run by the same recipe on the same
#: kind of machine.
Twins = frozenset[tuple[int, int, float]]


def twins_of(group: Group) -> Twins:
    """Returns the seeds and teachers of a group that have a scratch twin, each with its score."""
    found = ((row.seed, row.teacher_seed, row.of("scratch")) for row in group.scored)
    return frozenset((seed, teacher, alone) for seed, teacher, alone in found if alone is not None)


def cells_of(twins: Twins) -> list[tuple[int, int]]:
    """Returns the seeds and teachers of a full grid, sorted."""
    seeds, teachers = largest((seed, teacher) for seed, teacher, _ in twins)
    return [(seed, teacher) for seed in seeds for teacher in teachers]


def scores(group: Group, cells: Sequence[tuple[int, int]], role: str | None = None) -> Floats:
    """Returns the score of a group, or of a role beside it, on a full grid: ``(seeds, teachers)``."""
    rows: dict[tuple[int, int], Row] = {(row.seed, row.teacher_seed): row for row in group.scored}
    found = [rows[cell].score if role is None else rows[cell].of(role) for cell in cells]
    return np.array(found, dtype=float).reshape(len({seed for seed, _ in cells}), -1)


def draws(
    group: Group, cells: Sequence[tuple[int, int]], role: str | None = None, most: int | None = None
) -> Draws | None:
    """Returns what :func:`scores` does under the first draws of the test samples; None where they are not kept."""
    rows: dict[tuple[int, int], Row] = {(row.seed, row.teacher_seed): row for row in group.scored}
    found = samples.drawn([rows[cell] for cell in cells], len({teacher for _, teacher in cells}), role)
    return found and found._replace(values=found.values[:most])


@dataclass(frozen=True)
class Family:
    """What groups say over the same twins.

    Attributes:
        blocks: The methods among each other; None for a single one under several teachers.
        alone: The methods and, as the last, the scratch student.
        members: Place of each group among the methods, by its index.
    """

    blocks: Blocks | None
    alone: Blocks
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
        self._sharing: dict[Twins, list[Family]] = {}

    def over(self, twins: Twins) -> Family | None:
        """Joins all groups that have these twins; None where there are not two seeds."""
        if twins not in self._found:
            self._found[twins] = self._join(twins)
        return self._found[twins]

    def _join(self, twins: Twins) -> Family | None:
        cells = cells_of(twins)
        if len({seed for seed, _ in cells}) < 2:
            return None
        twins = frozenset(twin for twin in twins if twin[:2] in set(cells))
        members = [i for i, own in enumerate(self.twins) if twins <= own]
        if not members:
            return None
        own = [scores(self.groups[i], cells) for i in members]
        alone = np.array([twin for *_, twin in sorted(twins)]).reshape(own[0].shape)
        places = {i: place for place, i in enumerate(members)}
        drawn = self._draws(members, cells)
        if own[0].shape[1] == 1:
            together = Blocks.of(np.array([*own, alone]), drawn)
            return Family(together, together, places)
        methods = gains = None
        if drawn is not None:
            methods = drawn._replace(values=drawn.values[:, :-1])
            gains = methods._replace(values=drawn.values[:, :-1] - drawn.values[:, -1:])
        between = Blocks.of(np.array(own), methods) if len(own) > 1 else None
        return Family(between, Blocks.of_gains(np.array(own) - alone, gains), places)

    def _draws(self, members: Sequence[int], cells: Sequence[tuple[int, int]]) -> Draws | None:
        """Returns the draws of all members and, as the last, of their scratch student; None where one has none."""
        groups = [self.groups[i] for i in members]
        # A variance that is pooled over many methods needs fewer draws of each.
        most = max(LEAST, LARGEST // ((len(groups) + 1) * len(cells)))
        asked = ((groups[0], "scratch"), *((group, None) for group in groups))
        found = together(draws(group, cells, role, most) for group, role in asked)
        if found is None:
            return None
        return found[0]._replace(values=np.stack([one.values for one in (*found[1:], found[0])], axis=1))

    def to_scratch(self, index: int) -> tuple[Contrast, int] | None:
        """Compares a group with its scratch twins; returns also how many were compared with them."""
        family = self.over(self.twins[index])
        if family is None:
            return None
        return family.alone.contrast(family.members[index], len(family.members)), family.size

    def between(self, index: int, other: int) -> tuple[Contrast, int] | None:
        """Compares two groups over the twins that they share."""
        family = self.over(self.twins[index] & self.twins[other])
        if family is None or family.blocks is None:
            return None
        return family.blocks.contrast(family.members[index], family.members[other]), family.size

    def places(self, ranked: Sequence[int], higher_is_better: bool) -> list[tuple[int, int]]:
        """Returns the best and the worst place of each of the groups ``ranked`` among these.

        A place leaves out those that are surely better or worse: within a family by the corrected difference, which
        makes it a 95% confidence set of the rank (Mogstad et al., Rev. Econ. Stud. 2024); beyond, by intervals of the
        means that do not overlap. Two groups are compared over all twins that they share. A group of one seed is sure
        of nothing.
        """
        sign = 1.0 if higher_is_better else -1.0
        ends = [_ends(self.groups[i], sign) for i in ranked]
        low, high = np.array([e[0] for e in ends]), np.array([e[1] for e in ends])
        column = {index: place for place, index in enumerate(ranked)}
        inside: dict[int, tuple[Places, Places]] = {}  # of each family the columns of its members, and their places
        found = []
        for own, index in enumerate(ranked):
            better, worse = low > high[own], high < low[own]
            told = np.zeros(len(ranked), dtype=bool)
            for family in self._shared(self.twins[index]):
                if family.blocks is None or index not in family.members:
                    continue
                if id(family) not in inside:
                    members = [(column[i], place) for i, place in family.members.items() if i in column]
                    every, at = np.array(members).T
                    inside[id(family)] = every, at
                columns, places = inside[id(family)]
                left = ~told[columns]
                columns, places = columns[left], places[left]
                ahead = sign * (family.blocks.means[places] - family.blocks.means[family.members[index]])
                # Equal scores differ in their last digits.
                half = family.blocks.half + 1e-9 * float(np.abs(family.blocks.means).max())
                better[columns], worse[columns], told[columns] = ahead > half, ahead < -half, True
            found.append((1 + int(better.sum()), len(ranked) - int(worse.sum())))
        return found

    def _shared(self, own: Twins) -> list[Family]:
        """Returns the families over twins that a group has in common with others, those over most of them first."""
        if own not in self._sharing:
            shared = {own & other for other in set(self.twins)}
            found = (self.over(twins) for twins in sorted(shared, key=lambda twins: (-len(twins), sorted(twins))))
            self._sharing[own] = [family for family in found if family is not None]
        return self._sharing[own]


def _ends(group: Group, sign: float) -> tuple[float, float]:
    score = group.score
    if score is None or score.low is None or score.high is None:
        return -math.inf, math.inf
    low, high = sorted((sign * score.low, sign * score.high))
    return low, high
