"""What a run says on the terminal when it has ended."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdbench.records.schema import Primary, Record, warnings_of


def show(record: Record, path: Path, console: Console) -> None:
    """Prints the closing table and the path of the record."""
    assert record.primary is not None
    assert record.dataset is not None
    name, unit = record.primary.name, record.primary.unit
    names = (record.task, record.dataset.name, record.method, record.pair, record.preset)
    sizes = record.dataset.sizes
    table = Table(
        title=" · ".join(names),
        caption=f"One seed ({record.seed}): differences may be chance. {sizes.test} test samples, "
        f"{name}{f' in {unit}' if unit else ''}, {'higher' if record.primary.higher_is_better else 'lower'} is better.",
    )
    for column in (
        "", f"test {name}", "test, of the epoch best on val", "Δ scratch", "gap closed", "params", "MACs", "latency"
    ):  # fmt: skip
        table.add_column(column, justify="right" if column else "left")
    scratch = record.scores.get("scratch")
    base = scratch.test[name] if scratch else None
    compared = record.method if record.method != "none" else record.augment
    first = ("teacher", "scratch", "student")
    for role in (*(r for r in first if r in record.scores), *(r for r in record.scores if r not in first)):
        scores = record.scores[role]
        if role == "student" and record.method == "none" and scores == scratch:
            continue  # the student is the scratch student
        value = scores.test[name]
        size = record.models.get("student" if role == "scratch" else role)
        table.add_row(
            {
                "scratch": "student, scratch",
                "scratch_matched": "student, scratch, same compute",
                "student": f"student, {compared}",
            }.get(role, role),
            _number(value, unit),
            _number((scores.best_on_val or {}).get(name), unit),
            _difference(value, base, record.primary) if role != "scratch" else "",
            f"{100 * record.gap_closed:.0f} %" if role == "student" and record.gap_closed is not None else "",
            _scaled(size.params) if size and size.params else "",
            _scaled(size.macs) if size and size.macs else "",
            f"{size.latency_ms:.1f} ms" if size and size.latency_ms and role != "scratch" else "",
        )
    console.print(table)
    if record.gap_reason:
        console.print(f"gap closed: none, {record.gap_reason}")
    for said in warnings_of(record.flags):
        console.print(Text.assemble(("warning", "yellow"), f": {said}"), soft_wrap=True)
    console.print(f"record: {path}", soft_wrap=True)


def _number(value: float | None, unit: str | None, sign: str = "") -> str:
    if value is None:
        return ""
    return f"{value:{sign}.2f} {unit}" if unit == "%" else f"{value:{sign}.4g}"


def _difference(value: float | None, base: float | None, primary: Primary) -> str:
    """Writes how far a score is from that of the scratch student, and which of the two is better."""
    if value is None or base is None:
        return ""
    verdict = "" if value == base else " better" if (value > base) == primary.higher_is_better else " worse"
    points = "pp" if primary.unit == "%" else ""
    text = f"{value - base:+.2f} {points}" if points else f"{value - base:+.3g}"
    return text + verdict


def _scaled(count: int) -> str:
    """Writes a count to three digits: 980, 16.9 K, 283 M."""
    if count < 1000:
        return str(count)
    size = count / 1000
    for unit in "KMG":
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} T"
