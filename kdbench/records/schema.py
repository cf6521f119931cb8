"""The content of ``run.json``, the run record: its fields, and what a whole one has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, model_validator

from kdbench.configuration.keys import Name

SCHEMA_VERSION = 3

Values = dict[str, float | None]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Sizes(_Model):
    """Samples per split."""

    train: int
    val: int
    test: int


class Dataset(_Model):
    """What the run learned from: ``digest`` covers the files that were read, ``fold`` names one cut of several.

    ``classes`` are names in the order of the outputs, and ``inputs`` is how what a user has becomes what the model
    reads, in the words of the task. Records of schema version 1 have neither.
    """

    name: str
    embedded: bool
    digest: str
    fold: str | int | None = None
    sizes: Sizes
    classes: list[str] | None = None
    inputs: dict[str, JsonValue] | None = None


class Primary(_Model):
    """The metric that runs of this task are compared by; ``unit`` is e.g. ``%``, None where it has none."""

    name: str
    higher_is_better: bool
    unit: str | None = None


class RoleScores(_Model):
    """Metrics of a model on the test set: after the last epoch, and of the epoch that was best on validation."""

    test: Values
    best_on_val: Values | None = None


class Cost(_Model):
    """Cost of the student stage alone. Passes are forward passes per training sample."""

    epochs: int
    samples_seen: int
    teacher_passes: float | None = None
    student_passes: float | None = None
    wall_s: float | None = None
    peak_rss_mb: float | None = None
    added_params: int = 0


class Model(_Model):
    """Size and speed of a model: bytes on disk (``packed_bytes``: of its packed weights), the rest of one sample.

    ``engine`` names what runs it where that is not torch in floating point.
    """

    params: int | None = None
    macs: int | None = None
    bytes: int
    packed_bytes: int | None = None
    latency_ms: float | None = None
    engine: str | None = None


class Term(_Model):
    """One loss term: its weight (a number or a schedule) and its unweighted mean in the first and last epoch."""

    weight: float | str | None = None
    first: float | None = None
    last: float | None = None


class Tuning(_Model):
    """Trials of a factor on the method's weights: the factor used, and the validation score that each one had."""

    trials: int = 0
    factor: float = 1.0
    seed: int | None = None
    scores: Values = {}


class Hardware(_Model):
    """The machine: ``cores`` are those that the process may use."""

    cpu: str
    cores: int
    gpu: str | None = None
    system: str


class Provenance(_Model):
    """What a run was made with. ``commit`` and ``dirty`` are None where the package is not a checkout."""

    commit: str | None
    dirty: bool | None
    config_digest: str
    packages: dict[str, str]
    hardware: Hardware
    threads: int
    started: AwareDatetime
    finished: AwareDatetime


class Record(_Model):
    """The content of ``run.json``. A run that failed may lack what it did not reach."""

    schema_version: Literal[3] = 3
    protocol: Literal["1"] = "1"
    run_id: Name
    spec_hash: str
    content_hash: str | None = Field(default=None, description="Set when the record is written.")
    code_digest: str
    status: Literal["ok", "failed", "diverged"]
    reason: str | None = None
    flags: list[str] = Field(
        default=[], description='E.g. "no_headroom", "nan:<path>" for a value that was not finite, notes on the data.'
    )
    task: Name
    method: Name
    pair: str
    networks: dict[str, dict[str, JsonValue]] | None = Field(
        default=None, description="Architectures of the pair by side, as configured; what boards are joined by."
    )
    augment: str = "none"
    quant: str = "none"
    preset: str
    seed: int
    options: dict[str, JsonValue] = {}
    fidelity: str
    origin: str
    command: str
    tuning: Tuning | None = None
    dataset: Dataset | None = None
    primary: Primary | None = None
    scores: dict[Name, RoleScores] = Field(
        default={},
        description="By what was scored: teacher, scratch, student, peer, and what else a training leaves by its name "
        "(converted); of a teacher or a scratch student with that in front (teacher_privileged).",
    )
    gap_closed: float | None = None
    gap_reason: str | None = None
    cost: Cost | None = None
    models: dict[Name, Model] = Field(default={}, description="Named as scores are.")
    terms: dict[str, Term] = {}
    provenance: Provenance

    @model_validator(mode="after")
    def _is_complete(self) -> Record:
        if self.status != "ok":
            if not self.reason:
                raise ValueError(f"status {self.status} needs a reason")
            return self
        if self.dataset is None or self.primary is None or self.cost is None:
            raise ValueError("status ok needs dataset, primary and cost")
        if not self.scores:
            raise ValueError("status ok needs the scores of at least one role")
        for role, value in self.scores.items():
            if self.primary.name not in value.test:
                raise ValueError(f"scores.{role}.test lacks the primary metric {self.primary.name!r}")
        if self.gap_closed is None and not self.gap_reason:
            raise ValueError("gap_closed is null: gap_reason must say why")
        return self


#: What the flags say of a term, by what stands before its name.
_IDLE = {"zero_term": "was zero in every step", "no_gradient": "gave no gradient"}


def idle_terms(flags: Iterable[str]) -> list[str]:
    """Says in words which terms of the loss did nothing in the whole training.

    Example:
        >>> idle_terms(["no_headroom", "zero_term:sp"])
        ['term sp was zero in every step']
    """
    split = (flag.partition(":") for flag in flags)
    return [f"term {term} {_IDLE[kind]}" for kind, _, term in split if kind in _IDLE]


def json_schema() -> dict[str, Any]:
    """The JSON schema of ``run.json``."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Record.model_json_schema()}
