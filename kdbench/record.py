"""The run record: what one run leaves behind, and the only thing that the leaderboard reads.

A record is a folder ``results/<task>/<method>/<run_id>/`` with ``run.json`` (a :class:`Record`), ``config.yaml`` and
what else the run made, such as ``student.safetensors``. It is whole or absent.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    model_validator,
)

from kdbench.cache import full_disk_is_one_line, write_atomic
from kdbench.digest import digest, digest_json, drop_nonfinite, without, without_nulls
from kdbench.errors import KDBenchError

SCHEMA_VERSION = 1
RUN = "run.json"
CONFIG = "config.yaml"

#: Keys of the resolved config that do not change the number, dotted; what :func:`spec_hash` leaves out. Where the data
#: lie does not: ``dataset.digest`` says what they are.
SPEC_EXCLUDE = (
    "seed",
    "results",
    "cache",
    "logger",
    "hydra",
    "rerun",
    "data.root",
    "data.workers",
    "teacher.data.root",
    "teacher.data.workers",
    "trainer.threads",
)

#: Fields that differ between two equal runs, dotted, ``*`` for any key; what :func:`content_hash` leaves out. Two
#: records of one content hash therefore hold the same result, made twice or copied.
VOLATILE = (
    "content_hash",
    "run_id",
    "command",
    "cost.wall_s",
    "cost.peak_rss_mb",
    "models.*.latency_ms",
    "provenance.hardware",
    "provenance.threads",
    "provenance.started",
    "provenance.finished",
)

#: Mappings of free keys, in which null is a value; a field that is null is as good as absent.
FREE = ("options", "tuning.scores", "scores.*.test", "scores.*.best_on_val", "provenance.packages")

#: By schema version, what turns the JSON of such a record into that of the next version. Files are never rewritten.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

PACKAGES = (
    "kdbench",
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "timm",
    "numpy",
    "scipy",
    "hydra-core",
    "open3d",
    "onnx",
    "onnxruntime",
)

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+=,-]*$")]
Values = dict[str, float | None]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Sizes(_Model):
    """Samples per split."""

    train: int
    val: int
    test: int


class Dataset(_Model):
    """What the run learned from: ``digest`` covers the files that were read, ``fold`` names one cut of several."""

    name: str
    embedded: bool
    digest: str
    fold: str | int | None = None
    sizes: Sizes


class Primary(_Model):
    """The metric that runs of this task are compared by."""

    name: str
    higher_is_better: bool


class RoleScores(_Model):
    """Metrics of one role on the test set: after the last epoch, and of the epoch that was best on validation."""

    test: Values
    best_on_val: Values | None = None


class Scores(_Model):
    """Scores by role. A role that the run does not have is None."""

    teacher: RoleScores | None = None
    scratch: RoleScores | None = None
    student: RoleScores | None = None
    peer: RoleScores | None = None
    teacher_privileged: RoleScores | None = None
    converted: RoleScores | None = None


class Cost(_Model):
    """Cost of the student stage alone. Passes are forward passes per training sample."""

    epochs: int
    samples_seen: int
    teacher_passes: float | None = None
    student_passes: float | None = None
    wall_s: float | None = None
    peak_rss_mb: float | None = None
    added_params: int = 0


class TeacherModel(_Model):
    """Size of a model: parameters, multiply-accumulates of one sample, bytes on disk."""

    params: int
    macs: int | None = None
    bytes: int


class StudentModel(TeacherModel):
    """Size and measured latency of a student, in milliseconds for one sample."""

    latency_ms: float | None = None


class ConvertedModel(_Model):
    """A quantised student as it is stored and run: bytes of the file and of its packed weights."""

    bytes: int
    packed_bytes: int | None = None
    latency_ms: float | None = None
    engine: str


class Models(_Model):
    """Models by role."""

    teacher: TeacherModel | None = None
    student: StudentModel | None = None
    converted: ConvertedModel | None = None


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

    schema_version: Literal[1] = 1
    protocol: Literal["1"] = "1"
    run_id: Name
    spec_hash: str
    content_hash: str | None = Field(default=None, description="Set when the record is written.")
    code_digest: str
    status: Literal["ok", "failed", "diverged"]
    reason: str | None = None
    flags: list[str] = Field(
        default=[], description='E.g. "no_headroom", "nan:<path>" for a value that was not finite.'
    )
    task: Name
    method: Name
    pair: str
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
    scores: Scores = Scores()
    gap_closed: float | None = None
    gap_reason: str | None = None
    cost: Cost | None = None
    models: Models = Models()
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
        scores = {role: value for role, value in self.scores if value is not None}
        if not scores:
            raise ValueError("status ok needs the scores of at least one role")
        for role, value in scores.items():
            if self.primary.name not in value.test:
                raise ValueError(f"scores.{role}.test lacks the primary metric {self.primary.name!r}")
        if self.gap_closed is None and not self.gap_reason:
            raise ValueError("gap_closed is null: gap_reason must say why")
        return self


def spec_hash(config: Mapping[str, Any], exclude: tuple[str, ...] = SPEC_EXCLUDE) -> str:
    """Digests a resolved config without the ``exclude`` keys, so that runs that differ in the seed alone agree.

    Args:
        config: The resolved config.
        exclude: Dotted keys that do not change the number.
    """
    return digest(without(config, exclude))


def content_hash(record: Record) -> str:
    """Digests everything in the record but its :data:`VOLATILE` fields, so that an edited number is noticed."""
    try:
        return _hash(record)
    except ValueError:  # something is not finite, and would be written as null and a flag
        return _hash(_finite(record))


def verify(record: Record) -> bool:
    """Tells whether the record is as it was written."""
    return record.content_hash == content_hash(record)


def json_schema() -> dict[str, Any]:
    """The JSON schema of ``run.json``."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Record.model_json_schema()}


def write_record(
    results: Path, record: Record, files: Mapping[str, Path | bytes | str], *, replace: bool = False
) -> Path:
    """Writes a record with its content hash and its files; values that are not finite become null and a flag.

    Args:
        results: The folder of all records.
        record: The record.
        files: What lies beside ``run.json``, by name: a path to copy or the content; ``config.yaml`` is needed.
        replace: Whether a record of the same ``run_id`` gives way.

    Returns:
        ``results/<task>/<method>/<run_id>``.

    Raises:
        KDBenchError: The record exists, a file is missing, or the disk is full. Nothing is left behind.
    """
    final = Path(results) / record.task / record.method / record.run_id
    if CONFIG not in files:
        raise KDBenchError(f"the record {final} has no {CONFIG}: expected one among its files ({', '.join(files)})")
    if final.exists() and not replace:
        raise KDBenchError(f"the record {final} exists: choose another results=DIR or rerun=true")
    record = _finite(record)
    record = record.model_copy(update={"content_hash": content_hash(record)})
    aside, old = (final.with_name(f".{record.run_id}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        with full_disk_is_one_line(final.parent):
            aside.mkdir(parents=True)
            for name, content in files.items():
                if isinstance(content, Path):
                    shutil.copyfile(content, aside / name)
                else:
                    write_atomic(aside / name, content)
            write_atomic(aside / RUN, record.model_dump_json(indent=1) + "\n")
        if replace and final.exists():
            final.rename(old)
        aside.rename(final)
    except OSError as error:
        raise KDBenchError(f"the record {final} cannot be written: {error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return final


def read_record(path: Path, *, check_hash: bool = True) -> Record:
    """Reads a record from its folder or its ``run.json``.

    Args:
        path: The folder or the file.
        check_hash: Whether a record that was edited after it was written is refused.

    Raises:
        KDBenchError: The file is missing, empty, not JSON, of another schema version, incomplete or edited.
    """
    path = path / RUN if path.is_dir() else path
    try:
        text = path.read_bytes()
    except OSError as error:
        raise KDBenchError(f"{path}: no run record ({error.strerror}), expected a run folder or its {RUN}") from None
    return parse_record(text, path, check_hash=check_hash)


def parse_record(text: bytes, path: Path | str, *, check_hash: bool = True) -> Record:
    """Reads a record from the content of ``run.json``; ``path`` is for the errors, which are :func:`read_record`'s."""
    try:
        # Most records are as they were written, and this is several times as fast as finding out what is wrong.
        record = Record.model_validate_json(text)
        if record.content_hash == _hash(record):
            return record
    except ValueError:
        pass
    data = _parse_json(text, path)
    version = data.get("schema_version") if isinstance(data, dict) else None
    old = isinstance(version, int) and version in UPGRADES
    if not old and version != SCHEMA_VERSION:
        raise KDBenchError(
            f"{path}: schema_version is {version!r}, expected {SCHEMA_VERSION}: use the kdbench that wrote it"
        )
    if old:
        data = _upgraded(data, path, check_hash)
    try:
        record = Record.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the record"
        raise KDBenchError(f"{path}: {where}: {first['msg']} ({error.error_count()} problems in all)") from None
    if old:
        return record.model_copy(update={"content_hash": content_hash(record)})
    if check_hash:
        _check_hash(path, record.content_hash, content_hash(record))
    return record


def _parse_json(text: bytes, path: Path | str) -> Any:
    if not text.strip():
        raise KDBenchError(f"{path}: the file is empty, expected a run record: remove the folder and run again")
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite_float)
    except (ValueError, RecursionError) as error:
        raise KDBenchError(f"{path}: not valid JSON ({error}), expected a run record") from None


def _upgraded(data: dict[str, Any], path: Path | str, check_hash: bool) -> dict[str, Any]:
    """Brings the JSON of an older record to the schema of today, once it is known to be as it was written."""
    if check_hash:
        expected = digest(without(without_nulls(data, FREE), VOLATILE), 32)
        _check_hash(path, data.get("content_hash"), expected)
    while (version := data["schema_version"]) != SCHEMA_VERSION:
        data = UPGRADES[version](data) | {"schema_version": version + 1}
    return data


def _check_hash(path: Path | str, found: Any, expected: str) -> None:
    if found != expected:
        raise KDBenchError(f"{path}: content_hash is {found}, expected {expected}: it was edited")


def find_records(results: Path) -> list[Path]:
    """Lists the run folders below ``results`` (``<task>/<method>/<run_id>``), sorted."""
    found = (path.parent for path in Path(results).glob(f"*/*/*/{RUN}"))
    return sorted(path for path in found if not path.name.startswith("."))


def provenance(config_digest: str, started: datetime) -> Provenance:
    """Says what the run that ends now was made with.

    Args:
        config_digest: Digest of the whole resolved config.
        started: When the run began, with its time zone.
    """
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _git("rev-parse", "HEAD")
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Provenance(
        commit=commit,
        dirty=None if commit is None else bool(_git("status", "--porcelain")),
        config_digest=config_digest,
        packages=packages,
        hardware=Hardware(cpu=_cpu_model(), cores=cores, gpu=gpu, system=platform.platform()),
        threads=cores if torch is None else torch.get_num_threads(),
        started=started,
        finished=datetime.now(UTC),
    )


def _finite(record: Record) -> Record:
    values, dropped = drop_nonfinite(record.model_dump())
    if not dropped:
        return record
    values["flags"] += [flag for path in dropped if (flag := f"nan:{path}") not in record.flags]
    return Record.model_validate(values)


def _hash(record: Record) -> str:
    # Without nulls a later schema may add optional fields and still know the records of today.
    values = record.model_dump(mode="json", exclude_none=True)
    return digest_json(without(values, VOLATILE), 32)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is beyond every number")
    return value


def _git(*arguments: str) -> str | None:
    # The checkout that holds this package, not one that merely contains the environment it is installed in.
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


@functools.cache
def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
