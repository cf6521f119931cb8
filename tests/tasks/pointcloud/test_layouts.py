"""nuScenes and people's own frames, made by hand: the same objects as in the tiny KITTI folder, told otherwise."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from kdbench.configuration import config
from kdbench.errors import KDBenchError
from tasks.pointcloud import kitti, scans
from tasks.pointcloud.nuscenes import MINI_VAL, NAMES, TABLES, transform
from tasks.pointcloud.task import PointCloud
from tests.tasks.pointcloud import tiny

CATEGORIES = {"Car": "vehicle.car", "Pedestrian": "human.pedestrian.adult", "Cyclist": "vehicle.bicycle"}
SCENES = ("scene-0061", MINI_VAL[0])
FRAMES = 3  # of a scene
SHIFT = 2.0  # m that the car moves ahead from sweep to sweep


def pose(angle: float, place: list[float]) -> tuple[Rotation, np.ndarray]:
    return Rotation.from_euler("zyx", [angle, 0.02, -0.01]), np.array(place)


def told(token: str, at: tuple[Rotation, np.ndarray]) -> dict[str, Any]:
    x, y, z, w = at[0].as_quat()
    return {"token": token, "rotation": [w, x, y, z], "translation": at[1].tolist()}


def nuscenes(root: Path) -> Path:
    """Two scenes of three labelled scans, each with a sweep before it, on a car that turns and moves."""
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    mounted = pose(-np.pi / 2, [0.9, 0.0, 1.8])
    tables["sensor"] = [{"token": "lidar", "channel": "LIDAR_TOP"}, {"token": "cam", "channel": "CAM_FRONT"}]
    tables["calibrated_sensor"] = [
        {**told("top", mounted), "sensor_token": "lidar"},
        {**told("front", mounted), "sensor_token": "cam"},
    ]
    kinds = {**CATEGORIES, "Van": "vehicle.truck"}
    tables["category"] = [{"token": name, "name": name} for name in kinds.values()]
    tables["instance"] = [{"token": f"i-{name}", "category_token": name} for name in kinds.values()]
    for folder in ("samples", "sweeps"):
        (root / folder / "LIDAR_TOP").mkdir(parents=True)
    for s, scene in enumerate(SCENES):
        tables["scene"].append({"token": scene, "name": scene})
        for i in range(FRAMES):
            name = f"{scene}-{i}"
            points, boxes, types = tiny.scene(name)
            car = pose(0.3 * i + s, [100.0 * s, 10.0 * i, 0.5])
            before = car[0], car[1] - car[0].apply([SHIFT, 0, 0])
            tables["sample"].append({"token": name, "scene_token": scene, "timestamp": i})
            for kind, at, key in (("samples", car, True), ("sweeps", before, False)):
                tables["ego_pose"].append(told(f"{kind}-{name}", at))
                row: dict[str, Any] = {
                    "token": f"{kind}-{name}",
                    "sample_token": name,
                    "ego_pose_token": f"{kind}-{name}",
                }
                row |= {"calibrated_sensor_token": "top", "is_key_frame": key, "timestamp": i}
                file = f"{kind}/LIDAR_TOP/{name}.pcd.bin"
                row |= {"filename": file, "prev": f"sweeps-{name}" if key else "", "next": ""}
                tables["sample_data"].append(row)
                seen = points.copy()
                if not key:  # the same world, from where the car was before
                    world = car[0].apply(mounted[0].apply(points[:, :3]) + mounted[1]) + car[1]
                    seen[:, :3] = mounted[0].inv().apply(before[0].inv().apply(world - before[1]) - mounted[1])
                table = np.column_stack([seen[:, :3], seen[:, 3] * 255, np.zeros(len(seen))])
                table.astype("<f4").tofile(root / file)
            tables["sample_data"].append(
                {
                    **tables["sample_data"][-1],
                    "token": f"c-{name}",
                    "calibrated_sensor_token": "front",
                    "is_key_frame": True,
                }
            )
            for j, (box, kind) in enumerate(zip(boxes, types, strict=True)):
                turn = car[0] * mounted[0] * Rotation.from_euler("z", box[6])
                centre = car[0].apply(mounted[0].apply(box[:3]) + mounted[1]) + car[1]
                row = {**told(f"a-{name}-{j}", (turn, centre)), "size": [box[4], box[3], box[5]]}
                tables["sample_annotation"].append({**row, "sample_token": name, "instance_token": f"i-{kinds[kind]}"})
    (root / "v1.0-mini").mkdir()
    for name, rows in tables.items():
        (root / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))
    return root


def own(root: Path, plain: bool = True) -> Path:
    """Five frames; labels in the frame of the LiDAR, or in KITTI's columns."""
    for folder in ("velodyne", "label_2"):
        (root / folder).mkdir(parents=True)
    for i in range(5):
        points, boxes, types = tiny.scene(f"{i}")
        scans.write_points(root / "velodyne" / f"{i:03d}.bin", points)
        path = root / "label_2" / f"{i:03d}.txt"
        if plain:
            rows = (f"{t} {' '.join(f'{v:.9g}' for v in b)}\n" for t, b in zip(types, boxes, strict=True))
            path.write_text("".join(rows))
        else:
            kitti.write_objects(path, kitti.boxes_to_objects(boxes, types, None, kitti.AXES, None)[0])
    return root


@functools.cache
def options(data: str) -> dict[str, Any]:
    found: dict[str, Any] = config.load(["task=pointcloud", "preset=quick", f"data={data}"])["data"]
    return found


def opened(data: str, root: Path, cache: Path, **changes: Any) -> PointCloud:
    return tiny.task(root, cache, {**options(data), "root": str(root), "train": None, "test": None, **changes})


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return nuscenes(tmp_path_factory.mktemp("nuscenes"))


def test_a_quaternion_turns_as_scipy_says():
    for rotation in Rotation.random(5, rng=np.random.default_rng(0)):
        x, y, z, w = 3 * rotation.as_quat()
        np.testing.assert_allclose(transform([w, x, y, z], [1, 2, 3])[:3, :3], rotation.as_matrix(), atol=1e-12)


def test_boxes_of_nuscenes_come_into_the_frame_of_the_lidar(world, tmp_path):
    task = opened("nuscenes", world, tmp_path)
    assert task.dataset().name == "nuscenes"
    assert dict(task.dataset().sizes) == {"train": 2, "val": 1, "test": 3}
    frames, split = task._data
    assert {name.rsplit("_", 1)[0] for name in split.test} == {MINI_VAL[0]}
    for i, name in enumerate(split.test):
        points, boxes, types = tiny.scene(f"{MINI_VAL[0]}-{i}")
        found = frames.read(name)
        np.testing.assert_allclose(found.boxes, boxes, atol=2e-3)
        np.testing.assert_allclose(found.points, points, atol=1e-4)
        objects, _ = frames.objects(name)
        assert objects.types.tolist() == [t if t != "Van" else "vehicle.truck" for t in types]
    batch = tiny.first(task)
    assert set(batch.targets["labels"].tolist()) == {0, 1, 2}


def test_earlier_sweeps_lie_on_the_scan(world, tmp_path):
    task = opened("nuscenes", world, tmp_path, sweeps=2)
    frames, split = task._data
    points = tiny.scene(f"{MINI_VAL[0]}-0")[0]
    found = frames.read(split.test[0]).points
    assert len(points) < len(found) <= 2 * len(points)
    np.testing.assert_allclose(found[-50:], points[-50:], atol=1e-3)
    assert opened("nuscenes", world, tmp_path).dataset().digest != task.dataset().digest


def test_a_category_may_be_called_otherwise(world, tmp_path):
    frames, split = opened("nuscenes", world, tmp_path, names={"vehicle.truck": "Car"})._data
    assert frames.objects(split.test[0])[0].types.tolist().count("Car") == 2
    assert set(NAMES.values()) == {"Car", "Pedestrian", "Cyclist"}


def drop(table: str) -> Callable[[Path], Any]:
    return lambda root: (root / "v1.0-mini" / f"{table}.json").unlink()


def change(table: str, **values: Any) -> Callable[[Path], Any]:
    def changed(root: Path) -> None:
        path = root / "v1.0-mini" / f"{table}.json"
        rows = json.loads(path.read_text())
        rows[0] = {k: v for k, v in {**rows[0], **values}.items() if v is not None}
        path.write_text(json.dumps(rows))

    return changed


def four_floats(root: Path) -> None:
    path = next((root / "samples" / "LIDAR_TOP").glob("scene-0061-0*"))
    np.fromfile(path, "<f4").reshape(-1, 5)[:-1, :4].tofile(path)


BAD: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "no table": (drop("ego_pose"), {}, r"ego_pose.json: no such table; nuScenes has scene, sample"),
    "no json": (
        lambda root: (root / "v1.0-mini" / "scene.json").write_text("["),
        {},
        r"scene.json: no JSON \(Expecting value",
    ),
    "no records": (
        lambda root: (root / "v1.0-mini" / "scene.json").write_text("{}"),
        {},
        r"scene.json: expected a list of records, each with its token",
    ),
    "no key": (change("sample", timestamp=None), {}, r"has no 'timestamp'; it has token, scene_token"),
    "no record": (change("sample", scene_token="x"), {}, r"scene.json: no record 'x', which another table names"),
    "no rotation": (change("ego_pose", rotation=[0, 0, 0, 0]), {}, r"rotation \[0, 0, 0, 0\].*expected w, x, y, z"),
    "four floats": (four_floats, {}, r"scene-0061-0.pcd.bin: .*5 float32 a point"),
    "no scan": (
        lambda root: (root / "samples/LIDAR_TOP/scene-0061-1.pcd.bin").unlink(),
        {},
        r"samples/LIDAR_TOP/scene-0061-1.pcd.bin: no such scan, which sample_data.json names$",
    ),
    "no sweep": (
        lambda root: (root / "sweeps/LIDAR_TOP/scene-0061-1.pcd.bin").unlink(),
        {"sweeps": 1},
        r"scene-0061-1.pcd.bin: no such scan.*; data.sweeps=0 does without earlier sweeps",
    ),
    "no version": (
        lambda root: (root / "v1.0-mini").rename(root / "mini"),
        {},
        r"none of the folders v1.0-\*; expected one, such as v1.0-mini",
    ),
    "no category": (lambda root: None, {"names": {"vehicle.trucks": "Car"}}, r"no category 'vehicle.trucks': did you"),
    "camera": (lambda root: None, {"camera": True}, r"data=nuscenes has no camera: leave data.camera=false"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_nuscenes_is_one_line(case, world, tmp_path):
    break_it, changes, line = BAD[case]
    root = shutil.copytree(world, tmp_path / "data")
    break_it(root)
    with pytest.raises(KDBenchError, match=line) as error:
        opened("nuscenes", root, tmp_path / "cache", **changes).prepare()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("plain", [True, False])
def test_own_frames_need_scans_and_labels_alone(plain, tmp_path):
    task = opened("kitti_like", own(tmp_path / "own", plain), tmp_path / "cache")
    assert task.dataset().name == "kitti_like"
    assert dict(task.dataset().sizes) == {"train": 3, "val": 1, "test": 1}
    frames, split = task._data
    for name in (*split.train, *split.test):
        points, boxes, types = tiny.scene(f"{int(name)}")
        found = frames.read(name)
        np.testing.assert_allclose(found.boxes, boxes, atol=1e-5)
        np.testing.assert_array_equal(found.points, points)
        assert frames.objects(name)[0].types.tolist() == types.tolist()


def test_own_frames_are_split_as_they_say_and_may_be_empty(tmp_path):
    root = own(tmp_path / "own")
    (root / "label_2" / "004.txt").write_text("")
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "train.txt").write_text("000\n001\n004\n")
    (root / "ImageSets" / "val.txt").write_text("003\n")
    frames, split = opened("kitti_like", root, tmp_path / "cache")._data
    assert split.test == ("003",)
    assert {*split.train, *split.val} == {"000", "001", "004"}
    assert len(frames.read("004").boxes) == 0
    (root / "ImageSets" / "val.txt").write_text("030\n")
    with pytest.raises(KDBenchError, match=r"val.txt: frame 030 has no scan: did you mean"):
        opened("kitti_like", root, tmp_path / "cache").prepare()


def label(text: str) -> Callable[[Path], Any]:
    return lambda root: (root / "label_2" / "002.txt").write_text(text)


OWN_BAD: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "class": (label("lorry 1 2 0 4 2 2 0\n"), {}, r"002.txt:1: class 'lorry' is neither of task.classes nor of KITTI"),
    "fields": (label("Car 1 2 0 4 2 2\n"), {}, r"002.txt:1: 7 fields; expected 8 \(class, x, y, z"),
    "number": (label("Car 1 2 0 4 2 2 nan\n"), {}, r"002.txt:1: 'nan' is not a finite number"),
    "no label": (lambda r: (r / "label_2" / "002.txt").unlink(), {}, r"frame 002: a scan alone; expected .*002.txt"),
    "no scan": (lambda r: (r / "velodyne" / "002.bin").unlink(), {}, r"frame 002: a label alone; expected .*002.bin"),
    "no folder": (lambda r: (r / "velodyne").rename(r / "scans"), {}, r"no folder velodyne; expected velodyne/NAME"),
    "floats": (
        lambda r: (r / "velodyne" / "002.bin").write_bytes(b"0" * 20),
        {},
        r"002.bin: 20 bytes; expected a mult",
    ),
}


@pytest.mark.parametrize("case", OWN_BAD)
def test_what_is_wrong_with_own_frames_is_one_line(case, tmp_path):
    break_it, changes, line = OWN_BAD[case]
    root = own(tmp_path / "own")
    break_it(root)
    with pytest.raises(KDBenchError, match=line) as error:
        opened("kitti_like", root, tmp_path / "cache", **changes).prepare()
    assert "\n" not in str(error.value)


def test_own_classes_have_names(tmp_path):
    root = own(tmp_path / "own")
    label("lorry 9 2 -1 4 2 2 0\ncar 12 -2 -1 4 2 2 0\n")(root)
    frames, _ = opened("kitti_like", root, tmp_path / "cache", names={"lorry": "Truck"})._data
    assert frames.objects("002")[0].types.tolist() == ["Truck", "Car"]


def test_without_a_folder_nothing_is_made_up(tmp_path):
    with pytest.raises(KDBenchError, match="^data=nuscenes needs data.root=PATH, a folder that holds nuScenes"):
        tiny.task(None, tmp_path, options("nuscenes"))


def test_names_are_given_on_the_command_line():
    given = config.load(["task=pointcloud", "data=kitti_like", "data.root=/x", "data.names={lorry: Truck}"])
    assert given["data"]["names"] == {"lorry": "Truck"}
    assert config.load(["task=pointcloud", "data=nuscenes"])["task"]["point_range"][0] == -28.16
