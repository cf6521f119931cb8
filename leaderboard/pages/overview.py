"""The first page: every method on every task by the gap it closes, over all of them and one by one."""

from __future__ import annotations

from collections.abc import Mapping

from leaderboard import charts
from leaderboard.across import Method
from leaderboard.boards import BASELINE
from leaderboard.exports import NONE, Cell, Column, Table
from leaderboard.pages import common
from leaderboard.site import Site


def write(site: Site) -> None:
    """Writes the overview."""
    across = site.across
    table = _table(site)
    rows = [common.percent_dot(m.name, m.gap) for m in across.methods if m.gap is not None]
    title = "Gap closed over all tasks, %"
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
        problems=len(site.found.problems),
        baseline=BASELINE,
    )


def _table(site: Site) -> Table:
    across = site.across
    labels = [board.setting.task for board in across.boards]
    names = [
        label if labels.count(label) == 1 else f"{label} · {board.setting.pair}"
        for label, board in zip(labels, across.boards, strict=True)
    ]
    seeds = "Gap closed: mean and 95% t-interval over seeds."
    overall = "Interquartile mean of the gap closed over all runs, 95% interval by bootstrap."
    against = f"Cells against {BASELINE} tuned alike."
    columns = [
        Column("method", "Method"),
        Column("gap", "All", overall, "estimate", "high"),
        *(Column(f"gap_{n.replace(' · ', '_')}", n, seeds, "estimate", "high") for n in names),
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
            *(_cell(site, method, i) for i in range(len(names))),
            common.count(len(method.groups)),
            Cell(_verdicts(method.scratch)),
            Cell(_verdicts(method.baseline)),
            common.plain(method.p),
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
    return cell


def _verdicts(counts: Mapping[str, int]) -> str:
    return " / ".join(str(counts.get(key, 0)) for key in ("better", "open", "worse"))
