"""KITTI average precision (2-D, bird's eye view and 3-D) and orientation, as the benchmark's own evaluator computes it.

Geiger et al., "Are we ready for autonomous driving? The KITTI vision benchmark suite" (CVPR 2012); 40 recall
positions since Simonelli et al. (ICCV 2019). What follows from the official evaluator and is easy to miss:

* Ground truth of a neutral class (Van for Car, Person_sitting for Pedestrian) or beyond the difficulty is ignored: a
  detection matched to it counts neither as right nor as wrong. So does a detection lower than the minimum height in
  the image, *whatever its class is*: a small Cyclist may take up a Pedestrian.
* Two passes. The first gives each ground truth, in file order, its best-scoring free detection, and the scores of the
  true positives yield at most 41 thresholds. The second, once per threshold, gives it the free detection of largest
  overlap, and an ignored one only if there is no other. An overlap counts if it is strictly greater than the minimum.
* DontCare regions excuse false positives in 2-D only, by intersection over the detection's area.
* With fewer than 41 valid objects even a perfect detector stays below 100 (n objects: at most (n - 1) / 40 under R40).
  ``all`` is the plain area under the precision envelope at every score and has no such limit; it is not an official
  figure.
* Average orientation similarity (AOS) is 2-D average precision with a true positive worth (1 + cos d) / 2, d being the
  difference of the observation angles. It needs the angle of every detection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kdbench.errors import KDBenchError, nearest
from tasks.pointcloud.kitti import MAX_OCCLUSION, MAX_TRUNCATION, MIN_HEIGHT, NO_ANGLE, Objects

CLASSES = ("Car", "Pedestrian", "Cyclist")
METRICS = ("3d", "bev", "2d", "aos")
DIFFICULTIES = ("easy", "moderate", "hard")
INTERPOLATIONS = ("R40", "R11", "all")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
ClassResult = dict[str, dict[str, dict[str, float]]]  # metric, interpolation, difficulty
Result = dict[str, ClassResult]

_NEUTRAL = {"car": "van", "pedestrian": "person_sitting"}
_STRICT = {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
_LOOSE = {"Car": 0.5, "Pedestrian": 0.25, "Cyclist": 0.25}  # BEV and 3-D; 2-D has no loose variant
_SLOTS = 41


@dataclass(frozen=True)
class _Rows:
    """The objects of all frames as columns; frames are contiguous and in order."""

    frame: Ints
    kind: NDArray[np.str_]  # lower case: the official evaluator ignores case
    bbox: Floats  # (N, 4)
    boxes: Floats  # (N, 7): x, z and -y of the camera frame, so that z is up
    score: Floats
    occluded: Floats
    truncated: Floats
    alpha: Floats

    @property
    def height(self) -> Floats:
        return self.bbox[:, 3] - self.bbox[:, 1]


@dataclass(frozen=True)
class _Edges:
    """Pairs of a ground truth and a detection whose overlap exceeds the minimum, in order of ground truth."""

    gt: Ints
    dt: Ints
    overlap: Floats
    worth: Floats  # of a match, 1 but for AOS

    def select(self, which: Bools | Ints) -> _Edges:
        return _Edges(self.gt[which], self.dt[which], self.overlap[which], self.worth[which])


def evaluate(
    ground_truth: Sequence[Objects],
    detections: Sequence[Objects],
    classes: Sequence[str] = CLASSES,
    loose: bool = False,
    metrics: Sequence[str] = METRICS,
) -> Result:
    """Average precision and orientation similarity of detections, frame by frame in the order of ``ground_truth``.

    Args:
        ground_truth: Labels of each frame, DontCare included.
        detections: Scored detections of each frame; any class, only ``classes`` are evaluated.
        classes: Which classes to evaluate.
        loose: KITTI's second set of minimum overlaps for BEV and 3-D: 0.5 for Car, 0.25 for the others.
        metrics: Which of :data:`METRICS`.

    Returns:
        ``{class: {"3d" | "bev" | "2d" | "aos": {"R40" | "R11" | "all": {"easy" | "moderate" | "hard": percent}}}}``;
        nan where a class has no valid ground truth, and for AOS where a detection has no angle (alpha = -10).

    Raises:
        KDBenchError: Different numbers of frames, a detection without score, or a class that KITTI does not evaluate.
    """
    if len(ground_truth) != len(detections):
        raise KDBenchError(f"{len(ground_truth)} frames of ground truth but {len(detections)} of detections")
    for k, frame in enumerate(detections):
        if len(frame) and frame.score is None:
            raise KDBenchError(f"detections of frame {k} have no score; read them with scored=True")
    for name in classes:
        if name not in _STRICT:
            raise KDBenchError(f"KITTI has no minimum overlap for class {name!r}; {nearest(name, _STRICT)}")
    spatial = _LOOSE if loose else _STRICT
    gt, dt = _rows(ground_truth), _rows(detections)
    return {name: _evaluate_class(gt, dt, name, _STRICT[name], spatial[name], metrics) for name in classes}


def valid_counts(ground_truth: Sequence[Objects], classes: Sequence[str] = CLASSES) -> dict[str, dict[str, int]]:
    """Number of ground truths that count, ``{class: {difficulty: n}}``. Below 41, R40 and R11 are bounded by n."""
    gt = _rows(ground_truth)
    return {
        name: {
            level: int((~_too_hard(gt, k) & (gt.kind == name.lower())).sum()) for k, level in enumerate(DIFFICULTIES)
        }
        for name in classes
    }


def mean_ap(result: Result, metric: str = "3d", interpolation: str = "R40", difficulty: str = "moderate") -> float:
    """Mean over the classes that have valid ground truth, nan if none has."""
    values = [by_metric[metric][interpolation][difficulty] for by_metric in result.values()]
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _rows(frames: Sequence[Objects]) -> _Rows:
    def column(name: str, *shape: int) -> Floats:
        parts = [np.asarray(getattr(frame, name), dtype=np.float64).reshape(-1, *shape) for frame in frames]
        return np.concatenate(parts) if parts else np.zeros((0, *shape))

    x, y, z = column("location", 3).T
    h, w, length = column("dimensions", 3).T
    counts = [len(frame) for frame in frames]
    scores = [np.zeros(len(f)) if f.score is None else np.asarray(f.score, dtype=np.float64) for f in frames]
    return _Rows(
        frame=np.repeat(np.arange(len(frames)), counts),
        kind=np.array([kind.lower() for frame in frames for kind in frame.types.tolist()], dtype=np.str_),
        bbox=column("bbox", 4),
        boxes=np.stack((x, z, h / 2 - y, length, w, h, -column("rotation_y")), axis=1),
        score=np.concatenate(scores) if scores else np.zeros(0),
        occluded=column("occluded"),
        truncated=column("truncated"),
        alpha=column("alpha"),
    )


def _too_hard(gt: _Rows, level: int) -> Bools:
    hidden = (gt.occluded > MAX_OCCLUSION[level]) | (gt.truncated > MAX_TRUNCATION[level])
    return hidden | (gt.height <= MIN_HEIGHT[level])


def _evaluate_class(
    gt: _Rows, dt: _Rows, name: str, overlap_2d: float, overlap_3d: float, metrics: Sequence[str]
) -> ClassResult:
    kind = name.lower()
    own_gt, own_dt = gt.kind == kind, dt.kind == kind
    neutral = gt.kind == _NEUTRAL.get(kind, "")
    height = np.abs(dt.height)
    pairs = _pairs(gt, own_gt | neutral, dt, own_dt | (height < max(MIN_HEIGHT)))
    minimum = {"3d": overlap_3d, "bev": overlap_3d, "2d": overlap_2d, "aos": overlap_2d}
    excused = _covered(gt, dt, own_dt, overlap_2d)

    result: ClassResult = {}
    for metric in metrics:
        overlap = _overlap(gt, dt, *pairs, metric)
        near = overlap > minimum[metric]
        edges = _Edges(pairs[0][near], pairs[1][near], overlap[near], np.ones(near.sum()))
        judged = True
        if metric == "aos":
            edges = replace(edges, worth=(1 + np.cos(gt.alpha[edges.gt] - dt.alpha[edges.dt])) / 2)
            judged = not (dt.alpha == NO_ANGLE).any()
        result[metric] = {interpolation: {} for interpolation in INTERPOLATIONS}
        for level, difficulty in enumerate(DIFFICULTIES):
            small = height < MIN_HEIGHT[level]
            scored = own_dt & ~small
            values = _average_precision(
                edges.select((scored | small)[edges.dt]),
                gt.frame,
                valid=own_gt & ~_too_hard(gt, level) & judged,
                scored=scored,
                blamed=scored & ~excused if metric in ("2d", "aos") else scored,
                score=dt.score,
            )
            for interpolation, value in zip(INTERPOLATIONS, values, strict=True):
                result[metric][interpolation][difficulty] = value
    return result


def _pairs(gt: _Rows, gt_mask: Bools, dt: _Rows, dt_mask: Bools) -> tuple[Ints, Ints]:
    """All pairs of a kept ground truth and a kept detection of one frame, by ground truth, then detection."""
    (gt_row,), (dt_row,) = gt_mask.nonzero(), dt_mask.nonzero()
    first = np.searchsorted(dt.frame[dt_row], gt.frame[gt_row], side="left")
    count = np.searchsorted(dt.frame[dt_row], gt.frame[gt_row], side="right") - first
    within = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)
    return np.repeat(gt_row, count), dt_row[np.repeat(first, count) + within]


def _overlap(gt: _Rows, dt: _Rows, i: Ints, j: Ints, metric: str) -> Floats:
    """IoU of pairs of a ground truth and a detection, ``(P,)``."""
    if metric in ("2d", "aos"):
        shared = _shared(gt.bbox[i], dt.bbox[j])
        return _divide(shared, _area(gt.bbox[i]) + _area(dt.bbox[j]) - shared)

    import torch  # here, so that the rest of this module, and --help, do without it

    from tasks.pointcloud.boxes import iou_3d, rotated_iou_bev, to_bev

    a, b = torch.from_numpy(gt.boxes[i]), torch.from_numpy(dt.boxes[j])
    iou = iou_3d(a, b, aligned=True) if metric == "3d" else rotated_iou_bev(to_bev(a), to_bev(b), aligned=True)
    return iou.numpy()


def _area(bbox: Floats) -> Floats:
    return (bbox[:, 2] - bbox[:, 0]) * (bbox[:, 3] - bbox[:, 1])


def _shared(a: Floats, b: Floats) -> Floats:
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    return sides.clip(min=0).prod(axis=1)


def _divide(shared: Floats, whole: Floats) -> Floats:
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def _covered(gt: _Rows, dt: _Rows, own_dt: Bools, minimum: float) -> Bools:
    """Which detections lie in a DontCare region by more than ``minimum`` of their own area in the image."""
    i, j = _pairs(gt, gt.kind == "dontcare", dt, own_dt)
    covered = np.zeros(len(dt.frame), dtype=bool)
    covered[j[_divide(_shared(gt.bbox[i], dt.bbox[j]), _area(dt.bbox[j])) > minimum]] = True
    return covered


def _average_precision(
    edges: _Edges, gt_frame: Ints, valid: Bools, scored: Bools, blamed: Bools, score: Floats
) -> tuple[float, float, float]:
    """AP in percent under R40, R11 and ``all``.

    Args:
        edges: Possible matches.
        gt_frame: Frame of each ground truth.
        valid: Ground truths that count; others that occur in ``edges`` are ignored ones.
        scored: Detections that count; others that occur in ``edges`` are ignored ones.
        blamed: Those of ``scored`` that are a false positive where unmatched.
        score: Score of each detection.
    """
    n_valid = int(valid.sum())
    if n_valid == 0:
        return (float("nan"),) * 3
    by_score = edges.select(np.lexsort((edges.dt, -score[edges.dt], edges.gt)))
    taken = _match(by_score, gt_frame, np.ones((len(by_score.gt), 1), dtype=bool))[:, 0]
    matched = by_score.select(taken)
    right = matched.select(valid[matched.gt] & scored[matched.dt])
    hits = score[right.dt]
    free = blamed.copy()
    free[matched.dt] = False
    curve = _precision(edges, gt_frame, valid, scored, blamed, score, _thresholds(hits, n_valid))
    return (
        100 * float(curve[1:].sum()) / (_SLOTS - 1),
        100 * float(curve[::4].sum()) / 11,
        100 * _area_under_envelope(hits, right.worth, score[free], n_valid),
    )


def _match(edges: _Edges, gt_frame: Ints, visible: Bools) -> Bools:
    """Matches frame by frame, ground truths in file order, each to its first edge that is visible and still free.

    All frames and all T thresholds advance together: round r serves the r-th ground truth of every frame.

    Args:
        edges: E edges, by ground truth and within one by preference.
        gt_frame: Frame of each ground truth.
        visible: ``(E, T)``, whether the detection of an edge exists at a threshold.

    Returns:
        ``(E, T)``: the edges that are matches.
    """
    taken = np.zeros_like(visible)
    gts, start, size = np.unique(edges.gt, return_index=True, return_counts=True)
    _, first, count = np.unique(gt_frame[gts], return_index=True, return_counts=True)
    turn = np.arange(len(gts)) - np.repeat(first, count)
    dts, dt = np.unique(edges.dt, return_inverse=True)
    used = np.zeros((len(dts), visible.shape[1]), dtype=bool)
    for r in range(int(turn.max(initial=-1)) + 1):
        (turns,) = (turn == r).nonzero()
        ends = size[turns].cumsum()
        rows = np.arange(ends[-1]) + np.repeat(start[turns] - (ends - size[turns]), size[turns])
        place = np.where(visible[rows] & ~used[dt[rows]], rows[:, None], len(taken))
        best = np.minimum.reduceat(place, ends - size[turns], axis=0)
        _, t = (best < len(taken)).nonzero()
        best = best[best < len(taken)]
        taken[best, t] = True
        used[dt[best], t] = True
    return taken


def _thresholds(hits: Floats, n_valid: int) -> Floats:
    """Scores at which recall comes nearest to 0, 1/40, 2/40, …: at most 41, falling."""
    chosen = []
    recall = 0.0
    ordered = np.sort(hits)[::-1].tolist()
    for i, score in enumerate(ordered):
        last = i == len(ordered) - 1
        here = (i + 1) / n_valid
        beyond = here if last else (i + 2) / n_valid
        if beyond - recall < recall - here and not last:
            continue
        chosen.append(score)
        recall += 1 / (_SLOTS - 1.0)
    return np.array(chosen)


def _precision(
    edges: _Edges, gt_frame: Ints, valid: Bools, scored: Bools, blamed: Bools, score: Floats, thresholds: Floats
) -> Floats:
    """Precision at each of the 41 slots, made monotone from the right; 0 where recall is not reached."""
    preference = np.where(scored[edges.dt], -edges.overlap, 0.0)  # ignored detections last, in file order
    edges = edges.select(np.lexsort((edges.dt, preference, edges.gt)))
    taken = _match(edges, gt_frame, score[edges.dt][:, None] >= thresholds)
    right = valid[edges.gt] & scored[edges.dt]
    tp = taken[right]
    present = np.sort(score[blamed])
    fp = len(present) - np.searchsorted(present, thresholds) - taken[blamed[edges.dt]].sum(axis=0)
    curve = np.zeros(_SLOTS)
    curve[: len(thresholds)] = edges.worth[right] @ tp / np.maximum(tp.sum(axis=0) + fp, 1)
    return np.maximum.accumulate(curve[::-1])[::-1]


def _area_under_envelope(hits: Floats, worth: Floats, misses: Floats, n_valid: int) -> float:
    """Area under precision made monotone, as recall passes every distinct score.

    Matching by score is the same at every threshold, so that one pass yields the whole curve.
    """
    levels = np.unique(hits)[::-1]
    order = np.argsort(hits)
    tp = len(hits) - np.searchsorted(hits[order], levels)
    gained = worth[order][::-1].cumsum()[tp - 1]
    fp = len(misses) - np.searchsorted(np.sort(misses), levels)
    envelope = np.maximum.accumulate((gained / (tp + fp))[::-1])[::-1]
    return float((np.diff(tp, prepend=0) * envelope).sum() / n_valid)
