"""When an adversarial augmentation and its student take turns."""

from __future__ import annotations


def next_turn(
    exploring: bool,
    steps: int,
    apart: float,
    stray: float = 0.0,
    *,
    above: float = 0.6,
    below: float = 0.3,
    most: int = 20,
) -> tuple[bool, int]:
    """Says whether the augmentor steps next, by thresholds on the disagreement that it looks for.

    Its phase begins once teacher and student agree to within ``below`` on augmented inputs, and ends once they are more
    than ``above`` apart, the teacher has changed its mind by as much, or after ``most`` steps.

    Args:
        exploring: whether the augmentor has just stepped.
        steps: how many steps of this phase are behind it.
        apart: disagreement of teacher and student on augmented inputs.
        stray: disagreement of the teacher with itself on the inputs as they were; only read while exploring.
        above: ends a phase.
        below: begins one.
        most: steps of a phase.

    Returns:
        Whether it steps next, and how many steps of that phase are behind it.

    Example:
        >>> next_turn(False, 0, apart=0.2), next_turn(True, 4, apart=0.2), next_turn(True, 4, apart=0.7)
        ((True, 0), (True, 4), (False, 0))
    """
    ends = steps >= most or apart > above or stray > above
    if exploring:
        return (False, 0) if ends else (True, steps)
    return apart < below, 0
