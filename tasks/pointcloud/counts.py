"""What the labels of each split hold for a detector, and why they hold nothing where they do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from kdbench.task import Counts
from tasks.pointcloud.frames import Contents, within
from tasks.pointcloud.kitti import MIN_HEIGHT

#: Of :func:`~tasks.pointcloud.kitti.difficulty`; the primary metric is that of moderate objects.
MODERATE = 1
_LOW = min(MIN_HEIGHT)


def count(
    contents: Contents, names: Sequence[str], classes: Sequence[str], point_range: Sequence[float], camera: bool
) -> Counts:
    """Counts the objects of a split.

    Args:
        contents: The objects of all frames.
        names: Frames of the split.
        classes: Classes that are detected.
        point_range: x, y, z minimum, then maximum, metres.
        camera: Whether KITTI's rules say what is scored; else the points.

    Returns:
        ``labels``: objects centred in the range; none where not one of them holds a point. ``scored``: moderate or easy
        ones; none where not one of them can be found as KITTI counts it.
    """
    contents = contents.select(np.isin(contents.frames, list(names)))
    own = contents.select(np.isin(contents.types, list(classes)))
    inside = within(own.boxes, np.asarray(point_range[:3]), np.asarray(point_range[3:]))
    moderate = (own.difficulty >= 0) & (own.difficulty <= MODERATE)
    if not camera:
        moderate &= inside
    reason = _reason(contents, own, inside, moderate, camera)
    if not own.points[inside].any():
        inside = np.zeros_like(inside)
    if not (own.projected[moderate] >= _LOW).any():
        moderate = np.zeros_like(moderate)
    labels, scored = ({name: int((own.types[kept] == name).sum()) for name in classes} for kept in (inside, moderate))
    return Counts(len(names), labels, scored, reason, "objects")


def _reason(contents: Contents, own: Contents, inside: np.ndarray, moderate: np.ndarray, camera: bool) -> str:
    if not len(contents):
        return "its labels hold no box, DontCare left out"
    if not len(own):
        named = ", ".join(f"{name} ({number})" for name, number in Counter(contents.types.tolist()).most_common(5))
        return f"its labels name {named}; set task.classes, or rename them"
    if not inside.any():
        return f"all {len(own)} objects lie outside task.point_range"
    if not own.points[inside].any():
        where = "in the camera's view " if camera else ""
        return f"no object of {int(inside.sum())} holds a point {where}(are labels, calibration, scans of one frame?)"
    return _unscored(own, moderate, camera)


def _unscored(own: Contents, moderate: np.ndarray, camera: bool) -> str:
    if not camera:
        return "" if moderate.any() else f"none of {len(own)} objects in the range holds more than five points"
    if not moderate.any():
        if not (own.height > _LOW).any():
            boxes = "have no 2-D box" if not (own.height > 0).any() else f"have a 2-D box lower than {_LOW:g} px"
            return f"all {len(own)} objects {boxes}, which KITTI's rules ignore; data.camera=false scores by points"
        return f"all {len(own)} objects are too small, occluded or truncated for KITTI's moderate level"
    if not (own.projected[moderate] >= _LOW).any():
        return f"P2 projects none of {int(moderate.sum())} objects to {_LOW:g} px: is it that of the camera?"
    return ""
