"""The engine as Lightning drives it in a run, against a plain PyTorch loop that does the same work."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from benchmarks.images import ALPHA, DECAY, LR, MOMENTUM, TEMPERATURE, digits, noise, recipe
from benchmarks.report import MORE, Row
from benchmarks.turns import DROPPED, Contender, Gate, take_turns
from kdbench.base.store import MANIFEST
from kdbench.base.weights import save_weights
from kdbench.task import Batch
from kdbench.training.answering import answer
from kdbench.training.fit import MODEL, Training
from kdbench.training.recipe import Recipe, Replay
from kdbench.training.trained import score


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

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss of one batch."""
        images = images.contiguous(memory_format=self.layout)
        with self.autocast():
            with torch.no_grad():
                guide = self.teacher(images)
            logits = self.student(images)
            soft = F.log_softmax(logits / TEMPERATURE, 1), F.log_softmax(guide / TEMPERATURE, 1)
            kd = TEMPERATURE**2 * F.kl_div(*soft, reduction="batchmean", log_target=True)
            return (1 - ALPHA) * F.cross_entropy(logits, labels) + ALPHA * kd

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Trains on one batch and returns its loss."""
        loss = self.loss(images, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss


def bare(gate: Gate, teacher: int, student: int, batch_size: int, **options: bool) -> None:
    """The plain loop; ``options`` are those of :class:`Loop`."""
    task = noise(batch_size, 1)
    images = task.splits["train"]
    data = TensorDataset(images.images, images.labels)
    order = RandomSampler(data, replacement=True, num_samples=10**9)
    # A batch at a time, as the engine's data set is fetched: what is compared is the step.
    loader = DataLoader(data, batch_size=None, sampler=BatchSampler(order, batch_size, drop_last=False))
    loop = Loop(task.build({"depth": teacher}), task.build({"depth": student}), **options)
    for batch in loader:
        loop.step(*batch)
        gate.step()


class Module(LightningModule):
    """The same as the least that Lightning takes.

    Args:
        loop: Its networks, loss and optimizer.
    """

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.student = loop.student
        self._of = {"loop": loop}  # Lightning would set the mode of a teacher that it sees

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._of["loop"].optimizer

    def transfer_batch_to_device(self, batch: Batch, *args: object) -> Batch:
        return batch

    def training_step(self, batch: Batch) -> Tensor:
        return self._of["loop"].loss(batch.inputs, batch.targets)


def lightning(gate: Gate, teacher: int, student: int, batch_size: int, steps: int) -> None:
    """The plain loop as a module of Lightning's, on the loader that runs have."""
    task = noise(batch_size, steps)
    loop = Loop(task.build({"depth": teacher}), task.build({"depth": student}))
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        callbacks=[gate],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(loop), task.data(0).train_dataloader())


def engine(gate: Gate, teacher: int, student: int, batch_size: int, steps: int, **trainer: Any) -> None:
    """A training as a run does it."""
    train(Training(recipe(teacher, student, **trainer), noise(batch_size, steps), untrained=True), gate)


def train(training: Training, callback: Callback) -> dict[str, Any]:
    """Runs a training in a folder that goes with it."""
    with tempfile.TemporaryDirectory(prefix="kdbench-bench-") as work, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return training.run(Path(work), [callback])


class _Losses(Callback):
    """Keeps the loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *args: object) -> None:
        self.values.append(float(outputs["loss"]))


def apart(training: Training, plain: Iterable[float], limit: float) -> float:
    """Trains, and returns how far the losses of the steps are from those of a plain loop.

    Args:
        training: Of the engine.
        plain: Losses of the loop from the same weights on the same batches.
        limit: What rounding explains.

    Returns:
        The largest relative difference.

    Raises:
        RuntimeError: It exceeds the limit: they do not do the same work.
    """
    found, expected = _Losses(), [*plain]
    train(training, found)
    gap = max(abs(a - b) / abs(b) for a, b in zip(found.values, expected, strict=True))
    if not gap <= limit:
        raise RuntimeError(f"engine and loop do not compute the same losses: {found.values} and {expected}")
    return gap


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
    loop = Loop(twin.cast.model("teacher"), twin.cast.model("student"))
    plain = (loop.step(b.inputs, b.targets).item() for b in twin.data.train_dataloader())
    return apart(training, plain, 1e-4 if channels_last else 1e-6)


def overhead(
    rounds: int = 6, steps: int = 150, teacher: int = 8, student: int = 8, batch_size: int = 8
) -> Iterator[Row]:
    """Fixed cost of a step, on networks so small that it shows; in the loop's layout, so that kernels are the same."""
    gap = same_work(teacher, student, batch_size)
    plain = partial(bare, teacher=teacher, student=student, batch_size=batch_size)
    enough = 2 + rounds * (steps + DROPPED)
    ours = partial(engine, teacher=teacher, student=student, batch_size=batch_size, steps=enough, channels_last=False)
    least = partial(lightning, teacher=teacher, student=student, batch_size=batch_size, steps=enough)
    times = take_turns({"bare": plain, "twin": plain, "lightning": least, "engine": ours}, rounds, steps)
    reach = statistics.median(times["lightning"].minus(times["bare"]))
    yield Row.of(
        f"engine, fixed overhead (ResNet-{teacher} to ResNet-{student}, batch {batch_size})",
        MORE,
        times["engine"].minus(times["bare"]),
        times["twin"].minus(times["bare"]),
        limit=1.0,
        aim=0.4,
        reach=reach,
        detail=f"plain loop {times['bare'].median:.2f} ms, engine {times['engine'].median:.2f} ms a step; the loop as "
        f"the least module of Lightning's has {reach:.2f} ms more; losses differ by {gap:.0e} on the same weights and "
        "batches",
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


def alone(gate: Gate, student: int, batch_size: int, steps: int) -> None:
    """A training of the student without a teacher."""
    train(Training(recipe(student, student, side="teacher"), noise(batch_size, steps)), gate)


def replayed(gate: Gate, teacher: int, student: int, batch_size: int, steps: int) -> None:
    """A training whose teacher's answers are stored."""
    task, kd = noise(batch_size, steps), recipe(teacher, student)
    source = kd.inputs["teacher"]
    assert isinstance(source, Recipe)
    with tempfile.TemporaryDirectory(prefix="kdbench-bench-") as work:
        shelf, weights = Path(work, "logits"), Path(work, MODEL)
        shelf.mkdir()
        save_weights(task.build({"depth": teacher}), weights)
        replay = Replay(source, kd.config, "memory", views=1)
        facts = answer(replay, task, weights, task.data(0).train_dataloader(), {"logits": shelf}, limit=1.0)
        (shelf / MANIFEST).write_text(json.dumps(facts["logits"]))
        train(Training(dataclasses.replace(kd, inputs={"teacher": replay}), task, {"teacher": {"logits": shelf}}), gate)


def replay(
    rounds: int = 5, steps: int = 12, teacher: int = 56, student: int = 20, batch_size: int = 64
) -> Iterator[Row]:
    """Cost of a step whose teacher is replayed against that of the student alone, on networks of a common size."""
    enough = 2 + rounds * (steps + DROPPED)
    scratch = partial(alone, student=student, batch_size=batch_size, steps=enough)
    contenders: dict[str, Contender] = {
        "bare": partial(bare, teacher=teacher, student=student, batch_size=batch_size),
        "scratch": scratch,
        "twin": scratch,
        "kd": partial(engine, teacher=teacher, student=student, batch_size=batch_size, steps=enough),
        "replay": partial(replayed, teacher=teacher, student=student, batch_size=batch_size, steps=enough),
    }
    times = take_turns(contenders, rounds, steps)
    of_kd, of_loop = (statistics.median(times["replay"].over(times[name])) for name in ("kd", "bare"))
    yield Row.of(
        f"kd with replay over the student alone (ResNet-{teacher} to ResNet-{student}, batch {batch_size})",
        "x",
        times["replay"].over(times["scratch"]),
        times["twin"].over(times["scratch"]),
        limit=1.05,
        detail=f"student alone {times['scratch'].median:.0f} ms, with replay {times['replay'].median:.0f} ms a step; "
        f"{of_kd:.2f} x a kd step that asks the teacher, {of_loop:.2f} x a plain float32 loop of kd",
    )


def accuracy(seeds: int = 3, epochs: int = 8, teacher: int = 20, student: int = 8) -> Iterator[Row]:
    """What bf16 does to the score: students distilled on handwritten digits in either precision."""
    task = digits()
    with tempfile.TemporaryDirectory(prefix="kdbench-bench-") as work:
        alone = recipe(teacher, student, side="teacher", scheduler="cosine", epochs=epochs, val_every=epochs)
        scores: dict[str, list[float]] = {"32-true": [], "bf16-mixed": []}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Training(alone, task).run(Path(work, "teacher"))
            guide = score(alone, task, Path(work, "teacher"))["test"]["accuracy"]
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
                    training.run(Path(work, f"{precision}-{seed}"))
                    found.append(100 * score(own, task, Path(work, f"{precision}-{seed}"))["test"]["accuracy"])
    lost = [a - b for a, b in zip(scores["32-true"], scores["bf16-mixed"], strict=True)]
    listed = {name: ", ".join(f"{v:.1f}" for v in found) for name, found in scores.items()}
    yield Row(
        f"bf16, accuracy lost to float32 (digits, ResNet-{teacher} to ResNet-{student}, {seeds} seeds)",
        "points",
        statistics.mean(lost),
        (min(lost), max(lost)),
        detail=f"teacher {100 * guide:.1f}; float32 {listed['32-true']}; bf16 {listed['bf16-mixed']}",
    )
