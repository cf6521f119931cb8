"""What papers claim, and what the records say of it."""

from __future__ import annotations

from collections import Counter

from leaderboard.claims import SCRATCH, decide, load
from leaderboard.exports import NONE, Cell, Column, Table
from leaderboard.pages import common
from leaderboard.site import Site

#: The class of what a claim came to.
CSS = {"confirmed": "good", "contradicted": "bad", "not confirmed": "", "not testable here": "cell-no"}


def write(site: Site) -> None:
    """Writes the page of claims."""
    decided = decide(load(), site.boards.boards)
    columns = (
        Column("outcome", "Here", "From differences corrected for all rows of a setting.", facet=True),
        Column("claim", "Claim", wrap=True),
        Column("paper", "Paper", wrap=True),
        Column("task", "Task", facet=True),
        Column("method", "Method"),
        Column("against", "Against"),
        Column("tests", "What decides it", wrap=True),
    )
    table = Table("claims", "What papers claim of their method, and what these records say", columns)
    names = {id(b): n for b, n in zip(site.boards.boards, common.settings(site.boards.boards), strict=True)}
    for decision in decided:
        claim = decision.claim
        said = []
        for test in decision.tests:
            places = common.digits([test.group.score.mean if test.group.score else None])
            ends = test.contrast.mean, test.contrast.low, test.contrast.high
            mean, low, high = (common.fixed(v, places, plus=True) for v in ends)
            where, p = f"{names[id(test.board)]}: {mean} {test.board.primary}", test.contrast.p
            said.append(f"{where} [{low}, {high}], p = {p:.2g}")
        table.add(
            Cell(decision.outcome, css=CSS[decision.outcome]),
            Cell(claim.claim),
            Cell(claim.paper),
            Cell(claim.task, href=site.task_pages.get(claim.task)),
            Cell(claim.method, href=site.method_pages.get(claim.method)),
            Cell(
                "the student alone" if claim.against == SCRATCH else claim.against,
                href=site.method_pages.get(claim.against),
            ),
            Cell("; ".join(said) or NONE),
        )
    counts = Counter(decision.outcome for decision in decided)
    site.page("claims.html", "claims.html", title="Claims", tables=[table], table=table, counts=counts)
