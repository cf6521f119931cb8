"""The site in a real browser, from files, with nothing else to load it from."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leaderboard import anchors
from leaderboard.boards import build as join
from leaderboard.build import build
from leaderboard.exports import FORMATS
from leaderboard.pages.task import group_table
from leaderboard.rows import Found, read
from leaderboard.site import Site
from tests.leaderboard.browsing import TABLE, Tab, axe, save
from tests.leaderboard.make_records import records, write
from tests.leaderboard.rows import in_order, scored
from tests.leaderboard.rows import row as make_row
from tests.leaderboard.test_site import CELLS

pytestmark = pytest.mark.browser

KINDS = (
    "index",
    "tasks",
    "task",
    "methods",
    "method",
    "group",
    "run",
    "coverage",
    "compatibility",
    "about",
    "advice",
    "claims",
)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site of two tasks, one of them with several settings, and a page with curves."""
    folder = tmp_path_factory.mktemp("browser")
    write(folder / "records", records(96, tasks=2, specs=16, seeds=3))
    run = sorted((folder / "records").glob("pointcloud/kd/*/run.json"))[0].parent
    (run / "config.yaml").write_text("seed: 0\n")
    lines = [f"{i},{3 - i / 10},{1 - i / 20},1,0.9,{50 + i}" for i in range(9)]
    head = "epoch,train/task,train/kd,weight/task,weight/kd,val/map_3d_moderate_r40"
    (run / "metrics.csv").write_text("\n".join([head, *lines]) + "\n")
    found = read([folder / "records"])
    boards = join(found.rows)
    build(folder / "site", found, boards, anchors=anchors.load(), cells=CELLS)
    return Site(folder / "site", found, boards)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site with one of everything, for checks that look at every cell."""
    folder = tmp_path_factory.mktemp("small")
    made = list(records(12, tasks=1, specs=5, seeds=3))
    lost = {"status": "failed", "reason": "RuntimeError: no such tap", "method": "fitnet"}
    made[-3:] = [record.model_copy(update=lost) for record in made[-3:]]
    write(folder / "records", iter(made[1:]))
    (folder / "records/broken").mkdir()
    (folder / "records/broken/run.json").write_text("")
    run = sorted((folder / "records").glob("*/kd/*/run.json"))[0].parent
    (run / "config.yaml").write_text("seed: 0\n")
    (run / "metrics.csv").write_text("epoch,train/task,train/kd,val/top1\n0,2,1,50\n1,1,0.5,60\n")
    found = read([folder / "records"])
    boards = join(found.rows)
    build(folder / "site", found, boards, anchors=anchors.load()[:6], cells=CELLS)
    return Site(folder / "site", found, boards)


@pytest.fixture
def tab(browser: Any, site: Site) -> Iterator[Tab]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    tab = Tab(context, site.folder)
    yield tab
    context.close()
    assert tab.foreign == []
    assert tab.errors == []


def path_of(kind: str, site: Site) -> str:
    folder = {"task": "tasks", "method": "methods", "group": "groups", "run": "runs"}.get(kind)
    if folder is None:
        return f"{kind}.html"
    if kind == "run":
        row = next(r for r in site.found.rows if Path(r.path).with_name("metrics.csv").exists())
        return f"runs/{row.run_id}.html"
    return sorted(p for p in (site.folder / folder).glob("*.html"))[-1].relative_to(site.folder).as_posix()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_an_accessibility_violation(browser: Any, small: Site, scheme: str) -> None:
    script = axe()
    if script is None:
        pytest.skip("axe is not installed (pip install axe-playwright-python, or AXE_CORE=…/axe.min.js)")
    context = browser.new_context(color_scheme=scheme)
    tab = Tab(context, small.folder)
    # Dark mode changes colours and nothing else.
    options = {"preload": False} | ({"runOnly": ["color-contrast"]} if scheme == "dark" else {})
    found = {}
    for kind in KINDS:
        page = tab.open(path_of(kind, small))
        page.evaluate(script)
        result = page.evaluate("options => axe.run(options)", options)
        for violation in result["violations"]:
            found[kind, violation["id"]] = violation["nodes"][0]["html"][:200]
    context.close()
    assert found == {}
    assert tab.foreign == []


@pytest.mark.parametrize("kind", KINDS)
def test_pages_load_nothing_foreign_and_fit_a_phone(tab: Tab, site: Site, kind: str) -> None:
    page = tab.open(path_of(kind, site))
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("h1").count() == 1


def test_sort_filter_search_and_columns_survive_in_the_address(tab: Tab, site: Site) -> None:
    page = tab.open("tasks/pointcloud.html")
    everything = page.locator(f"{TABLE} tbody tr").count()
    page.get_by_label("Setting").first.select_option("")
    assert page.locator(f"{TABLE} tbody tr").count() > everything, "the page opens with its first setting"
    head = page.locator(f"{TABLE} th[data-key=score]")
    head.get_by_role("button").press("Enter")
    # A metric that is better higher begins with the highest.
    page.wait_for_selector(f"{TABLE} th[data-key=score][aria-sort=descending]", timeout=10_000)
    shown = [float(re.split(" ", v)[0]) for v in tab.column("score")]
    assert shown == sorted(shown, reverse=True)
    block = page.locator(".table").first
    assert "score.desc" in page.evaluate("location.hash")
    block.get_by_label("Search").press_sequentially("kd")
    page.wait_for_function("document.querySelector('.count').textContent.includes(' of ')")
    block.get_by_text("Columns", exact=True).click()
    block.get_by_role("checkbox", name="Latency").uncheck()
    block.get_by_role("checkbox", name=re.compile(r"^Teacher\b")).check()
    before = (tab.heads(), tab.rows(), page.locator(".count").first.text_content())
    assert "teacher" in before[0]
    assert "latency_ms" not in before[0]
    assert len(before[1]) >= 1

    address = page.evaluate("location.hash")
    tab.open("tasks/pointcloud.html", address)
    assert (tab.heads(), tab.rows(), page.locator(".count").first.text_content()) == before
    assert page.evaluate("location.hash") == address
    page.evaluate("location.hash = ''")
    page.wait_for_function(f"document.querySelectorAll('{TABLE} tbody tr').length === {everything}")


def test_ranks_are_sorted_within_their_setting(browser: Any, tmp_path: Path) -> None:
    """With all settings shown a place of one is neither above nor below a place of another."""
    gains = {"kd": 4.0, "at": 9.0, "sp": -7.0}
    made = [
        make_row(m, s, base + gain + s, base + s, pair=pair, spec_hash=f"{m}-{pair}")
        for pair, base in (("high", 70.0), ("low", 40.0))
        for m, gain in gains.items()
        for s in range(3)
    ]
    found = Found(in_order(made), [], 0, len(made))
    build(tmp_path / "site", found, join(found.rows), run_pages=0)
    context = browser.new_context()
    tab, name = Tab(context, tmp_path / "site"), "task-classification"
    tab.open("tasks/classification.html", f"#{name}.f.setting=&{name}.sort=rank.asc")
    pairs = [setting.partition(" ")[0] for setting in tab.column("setting", f"#{name}")]
    ranks = tab.column("rank", f"#{name}")
    context.close()
    assert ranks == ["1", "2", "3", "1", "2", "3"]
    assert [key for key, _ in itertools.groupby(pairs)] in (["high", "low"], ["low", "high"])
    assert tab.errors == []


def test_absent_values_come_last_in_both_directions(tab: Tab) -> None:
    for direction in ("asc", "desc"):
        tab.open("tasks/pointcloud.html", f"#task-pointcloud.f.setting=&task-pointcloud.sort=rank.{direction}")
        ranks = tab.column("rank")
        absent = [i for i, rank in enumerate(ranks) if rank == "–"]
        assert absent
        assert absent == list(range(len(ranks) - len(absent), len(ranks)))
        places = [int(rank.split("–")[0]) for rank in ranks[: -len(absent)]]
        assert places == sorted(places, reverse=direction == "desc")


def test_absent_texts_come_last_in_both_directions(tab: Tab) -> None:
    for direction in ("asc", "desc"):
        tab.open("tasks/pointcloud.html", f"#task-pointcloud.f.setting=&task-pointcloud.sort=note.{direction}")
        notes = tab.column("note")
        absent = [i for i, note in enumerate(notes) if note == "–"]
        assert 0 < len(absent) < len(notes)
        assert absent == list(range(len(notes) - len(absent), len(notes)))


def test_texts_are_sorted_by_what_is_shown(tab: Tab) -> None:
    tab.open("tasks/pointcloud.html", "#task-pointcloud.f.setting=&task-pointcloud.sort=method.desc")
    assert tab.column("method") == sorted(tab.column("method"), reverse=True)


def test_every_key_of_a_sort_survives_in_the_address(tab: Tab) -> None:
    page = tab.open("tasks/pointcloud.html", "#task-pointcloud.f.setting=")
    page.locator(f"{TABLE} th[data-key=tuning]").click()
    page.wait_for_function("location.hash.includes('tuning.asc')")
    page.locator(f"{TABLE} th[data-key=method]").click(modifiers=["Shift"])
    page.wait_for_function("location.hash.includes('method.asc')")
    before, address = tab.rows(), page.evaluate("location.hash")
    page.locator(f"{TABLE} th[data-key=method]").click(modifiers=["Shift"])
    page.wait_for_function("location.hash.includes('method.desc')")
    assert tab.rows() != before, "the second key tells rows apart"
    tab.open("tasks/pointcloud.html", address)
    assert tab.rows() == before
    assert page.evaluate("location.hash") == address


def test_keys_of_any_letters_survive_in_the_address(browser: Any, tmp_path: Path) -> None:
    name = "a, b. c%20+&=d"
    student = {"accuracy": 70.0, name: 5.0}
    rows = [scored(make_row(method, seed, 70.0), student=student) for method in ("kd", "at") for seed in range(3)]
    found = Found(in_order(rows), [], 0, len(rows))
    out = build(tmp_path / "out", found, join(found.rows), run_pages=0).out
    context = browser.new_context()
    tab = Tab(context, out)
    page = tab.open("tasks/classification.html")
    view = "{...kdbench.tables[0].standard, cols: ['method', key], sort: [[key, 'desc'], ['method', 'asc']]}"
    page.evaluate(f"key => {{ kdbench.tables[0].set({view}); }}", name)
    page.wait_for_function("location.hash.includes('.cols=')")
    address = page.evaluate("location.hash")
    page = tab.open("tasks/classification.html", address)
    assert tab.heads("#task-classification") == ["method", name]
    assert page.evaluate("kdbench.tables[0].state().sort") == [[name, "desc"], ["method", "asc"]]
    assert page.evaluate("location.hash") == address
    context.close()
    assert tab.errors == []


def test_downloads_equal_what_is_shown(tab: Tab) -> None:
    page = tab.open("tasks/pointcloud.html", "#task-pointcloud.q=kd&task-pointcloud.sort=gap.asc")
    page.get_by_text("Download", exact=True).first.click()
    shown, heads = tab.rows(), tab.heads()
    assert len(shown) > 0
    raw = page.eval_on_selector_all(
        f"{TABLE} tbody tr", "rows => rows.map(r => [...r.cells].map(c => c.dataset.order ?? c.textContent.trim()))"
    )
    rows = list(csv.DictReader(io.StringIO(save(page, "csv"))))
    place = heads.index("rank")
    assert [[row[key] for key in heads if key != "rank"] for row in rows] == [
        ["" if v == "–" else v for i, v in enumerate(line) if i != place] for line in raw
    ]
    ends = [re.findall(r"\d+", line[place]) for line in shown]
    assert [(row["rank_low"], row["rank_high"]) for row in rows] == [(e[0], e[-1]) if e else ("", "") for e in ends]
    data = json.loads(save(page, "json"))
    assert [d["score"] for d in data] == [float(r["score"]) for r in rows]
    assert all(d["score_low"] <= d["score"] <= d["score_high"] for d in data)
    markdown = save(page, "md").splitlines()[2:]
    assert [re.sub(r"\\(.)", r"\1", line)[2:-2].split(" | ") for line in markdown] == [
        [re.sub(r"\s+", " ", v) for v in line] for line in shown
    ]
    latex = save(page, "tex")
    assert latex.count(r" \\") == len(shown) + 1


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_the_script_writes_the_same_bytes_as_the_build(tab: Tab, site: Site, format: str) -> None:
    page = tab.open("tasks/pointcloud.html", "#task-pointcloud.f.setting=")
    page.get_by_text("Columns", exact=True).first.click()
    page.locator("button.all").first.click()
    page.get_by_text("Download", exact=True).first.click()
    table = group_table(site, "task-pointcloud", "pointcloud", site.tasks["pointcloud"])
    assert save(page, format) == FORMATS[format](table)
    assert (site.folder / f"data/task-pointcloud.{format}").read_text() == FORMATS[format](table)


def test_the_script_escapes_as_the_build_does(tab: Tab) -> None:
    from leaderboard.exports import Cell, Column, Table
    from tests.leaderboard.test_exports import HOSTILE

    table = Table("t", HOSTILE, (Column("a", HOSTILE), Column("n", "n", kind="estimate")))
    table.add(Cell(HOSTILE + "\t\x01é"), Cell("1 ± 2", 1e-7, -1.0, 3.0))
    table.add(Cell("=SUM(A1)"), Cell())
    text = re.sub(r"\s+", " ", HOSTILE)
    values = [[[HOSTILE + "\t\x01é", False], ["1e-07", True], ["-1", True], ["3", True]]]
    values.append([["=SUM(A1)", False], ["", False], ["", False], ["", False]])
    view = {
        "caption": HOSTILE,
        "keys": ["a", "n", "n_low", "n_high"],
        "heads": [text, "n"],
        "kinds": ["text", "estimate"],
        "rows": [
            {"values": [{"text": t, "number": n} for t, n in line], "texts": shown}
            for line, shown in zip(values, [[HOSTILE + "\t\x01é", "1 ± 2"], ["=SUM(A1)", "–"]], strict=True)
        ],
    }
    page = tab.open("about.html")
    for format, make in FORMATS.items():
        assert page.evaluate("([f, v]) => kdbench.formats[f](v)", [format, view]) == make(table), format


def test_copy_buttons_copy_the_command(tab: Tab, site: Site) -> None:
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = tab.open(path_of("run", site))
    row = next(r for r in site.found.rows if Path(r.path).with_name("metrics.csv").exists())
    page.locator(".command .copy").click()
    page.wait_for_function("document.querySelector('.command .copy').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == row.command


def test_copying_works_where_the_clipboard_is_closed(tab: Tab, site: Site) -> None:
    tab.page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page = tab.open(path_of("run", site))
    page.evaluate("document.addEventListener('copy', () => { window.copied = String(getSelection()) || 'area'; })")
    page.locator(".command .copy").click()
    page.wait_for_function("window.copied !== undefined")
    page.wait_for_function("document.querySelector('.command .copy').textContent === 'Copied'")


def test_everything_can_be_read_without_script(browser: Any, site: Site) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto((site.folder / "tasks/pointcloud.html").as_uri())
    groups = sum(len(board.groups) for board in site.tasks["pointcloud"])
    rows = page.locator(f"{TABLE} tbody tr")
    assert rows.count() == groups
    assert rows.last.is_visible()
    assert page.locator(f"{TABLE} th[data-key=spec_hash]").is_visible(), "every column is there"
    assert page.locator("noscript a[download]").first.is_visible()
    assert not page.locator(".controls").first.is_visible()
    context.close()


def test_theme_is_a_choice_that_stays(tab: Tab) -> None:
    def paper() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    page = tab.open("index.html")
    light = paper()
    page.emulate_media(color_scheme="dark")
    dark = paper()
    assert dark != light
    button = page.locator("#theme")
    button.click()
    assert paper() == light
    button.click()
    page.emulate_media(color_scheme="light")
    assert paper() == dark
    tab.open("about.html")
    assert paper() == dark
    page.emulate_media(media="print")
    assert paper() == light, "paper is white"
    assert not page.locator("header nav").is_visible()


def test_keyboard_reaches_the_table(tab: Tab) -> None:
    page = tab.open("tasks/pointcloud.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.tagName + '.' + document.activeElement.className"))
    assert {"INPUT.", "SELECT.", "SUMMARY.", "DIV.scroll"} <= reached


def test_points_of_a_chart_are_reached_and_followed_by_keyboard(tab: Tab) -> None:
    page = tab.open("tasks/pointcloud.html")
    chart = page.locator("svg.pareto").first
    point = chart.locator("[data-href]").first
    said = page.locator("svg.pareto + output").first
    assert said.text_content() == ""
    point.focus()
    assert chart.get_attribute("role") == "group"  # an image would hide its parts
    assert point.get_attribute("role") == "link"
    title = point.locator("title").text_content()
    assert said.text_content() == point.get_attribute("aria-label") == title
    target = point.get_attribute("data-href")
    bar = page.locator("svg.strips .hit").first
    bar.hover()
    assert page.locator("svg.strips + output").first.text_content() == bar.locator("title").text_content()
    point.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("location.pathname.includes('/groups/')")
    assert page.url.endswith(target.removeprefix(".."))


def test_500_rows_are_ready_in_a_second(browser: Any, tmp_path: Path) -> None:
    write(tmp_path / "records", records(500, tasks=1, specs=500, seeds=1))
    found = read([tmp_path / "records"])
    boards = join(found.rows, minimum=1)
    build(tmp_path / "site", found, boards, minimum=1, run_pages=0)
    context = browser.new_context()
    page = context.new_page()
    taken = []
    for _ in range(3):
        page.goto("about:blank")
        page.goto((tmp_path / "site/tasks/classification.html").as_uri())
        page.wait_for_function("document.documentElement.classList.contains('ready')")
        taken.append(page.evaluate("performance.now()") / 1000)
        start = time.perf_counter()
        page.evaluate("kdbench.tables[0].set({...kdbench.tables[0].standard, facets: {}, sort: [['score', 'asc']]})")
        sort = time.perf_counter() - start
    rows = page.locator("#task-classification tbody tr").count()
    context.close()
    assert rows > 450
    print(f"{rows} rows: ready after {min(taken):.2f} s, sorted in {sort:.2f} s")
    # One second on an idle machine; shared cores get some room.
    assert min(taken) < 1.0 + os.getloadavg()[0]
