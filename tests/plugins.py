"""Plugins that each ask one thing of the engine; weights come from the class, so that a test names one word."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.features import Grid, Logits, Vector
from kdbench.functional.numerics import weighted_mean
from kdbench.needs import PEER, STUDENT, Artifact, Need, Part, Role, Stage, State, Update, Views
from kdbench.plugin import Method, Plugin
from kdbench.roles.sources import Tapped
from kdbench.signals import Context, Signals

LOGITS = Need("logits", Logits)


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    return weighted_mean(F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="none").sum(1))


class KD(Method):
    needs = (LOGITS,)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        s, t = signals.pair("logits")
        return {"kd": kl(s.rows(), t.rows())}


class Idle(KD):
    """Two terms that do nothing beside one that does and one without weight: zeros, and a constant on the graph."""

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        kd = super().terms(signals, ctx)["kd"]
        return {"kd": kd, "nothing": 0 * kd, "flat": 2 + 0 * kd, "unweighted": 0 * kd}


class PerHead(KD):
    """KD of every head."""

    needs = (Need("logits", Logits, each=True),)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        assert ctx.wants("kd")
        return super().terms(signals, ctx)


class Hint(Method):
    """FitNet-like: a projector built from the shapes of one batch, with dropout to disturb the random streams."""

    needs = (Need("body", Grid),)

    def build(self, probe: Signals) -> None:
        s, t = probe.pair("body")
        self.project = nn.Sequential(nn.Conv2d(s.values.shape[1], t.values.shape[1], 1), nn.Dropout(0.3))

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        s, t = signals.pair("body")
        return {"hint": F.mse_loss(self.project(s.values), t.values)}


class Staged(Hint):
    """Trains in two stages of equal length."""

    def stages(self) -> tuple[Stage, ...]:
        return Stage("first", 0.5), Stage("second", 0.5)


class Steady(Hint):
    """Keeps its learning rate in the first of two stages."""

    def stages(self) -> tuple[Stage, ...]:
        return Stage("first", 0.5, constant=True), Stage("second", 0.5)


class Silent(Hint):
    """Adds modules that train under a term of weight 0: the student must not notice."""

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        signals.answer("student")
        return {"hint": super().terms(signals, ctx)["hint"]} if ctx.wants("hint") else {}


class Mutual(Method):
    """DML: two networks, each detaching the other, on a fresh forward each."""

    needs = (Need("logits", Logits, ("student", "peer")),)
    roles = {"student": STUDENT, "peer": PEER}

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        s, p = (f.rows() for f in signals.pair("logits", roles=("student", "peer")))
        return {"mutual": kl(s, p.detach()), "mutual.peer": kl(p, s.detach())}

    def updates(self) -> tuple[Update, ...]:
        return (
            Update({"task": 1.0, "mutual": 1.0}, ("student",), group=0),
            Update({"task.peer": 1.0, "mutual.peer": 1.0}, ("peer",), group=1),
        )


class MutualPerHead(Mutual):
    """Mutual learning of every head; the updates name the terms of all."""

    needs = (Need("logits", Logits, ("student", "peer"), each=True),)


class Balanced(Mutual):
    """BD-KD: the same terms, but one shared forward and one group."""

    def updates(self) -> tuple[Update, ...]:
        first, second = super().updates()
        return (first, Update(second.terms, second.params, group=0))


class Adversary(Plugin):
    """HARD: an augmentor ascends through a frozen teacher every second step; the student reads both views."""

    requires = frozenset({"differentiable_input"})
    roles = {"student": STUDENT, "teacher": Role("frozen", side="teacher", init="trained", grad="input")}
    needs = (LOGITS,)

    def build(self, probe: Signals) -> None:
        self.shift = nn.Parameter(torch.full(probe.batch().inputs.shape[1:], 0.01))

    def views(self, views: Views, ctx: Context) -> Views:
        shift = self.shift if ctx.wants("hard") else self.shift.detach()
        for role in views:
            batch = views[role]["main"]
            views[role]["shifted"] = batch.with_inputs(batch.inputs + shift)
        return views

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        s, t = signals.pair("logits", "shifted")
        return {"hard": kl(s.rows(), t.rows()), "easy": kl(s.rows(), t.rows().detach())}

    def updates(self) -> tuple[Update, ...]:
        return (
            Update({"hard": -1.0}, ("own",), every=2, modes={"student": "eval"}),
            Update({"task": 1.0, "easy": 1.0}, ("student",), group=1),
        )


class Occasional(Adversary):
    """The same, but by a condition in place of a period."""

    def updates(self) -> tuple[Update, ...]:
        return (Update({"hard": -1.0}, ("own",), when=lambda state: state.step % 3 == 2), super().updates()[1])


class MeanTeacher(Method):
    roles = {"student": STUDENT, "ema": Role("ema", init="student", grad="none", decay=0.9)}
    needs = (Need("logits", Logits, ("student", "ema")),)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        s, e = signals.pair("logits", roles=("student", "ema"))
        return {"ema": F.mse_loss(s.rows(), e.rows())}


class Bilevel(Method):
    """TGeo-KD in small: the weight of the distillation term is learned on the meta batch through one student step."""

    needs = (LOGITS,)
    requires = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def inner(self, signals: Signals, view: str) -> Tensor:
        s, t = signals.pair("logits", view)
        return signals.supervised("student", view) + self.gate.exp() * kl(s.rows(), t.rows())

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        terms = {}
        if ctx.wants("meta"):
            stepped = ctx.virtual_step(signals, self.inner(signals, "train"))
            terms["meta"] = stepped.supervised("student")
        if ctx.wants("inner"):
            terms["inner"] = self.inner(signals, "main")
        return terms

    def updates(self) -> tuple[Update, ...]:
        return (
            Update({"meta": 1.0}, ("own",), batch="meta", modes={"student": "eval"}),
            Update({"inner": 1.0}, ("student",), group=1),
        )

    def stages(self) -> tuple[Stage, ...]:
        return (Stage(terms=("meta", "inner")),)


class Reuse(Method):
    """SimKD: the student's projected feature goes through the teacher's own classifier, also at inference."""

    needs = (Need("pooled", Vector),)
    parts = (Part("classifier"),)

    def build(self, probe: Signals) -> None:
        s, t = probe.pair("pooled")
        self.project = nn.Linear(s.values.shape[1], t.values.shape[1])
        self.head, self.tap = (probe.part("classifier"),), probe.tap("pooled")

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        s, t = signals.pair("pooled")
        reused = signals.part("classifier")(self.project(s.values))
        return {
            "reuse": F.mse_loss(self.project(s.values), t.values) + F.cross_entropy(reused, signals.batch().targets)
        }

    def artifacts(self, models: Mapping[str, nn.Module]) -> dict[str, Artifact]:
        return {"student": Artifact(Reused(Tapped(models["student"], self.tap), self.project, self.head[0]))}


class Reused(nn.Sequential):
    """The student as far as its feature, the projector, the teacher's classifier."""


class Bank(Method):
    """CRD in small: a registered bank of teacher features, addressed by sample ids, updated after the step."""

    needs = (Need("pooled", Vector),)
    requires = frozenset({"sample_id"})
    bank: Tensor

    def build(self, probe: Signals) -> None:
        s, t = probe.pair("pooled")
        self.project = nn.Linear(s.values.shape[1], t.values.shape[1])
        self.register_buffer("bank", torch.zeros(64, t.values.shape[1]))

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        s, t = signals.pair("pooled")
        return {"bank": F.mse_loss(self.project(s.values), 0.5 * (t.values + self.bank[signals.batch().ids]))}

    def after_step(self, signals: Signals, state: State) -> None:
        self.bank[signals.batch().ids] = signals.feature("pooled", "teacher").values


class Recalled(Method):
    """Pulls the student's feature towards a memory of the teacher's, which is empty at the first step."""

    needs = (Need("logits", Logits),)
    memory: Tensor
    filled: Tensor

    def build(self, probe: Signals) -> None:
        self.register_buffer("memory", torch.zeros_like(probe.feature("logits", "teacher").values[0]))
        self.register_buffer("filled", torch.zeros(()))

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        values = signals.feature("logits", "student").values
        return {"recalled": self.filled * (values - self.memory).square().mean()}

    def after_step(self, signals: Signals, state: State) -> None:
        self.memory.copy_(signals.feature("logits", "teacher").values.mean(0))
        self.filled.fill_(1)


class Privileged(KD):
    """A view for each role: the teacher reads the batch times two."""

    def views(self, views: Views, ctx: Context) -> Views:
        batch = views["teacher"]["main"]
        views["teacher"] = {"main": batch.with_inputs(2 * batch.inputs)}
        return views


class Halves(nn.Module):
    """A parametrisation that rounds weights, straight through."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale)

    def forward(self, weight: Tensor) -> Tensor:
        rounded = (weight / self.scale).round() * self.scale
        return weight + (rounded - weight).detach() + 0.0 * self.scale


class Rounded(Method):
    """Differentiable quantisation in small: a float stage, then a rounded student taught by the float student."""

    roles = {"student": STUDENT, "teacher": Role("frozen", init="student", grad="none")}
    needs = (LOGITS,)

    def enter(self, stage: Stage, probe: Signals) -> None:
        if stage.name == "rounded":
            head: Any = probe.cast.model("student").head
            nn.utils.parametrize.register_parametrization(head, "weight", Halves(head.weight.detach().std()))

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        s, t = signals.pair("logits")
        return {"kd": kl(s.rows(), t.rows())}

    def stages(self) -> tuple[Stage, ...]:
        return (
            Stage("float", 0.5, terms=("task",)),
            Stage("rounded", 0.5, roles={"teacher": "student"}),
        )

    def artifacts(self, models: Mapping[str, nn.Module]) -> dict[str, Artifact]:
        student = models["student"]
        if not nn.utils.parametrize.is_parametrized(student.get_submodule("head"), "weight"):
            return {"student": Artifact(student)}
        plain: Any = copy.deepcopy(student)
        head = nn.Linear(plain.head.in_features, plain.head.out_features)
        head.load_state_dict({"weight": plain.head.weight, "bias": plain.head.bias})
        plain.head = head
        return {"student": Artifact(plain)}


class Generations(KD):
    """A second student, from the same start and at half the rate, taught by the first."""

    roles = Rounded.roles

    def stages(self) -> tuple[Stage, ...]:
        return (
            Stage("first", terms=("task",)),
            Stage("second", roles={"teacher": "student"}, lr=0.5, fresh=True),
        )


class Faulty(KD):
    """Gives the fault that its option names."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        if fault == "idle":
            self.unused = nn.Parameter(torch.zeros(3))

    def build(self, probe: Signals) -> None:
        if self.fault == "two owners":
            self.stolen = probe.part("classifier", "student")

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        kd = super().terms(signals, ctx)["kd"]
        if self.fault == "absent" and ctx.state.step > 2:
            return {}
        if self.fault == "infinite" and ctx.state.step > 2:
            return {"kd": kd / 0}
        return {"task" if self.fault == "duplicate" else "kd": kd.detach() if self.fault == "detached" else kd}

    def updates(self) -> tuple[Update, ...]:
        found: Mapping[str, tuple[Update, ...]] = {
            "orphan": (Update(None, ("student.head",)),),
            "unknown term": (Update({"dk": 1.0}),),
            "no parameter": (Update(None, ("sudent",)),),
            "group": (Update({"kd": 1.0}), Update({"task": 1.0}, batch="meta")),
        }
        return found.get(self.fault, super().updates())


class Bystander(Method):
    """Trains modules of its own, with dropout, beside a student that it leaves alone."""

    def build(self, probe: Signals) -> None:
        self.own = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 1))

    def views(self, views: Views, ctx: Context) -> Views:
        torch.rand(3)
        return views

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        return {"own": self.own(torch.rand(4, 6)).square().mean()}


class Twice(KD):
    """Two groups over the student, each with a fresh forward of it."""

    def updates(self) -> tuple[Update, ...]:
        return Update({"task": 1.0, "kd": 0.5}), Update({"kd": 0.5}, group=1)


#: Weight of each term in the tests.
WEIGHTS: dict[str, dict[str, Any]] = {
    "Adversary": {"hard": 1.0, "easy": 1.0},
    "Balanced": {"mutual": 1.0, "mutual.peer": 1.0},
    "Bank": {"bank": 1.0},
    "Bilevel": {"meta": 1.0, "inner": 1.0},
    "Bystander": {"own": 1.0},
    "Faulty": {"kd": 1.0},
    "Generations": {"kd": 1.0},
    "Hint": {"hint": 0.5},
    "Idle": {"kd": 1.0, "nothing": 1.0, "flat": 1.0, "unweighted": 0.0},
    "KD": {"kd": 1.0},
    "MeanTeacher": {"ema": 1.0},
    "Mutual": {"mutual": 1.0, "mutual.peer": 1.0},
    "MutualPerHead": {"mutual": 1.0, "mutual.peer": 1.0},
    "Occasional": {"hard": 1.0, "easy": 1.0},
    "PerHead": {"kd": 1.0},
    "Privileged": {"kd": 1.0},
    "Recalled": {"recalled": 1.0},
    "Reuse": {"reuse": 1.0},
    "Rounded": {"kd": 1.0},
    "Silent": {"hint": 0.0},
    "Staged": {"hint": 1.0},
    "Steady": {"hint": 1.0},
    "Twice": {"kd": 1.0},
}
