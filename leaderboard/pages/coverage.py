"""What was run and what was not: a reason for each hole, and the command that would fill it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kdbench import matrix
from kdbench.configuration.network import SIDES, names_networks
from leaderboard.boards import TRIALS, Board
from leaderboard.exports import NONE, Cell, Column, Table
from leaderboard.foreign import foreign
from leaderboard.groups import Group
from leaderboard.pages import common
from leaderboard.row import Row
from leaderboard.site import Site

#: What a cell of the matrix says, its class, and what it means.
STATES = {
    "covered": ("cell-ok", "enough seeds"),
    "few seeds": ("cell-part", "fewer seeds of one code than the protocol asks for"),
    "diverged": ("cell-bad", "no seed came to a score: the loss was not finite"),
    "failed": ("cell-bad", "no seed came to a score: the run failed"),
    "not run": ("cell-no", "it fits, and has no record, or only trials of the code"),
    "not applicable": ("cell-no", "the task does not offer what the method needs"),
}


@dataclass(frozen=True, slots=True)
class Spot:
    """One method on one task."""

    method: str
    task: str
    state: str
    mark: str
    reason: str
    command: str | None
    href: str | None


def write(site: Site) -> None:
    """Writes the matrix of coverage and the table of holes."""
    cells = {(c.task, c.name): c for c in site.cells or () if c.axis == "method"}
    tasks = sorted({*site.task_names, *(task for task, _ in cells)})
    methods = sorted({*site.methods, *(name for _, name in cells)} - {"none"})
    groups: dict[tuple[str, str], list[Group]] = {}
    for group in site.groups:
        if group.setting.preset not in TRIALS:
            groups.setdefault((group.setting.task, group.method), []).append(group)
    spots = {
        (method, task): _spot(site, method, task, groups.get((task, method), []), cells.get((task, method)))
        for method in methods
        for task in tasks
    }
    columns = (
        Column("method", "Method", facet=True),
        Column("task", "Task", facet=True),
        Column("state", "State", facet=True),
        Column("reason", "Reason", wrap=True),
        Column("command", "Command that would fill it", code=True),
    )
    holes = Table("holes", "Holes: what is missing, why, and the command that would fill it", columns)
    for spot in spots.values():
        if spot.state != "covered":
            css = STATES[spot.state][0]
            holes.add(
                Cell(spot.method, href=site.method_pages.get(spot.method)),
                Cell(spot.task, href=site.task_pages.get(spot.task)),
                Cell(spot.state, href=spot.href, css=css),
                Cell(spot.reason),
                Cell(spot.command or NONE),
            )
    counts = [(state, sum(1 for s in spots.values() if s.state == state), *STATES[state]) for state in STATES]
    site.page(
        "coverage.html",
        "coverage.html",
        title="Coverage",
        tables=[holes] if holes.lines else [],
        tasks=tasks,
        methods=methods,
        spots=spots,
        states=STATES,
        method_pages=site.method_pages,
        task_pages=site.task_pages,
        counts=counts,
        holes=holes,
        computed=site.cells is not None,
    )


def _spot(site: Site, method: str, task: str, groups: Sequence[Group], cell: matrix.Cell | None) -> Spot:
    boards: Sequence[Board] = [b for b in site.tasks.get(task, []) if b.setting.preset not in TRIALS]
    best = max(groups, key=lambda g: (len(g.seeds), g.newest.finished, g.spec_hash), default=None)
    if best is None:
        if cell is not None and not cell.ok:
            return Spot(method, task, "not applicable", "n/a", str(cell.reason), None, None)
        model = _model(boards[0]) if boards else None
        pair = _pair(model) if model else [f"pair={cell.pair}"] if cell and cell.pair else []
        extra = _like(model, pair) if model else ""
        words = _words(task, method, pair, boards[0].setting.preset if boards else None, range(site.minimum), extra)
        return Spot(method, task, "not run", "–", "no record", words, None)
    href = site.group_page(best)
    if best.enough:
        count = len(best.seeds)
        return Spot(method, task, "covered", str(count), f"{count} seeds", None, href)
    newest = best.newest
    same = [row for row in best.scored if row.teacher_seed == newest.teacher_seed]
    old = [row.seed for row in same if row.code_digest != newest.code_digest]
    missing = [s for s in range(10 * site.minimum) if s not in best.seeds][: max(0, site.minimum - len(best.seeds))]
    extra = _tuned(common.overrides(newest.command, common.ANEW), newest)
    words = _words(task, method, _pair(newest), best.setting.preset, [*old, *missing], extra)
    fills = None if foreign(newest.command) else words
    if best.seeds:
        count = len(best.seeds) - len(old)
        return Spot(method, task, "few seeds", str(count), best.note or "", fills, href)
    state = "diverged" if best.diverged and not best.failed else "failed"
    return Spot(method, task, state, "✕", common.state(best.newest), fills, href)


def _model(board: Board) -> Row:
    """Returns the run that others of a board should be like: the newest among those of the usual tuning."""
    own = [g for g in board.groups if not g.reference and not foreign(g.newest.command)] or list(board.groups)
    trials = Counter(g.trials for g in own)
    usual = max(trials, key=lambda n: (trials[n], n))
    return max((g.newest for g in own if g.trials == usual), key=lambda row: (row.finished, row.run_id))


def _like(row: Row, pair: Sequence[str]) -> str:
    """Returns what another method needs to stand beside a run: all it sets but the method's own options."""
    words = shlex.split(common.overrides(row.command, common.ANEW))
    kept = [w for w in words if not w.lstrip("+~").startswith(("method.", "teacher.seed=")) and w not in pair]
    own = [w for w in _own(row) if w not in pair and w not in kept]
    return _tuned(shlex.join([*own, *kept]), row)


def _tuned(words: str, row: Row) -> str:
    """Adds the number of trials that a command leaves to its configuration."""
    keys = {word.partition("=")[0].lstrip("+") for word in shlex.split(words)}
    return words if not row.trials or "tuning.trials" in keys else f"{words} tuning.trials={row.trials}".strip()


def _own(row: Row) -> list[str]:
    """Returns the words of a command that say what the networks are, where these are not the pair's."""
    words = [word for word in shlex.split(row.command)[3:] if word.lstrip("+").startswith((*SIDES, "pair"))]
    return words if any(names_networks(word) for word in words) else []


def _pair(row: Row) -> list[str]:
    """Returns the word that gives other runs the pair of this one."""
    own = _own(row)
    return [word for word in own if word.startswith("pair=")] if own else [f"pair={row.pair}"]


def _words(
    task: str, method: str, pair: Sequence[str], preset: str | None, seeds: Sequence[int], extra: str = ""
) -> str:
    words = [f"task={task}", f"method={method}", *pair]
    words += [f"preset={preset}"] if preset else []
    said = ["python -m kdbench -m", shlex.join(words), extra, f"seed={','.join(map(str, seeds))}"]
    return " ".join(filter(None, said))
