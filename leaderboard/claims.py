"""What papers claim of their method, decided by our records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from kdbench.errors import KDBenchError
from leaderboard.across import representatives
from leaderboard.boards import TRIALS, Board
from leaderboard.families import Families
from leaderboard.groups import Group
from leaderboard.stats import Contrast

#: The claims of the package.
CLAIMS = Path(__file__).resolve().parent / "claims.yaml"
SCRATCH = "scratch"

Outcome = Literal["confirmed", "contradicted", "not confirmed", "not testable here"]


class Claim(BaseModel):
    """That a method is better than another, or than the student trained alone (``scratch``)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    paper: str
    claim: str
    task: str
    method: str
    against: str


@dataclass(frozen=True, slots=True)
class Test:
    """A claim in one setting: the corrected difference, in the direction in which more is better."""

    board: Board
    group: Group
    contrast: Contrast

    @property
    def verdict(self) -> Literal["better", "worse", "open"]:
        """What it says."""
        if not self.contrast.resolved:
            return "open"
        return "better" if (self.contrast.mean > 0) == self.board.higher_is_better else "worse"


@dataclass(frozen=True, slots=True)
class Decision:
    """What all settings say of a claim."""

    claim: Claim
    outcome: Outcome
    tests: tuple[Test, ...]


def load(path: Path = CLAIMS) -> list[Claim]:
    """Reads claims.

    Raises:
        KDBenchError: The file is no list of claims.
    """
    try:
        return TypeAdapter(list[Claim]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise KDBenchError(f"{path}: no list of claims: {' '.join(str(error).split())[:200]}") from None


def decide(claims: Iterable[Claim], boards: Sequence[Board]) -> list[Decision]:
    """Decides claims: confirmed where one setting says so and none the contrary."""
    kept = [board for board in boards if board.setting.preset not in TRIALS]
    found = []
    for claim in claims:
        own = (board for board in kept if board.setting.task == claim.task)
        tests = tuple(t for board in own if (t := _test(claim, board)) is not None)
        found.append(Decision(claim, _outcome(tests), tests))
    return found


def _outcome(tests: Sequence[Test]) -> Outcome:
    said = {test.verdict for test in tests}
    if not said:
        return "not testable here"
    if said >= {"better", "worse"} or said == {"open"}:
        return "not confirmed"
    return "confirmed" if "better" in said else "contradicted"


def _test(claim: Claim, board: Board) -> Test | None:
    chosen = representatives(board)
    group, other = chosen.get(claim.method), chosen.get(claim.against)
    if group is None or (other is None and claim.against != SCRATCH):
        return None
    # The family of all rows of equal tuning, as for the colours of the table.
    same = [g for g in board.groups if not g.reference and (g.trials, g.metric) == (group.trials, group.metric)]
    families = Families(same)
    place = next(i for i, g in enumerate(same) if g is group)
    if other is None:
        found = families.to_scratch(place)
    else:
        found = families.between(place, next(i for i, g in enumerate(same) if g is other))
    return None if found is None else Test(board, group, found[0])
