from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kdbench.base import rng
from kdbench.errors import KDBenchError
from tasks.pointcloud.detector import PointPillars

RANGE = (0.0, -2.56, -3.0, 6.4, 2.56, 1.0)  # 40 x 32 pillars of 0.16 m along x and y


def make_model(width: float = 0.125, **options) -> PointPillars:
    with rng.scope(0, "detector"):
        model = PointPillars(width, RANGE, **options)
        for module in model.modules():  # running statistics as after some training
            if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                torch.nn.init.normal_(module.running_mean, std=0.3)
                torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
                torch.nn.init.uniform_(module.weight, -1, 1)
                torch.nn.init.normal_(module.bias, std=0.3)
    return model.eval()


def make_points(count: int, batch_size: int = 1, name: str = "points") -> tuple[Tensor, Tensor]:
    """Points of which some lie outside the range, dense enough that many pillars hold several."""
    g = rng.generator(0, name)
    points = torch.rand(count, 4, generator=g) * torch.tensor([7.2, 6.0, 5.0, 1.0]) - torch.tensor([0.4, 3.0, 3.4, 0.0])
    return points, torch.randint(batch_size, (count,), generator=g)


@pytest.mark.parametrize(("width", "params", "gmacs"), [(1, 4.835, 34.17), (0.5, 1.217, 8.91), (0.25, 0.309, 2.41)])
def test_parameters_and_macs_are_those_of_the_kitti_models(width, params, gmacs):
    with torch.device("meta"):
        model = PointPillars(width)
        with FlopCounterMode(display=False) as counter:
            model.dense_part()(torch.empty(1, model.canvas_channels, *model.grid))
    assert model.grid == (496, 432)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(params, abs=5e-4)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=5e-3)


def test_shapes_and_maps():
    model = make_model()
    points, batch = make_points(500, 3)
    outputs = model(points, batch, 3)
    anchors = 16 * 20 * 3 * 2
    assert outputs.cls.shape == (3, anchors, 3)
    assert outputs.box.shape == (3, anchors, 7)
    assert outputs.direction.shape == (3, anchors, 2)
    assert outputs.pillars.shape == (len(outputs.counts), 8)
    assert outputs.coords.shape == (len(outputs.counts), 3)
    canvas = model.scatter(outputs.pillars, outputs.coords, 3)
    assert canvas.is_contiguous(memory_format=torch.channels_last)
    assert [tuple(x.shape[1:]) for x in model.backbone(canvas)] == [(8, 16, 20), (16, 8, 10), (32, 4, 5)]
    b, y, x = outputs.coords[7]
    torch.testing.assert_close(canvas[b, :, y, x], outputs.pillars[7])
    torch.testing.assert_close(canvas.abs().sum(), outputs.pillars.abs().sum(), rtol=1e-5, atol=0)


def test_anchors_of_the_outputs_run_over_y_x_class_yaw():
    model = make_model()
    outputs = model(*make_points(500), 1)
    maps = model.neck(model.backbone(model.scatter(outputs.pillars, outputs.coords, 1)))
    y, x, kind, yaw = 5, 9, 2, 1
    row = ((y * 20 + x) * 3 + kind) * 2 + yaw
    head: Any = model.head
    for values, conv in ((outputs.cls, head.cls), (outputs.box, head.box)):
        width = values.shape[2]
        channel = (kind * 2 + yaw) * width
        torch.testing.assert_close(values[0, row], conv(maps)[0, channel : channel + width, y, x])


@pytest.mark.parametrize("max_points", [None, 2])
def test_pillars_equal_a_padded_numpy_reference(max_points):
    model = make_model(max_points=max_points)
    points, batch = make_points(800, 2)
    outputs = model(points, batch, 2)

    low, size = np.array(RANGE[:3]), np.array([0.16, 0.16, 4.0])
    groups: dict[tuple[int, int, int], list[np.ndarray]] = {}
    for point, sample in zip(points.double().numpy(), batch.tolist(), strict=True):
        x, y, z = np.floor((point[:3] - low) / size).astype(int)
        if 0 <= x < 40 and 0 <= y < 32 and z == 0:
            groups.setdefault((sample, y, x), []).append(point)
    cap = max_points or max(map(len, groups.values()))
    assert max(map(len, groups.values())) > 2
    norm = model.encoder.norm
    weight = model.encoder.linear.weight.detach().double().numpy()
    mean, var, scale, shift = (
        norm.state_dict()[k].double().numpy() for k in ("running_mean", "running_var", "weight", "bias")
    )
    voxels, mask = np.zeros((len(groups), cap, 10)), np.zeros((len(groups), cap), dtype=bool)
    for row, (cell, members) in enumerate(sorted(groups.items())):
        kept = np.array(members[:cap])
        centre = low + (np.array([cell[2], cell[1], 0]) + 0.5) * size
        voxels[row, : len(kept)] = np.hstack([kept, kept[:, :3] - kept[:, :3].mean(0), kept[:, :3] - centre])
        mask[row, : len(kept)] = True
    features = np.maximum((voxels @ weight.T - mean) / np.sqrt(var + 1e-3) * scale + shift, 0)
    expected = np.where(mask[..., None], features, 0).max(1)

    assert outputs.coords.tolist() == [list(cell) for cell in sorted(groups)]
    assert outputs.counts.tolist() == mask.sum(1).tolist()
    np.testing.assert_allclose(outputs.pillars.detach().numpy(), expected, atol=2e-5)


def test_legacy_pillars_know_no_absolute_place():
    """A scene moved by whole pillars is the same one; with absolute coordinates it is another."""
    points, batch = make_points(300)
    points = points[(points[:, 0] > 0.7) & (points[:, 0] < 4)]
    moved = points + torch.tensor([0.16 * 4, 0.0, 0.0, 0.0])
    for legacy in (True, False):
        model = make_model(legacy=legacy)
        here, there = (model(p, batch[: len(p)] * 0, 1).pillars for p in (points, moved))
        assert torch.allclose(here, there, atol=1e-4) == legacy
    assert sum(p.numel() for p in make_model(legacy=True).parameters()) == sum(p.numel() for p in model.parameters())


def test_order_of_points_does_not_matter():
    model = make_model()
    points, batch = make_points(800, 2)
    order = torch.randperm(len(points), generator=rng.generator(0, "order"))
    for expected, actual in zip(model(points, batch, 2), model(points[order], batch[order], 2), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_order_of_samples_does_not_matter():
    model = make_model()
    points, batch = make_points(800, 3)
    new_place = torch.tensor([2, 0, 1])
    expected, actual = model(points, batch, 3), model(points, new_place[batch], 3)
    for name in ("cls", "box", "direction"):
        torch.testing.assert_close(getattr(actual, name)[new_place], getattr(expected, name), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("count", [0, 1])
def test_almost_no_points(training, count):
    model = make_model(max_points=32).train(training)
    points = torch.tensor([[1.0, 0.0, -1.0, 0.5]])[:count]
    outputs = model(points, torch.zeros(count, dtype=torch.long), 2)
    assert len(outputs.pillars) == count
    (outputs.cls.sum() + outputs.box.sum() + outputs.direction.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(buffer.isfinite().all() for buffer in model.buffers())


def test_sample_without_points_equals_an_empty_cloud():
    model = make_model()
    points, _ = make_points(300)
    outputs = model(points, torch.zeros(300, dtype=torch.long), 2)
    torch.testing.assert_close(outputs.cls[1:], model(points[:0], torch.zeros(0, dtype=torch.long), 1).cls)


def test_points_out_of_range_or_nan_are_left_out():
    model = make_model()
    points, batch = make_points(300)
    outside = torch.tensor([[6.4, 0, 0, 0], [-1e-4, 0, 0, 0], [1, 0, 1, 0], [1, 2.56, 0, 0], [torch.nan, 0, 0, 0]])
    more = model(torch.cat([points, outside]), torch.cat([batch, torch.zeros(5, dtype=torch.long)]), 1)
    expected = model(points, batch, 1)
    assert torch.equal(more.coords, expected.coords)
    assert torch.equal(more.counts, expected.counts)


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


def test_dense_part_exports_and_shares_its_modules():
    model = make_model()
    outputs = model(*make_points(300), 1)
    canvas = model.scatter(outputs.pillars, outputs.coords, 1).detach()
    part = model.dense_part()
    assert part.get_submodule("backbone.2") is model.backbone[-1]
    exported = torch.export.export(part, (canvas,)).module()
    for actual, expected in zip(exported(canvas), outputs[:3], strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_initial_head():
    with rng.scope(0, "detector"):
        head: Any = PointPillars(1.0, RANGE).head
    assert torch.allclose(head.state_dict()["cls.bias"].sigmoid(), torch.tensor(0.01))
    assert head.box.weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_refusals():
    with pytest.raises(KDBenchError, match=r"6\.4 m along x, 21\.3333 pillars .* nearest is 24 \(7\.2 m\)"):
        PointPillars(1.0, RANGE, (0.3, 0.16))
    with pytest.raises(KDBenchError, match=r"width=0\.001 leaves no channel"):
        PointPillars(0.001, RANGE)
    with pytest.raises(KDBenchError, match=r"shape \(3, 5\), expected \(points, 4\)"):
        make_model()(torch.zeros(3, 5), torch.zeros(3, dtype=torch.long), 1)
