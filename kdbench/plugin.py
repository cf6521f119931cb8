"""Plugins: what a method, an augmentation or a quantisation adds to a run.

A plugin speaks feature kinds and roles. It never names a layer, a task, a data set or an optimizer: layers are named
by the pair's configuration, weights of terms by the method's, and the engine alone steps optimizers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from kdbench.errors import KDBenchError
from kdbench.needs import STUDENT, TEACHER, Artifact, Asked, Need, Part, Role, Stage, State, Update, Views
from kdbench.signals import Context, Signals
from kdbench.task import Task

if TYPE_CHECKING:
    from PIL.Image import Image


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
        twin: What becomes of it in the scratch twin, which no trained network teaches: ``untaught`` stays if it takes
            none (an augmentation), ``left_out`` does not stay (a method), ``own_float`` stays, with the twin's own
            student, trained without it, for each network that it takes (a quantisation).
        no_twin: Why the student cannot be trained without this plugin; then there is no scratch student.
        fidelity: ``equations`` or ``approximate``.
        over_batch: Whether a term relates rows to each other, so is no mean over rows of their own losses: then every
            process of a training is given the features of the whole batch.
        raw: Whether it reads raw outputs of its frozen networks, not features alone, so cannot do with stored ones.
        renames: Whether its terms hold where teacher and student call classes otherwise (models of other vocabularies).
        corpus: Whether it learns from what the teacher writes before the student is trained (``teacher.corpus``).
        built: Whether :meth:`build` has run; the engine sets it.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    parts: ClassVar[tuple[Part, ...]] = ()
    requires: ClassVar[frozenset[str]] = frozenset()
    removes: ClassVar[frozenset[str]] = frozenset()
    roles: ClassVar[Mapping[str, Role]] = {"student": STUDENT}
    takes_part: ClassVar[frozenset[str]] = frozenset({"student"})
    trainings: ClassVar[tuple[Asked, ...]] = ()
    twin: ClassVar[Literal["untaught", "left_out", "own_float"]] = "untaught"
    no_twin: ClassVar[str] = ""
    fidelity: ClassVar[Literal["equations", "approximate"]] = "equations"
    over_batch: ClassVar[bool] = False
    raw: ClassVar[bool] = False
    renames: ClassVar[bool] = False
    corpus: ClassVar[bool] = False
    built: bool = False

    @classmethod
    def choose(cls, architecture: Mapping[str, Any], products: Mapping[str, Path]) -> Mapping[str, Any]:
        """Returns the student's architecture, before it and its scratch twin are trained.

        Args:
            architecture: As configured.
            products: Folder of the product of each of :attr:`trainings`, by name.
        """
        return architecture

    @classmethod
    def takes(cls, task: Task | type[Task]) -> frozenset[str]:
        """Returns which capabilities batches of a task have no more: :attr:`removes`, or less where it keeps some."""
        return cls.removes

    def sides(self, pair: Mapping[str, Any], task: Task) -> Mapping[str, Any]:
        """Returns the pair with other or further entries for the trainings of the run, from what is configured.

        Args:
            pair: As configured, or as the plugins composed before this one leave it.
            task: Knows what its networks can be made of (:meth:`kdbench.task.Task.ops`).
        """
        return pair

    def chosen(self, corpus: Mapping[str, Tensor], task: Task, seed: int) -> Tensor | None:
        """Chooses what the student reads of what the teacher wrote for it (``teacher.corpus``), before it is trained.

        Args:
            corpus: What the task's op ``write`` gave: tensors, one row a sample.
            task: Knows what a sample is worth.
            seed: Of the corpus.

        Returns:
            ``(N,)`` bool; None for all.
        """
        return None

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

    def readings(self) -> Mapping[str, float]:
        """Returns what a person would follow of what it learns, by name: a column each of ``metrics.csv``, by epoch.

        A number that is not finite ends the training as ``diverged``.
        """
        return {}

    def pictures(self, signals: Signals, rows: Sequence[Mapping[str, float]]) -> Mapping[str, Image]:
        """Draws what a person would look at of what it learned, by name; the record holds ``<owner>_<name>.png``.

        Args:
            signals: Of the first training batch and its views, at the end of training, without gradient.
            rows: Those of ``metrics.csv``.
        """
        return {}

    def artifacts(self, models: Mapping[str, nn.Module]) -> dict[str, Artifact]:
        """Returns what is scored, measured, saved and exported of a training, by name.

        ``student`` is what is needed at inference: ``models["student"]`` itself, a copy of it, a module around it, or
        another network of the training such as a moving average. Other names stand beside it: ``converted`` (int8),
        ``privileged``, a generator. It is called while training goes on, so it leaves the networks as they are.

        Args:
            models: Networks by role; ``student`` as the plugins that come before this one leave it.
        """
        peers = (n for n, role in self.roles.items() if role.mode == "train" and n != "student")
        return {"student": Artifact(models["student"])} | {name: Artifact(models[name]) for name in peers}

    def notes(self) -> tuple[str, ...]:
        """Returns flags of the record, e.g. which layers a quantisation leaves in float; asked for after training."""
        return ()


class Method(Plugin):
    """A distillation method: a plugin with a frozen teacher unless it says otherwise, and no part in the twin."""

    twin = "left_out"
    roles: ClassVar[Mapping[str, Role]] = {"student": STUDENT, "teacher": TEACHER}


def artifacts(plugins: Iterable[Plugin], models: Mapping[str, nn.Module]) -> dict[str, Artifact]:
    """Returns what all plugins of a run leave of a training: the method's student in the quantisation's.

    Args:
        plugins: In the order in which they were composed.
        models: Networks by role.

    Raises:
        KDBenchError: Two plugins give one name to what stands beside the student.
    """
    student, beside = Artifact(models["student"]), dict[str, Artifact]()
    for plugin in reversed([*plugins]):
        found = plugin.artifacts({**models, "student": student.module})
        outer = found.pop("student")
        student = replace(outer, view=outer.view or student.view, export=outer.export or student.export)
        for name in found.keys() & beside.keys():
            raise KDBenchError(f"{type(plugin).__name__} leaves an artifact {name!r}, a name that another plugin gives")
        beside |= found
    return {"student": student, **beside}
