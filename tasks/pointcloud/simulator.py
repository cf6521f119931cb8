"""Writes simulated street scans in KITTI's layout, for runs without a download."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from kdbench.base import rng
from kdbench.errors import KDBenchError, nearest
from tasks.parallel import mapped
from tasks.pointcloud import kitti
from tasks.pointcloud.scans import write_points
from tasks.pointcloud.scene import DENSITY, build
from tasks.pointcloud.sensor import scan

MAX_LABEL_DISTANCE = 70.0  # m; KITTI's annotators leave what is further away as DontCare
VISIBLE = (0.8, 0.4, 0.1)  # least visible share at occlusion 0, 1 and 2


def calibration() -> kitti.Calibration:
    """Returns the calibration of the simulated car, close to KITTI's: slightly turned axes, camera ahead and below."""
    p2 = np.array([[721.54, 0, 609.56, 44.857], [0, 721.54, 172.85, 0.2164], [0, 0, 1, 0.002746]])
    axes = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])  # LiDAR ahead, left, up -> camera right, down, ahead
    mounting = Rotation.from_euler("xyz", [-0.0148, -0.0075, -0.0006]).as_matrix() @ axes
    rectifying = Rotation.from_euler("xyz", [0.0043, -0.0074, -0.0098]).as_matrix()
    return kitti.Calibration(p2, rectifying, np.column_stack([mounting, [-0.004, -0.076, -0.272]]))


@dataclass(frozen=True)
class Frame:
    """One simulated frame: (N, 4) float32 points and the labels of what the camera sees."""

    points: np.ndarray
    objects: kitti.Objects


def _labels(boxes: np.ndarray, types: np.ndarray, returns: np.ndarray, visible: np.ndarray) -> kitti.Objects:
    """Returns KITTI's labels, to two decimals, of the boxes that show in the image."""
    camera, size = calibration(), kitti.DEFAULT_IMAGE_SIZE
    objects, kept = kitti.boxes_to_objects(boxes, types, None, camera, size)
    cut = kitti.clip_to_image(kitti.project_boxes(boxes[kept], camera), size)[1]
    occluded = (visible[kept, None] <= np.array(VISIBLE)).sum(axis=1)
    unseen = (returns[kept] == 0) | (np.linalg.norm(boxes[kept, :2], axis=1) > MAX_LABEL_DISTANCE) | (cut > 0.95)
    rows = kitti.Objects(
        types=np.where(unseen, "DontCare", objects.types),
        truncated=np.where(unseen, -1.0, cut.round(2)),
        occluded=np.where(unseen, -1, occluded),
        alpha=np.where(unseen, -10.0, objects.alpha.round(2)),
        bbox=objects.bbox.round(2),
        dimensions=np.where(unseen[:, None], -1.0, objects.dimensions.round(2)),
        location=np.where(unseen[:, None], -1000.0, objects.location.round(2)),
        rotation_y=np.where(unseen, -10.0, objects.rotation_y.round(2)),
    )
    return rows.select(np.argsort(unseen, kind="stable"))  # KITTI lists DontCare last


def simulate_frame(
    seed: int,
    frame: int,
    *,
    max_distance: float = 60.0,
    lateral: float = np.inf,
    density: Mapping[str, float] = DENSITY,
    full_sweep: bool = True,
) -> Frame:
    """Simulates one frame; arguments as in :func:`simulate`. The same arguments give the same bits."""
    generator = rng.numpy(seed, "lidar", frame)
    scene = build(generator, density=density, max_distance=max_distance, lateral=lateral)
    sweep = scan(scene, generator, full_sweep)
    points = sweep.points
    if not full_sweep:
        points = points[kitti.in_camera_view(points, calibration(), kitti.DEFAULT_IMAGE_SIZE)]
    return Frame(points, _labels(scene.boxes, scene.types, sweep.returns, sweep.visible))


def _write_frame(folder: Path, simulate_one: Callable[[int], Frame], frame: int) -> None:
    simulated = simulate_one(frame)
    name = f"{frame:06d}"
    write_points(folder / "velodyne" / f"{name}.bin", simulated.points)
    kitti.write_objects(folder / "label_2" / f"{name}.txt", simulated.objects)
    kitti.write_calibration(folder / "calib" / f"{name}.txt", calibration())


@contextmanager
def _whole_or_absent(root: Path) -> Iterator[Path]:
    """Gives a folder that becomes ``root`` at the end, or goes away where something fails."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.", ignore_cleanup_errors=True) as aside:
        folder = Path(aside) / root.name
        folder.mkdir()
        yield folder
        folder.rename(root)


def _checked(density: Mapping[str, float] | None) -> dict[str, float]:
    for kind, mean in (density or {}).items():
        if kind not in DENSITY:
            raise KDBenchError(f"density: unknown class {kind!r}; {nearest(kind, DENSITY)}")
        if not 0 <= mean <= 100:
            raise KDBenchError(f"density: {mean} of {kind} per frame; expected a mean from 0 to 100")
    return {**DENSITY, **(density or {})}


def simulate(
    root: Path | str,
    *,
    train: int,
    test: int,
    seed: int = 0,
    max_distance: float = 60.0,
    lateral: float | None = None,
    workers: int | None = None,
    density: Mapping[str, float] | None = None,
    full_sweep: bool = True,
    progress: bool = True,
) -> None:
    """Simulates a data set in KITTI's layout; the result depends on neither ``workers`` nor the machine's load.

    The frames are 000000 and so on, first those of ``ImageSets/train.txt``, then those of ``val.txt`` (the split that
    KITTI publishes labels for, and so the one that a benchmark tests on).

    Args:
        root: The folder to make; written aside and renamed, so that it is whole or absent.
        train: Number of training frames.
        test: Number of test frames.
        seed: Seed of the data set.
        max_distance: Labelled objects have their centre at |x| up to this, in metres.
        lateral: They have it at |y| up to this, in metres; as far as the street goes by default.
        workers: Number of processes, by default one per core.
        density: Mean number of Car, Van, Pedestrian and Cyclist in the camera's view; merged into the default.
        full_sweep: Keep all 360 degrees (1.8 MB a frame), as KITTI does, or only what the camera sees (0.3 MB).
        progress: Show a progress bar.

    Raises:
        KDBenchError: for a bad argument, a ``root`` that already holds something, or a folder or disk that cannot be
            written; nothing is left behind.
    """
    root = Path(root)
    if train < 1 or test < 1:
        raise KDBenchError(f"{train} training and {test} test frames; expected at least one of each")
    if max_distance < 10 or (lateral is not None and lateral < 5):
        raise KDBenchError(f"max_distance={max_distance}, lateral={lateral}; expected at least 10 m and 5 m")
    simulate_one = partial(
        simulate_frame,
        seed,
        max_distance=max_distance,
        lateral=np.inf if lateral is None else lateral,
        density=_checked(density),
        full_sweep=full_sweep,
    )
    frames = range(train + test)
    try:
        if root.is_dir() and any(root.iterdir()):
            raise KDBenchError(f"{root}: already holds something; expected a new or empty folder for simulated frames")
        with _whole_or_absent(root) as folder:
            training, splits = folder / "training", folder / "ImageSets"
            for made in (training / "velodyne", training / "label_2", training / "calib", splits):
                made.mkdir(parents=True)
            for split, members in (("train", frames[:train]), ("val", frames[train:])):
                (splits / f"{split}.txt").write_text("".join(f"{frame:06d}\n" for frame in members))
            write = partial(_write_frame, training, simulate_one)
            for _ in mapped(write, frames, "Simulating LiDAR frames", workers=workers, chunk=4, progress=progress):
                pass
    except OSError as error:
        megabytes = (1.9 if full_sweep else 0.32) * len(frames)
        raise KDBenchError(
            f"{root}: cannot write the simulated frames ({error.strerror or error}); "
            f"they need about {megabytes:.0f} MB; choose another cache folder"
        ) from None
