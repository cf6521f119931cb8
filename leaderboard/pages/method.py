"""One page for each method: its paper and fidelity, where it helps and where it hurts."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import kdbench
from leaderboard import charts
from leaderboard.boards import BASELINE
from leaderboard.exports import NONE, Cell, Column, Table
from leaderboard.groups import Group
from leaderboard.pages import common
from leaderboard.pages.anchors import anchor_table
from leaderboard.site import Site

FIDELITY = {
    "equations": "follows the equations of its paper",
    "approximate": "approximate: some equations or constants could not be read",
}

#: A paragraph in pieces: text, and whether it is code.
Spans = tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What the sources say about a method, read without importing them.

    Attributes:
        title: First comment of its YAML file: authors, title, venue.
        summary: First line of the docstring of its module.
        sections: The rest of that docstring, see :func:`sections`.
        source: Module and class.
        reads: Kinds of features that its module needs, in the order of need.
    """

    title: str = ""
    summary: str = ""
    sections: tuple[tuple[str, tuple[Spans, ...]], ...] = ()
    source: str = ""
    reads: tuple[str, ...] = ()


@functools.cache
def facts(name: str) -> Facts:
    """Reads what is known about a method of this installation; an unknown one has no facts."""
    for folder in _conf_folders():
        path = folder / "method" / f"{name}.yaml"
        if re.fullmatch(r"[\w.+-]{1,200}", name) and path.is_file():
            break
    else:
        return Facts()
    lines = path.read_text().splitlines()
    title = " ".join(line.lstrip("# ").strip() for line in _leading_comment(lines))
    target = next((m[1] for line in lines if (m := re.match(r"_target_:\s*([\w.]+)", line))), "")
    module = target.rpartition(".")[0]
    source = Path(kdbench.__file__).parent.parent / (module.replace(".", "/") + ".py")
    if not module.startswith("kdbench.") or not source.is_file():
        return Facts(title=title, source=target)
    tree = ast.parse(source.read_text())
    summary, _, text = (ast.get_docstring(tree) or "").partition("\n\n")
    return Facts(title, summary, sections(text), target, _reads(tree))


def _reads(tree: ast.Module) -> tuple[str, ...]:
    """Returns the kinds in every ``Need(name, kind, …)`` of a module, one or a union of several."""
    kinds: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Need":
            given = [*node.args[1:2], *(k.value for k in node.keywords if k.arg in ("kind", "kinds"))]
            named = (part for value in given for part in ast.walk(value))
            kinds |= dict.fromkeys(part.id for part in named if isinstance(part, ast.Name) and part.id[0].isupper())
    return tuple(kinds)


def sections(text: str) -> tuple[tuple[str, tuple[Spans, ...]], ...]:
    """Takes a docstring apart: headings such as ``Deviations:`` with the paragraphs below, lines joined.

    A line indented like the first one below its heading begins a paragraph; one indented more goes on with it.
    """
    found: list[tuple[str, list[str]]] = []
    fresh = True
    for line in text.splitlines():
        body, depth = line.strip(), len(line) - len(line.lstrip())
        head = re.match(r"([A-Z][a-z]+(?:\(s\))?s?):(?:\s+|$)(.*)", body) if depth == 0 else None
        if head:
            found.append((head[1], [head[2]] if head[2] else []))
            fresh = not head[2]
        elif not body:
            fresh = True
        else:
            if not found:
                found.append(("", []))
            paragraphs = found[-1][1]
            if fresh or depth == 4 or not paragraphs:
                paragraphs.append(body)
            else:
                paragraphs[-1] += " " + body
            fresh = False
    return tuple((heading, tuple(map(_spans, paragraphs))) for heading, paragraphs in found)


def _spans(text: str) -> Spans:
    return tuple((piece, bool(i % 2)) for i, piece in enumerate(re.split(r"``(.+?)``", text)) if piece)


def _conf_folders() -> list[Path]:
    package = Path(kdbench.__file__).parent
    found = [package / "conf", package.parent / "conf"]
    for entry in importlib.metadata.entry_points(group="kdbench.conf"):
        root = Path(str(entry.dist.locate_file(""))) if entry.dist else package.parent
        found.append(root / entry.value.replace(".", "/"))
    return found


def _leading_comment(lines: list[str]) -> list[str]:
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:end]


def write(site: Site) -> None:
    """Writes the list of methods and the page of each."""
    columns = (
        Column("method", "Method"),
        Column("paper", "Paper", wrap=True),
        Column("fidelity", "Fidelity", facet=True),
        Column("gap", "Gap closed", "Mean over the common cells of the overview.", "estimate", "high"),
        Column("tasks", "Tasks", kind="number"),
        Column("groups", "Specifications", kind="number"),
        Column("runs", "Runs", kind="number"),
    )
    table = Table("methods", "Methods", columns)
    overall = {method.name: method for method in site.across.methods}
    for name, groups in site.by_method.items():
        method = overall.get(name)
        table.add(
            Cell(name, href=site.method_pages[name]),
            Cell(facts(name).title or NONE),
            Cell(_fidelity(groups)),
            common.estimate(method.gap if method else None, 0, percent=True),
            common.count(len({g.setting.task for g in groups if g.seeds})),
            common.count(len(groups)),
            common.count(sum(len(g.rows) + len(g.superseded) for g in groups)),
        )
    site.page("methods.html", "methods.html", title="Methods", tables=[table], table=table)
    site.later(_page, site.methods)


def _fidelity(groups: Sequence[Group]) -> str:
    """Returns what the newest record says."""
    return max((group.newest for group in groups), key=lambda row: row.finished).fidelity


def _page(site: Site, name: str) -> None:
    groups, known = site.by_method[name], facts(name)
    fidelity = _fidelity(groups)
    stem = site.method_pages[name].removeprefix("methods/").removesuffix(".html")
    table = _table(site, f"method-{stem}", name, groups)
    anchors = anchor_table(site, f"reports-{stem}", method=name)
    chosen = [
        (board, method.groups[i])
        for method in site.across.methods
        if method.name == name
        for i, board in enumerate(site.across.boards)
        if i in method.groups
    ]
    gaps = []
    verdicts: dict[str, list[tuple[str, Group]]] = {"better": [], "worse": [], "open": []}
    for board, group in chosen:
        label = f"{board.setting.task}, {board.setting.pair}"
        if group.gap is not None:
            gaps.append(common.percent_dot(label, group.gap))
        if group.vs_scratch.verdict:
            verdicts[group.vs_scratch.verdict].append((label, group))
    against = [
        (word, [(label, site.group_page(group)) for label, group in verdicts[key]])
        for key, word in (("better", "Helps"), ("worse", "Hurts"), ("open", "Not told apart from scratch"))
    ]
    title = f"{name}: gap closed, %"
    site.page(
        site.method_pages[name],
        "method.html",
        title=name,
        crumbs=[("Methods", "methods.html")],
        tables=[t for t in (table, anchors) if t.lines],
        facts=known,
        fidelity=FIDELITY.get(fidelity, fidelity),
        approximate=fidelity != "equations",
        table=table,
        anchors=anchors,
        verdicts=against,
        chart=charts.dots("gaps", gaps, x_label="gap closed, %", title=title, gutter=190),
        compatible=[c for c in site.cells or () if c.axis == "method" and c.name == name],
        baseline=BASELINE,
    )


def _table(site: Site, table_name: str, name: str, groups: list[Group]) -> Table:
    columns = (
        Column("task", "Task", facet=True),
        Column("pair", "Pair", facet=True),
        Column("setting", "Preset and data", facet=True),
        Column("score", "Score", "Primary metric on test after the last epoch.", "estimate"),
        Column("metric", "Metric"),
        Column("vs_scratch", "Δ scratch", "Paired difference to the student trained alone.", "estimate"),
        Column("vs_kd", f"Δ {BASELINE}", f"Paired difference to {BASELINE} tuned alike.", "estimate"),
        Column("gap", "Gap closed", "", "estimate", "high"),
        Column("rank", "Rank", "Among the rows of its setting; sorted by settings first.", "range", "low"),
        Column("seeds", "Seeds", kind="number"),
        Column("tuning", "Tuning trials", kind="number", shown=False),
        Column("overrides", "Options", code=True),
        Column("spec", "Spec", code=True),
        Column("note", "Note", wrap=True),
    )
    table = Table(table_name, f"{name}: every specification, task by task", columns)
    order = {id(g): i for i, board in enumerate(site.boards.boards) for g in board.groups}
    for group in sorted(groups, key=lambda g: order.get(id(g), 10**9)):
        own = group.setting
        parts = [part for part in (own.preset, own.dataset, own.fold and f"fold {own.fold}") if part]
        parts += [part for part in (own.augment, own.quant) if part != "none"]
        places = common.digits([group.score.mean if group.score else None])
        words = common.overrides(group.newest.command)
        table.add(
            Cell(own.task, href=site.group_page(group)),
            Cell(own.pair),
            Cell(" · ".join(parts)),
            common.estimate(group.score, places),
            Cell((group.primary or NONE) + ("" if not group.primary else " ↑" if group.higher_is_better else " ↓")),
            common.difference(group.vs_scratch, places),
            common.difference(group.vs_kd, places),
            common.gap(group),
            common.rank(group, order.get(id(group), 0)),
            common.count(len(group.seeds)),
            common.count(group.trials),
            Cell(charts.clip(words, 340) or NONE),
            Cell(group.spec_hash[:10]),
            common.text(common.note(group) if group.seeds else common.state(group.newest)),
            grey=not group.enough,
        )
    return table
