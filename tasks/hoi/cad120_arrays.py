"""The arrays that CAD-120's segment features are read as: one table for what reads, checks and makes them.

Axes are ``v`` (videos), ``t`` (segments of the longest video) and ``o`` (objects of the fullest one); what is beyond a
video's own is zero, of labels and frames -1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

#: Largest ordinal; as many thresholds lie below a value.
LEVELS = 10


@dataclass(frozen=True)
class Array:
    """One of them.

    Attributes:
        axes: Its axes, of ``v``, ``t`` and ``o``; none of the names of classes.
        width: Ordinals of a node or pair; 0 where there is one value for each of the axes.
        dtype: Of its values.
        fill: What stands where there is nothing.
    """

    axes: str
    width: int = 0
    dtype: type = np.uint8
    fill: int = 0

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Returns its shape for the length of each axis."""
        return (*(sizes[axis] for axis in self.axes), *([self.width] if self.width else []))


ARRAYS = {
    "node_h": Array("vt", 63),
    "node_o": Array("vto", 18),
    "edge_ho": Array("vto", 40),
    "edge_oo": Array("vtoo", 20),
    "temp_h": Array("vt", 16),
    "temp_o": Array("vto", 4),
    "has_temp": Array("vt", dtype=np.bool_),
    "seg_mask": Array("vt", dtype=np.bool_),
    "obj_mask": Array("vto", dtype=np.bool_),
    "y_sub": Array("vt", dtype=np.int8, fill=-1),
    "y_aff": Array("vto", dtype=np.int8, fill=-1),
    "frame_start": Array("vt", dtype=np.int32, fill=-1),
    "frame_end": Array("vt", dtype=np.int32, fill=-1),
    "video_id": Array("v", dtype=np.str_),
    "subject": Array("v", dtype=np.int8),
    "activity": Array("v", dtype=np.int8),
    "activity_names": Array("", dtype=np.str_),
    "sub_names": Array("", dtype=np.str_),
    "aff_names": Array("", dtype=np.str_),
}


def empty(videos: int, segments: int, objects: int) -> dict[str, np.ndarray]:
    """Returns the arrays that have an entry for each segment, with nothing in them."""
    sizes = {"v": videos, "t": segments, "o": objects}
    return {name: np.full(a.shape(sizes), a.fill, a.dtype) for name, a in ARRAYS.items() if a.axes.startswith("vt")}
