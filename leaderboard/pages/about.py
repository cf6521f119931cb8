"""The protocol, the statistics, and what was refused."""

from __future__ import annotations

from collections import Counter

from leaderboard.across import PAIRS, headline
from leaderboard.boards import BASELINE
from leaderboard.exports import Cell, Column, Table
from leaderboard.pages import common
from leaderboard.samples import DRAWS
from leaderboard.site import Site
from leaderboard.stats import MIN_CELLS, MIN_METHODS, RESAMPLES


def write(site: Site) -> None:
    """Writes the page about the board."""
    columns = (Column("path", "Record", code=True), Column("reason", "Why it is not shown", wrap=True))
    refused = Table("refused", "Records that were refused", columns)
    for problem in site.found.problems:
        refused.add(Cell(common.tail(problem.path)), Cell(problem.reason))
    machines = Counter(f"{row.gpu or row.cpu}, {row.cores} cores" for row in site.found.rows)
    site.page(
        "about.html",
        "about.html",
        title="About",
        tables=[refused] if refused.lines else [],
        refused=refused,
        baseline=BASELINE,
        resamples=RESAMPLES,
        draws=DRAWS,
        pairs=PAIRS,
        min_methods=MIN_METHODS,
        min_cells=MIN_CELLS,
        protocols=sorted({row.protocol for row in site.found.rows}),
        machines=sorted(machines.items(), key=lambda item: (-item[1], item[0])),
        shown=[(b.setting.task, common.setting(b)) for b in headline(site.boards)],
        pages=len(site.paged),
        packed_pages=len(site.groups) - len(site.filed),
        runs=len(site.found.rows),
        copies=site.found.copies,
    )
