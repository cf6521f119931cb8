"""The console of every command: what it prints is text, in which brackets and colons mean nothing."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import TextColumn

#: Columns of a file or a pipe, wide enough for the tables.
WIDTH = 140


def terminal(width: int | None = None) -> Console:
    """Returns a console that prints words of others (paths, messages, names) as they are.

    Rich would read ``[/x]`` as the end of a style, which raises, drop ``[x]`` and turn ``:x:`` into a picture. A style
    is given by ``style=`` or :class:`rich.text.Text`.

    Args:
        width: Columns; those of the terminal, or :data:`WIDTH` where the output is a file or a pipe, if None.
    """
    if width is None and not sys.stdout.isatty():
        width = WIDTH
    return Console(markup=False, emoji=False, highlight=False, width=width)


def decimals(size: float) -> int:
    """Returns how many decimals a score of that size is printed with: two, below 1 four."""
    return 2 if abs(size) >= 1 else 4


def text_column(template: str, style: str = "none") -> TextColumn:
    """Returns a column of a progress bar that shows the words of others as they are."""
    return TextColumn(template, style=style, markup=False)
