"""What several kinds of page have in common: numbers as text, cells of a group, columns."""

from __future__ import annotations

import math
import os
import shlex
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import replace

from kdbench.records.schema import idle_terms
from leaderboard.boards import Board, directed, lower_is_better
from leaderboard.charts import Dot, short
from leaderboard.costs import training
from leaderboard.exports import NONE, Cell, Column, Direction
from leaderboard.foreign import foreign, words
from leaderboard.groups import Difference, Group
from leaderboard.row import Row
from leaderboard.stats import Estimate
from leaderboard.verified import Verification

#: Keys of a command that another run of its setting says anew, or that are its owner's.
ANEW = {"task", "method", "pair", "preset", "seed", "results", "cache", "logger", "rerun"}
#: Those that the columns of a table say already, or that do not change a number.
SAID = ANEW | {"augment", "quant", "role", "teacher.seed", "tuning.trials"}
SAID |= {"data.root", "data.workers", "trainer.threads"}
#: How the keys begin that say how it was started.
OWN = ("-", "hydra", "logger.")


def digits(values: Iterable[float | None]) -> int:
    """Returns how many decimals a column of these values needs."""
    largest = max((abs(v) for v in values if v is not None), default=1.0)
    return 2 if largest >= 10 else 3 if largest >= 1 else 4


def fixed(value: float, places: int, plus: bool = False) -> str:
    """Writes a number with a true minus sign, and none on a zero."""
    rounded = round(value, places) + 0.0
    return format(rounded, f"{'+' if plus and rounded else ''}.{places}f").replace("-", "−")


def estimate(found: Estimate | None, places: int, *, plus: bool = False, percent: bool = False) -> Cell:
    """Makes a cell ``mean ± half of the 95% interval``; an interval that is not symmetric is written out."""
    if found is None:
        return Cell()
    scale, unit = (100.0, " %") if percent else (1.0, "")
    text = fixed(scale * found.mean, places, plus)
    if found.low is not None and found.high is not None:
        up, down = scale * (found.high - found.mean), scale * (found.mean - found.low)
        if abs(up - down) <= 1e-6 * max(abs(up), abs(down)) + 1e-12:
            text += f" ± {fixed(up, places)}"
        else:
            text += f" [{fixed(scale * found.low, places)}, {fixed(scale * found.high, places)}]"
    note = None if found.n > 1 else "one seed: no interval"
    return Cell(text + unit, found.mean, found.low, found.high, note=note)


def difference(found: Difference, places: int) -> Cell:
    """Makes a cell of a paired difference, marked where it survives the correction for all that are compared."""
    if found.estimate is None:
        return Cell(note=found.reason)
    cell = estimate(found.estimate, places, plus=True)
    cell.css = {"better": "good", "worse": "bad"}.get(found.verdict or "", "")
    if found.corrected is None:
        cell.note = "one seed: not told apart"
    elif found.p is not None:
        told = "" if found.verdict != "open" else "not told apart: "
        cell.note = f"{told}p = {found.p:.2g} alone, {found.corrected:.2g} corrected for {found.family} comparisons"
    return cell


def gap(group: Group) -> Cell:
    """Makes the cell of the gap closed."""
    cell = estimate(group.gap, 0, percent=True)
    if group.gap is not None:
        said = [f"of {group.gap.n} seed{'s' * (group.gap.n > 1)}"]
        if len(group.teachers) > 1:
            said[0] += f" × {len(group.teachers)} teachers"
        if group.gap.n > 1 and group.gap.low is None:
            said.append("no interval: over these seeds alone the headroom may be nothing")
        cell.note = "; ".join([*said, *filter(None, [group.gap_reason])])
    elif group.gap_reason:
        cell.note = group.gap_reason
    return cell


def plain(value: float | None, places: int | None = None) -> Cell:
    """Makes a cell of a number: rounded to ``places``, else short; one that is not finite is absent."""
    if value is None or not math.isfinite(value):
        return Cell()
    return Cell(short(value) if places is None else fixed(value, places), value)


def count(value: int | None) -> Cell:
    """Makes a cell of a whole number."""
    return Cell() if value is None else Cell(str(value), value)


def text(value: str | None, href: str | None = None) -> Cell:
    """Makes a cell of text."""
    return Cell(value or NONE, href=href)


def percent_dot(label: str, found: Estimate) -> Dot:
    """Makes a row of a dot plot of shares."""
    low, high = (None if end is None else 100 * end for end in (found.low, found.high))
    return Dot(label, 100 * found.mean, low, high)


def rank(group: Group, block: int = 0) -> Cell:
    """Makes the cell of a place, a range; places exist within a block of rows only, by which they are sorted first."""
    if group.rank is None:
        return Cell(note=group.unranked)
    best, worst = group.rank
    return Cell(
        str(best) if best == worst else f"{best}–{worst}", best, best, worst, order=1e8 * block + 1e4 * best + worst
    )


def tail(path: str) -> str:
    """Returns ``task/method/run/run.json``: where a record lies, without what is only true on one machine."""
    return "/".join(path.replace(os.sep, "/").rsplit("/", 4)[-4:])


def overrides(command: str, said: Container[str] = SAID) -> str:
    """Returns the words of a command but those whose keys are ``said``, quoted for a shell."""
    try:
        found = words(command)[3:]
    except ValueError:
        return ""
    keys = [word.partition("=")[0].lstrip("+~") for word in found]
    kept = (word for key, word in zip(keys, found, strict=True) if key not in said and not key.startswith(OWN))
    return shlex.join(kept)


def setting(board: Board) -> str:
    """Names what the groups of a board have in common, in a few words."""
    own = board.setting
    parts = [own.pair, own.preset, own.dataset]
    parts += [f"fold {own.fold}"] if own.fold else []
    parts += [part for part in (own.augment, own.quant) if part != "none"]
    parts += [f"teacher {own.teacher}"] if own.teacher else []
    return " · ".join(parts)


def settings(boards: Iterable[Board]) -> list[str]:
    """Names boards; those of one name by what differs: samples to learn from, else digest of the data or protocol."""
    boards = list(boards)
    names = [setting(board) for board in boards]
    extras = (
        lambda board: f"{board.groups[0].newest.train_size} train" if board.groups[0].newest.train_size else "",
        lambda board: f"digest {board.setting.digest[:8]}",
        lambda board: f"protocol {board.setting.protocol}",
    )
    for extra in extras:
        alike: dict[str, list[int]] = {}
        for i, name in enumerate(names):
            alike.setdefault(name, []).append(i)
        for same in alike.values():
            said = [extra(boards[i]) for i in same]
            if len(same) > 1 and len(set(said)) > 1:
                for i, more in zip(same, said, strict=True):
                    names[i] = " · ".join(filter(None, (names[i], more)))
    return names


def labels(board: Board) -> dict[int, str]:
    """Names the groups of a board shortly, by id: those of one method by tuning, then by bits, then by their hash."""
    names = [group.method for group in board.groups]
    extras = (
        lambda g: f", {g.trials} trials",
        lambda g: f", {short(g.cost.bits)} bits" if g.cost.bits else "",
        lambda g: f" #{g.spec_hash[:5]}",
    )
    for extra in extras:
        counts = Counter(names)
        tried = [n + extra(g) if counts[n] > 1 else n for n, g in zip(names, board.groups, strict=True)]
        names = tried if len(set(tried)) > len(set(names)) else names
    return {id(group): name for group, name in zip(board.groups, names, strict=True)}


def better(name: str, board: Board) -> Direction | None:
    """Returns the direction of a metric, None where it has none."""
    if name != board.primary and not directed(name):
        return None
    up = board.higher_is_better if name == board.primary else not lower_is_better(name)
    return "high" if up else "low"


#: Roles that few runs have.
RARE = (
    Column("peer", "Peer", "The model trained together with the student: test, last epoch.", "number"),
    Column("teacher_privileged", "Teacher privileged", "With its privileged input: test, last epoch.", "number"),
    Column("scratch_matched", "Scratch, same compute", "The student alone, with the method's compute.", "number"),
    Column("converted", "Converted", "The student as it is stored and run: test, last epoch.", "number"),
)

COST = (
    Column("params", "Params", "Parameters of the student as it is deployed.", "number", "low"),
    Column("macs", "MACs", "Multiply-accumulates of the student for one sample.", "number", "low"),
    Column(
        "latency_ms",
        "Latency",
        "Of one sample in ms: median, fastest and slowest run of all with this network and machine.",
        "estimate",
        "low",
    ),
    Column(
        "student_cost",
        "Training, student",
        "Samples seen times forward passes of the student, in those of the scratch twin's whole training.",
        "number",
        "low",
    ),
    Column(
        "teacher_cost",
        "Training, teacher",
        "Samples seen times forward passes of the teacher, in those of the scratch twin's whole training.",
        "number",
        "low",
    ),
    Column("bytes", "Bytes", "Size of the student on disk, as floats.", "number", "low", shown=False),
    Column("packed_bytes", "Packed", "Size of its packed weights on disk, all overhead in it.", "number", "low", False),
    Column("coded_bytes", "Coded", "What an entropy code would make of that file.", "number", "low", shown=False),
    Column("bits", "Bits", "Of a packed weight, on average; ranges and points aside.", "number", "low", shown=False),
    Column("added_params", "Added", "Parameters that only training has.", "number", "low", shown=False),
    Column("epochs", "Epochs", "", "number", shown=False),
    Column(
        "wall_s", "Wall s", "Seconds of the student stage, on the machine of the run.", "number", "low", shown=False
    ),
)


def cost_cells(group: Group, board: Board) -> list[Cell]:
    """Makes the cells of :data:`COST`."""
    cost = group.cost
    further = (cost.bytes, cost.packed_bytes, cost.coded_bytes, cost.bits, cost.added_params, cost.epochs, cost.wall_s)
    first = [plain(cost.params), plain(cost.macs), latency(group)]
    return [*first, *(_times(v) for v in training(group, board)), *(plain(v) for v in further)]


def _times(value: float | None) -> Cell:
    cell = plain(value)
    return cell if value is None else replace(cell, text=f"{cell.text} ×")


def latency(group: Group) -> Cell:
    """Makes the cell of the latency that all runs with one network on one machine share."""
    found = group.latency
    if found is None:
        return Cell()
    text, note = short(found.mean), f"{found.n} run{'s' * (found.n > 1)} of this network on {group.newest.cpu}"
    if found.low is not None and found.high is not None:
        note += f": {short(found.low)} to {short(found.high)} ms, beside what else the machine did"
    return Cell(text, found.mean, found.low, found.high, note=note)


def verified(found: Verification | None) -> Cell:
    """Makes the cell of what running a record again gave."""
    if found is None:
        return Cell("not verified")
    note = f"run {found.run_id} on {found.machine or 'no machine'}, torch {found.torch or 'unknown'}"
    if found.largest is not None and found.verdict != "bitwise":
        note += f": differs by {short(found.largest)}, tolerance {short(found.tolerance)}"
    return Cell(f"{found.verdict}, {found.date}", note=note, css="good" if found.ok else "bad")


def state(row: Row) -> str:
    """Says what became of a run."""
    if row.ok:
        return row.status if row.has_score else f"{row.status}, but its {row.primary} is no number"
    return f"{row.status}: {row.reason}" if row.reason else row.status


def note(group: Group) -> str:
    """Says why a row is grey or has no rank, which of its seeds came to nothing, and which terms did nothing."""
    scored = sum(row.has_score for row in group.rows)
    silent = len(group.rows) - scored - group.failed - group.diverged
    counts = (
        (group.failed, "failed"),
        (group.diverged, "diverged"),
        (silent, "without a score"),
        (group.outside, f"not counted, outside of {grid(group)}"),
    )
    lost = [f"{n} {what}" for n, what in counts if n]
    why = group.note or (group.unranked if group.rank is None else None)
    said = [
        why,
        runs_foreign(group.newest),
        mixed(group),
        ", ".join(lost),
        *idle(group),
        group.trial_note,
        *doubts(group),
    ]
    return "; ".join(filter(None, said))


def grid(group: Group) -> str:
    """Says which seeds and teachers are behind the score of a group, as a count."""
    seeds, teachers = len(group.seeds), len(group.teachers)
    said = f"{seeds} seed{'s' * (seeds != 1)}"
    return f"{said} × {teachers} teachers" if teachers > 1 else said


def over(found: Estimate | None, teachers: int = 1) -> str:
    """Says what an interval is over."""
    if found is None or found.low is None:
        return NONE
    axes = ["seeds", *["teachers"] * (teachers > 1), *[f"{found.samples} test samples"] * (found.samples > 0)]
    return " × ".join(axes)


def one_of_each_teacher(group: Group) -> list[Row]:
    """Returns a run of each teacher: under one all seeds have the same trials."""
    return list({row.teacher_seed: row for row in group.scored}.values())


def tuned(row: Row, spread: float | None = None) -> list[str]:
    """Says what is doubtful of a factor: that others did as well on validation, that a better one may lie beyond.

    Args:
        row: The run.
        spread: Standard deviation of one trial, where it is known.
    """
    found = row.tried
    if row.factor not in found or len(found) < 2:
        return []
    ties = [f"{factor:g}" for factor, v in found.items() if v == found[row.factor] and factor != row.factor]
    said = [f"tied with {', '.join(ties)}"] if ties else []
    lead = min(abs(v - found[row.factor]) for factor, v in found.items() if factor != row.factor)
    error = None if spread is None else spread * math.sqrt(2 / max(1, row.trial_seeds))
    if not ties and error is not None and lead < error:
        said.append(f"ahead by {short(lead)}, where trials of one factor differ by {short(error)}")
    return said + ["at the edge of what was tried"] * (row.factor in (min(found), max(found)))


def doubts(group: Group) -> list[str]:
    """Says which factors of a group are doubtful, of several teachers each once."""
    said = ((row, " and ".join(tuned(row, group.trial_spread))) for row in one_of_each_teacher(group))
    return list(dict.fromkeys(f"factor {row.factor:g} {why}" for row, why in said if why))


def runs_foreign(row: Row) -> str | None:
    """Says that the command of a run is of code or configuration that is not trusted."""
    found = foreign(row.command)
    return f"foreign code: {'; '.join(found)}" if found else None


def mixed(group: Group) -> str | None:
    """Says that seeds were run on several kinds of machine, which differ by more than the seed.

    Teachers may be of several machines and revisions of the code: then that is part of how much they differ.
    """
    kinds: dict[int, set[str]] = {}
    for row in group.scored:
        kinds.setdefault(row.teacher_seed, set()).add(row.gpu or row.cpu)
    most = max(map(len, kinds.values()), default=0)
    if most > 1:
        return f"seeds of {most} kinds of machine"
    machines, codes = set().union(*kinds.values()), {row.code_digest for row in group.scored}
    said = [f"{len(n)} {what}" for n, what in ((machines, "kinds of machine"), (codes, "code revisions")) if len(n) > 1]
    return f"teachers of {' and '.join(said)}" if said and len(group.teachers) > 1 else None


def idle(group: Group) -> list[str]:
    """Says which terms of the loss did nothing, and in how many seeds where it was not all of them."""
    counts = Counter(said for row in group.scored for said in idle_terms(row.flags))
    every = len(group.scored)
    what = "seeds" if len(group.teachers) < 2 else "runs"
    return [said if n == every else f"{said} in {n} of {every} {what}" for said, n in counts.items()]
