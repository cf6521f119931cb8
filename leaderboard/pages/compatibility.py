"""Which methods, augments and quantisations fit which task, computed from what they need and offer."""

from __future__ import annotations

from collections.abc import Sequence

from kdbench import matrix
from leaderboard.exports import NONE, Cell, Column, Table
from leaderboard.site import Site


def write(site: Site, cells: Sequence[matrix.Cell]) -> None:
    """Writes the matrix and the reasons of its holes."""
    tasks = sorted({c.task for c in cells})
    axes: dict[str, list[str]] = {}
    for cell in cells:
        names = axes.setdefault(cell.axis, [])
        if cell.name not in names:
            names.append(cell.name)
    columns = (
        Column("name", "Name"),
        Column("axis", "Axis", facet=True),
        Column("task", "Task", facet=True),
        Column("fits", "Fits", facet=True),
        Column("pair", "Pair", code=True),
        Column("reason", "Why not, or not beside which methods", wrap=True),
    )
    table = Table("cells", "Every combination", columns)
    for cell in sorted(cells, key=lambda c: (c.axis != "method", c.axis, c.name, c.task)):
        table.add(
            Cell(cell.name, href=site.method_pages.get(cell.name) if cell.axis == "method" else None),
            Cell(cell.axis),
            Cell(cell.task, href=site.task_pages.get(cell.task)),
            Cell("yes" if cell.ok else "no", css="cell-ok" if cell.ok else "cell-no"),
            Cell(cell.pair or NONE),
            Cell(cell.reason or cell.refuses or NONE),
            grey=not cell.ok,
        )
    site.page(
        "compatibility.html",
        "compatibility.html",
        title="Compatibility",
        tables=[table],
        tasks=tasks,
        axes=axes,
        cells={(c.axis, c.name, c.task): c for c in cells},
        table=table,
    )
