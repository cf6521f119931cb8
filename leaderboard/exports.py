"""Tables as data: what a page shows and what its CSV, JSON, LaTeX and Markdown hold are one object.

``assets/site.js`` writes the same four formats from the rows and columns that are in view; with nothing filtered its
bytes equal these (tested in a browser), so a change here is a change there.
"""

from __future__ import annotations

import functools
import gzip
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from markupsafe import Markup

#: What shows an absent value.
NONE = "–"

#: Rows from which a page carries the first :data:`PAGE` only and a script the others, packed.
LARGE, PAGE = 500, 100

#: Kinds of columns whose values have ends.
ENDED = ("estimate", "range")
#: The direction in which values are better.
Direction = Literal["high", "low"]


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes:
        key: Name in CSV and JSON.
        label: Heading.
        help: What the numbers are, shown on the heading.
        kind: ``text``, ``number``, ``estimate``: a number with an interval, three columns in CSV and JSON, or
            ``range``: two ends, two columns.
        better: The direction in which values are better; None where there is no such.
        shown: Whether the column is in view before a reader chooses.
        facet: Whether rows can be filtered by its values.
        code: Whether it is set in a typewriter face.
        wrap: Whether its text may be long.
    """

    key: str
    label: str
    help: str = ""
    kind: Literal["text", "number", "estimate", "range"] = "text"
    better: Direction | None = None
    shown: bool = True
    facet: bool = False
    code: bool = False
    wrap: bool = False

    @property
    def heading(self) -> str:
        """The label with the direction of better values."""
        return self.label + {"high": "\u00a0↑", "low": "\u00a0↓", None: ""}[self.better]


@dataclass(slots=True)
class Cell:
    """A value: what is shown, the number behind it (not of texts), where it leads, a remark, a class.

    ``order`` is what a column is sorted by where that is not the number.
    """

    text: str = NONE
    value: float | None = None
    low: float | None = None
    high: float | None = None
    href: str | None = None
    note: str | None = None
    css: str = ""
    order: float | None = None

    @property
    def raw(self) -> str:
        """What CSV and sorting use: the whole number, or the text."""
        return number(self.value) if self.value is not None else "" if self.text == NONE else self.text


@dataclass(slots=True)
class Line:
    """A row; a grey one rests on fewer seeds than the protocol asks for."""

    cells: list[Cell]
    grey: bool = False


@dataclass(slots=True)
class Table:
    """A table of a page.

    Attributes:
        name: Names the table in permalinks and its files; unique in the site.
        caption: What it holds.
        columns: Columns.
        lines: Rows, in the order that a reader first sees.
        initial: Filters that are set when the page opens, by column key.
        digits: Significant digits of the numbers behind what is shown; None is all.
    """

    name: str
    caption: str
    columns: Sequence[Column]
    lines: list[Line] = field(default_factory=list)
    initial: dict[str, str] = field(default_factory=dict)
    digits: int | None = None

    @property
    def large(self) -> bool:
        """Whether a page carries the first rows only."""
        return len(self.lines) > LARGE

    @property
    def files(self) -> tuple[tuple[str, str], ...]:
        """The endings of its files and what they are called; those of a large table are compressed."""
        return _FILES_OF_LARGE if self.large else FILES

    def number(self, value: float) -> str:
        """Writes the number behind a cell."""
        return number(value) if self.digits is None else format(value, f".{self.digits}g")

    def add(self, *cells: Cell, grey: bool = False) -> None:
        """Adds a row."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{self.name}: {len(cells)} cells for {len(self.columns)} columns")
        self.lines.append(Line(list(cells), grey))


def number(value: float) -> str:
    """Writes a number whole: the shortest form that reads back as the same, integers without a point."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def to_html(table: Table, root: str, first: int | None = None) -> Markup:
    """Writes the rows of the table's body; a hundred thousand cells take a second, which templates do not.

    Args:
        table: The table.
        root: Path from the page to the folder of the site, put before links.
        first: How many rows; all by default.
    """
    kinds = [_classes(column) for column in table.columns]
    tags = [("td" if i else 'th scope="row"', "td" if i else "th") for i in range(len(kinds))]
    rows = []
    for line in table.lines[:first]:
        parts = ['<tr class="grey">' if line.grey else "<tr>"]
        for column, cell, css, (tag, end) in zip(table.columns, line.cells, kinds, tags, strict=True):
            if cell.css:
                css = f"{css} {cell.css}".strip()
            opening = f'{tag} class="{css}"' if css else tag
            if column.kind != "text":
                order = cell.value if cell.order is None else cell.order
                opening += f' data-order="{"" if order is None else table.number(order)}"'
                if cell.low is not None and cell.high is not None:
                    opening += f' data-low="{table.number(cell.low)}" data-high="{table.number(cell.high)}"'
            if cell.note:
                opening += f' title="{_escape(cell.note)}"'
            text = _escape(cell.text)
            if column.code:
                text = f"<code>{text}</code>"
            if cell.href:
                text = f'<a href="{_escape(root + cell.href)}">{text}</a>'
            parts.append(f"<{opening}>{text}</{end}>")
        parts.append("</tr>\n")
        rows.append("".join(parts))
    return Markup("".join(rows))


def _escape(text: str) -> str:
    """Escapes text; next to none needs it."""
    return escape(text) if _SPECIAL.search(text) else text


_SPECIAL = re.compile("[&<>\"']")


@functools.lru_cache(256)
def to_head(columns: tuple[Column, ...]) -> Markup:
    """Writes the headings of a table; those of most pages are the same."""
    cells = []
    for c in columns:
        short = ("n " if c.kind != "text" else "") + ("short" if len(c.heading) < 15 else "")
        said = f'scope="col" class="{short}" data-key="{escape(c.key)}" data-kind="{c.kind}"'
        said += f' data-better="{c.better}"' if c.better else ""
        flags = ((not c.shown, "hidden"), (c.facet, "facet"), (c.code, "code"), (c.wrap, "wrap"))
        said += "".join(f" data-{name}" for wanted, name in flags if wanted)
        said += f' title="{escape(c.help)}"' if c.help else ""
        cells.append(f"<th {said}>{escape(c.heading)}</th>\n")
    return Markup("".join(cells))


def to_packed(table: Table) -> dict[str, object]:
    """Returns the rows as plain data, from which ``site.js`` makes the cells that :func:`to_html` writes.

    A cell is its text, or a list: text, number behind it, its ends, remark, class, link, all texts.
    """
    rows = []
    for line in table.lines:
        cells: list[object] = []
        for column, cell in zip(table.columns, line.cells, strict=True):
            order = cell.value if cell.order is None else cell.order
            numbers: list[str | None] = [None, None, None]
            if column.kind != "text":
                ends = cell.low is not None and cell.high is not None
                values = (order, *((cell.low, cell.high) if ends else (None, None)))
                numbers = [None if value is None else table.number(value) for value in values]
            packed = [cell.text, *numbers, cell.note, cell.css or None, cell.href]
            while packed and not packed[-1]:
                packed.pop()
            cells.append(packed if len(packed) > 1 else cell.text)
        rows.append(cells)
    return {"rows": rows, "grey": [i for i, line in enumerate(table.lines) if line.grey]}


def _classes(column: Column) -> str:
    names = (("n", column.kind != "text"), ("wrap", column.wrap), ("hidden", not column.shown))
    return " ".join(name for name, wanted in names if wanted)


def _header(table: Table) -> list[str]:
    names = []
    for column in table.columns:
        if column.kind != "range":
            names.append(column.key)
        if column.kind in ENDED:
            names += [f"{column.key}_low", f"{column.key}_high"]
    return names


def _values(table: Table, line: Line) -> Iterable[tuple[str, bool]]:
    """Yields each value as text and whether it is a number."""
    for column, cell in zip(table.columns, line.cells, strict=True):
        if column.kind != "range":
            yield cell.raw, cell.value is not None
        if column.kind in ENDED:
            for end in (cell.low, cell.high):
                yield ("", False) if end is None else (number(end), True)


def _csv_value(text: str, is_number: bool) -> str:
    # A spreadsheet would run a text that begins like a formula.
    if not is_number and text[:1] in ("=", "+", "-", "@", "\t", "\r"):
        text = "'" + text
    return '"' + text.replace('"', '""') + '"' if re.search(r'[",\r\n]', text) else text


def to_csv(table: Table) -> str:
    """Writes comma separated values under one heading, lines ending in a line feed."""
    lines = [",".join(_csv_value(name, False) for name in _header(table))]
    lines += [",".join(_csv_value(*value) for value in _values(table, line)) for line in table.lines]
    return "\n".join(lines) + "\n"


_JSON = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


def _json_string(text: str) -> str:
    def escape(match: re.Match[str]) -> str:
        char = match[0]
        return _JSON.get(char) or f"\\u{ord(char):04x}"

    return '"' + re.sub(r'["\\\x00-\x1f]', escape, text) + '"'


def to_json(table: Table) -> str:
    """Writes a list with an object for each row; an absent value is null."""
    names = [_json_string(name) for name in _header(table)]
    rows = []
    for line in table.lines:
        values = (v if is_number else _json_string(v) if v else "null" for v, is_number in _values(table, line))
        rows.append(" {" + ", ".join(f"{n}: {v}" for n, v in zip(names, values, strict=True)) + "}")
    return "[\n" + ",\n".join(rows) + "\n]\n" if rows else "[]\n"


def to_markdown(table: Table) -> str:
    """Writes a table of GitHub's Markdown, values as shown."""

    def row(texts: Iterable[str]) -> str:
        return "| " + " | ".join(texts) + " |"

    rules = ["---:" if column.kind != "text" else "---" for column in table.columns]
    lines = [row(_markdown(column.heading) for column in table.columns), row(rules)]
    lines += [row(_markdown(cell.text) for cell in line.cells) for line in table.lines]
    return "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
    return _MARKED.sub(r"\\\1", _SPACE.sub(" ", text))


_MARKED, _SPACE = re.compile(r"([\\`*_\[\]<>|#&~])"), re.compile(r"\s+")


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
    "·": r"$\cdot$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "≥": r"$\geq$",
    "–": "--",
    "…": r"\ldots{}",
    "µ": r"\textmu{}",
}


def latex(text: str) -> str:
    """Escapes text for LaTeX."""

    def escape(match: re.Match[str]) -> str:
        return _LATEX.get(match[0], "\\" + match[0])

    return _SET.sub(escape, _SPACE.sub(" ", text))


_SET = re.compile(r'[\\~^<>|"±−×Δ·↑↓≥–…µ&%$#_{}]')


def to_latex(table: Table) -> str:
    """Writes a ``tabular`` of the package booktabs, values as shown."""
    align = "".join("l" if column.kind == "text" else "r" for column in table.columns)
    lines = [f"% {latex(table.caption)}", f"\\begin{{tabular}}{{{align}}}", "\\toprule"]
    lines += [" & ".join(latex(column.heading) for column in table.columns) + r" \\", "\\midrule"]
    lines += [" & ".join(latex(cell.text) for cell in line.cells) + r" \\" for line in table.lines]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


FORMATS = {"csv": to_csv, "json": to_json, "tex": to_latex, "md": to_markdown}
FILES = (("csv", "CSV"), ("json", "JSON"), ("tex", "LaTeX"), ("md", "Markdown"))
_FILES_OF_LARGE = (("csv.gz", "CSV"), ("json.gz", "JSON"))


def to_file(table: Table, ending: str) -> bytes:
    """Writes one of :attr:`Table.files`."""
    suffix, _, packed = ending.partition(".")
    content = FORMATS[suffix](table).encode()
    return gzip.compress(content, 6, mtime=0) if packed else content
