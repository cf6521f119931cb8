"""What training costs, in forward passes of the scratch twin's whole training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leaderboard.groups import Group

if TYPE_CHECKING:
    from leaderboard.boards import Board


def student_passes(group: Group) -> float | None:
    """Returns how often the student ran forward in its whole training: samples seen times passes for each."""
    seen, each = group.cost.samples_seen, group.cost.student_passes
    return None if seen is None or each is None else seen * each


def training(group: Group, board: Board) -> tuple[float | None, float | None]:
    """Returns the forward passes of the whole training by student and teacher, in those of the scratch twin's."""
    own, unit, cost = student_passes(group), board.twin_passes, group.cost
    if own is None or not unit:
        return None, None
    teacher = None if cost.samples_seen is None else cost.samples_seen * (cost.teacher_passes or 0.0)
    return own / unit, None if teacher is None else teacher / unit


def passes(group: Group, board: Board) -> float | None:
    """Returns what training costs, student and teacher together, in forward passes of the scratch twin's training."""
    student, teacher = training(group, board)
    return None if student is None else student + (teacher or 0.0)
