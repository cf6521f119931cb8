"""Plugins: what a method, an augmentation or a quantisation adds to a run.

A plugin speaks feature kinds and roles. It never names a layer, a task, a data set or an optimizer: layers are named
by the pair's configuration, weights of terms by the method's, and the engine alone steps optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from kdbench.features import Feature, Kind
from kdbench.task import Batch

if TYPE_CHECKING:
    from kdbench.signals import Context, Signals


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
    """

    name: str
    kind: Kind | tuple[Kind, ...]
    roles: tuple[str, ...] = ("student", "teacher")
    many: bool = False
    each: bool = False


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
class Asked:
    """A training that a plugin asks for before those that it takes part in: an assistant, a supernet, a second teacher.

    Attributes:
        name: Shown, and what :attr:`Role.product` calls it.
        side: The entry of the pair that is trained.
        inputs: Trained under the plugin: for each of its roles of ``init="trained"``, the training whose product it is
            there (``{"teacher": "teacher"}`` for an assistant). None trains it alone.
    """

    name: str
    side: str
    inputs: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Stage:
    """A separate fit with a clean optimizer; a plugin's stages run in order on the same student.

    Attributes:
        name: Shown and recorded.
        epochs: Share of the configured epochs; more than 1 in sum costs more than the student trained alone, which the
            record shows.
        terms: Terms that are active; None means all.
        trains: Parameter globs that train; None means everything trainable.
        roles: Role rebindings, e.g. ``{"teacher": "student"}``: the teacher is the student as the last stage left it.
        lr: Scales the learning rates.
        constant: Keeps the learning rate, whatever the run's schedule.
        fresh: Puts the student back to its initial weights, after ``roles`` has copied it (generations of students).
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
    owner: str = ""


class Plugin(nn.Module):
    """Base of methods, augmentations and quantisations.

    Trainable state of a plugin is in its parameters, other state in its buffers, so all of it is in the checkpoint.

    Attributes:
        needs: Features it reads.
        parts: Sub-modules of roles that it calls.
        requires: Capabilities that the task must have.
        removes: Capabilities that the batches have no more for other plugins (mixed samples: ``single_label``).
        roles: Networks that take part, by name; a run has the union over its plugins.
        takes_part: In whose training it takes part: ``student``, ``teacher``, or a further entry of the pair. Elsewhere
            than in the student's it has no ``trained`` roles; ``ctx.side`` tells where it is.
        trainings: Further trainings that it asks for.
        no_twin: Why the student cannot be trained without this plugin; then there is no scratch student.
        fidelity: ``equations`` or ``approximate``.
        over_batch: Whether a term relates rows to each other, so is no mean over rows of their own losses: then every
            process of a training is given the features of the whole batch.
        built: Whether :meth:`build` has run; the engine sets it.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    parts: ClassVar[tuple[Part, ...]] = ()
    requires: ClassVar[frozenset[str]] = frozenset()
    removes: ClassVar[frozenset[str]] = frozenset()
    roles: ClassVar[Mapping[str, Role]] = {"student": STUDENT}
    takes_part: ClassVar[frozenset[str]] = frozenset({"student"})
    trainings: ClassVar[tuple[Asked, ...]] = ()
    no_twin: ClassVar[str] = ""
    fidelity: ClassVar[Literal["equations", "approximate"]] = "equations"
    over_batch: ClassVar[bool] = False
    built: bool = False

    @classmethod
    def choose(cls, architecture: Mapping[str, Any], products: Mapping[str, Path]) -> Mapping[str, Any]:
        """Returns the student's architecture, before it and its scratch twin are trained.

        Args:
            architecture: As configured.
            products: Folder of the product of each of :attr:`trainings`, by name.
        """
        return architecture

    def build(self, probe: Signals) -> None:
        """Makes projectors, once, from the shapes seen on one real batch.

        ``probe`` answers without gradient; its views are those of the plugins composed before this one.
        """

    def enter(self, stage: Stage, probe: Signals) -> None:
        """Runs before each stage, e.g. to put quantisation on the student before the stage that trains it."""

    def views(self, views: Views, ctx: Context) -> Views:
        """Returns what each role reads, by role and view name; the default leaves it as it is.

        Every role comes with the view ``main``. Where some update reads the ``meta`` batch, the batch that is not
        ``main`` is there under its own name, ``train`` or ``meta``.
        """
        return views

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns named scalar terms, unweighted: weights live in the configuration.

        Every term that ``ctx`` wants must be there at every step; a term of no rows is a zero on the graph.
        """
        return {}

    def updates(self) -> tuple[Update, ...]:
        """Returns the optimisation steps of one training step, in order."""
        return (Update(),)

    def stages(self) -> tuple[Stage, ...]:
        """Returns the fits that this plugin asks for.

        The default ``Stage()`` among several is where the stages of the run's other plugins go.
        """
        return (Stage(),)

    def after_step(self, signals: Signals, state: State) -> None:
        """Runs after all updates of a batch, without gradient: banks, averages, quantisation points.

        Where several processes train, ``signals`` gives each of them the whole batch, so that its state is the same.
        """

    def deploy(self, student: nn.Module) -> nn.Module:
        """Returns what is needed at inference: ``student`` itself, a copy of it, or a module around it.

        It is called while training goes on, so it leaves ``student`` as it is.
        """
        return student


class Method(Plugin):
    """A distillation method: a plugin with a frozen teacher unless it says otherwise."""

    roles: ClassVar[Mapping[str, Role]] = {"student": STUDENT, "teacher": TEACHER}


Views = dict[str, dict[str, Batch]]
"""Batches by role and view name; every role has at least ``main``."""

Bindings = Mapping[str, str | list[str]]
"""Feature name(s) for each need of a plugin."""


def by_feature(plugin: type[Plugin] | Plugin, bindings: Bindings) -> list[tuple[str, Bindings]]:
    """Returns the bindings of each call of ``terms``, with what its terms' names end in.

    That is one call, with ``""``, unless a need with ``each`` is bound to several features.
    """
    several = [n.name for n in plugin.needs if n.each and isinstance(bindings.get(n.name), list)]
    if not several:
        return [("", bindings)]
    calls = zip(*(bindings[name] for name in several), strict=True)
    return [(f".{names[0]}", {**bindings, **dict(zip(several, names, strict=True))}) for names in calls]


def serves(kind: Kind, need: Need) -> bool:
    """Says whether a feature of ``kind`` serves ``need``."""
    return issubclass(kind, need.kind if isinstance(need.kind, tuple) else (need.kind,))


def kind_names(need: Need) -> str:
    """Names the kinds of a need, e.g. ``Grid or Tokens``."""
    kinds = need.kind if isinstance(need.kind, tuple) else (need.kind,)
    return " or ".join(k.__name__ for k in kinds)


__all__ = [
    "PEER",
    "STUDENT",
    "TEACHER",
    "Asked",
    "Bindings",
    "Feature",
    "Method",
    "Need",
    "Part",
    "Plugin",
    "Role",
    "Stage",
    "State",
    "Update",
    "Views",
    "by_feature",
]
