"""KITTI's 3-D object format (Geiger et al., CVPR 2012): labels, detections, calibration and splits.

Folder layout: ``training/{velodyne,label_2,calib[,image_2]}/<frame>`` and ``ImageSets/<split>.txt``. Camera frame:
x right, y down, z ahead; LiDAR frame: x ahead, y left, z up. Lengths in metres, angles in radians.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.base.files import listed, read_text, reason
from kdbench.errors import KDBenchError

DEFAULT_IMAGE_SIZE = (1242, 375)
IMAGE_SUFFIXES = tuple(
    case
    for suffix in (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
    for case in (suffix, suffix.upper())
)
OFF_CENTRE = 0.15  # share of the sides by which a camera's centre may lie off the middle of its image
TYPES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc", "DontCare")
MIN_HEIGHT, MAX_OCCLUSION, MAX_TRUNCATION = (40.0, 25.0, 25.0), (0, 1, 2), (0.15, 0.3, 0.5)  # easy, moderate, hard
NO_ANGLE = -10  # alpha of what has none
WHOLE = (0.0, 0.0, 100.0, 100.0)  # px
NEAR = 0.1  # m; what lies nearer to the camera plane is cut off before projection

_SPELLING = {name.lower(): name for name in TYPES}
_CORNERS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
_EDGES = np.array([(a, b) for a in range(8) for b in range(a + 1, 8) if np.abs(_CORNERS[a] - _CORNERS[b]).sum() == 1])


@dataclass(frozen=True)
class Objects:
    """Labels or detections of one frame, one row per object, in the columns of KITTI's text format.

    Attributes:
        types: (N,) class names; KITTI's own are spelt as KITTI does, whatever their case in a file.
        truncated: (N,) share of the object outside the image, 0 to 1; -1 unknown.
        occluded: (N,) 0 visible, 1 partly, 2 largely occluded, 3 unknown; -1 for DontCare and detections.
        alpha: (N,) observation angle.
        bbox: (N, 4) left, top, right, bottom in pixels.
        dimensions: (N, 3) height, width, length.
        location: (N, 3) bottom centre in the camera frame.
        rotation_y: (N,) rotation about the camera's y axis.
        score: (N,) confidence, detections only.
    """

    types: np.ndarray
    truncated: np.ndarray
    occluded: np.ndarray
    alpha: np.ndarray
    bbox: np.ndarray
    dimensions: np.ndarray
    location: np.ndarray
    rotation_y: np.ndarray
    score: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.types)

    def select(self, which: np.ndarray) -> Objects:
        """Returns the rows that a boolean mask or an index array names."""
        columns = ((column.name, getattr(self, column.name)) for column in fields(self))
        picked: dict[str, Any] = {name: None if column is None else column[which] for name, column in columns}
        return Objects(**picked)

    @staticmethod
    def empty(scored: bool = False) -> Objects:
        """Returns no objects, with a score column where ``scored``."""
        return _from_table(np.empty(0, dtype=np.str_), np.empty((0, 15 if scored else 14)))


def _from_table(types: np.ndarray, table: np.ndarray) -> Objects:
    return Objects(
        types=types,
        truncated=table[:, 0],
        occluded=table[:, 1].astype(np.int64),
        alpha=table[:, 2],
        bbox=table[:, 3:7],
        dimensions=table[:, 7:10],
        location=table[:, 10:13],
        rotation_y=table[:, 13],
        score=table[:, 14] if table.shape[1] == 15 else None,
    )


@dataclass
class Oddities:
    """Rows that can be read and hardly be meant: how many of each kind, and where the first is."""

    found: dict[str, tuple[int, str]] = field(default_factory=dict)

    def note(self, path: Path, lines: Sequence[int], objects: Objects) -> None:
        """Looks through the rows of a file, ``lines`` being their numbers there."""
        real = objects.types != "DontCare"
        left, top, right, bottom = objects.bbox.T
        kinds = {
            "a size that is not above 0 (height, width, length)": (objects.dimensions <= 0).any(axis=1),
            "a 2-D box whose right or bottom is not beyond its left or top": (right <= left) | (bottom <= top),
            "a rotation beyond a full turn (degrees? KITTI's are radians)": np.abs(objects.rotation_y) > 2 * np.pi,
            "an alpha beyond a full turn (degrees? KITTI's are radians)": (np.abs(objects.alpha) > 2 * np.pi)
            & (objects.alpha != NO_ANGLE),
        }
        for kind, mask in kinds.items():
            (rows,) = (mask & real).nonzero()
            if len(rows):
                count, first = self.found.get(kind, (0, f"{path}:{lines[rows[0]]}"))
                self.found[kind] = count + len(rows), first

    def lines(self) -> list[str]:
        """Returns a line for each kind."""
        return [
            f"{first}: {kind}" + (f", and {count - 1} further such" if count > 1 else "")
            for kind, (count, first) in self.found.items()
        ]


def _read_text(path: Path, what: str) -> str:
    try:
        return read_text(path)
    except FileNotFoundError:
        raise KDBenchError(f"{path}: no such {what} file; expected a file in KITTI's layout") from None
    except (OSError, UnicodeDecodeError) as error:
        found = f"{path}: cannot read this {what} file ({reason(error)})"
        raise KDBenchError(f"{found}; expected KITTI's text format") from None


def _is_number(token: str) -> bool:
    try:
        return bool(np.isfinite(float(token)))
    except ValueError:
        return False


def read_objects(path: Path | str, scored: bool = False, odd: Oddities | None = None) -> Objects:
    """Reads a label file (15 columns) or, where ``scored``, a detection file (16 columns).

    Args:
        path: The file.
        scored: Whether it holds detections.
        odd: Takes note of rows that can be read and hardly be meant.

    Raises:
        KDBenchError: naming file and line, for a missing file, a wrong number of fields, or a value that is not a
            finite number.
    """
    path = Path(path)
    expected = 16 if scored else 15
    numbered = [(number, line.split()) for number, line in enumerate(_read_text(path, "label").splitlines(), start=1)]
    numbered = [(number, tokens) for number, tokens in numbered if tokens]
    for number, tokens in numbered:
        if len(tokens) != expected:
            kind = "a detection (type, 14 values, score)" if scored else "a label (type, 14 values)"
            raise KDBenchError(f"{path}:{number}: {len(tokens)} fields; expected {expected} for {kind}")
    if not numbered:
        return Objects.empty(scored)
    tokens_of_file = np.array([tokens for _, tokens in numbered], dtype=np.str_)
    try:
        table = tokens_of_file[:, 1:].astype(np.float64)
        finite = bool(np.isfinite(table).all())
    except ValueError:
        finite = False
    if not finite:
        number, token = next((n, t) for n, tokens in numbered for t in tokens[1:] if not _is_number(t))
        raise KDBenchError(f"{path}:{number}: {token!r} is not a finite number; expected KITTI's text format")
    types = [_SPELLING.get(name.lower(), name) for name in tokens_of_file[:, 0].tolist()]
    objects = _from_table(np.array(types, dtype=np.str_), table)
    if odd is not None:
        odd.note(path, [number for number, _ in numbered], objects)
    return objects


def write_objects(path: Path | str, objects: Objects) -> None:
    """Writes labels (15 columns) or, where ``objects`` have a score, detections (16 columns)."""
    columns = [objects.truncated, objects.occluded, objects.alpha, *objects.bbox.T, *objects.dimensions.T]
    columns += [*objects.location.T, objects.rotation_y, *([] if objects.score is None else [objects.score])]
    rows = zip(objects.types.tolist(), *(column.tolist() for column in columns), strict=True)
    lines = [" ".join([row[0], *(f"{value:.10g}" for value in row[1:])]) + "\n" for row in rows]
    Path(path).write_text("".join(lines), encoding="utf-8")


@dataclass(frozen=True)
class Calibration:
    """How the left colour camera and the LiDAR see each other.

    Attributes:
        p2: (3, 4) projection of rectified camera coordinates into the left colour image.
        r0: (3, 3) rectifying rotation.
        velo_to_cam: (3, 4) LiDAR to unrectified camera coordinates.
    """

    p2: np.ndarray
    r0: np.ndarray
    velo_to_cam: np.ndarray

    @property
    def lidar_to_rectified(self) -> np.ndarray:
        """(3, 4) rigid transform from LiDAR to rectified camera coordinates."""
        return self.r0 @ self.velo_to_cam

    def lidar_to_camera(self, xyz: np.ndarray) -> np.ndarray:
        """Takes (N, 3) LiDAR coordinates to (N, 3) rectified camera coordinates."""
        transform = self.lidar_to_rectified
        return np.asarray(xyz, dtype=np.float64) @ transform[:, :3].T + transform[:, 3]

    def camera_to_lidar(self, xyz: np.ndarray) -> np.ndarray:
        """Takes (N, 3) rectified camera coordinates to (N, 3) LiDAR coordinates."""
        transform = self.lidar_to_rectified
        shifted = np.asarray(xyz, dtype=np.float64) - transform[:, 3]
        return np.linalg.solve(transform[:, :3], shifted.T).T

    def project(self, xyz_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Projects (N, 3) camera coordinates to (N, 2) pixels and (N,) depth; pixels mean nothing at depth <= 0."""
        homogeneous = np.asarray(xyz_camera, dtype=np.float64) @ self.p2[:, :3].T + self.p2[:, 3]
        depth = homogeneous[:, 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            return homogeneous[:, :2] / depth[:, None], depth


_MATRICES = {"P2": (3, 4), "R0_rect": (3, 3), "Tr_velo_to_cam": (3, 4)}
_KEYS = {key.lower(): key for key in _MATRICES}


#: Of a LiDAR without a camera: the camera's axes (right, down, ahead) at the place of the LiDAR.
AXES = Calibration(np.eye(3, 4), np.eye(3), np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]]))


def read_calibration(path: Path | str, camera: bool = True) -> Calibration:
    """Reads a KITTI calibration file.

    Args:
        path: The file.
        camera: Whether there is a camera; without one P2 is not read.

    Raises:
        KDBenchError: naming file and line or key, for a missing file, a missing matrix, a wrong number of values, a
            value that is not a finite number, a rotation that cannot be inverted, or a P2 that projects nothing.
    """
    path = Path(path)
    needed = [key for key in _MATRICES if camera or key != "P2"]
    found: dict[str, np.ndarray] = {}
    for number, line in enumerate(_read_text(path, "calibration").splitlines(), start=1):
        name, _, values = line.partition(":")
        key = _KEYS.get(name.strip().lower())
        if key not in needed:
            continue
        shape, tokens = _MATRICES[key], values.split()
        if len(tokens) != shape[0] * shape[1]:
            raise KDBenchError(f"{path}:{number}: {key} has {len(tokens)} values; expected {shape[0] * shape[1]}")
        wrong = next((token for token in tokens if not _is_number(token)), None)
        if wrong is not None:
            raise KDBenchError(f"{path}:{number}: {key} holds {wrong!r}; expected finite numbers")
        found[key] = np.array(tokens, dtype=np.float64).reshape(shape)
    missing = [key for key in needed if key not in found]
    if missing:
        raise KDBenchError(f"{path}: no {', '.join(missing)}; a KITTI calibration file holds {', '.join(_MATRICES)}")
    calibration = Calibration(found.get("P2", AXES.p2), found["R0_rect"], found["Tr_velo_to_cam"])
    if np.linalg.matrix_rank(calibration.p2[:, :3]) < 3:
        fix = "give that of the camera, or data.camera=false for data without one"
        raise KDBenchError(f"{path}: P2 projects nothing, its rows are {calibration.p2.tolist()}; {fix}")
    if abs(np.linalg.det(calibration.lidar_to_rectified[:, :3])) < 0.5:
        raise KDBenchError(f"{path}: R0_rect · Tr_velo_to_cam is not a rotation; expected a rigid transform")
    return calibration


def write_calibration(path: Path | str, calibration: Calibration) -> None:
    """Writes a KITTI calibration file; P0, P1 and P3 repeat P2, Tr_imu_to_velo is the identity."""
    p2 = calibration.p2
    matrices = {"P0": p2, "P1": p2, "P2": p2, "P3": p2, "R0_rect": calibration.r0}
    matrices |= {"Tr_velo_to_cam": calibration.velo_to_cam, "Tr_imu_to_velo": np.eye(4)[:3]}
    lines = [f"{key}: " + " ".join(f"{value:.12e}" for value in m.ravel()) + "\n" for key, m in matrices.items()]
    Path(path).write_text("".join(lines), encoding="utf-8")


def image_size(
    folder: Path | str, frame: str, calibration: Calibration, given: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Returns width and height of a frame's image, in pixels; of an absent one those given, else KITTI's usual ones.

    Args:
        folder: Of the images (``image_2``), of any common suffix.
        frame: Name of the frame.
        calibration: Says by P2 whether KITTI's size can be that of an absent image.
        given: Width and height of absent images.

    Raises:
        KDBenchError: The image cannot be read, or it is absent and P2 is of a camera of another size.
    """
    found = measured(folder, frame) or given
    if found is not None:
        return found
    u, v = calibration.p2[:2, 2] / calibration.p2[2, 2] if calibration.p2[2, 2] else (0.0, 0.0)
    width, height = DEFAULT_IMAGE_SIZE
    if abs(u - width / 2) > OFF_CENTRE * width or abs(v - height / 2) > OFF_CENTRE * height:
        raise KDBenchError(
            f"{Path(folder) / frame}.png: there is no image, and the centre ({u:.0f}, {v:.0f}) of P2 is not that of "
            f"KITTI's {width} x {height}: put the image there (png, jpg), or set data.image_size=[WIDTH,HEIGHT]"
        )
    return DEFAULT_IMAGE_SIZE


def measured(folder: Path | str, frame: str) -> tuple[int, int] | None:
    """Returns width and height of a frame's image, None where there is none.

    Raises:
        KDBenchError: It cannot be read.
    """
    names = (Path(folder) / f"{frame}{suffix}" for suffix in IMAGE_SUFFIXES)
    path = next((name for name in names if os.path.lexists(name)), None)
    if path is None:
        return None
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.size
    except UnidentifiedImageError:
        raise KDBenchError(f"{path}: not a readable image; expected a whole png or jpg") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise KDBenchError(f"{path}: not a readable image ({why}); expected a whole png or jpg") from None


def in_camera_view(points: np.ndarray, calibration: Calibration, image_size: tuple[int, int]) -> np.ndarray:
    """Returns the (N,) mask of the LiDAR points (N, 3 or more columns) that project into the image."""
    transform = (calibration.p2 @ np.vstack([calibration.lidar_to_rectified, [0, 0, 0, 1]])).astype(np.float32)
    u, v, depth = (np.asarray(points[:, :3], dtype=np.float32) @ transform[:, :3].T + transform[:, 3]).T
    width, height = image_size
    # Compared without the division: 0 <= u/depth < width wherever depth > 0.
    return (depth > 0) & (u >= 0) & (u < width * depth) & (v >= 0) & (v < height * depth)


def wrap_angle(angle: np.ndarray) -> np.ndarray:
    """Wraps angles into [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def objects_to_boxes(objects: Objects, calibration: Calibration) -> np.ndarray:
    """Returns the objects as (N, 7) LiDAR boxes: x, y, z of the centre, length, width, height, yaw.

    Yaw is counter-clockwise about +z, 0 along +x. DontCare rows have no geometry: leave them out beforehand.
    """
    height, width, length = objects.dimensions.T
    centre = calibration.camera_to_lidar(objects.location)
    centre[:, 2] += height / 2
    yaw = wrap_angle(-objects.rotation_y - np.pi / 2)
    return np.column_stack([centre, length, width, height, yaw])


def project_boxes(boxes: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Returns the (N, 4) pixel rectangles (not clipped to the image) around (N, 7) LiDAR boxes.

    The part of a box behind the camera is cut off first; a box wholly behind it gives NaN.
    """
    yaw = boxes[:, 6:7]
    x, y, z = (_CORNERS * boxes[:, None, 3:6]).transpose(2, 0, 1)
    rotated = np.stack([x * np.cos(yaw) - y * np.sin(yaw), x * np.sin(yaw) + y * np.cos(yaw), z], axis=-1)
    corners = calibration.lidar_to_camera((rotated + boxes[:, None, :3]).reshape(-1, 3)).reshape(-1, 8, 3)
    start, end = corners[:, _EDGES[:, 0]], corners[:, _EDGES[:, 1]]
    ahead, behind = start[..., 2:] - NEAR, end[..., 2:] - NEAR
    crosses = ahead * behind < 0
    share = np.divide(ahead, ahead - behind, out=np.zeros_like(ahead), where=crosses)
    outline = np.concatenate([corners, start + share * (end - start)], axis=1)
    valid = np.concatenate([corners[..., 2] >= NEAR, crosses[..., 0]], axis=1)
    pixels = calibration.project(outline.reshape(-1, 3))[0].reshape(*outline.shape[:2], 2)
    low = np.where(valid[..., None], pixels, np.inf).min(axis=1, initial=np.inf)
    high = np.where(valid[..., None], pixels, -np.inf).max(axis=1, initial=-np.inf)
    rectangles = np.concatenate([low, high], axis=1)
    rectangles[~valid.any(axis=1)] = np.nan
    return rectangles


def clip_to_image(rectangles: np.ndarray, image_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Clips (N, 4) pixel rectangles to the image; returns them and the (N,) share of their area that was cut off.

    The share is 1 for a rectangle outside the image and for NaN.
    """
    width, height = image_size
    clipped = np.clip(rectangles, 0, [width - 1, height - 1, width - 1, height - 1])
    area, whole = (np.prod(r[:, 2:] - r[:, :2], axis=1) for r in (clipped, rectangles))
    left = np.divide(area, whole, out=np.zeros_like(area), where=whole > 0)
    return clipped, np.clip(1 - left, 0, 1)


def boxes_to_objects(
    boxes: np.ndarray,
    types: np.ndarray,
    scores: np.ndarray | None,
    calibration: Calibration,
    image_size: tuple[int, int] | None,
) -> tuple[Objects, np.ndarray]:
    """Turns (N, 7) LiDAR boxes into KITTI rows; the inverse of :func:`objects_to_boxes`.

    ``bbox`` is the projection of the box clipped to the image; ``truncated`` and ``occluded`` are -1 (unknown). Without
    an image (None) every ``bbox`` is :data:`WHOLE`, which no rule of the evaluation ignores.

    Returns:
        The objects that project into the image, all without one, and their (M,) index among the boxes.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 7)
    kept: np.ndarray = np.arange(len(boxes))
    if image_size is None:
        bbox = np.tile(WHOLE, (len(boxes), 1))
    else:
        bbox, cut = clip_to_image(project_boxes(boxes, calibration), image_size)
        kept = np.flatnonzero(cut < 1)
        boxes, bbox = boxes[kept], bbox[kept]
    bottom = boxes[:, :3] - np.column_stack([np.zeros((len(boxes), 2)), boxes[:, 5] / 2])
    location = calibration.lidar_to_camera(bottom)
    rotation_y = wrap_angle(-boxes[:, 6] - np.pi / 2)
    objects = Objects(
        types=np.asarray(types, dtype=np.str_)[kept],
        truncated=np.full(len(kept), -1.0),
        occluded=np.full(len(kept), -1, dtype=np.int64),
        alpha=wrap_angle(rotation_y - np.arctan2(location[:, 0], location[:, 2])),
        bbox=bbox,
        dimensions=boxes[:, [5, 4, 3]],
        location=location,
        rotation_y=rotation_y,
        score=None if scores is None else np.asarray(scores, dtype=np.float64)[kept],
    )
    return objects, kept


def difficulty(objects: Objects) -> np.ndarray:
    """Returns KITTI's difficulty of each object: 0 easy, 1 moderate, 2 hard, -1 none (ignored in evaluation).

    An object belongs to the easiest level it qualifies for; a level's ground truths are all objects from 0 to it.
    """
    height = (objects.bbox[:, 3] - objects.bbox[:, 1])[:, None]
    fits = height > np.array(MIN_HEIGHT)
    fits &= objects.occluded[:, None] <= np.array(MAX_OCCLUSION)
    fits &= objects.truncated[:, None] <= np.array(MAX_TRUNCATION)
    fits &= (objects.types != "DontCare")[:, None]
    return np.where(fits.any(axis=1), fits.argmax(axis=1), -1)


def read_frames(path: Path | str) -> list[str]:
    """Reads a list of frames, such as a file of ``ImageSets``.

    Raises:
        KDBenchError: It cannot be read, names none, or a name is malformed or repeated.
    """
    path = Path(path)
    frames = _read_text(path, "split").split()
    if not frames:
        raise KDBenchError(f"{path}: names no frame; expected one frame (such as 000000) per line")
    malformed = next((frame for frame in frames if not re.fullmatch(r"[\w-]+", frame)), None)
    if malformed is not None:
        raise KDBenchError(f"{path}: {malformed!r} is not a frame; expected a name such as 000000 per line")
    repeated, times = Counter(frames).most_common(1)[0]
    if times > 1:
        raise KDBenchError(f"{path}: frame {repeated} is named {times} times; expected each once")
    return frames


def read_split(root: Path | str, split: str, camera: bool = True) -> list[str]:
    """Returns the frames of ``ImageSets/<split>.txt`` after checking that each has its scan, calibration and label.

    Without a camera a frame needs no calibration.

    Raises:
        KDBenchError: The split file is absent, one of :func:`read_frames`, or a frame lacks a file.
    """
    root = Path(root)
    path = root / "ImageSets" / f"{split}.txt"
    folders = {name: listed(root / "training" / name) for name in ("velodyne", "label_2", "calib")}
    if path.name not in (have := listed(path.parent)):
        named = ", ".join(sorted(Path(name).stem for name in have if name.endswith(".txt"))) or "nothing"
        raise KDBenchError(f"{path}: no such split; ImageSets holds {named}; is data.root a folder in KITTI's layout?")
    frames = read_frames(path)
    for frame in frames:
        if f"{frame}.bin" not in folders["velodyne"]:
            what = "label without scan" if f"{frame}.txt" in folders["label_2"] else "no scan"
            raise KDBenchError(f"frame {frame} of {path}: {what}; expected training/velodyne/{frame}.bin")
        if f"{frame}.txt" not in folders["label_2"]:
            raise KDBenchError(f"frame {frame} of {path}: scan without label; expected training/label_2/{frame}.txt")
        if camera and f"{frame}.txt" not in folders["calib"]:
            raise KDBenchError(f"frame {frame} of {path}: no calibration; expected training/calib/{frame}.txt")
    return frames
