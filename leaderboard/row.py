"""One run as a flat, typed row, its labels checked."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import json
import math
import operator
import re
import statistics
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import BaseModel

from kdbench.base.digest import digest
from kdbench.base.outcomes import OUTCOMES
from kdbench.configuration.network import identity
from kdbench.errors import KDBenchError
from kdbench.records.schema import Record, RoleScores, Sizes, Tuning

#: Longest name, longest text, largest number that makes sense anywhere.
LABEL, TEXT, LARGEST = 200, 20_000, 1e30

#: Of a run whose augmentation and quantisation have no options, or whose configuration is not there.
NO_AXES: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
_MARKUP = re.compile(r"<[A-Za-z/!?]")
#: Control characters; those that reverse the text around them are among them.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_WORD = re.compile(r"[\w.,:*\[\]{}+-]{1,40}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=,-]*")
# What shlex.quote makes of words: pasted into a shell it runs kdbench and nothing else.
_COMMAND = re.compile(r"python -m kdbench(?: (?:[\w@%+=:,./-]++|'[^']*+'|\"'\")++)*+", re.ASCII)


class Metrics(NamedTuple):
    """Numbers by name, packed: nan stands for null. Equal ones are one object."""

    names: tuple[str, ...]
    values: array[float]

    def get(self, name: str) -> float | None:
        """Returns one number, None where there is none."""
        value = self.values[self.names.index(name)] if name in self.names else None
        return None if value is None or value != value else value

    def items(self) -> Iterator[tuple[str, float | None]]:
        """Yields every number."""
        for name, value in zip(self.names, self.values, strict=True):
            yield name, None if value != value else value


class Parts(NamedTuple):
    """What is known of each of several models, by its name in the record."""

    names: tuple[str, ...]
    values: tuple[Metrics, ...]

    def get(self, name: str) -> Metrics | None:
        """Returns what is known of one, None where the record does not have it."""
        return self.values[self.names.index(name)] if name in self.names else None


NO_METRICS = Metrics((), array("d"))


@dataclass(frozen=True, slots=True)
class Row:
    """One run. Scores are on the test set after the last epoch, in the units of the task.

    Attributes:
        path: Its ``run.json``; ``config.yaml``, ``metrics.csv`` and ``preview.png`` lie beside it.
        role: ``student``, or ``teacher`` for a record of the teacher alone; ``score`` and ``best_on_val`` are this
            role's.
        reference: The student was trained alone: the method has no options and changed nothing, as ``none``.
        trials: Tuning trials that the run's weights were chosen by; 0 is untuned.
        factor: The factor on the weights that tuning chose; ``tuning`` has the validation score of each trial.
        score: Primary metric.
        scores: Every test metric, by what was scored.
        models: Sizes and latencies, by model: parameters, multiply-accumulates and milliseconds of one sample, bytes.
        cost: Of the student stage; passes are forward passes per training sample.
        started: UTC, seconds since 1970; ``finished`` likewise.
        networks: The pair's networks, alike for equal ones and no others; empty where nothing tells.
        pairing: What the pair of these networks is called over all rows, set by :func:`leaderboard.rows.read`.
        augment_options: Options of the augmentation, alike for equal ones and no others; empty where there are none or
            nothing tells. ``quant_options`` likewise.
        augmenting: What the augmentation under these options is called over all rows, set as ``pairing`` is;
            ``quantising`` likewise.
        teacher_seed: Of the teacher's own training.
        teacher_options: How the teacher is made, alike for equal ones; empty where nothing tells. ``teaching`` is what
            that is called over the rows of a setting.
        trial_seeds: Under how many seeds each factor was tried; ``trial_spread`` is the standard deviation of trials of
            one factor, where there are several.
        outcomes: SHA-256 of what each test sample contributed, in a file beside the record; empty where there is none.
    """

    path: str
    run_id: str
    spec_hash: str
    content_hash: str
    code_digest: str
    protocol: str
    status: str
    reason: str | None
    flags: tuple[str, ...]
    task: str
    method: str
    pair: str
    augment: str
    quant: str
    preset: str
    seed: int
    fidelity: str
    origin: str
    command: str
    role: str
    reference: bool
    trials: int
    factor: float
    dataset: str | None
    embedded: bool | None
    digest: str | None
    fold: str | None
    train_size: int | None
    val_size: int | None
    test_size: int | None
    primary: str | None
    higher_is_better: bool | None
    score: float | None
    best_on_val: float | None
    scores: Parts
    gap_closed: float | None
    gap_reason: str | None
    cost: Metrics
    models: Parts
    commit: str | None
    dirty: bool | None
    config_digest: str
    cpu: str
    gpu: str | None
    cores: int
    threads: int
    started: float
    finished: float
    networks: str = ""
    pairing: str = ""
    augment_options: str = ""
    quant_options: str = ""
    augmenting: str = ""
    quantising: str = ""
    tuning: Metrics = NO_METRICS
    teacher_seed: int = 0
    teacher_options: str = ""
    teaching: str = ""
    outcomes: str = ""
    trial_seeds: int = 0
    trial_spread: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the run came to its end."""
        return self.status == "ok"

    @property
    def has_score(self) -> bool:
        """Whether the run came to a score; that of one which is ok may have been no number."""
        return self.ok and self.score is not None

    @property
    def main(self) -> Metrics | None:
        """Every test metric of the role that the run is about."""
        return self.scores.get(self.role)

    def of(self, name: str) -> float | None:
        """Returns the primary metric of a model that was scored (``scratch``)."""
        found = self.scores.get(name)
        return found.get(self.primary) if found and self.primary else None

    def figure(self, name: str, model: str = "student") -> float | None:
        """Returns a number of the cost (``wall_s``), or of a model's size (``params``).

        A student that rounds in floating point is stored as the converted one.
        """
        found = self.cost.get(name)
        if found is None and (size := self.models.get(model)) is not None:
            found = size.get(name)
        if found is None and model == "student" and name in _STORED:
            return self.figure(name, "converted")
        return found

    @property
    def tried(self) -> dict[float, float]:
        """The validation score of each factor that tuning tried, by the factor; of a trial without one nothing."""
        found = {}
        for factor, value in self.tuning.items():
            with contextlib.suppress(ValueError):
                if value is not None and math.isfinite(float(factor)):
                    found[float(factor)] = value
        return dict(sorted(found.items()))

    @property
    def finished_utc(self) -> str:
        """When the run ended, to the minute."""
        return datetime.fromtimestamp(self.finished, UTC).strftime("%Y-%m-%d %H:%M")

    @property
    def order(self) -> tuple[Any, ...]:
        """What rows are sorted by."""
        own = self.task, self.method, self.spec_hash, self.seed, self.teacher_seed
        return *own, self.finished, self.run_id, self.path


FIELDS = tuple(f.name for f in dataclasses.fields(Row))
#: The values of a row, in the order of its fields.
values_of = operator.attrgetter(*FIELDS)
#: Numbers of a model as it is stored.
_STORED = ("bits", "packed_bytes")
#: Fields that are names, as the record has them.
_LABELS = ("run_id", "task", "method", "pair", "augment", "quant", "preset", "fidelity", "origin")
_TEXTS = tuple(i for i, f in enumerate(dataclasses.fields(Row)) if str(f.type).startswith("str"))
_NUMBERS = tuple(f.name for f in dataclasses.fields(Row) if str(f.type).startswith(("int", "float")))


@dataclass
class Interner:
    """Keeps one object of what many rows share: the teacher and the scratch twin are the same for every method."""

    names: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)
    metrics: dict[tuple[int, bytes], Metrics] = field(default_factory=dict)  # by the identity of their names
    parts: dict[tuple[int, ...], Parts] = field(default_factory=dict)  # by those of names and values

    def __call__(self, names: Iterable[str], values: Iterable[float | None]) -> Metrics:
        """Packs metrics."""
        kept = self._kept(names)
        packed = array("d", [math.nan if v is None else v for v in values])
        same = id(kept), packed.tobytes()
        known = self.metrics.get(same)
        if known is None:
            if any(abs(v) >= LARGEST for v in packed):
                name = next(n for n, v in zip(kept, packed, strict=True) if abs(v) >= LARGEST)
                raise KDBenchError(f"{name}: a number beyond {LARGEST:g} is out of range")
            known = self.metrics[same] = Metrics(kept, packed)
        return known

    def join(self, names: Iterable[str], values: Iterable[Metrics]) -> Parts:
        """Joins what is known of several models, all of it from here."""
        found = Parts(self._kept(names), tuple(values))
        return self.parts.setdefault((id(found.names), *map(id, found.values)), found)

    def _kept(self, names: Iterable[str]) -> tuple[str, ...]:
        key = tuple(names)
        kept = self.names.get(key)
        if kept is None:
            kept = self.names[key] = tuple(label("metric", name) for name in key)
        return kept

    def row(self, values: Iterable[Any]) -> Row:
        """Makes a row of values in the order of the fields; its strings come from elsewhere, its metrics from here."""
        kept = list(values)
        for place in _TEXTS:
            if kept[place] is not None:
                kept[place] = sys.intern(kept[place])
        return Row(*kept)


@functools.lru_cache(4096)  # most names are those of other runs too
def label(where: str, value: str) -> str:
    """Returns a name that is safe to show.

    Raises:
        KDBenchError: It is empty, too long, or holds markup or control characters.
    """
    if not 0 < len(value) <= LABEL:
        raise KDBenchError(f"{where}: {len(value)} characters, expected 1 to {LABEL}: {value[:40]!r}")
    if CONTROL.search(value) or "<" in value or ">" in value:
        raise KDBenchError(f"{where}: markup or control characters in {value[:80]!r}, expected a plain name")
    return sys.intern(value)


def flatten(
    record: Record, path: str, intern: Interner, axes: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
) -> Row:
    """Makes a row of a record.

    Args:
        record: The record.
        path: Its file.
        intern: Keeps what rows share.
        axes: Options of its augmentation and its quantisation, by ``augment`` and ``quant``.

    Raises:
        KDBenchError: A string is no plain label or text, a command would run something else, a number is out of range.
    """
    scores, data, origin, tuning = record.scores, record.dataset, record.provenance, record.tuning
    role = "teacher" if "student" not in scores and "teacher" in scores else "student"
    primary = record.primary.name if record.primary else None
    main = scores.get(role)
    best = main.best_on_val if main else None
    for name in best or ():
        if main and name not in main.test:
            label("metric", name)

    def score(scored: RoleScores | None) -> float | None:
        return scored.test[primary] if scored and primary else None

    alone = "scratch" not in scores or score(scores.get("student")) == score(scores["scratch"])
    # Arguments by names that are not interned are matched letter by letter.
    copied: dict[str, Any] = {name: label(name, getattr(record, name)) for name in _LABELS}
    copied |= {sys.intern(f"{split}_size"): size for split, size in _fields(Sizes, data and data.sizes).items()}
    row = Row(
        path=path,
        **copied,
        spec_hash=_name("spec_hash", record.spec_hash),
        content_hash=_name("content_hash", record.content_hash or ""),
        code_digest=label("code_digest", record.code_digest or "none"),
        protocol=record.protocol,
        status=record.status,
        reason=_text("reason", record.reason),
        flags=tuple(label("flags", flag) for flag in record.flags),
        seed=record.seed,
        command=_command(record.command),
        role=role,
        reference=role == "student" and not record.options and alone,
        trials=tuning.trials if tuning else 0,
        factor=tuning.factor if tuning else 1.0,
        dataset=label("dataset.name", data.name) if data else None,
        embedded=data.embedded if data else None,
        digest=label("dataset.digest", data.digest) if data else None,
        fold=None if data is None or data.fold is None else label("dataset.fold", str(data.fold)),
        primary=None if primary is None else label("primary.name", primary),
        higher_is_better=record.primary.higher_is_better if record.primary else None,
        score=score(main),
        best_on_val=best.get(primary) if best and primary else None,
        scores=intern.join(scores, [intern(scored.test, scored.test.values()) for scored in scores.values()]),
        cost=_numbers(record.cost, intern),
        models=intern.join(record.models, [_numbers(size, intern) for size in record.models.values()]),
        gap_closed=record.gap_closed,
        gap_reason=_text("gap_reason", record.gap_reason),
        commit=label("provenance.commit", origin.commit) if origin.commit else None,
        dirty=origin.dirty,
        config_digest=label("provenance.config_digest", origin.config_digest),
        cpu=label("provenance.hardware.cpu", origin.hardware.cpu or "unknown"),
        gpu=label("provenance.hardware.gpu", origin.hardware.gpu) if origin.hardware.gpu else None,
        cores=origin.hardware.cores,
        threads=origin.threads,
        started=origin.started.timestamp(),
        finished=origin.finished.timestamp(),
        networks=label("networks", identity(record.networks)) if record.networks else "",
        augment_options=sys.intern(_options(axes.get("augment", {}))),
        quant_options=sys.intern(_options(axes.get("quant", {}))),
        tuning=intern(tuning.scores, tuning.scores.values()) if tuning else NO_METRICS,
        teacher_seed=record.teacher.seed if record.teacher else 0,
        trial_seeds=_trial_seeds(tuning),
        trial_spread=_trial_spread(tuning),
        outcomes=label("files", found) if (found := (record.files or {}).get(OUTCOMES)) else "",
        teacher_options=sys.intern(_options(_without_nulls(record.teacher.options))) if record.teacher else "",
    )
    for name in _NUMBERS:
        value = getattr(row, name)
        if value is not None and not -LARGEST < value < LARGEST:
            raise KDBenchError(f"{name}: a number of {len(str(value))} digits is out of range")
    return row


def _trial_seeds(tuning: Tuning | None) -> int:
    if tuning is None or not tuning.trials:
        return 0
    return len(tuning.seed) if isinstance(tuning.seed, list) else 1


def _trial_spread(tuning: Tuning | None) -> float | None:
    """Pools the variances of the trials of each factor; a factor that diverged under a seed does not count."""
    tried = list((tuning.by_seed or {}).values()) if tuning else []
    whole = [[v for v in scores if v is not None] for scores in tried if len(scores) > 1 and None not in scores]
    return math.sqrt(statistics.fmean(statistics.variance(scores) for scores in whole)) if whole else None


def _options(options: Mapping[str, Any]) -> str:
    """Writes options as one text, dotted and sorted; what is no plain word is written as a digest."""
    return json.dumps(dict(sorted(_flat(options))), separators=(",", ":")) if options else ""


def _without_nulls(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out what is null: an option that came later is absent from earlier runs."""
    return {k: _without_nulls(v) if isinstance(v, Mapping) else v for k, v in options.items() if v is not None}


def _flat(options: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in options.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        else:
            said = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            plain = (part if _WORD.fullmatch(part) else f"#{digest(part, 6)}" for part in (name, said))
            yield next(plain), next(plain)


def _numbers(part: BaseModel | None, intern: Interner) -> Metrics:
    """Packs the numbers of a part of the record; a number too long for a float is out of range."""
    found = {k: v for k, v in vars(part).items() if not isinstance(v, str)} if part is not None else {}
    try:
        return intern(found, found.values())
    except OverflowError:
        name = max(found, key=lambda k: abs(found[k] or 0))
        raise KDBenchError(f"{name}: a number of {len(str(found[name]))} digits is out of range") from None


def _fields(kind: type[BaseModel], part: BaseModel | None) -> dict[str, Any]:
    """Returns the fields of a part of the record; each is None where the record lacks the part."""
    return dict.fromkeys(kind.model_fields) if part is None else vars(part)


def _name(where: str, value: str) -> str:
    if not _NAME.fullmatch(value):
        raise KDBenchError(f"{where}: found {value[:80]!r}, expected letters and digits")
    return label(where, value)


def _command(value: str) -> str:
    if len(value) > TEXT or CONTROL.search(value) or _MARKUP.search(value) or not _COMMAND.fullmatch(value):
        raise KDBenchError(f"command: found {value[:80]!r}, expected python -m kdbench and quoted words")
    return value


def _text(where: str, value: str | None) -> str | None:
    if value is not None and len(value) > TEXT:
        raise KDBenchError(f"{where}: {len(value)} characters, expected at most {TEXT}")
    return None if value is None else CONTROL.sub(" ", value)


def refuse_markup(where: str, value: Any) -> None:
    """Looks for markup and endless strings anywhere in a JSON-like value.

    Raises:
        KDBenchError: There is some.
    """
    if isinstance(value, str):
        if len(value) > TEXT:
            raise KDBenchError(f"{where}: {len(value)} characters, expected at most {TEXT}: {value[:40]!r}")
        if _MARKUP.search(value):
            raise KDBenchError(f"{where}: markup in {value[:80]!r}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            refuse_markup(where, key)
            refuse_markup(f"{where}.{key}" if where else key, item)
    elif isinstance(value, list):
        for item in value:
            refuse_markup(where, item)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Rows hold no cycles, and the collector would look at 100,000 of them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
