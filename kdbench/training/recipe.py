"""Recipes: everything that determines the outcome of one training, and nothing else. Its digest is a product's key."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from kdbench.base.digest import digest, source_digest
from kdbench.configuration.resolved import PluginSpec

if TYPE_CHECKING:
    from kdbench.needs import Bindings
    from kdbench.task import Task

#: Files of a product: the plain model; what is deployed, where a method keeps more; what was deployed of the epoch that
#: was best on validation, where that is not the last; what is deployed in fewer bytes, where a quantisation packs it.
MODEL = "model.safetensors"
DEPLOYED = "deployed.safetensors"
BEST = "best.safetensors"
PACKED = "packed.safetensors"
#: Among the inputs of a recipe, what was written for it; its file.
CORPUS = "corpus"
WRITTEN = "corpus.safetensors"

#: Keys of ``trainer`` that change how a training is run but not what comes out.
_RUNNING = ("accelerator", "threads")
#: Those of ``data``; what lies there is in the digest of the data, and what the preset reads is in the trainer.
_READING = ("root", "table", "corpus", "protocol", "workers")
#: Those of ``task``: what is made of the scores.
_JUDGING = ("noise",)


@dataclass(frozen=True)
class Answers:
    """Stored outputs that take the place of a network.

    Attributes:
        path: A safetensors file with ``ids`` (N,) and ``outputs`` (N, …), the raw outputs of those samples.
        digest: Of its content.
    """

    path: Path
    digest: str

    @property
    def key(self) -> str:
        """What recipes that read it are keyed by."""
        return self.digest


@dataclass(frozen=True)
class Replay:
    """Stored answers of a trained network to a pool of views of the training samples, in its place.

    Attributes:
        source: The training whose product answers.
        config: Configuration of the training that reads them.
        dataset: Digest of its data.
        views: Of each sample.
        half: Whether numbers are stored in half precision.
    """

    source: Recipe
    config: Mapping[str, Any]
    dataset: str
    views: int
    half: bool = False

    @functools.cached_property
    def key(self) -> str:
        """What recipes that read it are keyed by."""
        return digest(
            {
                "source": self.source.key,
                "dataset": self.dataset,
                "data": {k: v for k, v in self.config["data"].items() if k not in _READING},
                "task": {k: v for k, v in self.config["task"].items() if k not in _JUDGING},
                "trainer": {k: self.config["trainer"][k] for k in ("precision", "channels_last")},
                "views": self.views,
                "half": self.half,
                "code": source_digest(self.source.modules | {"kdbench.training.answering"}),
            }
        )

    def of(self, feature: str) -> str:
        """Returns the key of one feature's product."""
        tap = (self.source.pair["student"].get("taps") or {}).get(feature)
        return digest([self.key, feature, tap])


@dataclass(frozen=True)
class Written:
    """Samples that a trained network writes before the training that reads them.

    Attributes:
        source: The training whose product writes.
        config: Configuration of the training that reads them; ``teacher.corpus`` says how they are written.
        dataset: Digest of its data, of which a sample may be given the beginning.
    """

    source: Recipe
    config: Mapping[str, Any]
    dataset: str

    @functools.cached_property
    def key(self) -> str:
        """What recipes that read it are keyed by."""
        options = {key: value for key, value in self.options.items() if key != "beside"}
        return digest(
            {
                "source": self.source.key,
                "dataset": self.dataset,
                "data": {k: v for k, v in self.config["data"].items() if k not in _READING},
                "task": {k: v for k, v in self.config["task"].items() if k not in _JUDGING},
                "written": options,
                "code": source_digest(self.source.modules),
            }
        )

    @property
    def options(self) -> Mapping[str, Any]:
        """How many there are, and how they are written."""
        found: Mapping[str, Any] = self.config["teacher"]["corpus"]
        return found


#: What answers or writes for a training.
Source: TypeAlias = "Recipe | Answers | Replay | Written"


@dataclass(frozen=True)
class Recipe:
    """One training: whose weights come out, and from what.

    Attributes:
        name: Shown: ``teacher``, ``scratch``, ``student``, ``trial ×0.3``, or as a plugin calls what it asks for.
        side: The entry of the pair that it is built from.
        config: The resolved configuration.
        plugins: Those that take part, by owner; none when the role is trained alone.
        seed: Of weights, order and augmentation.
        dataset: Digest of the data that it reads.
        inputs: By role, the training whose product answers for it, or stored answers; as :data:`CORPUS` what was
            written for it.
        views: Of each training sample where they are a pool (``teacher.replay``); None draws anew in every epoch.
        factor: On the weights of the plugin that is tuned.
        length: Share of the configured epochs (tuning trials may be shorter).
        files: Digests of the weights files that it starts from.
        given: Whether those weights are the product as they are: a teacher from elsewhere.
    """

    name: str
    side: str
    config: Mapping[str, Any]
    plugins: Mapping[str, PluginSpec]
    seed: int
    dataset: str
    inputs: Mapping[str, Source] = field(default_factory=dict)
    views: int | None = None
    factor: float = 1.0
    length: float = 1.0
    files: Mapping[str, Any] = field(default_factory=dict)
    given: bool = False

    @property
    def own(self) -> Mapping[str, Any]:
        """What the configuration says of this role alone (``teacher``, ``student``)."""
        return self.config.get(self.side) or {}

    @property
    def starts(self) -> list[str]:
        """Weights files that it starts from; several are the members of an ensemble."""
        given = self.own.get("init_from") or self.config["pair"][self.side].get("init_from") or []
        return [given] if isinstance(given, str) else list(given)

    @property
    def pair(self) -> dict[str, Any]:
        """The pair as this training sees it: ``student`` is who trains, and an input has the side of its product."""
        sides = dict(self.config["pair"])
        for spec in self.plugins.values():
            for name, role in spec.plugin.roles.items():
                source = trained(self.inputs.get(name))
                if source is not None:
                    sides[role.side] = self.config["pair"][source.side]
        return {**sides, "student": self.config["pair"][self.side]}

    def absent(self, owner: str) -> frozenset[str]:
        """Returns the roles of a plugin that this training does not have: trained ones of which it has no product."""
        roles = self.plugins[owner].plugin.roles.items()
        return frozenset(name for name, role in roles if role.init == "trained" and name not in self.inputs)

    def bindings(self, task: Task) -> dict[str, Bindings]:
        """Returns, by owner, the features to which this training binds the needs of its plugins."""
        pair = self.pair
        return {o: spec.bind(task, pair, self.plugins, self.absent(o)) for o, spec in self.plugins.items()}

    def reads(self, task: Task, role: str) -> frozenset[str]:
        """Returns the features of a role that the plugins read."""
        names: set[str] = set()
        for owner, bindings in self.bindings(task).items():
            for need in self.plugins[owner].plugin.needs:
                bound = bindings.get(need.name, []) if role in need.roles else []
                names.update([bound] if isinstance(bound, str) else bound)
        return frozenset(names)

    @property
    def beside(self) -> bool:
        """Whether what was written stands beside the samples of the data set, not in their place."""
        return bool(self.config["teacher"]["corpus"]["beside"])

    @property
    def trainer(self) -> dict[str, Any]:
        """Trainer configuration of this role: the common one under the role's own overrides."""
        trainer = {**self.config["trainer"], **(self.own.get("trainer") or {})}
        return {**trainer, "epochs": max(1, round(trainer["epochs"] * self.length))}

    @property
    def tuned(self) -> str:
        """Owner of the weights that a tuning factor scales: the method, or what is compared in its place."""
        return "method" if "method" in self.plugins else "augment"

    @property
    def modules(self) -> set[str]:
        """Dotted modules whose sources decide the outcome."""
        targets = [self.config["task"], self.config["pair"][self.side]["architecture"]]
        targets += [self.trainer["optimizer"], self.trainer["scheduler"]]
        for spec in self.plugins.values():
            targets += [spec.given, *spec.optimizers.values()]
        names = {t["_target_"].rpartition(".")[0] for t in targets if "_target_" in t}
        # Not the thousand files of torch, whose version is in the record.
        return {name for name in names if name.partition(".")[0] != "torch"} | {"kdbench.training.fit"}

    @functools.cached_property
    def key(self) -> str:
        """Digest of the recipe, the data, and the sources of the engine, the task and the plugins."""
        sides = {self.side} | {r.side for s in self.plugins.values() for r in s.plugin.roles.values()}
        return digest(
            {
                "side": self.side,
                "pair": {side: self.config["pair"].get(side) for side in sorted(sides)},
                "files": dict(self.files),
                "task": {k: v for k, v in self.config["task"].items() if k not in _JUDGING},
                "dataset": self.dataset,
                "data": {k: v for k, v in self.config["data"].items() if k not in _READING},
                "plugins": {owner: dict(spec.given) for owner, spec in self.plugins.items()},
                "trainer": {k: v for k, v in self.trainer.items() if k not in _RUNNING},
                "seed": self.seed,
                "inputs": {role: source.key for role, source in self.inputs.items()},
                **({"beside": self.beside} if CORPUS in self.inputs else {}),
                "views": self.views,
                "factor": self.factor,
                "given": self.given,
                "code": source_digest(self.modules),
            }
        )

    def trial(self, factor: float, seed: int, length: float) -> Recipe:
        """Returns the same recipe as a tuning trial: another factor, seed and length."""
        return replace(self, name=f"trial ×{factor:g}", factor=factor, seed=seed, length=length)


def trained(source: Source | None) -> Recipe | None:
    """Returns the training behind what answers or writes, if there is one."""
    return source.source if isinstance(source, Replay | Written) else source if isinstance(source, Recipe) else None


def start_of(init_from: str) -> tuple[Path, str]:
    """Splits ``FILE`` or ``FILE::ENTRY``, which says which state dict of a file of several is meant."""
    file, _, entry = init_from.partition("::")
    return (Path(init_from), "") if Path(init_from).is_file() else (Path(file), entry)


def start_digest(init_from: str) -> str:
    """Digests the weights that a recipe starts from."""
    import hashlib

    path, entry = start_of(init_from)
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    return f"{found}::{entry}" if entry else found
