"""The authors' released projector and loss gave the same loss, and the same logits at inference, bit for bit in float32
on the same weights, with the student's map larger than, smaller than and as large as the teacher's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.configuration.compat import bind
from kdbench.configuration.resolved import resolve
from kdbench.errors import KDBenchError
from kdbench.features import Grid, Last, Logits
from kdbench.functional.pool import global_average
from kdbench.methods.cat_kd import CATKD
from kdbench.methods.fitnet import FitNet
from kdbench.methods.ofd import OFD
from kdbench.methods.simkd import Reused, SimKD
from kdbench.roles.cast import Cast
from kdbench.roles.sources import Answer, Tapped
from kdbench.runs.trainings import Trainings
from kdbench.task import Batch
from kdbench.training.fit import MODEL, Training
from tasks.classification.task import Classification
from tests.methods.harness import check_deterministic, check_gradients, differ, knobs, normal, yaml
from tests.methods.parts import HandNetwork, PartBench
from tests.toy import Net, Toy, recipe, same, scores, specs, teacher_file, weights

OTHER: dict[str, Any] = {"factor": 4}


class Classified(HandNetwork):
    """Hand-made features with the logits that the classifier gives for the average of ``feature``."""

    shift = 0.0

    def answer(self, batch: Batch, params: Mapping[str, Tensor] | None = None) -> Answer:
        answer, head = super().answer(batch), self.model.get_submodule("classifier")
        pooled = global_average(answer.features["feature"].values).to(head.get_parameter("weight").dtype)
        values = torch.zeros(len(pooled), 5) if pooled.shape[1] != head.in_features else head(pooled) + self.shift
        return replace(answer, features={**answer.features, "logits": Logits(values)})


class ClassifiedBench(PartBench):
    """A :class:`PartBench` whose roles answer with logits too.

    Args:
        shifts: By how much a role's logits are off what its classifier says of the map.
    """

    def __init__(self, *args: Any, shifts: Mapping[str, float] | None = None, **options: Any) -> None:
        self.shifts = shifts or {}
        super().__init__(*args, **options)

    def make_cast(self) -> Cast:
        cast = super().make_cast()
        sources = {role: Classified(self.given[role], head) for role, head in self.heads.items()}
        for role, shift in self.shifts.items():
            sources[role].shift = shift
        return replace(cast, sources=sources)


def bench(
    batch: int = 3,
    student: tuple[int, ...] = (4, 4),
    teacher: tuple[int, ...] = (4, 4),
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> ClassifiedBench:
    grids = [Grid(normal(batch, c, *s, name=n).to(dtype)) for c, s, n in ((4, student, "s"), (8, teacher, "t"))]
    return ClassifiedBench("simkd", {"feature": grids[0]}, {"feature": grids[1]}, **options)


def trained(folder: Path, **keys: Any) -> Training:
    """SimKD on the toy, ready to run; the deepest grid is the one that the classifiers pool."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = {k: v for k, v in yaml("simkd").items() if k != "name"}
    return Training(replace(recipe("KD", **keys), plugins=specs(method=spec)), Toy(), {"teacher": teacher_file(folder)})


@pytest.mark.parametrize("method", [SimKD, CATKD])
def test_binds_to_the_last_map_else_to_the_deepest_grid(method):
    side = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}, "parts": {"classifier": "head"}}
    assert bind(method, Toy, {"name": "toy", "student": side, "teacher": side}) == {
        "feature": "body",
        "logits": "logits",
    }
    side = {**side, "taps": {"last": "act", "stage1": "layer1", "stage1.pre": "x", "pooled": "head:input"}}
    pair = {"name": "images", "student": side, "teacher": side}
    assert bind(method, Classification, pair)["feature"] == "last"
    assert bind(method, Classification, pair, {"feature": "stage1"})["feature"] == "stage1"
    assert bind(FitNet, Classification, pair) == {"feature": "stage1"}
    assert bind(OFD, Classification, pair)["stages"] == ["stage1"]


@pytest.mark.parametrize("teacher", [(4, 4), (2, 4), (8, 4), (2, 8)])
def test_gradients_and_determinism(teacher):
    check_gradients(bench(teacher=teacher))
    check_gradients(bench(batch=1, teacher=teacher))
    check_deterministic(bench(teacher=teacher))


def test_gradients_with_maps_of_one_cell():
    check_gradients(bench(student=(1, 1), teacher=(1, 1)))
    check_gradients(bench(student=(4,), teacher=(2,)))
    check_gradients(bench(student=(2, 3, 2), teacher=(2, 3, 2)))


@pytest.mark.parametrize("knob", knobs("simkd"))
def test_every_knob_counts(knob):
    assert differ(bench().outcome(), bench(**{knob: OTHER[knob]}).outcome())


def test_the_student_alone_is_not_supervised():
    assert yaml("simkd")["weights"] == {"task": 0.0, "simkd": 1.0}


def test_zero_where_the_projector_gives_the_teacher():
    made = bench()
    with torch.no_grad():
        made.teacher[0].copy_(made.method.projector(made.student[0]))
    assert made.loss().item() == pytest.approx(0, abs=1e-12)


def test_added_parameters_are_those_of_the_docstring():
    made = bench()
    s, t, f = 4, 8, 2
    expected = s * t // f + 9 * (t // f) ** 2 + t * t // f + 2 * (2 * t // f + t)
    assert sum(p.numel() for p in made.method.parameters()) == expected


def test_empty_batch_and_low_precision():
    empty = bench(batch=0)
    assert empty.loss() == 0
    assert empty.loss().requires_grad
    assert all(buffer.isfinite().all() for buffer in empty.method.buffers())
    low = bench(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert low.loss().item() == pytest.approx(bench().loss().item(), rel=0.05)


def test_a_classifier_of_other_features_is_one_line():
    grids = {"feature": Grid(normal(2, 4, 4, 4))}
    line = r"teacher's classifier reads 7 channels and its map 'feature' has 4, expected .*: set method\.bind\.feature"
    with pytest.raises(KDBenchError, match=line):
        ClassifiedBench("simkd", grids, grids, widths={"teacher": 7})


@pytest.mark.parametrize(
    ("name", "role", "refused"),
    [("simkd", "teacher", True), ("simkd", "student", False), ("cat_kd", "teacher", True), ("cat_kd", "student", True)],
)
@pytest.mark.parametrize("kind", [Grid, Last])
def test_a_map_of_the_right_width_that_the_classifier_does_not_read_is_one_line(name, role, refused, kind):
    grids = [{"feature": kind(normal(2, 4, 4, 4, name=n))} for n in "st"]
    ClassifiedBench(name, *grids, shifts={role: 1e-4})
    if not refused:  # its own classifier is not used
        ClassifiedBench(name, *grids, shifts={role: 0.5})
        return
    line = rf"{role}'s classifier reads 4 channels and its map 'feature', averaged, .*: set method\.bind\.feature"
    with pytest.raises(KDBenchError, match=line):
        ClassifiedBench(name, *grids, shifts={role: 0.5})


@pytest.mark.parametrize("method", ["simkd", "cat_kd"])
def test_a_pre_activation_sum_is_refused_on_real_networks(method, tmp_path):
    """The last stage of a wide ResNet has the width that the classifier reads, but norm and activation follow it."""
    with pytest.raises(KDBenchError, match="map 'stage3', averaged, does not give its logits"):
        built("wrn40_2_wrn16_2", f"method={method}", "method.bind.feature=stage3", cache=tmp_path)


@pytest.mark.parametrize("method", ["simkd", "cat_kd"])
@pytest.mark.parametrize("pair", ["wrn40_2_wrn16_2", "vgg13_mobilenetv2", "resnet32x4_shufflenetv2"])
def test_builds_on_real_networks(pair, method, tmp_path):
    terms = built(pair, f"method={method}", cache=tmp_path)
    assert all(value.isfinite() for value in terms.values())


def built(pair: str, *overrides: str, cache: Path) -> dict[str, Tensor]:
    """Rehearses a method on a pair, on a few digits, with an untrained teacher."""
    composed = config.load(["task=classification", "data=digits", f"pair={pair}", "preset=smoke", *overrides])
    composed["data"] |= {"train": 40, "labels": 20, "test": 20, "batch_size": 4}
    run = resolve(composed, Store(cache))
    training = Training(Trainings(run).student_recipe(), run.task, untrained=True)
    return training.distiller().rehearse(training.first_batch())


def trio(made: Training) -> tuple[Any, Any, Any]:
    return made.cast.model("student"), made.cast.model("teacher"), made.plugins["method"]


def deployed(folder: Path) -> tuple[Training, Reused]:
    made = trained(folder)
    made.distiller(made.stages[-1]).rehearse(made.first_batch())
    student, _, method = trio(made)
    model = method.artifacts({"student": student})["student"].module.eval()
    assert isinstance(model, Reused)
    return made, model


def test_what_is_deployed_is_student_projector_average_and_the_teachers_classifier(tmp_path):
    made, model = deployed(tmp_path)
    student, teacher, method = trio(made)
    images = normal(3, 3, 8, 8)
    projected = method.projector(student.body(student.stem(images)))
    torch.testing.assert_close(model(images), teacher.head(projected.mean((2, 3))))
    # Where features are aligned, the student is exactly the teacher.
    guide = teacher.body(teacher.stem(images))
    aligned = Reused(Tapped(teacher, "body"), torch.nn.Identity(), teacher.head)
    torch.testing.assert_close(aligned(images), teacher.head(guide.mean((2, 3))))
    torch.testing.assert_close(aligned(images), teacher(images))


def test_what_is_deployed_shares_weights_and_can_be_copied_and_saved(tmp_path):
    made, model = deployed(tmp_path)
    student, teacher, method = trio(made)
    own = {id(p) for p in model.parameters()}
    assert own == {id(p) for m in (student, method, teacher.head) for p in m.parameters()}
    assert {name.split(".")[0] for name in model.state_dict()} == {"student", "projector", "classifier"}
    twin, images = copy.deepcopy(model), normal(3, 3, 8, 8)
    assert torch.equal(twin(images), model(images))
    assert own.isdisjoint({id(p) for p in twin.parameters()})
    with torch.no_grad():
        teacher.head.bias.add_(1)
    assert not torch.equal(twin(images), model(images))
    other = deployed(tmp_path / "other")[1]
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images), model(images))


def test_the_method_owns_the_projector_alone(tmp_path):
    made, _ = deployed(tmp_path)
    assert {name.split(".")[0] for name in made.plugins["method"].state_dict()} == {"projector"}


@pytest.mark.parametrize("manual", [False, True])
def test_trains_without_a_supervised_term(tmp_path, manual):
    made = trained(tmp_path, epochs=3, manual=manual)
    student, teacher, method = trio(made)
    before, frozen = weights(student), weights(teacher)
    manifest = made.run(tmp_path)
    after = load_file(tmp_path / MODEL)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in changed} == {"stem", "body"}
    assert same(frozen, weights(teacher))
    assert manifest["terms"]["simkd"]["last"] < manifest["terms"]["simkd"]["first"]
    found = Toy().evaluate(
        method.artifacts({"student": student})["student"].module,
        made.data.test_dataloader(),
        "test",
        torch.device("cpu"),
    )
    assert found == scores(made, tmp_path)["test"]
    assert manifest["params"] > sum(p.numel() for p in Net(4).parameters())
