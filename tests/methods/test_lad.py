from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from kdbench import export
from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.configuration.compat import bind
from kdbench.configuration.resolved import resolve
from kdbench.errors import KDBenchError
from kdbench.functional.cwd import channel_wise_loss
from kdbench.functional.dist import inter_class_loss, intra_class_loss
from kdbench.functional.kd import kd_loss
from kdbench.functional.lad import class_codes, path_consistency_loss
from kdbench.methods.lad import LAD
from kdbench.records.record import find_records, read_record
from kdbench.runs.deployment import read_run
from kdbench.runs.trainings import Trainings
from kdbench.training.fit import Training
from tests.cli import CommandLine, install
from tests.dense import CLASSES, IGNORED, Data, Dense
from tests.methods.harness import differ, yaml
from tests.methods.maps import PAIR, MapInvariants, at_scores, labels

SCORES = ["teacher", "scratch", "student", "teacher_privileged", "teacher_random_codes", "teacher_plain"]


class TestStudent(MapInvariants):
    """What the student's training adds, on class scores made by hand."""

    name = "lad"
    other = {"distil": "kd", "temperature": 2.0, "weight": 1.0}
    apart = ("teacher", "faithful", "codes", "jitter", "noise", "scale", "consistency", "dual")
    variants = tuple({"distil": distil} for distil in ("cwd", "kd", "dist"))
    reads = (False, True)
    bindings = {"logits": "logits", "scores": "logits"}

    @pytest.mark.parametrize("distil", ["cwd", "kd", "dist"])
    def test_is_the_distance_under_its_weight(self, distil):
        made, counts = self.bench(distil=distil), at_scores(labels(3)) >= 0
        (student,), (teacher,) = made.student, made.teacher
        rows, taught = (z.movedim(1, -1)[counts] for z in (student, teacher))
        expected = {
            "cwd": lambda: 3 * channel_wise_loss(student, teacher, 4.0, counts),
            "kd": lambda: kd_loss(rows, taught, 1.0),
            "dist": lambda: inter_class_loss(rows, taught, 1.0) + intra_class_loss(rows, taught, 1.0),
        }[distil]()
        assert made.loss().item() == pytest.approx(expected.item(), rel=1e-5)


def test_binds_to_dense_tasks_with_a_label_channel():
    assert bind(LAD, Dense, PAIR) == {"logits": "logits", "scores": "logits"}
    assert bind(LAD, Dense, PAIR, absent=frozenset({"teacher"})) == {"scores": "logits"}
    lacking = type("Lacking", (Dense,), {"capabilities": Dense.capabilities - {"label_as_input"}})
    with pytest.raises(KDBenchError, match="^LAD requires label_as_input, which task dense lacks$"):
        bind(LAD, lacking, PAIR)
    assert yaml("lad")["weights"] == {"task": 1.0, "lad": 1.0}


# ---- the teacher's training ---------------------------------------------------------------------------------------


@pytest.fixture
def trainings(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(install(tmp_path / "site"))

    def make(*overrides: str) -> Trainings:
        return Trainings(resolve(config.load(["task=dense", "preset=smoke", *overrides]), Store(tmp_path / "cache")))

    return make


def teaching(made: Trainings) -> tuple[Any, dict[str, Tensor], Any]:
    """The teacher's training, rehearsed: answers to the views of its first batch, the terms, and the plugin."""
    recipe: Any = made.teacher_recipe
    training = Training(recipe, made.task)
    distiller = training.distiller(training.stages[0])
    batch = training.first_batch()
    terms = distiller.rehearse(batch)
    with distiller.at_rest(), torch.no_grad():
        signals = distiller.probe(batch)
        for view in signals.views["student"]:
            signals.loss(view=view)
    return signals, terms, training.plugins["method"]


def test_the_teacher_has_the_students_architecture_and_a_label_channel(trainings):
    own, other = trainings("method=lad"), trainings("method=lad", "method.teacher=pair")
    for made, width in ((own, 4), (other, 8)):
        recipe: Any = made.teacher_recipe
        assert recipe.pair["student"]["architecture"] | {} == {
            "_target_": "tests.dense.Net",
            "width": width,
            "label_channel": True,
        }
        assert made.student_recipe().pair["student"] == made.config["pair"]["student"]
        assert made.student_recipe().pair["teacher"] == recipe.pair["student"]
        assert recipe.plugins.keys() == {"method"}
    # Without labels it is the scratch twin, or the teacher of other methods.
    kd: Any = trainings("method=kd")
    plain = {name: made._asked(*next(made._all_asked())) for name, made in (("own", own), ("other", other))}
    assert plain["own"].key == own.scratch_recipe.key == kd.scratch_recipe.key
    assert plain["other"].key == kd.teacher_recipe.key


def test_two_paths_read_one_image_under_two_codes(trainings):
    signals, terms, _ = teaching(trainings("method=lad"))
    paths = [signals.batch("student", view).inputs for view in ("main", "second")]
    assert all(path.shape[1] == 4 for path in paths)
    assert torch.equal(paths[0][:, :3], paths[1][:, :3])
    targets = signals.batch("student").targets
    offsets, pixels = [], []
    for channel in (path[:, 3] / 1.33 for path in paths):
        rest = channel - class_codes(CLASSES)[targets.where(targets != IGNORED, CLASSES)]
        parts = [values[labels == k] for values, labels in zip(rest, targets, strict=True) for k in labels.unique()]
        offsets.append(torch.stack([part.mean() for part in parts]))
        pixels += [part - part.mean() for part in parts]
    # A jitter of 0.4 that is new for every image, class and path, and noise of 0.03 for every pixel.
    assert 0.2 < torch.cat(offsets).std() < 0.6
    assert abs(float(torch.corrcoef(torch.stack(offsets))[0, 1])) < 0.5
    assert torch.cat(pixels).std().item() == pytest.approx(0.03, rel=0.1)
    first, second = (signals.feature("logits", "student", view) for view in ("main", "second"))
    apart = path_consistency_loss(first.values, second.values, 4.0, first.mask)
    expected = signals.supervised(view="second") + 0.5 * apart
    assert terms["lad"].item() == pytest.approx(expected.item(), rel=1e-5)


def channels(trainings, *options: str) -> tuple[Tensor, Tensor]:
    """The label channel of the first path, and the class of each pixel."""
    signals, _, _ = teaching(trainings("method=lad", *options))
    return signals.batch("student").inputs[:, 3], signals.batch("student").targets


def test_codes_fixed_and_random(trainings):
    found, targets = channels(trainings, "method.codes=fixed", "method.noise=0", "method.scale=2")
    codes = 2 * class_codes(CLASSES)
    torch.testing.assert_close(found, codes[targets.where(targets != IGNORED, CLASSES)])
    found, targets = channels(trainings, "method.codes=random", "method.noise=0", "method.scale=1")
    values = torch.stack([found[b][targets[b] == k][0] for b in range(len(found)) for k in targets[b].unique()])
    assert len(values.unique()) == len(values)
    assert abs(values.mean()) < 0.6
    assert 0.6 < values.std() < 1.4


def test_options_of_the_teacher_count(trainings):
    _, plain, _ = teaching(trainings("method=lad"))
    for option in ("jitter=1", "noise=1", "scale=3", "consistency=2", "dual=false", "faithful=code", "codes=fixed"):
        _, terms, plugin = teaching(trainings("method=lad", f"method.{option}"))
        assert differ([terms["task"], terms["lad"]], [plain["task"], plain["lad"]]), option
    assert (plugin.codes, plugin.consistency) == ("fixed", 0.5)
    code = teaching(trainings("method=lad", "method.faithful=code"))[2]
    assert (code.codes, code.consistency) == ("random", 5.0)
    alone = teaching(trainings("method=lad", "method.dual=false"))
    assert "second" not in alone[0].views["student"]
    assert alone[1]["lad"] == 0


# ---- a run --------------------------------------------------------------------------------------------------------


@pytest.fixture
def kdbench(tmp_path, monkeypatch, capsys) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys, task="dense")


def test_a_run_scores_the_teacher_in_four_ways(kdbench):
    """With labels it is better, without them it falls back; what it is without labels is the scratch student."""
    assert kdbench("method=lad", "teacher.trainer.epochs=30").code == 0
    (record,) = kdbench.records()
    assert list(record.scores) == SCORES
    found = {name: scores.test["accuracy"] or 0.0 for name, scores in record.scores.items()}
    assert found["teacher_privileged"] > found["teacher"] + 0.05
    assert found["teacher_privileged"] > found["teacher_random_codes"]
    assert record.scores["teacher_plain"] == record.scores["scratch"]
    # Boards join a pair by what is configured.
    assert record.networks is not None
    assert record.networks["teacher"]["width"] == 8
    assert sorted(m["role"] for m in kdbench.manifests().values()) == ["student", "student", "teacher"]


def test_the_plain_net_of_the_pairs_teacher_is_that_of_other_methods(kdbench):
    kdbench("method=kd")
    kdbench("method=lad", "method.teacher=pair")
    other, own = sorted(kdbench.records(), key=lambda record: record.method)
    assert own.scores["teacher_plain"].test == other.scores["teacher"].test
    assert own.scores["teacher"].test != other.scores["teacher"].test
    assert len(kdbench.manifests()) == 5  # two teachers, the twin, two students


def test_the_exported_student_takes_images_and_no_label_changes_what_it_says(kdbench, capsys):
    kdbench("method=lad")
    (folder,) = find_records(kdbench.results)
    run = read_run(folder)
    student, batches = run.artifact().module, [*Data(0).test_dataloader()]
    others = [replace(batch, targets=batch.targets.roll(1, 0).flip(2)) for batch in batches]
    assert not any(torch.equal(a.targets, b.targets) for a, b in zip(batches, others, strict=True))
    said, again = ([run.task.predictions(student, batch) for batch in found] for found in (batches, others))
    assert said == again

    capsys.readouterr()
    assert export.main([str(folder)]) == 0
    session = onnxruntime.InferenceSession(folder / "student.onnx", providers=["CPUExecutionProvider"])
    assert [(value.name, value.shape) for value in session.get_inputs()] == [("images", ["batch", 3, 12, 16])]
    images = batches[0].inputs
    (found,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, student(images), rtol=1e-4, atol=1e-5)
    weights = student.state_dict()
    assert weights["stem.0.weight"].shape[1] == 3
    assert read_record(folder).scores.keys() == set(SCORES)
