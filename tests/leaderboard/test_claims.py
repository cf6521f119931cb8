from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.configuration import config
from kdbench.errors import KDBenchError
from leaderboard.boards import build
from leaderboard.claims import SCRATCH, Claim, decide, load
from tests.leaderboard.rows import Row, in_order, row
from tests.leaderboard.test_pages import made_of

JITTER = (-0.3, 0.1, 0.2)


def rows(pair: str = "a_b", **effects: float) -> list[Row]:
    return [
        row(m, s, 60.0 + e + JITTER[(s + n) % 3], pair=pair, higher_is_better=True)
        for n, (m, e) in enumerate(effects.items())
        for s in range(3)
    ]


def outcome(found: list[Row], method: str = "at", against: str = "kd") -> str:
    claim = Claim(paper="p", claim="c", task="classification", method=method, against=against)
    (decision,) = decide([claim], build(in_order(found)).boards)
    return decision.outcome


def test_a_claim_is_confirmed_where_one_setting_says_so_and_none_the_contrary() -> None:
    ahead, behind, open_ = rows(kd=5.0, at=8.0), rows("c_d", kd=8.0, at=5.0), rows("e_f", kd=5.0, at=5.0)
    assert outcome(ahead) == "confirmed"
    assert outcome([*ahead, *open_]) == "confirmed"
    assert outcome(behind) == "contradicted"
    assert outcome([*ahead, *behind]) == "not confirmed"
    assert outcome(open_) == "not confirmed"
    assert outcome(rows(kd=5.0)) == "not testable here"
    assert outcome(ahead, against=SCRATCH) == "confirmed"
    assert outcome(rows(kd=5.0, at=-5.0), against=SCRATCH) == "contradicted"
    assert outcome(rows(kd=5.0, at=5.0), against=SCRATCH) == "confirmed"


def test_of_a_metric_that_is_better_low() -> None:
    from dataclasses import replace

    low = [replace(r, higher_is_better=False) for r in rows(kd=-5.0, at=-8.0)]
    assert outcome(low) == "confirmed"
    assert outcome(low, method="kd", against="at") == "contradicted"


def test_the_claims_of_the_package_are_of_its_methods_and_tasks(tmp_path: Path) -> None:
    methods, tasks = config.options("method"), config.options("task")
    claims = load()
    assert len(claims) > 20
    for claim in claims:
        assert claim.method in methods
        assert claim.against in (*methods, SCRATCH)
        assert claim.task in tasks
        assert claim.claim.endswith(".")
        assert '"' not in claim.claim
    site = made_of(tmp_path, *rows(kd=5.0, crd=8.0))
    page = (site / "claims.html").read_text()
    assert "2 are confirmed by these records, 0 contradicted" in page
    assert "+3.00 accuracy [" in page


def test_a_file_that_is_no_list_of_claims(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text("- {paper: p}\n")
    with pytest.raises(KDBenchError, match="no list of claims"):
        load(path)
