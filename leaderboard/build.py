"""Writes the whole site: static pages that open from a file, with no network and, if need be, no script.

::

    built = build(Path("site"), found, boards, anchors=anchors, cells=cells)   # Built(out, pages, runs, left_out)

The same records give the same bytes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kdbench.errors import KDBenchError
from kdbench.matrix import Cell
from leaderboard.anchors import Anchor
from leaderboard.boards import Boards
from leaderboard.groups import MINIMUM
from leaderboard.pages import about, advice, claims, compatibility, coverage, group, method, overview, run, task
from leaderboard.rows import Found
from leaderboard.site import GROUP_PAGES, HERE, RUN_PAGES, Site
from leaderboard.spread import finish

#: Marks a folder as a site, which a later build may replace.
MARKER = ".kdbench-site"


class Built(NamedTuple):
    """What :func:`build` wrote.

    Attributes:
        out: The folder; open its ``index.html``.
        pages: Pages in all.
        runs: Runs that have a page of their own.
        left_out: Runs that are rows of their group's page only.
    """

    out: Path
    pages: int
    runs: int
    left_out: int


def build(
    out: Path,
    found: Found,
    boards: Boards,
    *,
    anchors: Sequence[Anchor] = (),
    cells: Sequence[Cell] | None = None,
    minimum: int = MINIMUM,
    run_pages: int = RUN_PAGES,
    group_pages: int = GROUP_PAGES,
) -> Built:
    """Writes the whole site aside and puts it in place.

    Args:
        out: Folder of the site: new, empty or an earlier site.
        found: The records and what was wrong with others.
        boards: Their groups and boards.
        anchors: Numbers that papers report; shown apart, never ranked.
        cells: What :func:`kdbench.matrix.cells` returns; None leaves out the compatibility page.
        minimum: Seeds below which a row is grey.
        run_pages: Most pages of single runs.
        group_pages: Most files of single specifications; the pages of the others are packed together.

    Raises:
        KDBenchError: ``out`` holds something else, or cannot be written.
    """
    out = Path(os.path.abspath(out))
    if out.exists() and not (out.is_dir() and ((out / MARKER).exists() or not any(out.iterdir()))):
        raise KDBenchError(f"{out} is not an earlier site: choose another --out DIR or remove it")
    aside, old = (out.with_name(f".{out.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        aside.mkdir(parents=True)
        shutil.copytree(HERE / "assets", aside / "assets")
        site = Site(aside, found, boards, anchors, cells, minimum, run_pages, group_pages)
        for kind in (overview, task, method, advice, claims, group, run, coverage, about):
            kind.write(site)
        if cells is not None:
            compatibility.write(site, cells)
        finish(site)
        site.write(MARKER, "")
        if out.exists():
            out.rename(old)
        aside.rename(out)
    except OSError as error:
        raise KDBenchError(f"the site {out} cannot be written: {error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    runs = len(site.paged)
    return Built(out, site.pages, runs, len(found.rows) - runs)
