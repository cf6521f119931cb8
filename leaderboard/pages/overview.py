"""The first page: every method on every task by the gap it closes, over all of them and one by one."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from leaderboard import charts
from leaderboard.across import PAIRS, Method, representatives
from leaderboard.advice import sentence
from leaderboard.boards import BASELINE, Board
from leaderboard.costs import passes
from leaderboard.exports import NONE, Cell, Column, Table
from leaderboard.pages import common
from leaderboard.pages.method import facts
from leaderboard.site import Site

#: Shares of the gap from which a colour is fuller.
HEAT = (0.3, 0.6)


def write(site: Site) -> None:
    """Writes the overview."""
    across = site.across
    table = _table(site)
    rows = [common.percent_dot(m.name, m.gap) for m in across.methods if m.gap is not None]
    title = "Gap closed over the common cells, %"
    critical = None
    if across.critical is not None:
        ranks = list(zip(across.critical_methods, across.critical.ranks, strict=True))
        critical = charts.critical_difference(
            "critical", ranks, across.critical.difference, title="Average rank over all tasks"
        )
    site.page(
        "index.html",
        "overview.html",
        title="Overview",
        tables=[table] if table.lines else [],
        table=table,
        chart=charts.dots("overall", rows, x_label=title, title=title),
        critical=critical,
        found=across.critical,
        critical_reason=across.critical_reason,
        counts=[
            (len(site.found.rows), "runs"),
            (len(site.task_names), "tasks"),
            (len(site.methods), "methods"),
            (len(site.groups), "specifications"),
            (sum(1 for group in site.groups if group.enough), f"of them with {site.minimum} seeds or more"),
            (sum(1 for row in site.found.rows if not row.ok), "runs failed or diverged"),
        ],
        findings=_findings(site),
        problems=len(site.found.problems),
        common=[name for i, name in enumerate(_names(across.boards)) if i in across.common],
        baseline=BASELINE,
    )


def _names(boards: Sequence[Board]) -> list[str]:
    """Names cells by their task, those of one task also by their pair."""
    labels = [board.setting.task for board in boards]
    return [
        label if labels.count(label) == 1 else f"{label} · {board.setting.pair}"
        for label, board in zip(labels, boards, strict=True)
    ]


def _findings(site: Site) -> list[tuple[str, str, str]]:
    """Says in a sentence what each setting with several methods shows: its name, its page, the sentence."""
    boards = site.across.boards
    found = zip(_names(boards), boards, strict=True)
    return [
        (name, site.task_pages[board.setting.task], sentence(board))
        for name, board in found
        if len(representatives(board)) > 1
    ]


def _table(site: Site) -> Table:
    across = site.across
    names = _names(across.boards)
    seeds = "Gap closed: ratio of means over seeds, 95% interval by Fieller."
    overall = (
        "Mean over the common cells, 95% interval by bootstrap over seeds; none for a method that lacks one of them."
    )
    imputed = "Mean over all cells; those that a method lacks count as 0 %, and the next column names them."
    against = f"Cells against {BASELINE} tuned alike."
    columns = [
        Column("method", "Method"),
        Column("gap", "Common cells", overall, "estimate", "high"),
        Column("imputed", "All, imputed", imputed, "estimate", "high", shown=False),
        Column("missing", "Imputed as 0 %", "Cells that this method has no gap closed in.", shown=False),
        *(Column(f"gap_{n.replace(' · ', '_')}", n, seeds, "estimate", "high") for n in names),
        Column(
            "cost", "Training", "Forward passes in those of the scratch twin's training: median over cells.", "number"
        ),
        Column("reads", "Reads", "What of teacher and student it compares.", facet=True),
        Column("cells", "Cells", "Tasks and pairs with enough seeds.", "number", "high"),
        Column("scratch", "Better / open / worse", "Cells against the student trained alone."),
        Column("baseline", f"Against {BASELINE}: better / open / worse", against, shown=False),
        Column("p", f"p against {BASELINE}", "Wilcoxon over cells, corrected by Holm.", "number", shown=False),
    ]
    table = Table("overview", "Gap closed: methods and tasks", columns)
    for method in across.methods:
        table.add(
            Cell(method.name, href=site.method_pages[method.name]),
            common.estimate(method.gap, 0, percent=True),
            common.estimate(method.imputed, 0, percent=True),
            Cell(", ".join(names[i] for i in method.missing) or NONE),
            *(_cell(site, method, i) for i in range(len(names))),
            _cost(site, method),
            Cell(", ".join(facts(method.name).reads) or NONE),
            common.count(len(method.groups)),
            Cell(_verdicts(method.scratch)),
            Cell(_verdicts(method.baseline)),
            common.plain(method.p) if method.p is not None else Cell(note=f"{method.cells} cells, at least {PAIRS}"),
        )
    return table


def _cell(site: Site, method: Method, index: int) -> Cell:
    group = method.groups.get(index)
    if group is None:
        return Cell(note="no row with enough seeds: see Coverage")
    cell = common.gap(group)
    cell.href = site.group_page(group)
    if group.gap is None:
        cell.text = "no gap" if group.gap_reason else NONE
    cell.css = {"better": "good", "worse": "bad"}.get(group.vs_scratch.verdict or "", "")
    if cell.css and group.gap is not None:  # the larger, the fuller its colour
        cell.css += f" heat{1 + sum(abs(group.gap.mean) >= size for size in HEAT)}"
    return cell


def _cost(site: Site, method: Method) -> Cell:
    costs = [c for i, g in method.groups.items() if (c := passes(g, site.across.boards[i])) is not None]
    value = statistics.median(costs) if costs else None
    return Cell() if value is None else Cell(f"{charts.short(value)} ×", value)


def _verdicts(counts: Mapping[str, int]) -> str:
    return " / ".join(str(counts.get(key, 0)) for key in ("better", "open", "worse"))
