"""Recipes: everything that determines the outcome of one training, and nothing else. Its digest is a product's key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdbench.digest import digest, source_digest

#: Files of a product: the plain model; what is deployed, where a method keeps more; the best epoch on validation.
MODEL = "model.safetensors"
DEPLOYED = "deployed.safetensors"
BEST = "best.safetensors"

#: Keys of ``trainer`` that change how a training is run but not what comes out.
_RUNNING = ("accelerator", "threads")
#: Those of ``data``; what lies there is in the digest of the data, and what the preset reads is in the trainer.
_READING = ("root", "table", "protocol", "workers")
#: Those of ``task``: what is made of the scores.
_JUDGING = ("noise",)


@dataclass(frozen=True)
class Recipe:
    """One training: whose weights come out, and from what.

    Attributes:
        role: The role whose model is the product.
        side: The side of the pair that it is built from.
        config: The resolved configuration.
        plugins: Configuration of each plugin that takes part, by owner; empty when the role is trained alone.
        seed: Of weights, order and augmentation.
        dataset: Digest of the data.
        teacher: Key of the trained teacher, or None.
        factor: On the weights of the plugin that is tuned.
        scored: Whether the test set is read at the end (tuning trials are scored on validation alone).
        length: Share of the configured epochs (tuning trials may be shorter).
        files: Digests of the weights files that it starts from.
        given: Whether those weights are the product as they are: a teacher from elsewhere.
    """

    role: str
    side: str
    config: Mapping[str, Any]
    plugins: Mapping[str, Mapping[str, Any]]
    seed: int
    dataset: str
    teacher: str | None = None
    factor: float = 1.0
    scored: bool = True
    length: float = 1.0
    files: Mapping[str, str] = field(default_factory=dict)
    given: bool = False

    @property
    def trainer(self) -> dict[str, Any]:
        """Trainer configuration of this role: the common one under the role's own overrides."""
        trainer = {**self.config["trainer"], **(self.config[self.side].get("trainer") or {})}
        return {**trainer, "epochs": max(1, round(trainer["epochs"] * self.length))}

    @property
    def tuned(self) -> str:
        """Owner of the weights that a tuning factor scales: the method, or what is compared in its place."""
        return "method" if "method" in self.plugins else "augment"

    @property
    def modules(self) -> set[str]:
        """Dotted modules whose sources decide the outcome."""
        targets = [self.config["task"], self.config["pair"][self.side]["architecture"], *self.plugins.values()]
        targets += [self.trainer["optimizer"], self.trainer["scheduler"]]
        targets += [plugin["optimizer"] for plugin in self.plugins.values() if plugin.get("optimizer")]
        names = {t["_target_"].rpartition(".")[0] for t in targets if "_target_" in t}
        # Not the thousand files of torch, whose version is in the record.
        return {name for name in names if name.partition(".")[0] != "torch"} | {"kdbench.fit"}

    @property
    def key(self) -> str:
        """Digest of the recipe, the data, and the sources of the engine, the task and the plugins."""
        sides = {self.side, "teacher"} if self.plugins else {self.side}
        return digest(
            {
                "role": self.role,
                "side": self.side,
                "pair": {side: self.config["pair"][side] for side in sorted(sides)},
                "files": dict(self.files),
                "task": {k: v for k, v in self.config["task"].items() if k not in _JUDGING},
                "dataset": self.dataset,
                "data": {k: v for k, v in self.config["data"].items() if k not in _READING},
                "plugins": {owner: dict(spec) for owner, spec in self.plugins.items()},
                "trainer": {k: v for k, v in self.trainer.items() if k not in _RUNNING},
                "seed": self.seed,
                "teacher": self.teacher,
                "factor": self.factor,
                "scored": self.scored,
                "given": self.given,
                "code": source_digest(self.modules),
            }
        )

    def trial(self, factor: float, seed: int, length: float) -> Recipe:
        """Returns the same recipe as a tuning trial: another factor, seed and length, no test."""
        return replace(self, factor=factor, seed=seed, length=length, scored=False)


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
