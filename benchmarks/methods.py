"""Every distillation method's training step over one of plain kd, on a CIFAR-sized pair."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.report import Row
from benchmarks.turns import DROPPED, Gate, take_turns
from kdbench import matrix
from kdbench.base import rng
from kdbench.base.store import Store
from kdbench.configuration.config import load
from kdbench.configuration.resolved import resolve
from kdbench.needs import Stage
from kdbench.runs.trainings import Trainings
from kdbench.training.fit import Training

#: Images of the training set: a batch of 64 a step, and one more class of negatives than CRD asks for.
TRAIN, TEST = 1280, 100
#: Methods that are timed beside one kd: each lives in a process of its own.
TOGETHER = 10
#: A step of kd that a method may cost; what costs more is there with its reason.
LIMIT = 3.0
REASONS = {
    "sskd": "; four views of each sample (three rotations) pass through both networks",
    "tgeo": "; a step within a step: its outer problem takes a second forward and a gradient of second order",
}
#: What a method needs of the data beside.
NEEDS = {"ssld": ("data.labels=600", "data.unlabelled=500")}
PAIR = ("pair=resnet56_resnet20", "data.batch_size=64")


def write_cifar100(folder: Path) -> Path:
    """Writes noise in the binary layout of CIFAR-100."""
    generator = rng.numpy(0, "benchmarks", "cifar100")
    for name, size in (("train", TRAIN), ("test", TEST)):
        labels = np.arange(size, dtype=np.uint8) % 100
        pixels = generator.integers(0, 256, (size, 3072), dtype=np.uint8)
        rows = np.concatenate([labels[:, None] // 5, labels[:, None], pixels], axis=1)
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    return folder


def made(method: str, root: str, overrides: Sequence[str]) -> Training:
    """Makes a training of a method, with a teacher that was never trained, on the images in ``root``."""
    given = ["task=classification", "data=cifar100", f"data.root={root}", f"method={method}", *PAIR]
    given += [*NEEDS.get(method, ()), *overrides]
    config = load(given)
    store = Store(Path(root) / "cache")
    trainings = Trainings(resolve(config, store))
    return Training(trainings.student_recipe(), trainings.task, untrained=True)


def main_stage(stages: Sequence[Stage]) -> Stage:
    """Returns the longest stage, the last of several."""
    return max(reversed(stages), key=lambda stage: stage.epochs)


def train(gate: Gate, *, method: str, root: str, overrides: Sequence[str]) -> None:
    """Trains the longest stage of a method, with a teacher that was never trained."""
    training = made(method, root, overrides)
    training.stages = (main_stage(training.stages),)
    with tempfile.TemporaryDirectory(prefix="kdbench-bench-") as work, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        training.run(Path(work), [gate])


def methods(rounds: int = 3, steps: int = 6, names: Sequence[str] = (), overrides: Sequence[str] = ()) -> Iterator[Row]:
    """A training step of every method that serves classification over one of kd in the same rounds.

    Args:
        rounds: Blocks of each.
        steps: Timed steps of a block.
        names: Methods; all by default.
        overrides: Of the configuration.
    """
    served = [c.name for c in matrix.cells() if c.task == "classification" and c.axis == "method" and c.ok]
    asked = list(names or [n for n in served if n != "kd"])
    endless = (*overrides, f"trainer.epochs={2 + rounds * (steps + DROPPED)}", "trainer.val_every=1000000")
    with tempfile.TemporaryDirectory(prefix="kdbench-bench-") as folder:
        write_cifar100(Path(folder))
        contender = partial(train, root=folder, overrides=endless)
        for some in (asked[start : start + TOGETHER] for start in range(0, len(asked), TOGETHER)):
            ours = {name: partial(contender, method=name) for name in some}
            kd = partial(contender, method="kd")
            times = take_turns({"kd": kd, "kd again": kd, **ours}, rounds, steps)
            for name in some:
                stage = main_stage(made(name, folder, endless).stages).name
                yield Row.of(
                    f"{name}, training step over one of kd",
                    "x",
                    times[name].over(times["kd"]),
                    times["kd again"].over(times["kd"]),
                    limit=None if name in REASONS else LIMIT,
                    detail=f"stage {stage!r}; kd {times['kd'].median:.0f} ms, {name} {times[name].median:.0f} ms a "
                    f"step, peak memory {times[name].peak:.0f} MiB" + REASONS.get(name, ""),
                )
