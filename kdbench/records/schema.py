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
    """Cost of the student stage alone. Passes are forward passes per training sample.

    Tokens are those that a network wrote, one at a time, all in all: the student in training, the teacher in training
    or before it for the student to learn from (``teacher.corpus``). A written sample is one pass, whatever its length.
    """

    epochs: int
    samples_seen: int
    teacher_passes: float | None = None
    student_passes: float | None = None
    teacher_tokens: int | None = None
    student_tokens: int | None = None
    wall_s: float | None = None
    peak_rss_mb: float | None = None
    added_params: int = 0


class Model(_Model):
    """Size and speed of a model: bytes on disk, the rest of one sample.

    Of packed weights ``packed_bytes`` are those of their file, in which a weight takes ``bits`` on average and
    ``float_params`` are left as they were; ``coded_bytes`` are those that an entropy code would make of it.
    ``latency_ms`` is the median and ``latency_p90_ms`` the 90th percentile. ``engine`` names what runs it where that is
    not torch in floating point; then ``bytes`` are those of the file that it runs, and ``packed_bytes`` those of the
    constants in that. Of a converted student ``agreement`` says for which share of the test samples (or of their
    pixels) its engine gives the class that the student gives, in percent. ``openvino_*`` are the same figures of that
    file in OpenVINO, where it was installed.
    """

    params: int | None = None
    macs: int | None = None
    bytes: int
    packed_bytes: int | None = None
    coded_bytes: int | None = None
    bits: float | None = None
    float_params: int | None = None
    latency_ms: float | None = None
    latency_p90_ms: float | None = None
    engine: str | None = None
    agreement: float | None = None
    openvino_ms: float | None = None
    openvino_p90_ms: float | None = None
    openvino_agreement: float | None = None


class Term(_Model):
    """One loss term: its weight (a number or a schedule) and its unweighted mean in the first and last epoch."""

    weight: float | str | None = None
    first: float | None = None
    last: float | None = None


class Tuning(_Model):
    """Trials of a factor on the method's weights: the factor used, and the validation score that each one had.

    Under several seeds ``scores`` are means over them, and ``by_seed`` has each, in the order of ``seed``.
    """

    trials: int = 0
    factor: float = 1.0
    seed: int | list[int] | None = None
    scores: Values = {}
    by_seed: dict[str, list[float | None]] | None = None


class Teacher(_Model):
    """How the teacher was made: its seed, and the options of its training beside the networks of the pair.

    Of ``data`` all options that its training had; what says where data lie is left out. Records of before it was there
    have it in their configuration alone.
    """

    seed: int
    options: dict[str, JsonValue]


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
    teacher: Teacher | None = None
    options: dict[str, JsonValue] = {}
    fidelity: str
    origin: str
    command: str
    tuning: Tuning | None = None
    dataset: Dataset | None = None
    primary: Primary | None = None
    scores: dict[Name, RoleScores] = Field(
        default={},
        description="By what was scored: teacher, scratch, student, peer, scratch_matched (the student alone, trained "
        "for as many multiply-accumulates as the distilled one), and what else a training leaves by its name "
        "(converted); of a teacher or a scratch student with that in front (teacher_privileged).",
    )
    gap_closed: float | None = None
    gap_reason: str | None = None
    cost: Cost | None = None
    models: dict[Name, Model] = Field(default={}, description="Named as scores are.")
    terms: dict[str, Term] = {}
    files: dict[str, str] | None = Field(
        default=None,
        description="SHA-256 of what lies beside the record and is checked with it: metrics.csv and "
        "outcomes.safetensors, what each test sample contributed to the primary metric (kdbench.base.outcomes).",
    )
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


#: Before the augmentation that the teacher's own training is under, in a flag.
TAUGHT = "teacher.augment:"
#: Before why a learned augmentation took no step, in a flag.
STILL = "augmentor_never_stepped"
#: What the flags say of a term, by what stands before its name.
_IDLE = {"zero_term": "was zero in every step", "no_gradient": "gave no gradient"}


def idle_terms(flags: Iterable[str]) -> list[str]:
    """Says in words which terms of the loss, or whether a learned augmentation, did nothing in the whole training.

    Example:
        >>> idle_terms(["no_headroom", "zero_term:sp"])
        ['term sp was zero in every step']
    """
    split = [flag.partition(":") for flag in flags]
    terms = [f"term {term} {_IDLE[kind]}" for kind, _, term in split if kind in _IDLE]
    return terms + ["augmentor never stepped" for kind, _, _ in split if kind == STILL]


def warnings_of(flags: Iterable[str]) -> list[str]:
    """Says in words what a reader of a record has to know: idle terms, and models that are apart from their student.

    Example:
        >>> warnings_of(["no_headroom", "zero_term:sp", "apart:converted is 0.80 off"])
        ['term sp was zero in every step, so that it taught nothing', 'converted is 0.80 off']
    """
    flags = list(flags)
    idle = [f"{said}, so that it taught nothing" for said in idle_terms(flags)]
    return [*idle, *(flag.removeprefix("apart:") for flag in flags if flag.startswith("apart:"))]


def json_schema() -> dict[str, Any]:
    """The JSON schema of ``run.json``."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Record.model_json_schema()}
