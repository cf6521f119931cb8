"""The built site as files: every page, links that lead somewhere, escaping, determinism, what is written where."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from kdbench.errors import KDBenchError
from kdbench.matrix import Cell
from leaderboard import anchors
from leaderboard.boards import build as join
from leaderboard.build import MARKER, Built, build
from leaderboard.pages import common, method
from leaderboard.rows import Found, read
from tests.leaderboard.make_records import records, write

CELLS = [
    Cell("method", "kd", "classification", "resnet32x4_resnet8x4", True, None),
    Cell("method", "ab", "classification", "resnet32x4_resnet8x4", True, None),
    Cell("method", "ab", "depth", None, False, 'AB needs <b>Activated</b> ("stages")'),
    Cell("quant", "none", "depth", "dpt_small", True, None),
]
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)> & {{ 7*7 }} $x$"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("records")
    write(folder, records(120, tasks=5, specs=8, seeds=3))
    run = sorted(folder.glob("classification/kd/*/run.json"))[0].parent
    (run / "config.yaml").write_text(f"method: kd\nnote: '{HOSTILE}'\n")
    (run / "metrics.csv").write_text(
        "epoch,train/task,train/kd,weight/task,weight/kd,val/top1\n0,2.5,1,1,0.9,60\n1,2,0.5,1,0.9,\n2,1,x,1,0.9,72\n"
    )
    for name in ("preview", "augment_views", "augment_growth", 'augment_"><script>'):
        (run / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (run / "augment_broken.png").write_bytes(b"<svg>")
    return read([folder])


def make(out: Path, found: Found, **options: object) -> Built:
    return build(out, found, join(found.rows), anchors=anchors.load(), cells=CELLS, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def site(found: Found, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("site") / "out", found).out


class Page(HTMLParser):
    """Collects tags, addresses and names; complains about tags that do not close."""

    VOID = frozenset({"meta", "link", "input", "img", "br"})

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [v for k in ("href", "src", "data-href") if (v := values.get(k))]
        self.ids += [v for k, v in attrs if k == "id" and v]
        assert not [k for k, _ in attrs if k.startswith("on")], "no handler in an attribute"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def pages(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


def test_every_kind_of_page_is_there(site: Path, found: Found) -> None:
    names = [p.relative_to(site).as_posix() for p in pages(site)]
    for name in ("index", "tasks", "methods", "coverage", "compatibility", "about"):
        assert f"{name}.html" in names
    for folder in ("tasks/", "methods/", "groups/", "runs/"):
        assert any(name.startswith(folder) for name in names)
    assert len([n for n in names if n.startswith("runs/")]) == len(found.rows)
    assert (site / MARKER).is_file()


def test_pages_are_whole_and_every_link_leads_somewhere(site: Path) -> None:
    for path in pages(site):
        page = Page(path)
        assert page.open == [], path
        assert len(page.ids) == len(set(page.ids)), path
        for link in page.links:
            if link.startswith("#"):
                assert link[1:] in page.ids, (path, link)
                continue
            assert not re.match(r"[a-z]+:|//", link) or link == "data:,", (path, link)
            target, _, name = link.partition("#")
            assert link == "data:," or (path.parent / unquote(target)).is_file(), (path, link)
            if name:
                assert name in Page(path.parent / target).ids, (path, link)


def test_nothing_needs_a_network_a_module_or_a_font(site: Path) -> None:
    for path in [*pages(site), site / "assets/site.css", site / "assets/site.js"]:
        text = path.read_text(encoding="utf-8")
        assert 'type="module"' not in text
        assert "fetch(" not in text
        assert "@font-face" not in text
        assert "@import" not in text
        assert "http:" not in text.replace("http://www.w3.org/2000/svg", ""), path
        assert "https:" not in text, path


def test_the_same_records_give_the_same_bytes(site: Path, found: Found, tmp_path: Path) -> None:
    def digest(folder: Path) -> dict[str, str]:
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    again = make(tmp_path / "again", found).out
    assert digest(site) == digest(again)


def test_text_of_strangers_is_text_everywhere(found: Found, tmp_path: Path) -> None:
    """As if nothing had been refused: the pages escape whatever a row holds."""
    names = ("task", "method", "pair", "augment", "quant", "preset", "fidelity", "origin", "dataset", "fold", "digest")
    hostile = []
    for row in [r for r in found.rows if r.task == "classification"]:
        changes = dict.fromkeys([*names, "command", "cpu", "commit", "gpu", "config_digest", "code_digest"], HOSTILE)
        hostile.append(replace(row, **changes, reason=HOSTILE if not row.ok else None, gap_reason=HOSTILE))  # type: ignore[arg-type]
    cells = [Cell("method", HOSTILE, HOSTILE, None, False, HOSTILE)]
    reported = [replace(anchors.load()[0], task=HOSTILE, method=HOSTILE, source=HOSTILE, note=HOSTILE)]
    changed = found._replace(rows=hostile)
    out = build(tmp_path / "out", changed, join(hostile), anchors=reported, cells=cells).out
    scripts = {"index.html": 2}
    for path in pages(out):
        page = Page(path)
        assert page.tags.count("script") == scripts.get(path.name, 2), path
        assert "onerror" not in [t for t in page.tags], path
        assert page.tags.count("img") == len(list(path.parent.glob(f"{path.stem}*.png"))), path
        assert "49" not in [t.strip() for t in page.text], "a template ran text of a record"
    assert HOSTILE in "".join(Page(out / "coverage.html").text)
    for path in (out / "data").glob("task-*.tex"):
        body = path.read_text()
        assert "\\$x\\$" in body
        assert "<" not in body


def test_run_page_shows_curves_config_and_hashes(site: Path, found: Found) -> None:
    row = next(r for r in found.rows if Path(r.path).with_name("metrics.csv").exists())
    path = site / "runs" / f"{row.run_id}.html"
    page = Page(path)
    text = "".join(page.text)
    assert HOSTILE in text, "the configuration"
    for value in (row.command, row.content_hash, row.spec_hash, row.cpu):
        assert value in text
    assert page.tags.count("svg") == 3, "loss, validation, shares"
    assert path.with_suffix(".png").exists()
    assert {p.name.removeprefix(path.stem) for p in path.parent.glob(f"{path.stem}-*.png")} == {
        "-augment_growth.png",
        "-augment_views.png",
    }
    assert path.with_suffix(".json").read_bytes() == Path(row.path).read_bytes()


def test_runs_beyond_the_limit_are_rows_with_command_hashes_and_json(found: Found, tmp_path: Path) -> None:
    built = make(tmp_path / "out", found, run_pages=10)
    assert built.runs == 10
    assert built.left_out == len(found.rows) - 10
    kept = {p.stem for p in (built.out / "runs").glob("*.html")}
    newest = sorted(found.rows, key=lambda r: r.finished)[-10:]
    assert kept == {r.run_id for r in newest}
    commands = {
        (line["run_id"], line["command"], line["content_hash"])
        for path in (built.out / "data").glob("runs-*.json")
        for line in json.loads(path.read_text())
    }
    assert commands == {(r.run_id, r.command, r.content_hash) for r in found.rows}
    shown = "".join("".join(Page(p).text) for p in (built.out / "groups").glob("*.html"))
    assert all(r.command in shown and r.content_hash in shown for r in found.rows)


def test_files_of_a_table_agree_with_its_page(site: Path) -> None:
    rows = list(csv.DictReader(io.StringIO((site / "data/task-classification.csv").read_text())))
    page = (site / "tasks/classification.html").read_text()
    assert [r["method"] for r in rows] == re.findall(
        r'<tr(?: class="grey")?><th scope="row"><a[^>]*>([^<]*)</a>', page
    )[: len(rows)]
    assert [r["score"] for r in json.loads((site / "data/task-classification.json").read_text())] == [
        float(r["score"]) for r in rows
    ]
    for row in rows:
        assert f'data-order="{row["score"]}"' in page


def test_rows_with_few_seeds_are_grey_and_say_so(found: Found, tmp_path: Path) -> None:
    one = found._replace(rows=[r for r in found.rows if r.seed == 0])
    out = make(tmp_path / "out", one).out
    page = (out / "tasks/classification.html").read_text()
    assert '<tr class="grey">' in page
    assert "1 of at least 3 seeds" in page
    assert "No method has 3 seeds" in (out / "index.html").read_text()
    coverage = "".join(Page(out / "coverage.html").text)
    assert "python -m kdbench -m task=classification method=kd pair=" in coverage
    assert "seed=1,2" in coverage


def test_coverage_gives_every_hole_a_reason_and_a_command(site: Path) -> None:
    holes = json.loads((site / "data/holes.json").read_text())
    by_place = {(h["method"], h["task"]): h for h in holes}
    assert by_place["ab", "depth"]["state"] == "not applicable"
    assert by_place["ab", "depth"]["reason"] == CELLS[2].reason
    assert by_place["ab", "depth"]["command"] is None
    assert by_place["ab", "classification"]["state"] == "not run"
    assert "method=ab" in by_place["ab", "classification"]["command"]
    assert all(h["reason"] for h in holes)


def test_reported_numbers_are_apart(site: Path) -> None:
    page = (site / "tasks/classification.html").read_text()
    measured, _, reported = page.partition("Reported numbers</h2>")
    assert "RepDistiller" not in measured
    assert "RepDistiller" in reported


def test_no_records_give_a_site_that_says_so(tmp_path: Path) -> None:
    built = build(tmp_path / "out", Found([], [], 0, 0), join([]))
    assert "There are no records yet" in (built.out / "index.html").read_text()
    assert not (built.out / "compatibility.html").exists()


def test_a_folder_that_is_no_site_is_left_alone(found: Found, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("x")
    with pytest.raises(KDBenchError, match="not an earlier site"):
        build(mine, Found([], [], 0, 0), join([]))
    assert (mine / "thesis.tex").read_text() == "x"
    out = tmp_path / "out"
    make(out, found, run_pages=0)
    build(out, Found([], [], 0, 0), join([]))
    assert not (out / "tasks").exists(), "an earlier site is replaced whole"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["kd", "ctkd", "dkd", "bdkd", "none", "../../etc/passwd", "x" * 300])
def test_facts_of_methods_come_from_the_sources(name: str) -> None:
    known = method.facts(name)
    if name in ("kd", "ctkd", "dkd", "bdkd"):
        assert known.title
        assert known.sections
    if len(name) > 10:
        assert known == method.Facts()


def test_docstrings_are_taken_apart() -> None:
    text = "Papers:\n    KD: Hinton,\n        2015.\n    CTKD: Li.\nDeviations: one ``x = 1`` and\ntwo.\n\nMore: words"
    (papers, both), (deviations, one), _ = method.sections(text)
    assert papers == "Papers"
    assert [s[0][0] for s in both] == ["KD: Hinton, 2015.", "CTKD: Li."]
    assert deviations == "Deviations"
    assert one == ((("one ", False), ("x = 1", True), (" and two.", False)),)


def test_options_of_a_command_leave_out_what_columns_say() -> None:
    command = "python -m kdbench task=a method=kd seed=3 method.temperature=2 'data.root=/x y' trainer.threads=1 +a.b=2"
    assert common.overrides(command) == "method.temperature=2 +a.b=2"
