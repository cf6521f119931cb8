"""A tiny folder in KITTI's layout, its frames and the task on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.pointcloud.frames import Frames
from tasks.pointcloud.task import PointCloud
from tests.tasks.pointcloud import tiny

TAPS = {"bev": "backbone[-1]", "neck": "neck"}
ANCHORS = (tiny.GRID // 2) ** 2 * 3 * 2


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("kitti") / "tiny")


@pytest.fixture(scope="module")
def made(root, tmp_path_factory) -> PointCloud:
    return tiny.task(root, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def frames(root, tmp_path_factory) -> Frames:
    return tiny.prepared(root, tmp_path_factory.mktemp("prepared"))
