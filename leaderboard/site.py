"""What every page is made of, which page is where, and how one is written; :mod:`leaderboard.build` writes them all."""

from __future__ import annotations

import re
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic_core import to_json

from kdbench.base.digest import digest
from kdbench.matrix import Cell
from leaderboard.across import Across, across
from leaderboard.anchors import Anchor
from leaderboard.boards import Board, Boards
from leaderboard.exports import FILES, PAGE, Table, to_file, to_head, to_html, to_packed
from leaderboard.groups import MINIMUM, Group
from leaderboard.row import Row
from leaderboard.rows import Found
from leaderboard.verified import Verification

HERE = Path(__file__).resolve().parent
#: Runs that get a page of their own; the others are rows of their group's page.
RUN_PAGES = 1000
#: Groups that have a file of their own; the others share :data:`ANY`, which a script fills from packed pages.
GROUP_PAGES = 500
ANY = "groups/any.html"
#: Folders of packed pages and tables.
PACKED, TABLES = "data/groups", "data/tables"


class Job(NamedTuple):
    """Pages to be written: what does it, and of what, by a name or a place that another process knows too."""

    work: Callable[[Site, Any], None]
    item: Any


@dataclass
class Site:
    """Everything that pages are made of, and where they go.

    Attributes:
        folder: Where pages are written.
        boards: Groups and boards.
        anchors: Reported numbers.
        cells: Compatibility of methods, augments and quants with tasks; None leaves its page out.
        minimum: Seeds below which a row is grey.
        run_pages: Most pages of single runs; ``group_pages`` likewise of files of single groups.
        pages: How many were written.
        jobs: Pages that are still to be written, one by one and in any order (:mod:`leaderboard.spread`).
    """

    folder: Path
    found: Found
    boards: Boards
    anchors: Sequence[Anchor] = ()
    cells: Sequence[Cell] | None = None
    minimum: int = MINIMUM
    run_pages: int = RUN_PAGES
    group_pages: int = GROUP_PAGES
    pages: int = 0
    jobs: list[Job] = field(default_factory=list)
    _taken: dict[str, set[str]] = field(default_factory=lambda: {"groups": {Path(ANY).stem}})

    @cached_property
    def across(self) -> Across:
        """Figures over all tasks."""
        return across(self.boards)

    @cached_property
    def tasks(self) -> Mapping[str, list[Board]]:
        """Boards by task."""
        return self.boards.tasks

    def verified(self, group: Group) -> Verification | None:
        """Returns the newest verification of one of the runs that count of a group."""
        found = [v for row in group.rows if (v := self.found.verified.get(row.content_hash)) is not None]
        return max(found, key=lambda v: v.date, default=None)

    @cached_property
    def groups(self) -> list[Group]:
        """Every group: those of boards, failures, teachers."""
        return [
            *(group for board in self.boards.boards for group in board.groups),
            *self.boards.failures,
            *self.boards.teachers,
        ]

    @cached_property
    def by_method(self) -> Mapping[str, list[Group]]:
        """Every group by its method, names sorted."""
        found: dict[str, list[Group]] = {}
        for group in self.groups:
            found.setdefault(group.method, []).append(group)
        return dict(sorted(found.items()))

    @cached_property
    def methods(self) -> list[str]:
        """Names of all methods that have a record."""
        return list(self.by_method)

    @cached_property
    def task_names(self) -> list[str]:
        """Names of all tasks that have a record."""
        return sorted({group.setting.task for group in self.groups})

    @cached_property
    def task_pages(self) -> Mapping[str, str]:
        """Page of each task."""
        return {name: self._place("tasks", name) for name in self.task_names}

    @cached_property
    def method_pages(self) -> Mapping[str, str]:
        """Page of each method."""
        return {name: self._place("methods", name) for name in self.methods}

    @cached_property
    def board_of(self) -> Mapping[int, Board]:
        """The board of each group that has one, by the id of the group."""
        return {id(group): board for board in self.boards.boards for group in board.groups}

    @cached_property
    def _stems(self) -> dict[int, str]:
        return {id(g): self._place("groups", f"{g.method[:40]}-{g.spec_hash[:16]}") for g in self.groups}

    def stem(self, group: Group) -> str:
        """Returns what names the page and the files of a group."""
        return self._stems[id(group)].removeprefix("groups/").removesuffix(".html")

    @cached_property
    def filed(self) -> list[Group]:
        """The groups that have a file of their own: the newest."""
        return sorted(self.groups, key=lambda g: (-g.newest.finished, g.newest.order))[: self.group_pages]

    @cached_property
    def shards(self) -> Mapping[str, list[Group]]:
        """The other groups by the file that they are packed in: of one task and one first digit of the hash."""
        own = {id(group) for group in self.filed}
        found: dict[str, list[Group]] = {}
        for group in self.groups:  # board by board: neighbours have the same twins, which packs well
            if id(group) not in own:
                found.setdefault(self._shard(group), []).append(group)
        return found

    def _shard(self, group: Group) -> str:
        return f"{Path(self.task_pages[group.setting.task]).stem}-{group.spec_hash[0]}"

    @cached_property
    def _group_pages(self) -> Mapping[int, str]:
        found = {
            id(group): f"{ANY}?s={quote(shard)}&g={quote(self.stem(group))}"
            for shard, groups in self.shards.items()
            for group in groups
        }
        return self._stems | found

    def group_page(self, group: Group) -> str:
        """Returns the page of a group."""
        return self._group_pages[id(group)]

    @cached_property
    def paged(self) -> list[tuple[Group, Row]]:
        """The runs that get a page: of those that count the newest."""
        runs = [(group, row) for group in self.groups for row in group.rows]
        runs.sort(key=lambda item: (-item[1].finished, item[1].order))
        return runs[: self.run_pages]

    @cached_property
    def run_page(self) -> Mapping[str, str]:
        """Page of each run that has one, by the path of its record."""
        return {row.path: self._place("runs", row.run_id) for _, row in self.paged}

    def _place(self, folder: str, name: str) -> str:
        """Returns a page for a name that is free, also where files do not tell case apart."""
        slug = re.sub(r"[^A-Za-z0-9_+=,-]", "-", name)
        if slug != name or len(slug) > 80:
            slug = f"{slug[:60]}-{digest(name)[:8]}"
        taken = self._taken.setdefault(folder, set())
        free, n = slug, 1
        while free.lower() in taken:
            n += 1
            free = f"{slug}-{n}"
        taken.add(free.lower())
        return f"{folder}/{free}.html"

    # ---- writing ----------------------------------------------------------------------------------------------

    @cached_property
    def _templates(self) -> Environment:
        environment = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters["rows"] = to_html
        environment.filters["head"] = lambda table: to_head(tuple(table.columns))
        navigation = [("Overview", "index.html"), ("Tasks", "tasks.html"), ("Methods", "methods.html")]
        navigation += [("Advice", "advice.html"), ("Claims", "claims.html"), ("Coverage", "coverage.html")]
        navigation += [("Compatibility", "compatibility.html")] if self.cells is not None else []
        environment.globals.update(
            navigation=[*navigation, ("About", "about.html")],
            formats=FILES,
            first=PAGE,
            packed=f"{TABLES}/",
            footer=self._footer(),
            minimum=self.minimum,
        )
        return environment

    def _footer(self) -> str:
        rows = self.found.rows
        if not rows:
            return "No records."
        newest = max(rows, key=lambda row: row.finished)
        return f"Built from {len(rows)} run records; the newest finished {newest.finished_utc} UTC."

    def known(self) -> None:
        """Works out where every page is, once for all processes that will ask."""
        _ = self._templates, self._group_pages, self.run_page, self.board_of

    def later(self, work: Callable[[Site, Any], None], items: Iterable[Any]) -> None:
        """Leaves pages to be written when all else is known."""
        self.jobs.extend(Job(work, item) for item in items)

    def page(self, path: str, template: str, *, title: str, tables: Iterable[Table] = (), **context: Any) -> None:
        """Writes a page, and the files of its tables.

        Args:
            path: Below the folder.
            template: Its file.
            title: Of the page.
            tables: Those that are offered as files.
            context: What the template reads.
        """
        self.write(path, self.render(path, template, title=title, **context))
        for table in tables:
            for ending, _ in table.files:
                self.write(f"data/{table.name}.{ending}", to_file(table, ending))
            if table.large:
                self.pack(f"{TABLES}/{table.name}.js", to_packed(table))
        self.pages += 1

    def render(self, path: str, template: str, *, title: str, bare: bool = False, **context: Any) -> str:
        """Returns a page, or ``bare`` what is its own of it; the rest as in :meth:`page`."""
        root = "../" * path.count("/")
        values = {"root": root, "here": path, "title": title, "bare": bare, "crumbs": [], "rich": True} | context
        return self._templates.get_template(template).render(values)

    def pack(self, path: str, content: Any) -> None:
        """Writes plain data as a script that a page can load from a file, compressed; ``site.js`` unpacks it."""
        packed = b64encode(zlib.compress(to_json(content), 6)).decode()
        self.write(path, f'kdbench.unpack("{Path(path).stem}", "{packed}");\n')

    def write(self, path: str, content: str | bytes) -> None:
        """Writes a file below the folder."""
        target = self.folder / path
        data = content.encode() if isinstance(content, str) else content
        try:
            target.write_bytes(data)
        except FileNotFoundError:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
