"""Augmentations and quantisations for the toy task, to stand beside a method in one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from kdbench.base.weights import plain
from kdbench.needs import Artifact, Stage, State, Update, Views
from kdbench.plugin import Plugin
from kdbench.signals import Context, Signals
from tests.plugins import KD, Adversary, Halves
from tests.toy import CLASSES

#: These know the toy's network and its classes.
HERE = frozenset({"toy"})


class Hard(Adversary):
    """A learned augmentation: it ascends through the frozen teacher, and the student reads its view too."""

    requires = Adversary.requires | HERE

    def updates(self) -> tuple[Update, ...]:
        return (
            Update({"hard": -1.0}, ("own",), every=2, modes={"student": "eval"}),
            Update({"easy": 1.0}, ("student",), group=1),
        )


class Greedy(Hard):
    """The same with all that nobody else names for the student."""

    def updates(self) -> tuple[Update, ...]:
        return super().updates()[0], Update(None, ("student",), group=1)


class Mixup(Plugin):
    """Mixes a batch with itself, for all roles alike; targets become distributions."""

    requires = HERE
    removes = frozenset({"single_label", "sample_id"})

    def views(self, views: Views, ctx: Context) -> Views:
        batch = views["student"]["main"]
        generator = ctx.generator("mixup")
        order = torch.randperm(len(batch), generator=generator)
        share = torch.rand(len(batch), 1, generator=generator)
        labels = F.one_hot(batch.targets, CLASSES).float()
        images = share[..., None, None] * batch.inputs + (1 - share[..., None, None]) * batch.inputs[order]
        mixed = batch.with_inputs(images, targets=share * labels + (1 - share) * labels[order])
        return {role: {**own, "main": mixed} for role, own in views.items()}


class Marks(Plugin):
    """A fixed augmentation with a term of its own."""

    requires = HERE

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        return {"marks": 1e-3 * signals.answer("student").outputs.square().mean()}


class Quantised(Plugin):
    """Rounds the head in a stage of its own, after those of whatever else the run composes."""

    requires = HERE

    def enter(self, stage: Stage, probe: Signals) -> None:
        head: Any = probe.cast.model("student").get_submodule("head")
        if stage.name == "rounded" and not parametrize.is_parametrized(head):
            parametrize.register_parametrization(head, "weight", Halves(head.weight.detach().std()))

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        return {"range": 1e-3 * signals.answer("student").outputs.square().mean()}

    def stages(self) -> tuple[Stage, ...]:
        return Stage(), Stage("rounded", 0.5, terms=("task",))

    def artifacts(self, models: Mapping[str, nn.Module]) -> dict[str, Artifact]:
        return {"student": Artifact(plain(models["student"]))}


class Alone(Plugin):
    """A stage in which no other plugin has a part."""

    requires = HERE

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        return {"idle": 1e-3 * signals.answer("student").outputs.square().mean()}

    def stages(self) -> tuple[Stage, ...]:
        return (Stage("points", alone=True),)


class Halved(Plugin):
    """Halves the head, in a stage that has no epoch."""

    requires = HERE

    def enter(self, stage: Stage, probe: Signals) -> None:
        head: Any = probe.cast.model("student").get_submodule("head")
        with torch.no_grad():
            head.weight /= 2

    def stages(self) -> tuple[Stage, ...]:
        return (Stage("halve", 0.0, alone=True),)


class Wrapped(nn.Module):
    """A model with something beside it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * self.model(images)


class Packed(Quantised):
    """Keeps more than the plain weights at inference, from the first stage."""

    def artifacts(self, models: Mapping[str, nn.Module]) -> dict[str, Artifact]:
        return {"student": Artifact(Wrapped(plain(models["student"])))}


class Replacing(Plugin):
    """Puts another network in the student's place, as a model prepared for quantisation is."""

    requires = HERE

    def enter(self, stage: Stage, probe: Signals) -> None:
        source: Any = probe.cast.sources["student"]
        source.model = plain(source.model)


class Shell(KD):
    """A method that keeps something of its own at inference."""

    requires = HERE

    def artifacts(self, models: Mapping[str, nn.Module]) -> dict[str, Artifact]:
        return {"student": Artifact(Wrapped(models["student"]))}


class Late(KD):
    """Wrong in its second stage."""

    def stages(self) -> tuple[Stage, ...]:
        return Stage("first", 0.5), Stage("second", 0.5, trains=("studnt",))


class Labelled(KD):
    """Takes every row to have one true class."""

    requires = HERE | {"single_label"}

    def after_step(self, signals: Signals, state: State) -> None:
        assert signals.batch().targets.dtype == torch.long
