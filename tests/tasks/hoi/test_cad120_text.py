"""The text files of CAD-120, read out of their archive."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from kdbench.base.store import Store
from kdbench.errors import KDBenchError
from tasks.hoi import cad120, cad120_text
from tasks.hoi.cad120_arrays import ARRAYS
from tasks.hoi.cad120_people import ACTIVITIES, WHO
from tasks.hoi.sources import open_source
from tests.tasks.hoi import tiny

#: Two videos of each person.
IDS = sorted(name for person in (1, 3, 4, 5) for name in [v for v, (who, _) in WHO.items() if who == person][:2])


@pytest.fixture(scope="module")
def held() -> dict[str, np.ndarray]:
    who = [WHO[name] for name in IDS]
    return tiny.released() | {
        "video_id": np.array(IDS),
        "subject": np.array([person for person, _ in who]),
        "activity": np.array([activity for _, activity in who]),
        "activity_names": np.array(ACTIVITIES),
    }


@pytest.fixture(scope="module")
def files(held) -> dict[str, str]:
    return tiny.as_text(held)


def test_people_are_those_of_the_release():
    assert len(WHO) == 125
    assert [sum(who == person for who, _ in WHO.values()) for person in (1, 3, 4, 5)] == [31, 31, 31, 32]
    assert {activity for _, activity in WHO.values()} == {*range(len(ACTIVITIES))}


def test_they_give_what_the_arrays_give(tmp_path, held, files):
    numbers = np.arange(held["seg_mask"].shape[1], dtype=np.int32)
    spans = {name: np.broadcast_to(numbers, held["seg_mask"].shape) for name in ("frame_start", "frame_end")}
    of_arrays = cad120.convert(tiny.write_released(tmp_path / "arrays", **{**held, **spans}))
    of_text = cad120.convert(tiny.write_text(tmp_path / "text", files))
    assert of_text[0] == replace(of_arrays[0], classes=of_text[0].classes)
    assert of_text[1] == of_arrays[1]
    assert {k: v.digest() for k, v in of_text[2].items()} == {k: v.digest() for k, v in of_arrays[2].items()}


def test_frames_are_those_of_the_list_beside_the_archive(tmp_path, files):
    root, store = tiny.write_text(tmp_path / "text", files), Store(tmp_path / "cache")
    without = open_source("cad120", str(root), store, {})
    (root / "meta").mkdir()
    listed = f"{IDS[0]};1:7,8,13;2:20;3:21,30;\nanything else\n"
    (root / "meta" / "Segmentation_sampled.txt").write_text(listed)
    found = open_source("cad120", str(root), store, {})
    assert found.videos[IDS[0]].time[:3].tolist() == [[7, 13], [20, 20], [21, 30]]
    assert found.videos[IDS[1]].time.tolist() == without.videos[IDS[1]].time.tolist()
    assert without.videos[IDS[0]].time[:3].tolist() == [[0, 0], [1, 1], [2, 2]]


FIRST = f"{IDS[0]}_1.txt"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda files: {}, "holds no file named <video>_<segment>.txt"),
        (lambda files: {"0000000000_1.txt": files[FIRST]}, "the video 0000000000 is none of the 125 of CAD-120"),
        (lambda files: {k: v for k, v in files.items() if k != FIRST}, f"{IDS[0]}_1.txt is missing"),
        (lambda files: files | {FIRST: files[FIRST].replace(" 5:", " 6:", 1)}, "bits in a line, expected those from 1"),
        (lambda files: files | {FIRST: files[FIRST].replace("10:1", "10:0", 1)}, "rise and fall again"),
        (lambda files: files | {FIRST: files[FIRST].replace(" 5:", " five:", 1)}, "is not as the release describes it"),
        (lambda files: files | {FIRST: files[FIRST].rsplit("\n", 2)[0]}, "lines follow the first, expected"),
        (lambda files: files | {FIRST: "9" + files[FIRST][1:]}, "lines follow the first, expected"),
        (lambda files: files | {"../../up_1.txt": "x"}, "leads out of the archive or is no file"),
    ],
)  # fmt: skip
def test_files_that_are_not_as_released_are_one_line(tmp_path, files, change, line):
    with pytest.raises(KDBenchError, match=line) as raised:
        cad120_text.read(tiny.write_text(tmp_path, change(files)) / "raw.tar.xz")
    assert "\n" not in str(raised.value)


def test_a_link_or_a_huge_member_ends_the_reading(tmp_path, files):
    with pytest.raises(KDBenchError, match="'inside' leads out of the archive or is no file"):
        cad120_text.read(tiny.write_text(tmp_path / "a", files, link="inside") / "raw.tar.xz")
    (tmp_path / "b").mkdir()
    with tarfile.open(tmp_path / "b" / "raw.tar.xz", "w:xz") as archive:
        entry = tarfile.TarInfo(FIRST)
        entry.size = cad120_text.LARGEST + 1
        archive.addfile(entry, io.BytesIO(bytes(entry.size)))
    with pytest.raises(KDBenchError, match="holds more than the release does"):
        cad120_text.read(tmp_path / "b" / "raw.tar.xz")


@pytest.mark.parametrize("content", [b"", b"text", b"\xfd7zXZ\x00\x00\x04 cut off"])
def test_a_broken_archive_is_one_line(tmp_path, content):
    (tmp_path / "raw.tar.xz").write_bytes(content)
    with pytest.raises(KDBenchError, match=r"raw.tar.xz: (is no archive|holds no file)"):
        cad120_text.read(tmp_path / "raw.tar.xz")


def test_the_released_files_give_the_released_arrays(shared_data):
    root = shared_data / "hoi" / "cad120_koppula"
    if not (root / "raw.tar.xz").is_file():
        pytest.skip("needs the released text files of CAD-120")
    found = cad120_text.read(root / "raw.tar.xz")
    with np.load(root / cad120.FILE, allow_pickle=False) as held:
        assert {name for name in ARRAYS if not np.array_equal(found[name], held[name])} == set()
