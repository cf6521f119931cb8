"""Plugins that change which trainings a run is made of, for the toy task."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.features import Logits
from kdbench.needs import STUDENT, TEACHER, Artifact, Asked, Need, Role, Views
from kdbench.plugin import Method, Plugin
from kdbench.signals import Context, Signals
from kdbench.task import Batch
from tests.plugins import KD, LOGITS, kl
from tests.toy import CLASSES


class Assisted(KD):
    """TAKD: an assistant of middle size is taught by the teacher and teaches the student."""

    requires = frozenset({"toy"})
    roles = {"student": STUDENT, "teacher": Role("frozen", "assistant", "trained", "none", product="assistant")}
    trainings = (Asked("assistant", "assistant", {"teacher": "teacher"}),)


class Labelled(KD):
    """LAD in small: the teacher learns with a hint of the label in its input, and reads it again when it teaches."""

    requires = frozenset({"toy", "single_label"})
    takes_part = frozenset({"teacher", "student"})

    def views(self, views: Views, ctx: Context) -> Views:
        reader = "student" if ctx.side == "teacher" else "teacher"
        views[reader] = {"main": hinted(views[reader]["main"])}
        return views

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        return {"kd": signals.supervised()} if ctx.side == "teacher" else super().terms(signals, ctx)


class Privileged(Labelled):
    """It is scored with the hint too, beside what it is without."""

    def artifacts(self, models: Mapping[str, nn.Module]) -> dict[str, Artifact]:
        student = models["student"]
        beside = {} if "teacher" in models else {"privileged": Artifact(student, view=hinted)}
        return {"student": Artifact(student), **beside}


def hinted(batch: Batch) -> Batch:
    """A batch whose inputs tell the label."""
    hint = F.one_hot(batch.targets, CLASSES).float().mean(1)[:, None, None, None] + batch.targets.view(-1, 1, 1, 1)
    return batch.with_inputs(batch.inputs + hint)


class Averaged(Method):
    """What is deployed is the moving average of the student; the student itself stands beside it."""

    requires = frozenset({"toy"})
    roles = {"student": STUDENT, "average": Role("ema", init="student", grad="none", decay=0.5)}
    needs = (Need("logits", Logits, ("student", "average")),)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        s, average = signals.pair("logits", roles=("student", "average"))
        return {"kd": F.mse_loss(s.rows(), average.rows())}

    def artifacts(self, models: Mapping[str, nn.Module]) -> dict[str, Artifact]:
        return {"student": Artifact(models["average"]), "last": Artifact(models["student"])}


class Whole(nn.Module):
    """A linear layer of whole numbers: 8-bit weights and a scale for each row."""

    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (layer.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("bias", layer.bias.detach().clone())

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.weight * self.scale, self.bias)


class Converted(Plugin):
    """A quantisation whose student is trained in floating point and converted for the processor."""

    requires = frozenset({"toy"})

    def artifacts(self, models: Mapping[str, nn.Module]) -> dict[str, Artifact]:
        student: Any = copy.deepcopy(models["student"])
        student.head = Whole(student.head)
        converted = Artifact(student, device="cpu", engine="onnxruntime", close=-1.0)
        return {"student": Artifact(models["student"], engine=None), "converted": converted}

    def notes(self) -> tuple[str, ...]:
        return ("1 of 3 layers",)


class Clashing(KD):
    """Leaves something of a name that a quantisation gives too."""

    requires = frozenset({"toy"})

    def artifacts(self, models: Mapping[str, nn.Module]) -> dict[str, Artifact]:
        return {name: Artifact(models["student"]) for name in ("student", "converted")}


class TwoTeachers(Method):
    """The mean of two teachers of different size."""

    requires = frozenset({"toy"})
    roles = {"student": STUDENT, "teacher": TEACHER, "second": Role("frozen", "second", "trained", "none")}
    needs = (Need("logits", Logits, ("student", "teacher", "second")),)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        student, *teachers = (signals.feature("logits", r).rows() for r in ("student", "teacher", "second"))
        return {"kd": sum((kl(student, t) for t in teachers), student.sum() * 0) / 2}


class Chosen(KD):
    """The student's width is decided by what a trained supernet leaves."""

    requires = frozenset({"toy"})
    trainings = (Asked("supernet", "teacher"),)

    @classmethod
    def choose(cls, architecture: Mapping[str, Any], products: Mapping[str, Path]) -> Mapping[str, Any]:
        return {**architecture, "width": 6 if (products["supernet"] / "manifest.json").is_file() else 0}


class LabelFree(KD):
    """The student sees the teacher alone."""

    requires = frozenset({"toy"})
    no_twin = "the student has no labels of its own"


class Taught(Plugin):
    """A quantisation that the float student teaches."""

    requires = frozenset({"toy"})
    twin = "own_float"
    roles = {"student": STUDENT, "float": Role("frozen", "student", "trained", "none", product="float")}
    needs = (Need(LOGITS.name, Logits, ("student", "float")),)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        student, teacher = signals.pair("logits", roles=("student", "float"))
        return {"float": kl(student.rows(), teacher.rows())}
