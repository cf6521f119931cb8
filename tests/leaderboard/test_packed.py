"""Boards of many records: packed pages and tables, several processes, charts that stay readable."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest

from leaderboard import exports, spread
from leaderboard.boards import Boards
from leaderboard.boards import build as join
from leaderboard.build import build
from leaderboard.charts import Point
from leaderboard.exports import FORMATS, Cell, Column, Table, to_file, to_packed
from leaderboard.pages import pictures
from leaderboard.rows import Found, read
from leaderboard.site import ANY, Site
from tests.leaderboard.make_records import records, write
from tests.leaderboard.test_site import Page


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("records")
    write(folder, records(36, tasks=2, specs=6, seeds=3))
    return read([folder])


@pytest.fixture(scope="module")
def boards(found: Found) -> Boards:
    return join(found.rows)


@pytest.fixture(scope="module")
def whole(found: Found, boards: Boards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("whole") / "out", found, boards, run_pages=2).out


@pytest.fixture(scope="module")
def packed(found: Found, boards: Boards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("packed") / "out", found, boards, run_pages=2, group_pages=2).out


def unpack(path: Path) -> Any:
    name, text = re.fullmatch(r'kdbench\.unpack\("([^"]+)", "([A-Za-z0-9+/=]+)"\);\n', path.read_text()).groups()  # type: ignore[union-attr]
    assert name == path.stem
    return json.loads(zlib.decompress(b64decode(text)))


def content(path: Path) -> str:
    return re.search(r'<main id="content">\n(.*)</main>', path.read_text(), re.DOTALL)[1]  # type: ignore[index]


def test_a_packed_page_is_what_its_file_would_be(whole: Path, packed: Path) -> None:
    files = {path.stem for path in (packed / "groups").glob("*.html")} - {Path(ANY).stem}
    pages = {k: v for path in (packed / "data/groups").glob("*.js") for k, v in unpack(path).items()}
    assert len(files) == 2
    assert files | pages.keys() == {path.stem for path in (whole / "groups").glob("*.html")}
    assert not files & pages.keys()
    for stem, (title, html) in pages.items():
        own = content(whole / f"groups/{stem}.html")
        assert f"<h1>{title}</h1>" in own
        shown = re.sub(r'<p class="small"><a download.*\n', "", own)
        for known in (shown, html):
            assert "<h2>Runs</h2>" in known
        addresses = re.compile(r'href="[^"]*"')
        assert addresses.sub("", html).split() == addresses.sub("", shown).split()


def test_links_lead_into_packed_pages(packed: Path) -> None:
    places = set()
    for path in packed.rglob("*.html"):
        for link in Page(path).links:
            target, _, query = link.partition("?")
            if query:
                assert (path.parent / target).resolve() == packed / ANY
                shard, stem = re.fullmatch(r"s=([\w-]+)&g=([\w-]+)", query).groups()  # type: ignore[union-attr]
                places.add((shard, stem))
    known = {(path.stem, stem) for path in (packed / "data/groups").glob("*.js") for stem in unpack(path)}
    assert places == known


def test_numbers_behind_a_metric_have_seven_digits() -> None:
    table = Table("t", "", [Column("x", "x", kind="estimate")], digits=7)
    table.add(Cell("72.12", 72.123456789, 1 / 3, 100.0))
    assert 'data-order="72.12346" data-low="0.3333333" data-high="100"' in exports.to_html(table, "")


def large(rows: int) -> Table:
    columns = [Column("name", "Name"), Column("x", "x", kind="estimate"), Column("code", "Code", code=True)]
    table = Table("t", "Many rows", columns)
    for i in range(rows):
        table.add(Cell(f"<b>{i}", href=f"a.html?i={i}"), Cell("1.00", 1.0, 0.5, 1.5, note="p"), Cell(), grey=i % 2 == 0)
    return table


def test_a_large_table_is_packed_and_its_files_are_compressed(tmp_path: Path) -> None:
    table = large(exports.LARGE + 1)
    assert not large(exports.LARGE).large
    assert [ending for ending, _ in table.files] == ["csv.gz", "json.gz"]
    for ending, _ in table.files:
        assert gzip.decompress(to_file(table, ending)).decode() == FORMATS[ending.partition(".")[0]](table)
    assert to_file(table, "csv.gz") == to_file(table, "csv.gz")
    plain = to_packed(table)
    assert plain["rows"][1] == [  # type: ignore[index]
        ["<b>1", None, None, None, None, None, "a.html?i=1"],
        ["1.00", "1", "0.5", "1.5", "p"],
        "–",
    ]
    assert plain["grey"][:2] == [0, 2]  # type: ignore[index]
    Site(tmp_path, Found([], [], 0, 0), Boards()).pack("data/t.js", plain)
    assert unpack(tmp_path / "data/t.js") == plain
    assert exports.to_html(table, "", 100).count("<tr") == 100


def test_several_processes_write_the_same(
    found: Found, boards: Boards, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "cores", lambda: 2)
    monkeypatch.setattr(spread, "SHARE", 1)
    built = build(tmp_path / "out", found, boards, run_pages=2, group_pages=2)

    def digests(folder: Path) -> dict[str, str]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    assert digests(built.out) == digests(packed)
    inside = sum(len(unpack(path)) for path in (packed / "data/groups").glob("*.js"))
    assert built.pages == len(list(packed.rglob("*.html"))) + inside


def test_a_chart_of_many_points_keeps_the_front_and_the_best() -> None:
    points = [Point(f"m{i}", float(i), i / 10, kind="method") for i in range(500)]
    points += [Point("grey", 0.5, 99.0, kind="grey"), Point("teacher", 9.0, 60.0, kind="teacher")]
    shown = pictures._fewer(points, True)
    assert {p.label for p in points[:500]} == {p.label for p in shown if p.kind == "method"}, "all are on the front"
    for p in points[:500]:
        assert p in shown
    flat = [Point(f"m{i}", 1.0 + i, -float(i), kind="method") for i in range(500)] + points[500:]
    shown = pictures._fewer(flat, True)
    assert [p.label for p in shown[:3]] == ["m0", "m1", "m2"]
    assert len(shown) == pictures.POINTS + 1
    assert shown[-1].kind == "teacher"
    assert pictures._fewer(flat[:100], True) == flat[:100]
