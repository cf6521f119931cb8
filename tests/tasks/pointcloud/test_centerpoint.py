"""CenterPoint: heat maps and loss against plain loops, codes, peaks, export, and what trains on both of its pairs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from kdbench.base import rng
from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.configuration.resolved import resolve
from kdbench.features import Grid, Logits, Points
from kdbench.runs.trainings import Trainings
from kdbench.training.fit import Training
from kdbench.training.measure import count_macs
from tasks.pointcloud import script
from tasks.pointcloud.centerpoint import HEAT_BIAS, Cells, CenterPillars, CenterVoxels, decode, encode, maxima
from tasks.pointcloud.centred import CentredHead, Truth, centre_loss, targets
from tasks.pointcloud.detector import PillarOutputs
from tasks.pointcloud.task import PointCloud
from tests.tasks.pointcloud import tiny
from tests.tasks.pointcloud.test_detector import RANGE, make_points
from tests.tasks.pointcloud.test_task import answer

NETS = [
    {"_target_": f"tasks.pointcloud.centerpoint.{name}", "width": 0.125} for name in ("CenterPillars", "CenterVoxels")
]
CELLS = Cells.of((0.0, -6.0, -3.0, 10.0, 6.0, 1.0), (24, 25))


@pytest.fixture(scope="module")
def made(root, tmp_path_factory) -> PointCloud:
    return tiny.task(root, tmp_path_factory.mktemp("cache"), head="centres")


def make_boxes(count: int) -> Tensor:
    u = torch.rand(count, 7, generator=rng.generator(0, "boxes"))
    low, extent = (torch.tensor(v) for v in ([-0.5, -6.5, -2, 0.3, 0.3, 1, -4], [11.0, 13, 2, 9, 5, 1, 8]))
    return low + u * extent


def make_case(count: int = 12) -> tuple[PillarOutputs, Truth]:
    """Outputs of two scans, and objects of which the first two share a cell and a class."""
    g = rng.generator(0, "outputs")
    boxes, labels, batch = make_boxes(count), torch.arange(count) % 3, torch.arange(count) % 2
    if count > 6:
        boxes[6, :2] = boxes[0, :2]
    outputs = [torch.randn(2, 24 * 25, k, generator=g).requires_grad_() for k in (3, 6, 2)]
    return PillarOutputs(*outputs, *[torch.zeros(0)] * 3), targets(boxes, labels, batch, 2, 3, CELLS)


# ---- targets ------------------------------------------------------------------------------------------------------


def radius(length: float, width: float, overlap: float) -> float:
    """The three cases of CornerNet, one box in double precision."""
    around, area = length + width, length * width
    r1 = (around + math.sqrt(around**2 - 4 * area * (1 - overlap) / (1 + overlap))) / 2
    r2 = (2 * around + math.sqrt(4 * around**2 - 16 * (1 - overlap) * area)) / 2
    r3 = (-2 * overlap * around + math.sqrt(4 * overlap**2 * around**2 + 16 * overlap * (1 - overlap) * area)) / 2
    return min(r1, r2, r3)


def drawn(boxes: Tensor, labels: Tensor, batch: Tensor) -> np.ndarray:
    """Heat maps (2, 24, 25, 3), an object and a cell at a time."""
    heat = np.zeros((2, 24, 25, 3))
    for box, label, sample in zip(boxes.double().tolist(), labels.tolist(), batch.tolist(), strict=True):
        x, y = math.floor(box[0] / 0.4), math.floor((box[1] + 6) / 0.5)
        if not (0 <= x < 25 and 0 <= y < 24):
            continue
        r = max(2, int(radius(box[3] / 0.4, box[4] / 0.5, 0.1)))
        sigma = (2 * r + 1) / 6
        for row in range(max(0, y - r), min(24, y + r + 1)):
            for column in range(max(0, x - r), min(25, x + r + 1)):
                value = math.exp(-((row - y) ** 2 + (column - x) ** 2) / (2 * sigma**2))
                heat[sample, row, column, label] = max(heat[sample, row, column, label], value)
    return heat


def test_heat_maps_equal_a_loop():
    boxes, labels, batch = make_boxes(40), torch.arange(40) % 3, torch.arange(40) % 2
    truth = targets(boxes, labels, batch, 2, 3, CELLS)
    expected = drawn(boxes, labels, batch)
    np.testing.assert_allclose(truth.heat.view(2, 24, 25, 3), expected, atol=1e-6)
    inside = CELLS.holds(CELLS.place(boxes).floor())
    assert 20 < inside.sum() < 40
    assert len(truth.cell) == inside.sum()
    assert truth.heat[truth.sample, truth.cell, truth.label].eq(1).all()
    assert len({int(radius(box[3] / 0.4, box[4] / 0.5, 0.1)) for box in boxes.tolist()}) > 3


def test_decode_inverts_encode():
    boxes = make_boxes(60).double()
    boxes = boxes[CELLS.holds(CELLS.place(boxes).floor())]
    codes = encode(boxes, CELLS)
    assert ((codes[:, :2] >= 0) & (codes[:, :2] < 1)).all()
    place = CELLS.place(boxes).long()
    found = decode(codes, place[:, 1] * 25 + place[:, 0], CELLS)
    torch.testing.assert_close(found[:, :6], boxes[:, :6])
    torch.testing.assert_close((found[:, 6] - boxes[:, 6]).cos(), torch.ones(len(boxes), dtype=torch.float64))


# ---- the loss -----------------------------------------------------------------------------------------------------


def reference(outputs: PillarOutputs, truth: Truth, counted: tuple[bool, bool]) -> dict[str, float]:
    """The equations, one cell and one number at a time, in double precision."""
    cls = box = 0.0
    for sample, row in enumerate(truth.heat.tolist()):
        for index, heat in enumerate(row if counted[sample] else []):
            for kind, target in enumerate(heat):
                p = 1 / (1 + math.exp(-outputs.cls[sample, index, kind].item()))
                cls -= (1 - target) ** 4 * p**2 * math.log(1 - p)
    objects = [o for o in zip(*(v.tolist() for v in truth[1:]), strict=True) if counted[o[0]]]
    for sample, cell, label, code in objects:
        p = 1 / (1 + math.exp(-outputs.cls[sample, cell, label].item()))
        cls -= (1 - p) ** 2 * math.log(p)
        said = outputs.box[sample, cell].tolist() + outputs.direction[sample, cell].tolist()
        box += sum(abs(a - b) for a, b in zip(said, code, strict=True))
    count = max(len(objects), 1)
    return {"cls": cls / count, "box": box / count}


@pytest.mark.parametrize("counted", [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("count", [12, 1, 0])
def test_the_loss_is_that_of_the_equations(count, counted):
    outputs, truth = make_case(count)
    found = centre_loss(outputs, truth, None if all(counted) else torch.tensor(counted))
    expected = reference(outputs, truth, counted)
    assert {k: v.item() for k, v in found.items()} == pytest.approx(expected, rel=1e-5, abs=1e-7)
    sum(found.values()).backward()  # type: ignore[union-attr]
    assert outputs.cls.grad is not None
    assert outputs.cls.grad.isfinite().all()
    assert (outputs.cls.grad[1] != 0).any() == counted[1]


def test_the_loss_is_finite_for_any_logit_and_in_float32():
    outputs, truth = make_case()
    extreme = outputs._replace(cls=(200 * outputs.cls).to(torch.bfloat16), box=outputs.box.bfloat16())
    found = centre_loss(extreme, truth)
    assert all(value.isfinite() and value.dtype == torch.float32 for value in found.values())


# ---- the network --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "width", "params"),
    [
        *((CenterPillars, 1, 5.220), (CenterPillars, 0.5, 1.309), (CenterPillars, 0.25, 0.329)),
        *((CenterVoxels, 1, 5.775), (CenterVoxels, 0.5, 1.448), (CenterVoxels, 0.25, 0.364)),
    ],
)
def test_parameters(network, width, params):
    """Those of the detector with anchors, less its head, and six pairs of convolutions behind a shared one."""
    with torch.device("meta"):
        model = network(width)
    head = sum(p.numel() for p in model.head.parameters())
    channels = round(64 * width)
    inputs = round(width * (384 if network is CenterPillars else 512))
    block = (9 * channels + 3) * channels
    assert head == (9 * inputs + 3) * channels + 5 * block + (9 * channels + 1) * (3 + 2 + 1 + 3 + 2)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(params, abs=5e-4)


@pytest.mark.parametrize("network", [CenterPillars, CenterVoxels])
def test_shapes_and_initial_scores(network):
    with rng.scope(0, "centerpoint"):
        model = network(0.125, RANGE, (0.16, 0.16)).eval()
    points, batch = make_points(500, 3)
    outputs = model(points, batch, 3)
    assert [v.shape for v in outputs[:3]] == [(3, 320, 3), (3, 320, 6), (3, 320, 2)]
    assert torch.equal(model.head.kinds["heat"][-1].bias, torch.full((3,), HEAT_BIAS))
    alone = model(points[batch == 1], torch.zeros(int((batch == 1).sum()), dtype=torch.long), 1)
    torch.testing.assert_close(alone.cls[0], outputs.cls[1], atol=1e-5, rtol=1e-5)


# ---- detections ---------------------------------------------------------------------------------------------------


def test_peaks_are_those_of_a_loop():
    cls = torch.randn(2, 24 * 25, 3, generator=rng.generator(0, "peaks"))
    found = maxima(cls, CELLS.grid).view(2, 24, 25, 3)
    maps = cls.view(2, 24, 25, 3).numpy()
    for sample, y, x, kind in np.ndindex(*maps.shape):
        window = maps[sample, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2, kind]
        here = maps[sample, y, x, kind]
        expected = 1 / (1 + math.exp(-here)) if here == window.max() else 0.0
        assert found[sample, y, x, kind].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("size", [1, 2])
def test_what_the_targets_say_decodes_to_the_objects(made, size):
    """Also of a batch of one; cells that say nothing give no detection."""
    batch = tiny.first(made)
    assert isinstance(made.head, CentredHead)
    given = (batch.targets[name][batch.targets["batch"] < size] for name in ("boxes", "labels", "batch"))
    boxes, labels, owner = given
    truth = targets(boxes, labels, owner, size, 3, made.head.cells)
    codes = torch.zeros(size, truth.heat.shape[1], 8)
    codes[truth.sample, truth.cell] = truth.codes
    outputs = PillarOutputs(truth.heat.logit(1e-4), codes[..., :6], codes[..., 6:], *[torch.zeros(0)] * 3)
    found = made.head.decode(torch.nn.Identity(), outputs)
    assert len(found) == size
    for sample, detections in enumerate(found):
        own = owner == sample
        order, expected = detections.labels.argsort(stable=True), labels[own].argsort(stable=True)
        assert detections.labels[order].equal(labels[own][expected])
        torch.testing.assert_close(detections.boxes[order], boxes[own][expected], atol=1e-4, rtol=1e-4)


# ---- in the task --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=NETS, ids=["pillars", "voxels"])
def model(request, made) -> Any:
    with rng.scope(0, "centerpoint"):
        return made.build(request.param).eval()


def test_the_task_describes_scores_draws_and_measures_it(made, model):
    batch = tiny.first(made)
    found = answer(made, model, batch)
    sparse = "voxels" if isinstance(model, CenterVoxels) else "pillars"
    kinds = PointCloud.kinds({"architecture": NETS[sparse == "voxels"], "taps": {"neck": "neck"}})
    assert list(kinds) == [sparse, "neck", "logits"]
    points, neck, logits = (found.features[name] for name in (sparse, "neck", "logits"))
    assert isinstance(points, Points)
    assert isinstance(neck, Grid)
    assert isinstance(logits, Logits)
    assert logits.values.shape == (2, (tiny.GRID // 2) ** 2, 3)
    assert logits.weight is not None
    assert logits.weight.sum().item() == pytest.approx(2, abs=1e-4)
    drawn = made.ops()["peaks"](batch, logits.values.shape[1])
    assert drawn.eq(1).sum(1).tolist() == batch.targets["batch"].bincount(minlength=2).tolist()
    assert set(made.loss(model, found.outputs, batch)) == set(made.loss_weights()) == {"cls", "box"}
    assert len(made.predictions(model, batch)) == 2
    assert made.picture(batch, {"student": model}).width > 300
    assert count_macs(made.measured(model)) > 1e6
    values = made.evaluate(model, made.data(0).test_dataloader(), "test", torch.device("cpu"))
    assert all(np.isfinite(v) for v in values.values())


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("training", [False, True])
def test_almost_no_points_and_no_objects(made, model, count, training):
    batch = tiny.first(made)
    nothing = {name: value[:0] for name, value in batch.targets.items()}
    inputs = {"points": batch.inputs["points"][:count], "batch": torch.zeros(count, dtype=torch.long), "size": 2}
    empty = batch.with_inputs(inputs, targets=nothing)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    outputs = made.forward(model.train(training), inputs)
    sum(made.loss(model, outputs, empty).values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(buffer.isfinite().all() for buffer in model.buffers())
    model.load_state_dict(kept)
    assert len(made.decode(model.eval(), outputs)) == 2


def test_what_is_exported_gives_what_the_task_decodes(made, model, tmp_path):
    """Of pillars in ONNX Runtime, of voxels as the graph that ONNX is made of, from the bird's-eye view on."""
    plan = made.export(model)
    with torch.no_grad():
        boxes, scores = plan.module(*plan.example)
    assert boxes.shape == (*scores.shape[:1], 7)
    assert (scores > 0).any()
    program = torch.export.export(plan.module, plan.example)
    if isinstance(model, CenterVoxels):
        found = program.module()(*plan.example)
    else:
        torch.onnx.export(program, (), tmp_path / "it.onnx", dynamo=True, verbose=False, optimize=False)
        session = onnxruntime.InferenceSession(tmp_path / "it.onnx", providers=["CPUExecutionProvider"])
        names = [node.name for node in session.get_inputs()]
        given = {name: value.numpy() for name, value in zip(names, plan.example, strict=True)}
        found = [torch.from_numpy(value) for value in session.run(None, given)]
    torch.testing.assert_close(found[0], boxes, atol=1e-3, rtol=1e-3)
    # Where neighbours are alike to the last digit, either may be the peak.
    assert ((found[1] - scores).abs() > 1e-4).float().mean() < 0.02


def test_the_script_chooses_as_the_task_does(made):
    g = rng.generator(0, "script")
    assert isinstance(made.head, CentredHead)
    sites = made.head.cells.grid[0] * made.head.cells.grid[1]
    maps = [torch.randn(1, sites, k, generator=g) for k in (3, 6, 2)]
    outputs = PillarOutputs(*maps, *[torch.zeros(0)] * 3)
    with rng.scope(0, "centerpoint"):
        plan = made.export(made.build(NETS[0]))
    (expected,) = made.head.decode(torch.nn.Identity(), outputs)
    boxes, scores = (value.numpy() for value in plan.module.decoder(*maps))
    found = script.detect(boxes, scores, dict(plan.facts))
    assert len(found) == len(expected.boxes) > 20
    np.testing.assert_allclose([score for _, score, _ in found], expected.scores, rtol=1e-5)
    np.testing.assert_allclose(np.stack([box for _, _, box in found]), expected.boxes, rtol=1e-4, atol=1e-4)


def test_scores_are_carried_with_their_scene(made):
    """A shift by whole cells moves them by so many."""
    batch = tiny.first(made)
    scores = torch.randn(2, (tiny.GRID // 2) ** 2, 3, generator=rng.generator(0, "carry"))
    shift = 2 * 4 / (tiny.GRID // 2)  # in halves of the range
    _, carry = made.ops()["warp"](batch, torch.tensor([[0.0, 0.0, shift, 0.0], [0.0] * 4]))
    moved = carry(Logits(scores, law="bernoulli")).values.view(2, 32, 32, 3)
    there = scores.view(2, 32, 32, 3)
    torch.testing.assert_close(moved[1], there[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(moved[0, :, 4:], there[0, :, :-4], atol=1e-3, rtol=1e-3)


def test_the_loss_falls_on_one_batch(made):
    with rng.scope(1, "centerpoint"):
        net = made.build({**NETS[0], "width": 0.25})
    losses = tiny.losses(made, net, tiny.first(made, "train"))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("pillars_16x", ["method=kd"]),
        ("pillars_16x", ["method=fitnet"]),
        ("pillars_16x", ["method=cwd"]),
        ("pillars_16x", ["method=pointdistiller"]),
        ("pillars_4x", ["method=kd", "augment=hard_affine"]),
        ("second_16x", ["method=kd"]),
        ("pillars_16x", ["method=pivotal_kd"]),
        ("second_16x", ["method=label_kd"]),
        ("second_16x", ["method=pointdistiller", "method.where=neck+stages"]),
        ("second_4x", ["method=none", "augment=polarmix"]),
    ],
)
def test_methods_train_on_the_pairs(pair, words, root, tmp_path):
    own = [f"pair.{side}.architecture.width={width}" for side, width in (("teacher", 0.25), ("student", 0.125))]
    small = [f"data.root={root}", "data.batch_size=2", f"task.point_range={tiny.RANGE}", "trainer.accelerator=cpu"]
    choice = ["task=pointcloud", f"pair=centerpoint_{pair}", *words, "preset=smoke", "trainer.epochs=1", *small, *own]
    run = resolve(config.load(choice), Store(tmp_path / "cache"))
    run.task.prepare()
    manifest = Training(Trainings(run).student_recipe(), run.task, untrained=True).run(Path(tmp_path))
    assert manifest["cost"]["student_passes"] > 0


def test_head_and_range_come_with_the_pair():
    pillars, voxels = (
        config.load(["task=pointcloud", f"pair=centerpoint_{name}_16x", "preset=paper"])["task"]
        for name in ("pillars", "second")
    )
    assert (pillars["head"], pillars["pillar"]) == ("centres", [0.16, 0.16])
    assert (voxels["head"], voxels["pillar"]) == ("centres", [0.2, 0.2])
