from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from leaderboard.boards import Boards, build, directed, lower_is_better
from leaderboard.groups import Group, group
from leaderboard.rows import read
from leaderboard.stats import Estimate, dunnett, ratio
from tests.leaderboard.rows import INTERN, Row, failed, in_order, parts, row, scored


def boards(*rows: Row, minimum: int = 3) -> Boards:
    return build(in_order(list(rows)), minimum)


def the(found: Boards, method: str, trials: int | None = None) -> Group:
    groups = [g for board in found.boards for g in board.groups]
    (one,) = (g for g in groups if g.method == method and trials in (None, g.trials))
    return one


KD = [row("kd", seed, score, 60.0 + seed) for seed, score in enumerate((66.0, 67.0, 69.0))]
AT = [row("at", seed, score, 60.0 + seed) for seed, score in enumerate((70.0, 72.0, 73.0))]


def matched(method: str, scores: tuple[float, ...], twins: tuple[float, ...]) -> list[Row]:
    runs = [row(method, seed, score, 60.0 + seed) for seed, score in enumerate(scores)]
    return [scored(run, scratch_matched={"accuracy": twin}) for run, twin in zip(runs, twins, strict=True)]


def test_a_twin_of_equal_compute_stands_beside_the_plain_one() -> None:
    at = matched("at", (70.0, 72.0, 73.0), (66.0, 67.9, 69.1))
    sp = matched("sp", (66.0, 67.5, 69.0), (66.1, 67.2, 69.3))
    found = boards(*KD, *at, *sp)
    one, other, kd = the(found, "at"), the(found, "sp"), the(found, "kd")
    assert one.matched == Estimate(3, *_mean((66.0, 67.9, 69.1)))
    assert one.vs_matched.estimate is not None
    assert one.vs_matched.estimate.mean == pytest.approx(4.0)
    p = scipy.stats.ttest_rel((70.0, 72.0, 73.0), (66.0, 67.9, 69.1)).pvalue
    assert (one.vs_matched.p, one.vs_matched.corrected) == (pytest.approx(p), pytest.approx(2 * p))  # Holm, of two
    assert (one.vs_matched.verdict, other.vs_matched.verdict, one.vs_matched.family) == ("better", "open", 2)
    assert (kd.matched, kd.vs_matched.reason) == (None, "no scratch twin of equal compute")
    assert one.vs_scratch.estimate is not None
    assert one.vs_scratch.estimate.mean == pytest.approx(215 / 3 - 61)  # the plain twin stays what it was


def _mean(values: tuple[float, ...]) -> tuple[Any, ...]:
    low, high = scipy.stats.t.interval(0.95, 2, loc=np.mean(values), scale=scipy.stats.sem(values))
    return (
        pytest.approx(np.mean(values)),
        pytest.approx(np.std(values, ddof=1)),
        pytest.approx(low),
        pytest.approx(high),
    )


def test_seeds_become_a_group_with_intervals() -> None:
    found = the(boards(*KD), "kd")
    low, high = scipy.stats.t.interval(0.95, 2, loc=202 / 3, scale=scipy.stats.sem([66, 67, 69]))
    assert found.score is not None
    assert (found.score.n, found.score.mean) == (3, pytest.approx(202 / 3))
    assert (found.score.low, found.score.high) == (pytest.approx(low), pytest.approx(high))
    assert found.metrics["ece"].mean == 11.0
    assert (found.seeds, found.enough, found.note, found.trials) == ((0, 1, 2), True, None, 4)
    assert found.teacher is not None
    assert found.teacher.mean == 80.0
    assert found.scratch is not None
    assert found.scratch.mean == 61.0
    assert found.best_on_val is not None
    assert found.cost.params == 10
    assert found.cost.macs == 100
    assert found.newest.seed == 2


def test_cost_is_the_median() -> None:
    rows = [
        replace(r, cost=INTERN(["wall_s"], [w]), models=parts({})) for r, w in zip(KD, (1.0, 5.0, 2.0), strict=True)
    ]
    cost = the(boards(*rows), "kd").cost
    assert (cost.wall_s, cost.macs) == (2.0, None)


def test_rows_of_one_network_and_machine_share_a_latency() -> None:
    def timed(r: Row, ms: float, **changes: Any) -> Row:
        return replace(r, models=parts({"student": {"params": 10.0, "latency_ms": ms}}), **changes)

    kd = [timed(r, ms) for r, ms in zip(KD, (3.1, 11.4, 3.2), strict=True)]
    at = [timed(r, ms) for r, ms in zip(AT, (3.3, 3.4, 9.0), strict=True)]
    other = [timed(r, 20.0, method="sp", spec_hash="sp", threads=8) for r in AT]
    found = boards(*kd, *at, *other)
    assert the(found, "kd").latency == the(found, "at").latency == Estimate(6, (3.3 + 3.4) / 2, None, 3.1, 11.4)
    assert the(found, "sp").latency == Estimate(3, 20.0, None, 20.0, 20.0)


def test_gap_closed_has_an_interval_and_its_reasons() -> None:
    found = the(boards(*KD), "kd")
    assert found.gap == ratio([6, 6, 7], [20, 19, 18])
    assert found.gap is not None
    assert (found.gap.n, found.gap.mean) == (3, pytest.approx(19 / 57))
    assert found.gap_reason is None
    # What a single run says of its own gap does not matter, nor is its seed left out.
    same = the(boards(replace(KD[0], gap_closed=None, gap_reason="too small"), *KD[1:]), "kd")
    assert (same.gap, same.gap_reason) == (found.gap, None)
    part = the(boards(scored(KD[0], teacher=None), *KD[1:]), "kd")
    assert part.gap is not None
    assert (part.gap.n, part.gap_reason) == (2, "1 of 3 seeds have no scratch twin or no teacher")
    none = the(boards(*(scored(r, scratch=None) for r in KD)), "kd")
    assert (none.gap, none.gap_reason) == (None, "no scratch twin")


def test_headroom_is_decided_for_all_rows_of_a_setting() -> None:
    low = [scored(r, teacher={"accuracy": 61.5}) for r in (*KD, *AT)]
    found = boards(*low)
    (board,) = found.boards
    assert board.headroom is not None
    assert (board.headroom.n, board.headroom.mean) == (3, pytest.approx(0.5))
    reason = "no headroom in this setting: the teacher is 0.5 ± 2.48 above the scratch student"
    assert [(g.gap, g.gap_reason) for g in board.groups] == [(None, reason)] * 2
    assert [g.vs_scratch.verdict for g in board.groups] == ["better"] * 2
    (board,) = boards(scored(KD[0], teacher={"accuracy": 59.0})).boards
    assert board.groups[0].gap_reason == "the teacher is not above the scratch student"


def test_a_teacher_of_one_method_s_own_does_not_decide_the_headroom() -> None:
    own = [scored(row("lad", s, 66.0, 60.0 + s), teacher={"accuracy": 40.0}) for s in range(3)]
    (board,) = boards(*KD, *AT, *(replace(r, method="sp", spec_hash="sp") for r in AT), *own).boards
    assert board.headroom is not None
    assert (board.headroom.n, board.headroom.mean) == (3, 19.0)
    assert {g.method for g in board.groups if g.gap is not None} == {"kd", "at", "sp"}
    (lad,) = (g for g in board.groups if g.method == "lad")
    assert lad.gap_reason == "its own teacher is not above the scratch student"


def test_one_twin_s_luck_does_not_drop_a_seed() -> None:
    """A twin above the teacher is a seed like any other where the setting has headroom."""
    lucky = [*KD, row("kd", 3, 83.0, 81.0), row("kd", 4, 68.0, 62.0), row("kd", 5, 68.0, 61.0)]
    found = the(boards(*lucky), "kd")
    assert found.gap == ratio([6, 6, 7, 2, 6, 7], [20, 19, 18, -1, 18, 19])


def test_colours_survive_a_correction_and_agree_with_ranks() -> None:
    """41 methods that do nothing: separate t-tests colour some of them; none is beside a rank that contradicts it."""
    g = np.random.default_rng(3)
    twins = g.normal(60, 2, 5)
    rows = [row(f"m{m:02}", s, float(twins[s] + g.normal(0, 1)), float(twins[s])) for m in range(41) for s in range(5)]
    rows += [row("kd", s, float(twins[s] + 4 + g.normal(0, 1)), float(twins[s])) for s in range(5)]
    rows += [row("bad", s, float(twins[s] - 9 + g.normal(0, 1)), float(twins[s])) for s in range(5)]
    found = {x.method: x for x in boards(*rows).boards[0].groups}
    raw = [x for x in found.values() if x.vs_scratch.p is not None and x.vs_scratch.p < 0.05]
    assert len(raw) > 3
    assert {n: x.vs_scratch.verdict for n, x in found.items() if x.vs_scratch.verdict != "open"} == {
        "kd": "better",
        "bad": "worse",
    }
    assert found["bad"].vs_scratch.family == 43
    for one in found.values():
        contrast = one.vs_kd
        if contrast.verdict == "worse":
            assert one.rank is not None
            assert one.rank[0] > 1, "kd is surely better: it cannot be first"
    assert found["kd"].rank == (1, 1)
    assert found["bad"].rank == (43, 43)


def test_correction_is_dunnett_s_with_the_twin_among_the_methods() -> None:
    found = the(boards(*KD, *AT), "at")
    scores = [[66, 67, 69], [70, 72, 73], [60, 61, 62]]
    kd, scratch = dunnett(scores, 0)[1], dunnett(scores, 2)[1]
    assert kd is not None
    assert scratch is not None
    assert found.vs_kd.corrected == pytest.approx(kd.p)
    assert found.vs_scratch.corrected == pytest.approx(scratch.p)
    assert found.vs_kd.p == pytest.approx(scipy.stats.ttest_rel([70, 72, 73], [66, 67, 69]).pvalue)


def test_differences_are_paired_over_seeds() -> None:
    found = the(boards(*KD, *AT), "at")
    scratch, kd = found.vs_scratch.estimate, found.vs_kd.estimate
    low, high = scipy.stats.t.interval(0.95, 2, loc=32 / 3, scale=scipy.stats.sem([10, 11, 11]))
    assert scratch is not None
    assert (scratch.low, scratch.high) == (pytest.approx(low), pytest.approx(high))
    assert found.vs_scratch.verdict == "better"
    assert kd is not None
    assert (kd.n, kd.mean) == (3, pytest.approx(13 / 3))
    assert (found.vs_kd.verdict, found.vs_kd.partner) == ("better", "kd-a_b-4")
    assert the(boards(*KD, *AT), "kd").vs_kd.reason == "kd itself"


def test_a_method_that_hurts_and_a_metric_that_is_better_low() -> None:
    worse = [row("sp", seed, 50.0 + seed, 60.0 + seed) for seed in range(3)]
    assert the(boards(*worse), "sp").vs_scratch.verdict == "worse"
    low = [replace(r, higher_is_better=False) for r in (*worse, *KD)]
    found = boards(*low)
    assert the(found, "sp").vs_scratch.verdict == "better"
    assert [g.method for g in found.boards[0].groups] == ["sp", "kd"]
    assert (the(found, "sp").rank, the(found, "kd").rank) == ((1, 1), (2, 2))


def test_differences_take_shared_seeds_only() -> None:
    found = the(boards(*KD, *AT[1:], row("at", 9, 99.0)), "at").vs_kd
    assert found.estimate is not None
    assert (found.estimate.n, found.estimate.mean) == (2, pytest.approx(4.5))
    assert found.verdict == "better"
    apart = the(boards(*KD, row("at", 9, 99.0)), "at").vs_kd
    assert (apart.estimate, apart.reason) == (None, "no seed in common with kd")


def test_the_partner_has_the_same_tuning_data_preset_and_twins() -> None:
    untuned = [replace(r, trials=0, spec_hash="kd-untuned") for r in KD]
    assert the(boards(*untuned, *AT), "at").vs_kd.reason == "no kd with 4 tuning trials here"
    changes: list[dict[str, Any]] = [
        {"digest": "other"},
        {"pair": "c_d"},
        {"preset": "paper"},
        {"quant": "int8"},
        {"quantising": "int8 bits=2"},
        {"augmenting": "mixup alpha=0.4"},
        {"fold": "1"},
    ]
    for change in changes:
        moved = [replace(r, **change) for r in KD]
        assert the(boards(*moved, *AT), "at").vs_kd.reason == "no kd with 4 tuning trials here"
    # Another schedule: more seeds in common, but its scratch twins differ.
    longer = [row("kd", s, 75.0, 65.0, spec_hash="kd-longer") for s in range(3)]
    assert the(boards(*KD[:2], *longer, *AT), "at").vs_kd.partner == "kd-a_b-4"
    apart = the(boards(*longer, *AT), "at").vs_kd
    assert (apart.estimate, apart.reason) == (None, "no kd with the same scratch twins")


def test_only_seeds_of_one_twin_are_paired() -> None:
    found = the(boards(*KD[:2], scored(KD[2], scratch={"accuracy": 50.0}), *AT), "at").vs_kd
    assert found.estimate is not None
    assert (found.estimate.n, found.estimate.mean) == (2, pytest.approx(4.5))
    unknown = [scored(r, scratch=None) for r in (*KD, *AT)]
    assert the(boards(*unknown), "at").vs_kd.reason == "no kd with the same scratch twins"


def test_the_scratch_student_of_a_board_is_that_of_one_recipe() -> None:
    longer = [row("sp", s, 75.0, 65.0, finished=9000.0) for s in range(4)]
    (board,) = boards(*KD, *longer).boards
    assert (board.scratch["accuracy"].n, board.scratch["accuracy"].mean, board.twins) == (3, 61.0, 2)
    alone = [row("none", s, 40.0, 40.0) for s in range(3)]
    (board,) = boards(*KD, *longer, *alone).boards
    assert (board.scratch["accuracy"].mean, board.twins) == (40.0, 3)
    assert boards(*KD, *AT).boards[0].twins == 1


def test_seeds_of_several_codes_are_grey() -> None:
    mixed = [*AT[:2], replace(AT[2], code_digest="later")]
    found = the(boards(*KD, *mixed), "at")
    assert (found.enough, found.note, found.rank) == (False, "seeds of 2 code revisions", None)
    assert the(boards(*KD, *(replace(r, code_digest="later") for r in AT)), "at").enough, "methods may differ in code"


def test_a_seed_without_a_number_is_no_seed() -> None:
    nothing = [replace(scored(r, student={"accuracy": None, "ece": 1.0}), score=None) for r in AT]
    found = the(boards(*KD, AT[0], *nothing[1:]), "at")
    assert (found.seeds, found.enough, found.note) == ((0,), False, "1 of at least 3 seeds")
    assert found.metrics["ece"].n == 1
    assert the(boards(*AT, replace(nothing[0], finished=1e6)), "at").seeds == (0, 1, 2), "an earlier score counts"
    (lost,) = boards(*nothing).failures
    assert (lost.method, lost.seeds, lost.score) == ("at", (), None)


def test_the_newest_run_of_a_seed_counts_and_one_with_a_score_before_all() -> None:
    older = replace(KD[0], score=1.0, finished=5.0, path="older")
    later_failure = failed("kd", 1, finished=9000.0, path="later")
    found = the(boards(*KD, older, later_failure), "kd")
    assert found.rows == tuple(KD)
    assert {r.path for r in found.superseded} == {"older", "later"}
    assert (found.failed, found.diverged) == (0, 0)


def test_failures_are_counted() -> None:
    found = boards(*KD, failed("kd", 3), failed("kd", 4, "diverged"), failed("crd", 0), failed("crd", 1, "diverged"))
    kd = the(found, "kd")
    assert (kd.failed, kd.diverged, kd.seeds) == (1, 1, (0, 1, 2))
    (lost,) = found.failures
    assert (lost.method, lost.score, lost.failed, lost.diverged, lost.enough) == ("crd", None, 1, 1, False)
    assert lost.newest.reason == "no such tap"


def test_few_seeds_are_grey_and_have_no_rank() -> None:
    found = boards(*KD, *AT[:2])
    at = the(found, "at")
    assert (at.enough, at.note, at.rank, at.unranked) == (False, "2 of at least 3 seeds", None, "2 of at least 3 seeds")
    assert the(found, "kd").rank == (1, 1)
    assert the(boards(*KD, *AT[:2], minimum=2), "at").rank == (1, 1)
    single = the(boards(AT[0]), "at")
    assert single.score is not None
    assert (single.score.sd, single.vs_scratch.verdict) == (None, "open")


def test_ranks_are_among_equals() -> None:
    untuned = [replace(r, trials=0, spec_hash="at0", score=90.0) for r in AT]
    reported = [replace(r, method="sp", spec_hash="sp", origin="reported") for r in AT]
    alone = [row("none", seed, 60.0 + seed, 60.0 + seed) for seed in range(3)]
    found = boards(*KD, *AT, *untuned, *reported, *alone)
    assert (the(found, "at", 4).rank, the(found, "kd").rank) == ((1, 1), (2, 2))  # paired, though intervals overlap
    assert the(found, "at", 0).rank == (1, 1)
    assert the(found, "sp").unranked == "its numbers are reported, not measured"
    none = the(found, "none")
    assert (none.reference, none.rank, none.unranked) == (True, None, "the student was trained alone")
    assert (none.gap, none.vs_scratch.reason, none.vs_kd.reason) == (None, *["the student was trained alone"] * 2)


def test_a_board_has_the_teacher_and_the_scratch_student() -> None:
    newer = [replace(scored(r, teacher={"accuracy": 81.0}), finished=5000.0) for r in AT]
    (board,) = boards(*KD, *newer, row("kd", 7, 66.0, 63.0)).boards
    assert (board.teacher, board.teachers) == ({"accuracy": 81.0}, 2)
    assert (board.scratch["accuracy"].n, board.scratch["accuracy"].mean) == (4, pytest.approx((60 + 61 + 62 + 63) / 4))
    assert board.metrics == ("accuracy", "ece")
    assert (board.primary, board.higher_is_better) == ("accuracy", True)
    assert [g.method for g in board.groups] == ["at", "kd"]


def test_a_teacher_alone_is_no_group_of_a_board() -> None:
    teacher = replace(row("none", 0, 80.0, None), role="teacher", reference=False)
    found = boards(*KD, teacher)
    assert [g.method for g in found.teachers] == ["none"]
    assert found.teachers[0].score is not None
    assert found.teachers[0].score.mean == 80.0
    assert len(found.boards[0].groups) == 1


def test_one_wrong_record_does_not_turn_the_board() -> None:
    odd = [replace(r, primary="ece", higher_is_better=False, finished=1e6, method="x", spec_hash="x") for r in KD]
    found = boards(*KD, *AT, *odd)
    assert found.boards[0].primary == "accuracy"
    assert the(found, "x").unranked == "it has no accuracy"
    assert [g.method for g in found.boards[0].groups] == ["at", "kd", "x"]
    high = [replace(scored(r, student={"ece": 99.0}), score=99.0) for r in odd]
    (board,) = boards(*KD, *AT, *high).boards
    assert [(g.method, g.metric == board.metric) for g in board.groups] == [("at", True), ("kd", True), ("x", False)]


def test_records_of_one_hash_that_differ_are_apart() -> None:
    other = replace(AT[2], digest="other", seed=9)
    first, second = group([*AT, other])
    assert {len(first.rows), len(second.rows)} == {3, 1}


def test_the_board_to_show_first() -> None:
    def cell(preset: str, methods: int, pair: str = "a_b") -> list[Row]:
        names = ["kd", "at", "sp"][:methods]
        return [
            row(m, s, 70.0, pair=pair, preset=preset, spec_hash=f"{m}{preset}{pair}") for m in names for s in range(3)
        ]

    found = boards(*cell("smoke", 3), *cell("quick", 2), *cell("quick", 1, "c_d"))
    assert [(b.setting.preset, b.setting.pair) for b in found.tasks["classification"]] == [
        ("quick", "a_b"),
        ("quick", "c_d"),
        ("smoke", "a_b"),
    ]


def test_metrics_that_some_seeds_lack() -> None:
    rows = [scored(KD[0], student={"accuracy": 66.0}), *KD[1:]]
    found = the(boards(*rows), "kd").metrics
    assert (found["accuracy"].n, found["ece"].n) == (3, 2)


def test_nothing() -> None:
    assert build([]) == Boards()
    assert build([]).tasks == {}


@pytest.mark.parametrize("name", ["nll", "ece", "val_loss", "top1_error", "rmse", "hd95", "abs_rel_error", "mae"])
def test_metrics_that_are_better_low(name: str) -> None:
    assert lower_is_better(name)


@pytest.mark.parametrize("name", ["top1", "map_3d_moderate_r40", "miou", "agreement", "closs", "maer", "f1_25", "chd"])
def test_metrics_that_are_better_high(name: str) -> None:
    assert not lower_is_better(name)


def test_a_temperature_has_no_better_direction() -> None:
    assert not directed("temperature")
    assert all(map(directed, ("top1", "nll", "ece_ts", "nll_ts")))


def test_a_tree_of_records_becomes_boards(results: Path) -> None:
    rows = read([results]).rows
    found = build(rows)
    kept = [g for board in found.boards for g in board.groups] + found.failures + found.teachers
    assert sum(len(g.rows) + len(g.superseded) for g in kept) == len(rows)
    assert set(found.tasks) == {"classification", "pointcloud"}
    assert found == build(list(rows))


def test_boards_are_of_networks_and_not_of_names() -> None:
    named = [row("kd", s, 70.0, pair=p, pairing="a_b", spec_hash=p) for p in ("a_b", "mine") for s in range(3)]
    other = [row("kd", s, 70.0, pair="a_b", pairing="a_b (Net width=8)", spec_hash="wide") for s in range(3)]
    found = build(in_order(named + other)).boards
    assert sorted((board.setting.pair, len(board.groups)) for board in found) == [("a_b", 2), ("a_b (Net width=8)", 1)]
