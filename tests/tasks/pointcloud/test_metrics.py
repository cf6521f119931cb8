from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from kdbench.base import rng
from kdbench.errors import KDBenchError
from tasks.pointcloud.kitti_ap import evaluate, mean_ap
from tasks.pointcloud.metrics import KittiAP
from tests.tasks.pointcloud.kitti_reference import random_frames

GT, DET = random_frames(rng.numpy(0, "metric"), 10)


def test_frames_of_several_updates_count_as_one_set() -> None:
    metric = KittiAP()
    metric.update(DET[:4], GT[:4])
    metric.update(DET[4:], GT[4:])
    found = metric.compute()
    expected = evaluate(GT, DET)
    assert all(isinstance(value, torch.Tensor) and value.ndim == 0 for value in found.values())
    assert found["map_3d_moderate_r40"].item() == pytest.approx(mean_ap(expected), rel=1e-5)
    assert found["map_bev_moderate_all"].item() == pytest.approx(mean_ap(expected, "bev", "all"), rel=1e-5)
    assert found["map_aos_easy_r11"].item() == pytest.approx(mean_ap(expected, "aos", "R11", "easy"), rel=1e-5)
    assert found["car_2d_hard_r40"].item() == pytest.approx(expected["Car"]["2d"]["R40"]["hard"], rel=1e-5)
    assert found["cyclist_3d_moderate_r11"].item() == pytest.approx(
        expected["Cyclist"]["3d"]["R11"]["moderate"], rel=1e-5
    )
    assert "pedestrian_3d_moderate_r40" in found


def test_reset_forgets_and_the_metric_can_be_used_again() -> None:
    metric = KittiAP()
    metric.update(DET[:3], GT[:3])
    first = metric.compute()
    metric.reset()
    metric.update(DET[3:], GT[3:])
    second = metric.compute()
    assert first["map_3d_moderate_all"] != second["map_3d_moderate_all"]
    expected = mean_ap(evaluate(GT[3:], DET[3:]), interpolation="all")
    assert second["map_3d_moderate_all"].item() == pytest.approx(expected, rel=1e-5)


def test_forward_evaluates_the_batch_and_keeps_the_rest() -> None:
    metric = KittiAP()
    metric(DET[:6], GT[:6])
    batch = metric(DET[6:], GT[6:])
    alone = KittiAP()
    alone.update(DET[6:], GT[6:])
    assert batch["map_3d_moderate_all"] == alone.compute()["map_3d_moderate_all"]
    whole = KittiAP()
    whole.update(DET, GT)
    assert metric.compute()["map_3d_moderate_all"] == whole.compute()["map_3d_moderate_all"]


def test_a_class_without_objects_is_nan() -> None:
    metric = KittiAP(classes=["Car"])
    metric.update(DET, [frame.select(frame.types != "Car") for frame in GT])
    assert math.isnan(metric.compute()["car_3d_moderate_r40"])


def test_it_can_be_copied_and_sent_to_another_process() -> None:
    metric = KittiAP()
    metric.update(DET, GT)
    copy = pickle.loads(pickle.dumps(metric))  # noqa: S301
    assert copy.compute()["map_3d_moderate_r40"] == metric.compute()["map_3d_moderate_r40"]


def test_unequal_numbers_of_frames_are_refused() -> None:
    with pytest.raises(KDBenchError, match="2 frames of ground truth but 1"):
        KittiAP().update(DET[:1], GT[:2])


def _worker(rank: int, store: str, results: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    metric = KittiAP()
    share = slice(0, 3) if rank == 0 else slice(3, None)  # unequal shares
    metric.update(DET[share], GT[share])
    Path(results, str(rank)).write_text(repr(metric.compute()["map_3d_moderate_r40"].item()))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_see_all_frames(tmp_path: Path) -> None:
    mp.spawn(_worker, args=(str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    metric = KittiAP()
    metric.update(DET, GT)
    expected = metric.compute()["map_3d_moderate_r40"].item()
    assert [float((tmp_path / str(rank)).read_text()) for rank in (0, 1)] == pytest.approx([expected] * 2)
