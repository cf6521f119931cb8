"""People's own frames: a folder of scans and one of labels, without calibrations, images or DontCare.

``velodyne/NAME.bin`` and ``label_2/NAME.txt`` (or ``labels/``), below ``training/`` or not. A line of a label is
KITTI's 15 columns, read with the camera's axes at the place of the LiDAR, or 8: class, then x, y, z of the centre,
length, width, height in metres and yaw in radians, counter-clockwise from x, all in the frame of the LiDAR.
``ImageSets/train.txt`` and ``val.txt`` split the frames; without them a fifth is test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kdbench.base.files import listed, read_text, reason
from kdbench.errors import KDBenchError, nearest
from tasks.pointcloud import kitti
from tasks.pointcloud.source import Source

#: Columns of a label in the frame of the LiDAR.
PLAIN = ("class", "x", "y", "z", "length", "width", "height", "yaw")


class OwnFrames(Source):
    """A folder of people's own frames."""

    def _folders(self) -> tuple[Path, Path]:
        base = self.root / "training" if (self.root / "training").is_dir() else self.root
        labels = next((base / name for name in ("label_2", "labels") if (base / name).is_dir()), None)
        if labels is None or not (base / "velodyne").is_dir():
            lacking = "velodyne" if labels is not None else "label_2"
            raise KDBenchError(f"{base}: no folder {lacking}; expected velodyne/NAME.bin and label_2/NAME.txt")
        return base / "velodyne", labels

    def _frames(self) -> list[str]:
        scans, labels = self._folders()
        held, labelled = (
            {Path(name).stem for name in listed(folder) if name.endswith(suffix)}
            for folder, suffix in ((scans, ".bin"), (labels, ".txt"))
        )
        for name in sorted(held ^ labelled):
            found, lacks = ("scan", labels / f"{name}.txt") if name in held else ("label", scans / f"{name}.bin")
            raise KDBenchError(f"frame {name}: a {found} alone; expected {lacks} (an empty label where nothing is)")
        if not held:
            raise KDBenchError(f"{scans}: no scan; expected NAME.bin, {self.scan}")
        return sorted(held)

    def files(self) -> list[Path]:
        """Returns scans, labels and splits."""
        scans, labels = self._folders()
        frames = self._frames()
        sets = [path for path in (self.root / "ImageSets" / f"{s}.txt" for s in ("train", "val")) if path.is_file()]
        return [*(scans / f"{n}.bin" for n in frames), *(labels / f"{n}.txt" for n in frames), *sets]

    def write(self, training: Path) -> tuple[Sequence[str], Sequence[str], Mapping[str, str]]:
        """Links scans and writes labels; frames keep their names."""
        (scans, labels), frames = self._folders(), self._frames()
        for name in frames:
            link = training / "velodyne" / f"{name}.bin"
            link.unlink(missing_ok=True)  # an interrupted maker's
            link.symlink_to((scans / f"{name}.bin").absolute())
            kitti.write_objects(training / "label_2" / f"{name}.txt", self._objects(labels / f"{name}.txt"))
        sets = [self.root / "ImageSets" / f"{name}.txt" for name in ("train", "val")]
        if not any(path.is_file() for path in sets):
            return frames, (), {}
        parts = [kitti.read_frames(path) for path in sets]
        for path, part in zip(sets, parts, strict=True):
            unknown = next((name for name in part if name not in frames), None)
            if unknown is not None:
                raise KDBenchError(f"{path}: frame {unknown} has no scan: {nearest(unknown, frames)}")
        return parts[0], parts[1], {}

    def _objects(self, path: Path) -> kitti.Objects:
        try:
            rows = [(n, line.split()) for n, line in enumerate(read_text(path).splitlines(), start=1) if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise KDBenchError(f"{path}: cannot read this label ({reason(error)})") from None
        widths = {len(tokens) for _, tokens in rows}
        for number, tokens in rows:
            if len(tokens) not in (len(PLAIN), 15) or len(widths) > 1:
                given = f"{path}:{number}: {len(tokens)} fields"
                raise KDBenchError(f"{given}; expected 8 ({', '.join(PLAIN)}), or KITTI's 15, the same in all lines")
        types = [self._known(tokens[0], path, number) for number, tokens in rows]
        if widths == {len(PLAIN)}:
            boxes = np.array([[_number(t, path, n) for t in tokens[1:]] for n, tokens in rows])
            found, _ = kitti.boxes_to_objects(boxes, np.array(types), None, kitti.AXES, None)
            return found
        objects = kitti.read_objects(path)
        own = kitti.Objects(**{**vars(objects), "types": np.array(types, dtype=np.str_)})
        return own.select(own.types != "DontCare")

    def _known(self, name: str, path: Path, number: int) -> str:
        """Returns the class of an object, which must be one that is known."""
        known = {n.lower(): n for n in (*kitti.TYPES, *self.classes)}
        meant = self.names.get(name) or known.get(name.lower())
        if meant is None:
            raise KDBenchError(
                f"{path}:{number}: class {name!r} is neither of task.classes nor of KITTI: "
                f"{nearest(name, known.values())}; or say what it is: data.names={{{name}:Car}} (Misc: not detected)"
            )
        return meant


def _number(token: str, path: Path, line: int) -> float:
    try:
        value = float(token)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise KDBenchError(f"{path}:{line}: {token!r} is not a finite number; expected {', '.join(PLAIN)}")
    return value
