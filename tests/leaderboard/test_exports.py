from __future__ import annotations

import csv
import io
import json
import re

import pytest

from leaderboard.exports import (
    NONE,
    Cell,
    Column,
    Table,
    latex,
    number,
    to_csv,
    to_html,
    to_json,
    to_latex,
    to_markdown,
)

HOSTILE = '<script>alert("1")</script> & \\ $x_1^2$ {a} | `b` * [c](d) ~ % #\n"quoted", =cmd'


@pytest.fixture
def table() -> Table:
    columns = (
        Column("method", "Method"),
        Column("score", "top1", "Mean", "estimate", "high"),
        Column("params", "Params", kind="number", better="low", shown=False),
        Column("note", "Note", wrap=True),
    )
    table = Table("demo", "A demo", columns)
    table.add(Cell("kd"), Cell("74.48 ± 1.22", 74.4812345678901, 73.26, 75.7), Cell("309k", 308680), Cell())
    table.add(Cell(HOSTILE), Cell("71", 71.0), Cell(), Cell("=1+1", href="groups/x.html", note=HOSTILE), grey=True)
    return table


def test_csv_holds_whole_numbers_and_ends_of_intervals(table: Table) -> None:
    rows = list(csv.reader(io.StringIO(to_csv(table), newline="")))
    assert rows[0] == ["method", "score", "score_low", "score_high", "params", "note"]
    assert rows[1] == ["kd", "74.4812345678901", "73.26", "75.7", "308680", ""]
    assert rows[2][0] == HOSTILE
    assert rows[2][2:5] == ["", "", ""]
    assert rows[2][5] == "'=1+1", "a spreadsheet must not run it"


def test_a_range_keeps_both_ends() -> None:
    ranks = Table("ranks", "Ranks", (Column("method", "Method"), Column("rank", "Rank", kind="range", better="low")))
    ranks.add(Cell("kd"), Cell("1–39", 1, 1, 39, order=10001.0))
    ranks.add(Cell("none"), Cell())
    assert to_csv(ranks).splitlines() == ["method,rank_low,rank_high", "kd,1,39", "none,,"]
    assert json.loads(to_json(ranks))[0] == {"method": "kd", "rank_low": 1, "rank_high": 39}
    assert 'data-order="10001" data-low="1" data-high="39"' in to_html(ranks, "")


def test_json_is_the_same_data(table: Table) -> None:
    rows = json.loads(to_json(table))
    assert rows[0] == {
        "method": "kd",
        "score": 74.4812345678901,
        "score_low": 73.26,
        "score_high": 75.7,
        "params": 308680,
        "note": None,
    }
    assert rows[1]["method"] == HOSTILE
    assert rows[1]["note"] == "=1+1"
    assert json.loads(to_json(Table("empty", "", table.columns))) == []


def test_markdown_and_latex_escape_what_they_would_run(table: Table) -> None:
    markdown = to_markdown(table).splitlines()
    assert len(markdown) == 4
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in markdown)
    assert "<script" not in "".join(markdown).replace("\\<", "")
    lines = to_latex(table).splitlines()
    assert lines[-1] == r"\end{tabular}"
    assert r"74.48 $\pm$ 1.22" in lines[5]
    assert r"\textbackslash{} \$x\_1\textasciicircum{}2\$ \{a\}" in lines[6]
    assert lines[6].count("&") - lines[6].count(r"\&") == 3
    assert latex("50 % & more_") == r"50 \% \& more\_"


def test_html_escapes_text_links_and_remarks(table: Table) -> None:
    html = to_html(table, "../")
    assert "<script" not in html
    assert '<a href="../groups/x.html">=1+1</a>' in html
    assert 'data-order="74.4812345678901" data-low="73.26" data-high="75.7"' in html
    assert html.count("<tr") == 2
    assert html.count('<tr class="grey">') == 1
    assert 'title="&lt;script&gt;alert(&quot;1&quot;)' in html
    assert html.count('<th scope="row">') == 2


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1"), (0.1, "0.1"), (1e-7, "1e-07"), (-0.0, "0"), (308680, "308680"), (1e300, "1e+300")]
)
def test_numbers_read_back_as_themselves(value: float, text: str) -> None:
    assert number(value) == text
    assert float(number(value)) == value


def test_a_row_of_the_wrong_length_is_an_error(table: Table) -> None:
    with pytest.raises(ValueError, match="1 cells for 4 columns"):
        table.add(Cell(NONE))
