"""nuScenes (Caesar et al., CVPR 2020): its JSON tables and scans of five floats, without the devkit.

``<root>/v1.0-*/{scene,sample,…}.json`` and ``samples/LIDAR_TOP/*.pcd.bin``, with ``sweeps/LIDAR_TOP`` where earlier
sweeps are asked for. A table is a list of records that name each other by token. Boxes are stored in the world and go
through the pose of the car into the frame of the LiDAR: x to the right, y ahead, z up.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.base.files import read_text, reason
from kdbench.errors import KDBenchError, nearest
from tasks.pointcloud import kitti
from tasks.pointcloud.scans import read_points, write_points
from tasks.pointcloud.source import Source

SENSOR = "LIDAR_TOP"
TABLES = (
    "scene",
    "sample",
    "sample_data",
    "sample_annotation",
    "ego_pose",
    "calibrated_sensor",
    "sensor",
    "instance",
    "category",
)
#: Classes by category; a cyclist is a bicycle or a motorcycle, which is labelled with its rider.
NAMES = {
    "vehicle.car": "Car",
    "human.pedestrian.adult": "Pedestrian",
    "human.pedestrian.child": "Pedestrian",
    "human.pedestrian.construction_worker": "Pedestrian",
    "human.pedestrian.police_officer": "Pedestrian",
    "vehicle.bicycle": "Cyclist",
    "vehicle.motorcycle": "Cyclist",
}
#: Scenes of the official mini_val.
MINI_VAL = ("scene-0103", "scene-0916")
OWN_CAR = 1.0  # m around the LiDAR, where an earlier sweep sees the car itself

Record = Mapping[str, Any]


class NuScenes(Source):
    """A folder of nuScenes."""

    @cached_property
    def _folder(self) -> Path:
        found = sorted(path for path in self.root.glob("v1.0-*") if path.is_dir())
        if len(found) != 1:
            listed = ", ".join(path.name for path in found) or "none"
            raise KDBenchError(f"{self.root}: {listed} of the folders v1.0-*; expected one, such as v1.0-mini")
        return found[0]

    @cached_property
    def _tables(self) -> dict[str, dict[str, Record]]:
        return {name: self._table(name) for name in TABLES}

    def _table(self, name: str) -> dict[str, Record]:
        path = self._folder / f"{name}.json"
        try:
            rows = json.loads(read_text(path))
        except FileNotFoundError:
            raise KDBenchError(f"{path}: no such table; nuScenes has {', '.join(TABLES)}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise KDBenchError(f"{path}: cannot read this table ({reason(error)})") from None
        except ValueError as error:
            raise KDBenchError(f"{path}: no JSON ({error})") from None
        if not isinstance(rows, list) or not all(isinstance(row, dict) and "token" in row for row in rows):
            raise KDBenchError(f"{path}: expected a list of records, each with its token")
        return {row["token"]: row for row in rows}

    def _of(self, table: str, row: Record, key: str | None = None) -> Record:
        """Returns the record of a table that another one names."""
        token = self._value(row, f"{table}_token" if key is None else key)
        if token not in self._tables[table]:
            raise KDBenchError(f"{self._folder / table}.json: no record {token!r}, which another table names")
        return self._tables[table][token]

    def _value(self, row: Record, key: str) -> Any:
        if key not in row:
            raise KDBenchError(f"{self._folder}: record {row['token']!r} has no {key!r}; it has {', '.join(row)}")
        return row[key]

    @cached_property
    def _scans(self) -> dict[str, Record]:
        """The labelled scan of each sample, by the name of its frame, in order of scenes and time."""
        order: dict[str, Record] = {}
        for data in self._tables["sample_data"].values():
            if not self._value(data, "is_key_frame"):
                continue
            if self._value(self._of("sensor", self._of("calibrated_sensor", data)), "channel") == SENSOR:
                order[self._value(data, "sample_token")] = data
        if not order:
            raise KDBenchError(f"{self._folder}/sample_data.json: no labelled scan of {SENSOR}")
        named: dict[str, Record] = {}
        samples = [self._of("sample", data) for data in order.values()]
        scenes = {s["token"]: self._value(self._of("scene", s), "name") for s in samples}
        count: dict[str, int] = {}
        for sample in sorted(samples, key=lambda s: (scenes[s["token"]], self._value(s, "timestamp"))):
            scene = scenes[sample["token"]]
            count[scene] = count.get(scene, -1) + 1
            named[f"{scene}_{count[scene]:03d}"] = order[sample["token"]]
        return named

    def _before(self, data: Record) -> Iterator[Record]:
        """Yields the sweeps before a scan that are asked for, latest first; a scene begins without any."""
        for _ in range(self.sweeps):
            if not data.get("prev"):
                return
            data = self._of("sample_data", data, "prev")
            yield data

    def _path(self, data: Record) -> Path:
        path = self.root / self._value(data, "filename")
        if not path.is_file():
            hint = "" if data.get("is_key_frame") else "; data.sweeps=0 does without earlier sweeps"
            raise KDBenchError(f"{path}: no such scan, which sample_data.json names{hint}")
        return path

    def files(self) -> list[Path]:
        """Returns tables and scans."""
        scans = [data for scan in self._scans.values() for data in (scan, *self._before(scan))]
        return [*(self._folder / f"{name}.json" for name in TABLES), *dict.fromkeys(map(self._path, scans))]

    def write(self, training: Path) -> tuple[Sequence[str], Sequence[str], Mapping[str, str]]:
        """Writes scans of four floats, with earlier sweeps where asked, and labels in the frame of each."""
        self._check_names()
        labels: dict[str, list[Record]] = {}
        for row in self._tables["sample_annotation"].values():
            labels.setdefault(self._value(row, "sample_token"), []).append(row)
        for name, data in self._scans.items():
            place = self._pose(data)
            write_points(training / "velodyne" / f"{name}.bin", self._points(data, place))
            objects = self._objects(labels.get(data["sample_token"], []), place)
            kitti.write_objects(training / "label_2" / f"{name}.txt", objects)
        scenes = {name: name.rsplit("_", 1)[0] for name in self._scans}
        test = [name for name, scene in scenes.items() if scene in MINI_VAL]
        train = [name for name in scenes if name not in set(test)]
        return (train, test, {}) if train and test else ([*scenes], [], scenes)

    def _points(self, data: Record, place: np.ndarray) -> np.ndarray:
        parts = [read_points(self._path(data), self.scan)]
        for earlier in self._before(data):
            points = read_points(self._path(earlier), self.scan)
            points = points[(np.abs(points[:, :2]) >= OWN_CAR).any(axis=1)]
            moved = np.linalg.inv(place) @ self._pose(earlier)
            points[:, :3] = points[:, :3] @ moved[:3, :3].T + moved[:3, 3]
            parts.append(points)
        return np.concatenate(parts)

    def _objects(self, rows: Sequence[Record], place: np.ndarray) -> kitti.Objects:
        boxes, types = np.zeros((len(rows), 7)), []
        inverse = np.linalg.inv(place)
        for i, row in enumerate(rows):
            local = inverse @ self._matrix(row)
            width, length, height = self._value(row, "size")
            boxes[i] = [*local[:3, 3], length, width, height, np.arctan2(local[1, 0], local[0, 0])]
            category = self._value(self._of("category", self._of("instance", row)), "name")
            types.append(self.names.get(category) or NAMES.get(category, category))
        return kitti.boxes_to_objects(boxes, np.array(types, dtype=np.str_), None, kitti.AXES, None)[0]

    def _check_names(self) -> None:
        categories = [self._value(row, "name") for row in self._tables["category"].values()]
        for name in self.names:
            if name not in categories:
                raise KDBenchError(f"data.names: there is no category {name!r}: {nearest(name, categories)}")

    def _pose(self, data: Record) -> np.ndarray:
        """Returns the (4, 4) transform from the frame of a scan to the world."""
        return self._matrix(self._of("ego_pose", data)) @ self._matrix(self._of("calibrated_sensor", data))

    def _matrix(self, row: Record) -> np.ndarray:
        try:
            found = transform(self._value(row, "rotation"), self._value(row, "translation"))
        except (TypeError, ValueError):
            found = None
        if found is None or not np.isfinite(found).all():
            given = f"rotation {row.get('rotation')}, translation {row.get('translation')}"
            raise KDBenchError(f"{self._folder}: record {row['token']!r}: {given}; expected w, x, y, z and x, y, z")
        return found


def transform(rotation: Sequence[float], translation: Sequence[float]) -> np.ndarray:
    """Returns the (4, 4) transform of a quaternion w, x, y, z, of any length but zero, and a translation."""
    w, x, y, z = np.asarray(rotation, dtype=np.float64)
    length = w * w + x * x + y * y + z * z
    found = np.eye(4)
    if length == 0:
        raise ValueError("a quaternion of zeros is no rotation")
    twice = 2 / length
    found[:3, :3] = np.eye(3) - twice * np.array(
        [
            [y * y + z * z, w * z - x * y, -w * y - x * z],
            [-w * z - x * y, x * x + z * z, w * x - y * z],
            [w * y - x * z, -w * x - y * z, x * x + y * y],
        ]
    )
    found[:3, 3] = np.asarray(translation, dtype=np.float64)
    return found
