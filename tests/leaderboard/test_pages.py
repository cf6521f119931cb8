"""What pages say of rows made by hand."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leaderboard.boards import build as join
from leaderboard.build import build
from leaderboard.pages import common
from leaderboard.rows import Found, read
from tests.leaderboard.rows import INTERN, Row, failed, in_order, parts, row, scored


def made_of(out: Path, *rows: Row) -> Path:
    """A site of rows made by hand."""
    found = Found(in_order(list(rows)), [], 0, len(rows))
    return build(out, found, join(found.rows), run_pages=0).out


def table(site: Path, name: str) -> dict[str, dict[str, str]]:
    """Rows of a table's file by method."""
    return {line["method"]: line for line in csv.DictReader(io.StringIO((site / f"data/{name}.csv").read_text()))}


KD = [row("kd", seed, 70.0 + seed) for seed in range(3)]


def test_seeds_that_came_to_nothing_are_noted(tmp_path: Path) -> None:
    null = scored(row("sp", 6, None), student={"accuracy": None})
    lost = [failed("sp", 3), *(failed("sp", seed, "diverged") for seed in (4, 5))]
    site = made_of(tmp_path / "out", *KD, *(row("sp", seed, 66.0) for seed in range(3)), *lost, null)
    for name, key in (("task-classification", "sp"), ("method-sp", "a_b")):
        rows = csv.DictReader(io.StringIO((site / f"data/{name}.csv").read_text()))
        (note,) = (line["note"] for line in rows if key in (line.get("method"), line.get("pair")))
        assert note == "1 failed, 2 diverged, 1 without a score"
    assert table(site, "task-classification")["kd"]["note"] == ""


def test_a_term_that_did_nothing_is_said_on_every_page(tmp_path: Path, save: Callable[..., Path]) -> None:
    idle = [row("sp", seed, 60.0, flags=("zero_term:sp", "no_headroom")) for seed in range(3)]
    some = [row("dist", seed, 60.0, flags=("no_gradient:intra",) if seed else ()) for seed in range(3)]
    site = made_of(tmp_path / "out", *KD, *idle, *some)
    wanted = {
        "sp": "term sp was zero in every step",
        "dist": "term intra gave no gradient in 2 of 3 seeds",
        "kd": "",
    }
    assert {name: line["note"] for name, line in table(site, "task-classification").items()} == wanted
    for name, words in wanted.items():
        (line,) = csv.DictReader(io.StringIO((site / f"data/method-{name}.csv").read_text()))
        assert line["note"] == words
        (own,) = (site / "groups").glob(f"{name}-*.html")
        assert (words + ": it taught nothing" in own.read_text()) == bool(words)
    save(flags=["zero_term:kd"])
    found = read([tmp_path / "one"])
    (page,) = (build(tmp_path / "run", found, join(found.rows)).out / "runs").glob("*.html")
    assert "The term kd was zero in every step: it taught nothing." in page.read_text()


def test_a_run_whose_score_is_no_number_says_so(tmp_path: Path) -> None:
    null = scored(row("sp", 0, None), student={"accuracy": None})
    site = made_of(tmp_path / "out", *KD, null)
    assert table(site, "failed-classification")["sp"]["reason"] == "ok, but its accuracy is no number"
    assert "its accuracy is no number" in (site / "coverage.html").read_text()


def test_what_another_metric_scores_is_in_no_column_and_no_chart(tmp_path: Path) -> None:
    changes = {"primary": "ece", "higher_is_better": False, "score": 4321.0, "best_on_val": 9.0}
    odd = [replace(r, method="odd", spec_hash="odd", **changes) for r in KD]  # type: ignore[arg-type]
    site = made_of(tmp_path / "out", *KD, *(row("sp", seed, 60.0 + seed) for seed in range(3)), *odd)
    line = table(site, "task-classification")["odd"]
    for key in ("score", "vs_scratch", "vs_kd", "gap", "rank_low", "best_on_val", "teacher", "scratch"):
        assert line[key] == "", key
    page = (site / "tasks/classification.html").read_text()
    assert "scored by ece" in page
    assert "odd" not in "".join(re.findall("<svg.*?</svg>", page, re.DOTALL))
    assert "4321" not in page


def test_roles_that_few_runs_have_are_beside_the_student(tmp_path: Path) -> None:
    both = [scored(r, converted={"accuracy": 60.0 + r.seed}, teacher_privileged={"accuracy": 85.5}) for r in KD]
    others = [row("sp", seed, 66.0) for seed in range(3)]
    site = made_of(tmp_path / "out", *both, *others)
    lines = table(site, "task-classification")
    assert (lines["kd"]["score"], lines["kd"]["converted"], lines["sp"]["converted"]) == ("71", "61", "")
    own = (site / f"groups/kd-{KD[0].spec_hash}.html").read_text()
    assert re.search(r"<dd>71.00 ± \S+; converted 61.00 ± ", own)
    for key, value in (("converted", "62.00"), ("teacher_privileged", "85.50")):
        assert f'data-key="{key}"' in own
        assert f">{value}<" in own
    assert "converted" not in (site / f"groups/sp-{others[0].spec_hash}.html").read_text()
    assert "converted" not in table(made_of(tmp_path / "none", *KD), "task-classification")["kd"]


def test_quality_is_drawn_over_bits_and_over_size_where_students_are_quantised(tmp_path: Path) -> None:
    size = {"params": 1000.0, "bytes": 4200.0}
    plain = [replace(r, models=parts({"student": size})) for r in KD]
    small = []
    for bits, score in ((2.0, 61.0), (4.0, 69.0)):
        packed = {**size, "bits": bits, "packed_bytes": 100 * bits + 77, "coded_bytes": 100 * bits}
        options: dict[str, Any] = {
            "quant": "quantized_distillation",
            "models": parts({"student": packed}),
            "spec_hash": f"{bits}",
        }
        small += [row("kd", seed, score + seed, **options) for seed in range(3)]
    site = made_of(tmp_path / "out", *plain, *small)
    page = (site / "tasks/classification.html").read_text()
    drawn = {title: svg for svg, title in re.findall(r"(<svg.*?<title[^>]*>(.*?)</title>.*?</svg>)", page, re.DOTALL)}
    for what, ends in (("bits of a weight", "2 4 32"), ("size of the weights on disk, bytes", "277 477 4200")):
        marks = re.findall(r"<title>(.*?)</title>", drawn[f"accuracy over {what}"])
        found = {mark.partition(", a_b: ")[0]: mark.rpartition(" at ")[2] for mark in marks if "scratch" not in mark}
        assert sorted(m.rpartition(" at ")[2] for m in marks if "scratch" in m) == sorted(ends.split())
        names = [f"kd, {bits} bits + quantized_distillation" for bits in (2, 4)]
        assert found == dict(zip([*names, "kd"], ends.split(), strict=True))
    lines = list(csv.DictReader(io.StringIO((site / "data/task-classification.csv").read_text())))
    assert {(line["bits"], line["packed_bytes"], line["coded_bytes"]) for line in lines} == {
        ("", "", ""),
        ("2", "277", "200"),
        ("4", "477", "400"),
    }
    none = (made_of(tmp_path / "none", *plain) / "tasks/classification.html").read_text()
    assert "bits of a weight" not in none


def test_a_student_that_rounds_in_floats_is_drawn_as_its_converted_one_is_stored(tmp_path: Path) -> None:
    models: dict[str, dict[str, float | None]] = {
        "student": {"params": 1000.0, "bytes": 4200.0, "packed_bytes": None, "bits": None},
        "converted": {"params": 1000.0, "bytes": 1900.0, "packed_bytes": 1100.0, "bits": 8.0, "latency_ms": 0.3},
    }
    rows = [replace(r, quant="ptq_int8", models=parts(models)) for r in KD]
    plain = [replace(r, models=parts({"student": {"bytes": 4200.0}})) for r in KD]
    page = (made_of(tmp_path / "out", *plain, *rows) / "tasks/classification.html").read_text()
    marks = re.findall(r"<title>kd \+ ptq_int8, a_b: .*? at (.*?)</title>", page)
    assert {"8", "1100"} <= set(marks)
    assert rows[0].figure("latency_ms") is None


def test_settings_of_other_options_are_boards_of_their_own(tmp_path: Path) -> None:
    few = [replace(r, quant="u", quantising="u bits=2", spec_hash="two") for r in KD]
    more = [replace(r, quant="u", quantising="u bits=4", spec_hash="four") for r in KD]
    site = made_of(tmp_path / "out", *few, *more)
    lines = list(csv.DictReader(io.StringIO((site / "data/task-classification.csv").read_text())))
    assert sorted((line["quant"], line["rank_low"]) for line in lines) == [("u bits=2", "1"), ("u bits=4", "1")]
    assert {line["setting"].rpartition(" · ")[2] for line in lines} == {"u bits=2", "u bits=4"}


def test_a_run_s_page_says_what_its_rare_roles_are(tmp_path: Path, save: Callable[..., Path]) -> None:
    save(scores__teacher_privileged={"test": {"accuracy": 0.85}}, scores__converted={"test": {"accuracy": 0.29}})
    found = read([tmp_path / "one"])
    (page,) = (build(tmp_path / "out", found, join(found.rows)).out / "runs").glob("*.html")
    text = page.read_text()
    for words in ("With its privileged input", "The student as it is stored and run", ">0.8500<", ">0.2900<"):
        assert words in text


def test_fidelity_is_what_the_newest_record_says(tmp_path: Path) -> None:
    mixed = [row("kd", seed, 70.0, fidelity="approximate" if seed == 2 else "equations") for seed in range(3)]
    site = made_of(tmp_path / "out", *mixed, *(row("bdkd", seed, 70.0, fidelity="equations") for seed in range(3)))
    lines = table(site, "methods")
    assert (lines["kd"]["fidelity"], lines["bdkd"]["fidelity"]) == ("approximate", "equations")
    assert "approximate: some equations" in (site / "methods/kd.html").read_text()


def test_a_setting_of_several_recipes_says_so(tmp_path: Path) -> None:
    longer = [row("sp", seed, 75.0, 65.0) for seed in range(3)]
    site = made_of(tmp_path / "out", *KD, *longer)
    (line,) = csv.DictReader(io.StringIO((site / "data/settings-classification.csv").read_text()))
    assert (line["scratch"], line["note"]) == ("60", "2 different scratch students of one seed")
    own = (site / f"groups/sp-{longer[0].spec_hash}.html").read_text()
    assert ">65.00 ± 0.00<" in own


def holes(site: Path) -> dict[str, dict[str, str]]:
    return {line["method"]: line for line in json.loads((site / "data/holes.json").read_text())}


def test_the_command_that_fills_a_hole_is_the_newest_run_s_and_runs_nothing_else(tmp_path: Path) -> None:
    command = (
        "python -m kdbench task=classification method=kd pair=x preset=y seed=7 'student.init_from=x; touch PWNED #' "
        "augment=mixup quant=int8 tuning.trials=6 data=cifar100 data.root=/c '~trainer.clip' +a.b=2 results=r cache=c "
        "logger=wandb logger.project=mine rerun=true hydra/launcher=joblib 'data.classes=[cat, dog]'"
    )
    site = made_of(tmp_path / "out", *KD, row("sp", 1, 66.0, command=command))
    words = shlex.split(holes(site)["sp"]["command"])
    assert words[:4] == ["python", "-m", "kdbench", "-m"]
    assert words[4:8] == ["task=classification", "method=sp", "pair=a_b", "preset=quick"]
    assert words[8:-1] == [
        "student.init_from=x; touch PWNED #",
        *("augment=mixup", "quant=int8", "tuning.trials=6", "data=cifar100", "data.root=/c", "~trainer.clip", "+a.b=2"),
        "data.classes=[cat, dog]",
    ]
    assert words[-1] == "seed=0,2"
    shown = shlex.split(common.overrides(command))
    assert shown == ["student.init_from=x; touch PWNED #", "data=cifar100", *words[-4:-1]]


def test_the_command_that_fills_a_hole_names_networks_as_the_run_did(tmp_path: Path) -> None:
    networks = "student=timm/resnet18 ++student.width=8 teacher._target_=torch.nn.Linear"
    command = f"python -m kdbench task=classification method=kd {networks} seed=0"
    own = [row(m, s, 66.0, pair="B_resnet18", command=command) for m in ("kd", "none") for s in range(3)]
    own += [row("sp", 1, 66.0, pair="B_resnet18", command=command), row("at", 1, 66.0, preset="smoke")]
    found = holes(made_of(tmp_path / "out", *own))
    start = "python -m kdbench -m task=classification"
    assert found["sp"]["command"] == f"{start} method=sp preset=quick {networks} tuning.trials=4 seed=0,2"
    assert found["at"]["command"] == f"{start} method=at preset=quick {networks} tuning.trials=4 seed=0,1,2"


def test_the_command_that_fills_a_hole_gives_a_row_that_counts_on_its_board(tmp_path: Path) -> None:
    command = "python -m kdbench task=classification method=kd seed=0 tuning.trials=6 trainer.epochs=9 "
    command += "method.temperature=2 +method.x=1 augment=mixup"
    rows = [row("kd", seed, 66.0, trials=6, command=command) for seed in range(3)]
    rows += [row("none", 0, 60.0), row("at", 0, 66.0, preset="smoke")]
    found = holes(made_of(tmp_path / "out", *rows))
    start = "python -m kdbench -m task=classification method=at pair=a_b preset=quick"
    assert found["at"]["command"] == f"{start} tuning.trials=6 trainer.epochs=9 augment=mixup seed=0,1,2"


def test_ranks_are_exported_whole_and_sorted_within_a_setting(tmp_path: Path) -> None:
    low = [row(m, s, 60.0 + s, pair="c_d") for m in ("kd", "sp") for s in range(3)]
    high = [row(m, s, 75.0 + s) for m in ("kd", "sp", "at") for s in range(3)]
    site = made_of(tmp_path / "out", *low, *high)
    lines = list(csv.DictReader(io.StringIO((site / "data/task-classification.csv").read_text())))
    assert {(line["rank_low"], line["rank_high"]) for line in lines} == {("1", "3"), ("1", "2")}
    page = (site / "tasks/classification.html").read_text()
    marks = re.findall(r'data-order="(\d+)" data-low="1" data-high="([23])"', page)
    assert [high for _, high in sorted((int(order), high) for order, high in marks)] == ["3", "3", "3", "2", "2"]


def test_training_costs_samples_times_passes_and_quality_is_drawn_over_it(tmp_path: Path) -> None:
    """As ssld and self_guided: few passes for each of very many samples."""

    def run(method: str, seed: int, seen: float, student: float, teacher: float) -> Row:
        made = {"samples_seen": seen, "student_passes": student, "teacher_passes": teacher}
        return row(method, seed, 66.0 + seed, cost=INTERN(made, made.values()))

    costs = {"none": (17280, 1, 0), "kd": (17280, 1, 1), "ssld": (53760, 1, 0.8), "self": (51840, 1, 2 / 3)}
    site = made_of(tmp_path / "out", *(run(m, s, *c) for m, c in costs.items() for s in range(3)))
    lines = table(site, "task-classification")
    found = {m: (float(line["student_cost"]), float(line["teacher_cost"])) for m, line in lines.items()}
    assert found == {"none": (1, 0), "kd": (1, 1), "ssld": pytest.approx((3.111, 2.489), abs=1e-3), "self": (3, 2)}
    page = (site / "tasks/classification.html").read_text()
    drawn = next(svg for svg in re.findall("<svg.*?</svg>", page, re.DOTALL) if "training: forward passes" in svg)
    ends = {
        mark.partition(", ")[0].partition(":")[0]: mark.rpartition(" at ")[2]
        for mark in re.findall(r"<title>(.*?)</title>", drawn)
    }
    assert ends == {"kd": "2", "self": "5", "ssld": "5.6", "scratch": "1"}


def test_machines_of_several_kinds_are_told(tmp_path: Path) -> None:
    mixed = [row("sp", seed, 66.0, cpu="AMD" if seed else "Intel") for seed in range(3)]
    site = made_of(tmp_path / "out", *KD, *mixed)
    lines = table(site, "task-classification")
    assert (lines["sp"]["note"], lines["kd"]["note"]) == ("seeds of 2 kinds of machine", "")
    assert "Seeds of 2 kinds of machine" in (site / f"groups/sp-{mixed[0].spec_hash}.html").read_text()


def test_a_twin_of_equal_compute_has_its_columns_where_there_is_one(tmp_path: Path) -> None:
    twins = [scored(row("sp", seed, 66.0 + seed), scratch_matched={"accuracy": 64.0 + 1.1 * seed}) for seed in range(3)]
    site = made_of(tmp_path / "out", *KD, *twins)
    lines = table(site, "task-classification")
    assert [float(lines["sp"][key]) for key in ("matched", "vs_matched")] == pytest.approx([65.1, 1.9])
    assert (lines["kd"]["matched"], lines["kd"]["vs_matched"]) == ("", "")
    assert "Against scratch of equal compute" in (site / f"groups/sp-{twins[0].spec_hash}.html").read_text()
    assert "matched" not in table(made_of(tmp_path / "plain", *KD), "task-classification")["kd"]


@pytest.mark.parametrize(
    ("factor", "scores", "said"),
    [
        (0.3, {"1": 95.0, "0.3": 96.0, "3": 94.0, "0.1": 95.0}, ""),
        (0.1, {"1": 95.0, "0.3": 95.0, "3": 94.0, "0.1": 96.0}, ", at the edge of what was tried"),
        (1.0, {"1": 96.0, "0.3": 96.0, "3": 96.0, "0.1": None}, ", tied with 0.3, 3"),
    ],
)
def test_a_factor_at_the_edge_or_tied_is_flagged(
    tmp_path: Path, save: Callable[..., Path], factor: float, scores: dict[str, float | None], said: str
) -> None:
    save(tuning={"trials": 4, "factor": factor, "seed": 1000, "scores": scores})
    found = read([tmp_path / "one"])
    (page,) = (build(tmp_path / "out", found, join(found.rows)).out / "runs").glob("*.html")
    assert f"4 trials, factor {factor}{said}; on validation" in page.read_text()


def test_what_all_rows_share_is_said_once_on_top(tmp_path: Path) -> None:
    site = made_of(tmp_path / "out", *KD, *(row("sp", seed, 66.0) for seed in range(3)))
    page = (site / "tasks/classification.html").read_text()
    facts = "Teacher 80.00, on which everything here is conditional; student trained alone 60.00 ± 0.00 over 3 seeds"
    assert f"a_b · quick · shapes: {facts}; 900 samples to train on, 100 to choose by, 500 to test." in page
    assert (
        "classification: every specification; alike in every row: seeds 3, teachers 1, intervals over seeds, params 10"
        in page
    )
    assert re.search('data-key="seeds"[^>]* data-hidden', page)
    assert table(site, "task-classification")["kd"]["seeds"] == "3", "a file has all columns"
    uneven = made_of(tmp_path / "uneven", *KD, *(row("sp", seed, 66.0) for seed in range(4)))
    assert not re.search('data-key="seeds"[^>]* data-hidden', (uneven / "tasks/classification.html").read_text())


def test_settings_are_named_by_what_differs() -> None:
    def named(**changes: Any) -> list[str]:
        others = [row("kd", s, 70.0, spec_hash="other", **changes) for s in range(3)]
        return sorted(common.settings(join(in_order([*KD, *others])).boards))

    start = "a_b · quick · shapes"
    assert named(digest="other", train_size=300) == [f"{start} · 300 train", f"{start} · 900 train"]
    assert named(digest="other") == [f"{start} · digest {'d' * 8}", f"{start} · digest other"]
    assert named(quant="int8") == [start, f"{start} · int8"]


def test_a_weight_is_written_as_it_was_meant(tmp_path: Path, save: Callable[..., Path]) -> None:
    save(terms={"task": {"weight": 0.3 * 0.3, "first": 1.0, "last": 1.0}, "kd": {"weight": "linear", "first": 1.0}})
    found = read([tmp_path / "one"])
    (page,) = (build(tmp_path / "out", found, join(found.rows)).out / "runs").glob("*.html")
    assert "<td>0.09</td>" in page.read_text()
    assert "<td>linear</td>" in page.read_text()


def test_seeds_of_an_older_code_are_to_be_run_again(tmp_path: Path) -> None:
    mixed = [row("sp", seed, 66.0, code_digest="new" if seed == 2 else "old") for seed in range(3)]
    hole = holes(made_of(tmp_path / "out", *KD, *mixed))["sp"]
    assert (hole["state"], hole["reason"]) == ("few seeds", "seeds of 2 code revisions")
    assert hole["command"].endswith(" seed=0,1")


def test_trials_of_the_code_cover_nothing(tmp_path: Path) -> None:
    smoke = [row("sp", seed, 66.0, preset="smoke", pair="tiny") for seed in range(3)]
    smoke.append(failed("at", 0, preset="smoke", pair="tiny"))
    found = holes(made_of(tmp_path / "out", *KD, *smoke))
    for method in ("sp", "at"):
        assert (found[method]["state"], found[method]["reason"]) == ("not run", "no record")
        assert "pair=a_b preset=quick tuning.trials=4 seed=0,1,2" in found[method]["command"]
    command = holes(made_of(tmp_path / "alone", *smoke))["sp"]["command"]
    assert command == "python -m kdbench -m task=classification method=sp seed=0,1,2"


@pytest.mark.parametrize(
    "text",
    [
        "epoch,train/task\n0,1\n1," + "9" * 200_000 + "\n",
        'epoch,train/task\n0,1\n1,"2\n',
        "epoch,train/task\nnan,1\ninf,2\n-inf,3\n",
        "epoch,train/task,val/accuracy\n0,1e308,1e308\n1,-1e308,-1e308\n2,1e999,nan\n",
        "epoch,train/task\n1e308,1\n-1e308,2\n5e-324,2\n0,1\n",
        "epoch,train/task\n0,1\n0,2\n",
        "epoch,train/task\n\x000,1\n1,\x00\n",
    ],
)
def test_curves_that_are_broken_cost_nothing_else(tmp_path: Path, save: Callable[..., Path], text: str) -> None:
    path = save()
    path.with_name("metrics.csv").write_text(text)
    found = read([tmp_path / "one"])
    site = build(tmp_path / "out", found, join(found.rows)).out
    (page,) = (site / "runs").glob("*.html")
    assert not re.search(r"\b(nan|inf)\b", "".join(re.findall("<svg.*?</svg>", page.read_text(), re.DOTALL)))


def test_a_latency_beyond_every_number_is_refused(tmp_path: Path, save: Callable[..., Path]) -> None:
    path = save(models__converted={"bytes": 10, "engine": "onnx", "latency_ms": 7.77})
    path.write_text(path.read_text().replace("7.77", "1e999"))  # no content hash covers what a machine measures
    found = read([tmp_path / "one"])
    assert found.problems[0].reason == "latency_ms: a number beyond 1e+30 is out of range"
