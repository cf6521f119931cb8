"""One page for each task: every group in one table, its settings, what quality costs, differences to the baselines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from leaderboard import charts
from leaderboard.advice import sentence
from leaderboard.boards import BASELINE, Board
from leaderboard.exports import NONE, Cell, Column, Direction, Table
from leaderboard.folds import join
from leaderboard.groups import Group
from leaderboard.pages import common, pictures
from leaderboard.pages.anchors import anchor_table
from leaderboard.site import Site

#: Cells of metrics besides the primary one that a page carries; beyond, they are on the groups' pages.
METRIC_CELLS = 6000
#: Keys of a command that choose a fold.
FOLD = {"data.fold"}
#: Costs that stand in front.
FIRST_COSTS = 5


def write(site: Site) -> None:
    """Writes the list of tasks and the page of each."""
    columns = (
        Column("task", "Task"),
        Column("metric", "Metric"),
        Column("setting", "Setting shown first"),
        Column("teacher", "Teacher", kind="number"),
        Column("scratch", "Scratch", "The student trained without a teacher.", "estimate"),
        Column("best", "Best method"),
        Column("score", "Its score", kind="estimate"),
        Column("gap", "Gap closed", "Share of the gap between scratch student and teacher.", "estimate", "high"),
        Column("groups", "Specifications", kind="number"),
        Column("runs", "Runs", kind="number"),
    )
    tasks = Table("tasks", "Tasks, each in the setting that its page shows first", columns)
    for name in site.task_names:
        boards = site.tasks.get(name, [])
        own = [g for g in site.groups if g.setting.task == name]
        runs = sum(len(g.rows) + len(g.superseded) for g in own)
        counts = [common.count(len(own)), common.count(runs)]
        link = Cell(name, href=site.task_pages[name])
        if not boards:
            tasks.add(link, *(Cell() for _ in columns[3:]), *counts, grey=True)
        else:
            board = boards[0]
            places = common.digits([board.teacher.get(board.primary)])
            best = next((g for g in board.groups if g.rank), None)
            tasks.add(
                link,
                Cell(board.primary + (" ↑" if board.higher_is_better else " ↓")),
                Cell(common.setting(board)),
                common.plain(board.teacher.get(board.primary), places),
                common.estimate(board.scratch.get(board.primary), places),
                Cell(best.method, href=site.group_page(best)) if best else Cell(note="no row has enough seeds"),
                common.estimate(best.score, places) if best else Cell(),
                common.gap(best) if best else Cell(),
                *counts,
            )
    site.page("tasks.html", "tasks.html", title="Tasks", tables=[tasks], tasks=tasks)
    site.later(_page, site.task_names)


def _page(site: Site, name: str) -> None:
    boards = site.tasks.get(name, [])
    tables: list[Table] = []
    board_table = settings_table = None
    if boards:
        board_table = group_table(site, f"task-{_stem(site, name)}", name, boards)
        settings_table = _settings(f"settings-{_stem(site, name)}", boards)
        tables += [board_table, settings_table]
    folds = _folds(site, f"folds-{_stem(site, name)}", boards)
    anchors = anchor_table(site, f"reported-{_stem(site, name)}", task=name)
    failures = _failures(site, f"failed-{_stem(site, name)}", name)
    pairs = pictures.pairs(f"pairs-{_stem(site, name)}", boards[0]) if boards else None
    tables += [t for t in (folds, pairs, anchors, failures) if t is not None and t.lines]
    site.page(
        site.task_pages[name],
        "task.html",
        title=name,
        crumbs=[("Tasks", "tasks.html")],
        tables=tables,
        first=boards[0] if boards else None,
        finding=sentence(boards[0]) if boards else None,
        facts=_facts(boards[0]) if boards else None,
        setting=common.settings(boards)[0] if boards else None,
        board=board_table,
        settings=settings_table,
        folds=folds,
        anchors=anchors,
        failures=failures,
        charts=pictures.draw(site, boards),
        pairs=pairs,
        metrics_left_out=bool(boards) and _metrics(boards) != _all_metrics(boards),
        baseline=BASELINE,
    )


def _facts(board: Board) -> str:
    """Says what the rows of a setting stand between, and on what data."""
    scratch, teacher = board.scratch.get(board.primary), board.teacher.get(board.primary)
    places = common.digits([teacher, scratch.mean if scratch else None])
    newest = max((g.newest for g in board.groups), key=lambda r: (r.finished, r.run_id))
    parts = []
    if teacher is not None:
        parts.append(_taught(board, common.fixed(teacher, places)))
    if scratch is not None:
        alone = common.estimate(scratch, places).text
        parts.append(f"student trained alone {alone} over {scratch.n} seed{'s' * (scratch.n > 1)}")
    if newest.train_size is not None:
        parts.append(
            f"{newest.train_size} samples to train on, {newest.val_size} to choose by, {newest.test_size} to test"
        )
    return "; ".join(parts) + "." if parts else ""


def _taught(board: Board, score: str) -> str:
    """Says how many teachers the rows of a setting were taught by."""
    several = len(board.teacher_seeds)
    if several < 2:
        if board.teachers == 1:
            return f"Teacher {score}, on which everything here is conditional"
        return f"Teacher {score} of the newest run; each row is conditional on one teacher"
    whole = sum(len(g.teachers) == several for g in board.groups)
    rows = "1 row is" if whole == 1 else f"{whole} rows are"
    return f"{several} teachers, mean {score}: {rows} over all of them, every other one is conditional on fewer"


def _collapse(table: Table, keys: Sequence[str]) -> None:
    """Hides columns that say the same in every row, and says it once in the caption."""
    said = []
    columns = list(table.columns)
    for i, column in enumerate(columns):
        texts = {line.cells[i].text for line in table.lines}
        if column.key in keys and len(table.lines) > 1 and len(texts) == 1:
            said += [f"{column.label.lower()} {text}" for text in texts if text != NONE]
            columns[i] = replace(column, shown=False)
    table.columns = columns
    if said:
        table.caption += f"; alike in every row: {', '.join(said)}"


def _stem(site: Site, name: str) -> str:
    return site.task_pages[name].removeprefix("tasks/").removesuffix(".html")


def _all_metrics(boards: Sequence[Board]) -> list[str]:
    return list(dict.fromkeys(m for b in boards for m in b.metrics if m != b.primary))


def _metrics(boards: Sequence[Board]) -> list[str]:
    rows = sum(len(board.groups) for board in boards)
    return _all_metrics(boards)[: METRIC_CELLS // max(1, rows)]


def group_table(site: Site, table_name: str, task: str, boards: Sequence[Board]) -> Table:
    """Makes the table of all groups of a task, board by board, best first."""
    names = common.settings(boards)
    primary = boards[0].primary
    groups = [g for board in boards for g in board.groups]
    words = _words(boards)
    metrics = _metrics(boards)
    many = len(boards) > 1
    high: Direction = "high" if boards[0].higher_is_better else "low"
    seeds = "mean and 95% interval over what the column Intervals over says"
    stored = Column("converted", "Converted", f"The student as it is stored and run: {seeds}.", "estimate", high)
    converted = [stored] if any(g.converted is not None for g in groups) else []
    beside = _MATCHED if any(g.matched is not None for g in groups) else ()
    tuned = len({g.trials for g in groups}) > 1
    checked = [site.verified(g) is not None for g in groups]
    columns = [
        Column("method", "Method"),
        Column(
            "rank",
            "Rank",
            "Places left open, among rows of one setting and tuning.",
            "range",
            "low",
        ),
        Column("score", primary, f"Primary metric on test after the last epoch: {seeds}.", "estimate", high),
        *converted,
        Column("vs_scratch", "Δ scratch", "Paired difference to the student trained alone.", "estimate", high),
        Column("vs_kd", f"Δ {BASELINE}", f"Paired difference to {BASELINE} tuned alike.", "estimate", high),
        Column("gap", "Gap closed", "Share of the gap between scratch student and teacher.", "estimate", "high"),
        *(replace(column, better=high) for column in beside),
        Column("seeds", "Seeds", "Seeds that came to a score.", "number", "high"),
        Column("teachers", "Teachers", "Each with all seeds; of one the row is conditional on it.", "number", "high"),
        Column(
            "over",
            "Intervals over",
            "Seeds; teachers where there are several; test samples where the records have what each contributed.",
        ),
        *common.COST[:FIRST_COSTS],
        Column("setting", "Setting", "Pair, preset, data set, augment, quant, teacher.", shown=many, facet=many),
        Column("overrides", "Options", "What else the command sets.", shown=any(words.values()), code=True),
        Column("tuning", "Tuning trials", "Ranks are among rows of equal tuning.", "number", shown=tuned),
        Column("verified", "Verified", "What running one of its records again gave, and when.", shown=any(checked)),
        Column("note", "Note", "Why the row is grey or has no rank, and seeds that came to nothing."),
        Column(
            "best_on_val",
            "Test, best on val",
            "Test score of the epoch that was best on validation.",
            "estimate",
            high,
            False,
        ),
        Column("teacher", "Teacher", "", "estimate", high, False),
        Column("scratch", "Scratch", "The same student trained without a teacher.", "estimate", high, False),
        *common.COST[FIRST_COSTS:],
        *(Column(k, k.capitalize(), facet=True, shown=False) for k in ("pair", "preset", "augment", "quant")),
        Column("fidelity", "Fidelity", "Whether equations and constants could be read.", facet=True, shown=False),
        Column("spec_hash", "Spec", "What the seeds of the row have in common.", shown=False, code=True),
        *(Column(m, m, "", "estimate", common.better(m, boards[0]), False) for m in metrics),
    ]
    table = Table(table_name, f"{task}: every specification", columns)
    if many:
        table.initial = {"setting": names[0]}
    places = {
        m: common.digits(e.mean for g in groups if (e := g.metrics.get(m)) is not None) for m in {primary, *metrics}
    }
    blocks: dict[tuple[str, int], int] = {}
    for board, setting in zip(boards, names, strict=True):
        for group in board.groups:
            main = places[primary]
            same = group.metric == boards[0].metric
            odd = Cell(note=f"scored by {group.primary}")
            table.add(
                Cell(group.method, href=site.group_page(group)),
                common.rank(group, blocks.setdefault((setting, group.trials), len(blocks))),
                *(_scores(group, main, bool(converted)) if same else [odd] * (4 + len(converted))),
                *_matched(group, main, same)[: len(beside)],
                common.count(len(group.seeds)),
                common.count(len(group.teachers)),
                Cell(common.over(group.score, len(group.teachers))),
                *(costs := common.cost_cells(group, board))[:FIRST_COSTS],
                Cell(setting),
                Cell(charts.clip(words[id(group)], 340) or NONE, note=words[id(group)] or None),
                common.count(group.trials),
                common.verified(site.verified(group)),
                common.text(common.note(group)),
                *(
                    common.estimate(e if same else None, main)
                    for e in (group.best_on_val, group.teacher, group.scratch)
                ),
                *costs[FIRST_COSTS:],
                *(Cell(getattr(group.setting, k)) for k in ("pair", "preset", "augment", "quant")),
                Cell(group.newest.fidelity),
                Cell(group.spec_hash),
                *(common.estimate(group.metrics.get(m), places[m]) for m in metrics),
                grey=not group.enough,
            )
    _collapse(
        table, ("seeds", "teachers", "over", "params", "macs", "latency_ms", "student_cost", "teacher_cost", "verified")
    )
    return table


#: Beside what had as much compute.
_MATCHED = (
    Column(
        "matched",
        "Scratch, same compute",
        "The student trained alone for as many multiply-accumulates in forward passes as the method's training has.",
        "estimate",
    ),
    Column("vs_matched", "Δ same compute", "Paired difference to it, corrected for all rows (Holm).", "estimate"),
)


def _matched(group: Group, places: int, same: bool) -> list[Cell]:
    if not same:
        return [Cell(), Cell()]
    return [common.estimate(group.matched, places), common.difference(group.vs_matched, places)]


def _scores(group: Group, places: int, converted: bool) -> list[Cell]:
    return [
        common.estimate(group.score, places),
        *([common.estimate(group.converted, places)] if converted else []),
        common.difference(group.vs_scratch, places),
        common.difference(group.vs_kd, places),
        common.gap(group),
    ]


def _words(boards: Sequence[Board]) -> dict[int, str]:
    """Says what a group sets beside the columns: words of its command; where they do not tell two apart, its hash."""
    found = {}
    for board in boards:
        words = [common.overrides(g.newest.command) for g in board.groups]
        keys = [(g.method, g.trials, w) for g, w in zip(board.groups, words, strict=True)]
        counts = Counter(keys)
        for group, word, key in zip(board.groups, words, keys, strict=True):
            found[id(group)] = word if counts[key] == 1 else f"{word} #{group.spec_hash[:8]}".strip()
    return found


def _settings(name: str, boards: Sequence[Board]) -> Table:
    columns = (
        Column("setting", "Setting"),
        Column("metric", "Metric"),
        Column("teacher", "Teacher", "Of the newest run; of several teachers their mean.", "number"),
        Column(
            "scratch", "Scratch", "The student trained without a teacher, over the seeds of one recipe.", "estimate"
        ),
        Column("scratch_seeds", "Its seeds", kind="number"),
        Column("groups", "Rows", kind="number"),
        Column("train", "Train", "Samples.", "number"),
        Column("val", "Val", "Samples.", "number"),
        Column("test", "Test", "Samples.", "number"),
        Column("data", "Data digest", code=True),
        Column("note", "Note"),
    )
    table = Table(name, "Settings: what rows have in common to be compared", columns)
    for board, setting in zip(boards, common.settings(boards), strict=True):
        scratch = board.scratch.get(board.primary)
        places = common.digits([board.teacher.get(board.primary), scratch.mean if scratch else None])
        newest = max((g.newest for g in board.groups), key=lambda r: (r.finished, r.run_id))
        table.add(
            Cell(setting),
            Cell(board.primary + (" ↑" if board.higher_is_better else " ↓")),
            common.plain(board.teacher.get(board.primary), places),
            common.estimate(scratch, places),
            common.count(scratch.n if scratch else 0),
            common.count(len(board.groups)),
            *(common.count(getattr(newest, f"{split}_size")) for split in ("train", "val", "test")),
            Cell(board.setting.digest or NONE),
            common.text(_several(board)),
        )
    return table


def _several(board: Board) -> str:
    counts = (
        (len(board.teacher_seeds), "teacher seeds"),
        (board.teachers, "different teachers"),
        (board.twins, "different scratch students of one seed"),
    )
    return "; ".join(f"{count} {what}" for count, what in counts if count > 1)


def _folds(site: Site, name: str, boards: Sequence[Board]) -> Table:
    """Makes the table of what was held out in turn, a row over all its folds."""
    found = join(boards, lambda group: common.overrides(group.newest.command, common.SAID | FOLD))
    folds = sorted({fold for one in found for fold in one.groups})
    high: Direction = "high" if boards and boards[0].higher_is_better else "low"
    over = "mean over folds, of each the mean over its seeds, and 95% t-interval over folds"
    columns = (
        Column("method", "Method"),
        Column("folds", "Folds", kind="number"),
        Column("seeds", "Seeds", "Fewest of a fold.", "number", "high"),
        Column("score", found[0].primary if found else "score", f"Primary metric on test: {over}.", "estimate", high),
        Column("scratch", "Scratch", f"The same student trained without a teacher: {over}.", "estimate", high),
        Column("vs_scratch", "Δ scratch", "Paired difference to it, over folds.", "estimate", high),
        Column("vs_kd", f"Δ {BASELINE}", f"Paired difference to {BASELINE} tuned alike, over folds.", "estimate", high),
        *(Column(f"fold_{i}", fold, "Mean over its seeds.", "estimate", high) for i, fold in enumerate(folds)),
        Column("setting", "Setting", "Pair, preset, data set, augment, quant."),
        Column("overrides", "Options", "What else the command sets.", shown=any(f.words for f in found), code=True),
        Column("tuning", "Tuning trials", "Of each fold.", "number"),
    )
    table = Table(name, "Held out in turn: every fold's test is another part of the data", columns)
    places = common.digits(one.score.mean for one in found)
    for one in found:
        own = one.setting
        parts = (own.pair, own.preset, own.dataset, own.augment, own.quant, own.teacher and f"teacher {own.teacher}")
        newest = max(one.groups.values(), key=lambda g: g.newest.finished)
        table.add(
            Cell(one.method, href=site.group_page(newest)),
            common.count(len(one.groups)),
            common.count(one.seeds),
            *(common.estimate(e, places) for e in (one.score, one.scratch)),
            *(common.difference(d, places) for d in (one.vs_scratch, one.vs_kd)),
            *(common.estimate(g.score if (g := one.groups.get(fold)) else None, places) for fold in folds),
            Cell(" · ".join(part for part in parts if part not in ("", "none"))),
            Cell(charts.clip(one.words, 340) or NONE, note=one.words or None),
            common.count(one.trials),
            grey=not one.enough,
        )
    return table


def _failures(site: Site, name: str, task: str) -> Table:
    columns = (
        Column("method", "Method"),
        Column("setting", "Setting"),
        Column("seeds", "Seeds tried", kind="number"),
        Column("reason", "What happened", wrap=True),
    )
    table = Table(name, "Specifications of which no seed came to a score", columns)
    for group in site.boards.failures:
        if group.setting.task == task:
            setting = " · ".join(p for p in (group.setting.pair, group.setting.preset) if p)
            table.add(
                Cell(group.method, href=site.group_page(group)),
                Cell(setting),
                common.count(len(group.rows)),
                Cell(common.state(group.newest)),
                grey=True,
            )
    return table
