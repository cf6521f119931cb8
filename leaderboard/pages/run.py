"""One page for each run that counts: configuration, curves, share of each term, picture, command, hashes, machine."""

from __future__ import annotations

import math
import re
from pathlib import Path

from markupsafe import Markup

from kdbench.errors import KDBenchError
from kdbench.records.record import CONFIG, CURVES, RUN
from kdbench.records.schema import Record, idle_terms
from leaderboard import charts
from leaderboard.exports import NONE, Cell, Column, Table
from leaderboard.foreign import foreign
from leaderboard.pages import common, curves
from leaderboard.pages.curves import Epochs
from leaderboard.rows import full_record
from leaderboard.site import Site

PREVIEW = "preview.png"
PNG = b"\x89PNG\r\n"
#: What plugins drew, and how many files a page looks at.
DRAWN, MOST = re.compile(r"(?:augment|method|quant)_[a-z0-9_]{1,40}"), 12
#: Largest size of a file that a page takes over.
SIZES = {CONFIG: 200_000, CURVES: curves.LARGEST, PREVIEW: 5_000_000, RUN: 8_000_000}
ROLES = (
    *(Column(role, role.capitalize(), "Test, last epoch.", "number") for role in ("student", "scratch", "teacher")),
    *common.RARE,
)


def write(site: Site) -> None:
    """Writes the pages of the newest runs."""
    site.later(_page, range(len(site.paged)))


def _page(site: Site, place: int) -> None:
    group, row = site.paged[place]
    try:
        record = full_record(row)
    except KDBenchError:
        return  # changed since it was read; its row of the group stays
    path = site.run_page[row.path]
    stem = path.removesuffix(".html")
    folder = Path(row.path).parent
    files = {name: curves.read(folder / name, size) for name, size in SIZES.items()}
    if Path(row.path).name != RUN:  # a single file, with nothing beside it
        files = dict.fromkeys(SIZES) | {RUN: curves.read(Path(row.path), SIZES[RUN])}
    picture = files[PREVIEW] if (files[PREVIEW] or b"").startswith(PNG) else None
    for suffix, content in (("json", files[RUN]), ("csv", files[CURVES]), ("png", picture)):
        if content is not None:
            site.write(f"{stem}.{suffix}", content)
    drawn = _pictures(folder) if Path(row.path).name == RUN else {}
    for suffix, content in drawn.items():
        site.write(f"{stem}-{suffix}.png", content)
    epochs = curves.epochs(files[CURVES])
    config = files[CONFIG]
    name = stem.removeprefix("runs/")
    site.page(
        path,
        "run.html",
        title=f"{row.method} on {row.task}, seed {row.seed}",
        crumbs=[
            ("Tasks", "tasks.html"),
            (row.task, site.task_pages[row.task]),
            (f"{row.method}, all seeds", site.group_page(group)),
        ],
        row=row,
        record=record,
        group=group,
        idle=idle_terms(row.flags),
        foreign=foreign(row.command),
        tuned=common.tuned(row, group.trial_spread),
        files={"json": True, "csv": files[CURVES] is not None, "png": picture is not None},
        stem=name,
        drawn={suffix: suffix.replace("_", ", ") for suffix in drawn},
        config=config.decode("utf-8", "replace") if config else None,
        scores=_scores(f"scores-{name}", record),
        terms=_terms(f"terms-{name}", record),
        curves=_curves(record, epochs),
        shares=_shares(record, epochs),
        finished=row.finished_utc,
        minutes=(row.finished - row.started) / 60,
        where=common.tail(row.path),
        sizes=_sizes(f"sizes-{name}", record),
    )


def _pictures(folder: Path) -> dict[str, bytes]:
    """Reads what plugins drew beside the preview, ``<axis>_<name>.png``, by the file's stem."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.png"))[:MOST]:
        content = curves.read(path, SIZES[PREVIEW]) if DRAWN.fullmatch(path.stem) else None
        if content is not None and content.startswith(PNG):
            found[path.stem] = content
    return found


def _names(epochs: Epochs, start: str) -> list[str]:
    return [name.removeprefix(start) for name in (epochs[0] if epochs else {}) if name.startswith(start)]


def _weighted(epochs: Epochs, term: str) -> list[tuple[float, float]]:
    return [
        (row.get("epoch", float(i)), row[f"train/{term}"] * row.get(f"weight/{term}", 1.0))
        for i, row in enumerate(epochs)
        if f"train/{term}" in row
    ]


def _curves(record: Record, epochs: Epochs) -> list[tuple[Markup, str]]:
    drawn: list[tuple[Markup | None, str]] = []
    terms = [(t, _weighted(epochs, t)) for t in _names(epochs, "train/")]
    lines = [(t, line) for t, line in terms if any(v for _, v in line)][: charts.STYLES]
    caption = "Terms of the loss times their weights, mean of each epoch."
    title = "Training loss by epoch"
    drawn.append((charts.curves("loss", lines, x_label="epoch", y_label="weighted loss", title=title), caption))
    if record.primary:
        name = record.primary.name
        line = [(name, curves.line(epochs, f"val/{name}"))]
        title = f"Validation {name} by epoch"
        drawn.append((charts.curves("val", line, x_label="epoch", y_label=f"val {name}", title=title), title + "."))
    return [(chart, caption) for chart, caption in drawn if chart is not None]


def _shares(record: Record, epochs: Epochs) -> Markup | None:
    """Draws which share of the loss each term has in the first and the last epoch."""
    first: list[tuple[str, float]] = []
    last: list[tuple[str, float]] = []
    for name, term in record.terms.items():
        weights = [w for _, w in curves.line(epochs, f"weight/{name}")]
        fixed = term.weight if isinstance(term.weight, int | float) else None
        ends = (weights[0], weights[-1]) if weights else (fixed, fixed)
        for found, value, weight in ((first, term.first, ends[0]), (last, term.last, ends[1])):
            found.append((name, abs(value * weight) if value is not None and weight is not None else 0.0))
    if len(record.terms) < 2 or not all(math.isfinite(v) for _, v in [*first, *last]):
        return None
    title = "Share of each term in the weighted loss"
    return charts.shares("shares", [("first", first), ("last", last)], title=title)


def _scores(name: str, record: Record) -> Table:
    known = [role for role in ROLES if role.key in record.scores]
    further = record.scores.keys() - {role.key for role in ROLES}
    known += [Column(n, n.replace("_", " ").capitalize(), "Test, last epoch.", "number") for n in sorted(further)]
    found = [(role, record.scores[role.key]) for role in known]
    columns = [Column("metric", "Metric")]
    for role, scores in found:
        columns.append(role)
        if role.key == "student" and scores.best_on_val:
            columns.append(
                Column("best", "Test, best on val", "Test score of the epoch that was best on validation.", "number")
            )
    table = Table(name, "Every test metric", columns)
    primary = record.primary.name if record.primary else None
    names = dict.fromkeys([*([primary] if primary else []), *(n for _, scores in found for n in scores.test)])
    for metric in names:
        values = []
        for role, scores in found:
            values.append(scores.test.get(metric))
            if role.key == "student" and scores.best_on_val:
                values.append(scores.best_on_val.get(metric))
        places = common.digits(values)
        table.add(
            Cell(metric + (" (primary)" if metric == primary else "")), *(common.plain(v, places) for v in values)
        )
    return table


def _terms(name: str, record: Record) -> Table:
    columns = (
        Column("term", "Term"),
        Column("weight", "Weight"),
        Column("first", "First epoch", "Unweighted mean.", "number"),
        Column("last", "Last epoch", "Unweighted mean.", "number"),
    )
    table = Table(name, "Terms of the loss", columns)
    for term, found in record.terms.items():
        weight = NONE if found.weight is None else _weight(found.weight)
        table.add(Cell(term), Cell(weight), common.plain(found.first), common.plain(found.last))
    return table


def _weight(weight: float | str) -> str:
    """Writes a weight without the last digits, in which 0.3 * 0.3 is not 0.09."""
    return weight if isinstance(weight, str) else format(weight, ".10g")


def _further(record: Record) -> list[tuple[str, str]]:
    """Returns the figures that converted students alone have, with their headings."""
    known = (
        ("agreement", "Same class, %"),
        ("openvino_ms", "OpenVINO, ms"),
        ("openvino_agreement", "OpenVINO, same class, %"),
    )
    return [(k, label) for k, label in known if any(getattr(m, k) is not None for m in record.models.values())]


def _sizes(name: str, record: Record) -> Table:
    columns = (
        Column("model", "Model"),
        *(Column(k, label, kind="number") for k, label in
          (("params", "Parameters"), ("macs", "MACs"), ("bytes", "Bytes"), ("packed_bytes", "Packed"),
           ("coded_bytes", "Coded"), ("bits", "Bits"), ("latency_ms", "Latency, ms"), *_further(record))),
    )  # fmt: skip
    table = Table(name, "Size of the models", columns)
    first = ("teacher", "student")
    for model in sorted(record.models, key=lambda name: (name not in first, first.index(name) if name in first else 0)):
        values = [getattr(record.models[model], c.key) for c in columns[1:]]
        table.add(Cell(model), *(common.plain(v) for v in values))
    return table
