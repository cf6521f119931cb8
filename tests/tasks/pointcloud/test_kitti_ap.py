from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.base import rng
from kdbench.errors import KDBenchError
from tasks.pointcloud.kitti import Objects, read_objects
from tasks.pointcloud.kitti_ap import CLASSES, DIFFICULTIES, INTERPOLATIONS, METRICS, evaluate, mean_ap, valid_counts
from tests.tasks.pointcloud.kitti_reference import objects, random_frames, reference_evaluate

FIXTURE = Path(__file__).parent / "fixtures" / "eval"


def read_pair(root: Path) -> tuple[list[Objects], list[Objects]]:
    names = sorted(path.name for path in (root / "gt").glob("*.txt"))
    return [read_objects(root / "gt" / n) for n in names], [read_objects(root / "dets" / n, scored=True) for n in names]


OVERLAPS = ("3d", "bev", "2d")


def flat(
    result: dict, interpolations: tuple[str, ...] = INTERPOLATIONS, metrics: tuple[str, ...] = METRICS
) -> dict[str, float]:
    return {
        f"{name}/{metric}/{interpolation}/{level}": by_metric[metric][interpolation][level]
        for name, by_metric in result.items()
        for metric in metrics
        for interpolation in interpolations
        for level in DIFFICULTIES
    }


def row(
    kind: str,
    x: float = 0.0,
    pixels: float = 60.0,
    score: float = 0.0,
    occluded: int = 0,
    truncated: float = 0.0,
    length: float = 4.0,
    left: float | None = None,
) -> tuple:
    """An object 2 m wide and 1.5 m high at (x, 1.6, 20), 100 pixels wide in the image, unique for each x."""
    left = 100 * x if left is None else left
    box = (left, 100, left + 100, 100 + pixels)
    return (kind, truncated, occluded, box, (1.5, 2.0, length), (x, 1.6, 20.0), 0.0, score)


def frame(gt: list[tuple], det: list[tuple]) -> tuple[list[Objects], list[Objects]]:
    return [objects(gt)], [objects(det, scored=True)]


@pytest.mark.parametrize("overlap", ["strict", "loose"])
def test_fixture_by_both_evaluators(overlap: str) -> None:
    expected = flat(json.loads((FIXTURE / "expected.json").read_text())[overlap], metrics=OVERLAPS)
    gt, det = read_pair(FIXTURE)
    assert len(gt) == 12
    assert len({round(v, 4) for v in expected.values()}) > 50  # the fixture tells the figures apart
    for evaluator in (evaluate, reference_evaluate):
        found = evaluator(gt, det, loose=overlap == "loose")
        assert flat(found, metrics=OVERLAPS) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("overlap", ["strict", "loose"])
def test_real_labels_as_two_public_evaluators_score_them(shared_data: Path, overlap: str) -> None:
    root = shared_data / "kitti_eval_oracle"
    if not root.is_dir():
        pytest.skip("needs ../shared/data/kitti_eval_oracle")
    oracle = json.loads((root / "expected.json").read_text())
    gt, det = read_pair(root)
    result = evaluate(gt, det, loose=overlap == "loose")
    assert flat(result) == pytest.approx(flat(reference_evaluate(gt, det, loose=overlap == "loose")), abs=1e-6)
    found = flat(result, ("R40", "R11"), OVERLAPS)
    expected = {}
    for key in found:
        name, metric, interpolation, level = key.split("/")
        expected[key] = oracle["ap_mmdet3d"][f"KITTI/{name}_{metric.upper()}_AP{interpolation[1:]}_{level}_{overlap}"]
    assert found == pytest.approx(expected, abs=1e-4)
    if overlap == "strict":
        for metric, title in (("3d", "detection_3D_AP"), ("bev", "detection_BEV_AP"), ("2d", "detection_AP")):
            for name in CLASSES:
                native = oracle["precision_native_cpp"][f"{name.lower()}_{title}"]["AP40"]
                assert [found[f"{name}/{metric}/R40/{level}"] for level in DIFFICULTIES] == pytest.approx(
                    native, abs=1e-3
                )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    frames=st.integers(1, 6),
    n_objects=st.integers(0, 9),
    n_false=st.integers(0, 6),
    decimals=st.integers(1, 2),
    loose=st.booleans(),
)
def test_random_frames_against_the_reference(seed, frames, n_objects, n_false, decimals, loose) -> None:
    gt, det = random_frames(rng.numpy(seed, "frames"), frames, n_objects, n_false, decimals)
    expected = flat(reference_evaluate(gt, det, loose))
    assert flat(evaluate(gt, det, loose=loose)) == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_frames_may_come_in_any_order() -> None:
    gt, det = random_frames(rng.numpy(0, "order"), 8)
    assert flat(evaluate(gt[::-1], det[::-1])) == pytest.approx(flat(evaluate(gt, det)), nan_ok=True)


@pytest.mark.parametrize(("n", "r40"), [(1, 0.0), (17, 40.0), (41, 100.0), (60, 100.0)])
def test_a_perfect_detector_is_bounded_by_the_number_of_objects(n: int, r40: float) -> None:
    gt = [row("Car", 10.0 * k) for k in range(n)]
    det = [row("Car", 10.0 * k, score=1 - k / 100) for k in range(n)]
    result = evaluate(*frame(gt, det))["Car"]
    for metric in METRICS:
        assert result[metric]["R40"]["easy"] == pytest.approx(r40)
        assert result[metric]["all"]["easy"] == pytest.approx(100)


def test_all_is_the_area_under_the_envelope() -> None:
    gt = [row("Car", 10.0 * k) for k in range(4)]
    # right, wrong, right, right; one object is never found: precision 1, 2/3, 3/4 -> envelope 1, 3/4, 3/4.
    det = [row("Car", x, score=s) for x, s in ((0, 0.9), (200, 0.8), (10, 0.7), (20, 0.6), (300, 0.1))]
    assert evaluate(*frame(gt, det))["Car"]["3d"]["all"]["easy"] == pytest.approx(100 * (1 + 0.75 + 0.75) / 4)


def test_an_overlap_equal_to_the_minimum_does_not_count() -> None:
    gt, det = frame([row("Cyclist")], [row("Cyclist", length=2.0, pixels=120, score=0.5)])
    for metric in METRICS:  # half as long, twice as high in the image, half the volume: 0.5 each
        assert evaluate(gt, det)["Cyclist"][metric]["all"]["easy"] == 0
    gt, det = frame([row("Cyclist")], [row("Cyclist", length=2.01, pixels=119, score=0.5)])
    for metric in METRICS:
        assert evaluate(gt, det)["Cyclist"][metric]["all"]["easy"] == 100


@pytest.mark.parametrize(("name", "neutral"), [("Car", "Van"), ("Pedestrian", "Person_sitting")])
def test_a_neutral_class_excuses_a_detection(name: str, neutral: str) -> None:
    det = [row(name, 10, score=0.9), row(name, 0, score=0.5)]
    neutral_frame = frame([row(name, 0), row(neutral, 10)], det)
    other_frame = frame([row(name, 0), row("Tram", 10)], det)
    for metric in METRICS:
        assert evaluate(*neutral_frame)[name][metric]["all"]["easy"] == 100
        assert evaluate(*other_frame)[name][metric]["all"]["easy"] == 50
    assert valid_counts(neutral_frame[0])[name]["easy"] == 1


def test_dont_care_excuses_in_2d_only() -> None:
    region = ("DontCare", -1, -1, (990, 90, 1200, 300), (-1, -1, -1), (-1000, -1000, -1000), -10, 0)
    gt, det = frame([row("Car"), region], [row("Car", 10, score=0.9), row("Car", 0, score=0.5)])
    result = evaluate(gt, det)["Car"]
    assert result["2d"]["all"]["easy"] == 100
    assert result["bev"]["all"]["easy"] == result["3d"]["all"]["easy"] == 50


def test_orientation_similarity_weighs_true_positives() -> None:
    gt, det = frame(
        [row("Car", 10.0 * k) for k in range(3)],
        [row("Car", 10.0 * k, score=0.9 - k / 10) for k in range(3)] + [row("Car", 90, score=0.1)],
    )
    for turn, worth in ((0.0, 1.0), (math.pi / 2, 0.5), (math.pi, 0.0), (2 * math.pi / 3, 0.25)):
        turned = [replace(det[0], alpha=np.append(gt[0].alpha + turn, 0.0))]
        result = evaluate(gt, turned)["Car"]
        assert result["2d"]["all"]["easy"] == pytest.approx(100)
        assert result["aos"]["all"]["easy"] == pytest.approx(100 * worth)
        for interpolation in ("R40", "R11"):
            expected = worth * result["2d"][interpolation]["easy"]
            assert result["aos"][interpolation]["easy"] == pytest.approx(expected)


def test_orientation_is_unknown_where_an_angle_is() -> None:
    gt, det = frame([row("Car")], [row("Car", score=0.5)])
    result = evaluate(gt, [replace(det[0], alpha=np.array([-10.0]))])["Car"]
    assert math.isnan(result["aos"]["R40"]["easy"])
    assert result["2d"]["all"]["easy"] == 100


def test_a_low_detection_of_any_class_takes_up_an_object() -> None:
    det = [row("Cyclist", 0, pixels=39, score=0.9), row("Car", 0, score=0.5)]
    result = evaluate(*frame([row("Car")], det))["Car"]["3d"]["all"]
    assert result["easy"] == 0  # the first pass hands the car to the low cyclist
    assert result["moderate"] == 100  # there it is not low and its class keeps it out


@pytest.mark.parametrize(("pixels", "ap"), [(39.9, 100), (40.0, 50)])
def test_a_false_detection_counts_from_the_minimum_height_on(pixels: float, ap: float) -> None:
    det = [row("Car", 10, pixels=pixels, score=0.9), row("Car", 0, score=0.5)]
    assert evaluate(*frame([row("Car")], det))["Car"]["3d"]["all"]["easy"] == ap


def test_no_detection_left_at_a_threshold_counts_as_precision_zero() -> None:
    # First pass: the occluded car takes the low detection, the other one scores. At that score the occluded car
    # prefers the high one, and neither a true nor a false positive is left.
    gt = [row("Car", occluded=3), row("Car", 0.2)]
    det = [row("Car", 0.1, pixels=30, score=0.9), row("Car", 0.1, score=0.5)]
    with np.errstate(all="raise"):
        assert evaluate(*frame(gt, det))["Car"]["3d"]["R11"]["easy"] == 0


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, (1, 1, 1)),
        ({"pixels": 40.0}, (0, 1, 1)),  # lower than or equal to the limit is ignored
        ({"pixels": 25.0}, (0, 0, 0)),
        ({"occluded": 1}, (0, 1, 1)),
        ({"occluded": 2}, (0, 0, 1)),
        ({"occluded": 3}, (0, 0, 0)),
        ({"truncated": 0.15}, (1, 1, 1)),
        ({"truncated": 0.31}, (0, 0, 1)),
    ],
)
def test_difficulties(changes: dict, counts: tuple[int, int, int]) -> None:
    gt = [objects([row("Car", **changes)])]
    assert tuple(valid_counts(gt)["Car"].values()) == counts
    ap = evaluate(gt, [objects([row("Car", score=0.5)], scored=True)])["Car"]["3d"]["all"]
    assert [0 if math.isnan(ap[level]) else 1 for level in DIFFICULTIES] == list(counts)


def test_class_names_are_compared_without_case() -> None:
    assert evaluate(*frame([row("car")], [row("CAR", score=0.5)]))["Car"]["3d"]["all"]["easy"] == 100


def test_empty_detections_score_zero_and_no_ground_truth_is_nan() -> None:
    gt = [objects([row("Car")]), Objects.empty()]
    result = evaluate(gt, [Objects.empty(scored=True)] * 2)
    values = flat(result)
    assert all(value == 0 for key, value in values.items() if key.startswith("Car"))
    assert all(math.isnan(value) for key, value in values.items() if not key.startswith("Car"))
    assert mean_ap(result) == 0
    nothing = evaluate([], [])
    assert math.isnan(mean_ap(nothing))


def test_mean_ap_is_over_the_classes_that_have_objects() -> None:
    gt, det = random_frames(rng.numpy(0, "mean"), 20)
    result = evaluate(gt, det)
    expected = np.mean([result[name]["bev"]["R11"]["hard"] for name in CLASSES])
    assert mean_ap(result, "bev", "R11", "hard") == pytest.approx(expected)


def test_other_classes_are_refused() -> None:
    with pytest.raises(KDBenchError, match="KITTI has no minimum overlap for class 'Truck'"):
        evaluate(*frame([row("Truck")], [row("Truck", score=0.5)]), classes=["Truck"])


def test_wrong_input_is_refused() -> None:
    gt, det = frame([row("Car")], [row("Car", score=0.5)])
    with pytest.raises(KDBenchError, match="1 frames of ground truth but 2"):
        evaluate(gt, det * 2)
    with pytest.raises(KDBenchError, match="frame 0 have no score"):
        evaluate(gt, gt)
