"""Parts of the LiDAR detector against their limits, and what PointDistiller's own terms cost."""

from __future__ import annotations

import math
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.report import Row
from benchmarks.turns import DROPPED, Gate, Times, alternate, peak_mib, take_turns
from kdbench.base.store import Store
from kdbench.configuration.config import load
from kdbench.configuration.resolved import resolve
from kdbench.methods.pointdistiller import as_points
from kdbench.runs.trainings import Trainings
from kdbench.training.fit import Training
from tasks.pointcloud import example
from tasks.pointcloud.boxes import rotated_nms
from tasks.pointcloud.detector import PointPillars
from tasks.pointcloud.kitti import Objects
from tasks.pointcloud.kitti_ap import CLASSES, evaluate, mean_ap
from tasks.pointcloud.pointrcnn import PointRCNN
from tasks.pointcloud.pointwise import TRAIN_OVERLAP

#: Frames of the quick preset that are simulated for this: a step costs the same with all of them.
FRAMES = ("data.train=40", "data.test=4")


def scan(points: int = 18_000) -> Tensor:
    """Makes a scan (P, 4) in the camera's view: 18,000 points fill 5,600 pillars of 0.16 m."""
    return torch.from_numpy(example.scan(points))


@torch.no_grad()
def pillars(rounds: int = 7, repeats: int = 30, points: int = 18_000) -> Iterator[Row]:
    """Pillar encoding of one frame on the KITTI grid at full width."""
    encoder = PointPillars().encoder.eval()
    cloud, batch = scan(points), torch.zeros(points, dtype=torch.long)
    encode = partial(encoder, cloud, batch)
    times = alternate({"encode": encode, "twin": encode}, rounds, repeats)
    found = len(encode()[0])
    yield _function_row(f"pillar encoding, {points:,} points", times, 5.0, f"{found:,} pillars of 0.16 m, 64 channels")


def detectors(rounds: int = 5, repeats: int = 3, points: int = 9_000) -> Iterator[Row]:
    """Forward and backward pass of one frame of the quick preset through each detector, teacher and 16x student."""
    cloud, batch = scan(points), torch.zeros(points, dtype=torch.long)

    def step(model: nn.Module) -> None:
        outputs = model(cloud, batch, 1)
        said = outputs[:3]
        if isinstance(model, PointRCNN):
            said = (*outputs[:2], *model.refine(outputs, model.propose(outputs, TRAIN_OVERLAP)))
        sum(value.float().mean() for value in said).backward()

    for pair in (
        "pointpillars_16x",
        "second_16x",
        "centerpoint_pillars_16x",
        "centerpoint_second_16x",
        "pointrcnn_16x",
    ):
        config = load(["task=pointcloud", "preset=quick", f"pair={pair}"])
        task = resolve(config).task
        made = {side: task.build(config["pair"][side]["architecture"]).train() for side in ("teacher", "student")}
        for side, model in made.items():
            run = partial(step, model)
            times = alternate({"step": run, "twin": run}, rounds, repeats)
            detail = f"{points:,} points, {sum(p.numel() for p in model.parameters()) / 1e6:.3f} M parameters"
            yield _function_row(f"{pair}, {side}: a step", times, None, detail)


@torch.no_grad()
def nms(rounds: int = 7, repeats: int = 30, count: int = 500, clusters: int = 20) -> Iterator[Row]:
    """Non-maximum suppression of what a trained detector leaves: many boxes around few objects."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    low, high = torch.tensor([5.0, -35.0]), torch.tensor([65.0, 35.0])
    objects = torch.cat((low + (high - low) * torch.rand(clusters, 2, generator=generator), 3 * normal(clusters, 1)), 1)
    own = objects[torch.arange(count) % clusters] + normal(count, 3) * torch.tensor([0.4, 0.4, 0.1])
    size = torch.tensor([3.9, 1.6]) * (1 + 0.05 * normal(count, 2))
    boxes, scores = torch.cat((own[:, :2], size, own[:, 2:]), 1), torch.rand(count, generator=generator)
    suppress = partial(rotated_nms, boxes, scores, 0.01)
    times = alternate({"suppress": suppress, "twin": suppress}, rounds, repeats)
    yield _function_row(
        f"NMS of {count} rotated boxes in {clusters} clusters", times, 30.0, f"{len(suppress())} are kept"
    )


def _function_row(name: str, times: Mapping[str, Times], limit: float | None, detail: str) -> Row:
    first, twin = times.values()
    return Row.of(name, "ms", first.blocks, twin.over(first), limit=limit, detail=detail)


def labelled(frames: int, objects: int = 15, detections: int = 25) -> tuple[list[Objects], list[Objects]]:
    """Makes ground truth and detections of KITTI frames: detections are jittered copies of objects."""
    rng = np.random.default_rng(0)
    kinds, share = np.array([*CLASSES, "Van", "DontCare"]), [0.5, 0.2, 0.1, 0.1, 0.1]
    shape = (frames, objects)
    near = rng.uniform(5, 60, shape)
    location = np.stack((near * rng.uniform(-0.6, 0.6, shape), rng.normal(1.6, 0.1, shape), near), -1)
    truth = _objects(
        rng.choice(kinds, shape, p=share), location, rng.uniform(-math.pi, math.pi, shape), rng.integers(0, 3, shape)
    )
    which = rng.integers(0, objects, (frames, detections))
    found = _objects(
        np.take_along_axis(np.stack([t.types for t in truth]), which, 1),
        np.take_along_axis(location, which[..., None], 1) + rng.normal(0, 0.08, (frames, detections, 3)),
        np.take_along_axis(np.stack([t.rotation_y for t in truth]), which, 1) + rng.normal(0, 0.05, which.shape),
        np.zeros(which.shape, dtype=np.int64),
        rng.random(which.shape),
    )
    return truth, found


def _objects(
    types: np.ndarray, location: np.ndarray, yaw: np.ndarray, occluded: np.ndarray, score: np.ndarray | None = None
) -> list[Objects]:
    """Makes the objects of frames from columns (F, N, …); 2-D boxes follow from distance."""
    sizes = {"Car": (1.5, 1.6, 3.9), "Van": (2.0, 1.9, 5.0), "Pedestrian": (1.75, 0.6, 0.8), "Cyclist": (1.7, 0.6, 1.8)}
    dimensions = np.stack([[sizes.get(kind, (1.5, 1.6, 3.9)) for kind in frame] for frame in types])
    depth = np.maximum(location[..., 2], 1.0)
    u, v = (location[..., k] / depth * 720 + centre for k, centre in ((0, 610), (1, 173)))
    width, height = dimensions[..., 2] / depth * 720, dimensions[..., 0] / depth * 720
    bbox = np.stack((u - width / 2, v - height, u + width / 2, v), -1)
    zero = np.zeros(types.shape[1])
    return [
        Objects(types[f], zero, occluded[f], zero, bbox[f], dimensions[f], location[f], yaw[f], score=s)
        for f, s in enumerate(score if score is not None else [None] * len(types))
    ]


def evaluation(frames: int = 3_769, objects: int = 15, detections: int = 25) -> Iterator[Row]:
    """KITTI's evaluation of a validation split: three classes, three metrics, three difficulties."""
    truth, found = labelled(frames, objects, detections)
    start = time.perf_counter()
    result = evaluate(truth, found)
    seconds = time.perf_counter() - start
    yield Row(
        f"KITTI evaluation of {frames:,} frames",
        "s",
        seconds,
        limit=60.0,
        detail=f"{objects} objects and {detections} detections a frame, moderate 3-D mAP {mean_ap(result):.1f}; "
        f"peak memory {peak_mib():.0f} MiB",
    )


def _training(method: str, overrides: Sequence[str]) -> Training:
    config = load(["task=pointcloud", "preset=quick", f"method={method}", *overrides])
    store = Store(Path(config["cache"]) if config["cache"] else None)
    trainings = Trainings(resolve(config, store))
    return Training(trainings.student_recipe(), trainings.task, untrained=True)


def distil(gate: Gate, method: str, overrides: Sequence[str]) -> None:
    """Trains a quarter-width detector with a teacher of full width that was never trained."""
    with tempfile.TemporaryDirectory(prefix="kdbench-bench-") as work, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _training(method, overrides).run(Path(work), [gate])


def pointdistiller(rounds: int = 6, steps: int = 12, overrides: Sequence[str] = FRAMES) -> Iterator[Row]:
    """A training step of PointDistiller over one of kd, at the quick preset."""
    training = _training("pointdistiller", overrides)  # the data is prepared here, before anybody's turn
    batch = training.first_batch()
    distiller = training.distiller()
    distiller.rehearse(batch)
    with distiller.at_rest(), torch.no_grad():
        signals = distiller.probe(batch).bound(training.bindings["method"])
        points = as_points(signals.features("points", "teacher")[0])
    given, sizes = training.recipe.plugins["method"].given, torch.bincount(points.batch)
    count, neighbours = min(given["points"], len(points.values)), min(given["neighbours"], int(sizes.min()))
    endless = (*overrides, f"trainer.epochs={2 + rounds * (steps + DROPPED)}", "trainer.val_every=1000000")
    kd = partial(distil, method="kd", overrides=endless)
    ours = partial(distil, method="pointdistiller", overrides=endless)
    times = take_turns({"kd": kd, "twin": kd, "pointdistiller": ours}, rounds, steps)
    yield Row.of(
        "PointDistiller, training step over one of kd (quick preset)",
        "x",
        times["pointdistiller"].over(times["kd"]),
        times["twin"].over(times["kd"]),
        limit=1.3,
        detail=f"N={count:,} of the {len(points.values):,} positions of {training.bindings['method']['points']!r} in "
        f"{len(batch)} frames, K={neighbours}; kd {times['kd'].median:.0f} ms, PointDistiller "
        f"{times['pointdistiller'].median:.0f} ms a step, loading included",
    )
    yield Row("peak memory of that training", "MiB", times["pointdistiller"].peak, limit=4096.0)
