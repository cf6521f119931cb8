"""What a run says on the terminal when it has ended."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdbench.schema import Record, StudentModel, idle_terms


def show(record: Record, path: Path, console: Console) -> None:
    """Prints the closing table and the path of the record."""
    assert record.primary is not None
    name = record.primary.name
    table = Table(title=f"{record.task} · {record.method} · {record.pair} · seed {record.seed} · {record.preset}")
    for column in ("", f"test {name}", "best on val", "Δ scratch", "gap closed", "params", "MACs", "latency"):
        table.add_column(column, justify="right" if column else "left")
    base = record.scores.scratch.test[name] if record.scores.scratch else None
    compared = record.method if record.method != "none" else record.augment
    for role in ("teacher", "scratch", "student", "peer"):
        scores = getattr(record.scores, role)
        if scores is None or (role == "student" and record.method == "none" and scores == record.scores.scratch):
            continue  # the student is the scratch student
        value = scores.test[name]
        size = record.models.teacher if role == "teacher" else record.models.student
        table.add_row(
            {"scratch": "student, scratch", "student": f"student, {compared}"}.get(role, role),
            _number(value),
            _number((scores.best_on_val or {}).get(name)),
            _number(value - base, "+.2f") if base is not None and value is not None and role != "scratch" else "",
            f"{100 * record.gap_closed:.0f} %" if role == "student" and record.gap_closed is not None else "",
            f"{size.params / 1e6:.3f} M" if size and role != "peer" else "",
            f"{size.macs / 1e9:.2f} G" if size and size.macs and role != "peer" else "",
            f"{size.latency_ms:.1f} ms"
            if isinstance(size, StudentModel) and size.latency_ms and role == "student"
            else "",
        )
    console.print(table)
    if record.gap_reason:
        console.print(f"gap closed: none, {record.gap_reason}")
    for said in idle_terms(record.flags):
        console.print(Text.assemble(("warning", "yellow"), f": {said}, so that it taught nothing"), soft_wrap=True)
    console.print(f"record: {path}", soft_wrap=True)


def _number(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else format(value, form)
