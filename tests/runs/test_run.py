"""A run from inside: what its record says, what is read when, and its copy on W&B."""

from __future__ import annotations

import csv
import io
import os
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from kdbench.base.outcomes import OUTCOMES, unpack
from kdbench.base.store import Product
from kdbench.configuration import config
from kdbench.mirror.wandb_run import STEP
from kdbench.records.record import find_records, verify
from kdbench.runs.report import show
from kdbench.runs.run import gap_closed
from kdbench.task import Counts
from kdbench.training import fit
from tests import toy
from tests.cli import CliToy, CommandLine
from tests.wandb_server import OfflineRun, read_offline


@pytest.fixture
def kdbench(tmp_path, monkeypatch, capsys) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys)


def product(score: float) -> Product:
    return Product(Path(), {"scores": {"test": {"m": score}}}, fresh=True)


def gap(teacher: float, scratch: float, student: float, noise: float | None = 0.0, higher: bool = True) -> Any:
    products = {"teacher": product(teacher), "scratch": product(scratch), "student": product(student)}
    facts = {"primary": "m", "aim": "", "higher_is_better": higher}
    task: Any = SimpleNamespace(**facts, standard_error=lambda first, second: 0.1 * first)
    return gap_closed(products, task, noise)


def test_gap_closed_is_the_share_of_the_way_from_scratch_to_teacher():
    assert gap(10, 6, 8) == (0.5, None, [])
    assert gap(10, 6, 4) == (-0.5, None, [])
    assert gap(10, 6, 12) == (1.5, None, [])
    assert gap(1, 5, 4, higher=False) == (0.25, None, [])


def test_gap_closed_needs_headroom_and_three_roles():
    assert gap(10, 9, 12, noise=1) == (None, "teacher - scratch is 1.00, not above the noise of 1", ["no_headroom"])
    assert gap(5, 9, 12)[2] == ["no_headroom"]
    assert gap(9, 5, 3, higher=False)[2] == ["no_headroom"]
    # Where no noise is given it is the task's standard error.
    line = "teacher - scratch is 0.50, not above the noise of 1"
    assert gap(10, 9.5, 12, noise=None) == (None, line, ["no_headroom"])
    assert gap(10, 8, 9, noise=None) == (0.5, None, [])
    task: Any = SimpleNamespace(primary="m", higher_is_better=True)
    assert gap_closed({"teacher": product(3)}, task, 0.0) == (None, "one role was trained alone", [])


def test_a_term_that_did_nothing_is_in_the_record_and_on_the_terminal(kdbench):
    ran = kdbench("method=toy_idle")
    assert ran.code == 0
    (record,) = kdbench.records()
    assert {"zero_term:nothing", "no_gradient:flat"} <= set(record.flags)
    said = " ".join(ran.out.split())
    assert "warning: term nothing was zero in every step, so that it taught nothing" in said
    assert "warning: term flat gave no gradient" in said
    assert "warning: term kd" not in said


def test_record_of_a_distilled_student(kdbench):
    ran = kdbench("method=fitnet", "method.weights.hint=0.1", "seed=3")
    (record,), (path,) = kdbench.records(), find_records(kdbench.results)
    assert path == kdbench.results / "toy" / "fitnet" / record.run_id
    assert verify(record)
    assert (record.task, record.method, record.pair, record.preset, record.seed) == ("toy", "fitnet", "toy", "smoke", 3)
    assert (record.augment, record.quant, record.origin) == ("none", "none", "measured")
    assert record.networks == {
        side: {"_target_": "tests.toy.Net", "width": width} for side, width in (("teacher", 8), ("student", 4))
    }
    assert record.options["weights"]["hint"] == 0.1
    assert record.teacher is not None
    assert (record.teacher.seed, record.teacher.options["augment"]) == (0, {"name": "none"})
    assert record.command.startswith("python -m kdbench task=toy preset=smoke ")
    assert record.command.endswith(" method=fitnet method.weights.hint=0.1 seed=3")

    by_role = {m["role"]: m for m in kdbench.manifests().values() if m["terms"].keys() == {"task"}}
    main = next(m for m in kdbench.manifests().values() if "hint" in m["terms"])
    for role, manifest in (("teacher", by_role["teacher"]), ("scratch", by_role["student"]), ("student", main)):
        scores = record.scores[role]
        compared = {} if role == "teacher" else {"models": 3.0}
        assert "test" not in manifest["scores"]
        assert [scores.test, scores.best_on_val] in [[t["test"] | compared, t["best_on_val"]] for t in kdbench.tested()]
    assert len(kdbench.tested()) == 3
    assert "peer" not in record.scores
    assert (record.gap_closed is None) == bool(record.gap_reason)

    assert record.cost is not None
    assert (record.cost.epochs, record.cost.samples_seen) == (2, 128)
    assert (record.cost.student_passes, record.cost.teacher_passes) == (1, 1)
    assert record.cost.added_params == 4 * 8 + 8 + 2 * 8  # the regressor of the hint and its normalisation
    assert record.cost.wall_s
    assert record.cost.peak_rss_mb

    student, teacher = record.models["student"], record.models["teacher"]
    assert student is not None
    assert teacher is not None
    assert student.params == sum(p.numel() for p in toy.Net(4).parameters())
    assert teacher.params == sum(p.numel() for p in toy.Net(8).parameters())
    convolutions = 9 * 3 * 4 * 64 + 9 * 4 * 4 * 16
    assert student.macs == convolutions + 4 * toy.CLASSES
    assert student.latency_ms
    assert student.bytes == (path / "student.safetensors").stat().st_size

    assert record.terms.keys() == {"task", "hint"}
    assert record.terms["hint"].weight == 0.1
    with (path / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["train/hint"]) for row in rows] == [record.terms["hint"].first, record.terms["hint"].last]

    assert record.dataset is not None
    assert record.dataset.model_dump() == {
        "name": "toy",
        "embedded": True,
        "digest": "toy",
        "fold": None,
        "classes": [],
        "inputs": {},
        "sizes": {"train": 64, "val": 40, "test": 40},
    }
    assert record.provenance.packages["torch"]
    assert record.provenance.started < record.provenance.finished
    assert record.provenance.threads == 1

    toy.Net(4).load_state_dict(load_file(path / "student.safetensors"))
    assert Image.open(path / "preview.png").size == (24, 8)
    assert f"student, {record.method}" in ran.out
    assert str(path) in ran.out.replace("\n", "")


def test_the_command_and_the_configuration_of_a_record_make_the_run_again(kdbench):
    import shlex

    import yaml

    kdbench("method=kd", "student.init_from=null", "tuning.factors=[1, 2]")
    (record,), (path,) = kdbench.records(), find_records(kdbench.results)
    again = config.load(shlex.split(record.command)[3:])
    places = {"results": str(kdbench.results), "cache": str(kdbench.cache)}
    assert again | places == yaml.safe_load((path / "config.yaml").read_text())


def test_record_of_methods_that_train_a_peer(kdbench):
    assert kdbench("method=toy_mutual").code == 0
    (record,) = kdbench.records()
    assert "teacher" in record.scores  # the pair's teacher, trained alone
    assert "peer" in record.scores
    assert record.scores["peer"].test.keys() == {"accuracy"}
    assert record.cost is not None
    assert record.cost.teacher_passes
    assert "peer" in kdbench("method=toy_mutual").out


@pytest.mark.parametrize(("role", "products"), [("teacher", {"teacher"}), ("student", {"scratch", "student"})])
def test_record_of_a_role_alone(kdbench, role, products):
    assert kdbench("method=none", f"role={role}").code == 0
    (record,), (path,) = kdbench.records(), find_records(kdbench.results)
    assert record.scores.keys() == products
    assert record.gap_reason == "one role was trained alone"
    assert (path / f"{role}.safetensors").is_file()
    assert len(kdbench.manifests()) == 1


def test_without_a_method_the_student_is_its_scratch_twin(kdbench):
    kdbench("method=none")
    (record,) = kdbench.records()
    assert record.scores["student"] == record.scores["scratch"]
    assert len(kdbench.manifests()) == 2


def test_a_matched_twin_has_as_much_compute_as_the_method(kdbench):
    kdbench("method=kd")
    (plain,) = kdbench.records()
    assert "scratch_matched" not in plain.scores
    made = len(kdbench.manifests())
    kdbench("method=kd", "scratch.matched=true")  # the record lacks it: it is added, and nothing else trains again
    (record,) = kdbench.records()
    assert record.spec_hash == plain.spec_hash
    assert len(kdbench.manifests()) == made + 1
    assert record.scores["student"] == plain.scores["student"]
    assert "accuracy" in record.scores["scratch_matched"].test
    cost, sizes = record.cost, record.models
    assert cost is not None
    passes = (cost.student_passes or 0) * sizes["student"].macs, (cost.teacher_passes or 0) * sizes["teacher"].macs
    times = sum(passes) / passes[0]
    epochs = round(cost.epochs * times)
    assert [flag for flag in record.flags if flag.startswith("matched:")] == [
        f"matched:{epochs} epochs, {times:.3g} times the compute of the scratch twin"
    ]
    kdbench("method=kd", "scratch.matched=true")
    assert len(kdbench.manifests()) == made + 1
    kdbench("method=none", "scratch.matched=true")  # there is nothing to match
    assert all("scratch_matched" not in found.scores for found in kdbench.records() if found.method == "none")


def test_tuning_reads_validation_alone_and_its_factor_is_used(kdbench, monkeypatch):
    tests: list[int] = []
    reads: dict[str, list[int]] = {}
    trained, loader = fit.train, toy.Data.test_dataloader

    def train(recipe, *arguments):
        tests.clear()
        manifest = trained(recipe, *arguments)
        reads[recipe.name] = [*tests]
        # The trial of the second factor wins.
        if recipe.name.startswith("trial"):
            manifest["scores"]["val"]["accuracy"] = 0.9 if recipe.factor == 0.5 else 0.1
            assert recipe.seed == 1000
        return manifest

    def test_dataloader(data):
        tests.append(1)
        return loader(data)

    monkeypatch.setattr(fit, "train", train)
    monkeypatch.setattr(toy.Data, "test_dataloader", test_dataloader)
    assert kdbench("method=kd", "tuning.trials=3", "tuning.factors=[1, 0.5, 3, 4]").code == 0
    trials = ["trial ×1", "trial ×0.5", "trial ×3"]
    assert reads == dict.fromkeys(["teacher", "scratch", *trials, "student"], [])
    assert len(kdbench.tested()) == 3
    (record,) = kdbench.records()
    assert record.tuning is not None
    assert record.tuning.model_dump() == {
        "trials": 3,
        "factor": 0.5,
        "seed": 1000,
        "scores": {"1": 0.1, "0.5": 0.9, "3": 0.1},
        "by_seed": None,
    }
    weights = config.load(["method=kd", "task=toy", "preset=smoke"])["method"]["weights"]
    assert record.terms["kd"].weight == pytest.approx(0.5 * weights["kd"])
    assert record.terms["task"].weight == weights["task"]


def test_under_several_seeds_a_factor_is_judged_by_the_mean(kdbench, monkeypatch):
    trained = fit.train
    scores = {(1, 1000): 0.5, (1, 1001): 0.5, (0.5, 1000): 0.9, (0.5, 1001): 0.0, (3, 1000): 0.4, (3, 1001): 0.8}

    def train(recipe, *arguments):
        manifest = trained(recipe, *arguments)
        if recipe.name.startswith("trial"):
            manifest["scores"]["val"]["accuracy"] = scores[recipe.factor, recipe.seed]
        return manifest

    monkeypatch.setattr(fit, "train", train)
    assert kdbench("method=kd", "tuning.trials=3", "tuning.factors=[1, 0.5, 3]", "tuning.seed=[1000, 1001]").code == 0
    (record,) = kdbench.records()
    assert record.tuning is not None
    assert (record.tuning.factor, record.tuning.seed) == (3, [1000, 1001])
    assert record.tuning.scores == pytest.approx({"1": 0.5, "0.5": 0.45, "3": 0.6})
    assert record.tuning.by_seed == {"1": [0.5, 0.5], "0.5": [0.9, 0.0], "3": [0.4, 0.8]}
    for wrong in ("[1000]", "[1000, 1000]"):
        assert "expected one seed, or several different ones" in kdbench("method=kd", f"tuning.seed={wrong}").error


def test_a_record_keeps_what_each_test_sample_contributed(kdbench):
    assert kdbench("method=kd").code == 0
    (record,), (path,) = kdbench.records(), find_records(kdbench.results)
    content = (path / OUTCOMES).read_bytes()
    assert record.files is not None
    assert record.files[OUTCOMES] == sha256(content).hexdigest()
    found = unpack(content)
    assert found.values.keys() == {"teacher", "scratch", "student"}
    for role, values in found.values.items():
        assert values.shape == (40, 2)
        assert found.score(role) == pytest.approx(record.scores[role].test["accuracy"])


def test_what_samples_contribute_makes_the_metric_or_the_run_ends(kdbench, monkeypatch):
    monkeypatch.setattr(toy.Toy, "contributions", lambda *_: torch.ones(16, 2))
    assert "its metric_law 'mean' makes 1 of what samples contribute, accuracy is" in kdbench("method=kd").error


def test_a_trial_that_diverges_has_no_score_and_another_factor_wins(kdbench):
    assert kdbench("method=kd", "tuning.trials=2", "tuning.factors=[1e38, 0.5]").code == 0
    (record,) = kdbench.records()
    assert record.tuning is not None
    assert record.tuning.factor == 0.5
    assert record.tuning.scores["1e+38"] is None
    assert record.tuning.scores["0.5"] is not None


def test_a_run_whose_trials_all_diverge_diverged(kdbench):
    assert kdbench("method=kd", "tuning.trials=2", "tuning.factors=[1e38, 1e37]").code == 1
    (record,) = kdbench.records()
    assert record.status == "diverged"
    assert "every tuning trial diverged" in str(record.reason)


def test_a_given_teacher_is_taken_as_it_is(kdbench, tmp_path):
    kdbench("method=none", "role=teacher")
    (trained,), (path,) = kdbench.records(), find_records(kdbench.results)
    weights, kdbench.results, kdbench.cache = path / "teacher.safetensors", tmp_path / "others", tmp_path / "empty"
    arguments = (f"teacher.init_from={weights}", "teacher.trainer.epochs=3")
    assert kdbench("method=kd", *arguments).code == 0
    assert kdbench("method=none", "role=teacher", *arguments).code == 0
    (given,) = (m for m in kdbench.manifests().values() if m["role"] == "teacher")
    assert (given["cost"]["epochs"], given["cost"]["samples_seen"], given["terms"]) == (0, 0, {})
    product = kdbench.cache / "model" / given["key"] / "model.safetensors"
    assert toy.same(load_file(product), load_file(weights))
    alone, distilled = sorted(kdbench.records(), key=lambda record: record.method != "none")
    assert alone.cost is not None
    assert alone.cost.epochs == 0
    assert distilled.cost is not None
    assert distilled.cost.epochs == 2
    for record in (alone, distilled):
        assert "teacher" in record.scores
        assert "teacher" in trained.scores
        assert record.scores["teacher"].test == trained.scores["teacher"].test


def printed(record, folder):
    """The rows of a record's closing table, and all that is printed."""
    console = Console(file=io.StringIO(), width=160)
    show(record, folder, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = (line for line in text.splitlines() if line.startswith("│"))
    split = ([cell.strip() for cell in line.strip("│").split("│")] for line in lines)
    return {cells[0]: cells[1:] for cells in split}, text


def test_table_names_each_role_once(kdbench):
    kdbench("method=kd")
    (record,) = kdbench.records()
    record = record.model_copy(update={"gap_closed": 0.42, "gap_reason": None})
    rows, text = printed(record, kdbench.results)
    assert list(rows) == ["teacher", "student, scratch", "student, kd"]
    assert "student" in record.scores
    assert "scratch" in record.scores
    student, scratch = record.scores["student"].test["accuracy"], record.scores["scratch"].test["accuracy"]
    assert student is not None
    assert scratch is not None
    assert rows["student, kd"][0] == f"{student:.4g}"
    assert rows["student, kd"][3] == "42 %"
    assert rows["student, scratch"][2:4] == ["", ""]
    assert "toy · toy · kd · toy · smoke" in text
    assert "test, of the epoch best on val" in " ".join(text.replace("┃", " ").split())
    assert "One seed (0): differences may be chance. 40 test samples, accuracy, higher is better." in text


def test_table_says_which_is_better_in_which_unit(kdbench):
    """Whichever way the metric goes; sizes have three digits."""
    kdbench("method=kd")
    (record,) = kdbench.records()
    student = record.models["student"]
    for higher, unit, value, says in (
        (True, "%", 75.0, ("75.00 %", "+12.50 pp better")),
        (True, None, 0.5, ("0.5", "-62 worse")),
        (False, None, 62.62, ("62.62", "+0.12 worse")),
        (False, None, 60.5, ("60.5", "-2 better")),
        (False, None, 62.5, ("62.5", "+0")),
    ):
        scores = {n: {"test": {"accuracy": v}} for n, v in (("teacher", 90.0), ("scratch", 62.5), ("student", value))}
        primary = {"name": "accuracy", "higher_is_better": higher, "unit": unit}
        sizes = {"student": {**dict(student or {}), "params": 16_912, "macs": 283_400_000}}
        changed = type(record).model_validate(
            record.model_dump() | {"scores": scores, "primary": primary, "models": sizes}
        )
        rows, _ = printed(changed, kdbench.results)
        assert (rows["student, kd"][0], rows["student, kd"][2]) == says
        assert rows["student, kd"][4:6] == ["16.9 K", "283 M"]


# ---- W&B ------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    wandb.teardown()
    yield ["logger=wandb", "logger.mode=offline"]
    wandb.teardown()


def wandb_runs(kdbench: CommandLine) -> list[OfflineRun]:
    wandb.teardown()
    return [read_offline(path) for path in sorted(kdbench.results.rglob("run-*.wandb"))]


def history(run: OfflineRun) -> list[tuple[float, float]]:
    return [(row["epoch"], row[STEP]) for row in run.history if "epoch" in row]


def test_each_job_is_a_run_on_wandb(kdbench, offline):
    assert kdbench("-m", "method=none,kd", *offline).code == 0
    runs = {run.config["method"]["name"]: run for run in wandb_runs(kdbench)}
    assert len(runs) == 2
    for record in kdbench.records():
        run = runs[record.method]
        assert run.name == f"toy/{record.method}/toy/s0"
        assert run.group == record.spec_hash
        assert run.config["trainer"]["epochs"] == 2
        assert history(run) == [(0, 4), (1, 8)]
        assert "student" in record.scores
        assert run.summary["final/accuracy"] == record.scores["student"].test["accuracy"]
        shown = {key for row in run.history for key in row}
        assert "train/kd" in shown or record.method == "none"
        media = next(row for row in run.history if "preview/_type" in row)
        assert media["preview/_type"] == "image-file"
        assert media["object3d/_type"] == "object3D-file"
        assert run.artifacts[f"result-{record.run_id}"] == "result"
        assert run.exit_code == 0


def test_a_training_from_the_cache_has_its_history_on_wandb_too(kdbench, offline, tmp_path):
    assert kdbench("method=kd").code == 0
    assert kdbench("method=kd", f"results={tmp_path / 'others'}", *offline).code == 0
    kdbench.results = tmp_path / "others"
    (run,) = wandb_runs(kdbench)
    assert history(run) == [(0, 4), (1, 8)]


def test_a_failed_run_is_failed_on_wandb(kdbench, offline):
    assert kdbench("method=kd", "student.trainer.optimizer.lr=1e38", *offline).code == 1
    (run,) = wandb_runs(kdbench)
    (record,) = kdbench.records()
    assert run.exit_code == 1
    assert run.artifacts == {f"result-{record.run_id}": "result"}


def test_bad_input_opens_nothing_on_wandb(kdbench, offline):
    assert kdbench("method=fitnet", "pair.student.taps.body=boddy", *offline).code == 1
    assert not kdbench.results.exists()


def test_a_record_names_the_threads_that_it_was_measured_with(kdbench):
    """Also where every product was in the store and nothing trained."""
    before = torch.get_num_threads()
    wanted = before + 1
    for results in ("first", "second"):
        kdbench.results = kdbench.results.with_name(results)
        assert kdbench("method=kd", f"trainer.threads={wanted}").code == 0
        (record,) = kdbench.records()
        assert record.provenance.threads == wanted
        assert torch.get_num_threads() == before


def test_what_would_be_done_otherwise_or_in_vain_is_refused(kdbench, tmp_path):
    assert "16-mixed needs a GPU" in kdbench("method=kd", "trainer.precision=16-mixed", "trainer.accelerator=cpu").error
    kdbench.results = tmp_path / "file"
    kdbench.results.write_text("")
    ran = kdbench("method=kd")
    assert "no record can be written there" in ran.error
    assert "epoch" not in ran.out


def test_data_without_anything_to_score_ends_a_run_before_it_trains(kdbench, monkeypatch):
    good = Counts(64, {"a": 64})
    counts = {"train": good, "val": good, "test": Counts(40, {"a": 40}, {"a": 0}, "no box is high enough")}
    monkeypatch.setattr(CliToy, "counts", lambda self: counts)
    expected = "toy: test holds nothing that accuracy counts (40 samples, no a): no box is high enough"
    for arguments in (["method=kd"], ["method=none"], ["method=none", "role=teacher"]):
        assert kdbench(*arguments).error == expected
    assert not kdbench.manifests()
    assert not kdbench.records()
    counts |= {"test": good, "val": Counts(40, {"a": 0})}
    assert "val holds nothing that accuracy counts" in kdbench("method=kd", "tuning.trials=1").error
    assert not kdbench.manifests()
    assert kdbench("method=none").code == 0


def test_the_teachers_own_data_is_looked_at_too(kdbench, monkeypatch):
    good, nothing = Counts(64, {"a": 64}), Counts(64, {"a": 0})

    def counts(self):
        return {"train": nothing if self.options.root else good, "val": good, "test": good}

    monkeypatch.setattr(CliToy, "counts", counts)
    own = "teacher.data.root=other"
    assert "train holds nothing to learn from" in kdbench("method=kd", own).error
    assert not kdbench.manifests()
