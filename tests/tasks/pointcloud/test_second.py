from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kdbench.base import rng
from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.configuration.resolved import resolve
from kdbench.errors import KDBenchError
from kdbench.features import Grid, Logits, Points
from kdbench.runs.trainings import Trainings
from kdbench.training.fit import Training
from kdbench.training.measure import count_macs
from tasks.pointcloud.second import SECOND
from tasks.pointcloud.sparse import flatten
from tasks.pointcloud.task import PointCloud
from tests.tasks.pointcloud import tiny
from tests.tasks.pointcloud.test_detector import RANGE, make_points
from tests.tasks.pointcloud.test_task import answer

NET = {"_target_": "tasks.pointcloud.second.SECOND", "width": 0.125}
PILLAR = (0.32, 0.32)  # voxels of 0.08 m


def make_model(**options) -> SECOND:
    with rng.scope(0, "second"):
        return SECOND(0.125, RANGE, (0.16, 0.16), **options).eval()


@pytest.mark.parametrize(
    ("width", "params", "sparse", "gmacs"),
    [(1, 5.326, 0.712, 69.64), (0.5, 1.343, 0.179, 17.73), (0.25, 0.341, 0.045, 4.60)],
)
def test_parameters_and_macs_are_those_of_the_kitti_models(width, params, sparse, gmacs):
    with torch.device("meta"):
        model = SECOND(width)
        with FlopCounterMode(display=False) as counter:
            model.dense_part()(torch.empty(1, model.canvas_channels, *model.grid))
    assert model.voxels.shape == (41, 1600, 1408)
    assert model.head_grid == (200, 176)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(params, abs=5e-4)
    assert sum(p.numel() for p in model.encoder.parameters()) / 1e6 == pytest.approx(sparse, abs=5e-4)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=5e-3)


@pytest.mark.parametrize("max_points", [None, 2])
def test_voxels_equal_a_numpy_reference(max_points):
    model = make_model(max_points=max_points)
    points, batch = make_points(3000, 2)
    points[:1500] = points[:1500] * 0.02 + torch.tensor([3.0, 0.5, -1.0, 0.0])  # a heap, of several a voxel
    outputs = model(points, batch, 2)
    groups: dict[tuple[int, ...], list[np.ndarray]] = {}
    for point, sample in zip(points.double().numpy(), batch.tolist(), strict=True):
        x, y, z = np.floor((point[:3] - RANGE[:3]) / [0.04, 0.04, 0.1]).astype(int)
        if 0 <= x < 160 and 0 <= y < 128 and 0 <= z < 40:
            groups.setdefault((sample, z, y, x), []).append(point)
    assert max(map(len, groups.values())) > 2
    kept = [np.array(members[:max_points]) for _, members in sorted(groups.items())]
    means, _, counts = model.voxels(points, batch)
    np.testing.assert_allclose(means, np.stack([m.mean(0) for m in kept]), atol=1e-5)
    assert counts.tolist() == outputs.counts.tolist() == [len(m) for m in kept]
    assert outputs.coords.tolist() == [list(cell) for cell in sorted(groups)]
    centres = (np.array(sorted(groups))[:, [3, 2, 1]] + 0.5) * [0.04, 0.04, 0.1] + RANGE[:3]
    np.testing.assert_allclose(outputs.centres, centres, atol=1e-4)


def test_shapes():
    model = make_model()
    points, batch = make_points(500, 3)
    outputs = model(points, batch, 3)
    assert model.head_grid == (16, 20)
    anchors = 16 * 20 * 3 * 2
    assert [v.shape for v in outputs[:3]] == [(3, anchors, 3), (3, anchors, 7), (3, anchors, 2)]
    assert outputs.voxels.shape == (len(outputs.counts), 2)
    means, keys, _ = model.voxels(points, batch)
    values, sites, shape = model.encoder(means, keys, model.voxels.shape)[-1]
    canvas = flatten(values, sites, shape, 3)
    assert canvas.shape == (3, model.canvas_channels, 16, 20)
    for part, whole in zip(model.dense_part()(canvas), outputs[:3], strict=True):
        torch.testing.assert_close(part, whole)


def test_order_of_points_and_samples_does_not_matter():
    model = make_model(max_points=None)
    points, batch = make_points(800, 3)
    order, place = torch.randperm(len(points), generator=rng.generator(0, "order")), torch.tensor([2, 0, 1])
    expected, actual = model(points, batch, 3), model(points[order], place[batch[order]], 3)
    for name in ("cls", "box", "direction"):
        torch.testing.assert_close(getattr(actual, name)[place], getattr(expected, name), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("count", [0, 1])
def test_almost_no_points(training, count):
    model = make_model().train(training)
    outputs = model(torch.tensor([[1.0, 0.0, -1.0, 0.5]])[:count], torch.zeros(count, dtype=torch.long), 2)
    assert len(outputs.voxels) == count
    (outputs.cls.sum() + outputs.box.sum() + outputs.direction.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(buffer.isfinite().all() for buffer in model.buffers())


def test_gradient_reaches_points_and_parameters():
    model = make_model().train()
    points, batch = make_points(300)
    points.requires_grad_()
    outputs = model(points, batch, 1)
    (outputs.cls.square().sum() + outputs.box.square().sum() + outputs.direction.square().sum()).backward()
    assert points.grad is not None
    assert points.grad.abs().sum() > 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_refusals():
    with pytest.raises(KDBenchError, match=r"range spans 4 m along z, 13\.3333 voxels of 0\.3 m, .* nearest is 24"):
        make_model(height=0.3)
    with pytest.raises(KDBenchError, match=r"width=0\.001 leaves no channel"):
        SECOND(0.001)
    with pytest.raises(KDBenchError, match=r"shape \(3, 5\), expected \(points, 4\)"):
        make_model()(torch.zeros(3, 5), torch.zeros(3, dtype=torch.long), 1)


# ---- in the task ----------------------------------------------------------------------------------------------


def test_the_task_describes_exports_and_measures_it(made):
    assert list(PointCloud.kinds({"architecture": NET, "taps": {"neck": "neck"}})) == ["voxels", "neck", "logits"]
    with rng.scope(0, "second"):
        model = made.build(NET).eval()
    batch = tiny.first(made)
    found = answer(made, model, batch)
    voxels, bev, logits = (found.features[name] for name in ("voxels", "neck", "logits"))
    assert isinstance(voxels, Points)
    assert isinstance(bev, Grid)
    assert isinstance(logits, Logits)
    assert voxels.counts is not None
    assert voxels.counts.sum() <= len(batch.inputs["points"])
    assert bev.stride == (2.0, 2.0)
    assert set(made.loss(model, found.outputs, batch)) == {"cls", "box", "dir"}
    assert len(made.predictions(model, batch)) == 2
    plan = made.export(model)
    boxes, scores = torch.export.export(plan.module, plan.example).module()(*plan.example)
    assert boxes.shape == (len(made.anchors), 7)
    assert scores.shape == (len(made.anchors), 3)
    assert count_macs(made.measured(model)) > 1e6


@pytest.mark.parametrize(
    "words",
    [
        ["method=kd"],
        ["method=fitnet"],
        ["method=pointdistiller_released"],
        ["method=pointdistiller", "method.where=neck+stages"],
        ["method=none", "augment=polarmix"],
    ],
)
@pytest.mark.parametrize("pair", ["second_4x", "second_16x"])
def test_methods_train_on_the_pairs(words, pair, root, tmp_path):
    own = [f"pair.{side}.architecture.width={width}" for side, width in (("teacher", 0.25), ("student", 0.125))]
    small = [f"data.root={root}", "data.batch_size=2", f"task.point_range={tiny.RANGE}", "trainer.accelerator=cpu"]
    choice = ["task=pointcloud", f"pair={pair}", *words, "preset=smoke", "trainer.epochs=1", *small, *own]
    run = resolve(config.load(choice), Store(tmp_path / "cache"))
    run.task.prepare()
    manifest = Training(Trainings(run).student_recipe(), run.task, untrained=True).run(Path(tmp_path))
    assert manifest["cost"]["student_passes"] > 0


def test_the_published_range_and_voxels_come_with_the_pair():
    spec = config.load(["task=pointcloud", "pair=second_4x", "preset=paper"])["task"]
    assert spec["point_range"] == [0.0, -40.0, -3.0, 70.4, 40.0, 1.0]
    assert spec["pillar"] == [0.2, 0.2]
    plain = config.load(["task=pointcloud", "preset=paper"])["task"]
    assert plain["pillar"] == [0.16, 0.16]
