"""Packed pages and tables in a real browser, from files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leaderboard import exports
from leaderboard import site as sites
from leaderboard.boards import build as join
from leaderboard.build import build
from leaderboard.exports import FORMATS, to_html
from leaderboard.pages.task import group_table
from leaderboard.rows import read
from leaderboard.site import Site
from tests.leaderboard.browsing import Tab, axe, save
from tests.leaderboard.make_records import records, write

pytestmark = pytest.mark.browser
TASK, TABLE = "tasks/classification.html", "#task-classification"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site whose tables count as large from nine rows, with a single page of a specification in a file."""
    folder = tmp_path_factory.mktemp("large")
    write(folder / "records", records(72, tasks=1, specs=36, seeds=2))
    found = read([folder / "records"])
    boards = join(found.rows, minimum=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exports, "LARGE", 8)
        patch.setattr(sites, "PAGE", 5)
        build(folder / "site", found, boards, minimum=2, run_pages=1, group_pages=1)
        yield Site(folder / "site", found, boards, minimum=2, run_pages=1, group_pages=1)


@pytest.fixture
def tab(browser: Any, large: Site) -> Iterator[Tab]:
    context = browser.new_context(viewport={"width": 390, "height": 800}, accept_downloads=True)
    tab = Tab(context, large.folder)
    yield tab
    context.close()
    assert tab.foreign == []
    assert tab.errors == []


#: Says in which cells a table differs from the rows that the build would have written.
DIFFER = """(html) => {
  const body = document.createElement("table");
  body.innerHTML = "<tbody>" + html + "</tbody>";
  const places = [...document.querySelectorAll("TABLE thead th")].map((th) => th.dataset.key);
  const said = (cell) => [cell.tagName, cell.scope || "", cell.innerHTML, cell.title, cell.dataset.order || "",
    cell.dataset.low || "", cell.dataset.high || "", [...cell.classList].filter((c) => c !== "hidden").sort().join()];
  const rows = [...document.querySelectorAll("TABLE tbody tr")];
  const found = [];
  rows.forEach((row, r) => {
    const other = body.tBodies[0].rows[r];
    if (row.className !== other.className) found.push([r, row.className, other.className]);
    [...row.cells].forEach((cell, c) => {
      const a = said(cell), b = said(other.cells[c]);
      if (JSON.stringify(a) !== JSON.stringify(b)) found.push([r, places[c], a, b]);
    });
  });
  return [rows.length, found];
}""".replace("TABLE", TABLE)


def test_a_packed_table_has_the_cells_of_the_build(tab: Tab, large: Site) -> None:
    page = tab.open(TASK, f"{TABLE}.f.setting=")
    page.get_by_text("Columns", exact=True).first.click()
    page.locator("button.all").first.click()
    table = group_table(large, "task-classification", "classification", large.tasks["classification"])
    rows, differ = page.evaluate(DIFFER, str(to_html(table, "../")))
    assert rows == len(table.lines) > 8
    assert differ == []
    page.get_by_text("Columns", exact=True).first.click()
    page.get_by_text("Download", exact=True).first.click()
    for format, make in FORMATS.items():
        assert save(page, format) == make(table)


def test_a_packed_table_is_searched_sorted_and_kept_in_the_address(tab: Tab) -> None:
    page = tab.open(TASK, f"{TABLE}.f.setting=&task-classification.q=dkd&task-classification.sort=score.asc")
    assert {row[0] for row in tab.rows(TABLE)} == {"dkd"}
    scores = [float(text.partition(" ")[0]) for text in tab.column("score", TABLE)]
    assert scores == sorted(scores)
    assert "of" in page.locator(".count").first.text_content()
    assert page.locator(".rest").count() == 0
    assert page.get_by_role("navigation", name="Pages of: classification: every specification").count() == 1


def test_the_first_rows_are_there_without_script(browser: Any, large: Site) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((large.folder / TASK).as_uri())
    assert page.locator(f"{TABLE} tbody tr").count() == 5
    assert "The first 5 of" in page.locator(".rest").first.text_content()
    assert page.locator("noscript a[download]").first.get_attribute("href").endswith(".csv.gz")
    context.close()


def test_without_its_file_a_table_keeps_the_first_rows(tab: Tab, large: Site) -> None:
    path = large.folder / "data/tables/task-classification.js"
    kept = path.rename(path.with_suffix(".away"))
    try:
        page = tab.open(TASK)
        assert page.locator(f"{TABLE} tbody tr").count() == 5
        assert "The first 5 of" in page.locator(".rest").first.text_content()
    finally:
        kept.rename(path)
    tab.errors.clear()  # that the file is not there


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_packed_page_works_as_others_do(browser: Any, large: Site, tab: Tab, scheme: str) -> None:
    tab.page.emulate_media(color_scheme=scheme)
    group = next(g for groups in large.shards.values() for g in groups if len(g.rows) > 1 and g.seeds)
    path, _, query = large.group_page(group).partition("?")
    page = tab.open(path, f"?{query}")
    assert page.title() == f"{group.method} on classification · kdbench"
    assert page.locator("h1").text_content() == f"{group.method} on classification"
    assert group.newest.command in page.locator(".command code").first.text_content()
    page.locator(".command .copy").first.click()
    page.wait_for_function("document.querySelector('.command .copy').textContent === 'Copied'")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("table").first.locator("tbody tr").count() == len(group.rows)
    links = page.eval_on_selector_all("main a[href]", "links => links.map(a => a.href)")
    assert all(Path(link.removeprefix("file://").partition("?")[0]).is_file() for link in links if "#" not in link)
    source = axe()
    if source:
        for place in ((path, f"?{query}"), (TASK, "")):
            page = tab.open(*place)
            page.evaluate(source)
            found = page.evaluate("async () => (await axe.run({preload: false})).violations.map(v => v.id)")
            assert found == [], place


@pytest.mark.parametrize("query", ["", "?s=classification-0&g=no", "?s=../../x&g=no", "?s=no&g=__proto__"])
def test_an_address_that_leads_nowhere_says_so(tab: Tab, query: str) -> None:
    page = tab.open(sites.ANY, query)
    assert page.locator("#any").text_content() in ("There is no specification of this name.", "Its file is not there.")
    tab.errors.clear()  # of a file that is not there
