"""The run record: what one run leaves behind, and the only thing that the leaderboard reads.

A record is a folder ``results/<task>/<method>/<run_id>/`` with ``run.json`` (a :class:`Record`), ``config.yaml`` and
what else the run made, such as ``student.safetensors``. It is whole or absent.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdbench.base.digest import digest, digest_json, drop_nonfinite, without, without_nulls
from kdbench.base.outcomes import OUTCOMES
from kdbench.base.store import full_disk_is_one_line, write_atomic
from kdbench.errors import KDBenchError, absent
from kdbench.records.schema import SCHEMA_VERSION, Record, Teacher

RUN = "run.json"
CONFIG = "config.yaml"
PREVIEW = "preview.png"
CURVES = "metrics.csv"

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
    "data.table",
    "data.corpus",
    "data.protocol",
    "data.workers",
    "teacher.data.root",
    "teacher.data.table",
    "teacher.data.corpus",
    "teacher.data.protocol",
    "teacher.data.workers",
    "teacher.replay_limit",
    "trainer.threads",
    "scratch",
)

#: The seed of the teacher, dotted: with another one it is the same specification, :func:`spec_hash` takes it for 0.
TEACHER_SEED = "teacher.seed"
#: Keys of the teacher that decide nothing about it.
_NOT_TAUGHT = ("seed", "expect", "tolerance", "replay_limit", "data", "augment", "replay_dtype", "corpus")
#: Those of its data.
_NOT_DATA = ("root", "table", "corpus", "protocol", "workers", "task")

#: Fields that differ between two equal runs, dotted, ``*`` for any key; what :func:`content_hash` leaves out. Two
#: records of one content hash therefore hold the same result, made twice or copied.
VOLATILE = (
    "content_hash",
    "run_id",
    "command",
    "cost.wall_s",
    "cost.peak_rss_mb",
    "models.*.latency_ms",
    "models.*.latency_p90_ms",
    "models.*.openvino_ms",
    "models.*.openvino_p90_ms",
    "provenance.hardware",
    "provenance.threads",
    "provenance.started",
    "provenance.finished",
)

#: Mappings of free keys, in which null is a value; a field that is null is as good as absent.
FREE = (
    "options",
    "tuning.scores",
    "scores.*.test",
    "scores.*.best_on_val",
    "provenance.packages",
    "dataset.inputs",
    "networks",
    "teacher.options",
)

#: By schema version, what turns the JSON of such a record into that of the next version. Files are never rewritten.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: dict,  # without dataset.classes and dataset.inputs, which nobody can tell afterwards
    2: lambda data: data | {part: _present(data.get(part)) for part in ("scores", "models")},
}


def _present(parts: dict[str, Any] | None) -> dict[str, Any]:
    """Names what there is: a part that a run did not have was null up to schema version 2."""
    return {name: part for name, part in (parts or {}).items() if part is not None}


def spec_hash(config: Mapping[str, Any], exclude: tuple[str, ...] = SPEC_EXCLUDE) -> str:
    """Digests a resolved config without the ``exclude`` keys, so that runs that differ in a seed alone agree.

    A teacher seed other than 0 counts as 0: several teachers are an axis of a specification, as seeds are.

    Args:
        config: The resolved config.
        exclude: Dotted keys that do not change the number.
    """
    teacher = config.get("teacher")
    if isinstance(teacher, Mapping):
        # No corpus is as none was before there were any.
        kept = {key: value for key, value in teacher.items() if key != "corpus" or value}
        config = {**config, "teacher": {**kept, "seed": 0} if kept.get("seed") else kept}
    return digest(without(config, exclude))


def teacher_of(config: Mapping[str, Any]) -> Teacher:
    """Says how the teacher of a resolved config is made.

    Raises:
        KeyError: It is no whole config.
    """
    own = config["teacher"]
    data = {**(config.get("data") or {}), **(own.get("data") or {})}
    options: dict[str, Any] = {key: value for key, value in own.items() if key not in _NOT_TAUGHT}
    options["data"] = {key: value for key, value in data.items() if key not in _NOT_DATA}
    options["augment"] = own.get("augment") or {"name": "none"}
    if own.get("replay"):
        options["replay_dtype"] = own.get("replay_dtype")
    return Teacher(seed=own["seed"], options=options)


def content_hash(record: Record) -> str:
    """Digests everything in the record but its :data:`VOLATILE` fields, so that an edited number is noticed."""
    try:
        return _hash(record)
    except ValueError:  # something is not finite, and would be written as null and a flag
        return _hash(_finite(record))


def verify(record: Record) -> bool:
    """Tells whether the record is as it was written."""
    return record.content_hash == content_hash(record)


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
    digests = {name: _sha256(files[name]) for name in (CURVES, OUTCOMES) if name in files}
    record = _finite(record.model_copy(update={"files": digests or None}))
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
        if old.exists() and not final.exists():
            old.rename(final)
        raise KDBenchError(f"the record {final} cannot be written: {error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return final


def _sha256(content: Path | bytes | str) -> str:
    if isinstance(content, Path):
        try:
            data = content.read_bytes()
        except OSError as error:
            raise KDBenchError(f"the file {content} of the record cannot be read: {error}") from None
    else:
        data = content.encode() if isinstance(content, str) else content
    return sha256(data).hexdigest()


def read_record(path: Path, *, check_hash: bool = True) -> Record:
    """Reads a record from its folder or its ``run.json``.

    Args:
        path: The folder or the file.
        check_hash: Whether a record that was edited after it was written is refused.

    Raises:
        KDBenchError: The file is missing, empty, not JSON, of another schema version, incomplete or edited.
    """
    if not path.exists():
        raise KDBenchError(f"{absent(path)} (no run record; expected a run folder or its {RUN})")
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
    old = type(version) is int and version in UPGRADES
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
