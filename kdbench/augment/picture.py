"""How what an augmentation learns grows over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

#: So many curves are told apart by a legend.
NAMED = 12


def growth(rows: Sequence[Mapping[str, float]], columns: Sequence[str]) -> Image.Image:
    """Draws columns of ``metrics.csv`` by epoch, the largest at the end first in the legend.

    Args:
        rows: One an epoch.
        columns: Names of the curves.
    """
    figure = Figure(figsize=(8, 4.5), dpi=120, facecolor="white", layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    last = rows[-1] if rows else {}
    for column in sorted(columns, key=lambda name: -last.get(name, 0.0)):
        line = [(row["epoch"], row[column]) for row in rows if column in row]
        x, y = zip(*line, strict=True) if line else ((), ())
        axes.plot(x, y, label=column.partition("/")[2], linewidth=1.6, marker="o" if len(line) == 1 else None)
    axes.set(xlabel="epoch", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#e4e4e4")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(*(part[:NAMED] for part in axes.get_legend_handles_labels()), frameon=False, fontsize=9, ncols=2)
    canvas.draw()
    return Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")
