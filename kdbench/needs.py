"""What plugins say of themselves: features that they read, roles, updates, stages, further trainings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from kdbench.features import Kind
from kdbench.task import Batch, ExportPlan

Views = dict[str, dict[str, Batch]]
"""Batches by role and view name; every role has at least ``main``."""

Bindings = Mapping[str, str | list[str]]
"""Feature name(s) for each need of a plugin."""


@dataclass(frozen=True)
class Need:
    """A feature that a plugin reads.

    Attributes:
        name: The plugin's own name for it; binds to the pair's feature of that name, else to the last of that kind.
        kind: The kind, or a tuple of kinds that all serve.
        roles: Who must produce it.
        many: Whether the plugin reads every feature of that kind, shallow to deep, instead of one.
        each: Whether ``terms`` runs once for each feature of that kind, as if it were the only one: a model with heads
            ``verb`` and ``object`` then has the terms ``kd.verb`` and ``kd.object``, under the weight of ``kd`` unless
            they have their own.
        pyramid: Whether the plugin reads every feature of that kind where the task's grids are the levels of one
            pyramid (capability ``pyramid``), and elsewhere one. ``method.bind`` may name several anywhere.
        given: Capability of the task without which a kind does not serve, by kind: class scores are maps where the task
            has ``dense_label``.
    """

    name: str
    kind: Kind | tuple[Kind, ...]
    roles: tuple[str, ...] = ("student", "teacher")
    many: bool = False
    each: bool = False
    pyramid: bool = False
    given: Mapping[Kind, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Part:
    """A sub-module of a role that a plugin calls itself (SimKD and SRRL: the teacher's classifier)."""

    name: str
    roles: tuple[str, ...] = ("teacher",)


@dataclass(frozen=True)
class Role:
    """How a network takes part in training.

    Attributes:
        mode: ``train``; ``frozen`` (stays in eval, dropout included); ``ema`` (moving average of the student).
        side: The entry of the pair whose architecture it has: ``student``, ``teacher``, or a further one.
        init: ``trained`` (the product of an earlier training), ``fresh``, or ``student`` (a copy of the student).
        product: For ``trained``, the training whose product it is: by default ``side`` trained alone; one that the
            plugin asks for (:attr:`Plugin.trainings`); or ``float``, this training without the plugin.
        grad: ``params``; ``input`` (weights fixed, graph kept, for methods that optimise an input through it);
            ``none``.
        decay: Of the moving average, for ``ema``.
    """

    mode: Literal["train", "frozen", "ema"]
    side: str = "student"
    init: Literal["trained", "fresh", "student"] = "fresh"
    grad: Literal["params", "input", "none"] = "params"
    decay: float = 0.999
    product: str = ""


STUDENT = Role("train")
TEACHER = Role("frozen", side="teacher", init="trained", grad="none")
PEER = Role("train", side="teacher")


@dataclass(frozen=True)
class State:
    """Where training stands: what :attr:`Update.when` and :meth:`Plugin.after_step` read."""

    epoch: int
    step: int
    progress: float


@dataclass(frozen=True)
class Update:
    """One optimisation step over some parameters.

    Attributes:
        terms: Coefficient of each term, on top of the configured weight; negative ascends. None means every term that
            no other update names, with coefficient 1.
        params: Globs over ``owner.parameter`` names: of a role (``student``, ``student.head*``) or, as ``own``, of this
            plugin (``own.augmentor*``). None means everything trainable.
        every: Runs at every n-th step.
        when: Runs only where this holds; replaces ``every``.
        group: Updates of one group share one forward and step together; groups run in order on fresh forwards.
        batch: ``train``, or ``meta`` for the further cut of the training set that bilevel methods use.
        modes: Roles put into ``eval`` or ``train`` for this update's group.
    """

    terms: Mapping[str, float] | None = None
    params: tuple[str, ...] | None = None
    every: int = 1
    when: Callable[[State], bool] | None = None
    group: int = 0
    batch: Literal["train", "meta"] = "train"
    modes: Mapping[str, Literal["train", "eval"]] = field(default_factory=dict)

    def due(self, state: State) -> bool:
        """Says whether this update runs at this step."""
        return self.when(state) if self.when is not None else state.step % self.every == 0


@dataclass(frozen=True)
class Packed:
    """The weights of an artifact in fewer bytes than floats take.

    Attributes:
        content: Of a safetensors file.
        bits: Of a weight in it, on average over those that are packed; ranges and points aside.
        coded_bytes: What an entropy code would make of the file.
        float_params: Weights that are in it as floats.
    """

    content: bytes
    bits: float
    coded_bytes: int
    float_params: int


@dataclass(frozen=True)
class Artifact:
    """What a training leaves: it is scored, measured, saved under its name, and can be exported.

    Attributes:
        module: What runs.
        view: What it reads of a batch (the labels too, say); None reads what a student gets.
        export: What of it is exported and measured; None asks the task.
        device: Where alone it runs (``cpu`` for converted int8); None is where the training ran.
        pack: Writes its weights in fewer bytes than floats take; asked for once, when training is over.
        engine: What its latency is measured in. ``onnxruntime`` measures its ONNX file, also the size of that; None
            measures nothing: it stands for a model that is deployed in another form.
        tolerance: Largest difference of an exported file's outputs from its own, over the largest output; None for what
            other kernels make of floats. Where values are rounded, a step more or less is right.
        close: By how much its primary score may be off the student's before the run says so, in units of the metric.
    """

    module: nn.Module
    view: Callable[[Batch], Batch] | None = None
    export: Callable[[nn.Module], ExportPlan] | None = None
    device: str | None = None
    pack: Callable[[], Packed] | None = None
    engine: Literal["torch", "onnxruntime"] | None = "torch"
    tolerance: float | None = None
    close: float | None = None

    def reads(self, batches: Iterable[Batch]) -> Iterable[Batch]:
        """Returns batches as this reads them."""
        return batches if self.view is None else map(self.view, batches)


@dataclass(frozen=True)
class Asked:
    """A training that a plugin asks for before those that it takes part in: an assistant, a supernet, a second teacher.

    Attributes:
        name: Shown, and what :attr:`Role.product` calls it.
        side: The entry of the pair that is trained.
        inputs: Trained under the plugin: for each of its roles of ``init="trained"``, the training whose product it is
            there (``{"teacher": "teacher"}`` for an assistant). None trains it alone; an entry that the plugin adds
            (:meth:`Plugin.sides`) and that is the pair's student or teacher is not trained twice.
        under: Trained under another plugin instead, as its YAML would have it: ``_target_``, options, ``weights``.
        scored: Under which name the record holds its scores on the test set; empty for none.
    """

    name: str
    side: str
    inputs: Mapping[str, str] | None = None
    under: Mapping[str, Any] | None = None
    scored: str = ""


@dataclass(frozen=True)
class Stage:
    """A separate fit with a clean optimizer; a plugin's stages run in order on the same student.

    Attributes:
        name: Shown and recorded.
        epochs: Share of the configured epochs; more than 1 in sum costs more than the student trained alone, which the
            record shows. At 0 nothing trains: the stage is what :meth:`Plugin.enter` does.
        terms: Terms that are active; None means all.
        trains: Parameter globs that train; None means everything trainable.
        roles: Role rebindings, e.g. ``{"teacher": "student"}``: the teacher is the student as the last stage left it.
        lr: Scales the learning rates.
        constant: Keeps the learning rate, whatever the run's schedule.
        fresh: Puts the student back to its initial weights, after ``roles`` has copied it (generations of students).
        alone: No other plugin has terms or parameters in it; where all stages of a plugin are such, the others have no
            stages either, and the student is what this plugin starts from.
        owner: Whose stage it is; the engine sets it. ``terms`` and ``trains`` leave those of other plugins alone.
    """

    name: str = "distil"
    epochs: float = 1.0
    terms: tuple[str, ...] | None = None
    trains: tuple[str, ...] | None = None
    roles: Mapping[str, str] = field(default_factory=dict)
    lr: float = 1.0
    constant: bool = False
    fresh: bool = False
    alone: bool = False
    owner: str = ""


def by_feature(needs: Iterable[Need], bindings: Bindings) -> list[tuple[str, Bindings]]:
    """Returns the bindings of each call of ``terms``, with what its terms' names end in.

    That is one call, with ``""``, unless a need with ``each`` is bound to several features.
    """
    several = [n.name for n in needs if n.each and isinstance(bindings.get(n.name), list)]
    if not several:
        return [("", bindings)]
    calls = zip(*(bindings[name] for name in several), strict=True)
    return [(f".{names[0]}", {**bindings, **dict(zip(several, names, strict=True))}) for names in calls]


def serves(kind: Kind, need: Need, capabilities: Set[str]) -> bool:
    """Says whether a feature of ``kind`` serves ``need`` under a task of such ``capabilities``."""
    asked = {capability for of, capability in need.given.items() if issubclass(kind, of)}
    return asked <= capabilities and issubclass(kind, need.kind if isinstance(need.kind, tuple) else (need.kind,))


def kind_names(need: Need) -> str:
    """Names the kinds of a need, e.g. ``Grid or Tokens``."""
    kinds = need.kind if isinstance(need.kind, tuple) else (need.kind,)
    return " or ".join(k.__name__ for k in kinds)
