"""Plugins that change which trainings a run is made of, for the toy task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from kdbench.features import Logits
from kdbench.needs import STUDENT, TEACHER, Asked, Need, Role, Views
from kdbench.plugin import Method, Plugin
from kdbench.signals import Context, Signals
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
        batch = views[reader]["main"]
        hint = F.one_hot(batch.targets, CLASSES).float().mean(1)[:, None, None, None] + batch.targets.view(-1, 1, 1, 1)
        views[reader] = {"main": batch.with_inputs(batch.inputs + hint)}
        return views

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        return {"kd": signals.supervised()} if ctx.side == "teacher" else super().terms(signals, ctx)


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
    roles = {"student": STUDENT, "float": Role("frozen", "student", "trained", "none", product="float")}
    needs = (Need(LOGITS.name, Logits, ("student", "float")),)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        student, teacher = signals.pair("logits", roles=("student", "float"))
        return {"float": kl(student.rows(), teacher.rows())}
