"""A second KITTI evaluator, slow and plain, written from the rules; and made-up frames to compare evaluators on.

Everything is loops over dictionaries in float64, with Shapely polygons for the overlaps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from shapely import Polygon, box

from tasks.pointcloud.kitti import Objects

SIZES = {
    "Car": (1.5, 1.6, 3.9),
    "Van": (2.2, 1.9, 5.0),
    "Pedestrian": (1.8, 0.6, 0.8),
    "Person_sitting": (1.3, 0.6, 0.8),
    "Cyclist": (1.7, 0.6, 1.8),
}
NEUTRAL = {"Car": "Van", "Pedestrian": "Person_sitting", "Cyclist": None}
LIMITS = {"easy": (40, 0, 0.15), "moderate": (25, 1, 0.3), "hard": (25, 2, 0.5)}
STRICT = {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
LOOSE = {"Car": 0.5, "Pedestrian": 0.25, "Cyclist": 0.25}


# ---------------------------------------------------------------------------------------------------- the evaluator


def reference_evaluate(gts: Sequence[Objects], dets: Sequence[Objects], loose: bool = False) -> dict:
    frames = [(_as_dicts(g), _as_dicts(d)) for g, d in zip(gts, dets, strict=True)]
    result: dict = {}
    for name in STRICT:
        result[name] = {}
        for metric in ("3d", "bev", "2d", "aos"):
            minimum = LOOSE[name] if loose and metric in ("3d", "bev") else STRICT[name]
            tables = [_overlaps(gt, det, metric) for gt, det in frames]
            result[name][metric] = {"R40": {}, "R11": {}, "all": {}}
            for difficulty in LIMITS:
                scores = _class_ap(frames, tables, name, metric, difficulty, minimum)
                for key, value in scores.items():
                    result[name][metric][key][difficulty] = value
    return result


def _as_dicts(objects: Objects) -> list[dict]:
    rows = []
    for k in range(len(objects)):
        h, w, length = (float(v) for v in objects.dimensions[k])
        x, y, z = (float(v) for v in objects.location[k])
        ry = float(objects.rotation_y[k])
        ground = []
        for along, aside in ((1, 1), (1, -1), (-1, -1), (-1, 1)):
            a, b = along * length / 2, aside * w / 2
            # Rotation about the camera's y axis, which points down.
            ground.append((x + a * math.cos(ry) + b * math.sin(ry), z - a * math.sin(ry) + b * math.cos(ry)))
        x1, y1, x2, y2 = (float(v) for v in objects.bbox[k])
        rows.append(
            {
                "type": str(objects.types[k]),
                "truncated": float(objects.truncated[k]),
                "alpha": float(objects.alpha[k]),
                "occluded": float(objects.occluded[k]),
                "pixels": y2 - y1,
                "image": box(x1, y1, x2, y2),
                "ground": Polygon(ground),
                "top": y - h,
                "bottom": y,
                "volume": h * w * length,
                "score": None if objects.score is None else float(objects.score[k]),
            }
        )
    return rows


def _overlap(a: dict, b: dict, metric: str) -> float:
    if metric == "3d":
        tall = min(a["bottom"], b["bottom"]) - max(a["top"], b["top"])
        if tall <= 0:
            return 0.0
        shared = a["ground"].intersection(b["ground"]).area * tall
        return shared / (a["volume"] + b["volume"] - shared)
    key = "ground" if metric == "bev" else "image"
    shared = a[key].intersection(b[key]).area
    return shared / (a[key].area + b[key].area - shared) if shared else 0.0


def _overlaps(gt: list[dict], det: list[dict], metric: str) -> list[list[float]]:
    return [[0.0 if g["type"] == "DontCare" else _overlap(g, d, metric) for d in det] for g in gt]


def _gt_state(g: dict, name: str, difficulty: str) -> str:
    pixels, occlusion, truncation = LIMITS[difficulty]
    if g["type"] == NEUTRAL[name]:
        return "ignored"
    if g["type"] != name:
        return "other"
    hard = g["pixels"] <= pixels or g["occluded"] > occlusion or g["truncated"] > truncation
    return "ignored" if hard else "valid"


def _det_state(d: dict, name: str, difficulty: str) -> str:
    if d["pixels"] < LIMITS[difficulty][0]:
        return "ignored"
    return "valid" if d["type"] == name else "other"


def _match_frame(gt_states, det_states, det, table, minimum, by_overlap):
    """(ground truth, detection) pairs, in the order of ground truth."""
    used: set[int] = set()
    matches = []
    for g, state in enumerate(gt_states):
        if state == "other":
            continue
        candidates = [
            d for d in range(len(det)) if det_states[d] != "other" and d not in used and table[g][d] > minimum
        ]
        if not candidates:
            continue
        real = [d for d in candidates if det_states[d] == "valid"]
        if not by_overlap:
            best = max(candidates, key=lambda d: (det[d]["score"], -d))
        elif real:
            best = max(real, key=lambda d: (table[g][d], -d))
        else:
            best = candidates[0]
        used.add(best)
        matches.append((g, best))
    return matches


def _excused(row, regions, minimum):
    area = row["image"].area
    return any(region.intersection(row["image"]).area / area > minimum for region in regions)


def _class_ap(frames, tables, name, metric, difficulty, minimum):
    states = [
        ([_gt_state(g, name, difficulty) for g in gt], [_det_state(d, name, difficulty) for d in det])
        for gt, det in frames
    ]
    n_valid = sum(gt_states.count("valid") for gt_states, _ in states)
    if n_valid == 0:
        return {"R40": math.nan, "R11": math.nan, "all": math.nan}

    def count(threshold, by_overlap):
        tp, fp, worth, hits = 0, 0, 0.0, []
        for (gt, det), (gt_states, det_states), table in zip(frames, states, tables, strict=True):
            regions = [g["image"] for g in gt if g["type"] == "DontCare"] if metric in ("2d", "aos") else []
            visible = [
                state if row["score"] >= threshold else "other" for state, row in zip(det_states, det, strict=True)
            ]
            matches = _match_frame(gt_states, visible, det, table, minimum, by_overlap)
            right = [(g, d) for g, d in matches if gt_states[g] == visible[d] == "valid"]
            for g, d in right:
                turned = gt[g]["alpha"] - det[d]["alpha"]
                worth += (1 + math.cos(turned)) / 2 if metric == "aos" else 1
            tp += len(right)
            hits += [det[d]["score"] for _, d in right]
            wrong = {d for d, state in enumerate(visible) if state == "valid"} - {d for _, d in matches}
            fp += sum(not _excused(det[d], regions, minimum) for d in wrong)
        return worth, tp + fp, hits

    hits = sorted(count(-math.inf, by_overlap=False)[2], reverse=True)
    slots = [0.0] * 41
    target, slot = 0.0, 0
    for i, score in enumerate(hits):
        here, following = (i + 1) / n_valid, (i + 2) / n_valid
        is_last = i + 1 == len(hits)
        if is_last or following - target >= target - here:
            worth, counted, _ = count(score, by_overlap=True)
            slots[slot] = worth / counted if counted else 0.0
            slot += 1
            target += 1 / 40
    slots = [max(slots[i:]) for i in range(41)]

    points = []
    for score in sorted(set(hits)):
        worth, counted, _ = count(score, by_overlap=False)
        points.append((sum(hit >= score for hit in hits) / n_valid, worth / counted))
    points.sort()
    area, reached = 0.0, 0.0
    for i, (recall, _) in enumerate(points):
        area += (recall - reached) * max(precision for _, precision in points[i:])
        reached = recall
    return {"R40": 100 * sum(slots[1:]) / 40, "R11": 100 * sum(slots[::4]) / 11, "all": 100 * area}


# --------------------------------------------------------------------------------------------------- made-up frames


def objects(rows: Sequence[tuple], scored: bool = False) -> Objects:
    """Objects from (type, truncated, occluded, bbox, hwl, location, rotation_y, score)."""
    if not rows:
        return Objects.empty(scored)
    types, truncated, occluded, bbox, size, location, yaw, score = zip(*rows, strict=True)
    return Objects(
        types=np.array(types),
        truncated=np.array(truncated, float),
        occluded=np.array(occluded, int),
        alpha=np.array([ry - math.atan2(x, z) for (x, _, z), ry in zip(location, yaw, strict=True)]),
        bbox=np.array(bbox, float),
        dimensions=np.array(size, float),
        location=np.array(location, float),
        rotation_y=np.array(yaw, float),
        score=np.array(score, float) if scored else None,
    )


def _view(size: np.ndarray, location: np.ndarray, ry: float) -> np.ndarray:
    """A box in the image that is plausible for an object, not a projection."""
    (h, w, length), (x, y, z) = size, location
    u, v, f = 610 + 720 * x / z, 173 + 720 * y / z, 720 / z
    half = f * (length * abs(math.cos(ry)) + w * abs(math.sin(ry))) / 2
    return np.array([u - half, v - f * h, u + half, v])


def random_frame(rng: np.random.Generator, n_objects: int, n_false: int, decimals: int = 2) -> tuple[Objects, Objects]:
    """Crowded labels and noisy detections of them: confused classes, doubles, false ones, tied scores, DontCare."""
    gt: list[tuple] = []
    det: list[tuple] = []
    names = list(SIZES)

    def add_detection(name: str, size: np.ndarray, location: np.ndarray, ry: float, noise: float) -> None:
        size = np.round(size * (1 + noise * rng.normal(0, 0.1, 3)), 2)
        location = np.round(location + noise * rng.normal(0, 0.25, 3) * (1, 0.3, 1), 2)
        ry = round(ry + noise * rng.normal(0, 0.2), 2)
        shown = np.round(_view(size, location, ry) + noise * rng.normal(0, 2, 4) * (1, 0, 1, 0), 2)
        det.append((name, -1, -1, shown, size, location, ry, round(float(rng.beta(2, 2)), decimals)))

    for _ in range(n_objects):
        name = names[rng.choice(len(names), p=(0.4, 0.1, 0.25, 0.05, 0.2))]
        size = np.round(np.array(SIZES[name]) * rng.uniform(0.9, 1.1, 3), 2)
        if gt and rng.random() < 0.3:  # beside another one, so that both compete for detections
            location = np.round(gt[-1][5] + rng.normal(0, 0.4, 3) * (1, 0.05, 1), 2)
        else:
            location = np.round([rng.uniform(-15, 15), rng.uniform(1.4, 1.8), rng.uniform(8, 55)], 2)
        ry = round(float(rng.choice([0, math.pi / 2, rng.uniform(-math.pi, math.pi)])), 2)
        truncated = round(float(rng.choice([0, 0, 0, rng.uniform(0, 0.6)])), 2)
        occluded = int(rng.choice(4, p=(0.5, 0.25, 0.15, 0.1)))
        gt.append((name, truncated, occluded, np.round(_view(size, location, ry), 2), size, location, ry, 0))
        for _ in range(rng.choice(4, p=(0.1, 0.6, 0.2, 0.1))):
            said = name if rng.random() < 0.85 else names[rng.integers(len(names))]
            add_detection(said, size, location, ry, noise=rng.choice([0.0, 0.5, 1.0]))
    for _ in range(n_false):
        name = names[rng.integers(len(names))]
        location = np.array([rng.uniform(-15, 15), 1.6, rng.uniform(8, 70)])
        add_detection(name, np.array(SIZES[name]), location, float(rng.uniform(-3, 3)), noise=1.0)
    for _ in range(rng.integers(0, 3)):
        if det:  # a region around some detection, so that DontCare matters
            region = det[rng.integers(len(det))][3] + rng.uniform(-8, 8, 4)
            region = np.round([*np.minimum(region[:2], region[2:]), *np.maximum(region[:2], region[2:])], 2)
            gt.append(("DontCare", -1, -1, region, (-1, -1, -1), (-1000, -1000, -1000), -10, 0))
    order = rng.permutation(len(det))
    return objects(gt), objects([det[k] for k in order], scored=True)


def random_frames(
    rng: np.random.Generator, n: int, n_objects: int = 6, n_false: int = 4, decimals: int = 2
) -> tuple[list[Objects], list[Objects]]:
    frames = [random_frame(rng, n_objects, n_false, decimals) for _ in range(n)]
    return [gt for gt, _ in frames], [det for _, det in frames]
