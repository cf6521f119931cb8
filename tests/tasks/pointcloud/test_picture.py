from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from kdbench.base import rng
from tasks.pointcloud import picture

CLASSES = ["Pedestrian", "Cyclist", "Car"]
RANGE = (0.0, -20.0, -3.0, 40.0, 20.0, 1.0)
NOTHING = (np.empty((0, 7), np.float32), np.empty(0, np.int64), np.empty(0, np.float32))
CAR = np.array([[20.0, 5, -1, 4, 2, 1.5, 0.3]], np.float32)


def cloud(n: int = 3000) -> np.ndarray:
    g = rng.numpy(0, "cloud")
    return g.uniform([0, -20, -2, 0], [40, 20, 1, 1], (n, 4)).astype(np.float32)


def close_to(image: Image.Image, color: str, tolerance: int = 24) -> np.ndarray:
    pixels = np.asarray(image, dtype=np.int64)
    wanted = np.round(255 * np.array(to_rgb(color))).astype(np.int64)
    return (np.abs(pixels - wanted) <= tolerance).all(-1)


def car(score: float, label: int = 2) -> picture.Found:
    return CAR, np.array([label]), np.array([score], np.float32)


def in_panels(image: Image.Image, color: str) -> list[int]:
    """Pixels of a colour in each third of the picture, without title and legend."""
    found = close_to(image, color)[60:-70]
    return [int(part.sum()) for part in np.array_split(found, 3, axis=1)]


@pytest.mark.parametrize("models", [1, 2, 3, 5])
def test_size(models: int) -> None:
    image = picture.render(cloud(), NOTHING[:2], {f"model {i}": car(0.9) for i in range(models)}, CLASSES, RANGE)
    assert image.mode == "RGB"
    assert image.width == 1500 if models > 1 else 900 < image.width < 1500
    assert 300 < image.height < 1500
    assert close_to(image, "#ffffff", 0).mean() > 0.4


def test_each_panel_shows_what_its_model_found() -> None:
    predictions = {"teacher": car(1.0), "scratch": NOTHING, "student": car(1.0, label=1)}
    image = picture.render(cloud(0), (CAR, np.array([2])), predictions, CLASSES, RANGE)
    blank = picture.render(cloud(0), (CAR, np.array([2])), dict.fromkeys(predictions, NOTHING), CLASSES, RANGE)
    car_color, cyclist_color = picture.CLASS_COLORS[2], picture.CLASS_COLORS[1]
    for color, shown in ((car_color, [True, False, False]), (cyclist_color, [False, False, True])):
        assert [count > 100 for count in in_panels(image, color)] == shown
        assert in_panels(blank, color) == [0, 0, 0]
    dashes = in_panels(blank, picture.TRUTH_COLOR)
    assert min(dashes) > 50
    assert max(dashes) - min(dashes) < 0.2 * max(dashes)


def test_a_lower_score_is_fainter() -> None:
    ink = []
    for score in (0.1, 0.5, 1.0):
        image = picture.render(cloud(0), (CAR, np.array([2])), {"student": car(score)}, CLASSES, RANGE)
        blank = picture.render(cloud(0), (CAR, np.array([2])), {"student": NOTHING}, CLASSES, RANGE)
        assert (sum(in_panels(image, picture.CLASS_COLORS[2])) > 100) == (score == 1.0)  # the outline too
        ink.append(np.abs(np.asarray(image, np.int64) - np.asarray(blank, np.int64)).sum())
    assert 0 < 2 * ink[0] < ink[1] < ink[2]


def test_the_tick_points_ahead() -> None:
    # Nose to the right of the picture: -y.
    box = np.array([[20.0, 0, -1, 4, 2, 1.5, -math.pi / 2]])
    outline, tick = picture._flat(box)
    assert np.allclose(np.abs(outline[0] - [0, 20]), [2, 1])
    assert np.allclose(tick[0], [[2.0, 20.0], [2.8, 20.0]])


def test_the_view_holds_boxes_and_sensor_and_keeps_its_proportions() -> None:
    g = rng.numpy(0, "view")
    for _ in range(50):
        boxes = np.column_stack([g.uniform(RANGE[:2], RANGE[3:5], (4, 2)), g.uniform(0.5, 4, (4, 5))])
        left, right, bottom, top = picture._view(cloud(10), boxes, {}, RANGE, 1.5)
        assert (-boxes[:, 1] > left).all()
        assert (-boxes[:, 1] < right).all()
        assert (boxes[:, 0] < top).all()
        assert bottom == 0
        assert 0.6 - 1e-6 <= (top - bottom) / (right - left) <= 1.5 + 1e-6
        assert right - left >= picture.SMALLEST - 1e-6


def test_poor_detections_do_not_widen_the_view() -> None:
    far = np.array([[39.0, 19, -1, 4, 2, 1.5, 0]])
    alone = picture._view(cloud(10), CAR, {}, RANGE, 1.5)
    for score, same in ((0.2, True), (0.9, False)):
        found = {"student": (far, np.array([2]), np.array([score]))}
        assert (picture._view(cloud(10), CAR, found, RANGE, 1.5) == alone) == same


def test_without_truth_the_legend_has_the_classes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[list[str]] = []
    legend = picture.Figure.legend

    def noting(figure: picture.Figure, **options: Any) -> Any:
        named.append([handle.get_label() for handle in options["handles"]])
        return legend(figure, **options)

    monkeypatch.setattr(picture.Figure, "legend", noting)
    for truth in (None, NOTHING[:2]):
        image = picture.render(cloud(0), truth, {"000134.bin": car(1.0)}, CLASSES, RANGE)
        assert close_to(image, picture.CLASS_COLORS[2], 40).sum() > 100
    assert named == [[*CLASSES], ["ground truth", *CLASSES]]


@pytest.mark.parametrize("points", [0, 500])
def test_nothing_to_see(points: int) -> None:
    image = picture.render(cloud(points), NOTHING[:2], {"student": NOTHING}, CLASSES, RANGE, title="empty")
    assert image.height > 300


def test_a_title_takes_room_and_pictures_repeat() -> None:
    bare = picture.render(cloud(), (CAR, np.array([2])), {"student": car(0.8)}, CLASSES, RANGE)
    again = picture.render(cloud(), (CAR, np.array([2])), {"student": car(0.8)}, CLASSES, RANGE)
    titled = picture.render(cloud(), (CAR, np.array([2])), {"student": car(0.8)}, CLASSES, RANGE, title="Frame 7")
    assert bare.tobytes() == again.tobytes()
    assert titled.height > bare.height


def test_no_global_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    picture.render(cloud(10), NOTHING[:2], {"student": car(0.8)}, CLASSES, RANGE)
    assert "matplotlib.pyplot" not in sys.modules


def test_media_is_what_wandb_reads() -> None:
    truth = (np.concatenate([CAR, CAR + 3]), np.array([2, 0]))
    predictions = {"teacher": car(0.25), "student": car(0.75, label=1), "scratch": NOTHING}
    scene = picture.media(cloud(200), truth, predictions, CLASSES)
    assert scene["type"] == "lidar/beta"
    assert np.array_equal(scene["points"][:, :3], cloud(200)[:, :3])
    category = scene["points"][:, 3]
    assert (category == category.astype(int)).all()
    assert (category.min(), category.max()) == (1, 14)
    rank = cloud(200)[:, 2].argsort()
    assert (np.diff(category[rank]) >= 0).all()
    boxes = json.loads(json.dumps(scene["boxes"].tolist()))
    assert [box["label"] for box in boxes] == ["true Car", "true Pedestrian", "teacher Car", "student Cyclist"]
    assert [box.get("score") for box in boxes] == [None, None, 0.25, 0.75]
    assert len({tuple(box["color"]) for box in boxes}) == 3
    assert all(0 <= channel <= 255 for box in boxes for channel in box["color"])
    corners = np.array(boxes[0]["corners"])
    assert corners.shape == (8, 3)
    assert np.allclose(corners.mean(0), CAR[0, :3], atol=1e-6)
    # A box, to the last digit: its four bottom sides are at right angles.
    sides = np.diff(corners[[0, 1, 2, 3, 0]], axis=0)
    assert np.abs((sides * np.roll(sides, 1, axis=0)).sum(1)).max() < 1e-12
    assert np.allclose(np.linalg.norm(sides, axis=1), [4, 2, 4, 2])


@pytest.mark.parametrize("points", [0, 20])
def test_media_goes_into_object3d(points: int, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    scene = picture.media(cloud(points), NOTHING[:2], {"student": car(0.5)} if points else {}, CLASSES)
    stored = json.loads(Path(wandb.Object3D(scene)._path).read_text())
    assert len(stored["points"]) == points
    assert len(stored["boxes"]) == (1 if points else 0)
