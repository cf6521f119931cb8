from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.pointcloud.evaluate import main

FIXTURE = Path(__file__).parent / "fixtures" / "eval"
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    gt, det = tmp_path / "gt", tmp_path / "dets"
    shutil.copytree(FIXTURE / "gt", gt)
    shutil.copytree(FIXTURE / "dets", det)
    return gt, det


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def expect_error(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    code, out, err = run(capsys, *arguments)
    assert code == 1
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_json_holds_the_official_figures_and_nothing_else(folders, capsys) -> None:
    code, out, err = run(capsys, *folders, "--json")
    assert (code, err) == (0, "")
    expected = json.loads((FIXTURE / "expected.json").read_text())["strict"]
    found = json.loads(out)
    assert list(found) == ["Car", "Pedestrian", "Cyclist"]
    for name, by_metric in found.items():
        assert set(by_metric) == {"3d", "bev", "2d", "aos"}
        for metric, by_interpolation in by_metric.items():
            assert set(by_interpolation) == {"R40", "R11"}
            # All angles of these files are 0.
            same = expected[name]["2d" if metric == "aos" else metric]
            for interpolation, values in by_interpolation.items():
                assert values == pytest.approx(same[interpolation], abs=1e-4)


def test_the_table_shows_the_figures(folders, capsys) -> None:
    code, out, _ = run(capsys, *folders)
    assert code == 0
    figures = json.loads((FIXTURE / "expected.json").read_text())["strict"]["Car"]["3d"]["R40"]
    line = next(line for line in out.splitlines() if "3d" in line and "R40" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")[3:]] == [f"{v:.2f}" for v in figures.values()]
    assert "n < 41" in out


def test_it_runs_as_a_module(folders) -> None:
    command = [sys.executable, "-m", "tasks.pointcloud.evaluate", *map(str, folders), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) == {"Car", "Pedestrian", "Cyclist"}


def test_a_missing_detection_file_counts_as_empty_and_is_said(folders, capsys) -> None:
    gt, det = folders
    (det / "000003.txt").unlink()
    code, out, err = run(capsys, gt, det, "--json")
    assert code == 0
    assert "1 of 12 frames" in err
    assert "000003" in err
    (det / "000003.txt").touch()
    assert run(capsys, gt, det, "--json") == (0, out, "")


def test_a_byte_order_mark_and_the_case_of_names_change_no_figure(folders, tmp_path: Path, capsys) -> None:
    gt, det = folders
    expected = run(capsys, gt, det, "--json")
    for path in [*gt.iterdir(), *det.iterdir()]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_text().lower().replace("\n", "\r\n").encode())
    split = tmp_path / "val.txt"
    split.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(sorted(path.stem for path in gt.iterdir())).encode())
    assert run(capsys, gt, det, "--split", split, "--json") == expected


LABEL = "Car 0 {occluded} 0 {box} 1.5 1.6 4 0 1.6 20 {turn}"


@pytest.mark.parametrize(
    ("label", "detection", "notes"),
    [
        (
            ("0", "0 0 0 0"),
            "10 10 90 90",
            ["no Car counts, so that it has no AP: every .* 2 labels has no 2-D box"],
        ),
        (
            ("0", "10 10 90 30"),
            "10 10 90 90",
            ["no Car counts, .* of 2 labels has a 2-D box lower than 25 px"],
        ),
        (("3", "10 10 90 90"), "10 10 90 90", ["no Car counts, .* labels is too occluded or truncated"]),
        (("0", "10 10 90 90"), "0 0 0 0", ["no detected Car counts: every one of 2 has no 2-D box, .* AP is 0"]),
        (
            ("0", "10 10 90 90"),
            "10 10 90 30",
            ["no detected Car counts: .* of 2 has a 2-D box lower than 25 px"],
        ),
        (("0", "0 0 0 0"), "0 0 0 0", ["no Car counts", "no detected Car counts"]),
        (("0", "10 10 90 90"), "10 10 90 90", []),
    ],
)
def test_it_says_why_there_is_no_ap(tmp_path: Path, capsys, label, detection, notes) -> None:
    for folder, box, end in (("gt", label[1], ""), ("dets", detection, " 0.9")):
        (tmp_path / folder).mkdir()
        for frame in range(2):
            line = LABEL.format(occluded=label[0] if folder == "gt" else 0, box=box, turn=0) + end + "\n"
            (tmp_path / folder / f"{frame:06d}.txt").write_text(line)
    code, out, err = run(capsys, tmp_path / "gt", tmp_path / "dets", "--json")
    assert code == 0
    json.loads(out)
    said = [line for line in err.splitlines() if line.startswith("note: ")]
    assert len(said) == len(notes)
    for line, expected in zip(said, notes, strict=True):
        assert re.match(f"note: {expected}", line)


def test_rows_that_can_hardly_be_meant_are_a_warning_with_file_and_line(folders, capsys) -> None:
    gt, det = folders
    for path, end in ((gt / "000001.txt", ""), (det / "000002.txt", " 0.5")):
        path.write_text(path.read_text() + LABEL.format(occluded=0, box="10 10 90 90", turn=90) + end + "\n")
    last = len((gt / "000001.txt").read_text().splitlines())
    code, _, err = run(capsys, gt, det, "--json")
    assert code == 0
    what = "a rotation beyond a full turn (degrees? KITTI's are radians), and 1 further such"
    assert f"warning: {gt}/000001.txt:{last}: {what}" in err.splitlines()


def test_a_class_without_objects_is_null(tmp_path: Path, capsys) -> None:
    for folder, end in (("gt", ""), ("dets", " 0.9")):
        (tmp_path / folder).mkdir()
        line = f"Car 0 0 0 0 0 100 100 1.5 1.6 4 0 1.6 20 0{end}\n"
        (tmp_path / folder / "000000.txt").write_text(line)
    code, out, _ = run(capsys, tmp_path / "gt", tmp_path / "dets", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["Pedestrian"]["3d"]["R40"] == {"easy": None, "moderate": None, "hard": None}
    assert found["Car"]["3d"]["R11"]["easy"] == pytest.approx(100 / 11)
    code, out, _ = run(capsys, tmp_path / "gt", tmp_path / "dets")
    assert code == 0
    assert "–" in out


def test_a_split_chooses_the_frames(folders, tmp_path: Path, capsys) -> None:
    gt, det = folders
    split = tmp_path / "val.txt"
    split.write_text("000000\n000001\n000005\n")
    code, out, err = run(capsys, gt, det, "--split", split, "--json")
    assert (code, err) == (0, "")
    for path in [*gt.iterdir(), *det.iterdir()]:
        if path.stem not in ("000000", "000001", "000005"):
            path.unlink()
    assert run(capsys, gt, det, "--json")[1] == out


@pytest.mark.parametrize(
    ("text", "said"),
    [("000000\n000099\n", "'000099'"), ("", "names no frame"), ("000001\n000001\n", "000001 is named 2 times")],
)
def test_a_wrong_split_is_refused(folders, tmp_path: Path, capsys, text: str, said: str) -> None:
    split = tmp_path / "val.txt"
    split.write_text(text)
    assert said in expect_error(capsys, *folders, "--split", split)


def test_an_absent_split_is_refused(folders, tmp_path: Path, capsys) -> None:
    assert "no.txt: no such split file" in expect_error(capsys, *folders, "--split", tmp_path / "no.txt")


def test_folders_without_text_files_are_refused(folders, tmp_path: Path, capsys) -> None:
    gt, det = folders
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty} holds no .txt file" in expect_error(capsys, gt, empty)
    assert f"{empty} holds no .txt file" in expect_error(capsys, empty, det)
    assert "is not a folder" in expect_error(capsys, gt, tmp_path / "nowhere")


def test_a_detection_file_without_ground_truth_is_refused(folders, capsys) -> None:
    gt, det = folders
    (det / "000777.txt").touch()
    assert "000777.txt has no ground truth" in expect_error(capsys, gt, det, "--json")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Car -1 -1 0 0 0 100 100 1.5 1.6 4 0 1.6 20 0", "15 fields"),  # no score
        ("Car -1 -1 0 0 0 100 100 1.5 1.6 4 0 1.6 0.9", "14 fields"),
        ("Car -1 -1 0 0 0 100 100 1.5 1.6 4 0 1.6 20 0 high", "'high'"),
    ],
)
def test_a_malformed_line_is_named(folders, capsys, line: str, said: str) -> None:
    gt, det = folders
    (det / "000002.txt").write_text(line + "\n")
    error = expect_error(capsys, gt, det, "--json")
    assert "000002.txt:1" in error
    assert said in error
