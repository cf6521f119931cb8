from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from kdbench.errors import KDBenchError
from leaderboard import rows as rows_module
from leaderboard.__main__ import main
from leaderboard.advice import accuracy, advise, recommend, sentence, settings
from leaderboard.boards import Board, Boards, build
from tests.leaderboard.rows import INTERN, Row, in_order, row
from tests.leaderboard.test_pages import made_of

JITTER = (-0.3, 0.1, 0.2)


def cell(effects: Mapping[str, float], pair: str = "a_b", task: str = "classification", **passes: float) -> list[Row]:
    """Three seeds of each method, so many points above the student alone; the teacher is 20 above."""

    def cost(method: str) -> object:
        made = {"samples_seen": 100.0, "student_passes": 1.0, "teacher_passes": passes.get(method, 1.0)}
        return INTERN(made, made.values())

    return [
        row(m, s, 60.0 + e + JITTER[(s + n) % 3] / 3, pair=pair, task=task, cost=cost(m))
        for n, (m, e) in enumerate(effects.items())
        for s in range(3)
    ]


def joined(*cells: list[Row]) -> Boards:
    return build(in_order([r for rows in cells for r in rows]))


def one(found: Boards) -> Board:
    (board,) = found.boards
    return board


def test_a_sentence_counts_what_survives_and_names_the_cheapest() -> None:
    board = one(joined(cell({"kd": 5.0, "at": 8.0, "dkd": 9.0, "sp": -4.0, "nst": 5.01}, dkd=3.0)))
    assert sentence(board) == (
        "2 of 4 methods beat kd; the cheapest of them is at, at 2 × the passes of the scratch twin's training. "
        "Against the student trained alone 4 of 5 are better, 1 worse and 0 not told apart."
    )
    alone = one(joined(cell({"kd": 5.0, "at": 8.0})))
    assert sentence(alone).startswith("1 of 1 method beats kd; it is at, at 2 ×")
    none = one(joined(cell({"kd": 5.0, "at": 5.0})))
    assert sentence(none).startswith("None of 1 method is told apart from kd as better.")
    assert sentence(one(joined(cell({"at": 5.0})))).startswith("No method stands beside kd.")
    assert sentence(one(joined([row("at", 0, 70.0)]))) == "No method has enough seeds yet."


def test_what_to_try_first_is_what_closes_most_of_the_gap() -> None:
    first = cell({"kd": 5.0, "at": 8.0, "sp": 2.0}, at=3.0)
    second = cell({"kd": 5.0, "at": 9.0, "sp": -3.0, "crd": 19.0}, pair="c_d")
    found = recommend(joined(first, second), "classification")
    assert [a.method for a in found.advice] == ["at", "kd", "sp"], "crd is of one setting alone"
    at = found.advice[0]
    assert at.gap.mean == pytest.approx(8.5 / 20, abs=0.01)
    assert (at.first, at.verdicts) == (1.0, {"better": 2})
    assert at.cost == pytest.approx((4 + 2) / 2)
    own = recommend(joined(first, second), "classification", "c_d")
    assert [a.method for a in own.advice] == ["crd", "at", "kd", "sp"]


def test_advice_is_tried_in_settings_that_it_had_not_seen() -> None:
    cells = [cell({"kd": 5.0, "at": 8.0 + n, "sp": 2.0}, pair=f"p{n}") for n in range(3)]
    odd = cell({"kd": 5.0, "at": 1.0, "sp": 2.0}, pair="odd")
    boards = joined(*cells, odd)
    trials = {t.board.setting.pair: t for t in recommend(boards, "classification").trials}
    assert {pair: t.advised for pair, t in trials.items()} == dict.fromkeys(["p0", "p1", "p2", "odd"], "at")
    assert {pair: t.among_best for pair, t in trials.items()} == {"p0": True, "p1": True, "p2": True, "odd": False}
    assert trials["odd"].lost == pytest.approx(4 / 20, abs=0.01)
    assert trials["odd"].lost_baseline == 0.0
    said = accuracy(list(trials.values()))
    assert said.startswith(
        "Left out one by one, in 3 of 4 settings the method advised by the others was among the best;"
    )
    assert "5 % of the gap less than the best one, on average, kd in its place 15 % less." in said


def test_advice_needs_settings() -> None:
    assert settings(joined(cell({"kd": 5.0, "at": 8.0}))) == []
    smoke = [row(m, s, 70.0 + s, preset="smoke") for m in ("kd", "at", "sp") for s in range(3)]
    assert settings(joined(smoke)) == []
    assert advise([]) == []
    single = joined(cell({"kd": 5.0, "at": 8.0, "sp": 2.0}))
    assert accuracy(recommend(single, "classification").trials).startswith("There are not two settings")
    with pytest.raises(KDBenchError, match="task=clasification: no setting with 3 methods"):
        recommend(single, "clasification")
    with pytest.raises(KDBenchError, match="student=resnet: in none of the pairs of classification: a_b"):
        recommend(single, "classification", "resnet")


def test_the_pages_and_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*cell({"kd": 5.0, "at": 8.0, "sp": 2.0}), *cell({"kd": 5.0, "at": 9.0, "sp": 0.0}, pair="c_d")]
    site = made_of(tmp_path / "out", *rows)
    assert "classification,1,at,0.42" in (site / "data/advice.csv").read_text()
    assert "in 2 of 2 settings" in (site / "advice.html").read_text()
    index = (site / "index.html").read_text()
    assert "1 of 2 methods beats kd; it is at" in index
    assert 'class="n good heat2"' in index
    assert "1 of 2 methods beats kd" in (site / "tasks/classification.html").read_text()
    assert "No setting has three methods" in (made_of(tmp_path / "none", rows[0]) / "advice.html").read_text()
    monkeypatch.setattr(rows_module, "read", lambda *_: rows_module.Found(in_order(rows), [], 0, 0))
    assert main(["recommend", "task=classification"]) == 0
    assert "expected gap closed" in capsys.readouterr().out
    assert main(["recommend", "classification"]) == 1
    assert "expected task=NAME" in capsys.readouterr().err
