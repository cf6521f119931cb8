"""One page for each specification: its seeds, every metric, the older runs, the commands."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

from pydantic_core import to_json

from leaderboard import charts
from leaderboard.charts import Dot
from leaderboard.exports import NONE, Cell, Column, Direction, Table
from leaderboard.foreign import foreign
from leaderboard.groups import Group, summarise
from leaderboard.pages import common
from leaderboard.row import FIELDS, Row
from leaderboard.site import ANY, PACKED, Site

RUNS = (
    Column("seed", "Seed", kind="number"),
    Column("teacher_seed", "Teacher seed", kind="number"),
    Column("status", "Status"),
    Column("score", "Score", "Primary metric on test after the last epoch.", "number"),
    Column("scratch", "Scratch", "The same student and seed without a teacher.", "number"),
    Column("teacher", "Teacher", kind="number"),
    Column("gap", "Gap closed", kind="number"),
    Column("best_on_val", "Test, best on val", "Test score of the epoch that was best on validation.", "number"),
    Column("factor", "Factor", "On the weights of the terms, chosen on validation.", "number", shown=False),
    Column("wall_s", "Wall s", kind="number"),
    Column("finished", "Finished, UTC"),
    Column("commit", "Commit", code=True),
    Column("content_hash", "Content hash", code=True),
    Column("code_digest", "Code digest", code=True, shown=False),
    Column("config_digest", "Config digest", code=True, shown=False),
    Column("hardware", "Hardware", shown=False),
    Column("command", "Command", code=True),
)
#: Significant digits behind the means of metrics; the records have all.
DIGITS = 7
FLAT = tuple(name for name in FIELDS if name not in ("scores", "models", "cost", "tuning"))
_flat = operator.attrgetter(*FLAT)


def write(site: Site) -> None:
    """Writes the pages of the newest groups, and the others packed."""
    if site.shards:
        site.page(ANY, "any.html", title="Specification", folder=f"{PACKED}/")
    site.later(_pack, site.shards)
    site.later(_file, range(len(site.filed)))


def _file(site: Site, place: int) -> None:
    """Writes the page of a group that has a file of its own."""
    group = site.filed[place]
    # The records themselves, flat, also of runs that have no page.
    lines = b",\n".join(to_json(flat(row)) for row in (*group.rows, *group.superseded))
    site.write(f"data/runs-{site.stem(group)}.json", b"[\n" + lines + b"\n]\n")
    site.page(site.group_page(group), "group.html", **_values(site, group), filed=True)


def _pack(site: Site, shard: str) -> None:
    """Writes what is their own of the pages of a shard: title and content by the stem of the group."""
    found = {}
    for group in site.shards[shard]:
        values = _values(site, group)
        found[site.stem(group)] = values["title"], site.render(ANY, "group.html", bare=True, **values, filed=False)
        site.pages += 1
    site.pack(f"{PACKED}/{shard}.js", found)


def _values(site: Site, group: Group) -> dict[str, Any]:
    """Returns what the template of a group reads."""
    stem, board = site.stem(group), site.board_of.get(id(group))
    metrics = _metrics(group, board)
    places = common.digits([group.score.mean if group.score else None])
    pairs = [(_called(row, group), row.score, row.of("scratch")) for row in group.scored[:40]]
    dots = [Dot(name, own - alone) for name, own, alone in pairs if own is not None and alone is not None]
    title = f"{group.primary}: student minus scratch, seed by seed"
    return dict(
        title=f"{group.method} on {group.setting.task}",
        crumbs=[("Tasks", "tasks.html"), (group.setting.task, site.task_pages[group.setting.task])],
        group=group,
        board=board,
        score=common.estimate(group.score, places).text,
        converted=common.estimate(group.converted, places).text,
        vs_scratch=common.difference(group.vs_scratch, places),
        vs_kd=common.difference(group.vs_kd, places),
        vs_matched=common.difference(group.vs_matched, places),
        gap=common.gap(group),
        rank=common.rank(group),
        method_page=site.method_pages[group.method],
        newest=group.newest,
        idle=common.idle(group),
        mixed=common.mixed(group),
        grid=common.grid(group),
        over=common.over(group.score, len(group.teachers)),
        verified=common.verified(site.verified(group)),
        foreign=foreign(group.newest.command),
        state=common.state(group.newest),
        stem=stem,
        runs=_runs(site, f"runs-{stem}", group.rows, "Runs: the newest of each seed and teacher"),
        superseded=_runs(site, f"older-{stem}", group.superseded, "Older runs of the same seeds"),
        metrics=metrics,
        chart=charts.dots("seeds", dots, x_label=title, title=title, gutter=70 if len(group.teachers) < 2 else 130)
        if len(dots) > 1 and not group.reference
        else None,
        missing=[seed for seed in range(site.minimum) if seed not in group.seeds] if not group.enough else [],
    )


def _called(row: Row, group: Group) -> str:
    return f"seed {row.seed}" + (f", teacher {row.teacher_seed}" if len(group.teachers) > 1 else "")


def flat(row: Row) -> dict[str, Any]:
    """Returns a row as plain data: all metrics of what the run is about, the primary one of what stands beside it."""
    values = dict(zip(FLAT, _flat(row), strict=True))
    values |= {f"{name}_score": row.of(name) for name in row.scores.names if name != "student"}
    values |= {name: _whole(value) for name, value in row.cost.items()}
    for model, size in zip(row.models.names, row.models.values, strict=True):
        before = "" if model == "student" else f"{model}_"
        values |= {before + name: _whole(value) for name, value in size.items()}
    metrics = row.main
    # Where a record lies is true on one machine only.
    return values | {"path": common.tail(row.path), "metrics": dict(metrics.items()) if metrics else {}}


def _whole(value: float | None) -> float | None:
    """Returns a count as the integer that it was before it was packed."""
    return int(value) if value is not None and value.is_integer() else value


def _runs(site: Site, name: str, rows: tuple[Row, ...], caption: str) -> Table:
    lost = not all(row.ok for row in rows)
    columns = [replace(column, wrap=lost) if column.key == "status" else column for column in RUNS]
    rare = [role for role in common.RARE if any(_score(row, role) is not None for row in rows)]
    columns[4:4] = rare
    if not any(row.teacher_seed for row in rows):
        columns[1] = replace(columns[1], shown=False)
    table = Table(name, caption, columns)
    places = common.digits(row.score for row in rows)
    for row in rows:
        page = site.run_page.get(row.path)
        table.add(
            Cell(str(row.seed), row.seed, href=page),
            common.count(row.teacher_seed),
            Cell(common.state(row), css="" if row.ok else "bad"),
            common.plain(row.score, places),
            *(common.plain(_score(row, role), places) for role in rare),
            common.plain(row.of("scratch"), places),
            common.plain(row.of("teacher"), places),
            Cell(note=row.gap_reason)
            if row.gap_closed is None
            else Cell(common.fixed(100 * row.gap_closed, 0) + " %", row.gap_closed),
            common.plain(row.best_on_val, places),
            common.plain(row.factor),
            common.plain(row.figure("wall_s")),
            Cell(row.finished_utc),
            Cell((row.commit or NONE)[:10] + (" dirty" if row.dirty else "")),
            Cell(row.content_hash),
            Cell(row.code_digest),
            Cell(row.config_digest),
            Cell(f"{row.gpu or row.cpu}, {row.threads} threads"),
            Cell(row.command, note=(said := common.runs_foreign(row)), css="bad" if said else ""),
            grey=not row.ok,
        )
    return table


def _score(row: Row, role: Column) -> float | None:
    return row.of(role.key)


def _metrics(group: Group, board: Any) -> Table:
    over = common.grid(group)
    if group.score is not None and group.score.samples:
        over += f", of {group.primary} also over {group.score.samples} test samples"
    columns = (
        Column("metric", "Metric"),
        Column("student", group.role.capitalize(), f"Mean and 95% interval over {over}.", "estimate"),
        Column("sd", "sd", kind="number"),
        Column("scratch", "Scratch", "The same student and seeds without a teacher.", "estimate"),
        Column("teacher", "Teacher", kind="number"),
        Column("n", "Seeds", kind="number", shown=False),
    )
    stem = f"{group.method[:40]}-{group.spec_hash[:16]}"
    table = Table(f"metrics-{stem}", "Every test metric after the last epoch", columns, digits=DIGITS)
    scratch = summarise([row.scores.get("scratch") for row in group.scored], len(group.teachers))
    for name, found in group.metrics.items():
        places = common.digits([found.mean])
        direction: Direction | None = ("high" if group.higher_is_better else "low") if name == group.primary else None
        if board is not None:
            direction = common.better(name, board)
        table.add(
            Cell(name + {"high": " ↑", "low": " ↓", None: ""}[direction]),
            common.estimate(found, places),
            common.plain(found.sd, places),
            common.estimate(scratch.get(name), places),
            common.plain(board.teacher.get(name), places) if board is not None else Cell(),
            common.count(found.n),
        )
    return table
