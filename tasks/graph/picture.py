"""Pictures of a graph: the neighbourhood of a node as each model sees it, and accuracy by age, edges and neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

#: Most nodes of a neighbourhood, steps of its layout, and groups of nodes along a curve.
MOST, STEPS, GROUPS = 60, 200, 6
#: Fewest nodes of a group whose accuracy is drawn.
FEWEST = 5


def render(
    centre: int,
    edges: np.ndarray,
    labels: np.ndarray,
    said: Mapping[str, np.ndarray],
    scored: np.ndarray,
    classes: Sequence[str],
    hollow: np.ndarray | None = None,
) -> Image.Image:
    """Draws two steps around a node, once with the truth and once for each model, and below how right they are where.

    Args:
        centre: The node.
        edges: ``(2, E)`` both ways.
        labels: ``(N,)``, -1 for unknown.
        said: By model, ``(N,)`` the classes that it says.
        scored: Nodes that are counted, in the order in which they arrived.
        classes: Their names.
        hollow: ``(N,)`` nodes that tell nothing by themselves, or None.

    Returns:
        An RGB image.
    """
    told = {"truth": labels, **said}
    nodes = around(centre, edges, len(labels))
    place, joined = layout(nodes, edges)
    figure = Figure(figsize=(4.2 * len(told), 8.4), dpi=90)
    FigureCanvasAgg(figure)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[1.15, 1])[:, 0]
    colours = _colours(len(classes))
    for axes, (name, values) in zip(above.subplots(1, len(told)), told.items(), strict=True):
        _neighbourhood(axes, place, joined, values[nodes], colours, None if hollow is None else hollow[nodes])
        axes.set_title(name if name == "truth" else f"{name}: {classes[values[centre]]}", fontsize=10)
    marks = [Line2D([], [], marker="o", linestyle="", color=c, label=n) for c, n in zip(colours, classes, strict=False)]
    above.legend(handles=marks, loc="lower center", ncols=len(marks), fontsize=8, frameon=False)
    by = {
        "order of arrival": np.arange(len(scored)) / max(len(scored) - 1, 1),
        "edges of the node (log2)": np.log2(1 + np.bincount(edges[1], minlength=len(labels))[scored]),
        "share of neighbours of its class": agreement(edges, labels)[scored],
    }
    for axes, (name, values) in zip(below.subplots(1, 3, sharey=True), by.items(), strict=True):
        for number, (model, answer) in enumerate(said.items()):
            right = answer[scored] == labels[scored]
            axes.plot(*_curve(values, right), marker="o", markersize=3, label=model, color=f"C{number}")
        axes.set_xlabel(name, fontsize=9)
        axes.set_ylim(0, 100)
        axes.grid(alpha=0.3)
    below.axes[0].set_ylabel("accuracy, %", fontsize=9)
    below.axes[0].legend(fontsize=8, frameon=False)
    above.subplots_adjust(left=0.01, right=0.99, top=0.92, bottom=0.1, wspace=0.04)
    below.subplots_adjust(left=0.06, right=0.98, top=0.97, bottom=0.14, wspace=0.06)
    stream = BytesIO()
    figure.savefig(stream, format="png")
    return Image.open(stream).convert("RGB")


def around(centre: int, edges: np.ndarray, count: int) -> np.ndarray:
    """Returns a node and those within two steps of it, itself first and at most :data:`MOST`."""
    near = np.zeros(count, bool)
    near[edges[0][edges[1] == centre]] = True
    far = np.zeros(count, bool)
    far[edges[0][near[edges[1]]]] = True
    rings = [np.array([centre]), np.flatnonzero(near), np.flatnonzero(far & ~near)]
    return np.concatenate([rings[0], *(ring[ring != centre] for ring in rings[1:])])[:MOST]


def layout(nodes: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places nodes by springs along edges and a push between all (Fruchterman, Reingold 1991).

    Returns:
        Places ``(n, 2)``, the first node in the middle, and the edges among them ``(e, 2)`` as rows of these.
    """
    count = len(nodes)
    row = np.full(int(max(edges.max(initial=0), nodes.max())) + 1, -1)
    row[nodes] = np.arange(count)
    joined = row[edges].T
    joined = joined[(joined >= 0).all(1)]
    turn = np.arange(count) * 2.399963  # the golden angle: a spiral without two nodes in one place
    place = np.sqrt(np.arange(count))[:, None] * np.stack([np.cos(turn), np.sin(turn)], 1)
    pulled = np.zeros((count, count))
    pulled[joined[:, 0], joined[:, 1]] = 1
    for step in range(STEPS):
        apart = place[:, None] - place[None]
        length = np.maximum(np.linalg.norm(apart, axis=2, keepdims=True), 1e-3)
        force = (apart / length**2 - apart * length * pulled[..., None] * 0.3).sum(1) - 0.05 * place
        size = np.maximum(np.linalg.norm(force, axis=1, keepdims=True), 1e-9)
        place = place + force / size * np.minimum(size, 0.5 * (1 - step / STEPS))
    return place - place[0], joined


def agreement(edges: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the share of each node's neighbours with a label that have its own, NaN where it has none."""
    source, target = edges[:, labels[edges[0]] >= 0]
    known = np.bincount(target, minlength=len(labels))
    same = np.bincount(target, weights=labels[source] == labels[target], minlength=len(labels))
    return np.where(known > 0, same / np.maximum(known, 1), np.nan)


def _curve(values: np.ndarray, right: np.ndarray) -> tuple[list[float], list[float]]:
    """Returns the mean of the values and of what is right in groups of about equally many nodes."""
    there = np.isfinite(values)
    values, right = values[there], right[there]
    cuts = np.unique(np.quantile(values, np.linspace(0, 1, GROUPS + 1))) if len(values) else np.empty(0)
    group = np.searchsorted(cuts, values, "right")
    members = [group == g for g in np.unique(group)]
    members = [m for m in members if m.sum() >= FEWEST]
    return [float(values[m].mean()) for m in members], [100 * float(right[m].mean()) for m in members]


def _neighbourhood(
    axes: Axes,
    place: np.ndarray,
    joined: np.ndarray,
    values: np.ndarray,
    colours: Sequence[str],
    hollow: np.ndarray | None,
) -> None:
    for a, b in joined[joined[:, 0] < joined[:, 1]]:
        axes.plot(*place[[a, b]].T, color="#bbbbbb", linewidth=0.6, zorder=1)
    shade = np.array([colours[v] if v >= 0 else "#dddddd" for v in values])
    fill = np.where(hollow, "white", shade) if hollow is not None else shade
    sizes = np.where(np.arange(len(place)) == 0, 190, 55)
    axes.scatter(place[:, 0], place[:, 1], c=fill, s=sizes, edgecolors=[*shade], linewidths=1.6, zorder=2)
    axes.scatter(0, 0, s=330, facecolors="none", edgecolors="black", linewidths=1.0, zorder=3)
    axes.set_aspect("equal")
    axes.axis("off")


def _colours(count: int) -> list[str]:
    wheel = colormaps["tab10" if count <= 10 else "tab20"]
    assert isinstance(wheel, ListedColormap)
    return ["#" + "".join(f"{round(255 * x):02x}" for x in wheel(i % wheel.N)[:3]) for i in range(count)]
