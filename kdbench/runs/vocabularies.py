"""Teachers that tell other classes than their students, or the same in another order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdbench.configuration.resolved import PluginSpec
from kdbench.errors import KDBenchError

if TYPE_CHECKING:
    from kdbench.features import Kind
    from kdbench.task import Task


def alike(task: Task, teacher: Task) -> bool:
    """Says whether two tasks tell the same classes in the same order."""
    return teacher is task or list(task.dataset().classes) == list(teacher.dataset().classes)


def foreign(task: Task, teacher: Task, config: Mapping[str, Any], plugins: Iterable[PluginSpec]) -> Task | None:
    """Returns the teacher's task where it tells other classes than the student's.

    Args:
        task: Of the student.
        teacher: Of the teacher.
        config: Of the run.
        plugins: That take a trained network.

    Raises:
        KDBenchError: Classes differ, and what takes the teacher compares them by their place.
    """
    if alike(task, teacher):
        return None
    own, other = task.dataset().classes, teacher.dataset().classes
    found = _difference(own, other)
    if "translates" not in task.capabilities:
        raise KDBenchError(f"teacher and student tell other classes ({found}), and task {task.name} cannot translate")
    for spec in plugins:
        taught = {name for name, role in spec.plugin.roles.items() if role.init == "trained"}
        reads = any(_has_logits(need.kind) and taught & {*need.roles} for need in spec.plugin.needs)
        if reads and not spec.plugin.renames:
            raise KDBenchError(
                f"teacher and student tell other classes ({found}), and {spec.given['name']} compares them by their "
                "place: method=uld does not"
            )
    kept = next((key for key in ("corpus", "replay") if config["teacher"].get(key)), None)
    if kept:
        raise KDBenchError(f"teacher and student tell other classes ({found}): leave out teacher.{kept}")
    return teacher


def _difference(own: Sequence[str], other: Sequence[str]) -> str:
    if len(own) != len(other):
        return f"{len(other)} and {len(own)} of them"
    place = next(n for n, (a, b) in enumerate(zip(own, other, strict=True)) if a != b)
    return f"{place} is {other[place]!r} of the one and {own[place]!r} of the other"


def _has_logits(kind: Kind | tuple[Kind, ...]) -> bool:
    from kdbench.features import Logits

    kinds = kind if isinstance(kind, tuple) else (kind,)
    return any(issubclass(one, Logits) for one in kinds)
