"""Which method to try first, task by task, and how good such advice was in settings that it had not seen."""

from __future__ import annotations

from leaderboard.advice import accuracy, advise, settings, trial
from leaderboard.exports import NONE, Cell, Column, Table
from leaderboard.pages import common
from leaderboard.site import Site

#: Methods that are named for a task.
NAMED = 5


def write(site: Site) -> None:
    """Writes the page of advice."""
    columns = (
        Column("task", "Task", facet=True),
        Column("place", "Try", kind="number"),
        Column("method", "Method"),
        Column("gap", "Expected gap closed", "Mean over the settings, bootstrap over seeds.", "estimate", "high"),
        Column("first", "Best of all", "Share of the draws of seeds in which it is.", "number", "high"),
        Column("verdicts", "Better / open / worse", "Settings, against the student trained alone."),
        Column("cost", "Training", "Forward passes, in those of the scratch twin's whole training.", "number", "low"),
        Column("settings", "Settings", wrap=True),
    )
    table = Table("advice", "What to try first", columns)
    every = settings(site.boards)
    names = {id(b): n for b, n in zip(every, common.settings(every), strict=True)}
    for task in sorted({board.setting.task for board in every}):
        own = [board for board in every if board.setting.task == task]
        for place, one in enumerate(advise(own)[:NAMED]):
            behind = [names[id(b)] for b in own if any(g in one.groups for g in b.groups)]
            table.add(
                Cell(task, href=site.task_pages[task]),
                common.count(place + 1),
                Cell(one.method, href=site.method_pages[one.method]),
                common.estimate(one.gap, 0, percent=True),
                Cell(f"{100 * one.first:.0f} %", one.first),
                Cell(" / ".join(str(one.verdicts[key]) for key in ("better", "open", "worse"))),
                common.plain(one.cost) if one.cost is None else Cell(f"{one.cost:.3g} ×", one.cost),
                Cell("; ".join(behind)),
            )
    trials = [trial(board, every) for board in every]
    tested = Table(
        "advice-tested",
        "Advice in settings that it had not seen",
        (
            Column("setting", "Setting left out"),
            Column("advised", "Advised by the others"),
            Column("among", "Among the best"),
            Column("lost", "Gap it closed less than the best", kind="number", better="low"),
            Column("baseline", "The same of kd", kind="number", better="low"),
        ),
    )
    for board, found in zip(every, trials, strict=True):
        lost, base = found.lost, found.lost_baseline
        tested.add(
            Cell(f"{board.setting.task}: {names[id(board)]}"),
            Cell(found.advised or NONE),
            Cell("yes" if found.among_best else "no"),
            Cell() if found.advised is None else Cell(f"{100 * lost:.0f} %", lost),
            Cell() if base is None else Cell(f"{100 * base:.0f} %", base),
        )
    site.page(
        "advice.html",
        "advice.html",
        title="Advice",
        tables=[t for t in (table, tested) if t.lines],
        table=table,
        tested=tested,
        accuracy=accuracy(trials),
    )
