from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.features import Grid, Logits, Points
from kdbench.needs import STUDENT, TEACHER
from kdbench.roles.cast import Cast
from kdbench.roles.sources import Network
from kdbench.signals import Signals
from kdbench.task import Batch, scalars
from kdbench.training.measure import count_macs, latency
from tasks.pointcloud import anchored as module
from tasks.pointcloud import scans
from tasks.pointcloud.decode import Detections
from tasks.pointcloud.task import PointCloud
from tests.tasks.pointcloud import tiny

TAPS = {"bev": "backbone[-1]", "neck": "neck"}
ANCHORS = (tiny.GRID // 2) ** 2 * 3 * 2


@pytest.fixture(scope="module")
def model(made) -> Any:
    with rng.scope(0, "detector"):
        return made.build(tiny.NET).eval()


def answer(task: PointCloud, model: Any, batch: Batch) -> Any:
    return Network(task, model, TAPS).answer(batch)


def test_kinds_run_from_shallow_to_deep():
    kinds = PointCloud.kinds({"taps": TAPS})
    assert list(kinds.items()) == [("pillars", Points), ("bev", Grid), ("neck", Grid), ("logits", Logits)]
    assert list(PointCloud.kinds({})) == ["pillars", "logits"]


def test_dataset_says_what_it_is(made, root, tmp_path):
    info = made.dataset()
    assert (info.name, info.embedded, dict(info.sizes)) == ("kitti", False, {"train": 5, "val": 1, "test": 3})
    assert tiny.task(root, tmp_path).dataset().digest == info.digest
    assert tiny.task(root, tmp_path, {"test": 2}).dataset().digest != info.digest
    assert tiny.task(root, tmp_path, {"batch_size": 1}).dataset().digest == info.digest


@pytest.mark.parametrize(("frame", "learned"), [("000000", True), ("000006", False)])
def test_another_test_frame_leaves_what_is_learned_from(tmp_path, frame, learned):
    folder = tiny.write(tmp_path / "kitti")
    before = tiny.task(folder, tmp_path).dataset()
    label = folder / "training" / "label_2" / f"{frame}.txt"
    label.write_text(label.read_text() + "\n")
    after = tiny.task(folder, tmp_path).dataset()
    assert after.digest != before.digest
    assert (after.learned != before.learned) == learned
    assert tiny.task(folder, tmp_path, {"test": 2}).dataset().learned == after.learned


def test_home_is_found(root, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(root.parent))
    assert tiny.task(Path("~") / root.name, tmp_path).dataset().sizes["test"] == 3


# ---- what the roles see -------------------------------------------------------------------------------------------


def test_describe_gives_kinds_shapes_and_places(made, model):
    batch = tiny.first(made)
    features = answer(made, model, batch).features
    assert set(features) == {"pillars", "bev", "neck", "logits"}
    for name, kind in PointCloud.kinds({"taps": TAPS}).items():
        assert type(features[name]) is kind

    pillars = features["pillars"]
    cells = torch.unique(
        torch.cat([batch.inputs["batch"][:, None], (cell := cell_of(batch.inputs["points"])).flip(1)], 1), dim=0
    )
    assert pillars.values.shape == (len(cells), 8)
    assert pillars.batch.equal(cells[:, 0])
    assert pillars.counts.sum() == len(cell)
    # Metres, of the centre: half a pillar from its low corner, halfway up the range.
    places = torch.stack([cells[:, 2] * 0.32 + 0.16, cells[:, 1] * 0.32 + 0.16 - 10.24], 1)
    torch.testing.assert_close(pillars.coords[:, :2], places)
    assert pillars.coords[:, 2].unique().tolist() == [-1.0]
    assert pillars.coords.dtype == torch.float32

    assert features["bev"].values.shape == (2, 32, tiny.GRID // 8, tiny.GRID // 8)
    assert features["bev"].stride == (8, 8)
    assert features["neck"].values.shape == (2, 48, tiny.GRID // 2, tiny.GRID // 2)
    assert features["neck"].stride == (2, 2)
    logits = features["logits"]
    assert logits.values.shape == (2, ANCHORS, 3)
    assert logits.law == "bernoulli"
    assert logits.rows().shape == (2 * ANCHORS, 3)
    assert len(logits.row_weight()) == 2 * ANCHORS


def cell_of(points: torch.Tensor) -> torch.Tensor:
    return ((points[:, :2] - torch.tensor([0.0, -10.24])) / 0.32).floor().long()


def test_coordinates_survive_bfloat16(made, model):
    batch = tiny.first(made)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = answer(made, model, batch).features["pillars"]
    assert low.coords.equal(answer(made, model, batch).features["pillars"].coords)


def test_foreground_and_background_weigh_the_same(made, model):
    batch = tiny.first(made)
    weight = answer(made, model, batch).features["logits"].weight
    foreground = batch.memo["matched"] >= 0
    assert weight.shape == foreground.shape
    assert 0 < foreground.sum() < foreground.numel() / 10
    assert weight[foreground].sum().item() == pytest.approx(1, abs=1e-4)
    assert weight[~foreground].sum().item() == pytest.approx(1, abs=1e-4)
    nothing = batch.with_inputs(batch.inputs)
    nothing.targets = {name: values[:0] for name, values in batch.targets.items()}
    weight = answer(made, model, nothing).features["logits"].weight
    assert weight.isfinite().all()
    assert weight.sum().item() == pytest.approx(1, abs=1e-4)


def test_no_point_in_range(made, model):
    batch = tiny.first(made)
    empty = batch.with_inputs({**batch.inputs, **{k: batch.inputs[k][:0] for k in ("points", "batch")}})
    found = answer(made, model, empty)
    assert found.features["pillars"].values.shape == (0, 8)
    assert all(v.isfinite() for v in made.loss(model, found.outputs, empty).values())


def test_anchors_are_assigned_once_a_batch(made, model, monkeypatch):
    calls = []
    original = module.assign_per_class

    def counted(*args: Any) -> torch.Tensor:
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(module, "assign_per_class", counted)
    batch = tiny.first(made)
    cast = Cast(
        made,
        {"student": STUDENT, "teacher": TEACHER},
        {"student": Network(made, made.build(tiny.NET), TAPS), "teacher": Network(made, model, TAPS)},
    )
    signals = Signals(cast, {role: {"main": batch} for role in cast.roles})
    signals.pair("logits")
    signals.supervised()
    assert len(calls) == 1
    signals.answer("teacher", "main")
    # And both read the same points: the pillars are those of the one batch.
    student, teacher = signals.pair("pillars")
    assert signals.batch("student") is signals.batch("teacher")
    assert student.coords.equal(teacher.coords)
    assert student.counts.equal(teacher.counts)
    answer(made, model, batch.with_inputs(batch.inputs))
    assert len(calls) == 2


def test_the_distilled_mask_chooses_the_rows_of_the_logits(tmp_path):
    task = tiny.task(tiny.write(tmp_path / "kitti"), tmp_path / "cache")
    task.prepare()
    batch = next(iter(task.data(0).train_dataloader()))
    model = task.build({"_target_": "tasks.pointcloud.detector.PointPillars", "width": 0.125}).eval()
    outputs = task.forward(model, batch.inputs)
    batch.distilled = torch.arange(len(batch)) == 0
    logits = task.describe(outputs, {}, batch)["logits"]
    assert isinstance(logits, Logits)
    torch.testing.assert_close(logits.rows(), outputs.cls[0])
    weight = logits.row_weight()
    assert weight is not None
    assert len(weight) == len(outputs.cls[0])


# ---- loss ---------------------------------------------------------------------------------------------------------


def test_loss_weights_and_terms(made, model):
    batch = tiny.first(made)
    terms = made.loss(model, made.forward(model, batch.inputs), batch)
    assert set(terms) == set(made.loss_weights()) == {"cls", "box", "dir"}
    assert made.loss_weights() == {"cls": 1.0, "box": 2.0, "dir": 0.2}
    cast = Cast(made, {"student": STUDENT}, {"student": Network(made, model, TAPS)})
    total = Signals(cast, {"student": {"main": batch}}).supervised()
    by_hand = terms["cls"] + 2 * terms["box"] + 0.2 * terms["dir"]
    assert total.item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_samples_without_supervision_do_not_count(made, model):
    batch = tiny.first(made)
    outputs = made.forward(model, batch.inputs)
    half = replace(batch, supervised=torch.tensor([True, False]), memo={})
    alone = Batch(batch.inputs, {k: v[batch.targets["batch"] == 0] for k, v in batch.targets.items()}, batch.ids)
    one = type(outputs)(*(value[:1] for value in outputs[:3]), *outputs[3:])
    alone.ids = batch.ids[:1]
    expected = made.loss(model, one, alone)
    for name, value in made.loss(model, outputs, half).items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-5), name
    none = replace(batch, supervised=torch.tensor([False, False]), memo={})
    assert all(value == 0 for value in made.loss(model, outputs, none).values())


def test_the_loss_falls_on_one_batch(made):
    with rng.scope(1, "detector"):
        net = made.build(tiny.NET)
    batch = tiny.first(made, "train")
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        terms = made.loss(net, made.forward(net, batch.inputs), batch)
        loss = sum(made.loss_weights()[name] * value for name, value in terms.items())
        assert isinstance(loss, torch.Tensor)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# ---- scores -------------------------------------------------------------------------------------------------------


def test_perfect_detections_score_100(made, model, monkeypatch):
    values = tiny.scored(made, model, monkeypatch)
    assert made.primary in values
    assert made.selection in values
    for metric in ("3d", "bev", "2d", "aos"):
        for name in ("map", "car", "pedestrian", "cyclist"):
            assert values[f"{name}_{metric}_moderate_all"] == pytest.approx(100), (name, metric)
    # At 40 recall positions three objects can reach (3 - 1) / 40 at most.
    assert values["map_3d_moderate_r40"] == pytest.approx(5)


def test_detections_of_vans_are_not_scored(made, model, monkeypatch):
    """A car where a van is costs nothing, and a van that is not found neither."""

    def with_vans(batch: Batch) -> list[Detections]:
        found = []
        for name, detections in zip(batch.memo["names"], tiny.perfect(made, batch), strict=True):
            van = torch.from_numpy(tiny.scene(name)[1][3:]).float()
            boxes = torch.cat([van, detections.boxes])
            labels = torch.cat([torch.tensor([2]), detections.labels])
            found.append(Detections(boxes, torch.cat([torch.tensor([0.99]), detections.scores]), labels))
        return found

    metrics = made.metrics("test")
    for batch in made.data(0).test_dataloader():
        monkeypatch.setattr(made, "decode", lambda *_, batch=batch: with_vans(batch))
        made.score(metrics, model, tiny.NOTHING, batch)
    assert scalars(metrics)["car_3d_moderate_all"] == pytest.approx(100)


def test_what_is_missed_costs(made, model, monkeypatch):
    values = tiny.scored(made, model, monkeypatch, drop=1)
    assert 0 < values["map_3d_moderate_all"] < 100


def test_an_untrained_detector_scores_next_to_nothing(made, model):
    values = made.evaluate(model, made.data(0).test_dataloader(), "test", torch.device("cpu"))
    assert values["map_3d_moderate_all"] < 5
    assert all(np.isfinite(v) for v in values.values())


def test_metrics_cover_the_detected_classes_alone(root, tmp_path, monkeypatch):
    cars = tiny.task(root, tmp_path, classes=["Car"])
    values = tiny.scored(cars, None, monkeypatch)
    assert values["map_3d_moderate_all"] == pytest.approx(100)
    assert not [name for name in values if name.startswith("pedestrian")]


# ---- export, pictures, predictions --------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """A detector of a user's own."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, points, batch, size):
        return self.inner(points, batch, size)


def test_a_detector_of_another_class_is_measured_whole(made, model):
    plan = made.measured(Wrapped(model))
    outputs = plan.module(*plan.example)
    assert outputs.cls.shape[0] == 1
    assert count_macs(plan) > count_macs(made.measured(model))
    assert latency(plan, repeats=5, warmup=1).median_ms > 0


def test_the_measured_part_exports_and_equals_the_model(made, model):
    plan = made.measured(model)
    exported = torch.export.export(plan.module, plan.example)
    batch = tiny.first(made)
    one = made.forward(model, batch.inputs)
    canvas = model.scatter(one.pillars, one.coords, 2)[:1]
    cls, box, direction = exported.module()(canvas)
    assert len(plan.names) == len(plan.example) == 1
    torch.testing.assert_close(cls, one.cls[:1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(box, one.box[:1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(direction, one.direction[:1], rtol=1e-4, atol=1e-5)


def test_picture_and_media_show_the_busiest_scan(made, model):
    batch = tiny.first(made)
    batch.targets = {k: v[batch.targets["batch"].argsort(descending=True)] for k, v in batch.targets.items()}
    keep = torch.arange(len(batch.targets["batch"])) != len(batch.targets["batch"]) - 1  # one fewer in the first scan
    batch.targets = {k: v[keep] for k, v in batch.targets.items()}
    image = made.picture(batch, {"teacher": model, "student": made.build(tiny.NET)})
    assert image.mode == "RGB"
    assert image.width == 1500
    assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 20
    scene = made.media(batch, {"student": model})["object3d"]
    assert len(scene["points"]) == (batch.inputs["batch"] == 1).sum()
    assert sum(b["label"].startswith("true") for b in scene["boxes"]) == 3


def test_read_and_predictions_of_one_scan(made, model, root):
    batch = made.read(root / "training" / "velodyne" / "000001.bin")
    assert len(batch) == 1
    prepared = made.data(0)
    name = batch.memo["names"]
    assert name == ["000001"]
    alone = prepared.collate([prepared.frames.read("000001")])
    assert torch.equal(batch.inputs["points"], alone.inputs["points"])
    assert batch.targets["boxes"].shape == (0, 7)


def test_read_crops_by_the_files_beside_the_scan(made, root, tmp_path, monkeypatch):
    """From whatever folder, and with the image of the scan's own part of KITTI."""
    for part, width in (("training", 700), ("testing", 1242)):
        for folder in ("velodyne", "calib"):
            source = next((root / "training" / folder).glob("000001.*"))
            (tmp_path / part / folder).mkdir(parents=True)
            (tmp_path / part / folder / source.name).write_bytes(source.read_bytes())
        (tmp_path / part / "image_2").mkdir()
        Image.new("L", (width, 375)).save(tmp_path / part / "image_2" / "000001.png")
    found = {part: made.read(tmp_path / part / "velodyne" / "000001.bin") for part in ("training", "testing")}
    assert len(found["training"].inputs["points"]) < len(found["testing"].inputs["points"])
    whole = made.read(root / "training" / "velodyne" / "000001.bin")
    assert torch.equal(found["testing"].inputs["points"], whole.inputs["points"])
    monkeypatch.chdir(tmp_path / "training" / "velodyne")
    bare = made.read(Path("000001.bin"))
    assert torch.equal(bare.inputs["points"], found["training"].inputs["points"])


def test_read_without_calibration_keeps_all_round(made, root, tmp_path):
    path = tmp_path / "scan.bin"
    whole = scans.read_points(root / "training" / "velodyne" / "000001.bin")
    scans.write_points(path, whole)
    batch = made.read(path)
    low, high = np.array(tiny.RANGE[:3]), np.array(tiny.RANGE[3:])
    assert len(batch.inputs["points"]) == ((whole[:, :3] >= low) & (whole[:, :3] < high)).all(1).sum()
    with pytest.raises(KDBenchError, match="no such scan"):
        made.read(tmp_path / "none.bin")


def test_predictions_are_json(made, model, root, monkeypatch):
    batch = tiny.first(made)
    monkeypatch.setattr(made, "decode", lambda *_: tiny.perfect(made, batch))
    found = json.loads(json.dumps(made.predictions(model, batch)))
    assert len(found) == 2
    assert [o["class"] for o in found[0]["objects"]] == ["Car", "Pedestrian", "Cyclist"]
    np.testing.assert_allclose(found[0]["objects"][0]["box"], batch.targets["boxes"][0], atol=1e-3)
    assert found[0]["objects"][0]["score"] == 0.9


def test_predictions_of_wild_codes_are_json(made, root):
    with rng.scope(0, "wild"):
        wild = made.build(tiny.NET).eval()
    torch.nn.init.constant_(wild.head.cls.bias, 0.0)
    torch.nn.init.constant_(wild.head.box.bias, 100.0)
    found = made.predictions(wild, tiny.first(made))
    assert found[0]["objects"]
    json.dumps(found, allow_nan=False)


# ---- simulated data -----------------------------------------------------------------------------------------------


@pytest.fixture
def simulated(tmp_path) -> PointCloud:
    pytest.importorskip("open3d", reason="the simulator needs Open3D")
    simulator = {"max_distance": 20.0, "lateral": 10.0, "full_sweep": False, "workers": 1, "progress": False}
    return tiny.task(None, tmp_path / "cache", {"train": 3, "test": 1, "simulator": simulator})


def test_embedded_data_takes_the_same_way(simulated):
    info = simulated.dataset()
    assert (info.name, info.embedded, dict(info.sizes)) == ("kitti-simulated", True, {"train": 2, "val": 1, "test": 1})
    batch = tiny.first(simulated, "train")
    assert len(batch.inputs["points"]) > 2000
    assert len(batch.targets["boxes"]) > 0
    (root,) = (simulated.store.root / "kitti-simulated").iterdir()
    assert not (root / "scratch").exists()
    assert sorted(p.name for p in root.iterdir()) == ["kitti", "manifest.json"]


def test_an_interrupted_simulation_is_made_again(simulated, monkeypatch):
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    # After the scans are whole and before the product is.
    monkeypatch.setattr("kdbench.base.store._write_manifest", killed)
    with pytest.raises(KeyboardInterrupt):
        simulated.prepare()
    (work,) = (simulated.store.root / "kitti-simulated").iterdir()
    assert (work / "kitti").is_dir()
    monkeypatch.undo()
    left = work / "scratch" / "kitti"
    left.mkdir(parents=True)
    (left / "half").touch()
    simulated.prepare()
    assert simulated.dataset().sizes["test"] == 1


def test_disk_full_while_simulating(simulated, monkeypatch):
    def full(path: Path, points: np.ndarray) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tasks.pointcloud.simulator.write_points", full)
    with pytest.raises(KDBenchError, match=r"cannot write the simulated frames \(No space left on device\)") as error:
        simulated.prepare()
    assert "\n" not in str(error.value)
    assert not list(simulated.store.root.rglob("manifest.json"))
    assert not list(simulated.store.root.rglob("*.bin"))
    monkeypatch.undo()
    simulated.prepare()
    assert simulated.dataset().sizes["test"] == 1
