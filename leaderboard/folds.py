"""Folds of one data set joined: what is held out in turn gives one figure, whose spread is over folds, not over seeds.

::

    found = join(boards, words)     # list[Folded], best first; boards of one task, words(group): what its command sets
    one.groups                      # dict[str, Group]: the group of each fold, by the fold's name
    one.score, one.scratch          # Estimate over folds: of each fold the mean over its seeds
    one.vs_scratch, one.vs_kd       # Difference over folds, of each fold the mean of its paired differences
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from leaderboard.boards import Board
from leaderboard.groups import Difference, Group, Setting
from leaderboard.stats import LEVEL, Estimate, estimate, holm, paired_p


@dataclass(frozen=True, slots=True)
class Folded:
    """A specification over the folds of a data set, each with seeds of its own.

    Attributes:
        setting: Of all folds; ``digest`` and ``fold`` are empty.
        method: Name.
        trials: Tuning trials of each fold.
        words: What the command sets beside.
        groups: By the name of the fold.
        score: Of the primary metric over folds; the other estimates likewise.
    """

    setting: Setting
    method: str
    trials: int
    words: str
    groups: Mapping[str, Group]
    primary: str
    higher_is_better: bool
    score: Estimate
    scratch: Estimate | None
    vs_scratch: Difference
    vs_kd: Difference

    @property
    def enough(self) -> bool:
        """Whether every fold has enough seeds."""
        return all(group.enough for group in self.groups.values())

    @property
    def seeds(self) -> int:
        """Fewest of a fold."""
        return min(len(group.seeds) for group in self.groups.values())


def join(boards: Iterable[Board], words: Callable[[Group], str]) -> list[Folded]:
    """Joins groups that differ in nothing but the fold; of two for one fold the newest counts.

    Args:
        boards: Of one task.
        words: Returns what the command of a group sets beside the setting, the fold left out.

    Returns:
        Those of two folds at least: by setting and number of folds, then the best first.
    """
    alike: dict[tuple[object, ...], list[Group]] = {}
    for board in boards:
        for group in board.groups:
            if group.setting.fold and group.score is not None and group.metric == board.metric:
                setting = group.setting._replace(digest="", fold="")
                key = setting, group.method, group.trials, words(group), group.metric
                alike.setdefault(key, []).append(group)
    found = [_folded(groups, words(groups[0])) for groups in alike.values()]
    many = _corrected([one for one in found if len(one.groups) > 1])
    sign = {True: -1.0, False: 1.0}
    return sorted(
        many, key=lambda f: (f.setting, -len(f.groups), sign[f.higher_is_better] * f.score.mean, f.method, f.words)
    )


def _folded(groups: Sequence[Group], words: str) -> Folded:
    newest = {g.setting.fold: g for g in sorted(groups, key=lambda g: (g.newest.finished, g.spec_hash))}
    kept = dict(sorted(newest.items()))
    first = next(iter(kept.values()))
    scores = [g.score for g in kept.values() if g.score is not None]
    over = estimate([score.mean for score in scores])
    assert over is not None and first.primary is not None  # a group without a score has no part in this
    return Folded(
        setting=first.setting._replace(digest="", fold=""),
        method=first.method,
        trials=first.trials,
        words=words,
        groups=kept,
        primary=first.primary,
        higher_is_better=first.higher_is_better,
        score=over,
        scratch=estimate([g.scratch.mean for g in kept.values() if g.scratch is not None]),
        vs_scratch=_difference([g.vs_scratch for g in kept.values()]),
        vs_kd=_difference([g.vs_kd for g in kept.values()]),
    )


def _difference(given: Sequence[Difference]) -> Difference:
    """Joins the differences of all folds; where one has none there is none, and its reason."""
    reason = next((d.reason for d in given if d.estimate is None), None)
    found = estimate([d.estimate.mean for d in given if d.estimate is not None])
    if reason is not None or found is None:
        return Difference(reason=reason)
    return Difference(found, "open", p=paired_p(found))


def _corrected(rows: Sequence[Folded]) -> list[Folded]:
    """Colours what survives a correction for all rows of a setting and number of trials (Holm)."""
    alike: dict[tuple[object, ...], list[Folded]] = {}
    for one in rows:
        alike.setdefault((one.setting, one.trials), []).append(one)
    done = []
    for same in alike.values():
        against_scratch = _holm([one.vs_scratch for one in same], same)
        against_kd = _holm([one.vs_kd for one in same], same)
        done += [
            replace(one, vs_scratch=scratch, vs_kd=kd)
            for one, scratch, kd in zip(same, against_scratch, against_kd, strict=True)
        ]
    return done


def _holm(given: Sequence[Difference], rows: Sequence[Folded]) -> list[Difference]:
    family = sum(d.p is not None for d in given)
    found = []
    for one, row, p in zip(given, rows, holm([d.p for d in given]), strict=True):
        verdict = one.verdict
        if p is not None and p < 1 - LEVEL and one.estimate is not None:
            verdict = "better" if (one.estimate.mean > 0) == row.higher_is_better else "worse"
        found.append(replace(one, verdict=verdict, corrected=p, family=family))
    return found
