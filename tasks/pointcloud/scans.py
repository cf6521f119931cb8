"""Scans: files of points without a header, and whether their values can be what their layout says.

KITTI's scans hold four float32 a point: x, y, z in metres and a reflectance from 0 to 1. Nothing in such a file says
so, and another layout reads as points too where the size divides; that it is another shows in the values alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveFloat

from kdbench.base.files import reason
from kdbench.errors import KDBenchError

FARTHEST = 500.0  # m; no LiDAR of a car reaches further
STRAYS = 0.01  # share of the points that may lie beyond, as echoes do
NEAREST = 1.0  # m; some point of a scan lies beyond
SLACK = 0.01  # of the reflectance
DARKEST = 1 / 255  # a scan whose reflectances all lie below was divided by too much
LIKELY = 15.0  # m; a scan of a street reaches further
ALIKE = 0.9  # correlation with a coordinate from which on a column is no reflectance
MANY = 100  # points from which on a scan is judged by what it lacks

_COLUMNS, _UNITS, _INTENSITIES = (4, 5, 6, 3), (1.0, 0.001, 0.01), (1.0, 255.0, 65535.0)
_UNIT_NAMES = {1.0: "m", 0.001: "mm", 0.01: "cm"}


@dataclass(frozen=True)
class ScanLayout:
    """How a file of points is laid out; the defaults are KITTI's.

    Attributes:
        columns: Numbers of a point: x, y, z, reflectance, then what is passed over (ring, time); 3 have no reflectance.
        dtype: Type of a number, little-endian.
        unit: Metres that one unit of x, y and z is; 0.001 where they are millimetres.
        intensity: What full reflectance reads; 255 where it is a byte.
    """

    columns: Annotated[int, Field(ge=3, le=32)] = 4
    dtype: Literal["float32", "float64"] = "float32"
    unit: PositiveFloat = 1.0
    intensity: PositiveFloat = 1.0

    @property
    def stride(self) -> int:
        """Bytes of a point."""
        return self.columns * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        names = "x, y, z" if self.columns == 3 else "x, y, z, reflectance" + ", …" * (self.columns > 4)
        return f"{self.columns} {self.dtype} a point ({names}), in {_UNIT_NAMES.get(self.unit, f'{self.unit:g} m')}"

    def points(self, raw: bytes) -> np.ndarray:
        """Returns the (N, 4) float32 points of a file's content: x, y, z in metres, reflectance from 0 to 1."""
        values = np.frombuffer(raw, np.dtype(self.dtype).newbyteorder("<")).reshape(-1, self.columns)
        if self == ScanLayout():
            return values.astype(np.float32)
        points = np.zeros((len(values), 4), dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # of another layout; it is told by the values
            points[:, :3] = values[:, :3] * self.unit if self.unit != 1 else values[:, :3]
            if self.columns > 3:
                points[:, 3] = values[:, 3] / self.intensity if self.intensity != 1 else values[:, 3]
        return points


def read_points(path: Path | str, layout: ScanLayout | None = None) -> np.ndarray:
    """Reads a scan: (N, 4) float32 x, y, z in metres, reflectance from 0 to 1.

    Raises:
        KDBenchError: for a missing or empty file, a size that is no whole number of points, a NaN or infinity, or
            values that no scan of this layout has; the line says which layout would fit.
    """
    path, layout = Path(path), layout or ScanLayout()
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise KDBenchError(f"{path}: no such scan; expected {layout}") from None
    except OSError as error:
        raise KDBenchError(f"{path}: cannot read this scan ({reason(error)}); expected a file") from None
    if not raw or len(raw) % layout.stride:
        expected = f"expected a multiple of {layout.stride}, {layout}"
        raise KDBenchError(f"{path}: {len(raw)} bytes; {expected}; {_remedy(raw, layout) or 'is the copy whole?'}")
    points = layout.points(raw)
    if wrong := implausible(points):
        found = f"read as {layout}: {ranges(points)}"
        remedy = _remedy(raw, layout) or "no layout of data.scan fits: is it a scan?"
        raise KDBenchError(f"{path}: {wrong}; {found}; {remedy}")
    return points


def implausible(points: np.ndarray) -> str | None:
    """Says why (N, 4) points can be no scan, None where they can."""
    low, high = _extremes(points)  # NaN where there is one
    if not np.isfinite([low, high]).all():
        finite = np.isfinite(points).all(axis=1)
        return f"{int((~finite).sum())} of {len(points)} points hold NaN or infinity, first at {int(finite.argmin())}"
    reach = max(high[:3].max(), -low[:3].min())
    if reach > FARTHEST:
        beyond = int((np.abs(points[:, :3]) > FARTHEST).any(axis=1).sum())
        if beyond > STRAYS * len(points):
            return f"{beyond} of {len(points)} points lie beyond {FARTHEST:g} m"
    if reach < NEAREST and len(points) >= MANY:
        return f"no point lies beyond {NEAREST:g} m"
    if low[3] < -SLACK or high[3] > 1 + SLACK:
        return f"reflectance goes from {low[3]:.4g} to {high[3]:.4g}, expected 0 to 1"
    if 0 < high[3] < DARKEST and len(points) >= MANY:
        return f"reflectance goes up to {high[3]:.2g} alone, expected 1"
    return None


def _extremes(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the least and the greatest value of each of four columns.

    Rows are reduced 64 at a time: NumPy takes ten times as long over an array of four columns.
    """
    blocks = points[: len(points) // 64 * 64].reshape(-1, 256)
    rest = points[64 * len(blocks) :]
    parts = [blocks.min(axis=0), blocks.max(axis=0)] if len(blocks) else []
    few = np.concatenate([rest, *(part.reshape(-1, 4) for part in parts)])
    return few.min(axis=0), few.max(axis=0)


def ranges(points: np.ndarray) -> str:
    """Says from where to where the coordinates of (N, 3 or more) points go."""
    with np.errstate(invalid="ignore"):
        low, high = points[:, :3].min(axis=0), points[:, :3].max(axis=0)
    return ", ".join(f"{axis} {a:.4g} to {b:.4g}" for axis, a, b in zip("xyz", low, high, strict=True))


def write_points(path: Path | str, points: np.ndarray) -> None:
    """Writes a scan: (N, 4) x, y, z, reflectance as little-endian float32."""
    Path(path).write_bytes(np.ascontiguousarray(points, dtype="<f4").tobytes())


def _candidates(layout: ScanLayout) -> Iterator[ScanLayout]:
    """Yields the layouts that people have, the likeliest first: those that change the least of ``layout``."""
    dtypes: tuple[Literal["float32", "float64"], ...] = ("float32", "float64")
    options = itertools.product(_COLUMNS, dtypes, _UNITS, _INTENSITIES)
    found = [ScanLayout(*option) for option in options]
    yield from sorted(found, key=lambda other: (other.columns == 3, len(_changes(other, layout))))


def _changes(layout: ScanLayout, given: ScanLayout) -> list[str]:
    names = [field.name for field in fields(ScanLayout)]
    if layout.columns == 3:
        layout = replace(layout, intensity=given.intensity)
    pairs = ((name, getattr(layout, name), getattr(given, name)) for name in names)
    return [f"data.scan.{n}={v if isinstance(v, str) else f'{v:g}'}" for n, v, own in pairs if v != own]


def _remedy(raw: bytes, given: ScanLayout) -> str:
    """Says which options would read a file; empty where none does."""
    for layout in _candidates(given):
        changes = _changes(layout, given)
        if changes and raw and len(raw) % layout.stride == 0 and _fits(layout.points(raw)):
            return f"it can be read with {' '.join(changes)}"
    return ""


def _fits(points: np.ndarray) -> bool:
    """Whether points are a likely scan of a street, and their reflectance none of the coordinates of a neighbour."""
    if implausible(points) is not None or np.abs(points[:, :3]).max() < LIKELY:
        return False
    spread = points.std(axis=0)
    if len(points) < MANY or not spread.all():
        return True
    return bool(np.abs(np.corrcoef(points.T)[3, :3]).max() < ALIKE)
