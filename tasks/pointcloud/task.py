"""LiDAR 3-D object detection in KITTI's layout, with KITTI's evaluation."""

from __future__ import annotations

import inspect
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from PIL.Image import Image
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kdbench.base.digest import digest, source_digest
from kdbench.base.instantiate import check, instantiate, locate
from kdbench.base.store import SCRATCH, Store
from kdbench.errors import KDBenchError, nearest
from kdbench.features import Feature, Grid, Kind, Logits, Points, Tokens
from kdbench.task import Batch, Counts, DatasetInfo, ExportPlan, Task
from tasks.pointcloud import example, export, kitti, picture
from tasks.pointcloud.anchored import AnchoredHead
from tasks.pointcloud.anchors import Anchors, anchor_table
from tasks.pointcloud.centerpoint import Cells, CenterVoxels
from tasks.pointcloud.centred import CentredHead
from tasks.pointcloud.counts import count
from tasks.pointcloud.data import Collate, KittiData, Split, transforms_of, with_objects
from tasks.pointcloud.decode import Detections, joined
from tasks.pointcloud.detector import check_space, grid_shape
from tasks.pointcloud.frames import Frame, Frames, Sensors, content_digests, prepare, within
from tasks.pointcloud.head import Head
from tasks.pointcloud.kitti_ap import METRICS
from tasks.pointcloud.layouts import EXPECTED, Layout, check_layout, in_kitti_layout
from tasks.pointcloud.metrics import KittiAP
from tasks.pointcloud.mixing import paste_instances, swap_sectors
from tasks.pointcloud.motion import rigid_warp
from tasks.pointcloud.pointrcnn import PointOutputs, PointRCNN
from tasks.pointcloud.pointwise import PointwiseHead
from tasks.pointcloud.scans import ScanLayout, read_points
from tasks.pointcloud.scene import REVISION
from tasks.pointcloud.second import SECOND, VoxelOutputs

_log = logging.getLogger(__name__)

#: Share of the test objects that may lie outside the range without a warning.
_BEYOND = 0.02
#: Share of the points in the camera's view, below which a calibration is hardly that of the camera; KITTI's is 0.15.
_SEEN = 0.01
#: What is scored without a camera: the other figures are of the image.
_IN_SPACE = ("3d", "bev")

#: Points of a scan in the camera's view, about.
SCAN = 18_000
#: Keys of ``data`` that the engine reads.
_ENGINE = ("name", "task", "protocol")
#: What of a detector's input has features, and what its taps are, where these are not pillars and maps.
_SPARSE: dict[type, tuple[str, Kind]] = {
    **dict.fromkeys((SECOND, CenterVoxels), ("voxels", Grid)),
    PointRCNN: ("points", Tokens),
}
_TERMS = sorted({*AnchoredHead.terms, *CentredHead.terms, *PointwiseHead.terms})


@dataclass(frozen=True)
class DataOptions:
    """Options of ``data``.

    Attributes:
        root: KITTI-layout folder, or None for simulated scans.
        train: Most training frames; how many are simulated.
        test: Most test frames; how many are simulated.
        batch_size: Frames a batch.
        workers: Loader processes; 0 reads in the training process.
        transforms: Options of :class:`~tasks.pointcloud.transforms.Transforms`.
        simulator: Options of :func:`~tasks.pointcloud.simulator.simulate`.
        scan: Options of :class:`~tasks.pointcloud.scans.ScanLayout`; simulated scans are KITTI's.
        camera: False for data without a camera: scans are not cropped, and scored in BEV and 3-D by the points of each
            object (:func:`~tasks.pointcloud.frames.by_points`), which is not KITTI's official figure.
        image_size: Width and height of images that are absent, pixels; null for KITTI's.
        layout, names, sweeps: Of other layouts than KITTI's; see :func:`~tasks.pointcloud.layouts.in_kitti_layout`.
    """

    root: str | None
    train: PositiveInt | None
    test: PositiveInt | None
    batch_size: PositiveInt
    workers: NonNegativeInt
    transforms: dict[str, Any]
    simulator: dict[str, Any]
    scan: dict[str, Any] = field(default_factory=dict)
    camera: bool = True
    image_size: tuple[PositiveInt, PositiveInt] | None = None
    layout: Layout = "kitti"
    names: dict[str, str] = field(default_factory=dict)
    sweeps: NonNegativeInt = 0


class PointCloud(Task):
    """Detects cars, pedestrians and cyclists in LiDAR scans.

    Args:
        data: Options of :class:`DataOptions`.
        store: Where prepared data lives.
        point_range: x, y, z minimum, then x, y, z maximum, metres.
        pillar: Size of a pillar along x and y, metres.
        classes: Detected classes, in the order of the logits.
        loss_weights: Weight of the terms of the head's loss, by name; 1 where absent.
        head: What the outputs of the pair's detectors are of: ``anchors``, ``centres`` or ``points``.
        points: Points of a scan that are read (:func:`~tasks.pointcloud.data.fewer`); None for all.
        max_points: Points of a pillar or voxel that are read; None for what the detector says itself.
        score_threshold: Detections at or below it are dropped.
        thresholds: By class, the anchor IoU from which an anchor is positive and the one below which it is background;
            KITTI's where absent. Coarse pillars need lower ones, or small objects match no anchor.
        noise: Points of the primary metric that two runs differ by through chance; the engine reads it.
    """

    name: ClassVar[str] = "pointcloud"
    capabilities: ClassVar[frozenset[str]] = frozenset({"sample_id", "meta", "warp", "sectors", "objects", "peaks"})
    primary: ClassVar[str] = "map_3d_moderate_r40"
    #: With n < 41 objects even a perfect detector gets (n - 1) / 40 at 40 recall positions.
    selection: ClassVar[str] = "map_3d_moderate_all"
    unit: ClassVar[str | None] = "%"
    suffixes: ClassVar[tuple[str, ...]] = (".bin",)
    renamed: ClassVar[Mapping[str, str]] = {"augment": "transforms"}

    def __init__(
        self,
        data: Mapping[str, Any],
        store: Store,
        point_range: Sequence[float],
        pillar: Sequence[float],
        classes: Sequence[str],
        loss_weights: dict[str, float],
        head: Literal["anchors", "centres", "points"] = "anchors",
        points: PositiveInt | None = None,
        max_points: PositiveInt | None = None,
        score_threshold: float = 0.1,
        thresholds: dict[str, tuple[float, float]] | None = None,
        noise: float = 0.0,
    ) -> None:
        self.options = DataOptions(**check("data", DataOptions, {k: v for k, v in data.items() if k not in _ENGINE}))
        layout = ScanLayout(**check("data.scan", ScanLayout, self.options.scan))
        self.sensors = Sensors(layout, self.options.camera, self.options.image_size)
        check_layout(self.options.layout, self.options.root, self.options.camera)
        self.store = store
        self.point_range = tuple(point_range)
        self.pillar = tuple(pillar)
        self.classes = tuple(classes)
        self.weights = dict(loss_weights)
        self.points, self.max_points = points, max_points
        self.score_threshold = score_threshold
        self._restored: DatasetInfo | None = None
        check_space(self.point_range, self.pillar)
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise KDBenchError(f"task.classes is {list(self.classes)}; expected at least one class, each once")
        for name in self.weights:
            if name not in _TERMS:
                raise KDBenchError(f"task.loss_weights.{name}: there is no such term: {nearest(name, _TERMS)}")
        self._grid = grid_shape(self.point_range, self.pillar)
        table = anchor_table(thresholds or {})
        sites = self._grid[0] // 2, self._grid[1] // 2
        self.head: Head
        if head == "points":
            self.head = PointwiseHead(self.classes, score_threshold)
        elif head == "centres":
            self.head = CentredHead(Cells.of(self.point_range, sites), len(self.classes), score_threshold)
        else:
            self.head = AnchoredHead(Anchors(self.point_range, sites, self.classes, table), score_threshold)

    @property
    def anchors(self) -> Anchors:
        """Anchors that outputs are relative to, of a head that has some."""
        assert isinstance(self.head, AnchoredHead)
        return self.head.anchors

    @classmethod
    def kinds(cls, side: Mapping[str, Any]) -> dict[str, Kind]:
        """Pillars and voxels are points, taps bird's-eye-view grids; class scores are always there.

        On raw points a tap is a set of points, as tokens, and those of the last feature propagation come behind it.
        """
        target = (side.get("architecture") or {}).get("_target_")
        network: Any = None if target is None else locate(target)
        sparse, kind = _SPARSE.get(network, ("pillars", Grid))
        taps: dict[str, Kind] = dict.fromkeys(side.get("taps") or {}, kind)
        raw = kind is Tokens
        return {**({} if raw else {sparse: Points}), **taps, **({sparse: Points} if raw else {}), "logits": Logits}

    # ---- data -------------------------------------------------------------------------------------------------

    @cached_property
    def _source(self) -> tuple[Path, Sensors, Split, str, str]:
        options, made = self.options, ""
        if options.root is None:
            root, made = self._simulated()
        else:
            root = Path(options.root).expanduser()
            if not root.is_dir():
                raise KDBenchError(f"data.root={root}: there is no such folder, expected {EXPECTED[options.layout]}")
            if options.layout != "kitti":
                more = self.sensors.scan, self.classes, options.names, options.sweeps
                root = in_kitti_layout(options.layout, root, self.store, *more)
        rewritten = options.root is None or options.layout == "nuscenes"
        sensors = replace(self.sensors, scan=ScanLayout()) if rewritten else self.sensors
        split = Split.of(root, options.train, options.test, sensors.camera)
        names = sorted({*split.train, *split.val, *split.test})
        read = [asdict(sensors)] if sensors != Sensors() else []  # KITTI's own way is not named
        learned = [*split.train, *split.val]
        contents = [made, made] if made else content_digests(root, names, self.store, learned)
        identity = digest([contents[0], split.train, split.val, split.test, *read])
        return root, sensors, split, identity, digest([contents[1], split.train, split.val, *read])

    @cached_property
    def _data(self) -> tuple[Frames, Split]:
        root, sensors, split, identity, _ = self._source
        names = sorted({*split.train, *split.val, *split.test})
        key = digest([identity, self.classes, source_digest(["tasks.pointcloud.frames"])])
        product = self.store.product(
            "kitti-frames", key, lambda work: prepare(root, names, split.train, self.classes, work, sensors)
        )
        for line in product.manifest["odd"]:
            _log.warning("%s", line)
        if unseen := product.manifest["unseen"]:
            found = f"{len(unseen)} of {len(names)} scans have no point in the camera's view, first {unseen[0]}"
            _log.warning("%s: %s", root, found)
        if product.manifest["seen"] < _SEEN:
            found = f"{product.manifest['seen']:.2%} of all points lie in the camera's view"
            _log.warning("%s: %s; are P2 and Tr_velo_to_cam those of this camera?", root, found)
        frames = Frames(root, product.path, self.classes, sensors)
        if self.options.root is not None:
            self._warn(frames, split)
        return frames, split

    def _warn(self, frames: Frames, split: Split) -> None:
        """Says where the figures will not be those of the published set."""
        parts = []
        for key, name, used in (
            ("train", "train", len(split.train) + len(split.val)),
            ("test", "val", len(split.test)),
        ):
            found = len(kitti.read_frames(frames.root / "ImageSets" / f"{name}.txt"))
            if used < found:
                parts.append(f"data.{key}={getattr(self.options, key)} takes {used} of {found} frames of {name}.txt")
        if parts:
            _log.warning("%s: %s; preset=paper, or null, takes all", frames.root / "ImageSets", ", ".join(parts))
        contents = frames.contents
        counted = np.isin(contents.frames, split.test) & np.isin(contents.types, self.classes)
        boxes = contents.boxes[counted & (contents.difficulty >= 0)]
        low, high = np.array(self.point_range[:2]), np.array(self.point_range[3:5])
        beyond = int((~within(boxes[:, :2], low, high)).sum())
        if beyond > _BEYOND * len(boxes):
            what = f"{beyond} of {len(boxes)} objects of test frames lie outside task.point_range"
            so = "count as missed; preset=paper has KITTI's range" if self.options.camera else "are not scored"
            _log.warning("%s and %s", what, so)

    def _simulated(self) -> tuple[Path, str]:
        options = self.options
        key = digest([dict(options.simulator), options.train, options.test, REVISION])

        def make(work: Path) -> dict[str, Any]:
            from tasks.pointcloud.simulator import simulate

            sizes = {"train": options.train or 200, "test": options.test or 80}
            made = work / "kitti"
            if not made.is_dir():  # else a maker was killed after it
                shutil.rmtree(work / SCRATCH, ignore_errors=True)
                aside = {"root": work / SCRATCH / "kitti"}
                simulate(**check("data.simulator", simulate, {**sizes, **options.simulator, **aside}))
                (work / SCRATCH / "kitti").rename(made)
            return {"simulator": dict(options.simulator)}

        return self.store.product("kitti-simulated", key, make, wait_message="the simulated scans").path / "kitti", key

    def prepare(self, progress: bool = True) -> None:
        """Simulates or checks the scans and crops them to the camera's view, once."""
        _ = self._data

    def dataset(self) -> DatasetInfo:
        """Returns what a record says of the data set."""
        if self._restored is not None:
            return self._restored
        _, _, split, identity, learned = self._source
        embedded, layout = self.options.root is None, self.options.layout
        kitti_name = ("kitti-simulated" if embedded else "kitti") + ("" if self.options.camera else "-no-camera")
        return DatasetInfo(
            kitti_name if layout == "kitti" else layout,
            embedded,
            identity,
            {"train": len(split.train), "val": len(split.val), "test": len(split.test)},
            learned,
            classes=self.classes,
            inputs=self._inputs(),
        )

    def counts(self) -> Mapping[str, Counts]:
        """Returns the objects in the range, and those that the primary metric counts, by split and class."""
        frames, split = self._data
        parts = {"train": split.train, "val": split.val, "test": split.test}
        options = self.classes, self.point_range, self.options.camera
        found = {name: count(frames.contents, part, *options) for name, part in parts.items()}
        return found | {"train": replace(found["train"], scored=None)}

    def _inputs(self) -> dict[str, Any]:
        own: dict[str, Any] = {"point_range": list(self.point_range), "pillar": list(self.pillar)}
        if self.points is not None:
            own["points"] = self.points
        return {**own, **asdict(self.sensors if self.options.root is not None else Sensors())}

    def restore(self, info: DatasetInfo) -> None:
        """Takes what a record says; how scans are read is in the options of the task."""
        self._restored = info

    def example(self) -> Batch:
        """Returns a made-up scan: ground, walls, and what stands before them."""
        return self._alone("example", example.scan(SCAN))

    def _alone(self, name: str, points: np.ndarray) -> Batch:
        """Makes a batch of one scan without labels."""
        frame = Frame(name, points, np.empty((0, 7), np.float32), np.empty(0, np.int64))
        return Collate(self.point_range, points=self.points)([frame])

    def data(self, seed: int) -> LightningDataModule:
        """Returns the loaders."""
        options, transforms = self.options, transforms_of(self.options.transforms, self.point_range)
        frames, split = self._data
        sizes = options.batch_size, options.workers
        return KittiData(frames, split, self.point_range, transforms, *sizes, seed, self.points)

    def augmented(self) -> bool:
        """Says whether scans are moved, or objects pasted into them."""
        return transforms_of(self.options.transforms, self.point_range).active

    # ---- model ------------------------------------------------------------------------------------------------

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """Creates a detector over this task's range, pillars, classes, points where it has arguments of these names."""
        own = {name: getattr(self, name) for name in ("point_range", "pillar", "classes", "points", "max_points")}
        target = architecture.get("_target_")
        taken = inspect.signature(locate(target)).parameters if target else {}
        anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
        given = {k: v for k, v in own.items() if v is not None and (anything or k in taken)}
        model: nn.Module = instantiate("pair.architecture", {**given, **architecture})
        return model

    def forward(self, model: nn.Module, inputs: Any) -> Any:
        """Runs a detector on a batch of scans."""
        return model(inputs["points"], inputs["batch"], inputs["size"])

    def describe(self, outputs: Any, taps: Mapping[str, Any], batch: Batch) -> dict[str, Feature]:
        """Pillars, voxels or points with what taps give, grids or sets of points, and class scores by row."""
        features: dict[str, Feature] = {}
        if isinstance(outputs, PointOutputs):
            samples, count = outputs.cls.shape[:2]
            sample = torch.arange(samples, device=outputs.xyz.device).repeat_interleave(count)
            features = {tap: Tokens(value) for tap, value in taps.items()}
            features["points"] = Points(outputs.features.flatten(0, 1), outputs.xyz.flatten(0, 1), sample)
            return features | {"logits": self.mark(Logits(outputs.cls, law="bernoulli"), batch)}
        if isinstance(outputs, VoxelOutputs):
            features["voxels"] = Points(outputs.voxels, outputs.centres, outputs.coords[:, 0], outputs.counts)
        else:
            # In float32 whatever the features are in: bfloat16 cannot tell the cells of a large grid apart.
            cells = torch.nn.functional.pad(outputs.coords[:, [2, 1]].float(), (0, 1))
            size = cells.new_tensor([*self.pillar, self.point_range[5] - self.point_range[2]])
            centres = cells.new_tensor(self.point_range[:3]) + (cells + 0.5) * size
            features["pillars"] = Points(outputs.pillars, centres, outputs.coords[:, 0], outputs.counts)
        for tap, value in taps.items():
            value = value[-1] if isinstance(value, list) else value
            features[tap] = Grid(value, (self._grid[0] / value.shape[2], self._grid[1] / value.shape[3]))
        return features | {"logits": self.mark(Logits(outputs.cls, law="bernoulli"), batch)}

    def mark(self, feature: Feature, batch: Batch) -> Feature:
        """Gives class scores the mask and the weight of each row."""
        return self.head.mark(feature, batch) if isinstance(feature, Logits) else feature

    def loss(self, model: nn.Module, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of the head's loss; see :mod:`tasks.pointcloud.loss` and ``pointwise``."""
        return self.head.loss(model, outputs, batch)

    def loss_weights(self) -> Mapping[str, float]:
        """Returns the weight of each of these terms."""
        return {name: self.weights.get(name, 1.0) for name in self.head.terms}

    # ---- scores -----------------------------------------------------------------------------------------------

    def metrics(self, split: str) -> MetricCollection:
        """KITTI average precision of the detected classes; without a camera in BEV and 3-D alone."""
        return MetricCollection([KittiAP(self.classes, METRICS if self.options.camera else _IN_SPACE)])

    def score(self, metrics: MetricCollection, model: nn.Module, outputs: Any, batch: Batch) -> None:
        """Turns detections into KITTI rows of each frame and feeds them with the frame's labels."""
        frames = self._data[0]
        found, truth = [], []
        for name, detections in zip(batch.memo["names"], self.decode(model, outputs), strict=True):
            _, calibration, size = frames.truth(name)
            truth.append(frames.scored(name, *np.split(np.array(self.point_range), 2)))
            found.append(self._rows(detections, calibration, size)[0])
        metrics.update(found, truth)

    def decode(self, model: nn.Module, outputs: Any) -> list[Detections]:
        """Returns the detections of each scan."""
        return self.head.decode(model, outputs)

    def _rows(
        self, detections: Detections, calibration: kitti.Calibration, size: tuple[int, int] | None
    ) -> tuple[kitti.Objects, np.ndarray]:
        types = np.array(self.classes)[detections.labels.cpu().numpy()]
        boxes, scores = detections.boxes.cpu().numpy(), detections.scores.cpu().numpy()
        return kitti.boxes_to_objects(boxes, types, scores, calibration, size)

    # ---- what a person looks at -------------------------------------------------------------------------------

    def export(self, model: nn.Module) -> ExportPlan:
        """One scan to boxes; see :func:`tasks.pointcloud.export.plan` and ``of_points``."""
        points = self.example().inputs["points"].numpy()
        if isinstance(model, PointRCNN):
            return export.of_points(model, points)
        assert isinstance(self.head, AnchoredHead | CentredHead)
        return export.plan(model, self.head, points, self._inputs())

    def measured(self, model: nn.Module) -> ExportPlan:
        """What is timed; see :func:`tasks.pointcloud.export.measured`."""
        return export.measured(model, self.example().inputs)

    @torch.no_grad()
    def _look(self, batch: Batch, models: Mapping[str, nn.Module]) -> dict[str, Any]:
        """Returns the busiest scan of a batch with what each model finds in it, as arrays."""
        targets = batch.targets
        busiest = int(targets["batch"].bincount(minlength=len(batch)).argmax())
        mine, own = batch.inputs["batch"] == busiest, targets["batch"] == busiest
        predictions = {}
        for name, model in models.items():
            detections = self.decode(model, self.forward(model.eval(), batch.inputs))[busiest]
            found = detections.boxes, detections.labels, detections.scores
            predictions[name] = tuple(value.cpu().numpy() for value in found)
        return {
            "points": batch.inputs["points"][mine].cpu().numpy(),
            "truth": (targets["boxes"][own].cpu().numpy(), targets["labels"][own].cpu().numpy()),
            "predictions": predictions,
        }

    def picture(self, batch: Batch, models: Mapping[str, nn.Module]) -> Image:
        """Bird's-eye views of one scan, one for each model, with true and predicted boxes."""
        return picture.render(**self._look(batch, models), classes=self.classes, point_range=self.point_range)

    def show(self, batch: Batch, model: nn.Module, name: str) -> Image:
        """The bird's-eye view of a scan with the predicted boxes."""
        looked = self._look(batch, {name: model}) | {"truth": None}
        return picture.render(**looked, classes=self.classes, point_range=self.point_range)

    def media(self, batch: Batch, models: Mapping[str, nn.Module]) -> Mapping[str, Any]:
        """One scan as a 3-D point cloud with boxes."""
        return {"object3d": picture.media(**self._look(batch, models), classes=self.classes)}

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """``warp``: a rigid pose and a scale; ``swap_sectors`` and ``paste_instances`` mix scans; objects and peaks."""
        return {
            "warp": rigid_warp(self.point_range, self.head.carry),
            "swap_sectors": swap_sectors,
            "paste_instances": paste_instances(self.point_range),
            "objects": lambda model, outputs: joined(self.decode(model, outputs)),
            "true_objects": lambda batch: dict(batch.targets),
            "with_objects": with_objects,
            "peaks": self.head.peaks,
        }

    def read(self, path: Path) -> Batch:
        """Reads a ``.bin`` scan; one in KITTI's layout is cropped to the camera's view with its calibration."""
        points = read_points(path, self.sensors.scan)
        folder = path.absolute().parent.parent
        beside = folder / "calib" / f"{path.stem}.txt"
        if self.sensors.camera and os.path.lexists(beside):
            calibration = self.sensors.calibration(beside)
            size = self.sensors.view(folder, path.stem, calibration)
            assert size is not None
            points = points[kitti.in_camera_view(points, calibration, size)]
            if not len(points):
                raise KDBenchError(f"{path}: no point lies in the camera's view by {beside}: are they of one sensor?")
        return self._alone(path.stem, points)

    @torch.no_grad()
    def predictions(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Returns class, score and box (x, y, z, l, w, h, yaw) of every detection of each scan."""
        return [
            {
                "objects": [
                    {"class": self.classes[label], "score": round(score, 4), "box": [round(v, 3) for v in box]}
                    for box, score, label in zip(*(value.tolist() for value in found), strict=True)
                ]
            }
            for found in self.decode(model, self.forward(model, batch.inputs))
        ]
