"""Pictures of detections: bird's-eye views side by side, and a 3-D scene for W&B."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image

from tasks.pointcloud.boxes import corners

Truth = tuple[np.ndarray, np.ndarray]
Found = tuple[np.ndarray, np.ndarray, np.ndarray]

PIXELS, DPI = 1500, 150  # most width of the picture
WIDEST = 7.4  # inches of a panel
TRUTH_COLOR = "#111111"
TRUTH_COLOR_3D = "#009E73"  # the scene of W&B is dark
CLASS_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # told apart by the colour-blind
MODEL_COLORS = ("#E69F00", "#56B4E9", "#CC79A7", "#D55E00", "#0072B2")
HEIGHTS = LinearSegmentedColormap.from_list("heights", ["#c9d3dc", "#93a1b0", "#5d6673"])
SHOWN = 0.3  # detections of a lower score are drawn, but do not widen the view
MARGIN, SMALLEST = 4.0, 24.0  # m around the boxes in view; m of the view's sides at least
TALLEST, FLATTEST = 1.5, 0.6  # height over width of a panel
DASHES = (0, (2.2, 1.6))
CATEGORIES = 14  # W&B colours points by a category from 1 to 14


def render(
    points: np.ndarray,
    truth: Truth | None,
    predictions: Mapping[str, Found],
    classes: Sequence[str],
    point_range: Sequence[float],
    title: str | None = None,
) -> Image.Image:
    """Draws one bird's-eye view per model, the sensor at the bottom looking up.

    The view is the part of the range that holds the boxes. True boxes are dashed; predicted ones have the colour of
    their class, a tick ahead, and are the fainter the lower their score.

    Args:
        points: ``(P, 4)`` x, y, z, reflectance.
        truth: True boxes ``(N, 7)`` and labels ``(N,)``; None where they are not known.
        predictions: Boxes ``(K, 7)``, labels ``(K,)`` and scores ``(K,)`` by model, in the order of the panels; at
            least one.
        classes: Names that labels index.
        point_range: x, y, z minimum, then x, y, z maximum, metres.
        title: Line above the panels.

    Returns:
        An RGB image, 1500 pixels wide; narrower for a single model.
    """
    panels = len(predictions)
    side, gap, head, foot = 0.08, 0.1, 0.3 + (0.3 if title else 0.0), 0.4  # inches
    panel = min(WIDEST, (PIXELS / DPI - 2 * side - gap * (panels - 1)) / panels)
    width = 2 * side + panels * panel + gap * (panels - 1)
    true = np.empty((0, 7)) if truth is None else truth[0]
    left, right, bottom, top = _view(points, true, predictions, point_range, min(TALLEST, WIDEST / panel))
    tall = panel * (top - bottom) / (right - left)
    height = head + tall + foot
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    heights = Normalize(point_range[2], point_range[5])
    for index, name in enumerate(predictions):
        place = ((side + index * (panel + gap)) / width, foot / height, panel / width, tall / height)
        axes = figure.add_axes(place, xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
        axes.set_title(name, fontsize=10, fontweight="bold", color="#222222", pad=5)
        _panel(axes, points, true, predictions[name], heights)
    if title:
        figure.suptitle(title, fontsize=10.5, y=1 - 0.1 / height, va="top", color="#222222")
    _legend(figure, classes, heights, (width, height), known=truth is not None)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _view(
    points: np.ndarray,
    truth: np.ndarray,
    predictions: Mapping[str, Found],
    point_range: Sequence[float],
    tallest: float,
) -> tuple[float, float, float, float]:
    """Returns left, right, bottom and top of the view in picture coordinates ``(-y, x)``.

    Its height is at most ``tallest`` times its width.
    """
    seen = [truth[:, :2], *(boxes[scores >= SHOWN, :2] for boxes, _, scores in predictions.values())]
    xy = np.concatenate(seen)
    if len(xy) == 0:
        xy = points[:, :2] if len(points) else np.asarray([point_range[:2], point_range[3:5]])
    limits = np.array([[-point_range[4], -point_range[1]], [point_range[0], point_range[3]]])
    flat = np.column_stack([-xy[:, 1], xy[:, 0]])
    low, high = flat.min(0) - MARGIN, flat.max(0) + MARGIN
    low[1] = limits[1, 0]  # the sensor is always in view
    low, high = np.clip(low, *limits.T), np.clip(high, *limits.T)
    size = np.maximum(high - low, SMALLEST)
    size = np.maximum(size, [size[1] / tallest, size[0] * FLATTEST])
    centre = (low + high) / 2
    left, right = centre[0] - size[0] / 2, centre[0] + size[0] / 2
    return float(left), float(right), float(low[1]), float(low[1] + size[1])


def _flat(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns outlines ``(N, 4, 2)`` and heading ticks ``(N, 2, 2)`` in picture coordinates ``(-y, x)``."""
    outline = _corners(boxes)[:, :4, :2]
    outline = np.stack([-outline[..., 1], outline[..., 0]], axis=-1)
    centre, front = outline.mean(1), outline[:, [0, 3]].mean(1)
    ahead = front - centre
    reach = np.linalg.norm(ahead, axis=-1, keepdims=True)
    tip = front + ahead / np.maximum(reach, 1e-6) * 0.8
    return outline, np.stack([front, tip], axis=1)


def _corners(boxes: np.ndarray) -> np.ndarray:
    # In float64: W&B refuses to draw corners that rounding has made anything but a box.
    return corners(torch.from_numpy(np.asarray(boxes, dtype=np.float64).reshape(-1, 7))).numpy()


def _panel(axes: Axes, points: np.ndarray, truth: np.ndarray, found: Found, heights: Normalize) -> None:
    boxes, labels, scores = found
    for spine in axes.spines.values():
        spine.set(color="#cccccc", linewidth=0.8)
    _rings(axes)
    order = np.argsort(points[:, 2], kind="stable")
    x, y, z = points[order, :3].T
    area = 0.28 * axes.get_window_extent().width / DPI  # points grow with the panel
    axes.scatter(-y, x, s=area, c=z, cmap=HEIGHTS, norm=heights, linewidths=0, zorder=1)

    best_last = np.argsort(scores, kind="stable")
    palette = np.array([to_rgb(color) for color in CLASS_COLORS])
    rgb, score = palette[labels[best_last] % len(palette)], np.clip(scores[best_last], 0, 1)
    outline, tick = _flat(boxes[best_last])
    edges = np.column_stack([rgb, 0.15 + 0.85 * score])
    faces = np.column_stack([rgb, 0.3 * score])
    axes.add_collection(PolyCollection(list(outline), facecolors=faces, edgecolors=edges, linewidths=1.5, zorder=3))
    axes.add_collection(LineCollection(list(tick), colors=edges, linewidths=1.5, zorder=3))
    outline, _ = _flat(truth)
    dashed = PolyCollection(list(outline), facecolors="none", edgecolors=TRUTH_COLOR, linewidths=0.9, zorder=4)
    dashed.set_linestyle([DASHES])
    axes.add_collection(dashed)


def _rings(axes: Axes) -> None:
    """Draws the sensor and circles of equal distance, labelled straight ahead."""
    left, right = axes.get_xlim()
    _, top = axes.get_ylim()
    angle = np.linspace(-np.pi / 2, np.pi / 2, 181)
    for radius in np.arange(10, np.hypot(max(-left, right), top), 10):
        axes.plot(radius * np.sin(angle), radius * np.cos(angle), color="#e4e4e4", linewidth=0.7, zorder=0)
        if left < 0 < right and radius < top:
            axes.annotate(
                f"{radius:.0f} m", (0, radius), ha="center", va="center", fontsize=6, color="#888888", zorder=2,
                bbox={"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
            )  # fmt: skip
    axes.plot(0, 0, marker=(3, 0, 0), markersize=9, color="#444444", zorder=2)


def _legend(figure: Figure, classes: Sequence[str], heights: Normalize, size: tuple[float, float], known: bool) -> None:
    width, height = size
    line = 0.2 / height  # where the middle of the legend is
    swatches: list[Patch | Line2D] = []
    if known:
        swatches.append(Line2D([], [], color=TRUTH_COLOR, linewidth=1.1, linestyle=DASHES, label="ground truth"))
    for index, name in enumerate(classes):
        color = CLASS_COLORS[index % len(CLASS_COLORS)]
        swatches.append(Patch(facecolor=(*to_rgb(color), 0.3), edgecolor=color, linewidth=1.5, label=name))
    figure.legend(
        handles=swatches, loc="center left", bbox_to_anchor=(0.0, line), ncols=len(swatches), frameon=False,
        fontsize=8, handlelength=1.8, columnspacing=1.2, handletextpad=0.5,
    )  # fmt: skip
    figure.text(
        (width - 2.0) / width, line, "opacity: score, tick: heading",
        ha="right", va="center", fontsize=8, color="#555555",
    )  # fmt: skip
    bar = figure.add_axes(((width - 1.45) / width, line - 0.045 / height, 1.0 / width, 0.09 / height))
    colorbar = figure.colorbar(ScalarMappable(heights, HEIGHTS), cax=bar, orientation="horizontal", ticks=[])
    colorbar.outline.set_visible(False)
    for x, side, text in ((-0.06, "right", f"z  {heights.vmin:g}"), (1.06, "left", f"{heights.vmax:g} m")):
        bar.text(x, 0.5, text, transform=bar.transAxes, ha=side, va="center", fontsize=8)


def media(points: np.ndarray, truth: Truth, predictions: Mapping[str, Found], classes: Sequence[str]) -> dict[str, Any]:
    """Describes a scene as plain arrays, in the form that ``wandb.Object3D`` reads.

    Args:
        points: ``(P, 4)`` x, y, z, reflectance.
        truth: True boxes ``(N, 7)`` and labels ``(N,)``.
        predictions: Boxes ``(K, 7)``, labels ``(K,)`` and scores ``(K,)`` by model.
        classes: Names that labels index.

    Returns:
        ``type``; ``points``, ``(P, 4)`` x, y, z and a category from 1 to 14 by height; ``boxes``, an array of dicts
        of ``corners``, ``label`` and ``color`` (one per model, 0 to 255), with ``score`` where predicted.
    """
    z = points[:, 2]
    low, high = np.quantile(z, [0.01, 0.99]) if len(z) else (0.0, 1.0)
    category = 1 + np.clip((z - low) / max(high - low, 1e-6) * CATEGORIES, 0, CATEGORIES - 1).astype(np.int64)
    boxes = _scene(truth[0], [f"true {classes[label]}" for label in truth[1]], TRUTH_COLOR_3D)
    for index, (name, (found, labels, scores)) in enumerate(predictions.items()):
        texts = [f"{name} {classes[label]}" for label in labels]
        color = MODEL_COLORS[index % len(MODEL_COLORS)]
        own = _scene(found, texts, color)
        boxes += [{**box, "score": round(float(score), 4)} for box, score in zip(own, scores, strict=True)]
    return {
        "type": "lidar/beta",
        "points": np.column_stack([points[:, :3], category]),
        "boxes": np.array(boxes, dtype=object),
    }


def _scene(boxes: np.ndarray, texts: Sequence[str], color: str) -> list[dict[str, Any]]:
    rgb = [round(255 * channel) for channel in to_rgb(color)]
    return [
        {"corners": box, "label": text, "color": rgb} for box, text in zip(_corners(boxes).tolist(), texts, strict=True)
    ]
