from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdbench.errors import KDBenchError
from tasks.pointcloud.scans import ScanLayout, implausible, read_points, write_points

#: How people's files are made of KITTI's points, and the layout that says so.
OTHERS: dict[str, tuple[ScanLayout, str]] = {
    "five floats": (ScanLayout(5), "data.scan.columns=5"),
    "five floats, bytes": (
        ScanLayout(5, intensity=255),
        "data.scan.columns=5 data.scan.intensity=255",
    ),
    "six floats": (ScanLayout(6), "data.scan.columns=6"),
    "three floats": (ScanLayout(3), "data.scan.columns=3"),
    "double": (ScanLayout(dtype="float64"), "data.scan.dtype=float64"),
    "three doubles": (ScanLayout(3, "float64"), "data.scan.columns=3 data.scan.dtype=float64"),
    "millimetres": (ScanLayout(unit=0.001), "data.scan.unit=0.001"),
    "centimetres": (ScanLayout(unit=0.01), "data.scan.unit=0.01"),
    "bytes": (ScanLayout(intensity=255), "data.scan.intensity=255"),
    "16 bits": (ScanLayout(intensity=65535), "data.scan.intensity=65535"),
}


def scene(count: int = 6000, ahead: bool = False) -> np.ndarray:
    """A sweep in rings, as a LiDAR writes it: neighbours in the file are neighbours in space."""
    g = np.random.default_rng(3)
    azimuth = np.linspace(-0.6, 0.6, count // 20) if ahead else np.linspace(-np.pi, np.pi, count // 20)
    elevation = np.radians(np.linspace(2, -24, 20))[:, None]
    reach = np.minimum(60 + 5 * np.sin(3 * azimuth), 1.7 / np.maximum(-np.tan(elevation), 1e-3)) + g.normal(0, 0.02)
    x, y, z = reach * np.cos(azimuth), reach * np.sin(azimuth), reach * np.tan(elevation)
    reflectance = np.clip(g.normal(0.3, 0.15, x.shape), 0, 0.99)
    return np.stack([x, y, z, reflectance], axis=-1).reshape(-1, 4).astype(np.float32)


def write(path: Path, points: np.ndarray, layout: ScanLayout) -> None:
    """Writes points in a layout; what stands behind the reflectance is a ring and a time."""
    rest = [np.arange(len(points)) % 32, np.linspace(0, 0.1, len(points)), np.zeros(len(points))]
    columns = [*(points[:, :3].astype(np.float64) / layout.unit).T, points[:, 3] * layout.intensity, *rest]
    np.column_stack(columns[: layout.columns]).astype(np.dtype(layout.dtype).newbyteorder("<")).tofile(path)


def test_points_survive_writing(tmp_path):
    points = scene()
    write_points(tmp_path / "a.bin", points)
    read = read_points(tmp_path / "a.bin")
    assert read.dtype == np.float32
    assert np.array_equal(read, points)
    read[0] = 0  # writable


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_another_layout_is_refused_with_the_option_that_reads_it(tmp_path, name, ahead):
    layout, option = OTHERS[name]
    points, path = scene(ahead=ahead), tmp_path / "a.bin"
    write(path, points, layout)
    assert path.stat().st_size % 16 == 0, "the size alone does not tell"
    with pytest.raises(KDBenchError) as refused:
        read_points(path)
    line = str(refused.value)
    assert "\n" not in line
    assert "read as 4 float32 a point (x, y, z, reflectance), in m: x " in line
    assert line.endswith(f"it can be read with {option}")
    read = read_points(path, layout)
    expected = points.copy()
    if layout.columns == 3:
        expected[:, 3] = 0
    np.testing.assert_allclose(read, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "line"),
    [
        (ScanLayout(intensity=255), r"reflectance goes up to 0.00\d+ alone.*with data.scan.intensity=1$"),
        (ScanLayout(unit=0.001), "no point lies beyond 1 m.*with data.scan.unit=1$"),
        (ScanLayout(5), "expected 0 to 1.*read as 5 float32 a point .*with data.scan.columns=4$"),
        (ScanLayout(dtype="float64"), "read as 4 float64 a point.*with data.scan.dtype=float32$"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_as_well(tmp_path, layout, line):
    write_points(tmp_path / "a.bin", scene())
    with pytest.raises(KDBenchError, match=line):
        read_points(tmp_path / "a.bin", layout)


def test_what_no_layout_reads_is_said(tmp_path):
    np.random.default_rng(0).integers(0, 256, 16000, dtype=np.uint8).tofile(tmp_path / "noise.bin")
    with pytest.raises(KDBenchError, match="no layout of data.scan fits: is it a scan"):
        read_points(tmp_path / "noise.bin")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such scan; expected 4 float32 a point"),
        (b"", "0 bytes; expected a multiple of 16"),
        (b"\0" * 33, "33 bytes; expected a multiple of 16.*; is the copy whole"),
        (
            np.array([0, 0, 0, 0, 1, np.nan, 0, 0], dtype="<f4").tobytes(),
            "1 of 2 points hold NaN or infinity, first at 1",
        ),
        (np.array([np.inf, 0, 0, 0], dtype="<f4").tobytes(), "1 of 1 points hold NaN or infinity"),
    ],
)
def test_bad_scan(tmp_path, content, said):
    path = tmp_path / "a.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(KDBenchError, match=said):
        read_points(path)


def test_a_size_that_does_not_divide_names_the_layout_too(tmp_path):
    write(tmp_path / "a.bin", scene()[:5999], ScanLayout(5))
    with pytest.raises(KDBenchError, match="expected a multiple of 16.*with data.scan.columns=5$"):
        read_points(tmp_path / "a.bin")


def test_real_scans_in_any_number_are_plausible(shared_data):
    for path in sorted((shared_data / "kitti" / "training" / "velodyne").glob("*.bin")):
        read_points(path)


def test_stray_echoes_dark_scans_and_few_points_are_plausible():
    points = scene()
    points[::200, 0] = 4000  # half a percent of echoes
    assert implausible(points) is None
    points[:, 3] = 0
    assert implausible(points) is None
    assert implausible(np.full((1, 4), 0.001, dtype=np.float32)) is None
    for count in (1, 63, 64, 65, 129):
        for column, value in ((3, 1.5), (3, -0.5), (0, np.nan)):
            for row in (0, count - 1):
                few = np.full((count, 4), 0.5, dtype=np.float32)
                few[row, column] = value
                assert implausible(few) is not None
