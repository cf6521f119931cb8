"""What a learned augmentation costs: the augmentor's update, and the further view that the student reads."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks import methods
from benchmarks.report import Row
from benchmarks.turns import DROPPED, Gate, take_turns
from kdbench.functional.kd import kd_loss

AUGMENT = "augment=hard_affine"
#: The augmentor never steps, or before every step of the student.
NEVER = (AUGMENT, "augment.turns.below=0")
ALWAYS = (AUGMENT, "augment.turns.below=1e9", "augment.turns.above=1e9", "augment.turns.most=1000000000")
#: Of the passes by hand: moving the images, both losses and the augmentor's step come on top.
LIMIT = 1.2


def passes(gate: Gate, *, root: str, overrides: Sequence[str]) -> None:
    """Takes one teacher and one student forward and backward to their input, by hand."""
    training = methods.made("kd", root, overrides)
    teacher, student = (training.cast.model(role).eval() for role in ("teacher", "student"))
    images = training.first_batch().inputs
    while True:
        leaf = images.detach().clone(memory_format=torch.channels_last).requires_grad_()
        torch.autograd.grad(kd_loss(student(leaf), teacher(leaf), 1.0), [leaf])
        gate.step()


def augmentor(rounds: int = 3, steps: int = 5, overrides: Sequence[str] = ()) -> Iterator[Row]:
    """The augmentor's update over one pass of each network, and the student's step over one of kd.

    Args:
        rounds: Blocks of each.
        steps: Timed steps of a block.
        overrides: Of the configuration.
    """
    endless = (*overrides, f"trainer.epochs={2 + rounds * (steps + DROPPED)}", "trainer.val_every=1000000")
    with tempfile.TemporaryDirectory(prefix="kdbench-bench-") as folder:
        methods.write_cifar100(Path(folder))
        kd = partial(methods.train, method="kd", root=folder)
        contenders = {
            "kd": partial(kd, overrides=endless),
            "student": partial(kd, overrides=(*endless, *NEVER)),
            "both": partial(kd, overrides=(*endless, *ALWAYS)),
            "by hand": partial(passes, root=folder, overrides=endless),
            "by hand again": partial(passes, root=folder, overrides=endless),
        }
        times = take_turns(contenders, rounds, steps)
    update = times["both"].minus(times["student"])
    by_hand = times["by hand"].blocks
    yield Row.of(
        "hard_affine, augmentor's update over a pass of teacher and student",
        "x",
        [own / other for own, other in zip(update, by_hand, strict=True)],
        times["by hand again"].over(times["by hand"]),
        limit=LIMIT,
        detail=f"step {times['both'].median:.0f} ms with it, {times['student'].median:.0f} ms without, the passes "
        f"by hand {times['by hand'].median:.0f} ms",
    )
    yield Row.of(
        "hard_affine, training step of the student over one of kd",
        "x",
        times["student"].over(times["kd"]),
        times["by hand again"].over(times["by hand"]),
        detail="two views through both networks; the teacher's answer to the first one serves the augmentor too",
    )
