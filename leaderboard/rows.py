"""Run records, streamed from folders into rows; broken ones are told and the rest goes on.

The API that the pages are built on (see also :mod:`leaderboard.boards`)::

    found = read([Path("results"), RECORDS])   # -> Found(rows, problems, copies, parsed)
    found.rows        # list[Row] (leaderboard.row), sorted by (task, method, spec_hash, seed, finished)
    found.problems    # list[Problem(path, reason)]: records that were refused, one line each
    row.score, row.of("scratch"), row.of("teacher")     # the primary metric on test, last epoch; None where absent
    dict(row.scores.get("student").items())             # every test metric of one role (Metrics, or None)
    row.figure("wall_s"), row.figure("params", "teacher")   # of the cost, of a model's size
    full_record(row)  # the whole Record of one row, read again: config options, terms, packages (for run pages)

Labels of a row (task, method, pair, dataset, metric names, …) are plain: no markup, no control characters, at most 200
characters; ``spec_hash``, ``task``, ``method`` and ``run_id`` fit into file names. ``command`` is one
``python -m kdbench`` line in which every word is quoted for a shell. ``reason`` and ``gap_reason`` are free text. All
of it is still text from strangers: pages escape it.
"""

from __future__ import annotations

import functools
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from stat import S_ISDIR
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml
from pydantic_core import from_json

from kdbench.base.digest import digest
from kdbench.base.machine import cores
from kdbench.configuration.network import architectures
from kdbench.errors import KDBenchError
from kdbench.records.record import CONFIG, RUN, parse_record, read_record, spec_hash, teacher_of
from kdbench.records.schema import Record, Teacher
from leaderboard.cache import RowCache
from leaderboard.row import (
    CONTROL,
    LABEL,
    Interner,
    Metrics,
    Parts,
    Row,
    flatten,
    no_collection,
    refuse_markup,
    values_of,
)
from leaderboard.verified import Verification, verified

#: The records that come with the package: what was accepted by pull request.
RECORDS = Path(__file__).resolve().parent / "records"
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: Axes whose options part settings, and the field of a row that has the name of one under its options.
AXES = {"augment": "augmenting", "quant": "quantising"}
#: What decides about the teacher in a configuration as the engine writes it.
_PARTS = tuple(re.compile(rb"^%s:\n(?:[ -].*\n)+" % key, re.MULTILINE) for key in (b"data", b"teacher"))
_NO_OPTIONS = ("name", "_target_")
#: Largest file that is read, and what is looked at closely; a record of sixty metrics has 20 kB.
LARGEST_FILE, USUAL_FILE = 8_000_000, 100_000
#: Files that one process reads at a time; with twice as many there are several processes.
SHARE = 2000
#: Seconds that a run may end ahead of this clock: clocks differ.
AHEAD = 3600.0
#: Letters of a path that are shown.
LONGEST_PATH = 300


@dataclass(frozen=True, slots=True)
class Problem:
    """A record that is not shown, and why, in one line."""

    path: str
    reason: str


class Found(NamedTuple):
    """What was found below the given folders.

    Attributes:
        rows: Sorted by :attr:`Row.order`.
        problems: Sorted by path.
        copies: Records that are in several of the folders, such as one of ``results/`` submitted to the board.
        parsed: Files that were read; the others came from the cache.
        empty: Those of the given folders that hold no record, not even a broken one.
        verified: What running a record again gave, by its content hash.
    """

    rows: list[Row]
    problems: list[Problem]
    copies: int
    parsed: int
    empty: tuple[Path, ...] = ()
    verified: Mapping[str, Verification] = MappingProxyType({})


def read(roots: Sequence[Path], cache: Path | None = None) -> Found:
    """Reads every record below ``roots``; what is broken becomes a problem and the rest goes on.

    Args:
        roots: Folders of records, single run folders, or single files.
        cache: Folder for what was read; a later call reads only files whose size or time differ. None keeps nothing.
    """
    with no_collection():
        return _read({Path(root).absolute(): Path(root) for root in roots}, cache)


def _read(roots: Mapping[Path, Path], cache: Path | None) -> Found:
    rows: list[Row] = []
    problems: list[Problem] = []
    intern = Interner()
    parsed = copies = 0
    empty = []
    paths: set[str] = set()
    now = time.time()
    runs: dict[tuple[str, float, float], tuple[str, int]] = {}  # a run, where it was found first and in which root
    for number, (root, given) in enumerate(roots.items()):
        kept = RowCache.load(cache, root, intern)
        before = len(problems)
        files = list(find(root, problems))
        if not files and len(problems) == before:
            empty.append(given)
        files = [file for file in files if file[0] not in paths]
        paths.update(path for path, _ in files)
        changed = {path: state for path, state in files if not kept.has(path, state)}
        parsed += len(changed)
        for path, result in _parse_all([(path, state[0]) for path, state in changed.items()], intern):
            if isinstance(result, Problem):
                problems.append(result)
            else:
                kept.put(path, changed[path], result)
        for path, _ in files:
            row = kept.get(path)
            if row is None:
                continue
            if row.finished > now + AHEAD:  # it would be the newest of its seed until then
                problems.append(Problem(path, f"it ends in the future, {row.finished_utc} UTC: which clock was that?"))
                continue
            first, place = runs.setdefault((row.content_hash, row.started, row.finished), (path, number))
            if first == path:
                rows.append(row)
            elif place == number:
                problems.append(Problem(path, f"the same run as {first}: remove one of them"))
            else:
                copies += 1
        kept.save()
    rows = sorted(_taught(list(_chosen(_paired(rows)))), key=lambda row: row.order)
    problems.sort(key=lambda problem: problem.path)
    return Found(rows, problems, copies, parsed, tuple(empty), verified(roots.values()))


def _paired(rows: Sequence[Row]) -> list[Row]:
    """Gives equal networks one name, whatever their pairs are called, and other networks another one."""
    names: dict[tuple[str, str], Counter[str]] = {}
    for row in rows:
        names.setdefault((row.task, row.networks or row.pair), Counter())[row.pair] += 1
    taken: set[tuple[str, str]] = set()
    called: dict[tuple[str, str], str] = {}
    for (task, networks), pairs in sorted(names.items(), key=lambda item: (-item[1].total(), item[0])):
        usual = sorted(pairs, key=lambda name: (-pairs[name], name))
        said = networks.rpartition(" #")[0]
        free = next((name for name in usual if (task, name) not in taken or not said), None)
        called[task, networks] = free or f"{usual[0]} ({said})"
        taken.add((task, called[task, networks]))
    return [replace(row, pairing=called[row.task, row.networks or row.pair]) for row in rows]


def _chosen(rows: Iterable[Row]) -> Iterator[Row]:
    """Names augmentations and quantisations by those of their options in which a task's rows of them differ."""
    rows = list(rows)
    named = {axis: _named({(row.task, *_axis(row, axis)) for row in rows}) for axis in AXES}
    for row in rows:
        own = {called: named[axis].get((row.task, *_axis(row, axis)), "") for axis, called in AXES.items()}
        yield replace(row, augmenting=own["augmenting"], quantising=own["quantising"]) if any(own.values()) else row


def _axis(row: Row, axis: str) -> tuple[str, str]:
    """Returns the name and the options of an augmentation or a quantisation."""
    return getattr(row, axis), getattr(row, f"{axis}_options")


def _taught(rows: Sequence[Row]) -> Iterator[Row]:
    """Names how teachers were made by what differs among the rows that else have one setting."""
    alike: dict[tuple[object, ...], Counter[str]] = {}
    for row in rows:
        alike.setdefault(_place(row), Counter())[row.teacher_options] += 1
    named = {place: _names_of_teachers(found) for place, found in alike.items() if len(found) > 1}
    for row in rows:
        name = named.get(_place(row), {}).get(row.teacher_options)
        yield replace(row, teaching=name) if name else row


def _place(row: Row) -> tuple[object, ...]:
    return row.task, row.pairing or row.pair, row.dataset, row.digest, row.fold, row.preset


def _names_of_teachers(found: Mapping[str, int]) -> dict[str, str]:
    """Names options of teachers by those that differ.

    An option that some lack came later than they did, and left them as they were: it does not part them from most.
    """
    options: dict[str, dict[str, str]] = {text: from_json(text) if text else {} for text in found}
    values: dict[str, Counter[str]] = {}
    for text, own in options.items():
        for key, value in own.items():
            values.setdefault(key, Counter())[value] += found[text]
    usual = {key: min(seen, key=lambda v: (-seen[v], v)) for key, seen in values.items() if len(seen) > 1}
    called = {}
    for text, own in options.items():
        said = " ".join(f"{key.removesuffix('.name')}={own.get(key, usual[key])}" for key in sorted(usual))
        called[text] = said if len(said) <= LABEL else f"#{digest(said, 6)}"
    return called


def _named(found: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str, str], str]:
    """Names each of those of one task and name by the options that differ."""
    alike: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for task, name, text in found:
        if text:
            alike.setdefault((task, name), {})[text] = from_json(text)
    called = {}
    for (task, name), known in alike.items():
        keys = sorted({key for options in known.values() for key in options})
        differ = [key for key in keys if len({options.get(key) for options in known.values()}) > 1]
        for text, options in known.items():
            said = " ".join([name, *(f"{key}={options[key]}" for key in differ if key in options)])
            called[task, name, text] = said if len(said) <= LABEL else f"{name} #{digest(text, 6)}"
    return called


def _parse_all(files: Sequence[tuple[str, int]], intern: Interner) -> Iterator[tuple[str, Row | Problem]]:
    """Parses files of known size, in several processes where they are many."""
    workers = min(cores(), len(files) // SHARE)
    if workers < 2:
        yield from ((path, _parse(path, size, intern)) for path, size in files)
        return
    shares = [files[i : i + SHARE] for i in range(0, len(files), SHARE)]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for results in pool.map(_parse_share, shares):
            for path, result in results:
                if isinstance(result, Problem):
                    yield path, result
                else:
                    yield path, intern.row(_kept(value, intern) for value in result)


def _kept(value: Any, intern: Interner) -> Any:
    """Returns a value of another process's row with the objects of this one."""
    if type(value) is Parts:
        return intern.join(value.names, [intern(*found) for found in value.values])
    return intern(*value) if type(value) is Metrics else value


def _parse_share(files: Sequence[tuple[str, int]]) -> list[tuple[str, tuple[Any, ...] | Problem]]:
    intern = Interner()
    with no_collection():
        results = [(path, _parse(path, size, intern)) for path, size in files]
    # Plain tuples travel between processes much faster than rows.
    return [(path, result if isinstance(result, Problem) else values_of(result)) for path, result in results]


def full_record(row: Row) -> Record:
    """Reads the whole record of a row again."""
    return read_record(Path(row.path), check_hash=False)


def _parse(path: str, size: int, intern: Interner) -> Row | Problem:
    shown = path.encode("utf-8", "backslashreplace").decode()
    if shown != path:
        return Problem(shown, "a name in its path is not UTF-8, expected one: rename it")
    try:
        if size > LARGEST_FILE:
            raise KDBenchError(f"{size:,} bytes, expected at most {LARGEST_FILE:,}: this is no run record")
        text = Path(path).read_bytes()
        record = parse_record(text, path)
        if record.networks is None:
            record = record.model_copy(update={"networks": networks_of(Path(path))})
        if record.teacher is None:
            record = _with_teacher(record, Path(path))
        axes = axes_of(Path(path)) if {record.augment, record.quant} != {"none"} else {}
        # Nearly no record can hold markup or an endless string, and looking takes as long as the rest.
        if b"<" in text or b"\\u" in text or size > USUAL_FILE:
            refuse_markup("", record.model_dump(mode="json", exclude={"reason", "gap_reason"}))
        return flatten(record, path, intern, axes)
    except OSError as error:
        return Problem(path, f"cannot be read ({error.strerror})")
    except KDBenchError as error:
        return Problem(path, _one_line(path, error))


def _with_teacher(record: Record, path: Path) -> Record:
    """Adds what a record of before it told of its teacher has in the configuration beside it.

    The seed of the teacher was a part of its specification's hash then.
    """
    teacher = _of_teacher(path)
    changes: dict[str, Any] = {"teacher": teacher}
    if teacher is not None and teacher.seed:
        data = {"dataset": record.dataset.digest} if record.dataset else {}
        hashed = _configured(path, lambda config: spec_hash({**config, **data}))
        changes["spec_hash"] = hashed or record.spec_hash
    return record.model_copy(update=changes)


def _of_teacher(path: Path) -> Teacher | None:
    try:
        text = path.with_name(CONFIG).read_bytes()[:USUAL_FILE]
    except OSError:
        return None
    # Two parts out of thirty are needed, and thousands of runs have the same.
    parts = tuple(match[0] for match in (re.search(part, text) for part in _PARTS) if match)
    return _teacher_of(parts if len(parts) == len(_PARTS) else (text,))


@functools.lru_cache(512)
def _teacher_of(parts: tuple[bytes, ...]) -> Teacher | None:
    try:
        text = b"".join(parts)
        return None if b"&" in text else teacher_of(yaml.load(text, Loader=_Loader))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, yaml.YAMLError):
        return None


def networks_of(path: Path) -> dict[str, dict[str, Any]] | None:
    """Returns the networks of a record of before it named them, from the configuration beside it."""
    return _configured(path, lambda config: architectures(config["pair"]))


def axes_of(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the options of a record's augmentation and quantisation, from the configuration beside it."""
    found = _configured(path, lambda config: {axis: dict(config[axis]) for axis in AXES})
    return {axis: {k: v for k, v in own.items() if k not in _NO_OPTIONS} for axis, own in (found or {}).items()}


def _configured(path: Path, take: Callable[[Any], Any]) -> Any:
    """Returns what is taken of the configuration beside a record, None where that cannot be read."""
    try:
        text = path.with_name(CONFIG).read_bytes()
        # Aliases may unfold without end; what the engine wrote has none.
        return None if b"&" in text else take(yaml.load(text[:USUAL_FILE], Loader=_Loader))
    except (OSError, ValueError, TypeError, LookupError, RecursionError, yaml.YAMLError):
        return None


def _one_line(path: str, error: KDBenchError) -> str:
    text = CONTROL.sub(" ", str(error).removeprefix(f"{path}: "))
    return text if len(text) <= 400 else f"{text[:400]}…"


def find(root: Path, problems: list[Problem]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yields the path of every ``run.json`` below ``root`` in a fixed order, with its size and time of change.

    Folders whose names begin with a dot hold what is being written and the sweeps' notes. A folder that links lead to
    again, such as a link to a parent, is read once. What cannot be looked at is added to ``problems``.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [str(root)]
    while waiting:
        path = waiting.pop()
        try:
            state = os.stat(path)
            if not S_ISDIR(state.st_mode):
                yield path, (state.st_size, state.st_mtime_ns)
                continue
            if (state.st_dev, state.st_ino) in seen:
                continue
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
            seen.add((state.st_dev, state.st_ino))
            files = [entry.path for entry in entries if entry.name == RUN and os.path.isfile(entry.path)]
            # What the entry says costs nothing; a link may lead to itself, which only os.path takes for no folder.
            folders = [
                entry.path
                for entry in entries
                if not entry.name.startswith(".")
                and (os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir())
            ]
        except OSError as error:
            shown = path if len(path) <= LONGEST_PATH else f"{path[:LONGEST_PATH]}…"
            problems.append(Problem(shown, f"cannot be read ({error.strerror}): what is below it is not shown"))
            continue
        waiting += [*reversed(folders), *reversed(files)]
