"""The three quantisations in whole runs of the toy task, from the command line to record, file and reading it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdbench import export
from kdbench.quant.packing import unpack
from kdbench.records.record import find_records, read_record
from kdbench.runs.deployment import read_run
from tests.cli import CommandLine
from tests.toy import same

QUANTISATIONS = ("quantized_distillation", "differentiable_quantization", "post_training")
SHAPES = {"stem.0.weight", "stem.1.weight", "stem.1.bias", "body.0.weight", "body.1.weight", "body.1.bias"}
SHAPES |= {"head.weight", "head.bias"}


@pytest.fixture
def kdbench(tmp_path, monkeypatch, capsys) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys)


def only(kdbench: CommandLine, *words: str) -> tuple[Path, Any]:
    """The folder and the record of a run that ends well."""
    before = set(find_records(kdbench.results)) if kdbench.results.exists() else set()
    ran = kdbench(*words)
    assert ran.code == 0, ran.err
    (folder,) = set(find_records(kdbench.results)) - before
    return folder, read_record(folder)


@pytest.mark.parametrize("quant", QUANTISATIONS)
def test_a_run_scores_both_students_and_packs_the_quantised_one(kdbench, quant, capsys):
    folder, record = only(kdbench, "method=kd", f"quant={quant}", "quant.bits=2", "quant.bucket=16")
    assert list(record.scores) == ["teacher", "scratch", "student", "scratch_float", "float"]
    weights, floats = (load_file(folder / f"{name}.safetensors") for name in ("student", "float"))
    assert weights.keys() == floats.keys()
    assert not [name for name in weights if "parametrizations" in name]
    assert same(unpack(folder / "packed.safetensors"), weights)
    for name in SHAPES:
        most = 256 if quant == "differentiable_quantization" else 4  # there tensors share their points
        assert all(len(part.unique()) <= most for part in weights[name].reshape(-1).split(16)), name
    assert any(not torch.equal(weights[name], floats[name]) for name in SHAPES)
    model = record.models["student"]
    assert model.packed_bytes == (folder / "packed.safetensors").stat().st_size
    assert model.bytes == (folder / "student.safetensors").stat().st_size
    assert model.params == sum(weights[name].numel() for name in SHAPES)
    assert model.float_params == 0
    assert 0 < model.coded_bytes < model.packed_bytes
    assert model.bits == 2 or quant == "differentiable_quantization"

    run = read_run(folder)
    assert same(run.artifact().module.state_dict(), weights)
    assert same(run.artifact("float").module.state_dict(), floats)
    capsys.readouterr()
    assert export.main([str(folder)]) == 0


def test_the_float_student_is_trained_once_for_all_that_begin_with_it(kdbench):
    _, plain = only(kdbench, "method=kd", "quant=none")
    for quant in QUANTISATIONS[1:]:
        for bits in (2, 3):
            folder, record = only(kdbench, "method=kd", f"quant={quant}", f"quant.bits={bits}")
            assert record.scores["float"].test["accuracy"] == plain.scores["student"].test["accuracy"]
            assert record.scores["scratch_float"].test["accuracy"] == plain.scores["scratch"].test["accuracy"]
            assert record.cost.epochs == {"post_training": 0, "differentiable_quantization": 1}[quant]
            assert record.provenance.config_digest
            assert json.loads((folder / "run.json").read_text())["quant"] == quant
    made = [manifest["name"] for manifest in kdbench.manifests().values()]
    # A teacher, two float students, and of each setting the distilled student and its twin.
    assert len(made) == 3 + 2 * 2 * 2


@pytest.mark.parametrize("quant", QUANTISATIONS)
def test_a_student_alone_is_quantised_the_same_way(kdbench, quant):
    alone, distilled = (only(kdbench, f"method={method}", f"quant={quant}")[1] for method in ("none", "kd"))
    assert alone.scores["student"].test["accuracy"] == distilled.scores["scratch"].test["accuracy"]
    assert alone.models["student"].packed_bytes


def test_points_are_learned_and_the_weights_are_not(kdbench, tmp_path):
    folder, record = only(kdbench, "method=kd", "quant=differentiable_quantization", "quant.bits=3", "quant.epochs=2")
    assert record.terms["quant_kd"].weight == 0.7
    assert record.terms["quant_task"].first > 0
    control, _ = only(kdbench, "method=kd", "quant=post_training", "quant.bits=3", "quant.points=quantiles")
    floats = [load_file(path / "float.safetensors") for path in (folder, control)]
    assert same(*floats)
    learned, fixed = (load_file(path / "student.safetensors") for path in (folder, control))
    assert not any(torch.equal(learned[name], fixed[name]) for name in ("stem.0.weight", "body.0.weight"))
    for name in SHAPES:  # the range of each is that of the weights that were trained
        assert learned[name].min() >= floats[0][name].min() - 0.1
    points = load_file(folder / "packed.safetensors")["points"]
    header = (folder / "packed.safetensors").read_bytes()
    header = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    index = json.loads(header["__metadata__"]["kdbench.packed.1"])
    levels = [entry[2] for entry in index.values()]
    assert sum(levels) == 8 * len(SHAPES) == len(points)
    assert len(set(levels)) > 1
    assert all(torch.equal(part, part.sort().values) for part in points.split(levels))


def test_the_pairs_teacher_may_teach_the_points(kdbench):
    words = ("method=none", "quant=differentiable_quantization", "quant.share=false")
    _, own = only(kdbench, *words)
    _, other = only(kdbench, *words, "quant.teacher=teacher")
    # A twin has no teacher but its float student; the run without a method is its own twin.
    assert own.scores["student"] == other.scores["student"]
    words = ("method=kd", *words[1:])
    _, own = only(kdbench, *words)
    _, other = only(kdbench, *words, "quant.teacher=teacher")
    assert own.terms["quant_kd"].first < other.terms["quant_kd"].first
    assert own.scores["scratch"] == other.scores["scratch"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("quant=quantized_distillation", "quant.bits=9"),
            "quant.bits: found 9; input should be less than or equal to 8",
        ),
        (("quant=post_training", "quant.bits=0"), "quant.bits: found 0; input should be greater than or equal to 1"),
        (("quant=quantized_distillation", "quant.bucket=0"), "quant.bucket: found 0; input should be greater than"),
        (
            ("quant=quantized_distillation", "quant.scaling=log"),
            "quant.scaling: found 'log'; input should be 'linear' or",
        ),
        (("quant=differentiable_quantization", "quant.bit=2"), "quant.bit"),
    ],
)
def test_a_wrong_option_is_one_line(kdbench, words, line):
    assert line in kdbench("method=kd", *words).error
    assert not (kdbench.cache / "model").exists()


@pytest.mark.parametrize("quant", QUANTISATIONS)
def test_what_a_method_keeps_around_the_student(kdbench, quant):
    ran = kdbench("method=toy_shell", f"quant={quant}")
    if quant == "quantized_distillation":
        assert ran.code == 0, ran.err
        (folder,) = find_records(kdbench.results)
        deployed = load_file(folder / "deployed.safetensors")
        assert same(unpack(folder / "packed.safetensors"), deployed)
        assert "scale" in deployed
    else:
        assert "the method deploys a Wrapped and not the plain student" in ran.error
        assert not (kdbench.cache / "model").exists()


def test_random_rounding_and_every_other_option_run(kdbench):
    options = ("quant.stochastic=true", "quant.points=quantiles", "quant.scaling=absmax", "quant.tensors=weights")
    words = ("method=kd", "quant=quantized_distillation", "quant.bucket=null", "quant.skip_ends=true", *options)
    first, record = only(kdbench, *words)
    assert record.models["student"].float_params > 0
    weights = load_file(first / "student.safetensors")
    assert torch.equal(weights["head.weight"], load_file(first / "float.safetensors")["head.weight"])
    elsewhere = kdbench.results.with_name("again")
    ran = kdbench(*words, f"cache={kdbench.cache.with_name('other')}", f"results={elsewhere}")
    assert ran.code == 0, ran.err
    (again,) = find_records(elsewhere)
    assert same(load_file(again / "student.safetensors"), weights)
