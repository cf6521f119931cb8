"""A training step of kd under each fixed augmentation over one without, on a CIFAR-sized pair."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks.methods import train, write_cifar100
from benchmarks.report import Row
from benchmarks.turns import DROPPED, take_turns
from kdbench import matrix
from kdbench.configuration.config import option
from kdbench.configuration.resolved import PluginSpec

#: A step without augmentation that one with it may cost; what costs more is there with its reason.
LIMIT = 1.1
REASONS = {"regmixup": "; the student reads the batch and its mixture"}


def fixed() -> list[str]:
    """Returns the augmentations of classification that learn nothing."""
    green = [c.name for c in matrix.cells() if (c.task, c.axis, c.ok) == ("classification", "augment", True)]
    specs = {name: option("augment", name) for name in green if name != "none"}
    roles = {name: PluginSpec.of("augment", spec).plugin.roles for name, spec in specs.items()}
    return [name for name, own in roles.items() if set(own) == {"student"}]


def augmentations(rounds: int = 3, steps: int = 5, names: Sequence[str] = ()) -> Iterator[Row]:
    """A training step under every fixed augmentation over one without in the same rounds.

    Args:
        rounds: Blocks of each.
        steps: Timed steps of a block.
        names: Augmentations; all by default.
    """
    endless = (f"trainer.epochs={2 + rounds * (steps + DROPPED)}", "trainer.val_every=1000000")
    asked = list(names or fixed())
    with tempfile.TemporaryDirectory(prefix="kdbench-bench-") as folder:
        write_cifar100(Path(folder))
        plain = partial(train, method="kd", root=folder, overrides=endless)
        ours = {
            name: partial(train, method="kd", root=folder, overrides=(*endless, f"augment={name}")) for name in asked
        }
        times = take_turns({"none": plain, "none again": plain, **ours}, rounds, steps)
    for name in asked:
        yield Row.of(
            f"{name}, training step over one without",
            "x",
            times[name].over(times["none"]),
            times["none again"].over(times["none"]),
            limit=None if name in REASONS else LIMIT,
            detail=f"none {times['none'].median:.0f} ms, {name} {times[name].median:.0f} ms a step"
            + REASONS.get(name, ""),
        )
