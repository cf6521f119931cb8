"""The list of what lies in a results folder, and the means at the end of a sweep."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy import stats

from kdbench import results
from kdbench.records.record import CONFIG, read_record, write_record
from kdbench.records.schema import Primary, Record, RoleScores
from kdbench.runs import summary
from tests.cli import ROOT, CommandLine


@pytest.fixture
def kdbench(tmp_path, monkeypatch, capsys) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys)


@pytest.fixture
def record(kdbench) -> Record:
    assert kdbench("method=kd", "seed=0").code == 0
    (found,) = kdbench.records()
    return found


def seeded(record: Record, seed: int, scratch: float, student: float, higher: bool = True, **changes: object) -> Record:
    """The record with another seed, and errors as its scores where lower is better."""
    primary = Primary(name="rmse", higher_is_better=False) if not higher else record.primary
    assert primary is not None
    values = {"scratch": scratch, "student": student, "teacher": scratch}
    scores = record.scores | {n: RoleScores(test={primary.name: v}) for n, v in values.items()}
    command = f"python -m kdbench task=toy method=kd seed={seed} pair.student.taps.a='x y'"
    own = {"seed": seed, "scores": scores, "primary": primary, "command": command, "run_id": f"r{seed}"}
    return record.model_copy(update={**own, **changes})


def printed(found: list[summary.Row]) -> str:
    text = io.StringIO()
    Console(width=300, file=text).print(summary.table(found, "means"))
    return text.getvalue()


def test_seeds_of_one_specification_are_a_mean_with_its_interval(record):
    pairs = [(50.0, 52.0), (51.0, 52.5), (49.0, 53.0)]
    runs = [(Path(str(s)), seeded(record, s, *pair)) for s, pair in enumerate(pairs)]
    other = (Path("other"), seeded(record, 0, 60.0, 59.0, spec_hash="other"))
    failed = (Path("f"), seeded(record, 7, 0, 0, status="failed", reason="x"))
    row, alone = sorted(summary.rows([*runs, other, failed]), key=lambda row: -len(row.seeds))
    assert (row.seeds, row.ended) == ((0, 1, 2), {"failed": 1})
    for found, values in ((row.score, [p[1] for p in pairs]), (row.gain, [p[1] - p[0] for p in pairs])):
        assert found is not None
        assert found.half is not None
        low, high = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
        assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert shlex.split(row.command)[-1] == "seed=0,1,2,7"
    assert shlex.split(row.command)[:4] == ["python", "-m", "kdbench", "-m"]
    assert "pair.student.taps.a=x y" in shlex.split(row.command)
    assert alone.score == summary.Mean(59.0)
    text = printed([row, alone])
    assert "52.50 ± 1.24" in text
    assert "3 seeds, 1 failed" in text
    assert "one seed: no interval" in text
    assert "-1.00 " in text
    assert "59.00 ±" not in text


def test_options_that_a_command_sets_stand_beside_what_they_are_of(record):
    runs = []
    for bits in (2, 8):
        command = f"python -m kdbench task=toy quant=u quant.bits={bits} ++augment.alpha=0.4 seed=0"
        own: dict[str, Any] = {"quant": "u", "augment": "mixup", "spec_hash": str(bits), "command": command}
        runs.append((Path(str(bits)), seeded(record, 0, 1.0, 2.0, **own)))
    found = [(row.quant, row.augment) for row in summary.rows(runs)]
    assert found == [("u bits=2", "mixup alpha=0.4"), ("u bits=8", "mixup alpha=0.4")]


def test_more_of_an_error_is_no_gain(record):
    worse = [(Path(str(s)), seeded(record, s, 0.5, 0.62, False)) for s in range(2)]
    better = [(Path(str(s)), seeded(record, s, 0.5, 0.4, False, spec_hash="b")) for s in range(2)]
    text = printed(summary.rows([*worse, *better]))
    assert "rmse (lower is better)" in text
    assert "+0.1200 ± 0.0000 worse" in text
    assert "-0.1000 ± 0.0000 better" in text


def test_of_two_runs_of_a_seed_the_newest_that_ended_well_counts(record):
    assert record.provenance is not None
    later = record.provenance.model_copy(update={"finished": record.provenance.finished + timedelta(hours=1)})
    old, new = seeded(record, 0, 1.0, 2.0), seeded(record, 0, 1.0, 3.0, provenance=later)
    failed = seeded(record, 0, 1.0, 4.0, provenance=later, status="failed", reason="x")
    (row,) = summary.rows([(Path("a"), new), (Path("b"), old), (Path("c"), failed)])
    assert (row.seeds, row.score, row.ended, row.folders) == ((0,), summary.Mean(3.0), {}, ("a",))


def test_every_teacher_has_a_mean_of_its_own(record):
    assert record.teacher is not None
    other = record.teacher.model_copy(update={"seed": 1})
    runs = [seeded(record, 0, 1.0, 2.0), seeded(record, 0, 1.0, 4.0, teacher=other)]
    assert [row.score for row in summary.rows((Path(r.run_id), r) for r in runs)] == [
        summary.Mean(2.0),
        summary.Mean(4.0),
    ]


def test_the_list_of_a_folder(record, kdbench, capsys):
    (path,) = kdbench.results.glob("*/*/*")
    write_record(kdbench.results, seeded(record, 1, 10.0, 20.0), {CONFIG: path / CONFIG})
    assert results.main([str(kdbench.results)]) == 0
    header, line = (row.split("\t") for row in capsys.readouterr().out.splitlines())
    assert header[:3] == ["task", "data", "method"]
    shown = dict(zip(header, line, strict=True))
    assert (shown["task"], shown["method"], shown["seeds"]) == ("toy", "kd", "2 seeds")
    assert shown["command"].endswith("seed=0,1")
    assert results.main([str(kdbench.results), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["seeds"] == [0, 1]
    assert row["score"]["half"] > 0
    (path / "run.json").write_text("{")
    assert results.main([str(kdbench.results)]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("kdbench: error: ")
    assert said.err.count("\n") == 1
    assert "one seed: no interval" in said.out
    assert results.main([str(kdbench.results / "nowhere")]) == 1
    assert "no records there, expected a results folder" in capsys.readouterr().err


def test_listing_needs_no_torch():
    code = "import sys; from kdbench import results; results.main(['/nowhere']); print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_a_sweep_ends_with_means_and_says_who_speaks(kdbench):
    ran = kdbench("-m", "method=none,kd", "seed=0,1", "trainer.epochs=3", "trainer.val_every=2")
    assert ran.code == 0
    for seed in (0, 1):
        assert f"method=kd seed={seed} · student: epoch 1/3" in ran.out
        assert f"method=kd seed={seed} · scores: drawing" in ran.out
    means = ran.out[ran.out.rindex("means with 95% intervals") :]
    assert "toy" in means.splitlines()[0]
    for method in ("none", "kd"):
        (line,) = [line for line in means.splitlines() if f" {method} " in line]
        values = [
            record.scores["student"].test["accuracy"] or 0.0
            for record in map(read_record, kdbench.results.glob(f"toy/{method}/*"))
            if record.scores["student"]
        ]
        assert f"{sum(values) / 2:.4f} ± " in line
        assert "2 seeds" in line
    # on a pipe, an epoch that was not validated shows no value of an earlier one
    lines = [line for line in ran.out.splitlines() if "seed=0 · student: epoch " in line]
    assert [" · val accuracy " in line for line in lines] == [False, True, True]
    again = kdbench("-m", "method=kd", "seed=0", "trainer.epochs=3", "trainer.val_every=2")
    assert "one seed: no interval" in again.out
