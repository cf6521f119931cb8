"""The authors' released projector and loss gave the same loss, and the same logits at inference, bit for bit in float32
on the same weights, with the student's map larger than, smaller than and as large as the teacher's."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdbench.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Grid
from kdbench.fit import MODEL, Training
from kdbench.methods.simkd import Reused, SimKD
from kdbench.sources import Tapped
from tests.methods.harness import check_deterministic, check_gradients, differ, knobs, normal, yaml
from tests.methods.parts import PartBench
from tests.toy import Net, Toy, recipe, same, teacher_file, weights

OTHER: dict[str, Any] = {"factor": 4}


def bench(
    batch: int = 3,
    student: tuple[int, ...] = (4, 4),
    teacher: tuple[int, ...] = (4, 4),
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> PartBench:
    grids = [Grid(normal(batch, c, *s, name=n).to(dtype)) for c, s, n in ((4, student, "s"), (8, teacher, "t"))]
    return PartBench("simkd", {"feature": grids[0]}, {"feature": grids[1]}, **options)


def trained(folder: Path, **keys: Any) -> Training:
    """SimKD on the toy, ready to run; the deepest grid is the one that the classifiers pool."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = {k: v for k, v in yaml("simkd").items() if k != "name"}
    return Training(replace(recipe("KD", **keys), plugins={"method": spec}), Toy(), teacher_file(folder))


def test_binds_to_the_deepest_grid():
    side = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}, "parts": {"classifier": "head"}}
    assert bind(SimKD, Toy, {"name": "toy", "student": side, "teacher": side}) == {"feature": "body"}


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
    with pytest.raises(KDBenchError, match=r"reads 7 channels and its map has 4.*method\.bind\.feature"):
        PartBench("simkd", grids, grids, widths={"teacher": 7})


def trio(made: Training) -> tuple[Any, Any, Any]:
    return made.cast.model("student"), made.cast.model("teacher"), made.plugins["method"]


def deployed(folder: Path) -> tuple[Training, Reused]:
    made = trained(folder)
    made.distiller(made.stages[-1]).rehearse(made.first_batch())
    student, _, method = trio(made)
    model = method.deploy(student).eval()
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
    scores = Toy().evaluate(method.deploy(student), made.data.test_dataloader(), "test", torch.device("cpu"))
    assert scores == manifest["scores"]["test"]
    assert manifest["params"] > sum(p.numel() for p in Net(4).parameters())
