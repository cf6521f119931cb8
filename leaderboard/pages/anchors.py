"""Reported numbers: what papers and repositories say, in tables of their own."""

from __future__ import annotations

from leaderboard.exports import NONE, Cell, Column, Table
from leaderboard.pages import common
from leaderboard.site import Site

RULES = {"last": "last epoch", "best": "best epoch on test", "unknown": "not said"}


def anchor_table(site: Site, name: str, *, task: str | None = None, method: str | None = None) -> Table:
    """Makes the table of the reported numbers of a task or a method, beside the student alone and the teacher."""
    columns = (
        Column("task", "Task", facet=True) if task is None else Column("method", "Method", facet=True),
        Column("dataset", "Data set", facet=True),
        Column("pair", "Pair", facet=True),
        Column("metric", "Metric", facet=True),
        Column("reported", "Reported", "In percent, under the protocol of the source.", "number"),
        Column("none", "Student alone", "As the same source reports it.", "number"),
        Column("teacher", "Teacher", "As the same source reports it.", "number"),
        Column("rule", "Epoch", "Which epoch the source reports.", facet=True),
        Column("source", "Source", wrap=True),
        Column("note", "Note", wrap=True),
    )
    table = Table(name, "Reported numbers: not measured here, never ranked", columns)
    frames = {(a.task, a.dataset, a.pair, a.metric, a.source, a.method): a.value for a in site.anchors}
    for anchor in site.anchors:
        if task not in (None, anchor.task) or method not in (None, anchor.method):
            continue
        key = anchor.task, anchor.dataset, anchor.pair, anchor.metric, anchor.source
        first = anchor.task if task is None else anchor.method
        table.add(
            Cell(first),
            Cell(anchor.dataset),
            Cell(anchor.pair),
            Cell(anchor.metric),
            common.plain(anchor.value, 2),
            *(common.plain(frames.get((*key, role)), 2) for role in ("none", "teacher")),
            Cell(RULES[anchor.rule]),
            Cell(anchor.source),
            Cell(anchor.note or NONE),
        )
    return table
