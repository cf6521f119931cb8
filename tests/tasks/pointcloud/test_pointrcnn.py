"""PointRCNN: sizes as counted, codes, both stages against plain loops, and what trains on it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdbench.base import rng
from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.configuration.resolved import resolve
from kdbench.errors import KDBenchError
from kdbench.features import Logits, Points, Tokens
from kdbench.roles.sources import Network
from kdbench.runs.trainings import Trainings
from kdbench.training.fit import Training
from kdbench.training.measure import count_macs
from tasks.pointcloud.anchors import encode as code
from tasks.pointcloud.boxes import inside
from tasks.pointcloud.data import fewer
from tasks.pointcloud.pointrcnn import (
    PointRCNN,
    Proposals,
    canonical,
    decode,
    encode,
    outlines,
    pool,
    refined,
    upright,
)
from tasks.pointcloud.task import PointCloud
from tests.tasks.pointcloud import tiny
from tests.tasks.pointcloud.points import POINTS, make_boxes, make_model, random, scene, some_outputs

NET = {"_target_": "tasks.pointcloud.pointrcnn.PointRCNN", "width": 0.125}
TAPS = {"set3": "backbone.encoder[2]#1", "set4": "backbone.encoder[3]#1"}


# ---- the network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pair", "params"), [("pointrcnn_8x", (4.04, 0.517)), ("pointrcnn_16x", (4.04, 0.259))])
def test_parameters_are_those_of_the_kitti_models(pair, params):
    sides = config.load(["task=pointcloud", f"pair={pair}", "preset=paper"])["pair"]
    for side, millions in zip(("teacher", "student"), params, strict=True):
        with torch.device("meta"):
            model = PointRCNN(sides[side]["architecture"]["width"])
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(
            millions, abs=5e-4 + 5e-3 * (millions > 1)
        )


def test_widths_are_those_of_the_released_8x_student():
    with torch.device("meta"):
        model = PointRCNN(1 / 2.8)
    widths = [
        [m.out_features for m in layer.modules() if isinstance(m, torch.nn.Linear)] for layer in model.backbone.encoder
    ]
    assert widths[2] == [45, 70, 91, 45, 70, 91]
    assert widths[3] == [91, 91, 182, 91, 137, 182]
    first = [
        next(m.in_features for m in step.modules() if isinstance(m, torch.nn.Linear)) for step in model.backbone.decoder
    ]
    assert first == [546, 272, 215, 92]


def test_shapes():
    model, batch = make_model(), scene()
    outputs = model(batch.inputs["points"], batch.inputs["batch"], 2)
    assert outputs.cls.shape == (2, POINTS, 3)
    assert outputs.box.shape == (2, POINTS, 8)
    assert outputs.features.shape == (2, POINTS, 16)
    own = batch.inputs["points"][batch.inputs["batch"] == 1]
    places = torch.arange(POINTS) * len(own) // POINTS
    assert outputs.xyz[1].equal(own[places, :3])
    proposals = model.propose(outputs, 0.8)
    assert 0 < len(proposals.boxes) <= 2 * model.proposed
    scores, codes = model.refine(outputs, proposals)
    assert scores.shape == (len(proposals.boxes),)
    assert codes.shape == (len(proposals.boxes), 7)


def test_samples_are_answered_for_themselves():
    model, batch = make_model(), scene(3)
    points, owner = batch.inputs["points"], batch.inputs["batch"]
    whole = model(points, owner, 3)
    for sample in range(3):
        own = points[owner == sample]
        alone = model(own, torch.zeros(len(own), dtype=torch.long), 1)
        torch.testing.assert_close(whole.cls[sample], alone.cls[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(whole.box[sample], alone.box[0], atol=1e-5, rtol=1e-5)


def test_features_know_where_points_lie_to_each_other():
    """Set abstraction reads offsets: a scene that is moved as a whole is the same one."""
    model, batch = make_model(), scene(1)
    points = batch.inputs["points"]
    moved = points + torch.tensor([3.0, -2.0, 0.5, 0.0])
    here, there = (model(p, batch.inputs["batch"], 1).features for p in (points, moved))
    torch.testing.assert_close(here, there, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_almost_no_points(training, count, made):
    model = make_model().train(training)
    batch = scene()
    inputs = {"points": batch.inputs["points"][:count], "batch": torch.zeros(count, dtype=torch.long), "size": 2}
    batch = batch.with_inputs(inputs)
    outputs = model(*inputs.values())
    sum(made.head.loss(model, outputs, batch).values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(buffer.isfinite().all() for buffer in model.buffers())
    assert len(made.head.decode(model.eval(), outputs)) == 2


def test_refusals():
    with pytest.raises(KDBenchError, match=r"points=300, expected a multiple of 256: the nearest is 256"):
        make_model(points=300)
    with pytest.raises(KDBenchError, match=r"width=0\.01 leaves no channel"):
        PointRCNN(0.01)
    with pytest.raises(KDBenchError, match=r"class 'Bus' has no anchor"):
        make_model(classes=["Bus"])
    with pytest.raises(KDBenchError, match=r"shape \(3, 5\), expected \(points, 4\)"):
        make_model()(torch.zeros(3, 5), torch.zeros(3, dtype=torch.long), 1)


# ---- codes and boxes ----------------------------------------------------------------------------------------------


def test_codes_of_points_are_those_of_the_equations():
    box, point, size = (
        torch.tensor(v, dtype=torch.float64) for v in ([3.0, 1, -1, 4, 2, 1.5, 2.5], [2.0, 2, 0], [3.9, 1.6, 1.56])
    )
    diagonal = math.hypot(3.9, 1.6)
    expected = [1 / diagonal, -1 / diagonal, -1 / 1.56, math.log(4 / 3.9), math.log(2 / 1.6), math.log(1.5 / 1.56)]
    expected += [math.cos(2.5), math.sin(2.5)]
    torch.testing.assert_close(encode(box, point, size), torch.tensor(expected, dtype=torch.float64))


def test_decode_inverts_encode():
    boxes, points, sizes = (
        make_boxes(50).double(),
        random(50, 3, name="p").double() * 9,
        1 + random(50, 3, name="s").double(),
    )
    found = decode(encode(boxes, points, sizes), points, sizes)
    torch.testing.assert_close(found[:, :6], boxes[:, :6])
    torch.testing.assert_close((found[:, 6] - boxes[:, 6]).cos(), torch.ones(50, dtype=torch.float64))


def test_refined_undoes_canonical_up_to_a_half_turn():
    truth, frames = make_boxes(50, "truth").double(), make_boxes(50, "frames").double()
    own = canonical(truth, frames)
    assert own[:, 6].abs().max() <= math.pi / 2
    found = refined(code(own, upright(frames[:, 3:6])), frames)
    torch.testing.assert_close(found[:, :6], truth[:, :6])
    torch.testing.assert_close((2 * (found[:, 6] - truth[:, 6])).cos(), torch.ones(50, dtype=torch.float64))


def test_inside_is_that_of_a_loop():
    boxes, points = (
        make_boxes(6),
        random(1, 300, 3, name="p") * torch.tensor([18.0, 18, 3]) - torch.tensor([0.0, 9, 2.5]),
    )
    for margin in (0.0, 0.4):
        found = inside(points.expand(6, -1, -1), boxes, margin)
        assert 0 < found.sum() < found.numel() / 2
        for box, row in zip(boxes.double().numpy(), found.numpy(), strict=True):
            cos, sin = np.cos(box[6]), np.sin(box[6])
            local = (points[0].double().numpy() - box[:3]) @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
            np.testing.assert_array_equal(row, (np.abs(local) <= box[3:6] / 2 + margin).all(1))


# ---- proposals and the second look ----------------------------------------------------------------------------------


def test_proposals_are_those_of_a_loop():
    model, outputs = make_model(), some_outputs()
    model.proposed = 60
    found = model.propose(outputs, 0.3)
    assert found.sample.equal(found.sample.sort().values)
    first = POINTS * 9000 // 16_384
    for sample in range(2):
        scores, labels = outputs.cls[sample].sigmoid().max(-1)
        order = scores.argsort(descending=True)[:first]
        boxes = decode(outputs.box[sample], outputs.xyz[sample], model.sizes[labels])
        kept: list[int] = []
        flat = outlines(boxes).double()
        for i in order.tolist():
            if all(overlap(flat[i], flat[j]) <= 0.3 for j in kept):
                kept.append(i)
        own = found.sample == sample
        assert len(kept) > 20
        torch.testing.assert_close(found.boxes[own], boxes[kept[:60]])
        assert found.labels[own].equal(labels[kept[:60]])


def overlap(a: Tensor, b: Tensor) -> float:
    sides = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0)
    shared = float(sides.prod())
    return shared / (float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()) - shared)


def test_points_of_boxes_are_spread_over_those_inside():
    outputs = some_outputs()
    boxes, sample = make_boxes(9), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1])
    boxes[3, :3] = 500.0
    index, empty = pool(outputs.xyz, boxes, sample, 5)
    for row, (box, own) in enumerate(zip(boxes, sample.tolist(), strict=True)):
        (within,) = inside(outputs.xyz[own][None], box[None])[0].nonzero(as_tuple=True)
        assert empty[row] == (len(within) == 0)
        if len(within):
            assert index[row].tolist() == [int(within[i * len(within) // 5]) for i in range(5)]
    assert empty.any()
    assert not empty.all()
    assert [len(v) for v in pool(outputs.xyz, boxes[:0], sample[:0], 5)] == [0, 0]


def test_the_second_look_does_not_see_where_the_scene_is():
    """In the frame of a box a turned and moved scene is the same, but for its distance from the sensor."""
    model, outputs = make_model(), some_outputs(1)
    boxes = make_boxes(8)
    angle = torch.tensor(0.7)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    spun = torch.cat([boxes[:, :3] @ turn.T, boxes[:, 3:6], boxes[:, 6:] + angle], 1)
    labels = sample = torch.zeros(8, dtype=torch.long)
    here = model.refine(outputs, Proposals(boxes, labels, sample))
    there = model.refine(outputs._replace(xyz=outputs.xyz @ turn.T), Proposals(spun, labels, sample))
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-3)


def test_the_second_look_leaves_the_first_stage_alone():
    model, batch = make_model().train(), scene()
    outputs = model(batch.inputs["points"], batch.inputs["batch"], 2)
    scores, codes = model.refine(outputs, model.propose(outputs, 0.8))
    (scores.sum() + codes.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("look."), name


# ---- points of a scan -----------------------------------------------------------------------------------------------


def test_far_points_are_all_read():
    g = rng.numpy(0, "scan")
    points = np.column_stack([g.uniform(0, 60, 3000), g.uniform(-20, 20, 3000), np.zeros(3000), np.arange(3000)])
    found = fewer(points, 1500, "000001")
    far = np.linalg.norm(points[:, :3], axis=1) >= 40
    assert len(found) == 1500
    assert (np.diff(found[:, 3]) > 0).all()
    assert set(np.flatnonzero(far)) <= set(found[:, 3].astype(int))
    np.testing.assert_array_equal(found, fewer(points, 1500, "000001"))
    assert not np.array_equal(found, fewer(points, 1500, "000002"))
    assert len(fewer(points, int(far.sum()) - 5, "000001")) == far.sum() - 5
    assert fewer(points, 3000, "000001") is points


# ---- in the task ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(root, tmp_path_factory) -> PointCloud:
    return tiny.task(root, tmp_path_factory.mktemp("cache"), head="points", points=POINTS)


def test_the_task_describes_exports_and_measures_it(made):
    assert list(PointCloud.kinds({"architecture": NET, "taps": TAPS}).items()) == [
        ("set3", Tokens),
        ("set4", Tokens),
        ("points", Points),
        ("logits", Logits),
    ]
    with rng.scope(0, "pointrcnn"):
        model = made.build(NET).eval()
    batch = tiny.first(made)
    assert torch.bincount(batch.inputs["batch"]).tolist() == [POINTS, POINTS]
    found = Network(made, model, TAPS).answer(batch)
    points, deep, logits = (found.features[name] for name in ("points", "set4", "logits"))
    assert isinstance(points, Points)
    assert points.values.shape == (2 * POINTS, 16)
    assert points.counts is None
    assert points.coords.equal(batch.inputs["points"][:, :3])
    assert points.batch.equal(batch.inputs["batch"])
    assert isinstance(deep, Tokens)
    assert deep.values.shape == (2, POINTS // 256, 128)
    assert isinstance(logits, Logits)
    assert logits.weight is not None
    assert logits.weight.sum().item() == pytest.approx(2, abs=1e-4)
    assert set(made.loss(model, found.outputs, batch)) == set(made.loss_weights()) == set(made.head.terms)
    assert len(made.predictions(model, batch)) == 2
    assert made.picture(batch, {"student": model}).width > 300
    assert count_macs(made.measured(model)) > 1e6
    values = made.evaluate(model, made.data(0).test_dataloader(), "test", torch.device("cpu"))
    assert all(np.isfinite(v) for v in values.values())


def test_the_first_stage_is_exported(made):
    model: Any = made.build(NET).eval()
    plan = made.export(model)
    boxes, scores = torch.export.export(plan.module, plan.example).module()(*plan.example)
    cloud = plan.example[0]
    outputs = model(cloud, torch.zeros(len(cloud), dtype=torch.long), 1)
    torch.testing.assert_close(scores, outputs.cls[0].sigmoid(), atol=1e-5, rtol=1e-5)
    expected = decode(outputs.box[0], outputs.xyz[0], model.sizes[outputs.cls[0].argmax(-1)])
    torch.testing.assert_close(boxes, expected, atol=1e-4, rtol=1e-4)


def test_a_moved_scene_keeps_the_order_of_its_scores(made):
    batch = tiny.first(made)
    warp = made.ops()["warp"]
    moved, carry = warp(batch, torch.tensor([[0.2, 0.1, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    logits = Logits(random(2, POINTS, 3, name="scores"), law="bernoulli")
    assert carry(logits) is logits
    own, there = (made.build(NET).eval()(*b.inputs.values()).xyz for b in (batch, moved))
    assert there[1].equal(own[1])
    torch.testing.assert_close(there[0].norm(dim=1), own[0].norm(dim=1) * math.exp(0.1), rtol=1e-4, atol=1e-4)


def test_the_loss_falls_on_one_batch(made):
    with rng.scope(1, "pointrcnn"):
        net = made.build({**NET, "width": 0.25})
    losses = tiny.losses(made, net, tiny.first(made, "train"))
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(
    "words",
    [
        ["method=kd"],
        ["method=fitnet"],
        ["method=sp"],
        ["method=dml"],
        ["method=pointdistiller"],
        ["method=pointdistiller_released"],
        ["method=none", "augment=polarmix"],
        ["method=kd", "augment=hard_affine"],
    ],
)
def test_methods_train_on_the_pairs(words, root, tmp_path):
    own = [f"pair.{side}.architecture.width={width}" for side, width in (("teacher", 0.25), ("student", 0.125))]
    small = [f"data.root={root}", "data.batch_size=2", f"task.point_range={tiny.RANGE}", "trainer.accelerator=cpu"]
    choice = [
        "task=pointcloud",
        "pair=pointrcnn_8x",
        *words,
        "preset=smoke",
        "trainer.epochs=1",
        "task.points=256",
        *small,
        *own,
    ]
    run = resolve(config.load(choice), Store(tmp_path / "cache"))
    run.task.prepare()
    manifest = Training(Trainings(run).student_recipe(), run.task, untrained=True).run(Path(tmp_path))
    assert manifest["cost"]["student_passes"] > 0


def test_range_and_points_come_with_the_pair():
    spec = config.load(["task=pointcloud", "pair=pointrcnn_16x", "preset=paper"])["task"]
    assert (spec["head"], spec["points"], spec["loss_weights"]["box"]) == ("points", 16384, 1.0)
    assert config.load(["task=pointcloud", "pair=pointrcnn_16x"])["task"]["points"] == 4096
    plain = config.load(["task=pointcloud"])["task"]
    assert (plain["head"], plain["points"], plain["loss_weights"]["box"]) == ("anchors", None, 2.0)
