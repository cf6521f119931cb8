from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as cli
from benchmarks import augmentor, detection, engine, hoi, pointcloud, segmentation, startup, text
from benchmarks.images import ResNet
from benchmarks.report import BEYOND, MET, MISSED, MORE, WITHIN, Row
from benchmarks.turns import Gate, Times, alternate, take_turns
from tasks.pointcloud.detector import PointPillars


@pytest.mark.parametrize(
    ("value", "unit", "null", "verdict"),
    [
        (0.9, "x", (0.95, 1.05), MET),
        (1.04, "x", (0.95, 1.02), WITHIN),
        (1.06, "x", (0.99, 1.05), MISSED),
        (1.06, "x", None, MISSED),
        (1.3, MORE, (-0.4, 0.2), WITHIN),
        (1.3, MORE, (-0.2, 0.2), MISSED),
    ],
)
def test_a_limit_is_missed_only_beyond_what_the_null_pair_differs(value, unit, null, verdict) -> None:
    assert Row("name", unit, value, limit=1.0, null=null).verdict == verdict


def test_a_limit_that_a_loop_by_hand_cannot_meet_either_is_beyond_the_processor() -> None:
    null = (0.98, 1.02)
    assert Row("name", "x", 1.31, limit=0.57, null=null, reach=1.3).verdict == BEYOND
    assert Row("name", "x", 1.4, limit=0.57, null=null, reach=1.3).verdict == MISSED
    assert Row("name", "x", 0.7, limit=0.57, null=null, reach=0.5).verdict == MISSED


def test_a_row_without_limit_has_no_verdict() -> None:
    assert Row("name", "points", 3.0).verdict == ""


def test_a_row_of_rounds_is_their_median_and_span() -> None:
    row = Row.of("name", "x", [3.0, 1.0, 2.0], [0.9, 1.1], limit=2.5)
    assert (row.value, row.span, row.null, row.verdict) == (2.0, (1.0, 3.0), (0.9, 1.1), MET)


def test_functions_alternate_in_rotated_order() -> None:
    calls: list[str] = []
    times = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2, repeats=1)
    assert [len(t.blocks) for t in times.values()] == [2, 2]
    assert "".join(calls) == "aaaabbbb" + "bbbbaaaa"


def sleeper(gate: Gate, seconds: float) -> None:
    while True:
        time.sleep(seconds)
        gate.step()


def broken(gate: Gate) -> None:
    gate.step()
    raise ValueError("broken on purpose")


@pytest.mark.slow
def test_contenders_take_turns() -> None:
    times = take_turns({"short": partial(sleeper, seconds=0.001), "long": partial(sleeper, seconds=0.05)}, 2, 3)
    assert [len(t.blocks) for t in times.values()] == [2, 2]
    assert min(times["long"].over(times["short"])) > 1
    assert min(times["long"].minus(times["short"])) > 0
    assert times["short"].peak > 10


@pytest.mark.slow
def test_a_contender_that_ends_is_named() -> None:
    with pytest.raises(RuntimeError, match="'bad' ended"):
        take_turns({"bad": broken}, 1, 1)


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.28), (56, 0.86)])
def test_the_networks_are_those_of_cifar(depth: int, millions: float) -> None:
    net = ResNet(depth, 100)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 100)


def test_engine_and_loop_do_the_same_work(monkeypatch) -> None:
    assert engine.same_work(8, 8, 4, steps=2) <= 1e-6
    monkeypatch.setattr(engine, "ALPHA", 0.5)
    with pytest.raises(RuntimeError, match="do not compute the same losses"):
        engine.same_work(8, 8, 4, steps=2)


def run(rows: Iterator[Row]) -> list[Row]:
    found = list(rows)
    assert all(row.value == row.value for row in found)
    return found


@pytest.mark.slow
def test_the_overhead_is_measured() -> None:
    (row,) = run(engine.overhead(1, 2, batch_size=2))
    assert (row.unit, row.limit, row.aim) == (MORE, 1.0, 0.4)
    assert row.null is not None


def test_throughput_is_the_ratio_to_the_plain_loop(monkeypatch) -> None:
    slower = {"bare": 10.0, "twin": 10.1, "by hand, float32": 8.0, "float32": 8.2, "by hand, bf16": 12.0, "bf16": 12.1}
    monkeypatch.setattr(engine, "take_turns", lambda who, *_: {n: Times([slower[n], 2 * slower[n]]) for n in who})
    float32, bf16 = run(engine.throughput(2, 1, teacher=8, student=8, batch_size=4))
    assert (float32.value, float32.limit, float32.verdict) == (pytest.approx(0.82), 0.85, MET)
    assert (bf16.value, bf16.limit, bf16.verdict) == (pytest.approx(1.21), 0.57, BEYOND)


def test_replay_is_the_ratio_to_the_student_alone(monkeypatch) -> None:
    times = {"bare": 20.0, "scratch": 9.0, "twin": 9.1, "kd": 18.0, "replay": 9.27}
    monkeypatch.setattr(engine, "take_turns", lambda who, *_: {n: Times([times[n]]) for n in who})
    (row,) = run(engine.replay())
    assert (row.value, row.limit, row.verdict) == (pytest.approx(1.03), 1.05, MET)
    assert "0.52 x a kd step that asks the teacher, 0.46 x a plain" in row.detail


def test_the_contenders_of_replay_train(monkeypatch) -> None:
    steps: list[str] = []

    class Count(Gate):
        def step(self) -> None:
            steps.append("")

    gate = Count(None)  # type: ignore[arg-type]
    engine.replayed(gate, teacher=8, student=8, batch_size=4, steps=2)
    engine.alone(gate, student=8, batch_size=4, steps=2)
    assert len(steps) == 4


@pytest.mark.parametrize(("fast", "bf16"), [(False, False), (True, True)])
def test_the_loop_by_hand_trains(fast: bool, bf16: bool) -> None:
    torch.manual_seed(0)
    loop = engine.Loop(ResNet(8, 5), ResNet(8, 5), fast, bf16)
    images, labels = torch.randn(16, 3, 8, 8), torch.arange(16) % 5
    losses = [loop.step(images, labels).item() for _ in range(8)]
    assert losses[-1] < losses[0]


def test_the_accuracy_of_bf16_is_measured() -> None:
    (row,) = run(engine.accuracy(seeds=1, epochs=1, teacher=8))
    assert -100 <= row.value <= 100
    assert row.limit is None


def test_a_loop_by_hand_segments_as_the_engine_does(monkeypatch) -> None:
    monkeypatch.setattr(segmentation, "SIZE", (32, 64))
    assert segmentation.same_work(2, steps=2) <= 1e-4
    monkeypatch.setattr(segmentation.F, "kl_div", lambda *_, **__: torch.zeros(()))
    with pytest.raises(RuntimeError, match="do not compute the same losses"):
        segmentation.same_work(2, steps=1)


def test_segmentation_is_the_ratio_to_the_plain_loop(monkeypatch) -> None:
    times = {"bare": 40.0, "twin": 40.4, "engine": 41.0}
    monkeypatch.setattr(segmentation, "same_work", lambda _: 1e-6)
    monkeypatch.setattr(segmentation, "take_turns", lambda who, *_: {n: Times([times[n]]) for n in who})
    (row,) = run(segmentation.segmentation())
    assert (row.value, row.limit, row.verdict) == (pytest.approx(1.025), 1.05, MET)


def test_mmdets_own_step_trains_as_the_engine_does(monkeypatch) -> None:
    monkeypatch.setattr(detection, "SIZE", (64, 96))
    assert detection.same_work(2, steps=2) <= 1e-4


def test_detection_is_the_ratio_to_mmdets_own_step(monkeypatch) -> None:
    times = {"bare": 400.0, "twin": 404.0, "engine": 410.0}
    monkeypatch.setattr(detection, "same_work", lambda _: 1e-6)
    monkeypatch.setattr(detection, "take_turns", lambda who, *_: {n: Times([times[n]]) for n in who})
    (row,) = run(detection.detection())
    assert (row.value, row.limit, row.verdict) == (pytest.approx(1.025), 1.05, MET)


def test_the_augmentor_is_compared_with_the_passes_by_hand(monkeypatch) -> None:
    times = {"kd": 100.0, "student": 190.0, "both": 300.0, "by hand": 100.0, "by hand again": 101.0}
    monkeypatch.setattr(augmentor, "take_turns", lambda who, *_: {n: Times([times[n]]) for n in who})
    update, step = run(augmentor.augmentor())
    assert (update.value, update.limit, update.verdict) == (pytest.approx(1.1), 1.2, MET)
    assert step.value == pytest.approx(1.9)


@pytest.mark.slow
def test_the_augmentor_steps_always_or_never() -> None:
    update, step = run(augmentor.augmentor(1, 1, ["trainer.threads=1", "pair=resnet8_w16_w4", "data.batch_size=8"]))
    assert update.unit == step.unit == "x"
    assert step.value > 0


def test_pillars_run_on_a_scan_as_dense_as_a_real_one() -> None:
    (row,) = run(pointcloud.pillars(1, 1))
    assert row.limit == 5.0
    _, _, counts = PointPillars(width=0.25).encoder(pointcloud.scan(), torch.zeros(18_000, dtype=torch.long))
    assert counts.sum() == 18_000
    assert 5_000 < len(counts) < 6_500
    assert 0.3 < (counts == 1).float().mean() < 0.5


def test_a_step_of_each_detector_runs() -> None:
    rows = run(pointcloud.detectors(1, 1, 500))
    assert [row.name for row in rows][-1] == "pointrcnn_16x, student: a step"
    assert all(row.value > 0 and row.verdict == "" for row in rows)


def test_nms_and_evaluation_run() -> None:
    (row,) = run(pointcloud.nms(1, 1))
    kept = int(row.detail.split()[0])
    assert 20 <= kept <= 40
    (row,) = run(pointcloud.evaluation(frames=30))
    assert 5 < float(row.detail.split("mAP ")[1].split(";")[0]) < 95


@pytest.mark.slow
def test_pointdistiller_runs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path))
    small = ("data.train=6", "data.test=2", "data.batch_size=2")
    step, memory = run(pointcloud.pointdistiller(1, 2, overrides=small))
    assert step.limit == 1.3
    assert "K=" in step.detail
    assert memory.unit == "MiB"


def test_the_command_reports_and_fails_where_a_limit_is_missed(tmp_path: Path, monkeypatch, capsys) -> None:
    rows = {"good": [Row("a", "ms", 1.0, limit=2.0)], "bad": [Row("b", "ms", 3.0, limit=2.0, detail="of 5")]}
    monkeypatch.setattr(cli, "BENCHMARKS", {name: lambda own=own: own for name, own in rows.items()})
    assert cli.main(["good"]) == 0
    assert cli.main(["--json", str(tmp_path / "out.json")]) == 1
    assert "missed" in capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())
    assert [(row["name"], row["verdict"]) for row in written["rows"]] == [("a", MET), ("b", MISSED)]
    assert written["machine"]["torch"] == torch.__version__
    with pytest.raises(SystemExit):
        cli.main(["godo"])


def test_a_further_student_is_measured_beyond_its_training(monkeypatch) -> None:
    """Runs of 5 s of which 3 s are a training, on a machine that gives a run half of a processor."""
    commands: list[list[str]] = []

    def cpu(arguments: list[str]) -> tuple[float, float]:
        commands.append(arguments)
        options = dict(option.split("=", 1) for option in arguments if "=" in option)
        jobs = options.get("method", "").split(",") if "results" in options else []
        new = [job for job in jobs if not Path(options["results"], job).exists()]
        for job in new:
            Path(options["results"], job).mkdir(parents=True)
            Path(options["results"], job, "run.json").write_text(json.dumps({"cost": {"wall_s": 6.0}}))
        return 2.0 + 3.0 * len(new), 4.0 + 6.0 * len(new)

    monkeypatch.setattr(startup, "cpu", cpu)
    (row,) = run(startup.startup(["digits"]))
    assert (row.value, row.unit, row.limit, row.verdict) == (2.0, "s", 4.0, MET)
    assert "further job of a sweep takes 0.0 s more" in row.detail
    assert [c[-1] for c in commands[2:5]] == ["method=dkd", "method=nkd", "method=ttm"]


def test_attention_over_a_video_runs_at_the_size_that_it_names() -> None:
    (row,) = run(hoi.attention(1, 1))
    assert row.name == "global attention, 512 nodes"
    assert row.limit == 150
    assert "16 videos, width 48" in row.detail


def test_generation_runs_and_leaves_the_threads_as_they_are() -> None:
    before = torch.get_num_threads()
    (row,) = run(text.generation(1, 1, batch=2))
    assert row.limit == pytest.approx(1000 * 2 * 64 / 10_000)
    assert torch.get_num_threads() == before
