"""The engine as Lightning drives it in a run, against a plain PyTorch loop that does the same work."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from benchmarks.images import ALPHA, DECAY, LR, MOMENTUM, TEMPERATURE, digits, noise, recipe
from benchmarks.report import MORE, Row
from benchmarks.turns import DROPPED, Gate, take_turns
from kdbench.training.fit import MODEL, Training


class Loop:
    """What one writes by hand: no schedule, no bookkeeping.

    Args:
        teacher: Frozen.
        student: Trained.
        fast: Lays weights and images out channel last.
        bf16: Runs the forward under autocast.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, fast: bool = False, bf16: bool = False) -> None:
        self.layout = torch.channels_last if fast else torch.contiguous_format
        self.autocast = partial(torch.autocast, "cpu", torch.bfloat16) if bf16 else contextlib.nullcontext
        for model in (teacher, student):
            model.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.teacher, self.student = teacher.eval().requires_grad_(False), student.train()
        self.optimizer = torch.optim.SGD(student.parameters(), LR, MOMENTUM, weight_decay=DECAY)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Trains on one batch and returns its loss."""
        images = images.contiguous(memory_format=self.layout)
        with self.autocast():
            with torch.no_grad():
                guide = self.teacher(images)
            logits = self.student(images)
            soft = F.log_softmax(logits / TEMPERATURE, 1), F.log_softmax(guide / TEMPERATURE, 1)
            kd = TEMPERATURE**2 * F.kl_div(*soft, reduction="batchmean", log_target=True)
            loss = (1 - ALPHA) * F.cross_entropy(logits, labels) + ALPHA * kd
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss


def bare(gate: Gate, teacher: int, student: int, batch_size: int, **options: bool) -> None:
    """The plain loop; ``options`` are those of :class:`Loop`."""
    task = noise(batch_size, 1)
    images = task.splits["train"]
    data = TensorDataset(images.images, images.labels)
    loader = DataLoader(data, batch_size, sampler=RandomSampler(data, replacement=True, num_samples=10**9))
    loop = Loop(task.build({"depth": teacher}), task.build({"depth": student}), **options)
    for batch in loader:
        loop.step(*batch)
        gate.step()


def engine(gate: Gate, teacher: int, student: int, batch_size: int, steps: int, **trainer: Any) -> None:
    """A training as a run does it."""
    _train(Training(recipe(teacher, student, **trainer), noise(batch_size, steps), untrained=True), gate)


def _train(training: Training, callback: Callback) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="kdbench-bench-") as work, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return training.run(Path(work), [callback])


class _Losses(Callback):
    """Keeps the loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *args: object) -> None:
        self.values.append(float(outputs["loss"]))


def same_work(teacher: int, student: int, batch_size: int, steps: int = 3, channels_last: bool = False) -> float:
    """Trains engine and loop from the same weights on the same batches, and returns how far their losses differ.

    Args:
        teacher: Depth.
        student: Depth.
        batch_size: Images a batch.
        steps: Optimizer steps.
        channels_last: Of the engine; the loop's layout is the other one, whose sums round otherwise.

    Returns:
        The largest relative difference.

    Raises:
        RuntimeError: It exceeds 1e-6 (1e-4 with ``channels_last``): they do not do the same work.
    """
    engines = recipe(teacher, student, channels_last=channels_last)
    training, twin = (Training(engines, noise(batch_size, steps), untrained=True) for _ in range(2))
    losses = _Losses()
    _train(training, losses)
    loop = Loop(twin.cast.model("teacher"), twin.cast.model("student"))
    plain = [loop.step(b.inputs, b.targets).item() for b in twin.data.train_dataloader()]
    gap = max(abs(a - b) / abs(b) for a, b in zip(losses.values, plain, strict=True))
    if not gap <= (1e-4 if channels_last else 1e-6):
        raise RuntimeError(f"engine and loop do not compute the same losses: {losses.values} and {plain}")
    return gap


def overhead(
    rounds: int = 6, steps: int = 150, teacher: int = 8, student: int = 8, batch_size: int = 8
) -> Iterator[Row]:
    """Fixed cost of a step, on networks so small that it shows; in the loop's layout, so that kernels are the same."""
    gap = same_work(teacher, student, batch_size)
    plain = partial(bare, teacher=teacher, student=student, batch_size=batch_size)
    enough = 2 + rounds * (steps + DROPPED)
    ours = partial(engine, teacher=teacher, student=student, batch_size=batch_size, steps=enough, channels_last=False)
    times = take_turns({"bare": plain, "twin": plain, "engine": ours}, rounds, steps)
    yield Row.of(
        f"engine, fixed overhead (ResNet-{teacher} to ResNet-{student}, batch {batch_size})",
        MORE,
        times["engine"].minus(times["bare"]),
        times["twin"].minus(times["bare"]),
        limit=1.0,
        aim=0.4,
        detail=f"plain loop {times['bare'].median:.2f} ms, engine {times['engine'].median:.2f} ms a step; losses of "
        f"both differ by {gap:.0e} on the same weights and batches",
    )


def throughput(
    rounds: int = 5, steps: int = 12, teacher: int = 56, student: int = 20, batch_size: int = 64
) -> Iterator[Row]:
    """Cost of a step against the plain float32 loop, on networks of a common size."""
    gap, reordered = (same_work(teacher, student, batch_size, channels_last=last) for last in (False, True))
    plain = partial(bare, teacher=teacher, student=student, batch_size=batch_size)
    enough = 2 + rounds * (steps + DROPPED)
    ours = partial(engine, teacher=teacher, student=student, batch_size=batch_size, steps=enough)
    contenders = {
        "bare": plain,
        "twin": plain,
        "by hand, float32": partial(plain, fast=True),
        "float32": ours,
        "by hand, bf16": partial(plain, fast=True, bf16=True),
        "bf16": partial(ours, precision="bf16-mixed"),
    }
    times = take_turns(contenders, rounds, steps)
    for name, limit, note in (
        ("float32", 0.85, f"losses differ by {gap:.0e}, with channels_last by {reordered:.0e}"),
        ("bf16", 0.57, "trainer.precision=bf16-mixed"),
    ):
        by_hand = statistics.median(times[f"by hand, {name}"].over(times["bare"]))
        yield Row.of(
            f"engine in {name} over a plain float32 loop (ResNet-{teacher} to ResNet-{student}, batch {batch_size})",
            "x",
            times[name].over(times["bare"]),
            times["twin"].over(times["bare"]),
            limit=limit,
            reach=by_hand,
            detail=f"plain loop {times['bare'].median:.0f} ms, engine {times[name].median:.0f} ms a step, a loop by "
            f"hand with channels_last in {name} {by_hand:.2f} x; peak memory {times['bare'].peak:.0f} and "
            f"{times[name].peak:.0f} MiB; {note}",
        )


def accuracy(seeds: int = 3, epochs: int = 8, teacher: int = 20, student: int = 8) -> Iterator[Row]:
    """What bf16 does to the score: students distilled on handwritten digits in either precision."""
    task = digits()
    with tempfile.TemporaryDirectory(prefix="kdbench-bench-") as work:
        alone = recipe(teacher, student, side="teacher", scheduler="cosine", epochs=epochs, val_every=epochs)
        scores: dict[str, list[float]] = {"32-true": [], "bf16-mixed": []}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            guide = Training(alone, task).run(Path(work, "teacher"))["scores"]["test"]["accuracy"]
            for precision, found in scores.items():
                for seed in range(seeds):
                    own = recipe(
                        teacher,
                        student,
                        seed=seed,
                        scheduler="cosine",
                        epochs=epochs,
                        val_every=epochs,
                        precision=precision,
                    )
                    training = Training(own, task, {"teacher": Path(work, "teacher", MODEL)})
                    manifest = training.run(Path(work, f"{precision}-{seed}"))
                    found.append(100 * manifest["scores"]["test"]["accuracy"])
    lost = [a - b for a, b in zip(scores["32-true"], scores["bf16-mixed"], strict=True)]
    listed = {name: ", ".join(f"{v:.1f}" for v in found) for name, found in scores.items()}
    yield Row(
        f"bf16, accuracy lost to float32 (digits, ResNet-{teacher} to ResNet-{student}, {seeds} seeds)",
        "points",
        statistics.mean(lost),
        (min(lost), max(lost)),
        detail=f"teacher {100 * guide:.1f}; float32 {listed['32-true']}; bf16 {listed['bf16-mixed']}",
    )
