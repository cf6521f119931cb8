from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdbench.base import store as cache
from kdbench.base.store import Store
from kdbench.errors import KDBenchError
from tasks.classification.sources import folder, open_source
from tasks.classification.sources.base import ImageSet
from tasks.classification.sources.files import ImageFiles
from tasks.images import UnreadableImage
from tasks.pixels import Facts
from tests.tasks.classification import layouts


def opened(root: Path, **options: object) -> ImageSet:
    return open_source("imagefolder", str(root), **options)  # type: ignore[arg-type]


def noise(path: Path, seed: int = 0, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = np.random.default_rng(seed)
    Image.fromarray(stream.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path, **options)  # type: ignore[arg-type]


def plain(root: Path, classes: int = 3, each: int = 10, end: str = "png") -> Path:
    """``CLASS/0.png`` … without splits."""
    for label in range(classes):
        for i in range(each):
            noise(root / f"c{label}" / f"{i}.{end}", seed=label * each + i)
    return root


def fails(root: Path, message: str, **options: object) -> None:
    with pytest.raises(KDBenchError, match=message) as error:
        opened(root, **options)
    assert "\n" not in str(error.value)
    str(error.value).encode()


# ---- splits --------------------------------------------------------------------------------------------------------


def test_val_is_test_unless_there_is_a_test_split(tmp_path):
    source = opened(layouts.image_folder(tmp_path / "two"))
    assert source.classes == ("ant", "bee", "cat")
    assert source.train.names[:2] == ["train/ant/0.jpg", "train/ant/1.png"]
    assert source.test.names[-1] == "val/cat/5.png"
    assert source.val is None
    other = opened(layouts.image_folder(tmp_path / "test", ("train", "test")))
    assert other.test.names[-1] == "test/cat/5.png"
    three = opened(layouts.image_folder(tmp_path / "three", ("train", "val", "test")))
    assert three.val is not None
    assert (three.val.names[0], three.test.names[0]) == ("val/ant/0.jpg", "test/ant/0.jpg")
    assert three.train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6


def test_classes_alone_are_cut_by_the_hash_of_their_names(tmp_path):
    source = opened(plain(tmp_path, each=20))
    assert (len(source.train.labels), len(source.test.labels), source.val) == (48, 12, None)
    assert {*np.unique(source.test.labels)} == {*np.unique(source.train.labels)} == {0, 1, 2}
    assert sorted([*source.train.names, *source.test.names]) == sorted(
        f"c{c}/{i}.png" for c in range(3) for i in range(20)
    )
    # Nothing moves when samples are added.
    for i in range(20, 25):
        noise(tmp_path / "c1" / f"{i}.png", seed=100 + i)
    more = opened(tmp_path)
    assert len({*source.test.names} - {*more.test.names}) <= 2
    images = layouts.open_with(tmp_path / "cache", source="imagefolder", root=str(tmp_path), size=8)
    assert images.sizes == {"train": 46, "val": 6, "test": 13}
    names = [{cut.split.names[i] for i in cut.rows} for cut in (images.train, images.val, images.test)]
    assert len(set.union(*names)) == 65


def test_what_is_called_like_a_split_is_no_class(tmp_path):
    plain(tmp_path / "Train")
    fails(tmp_path, r"holds Train; expected CLASS/\*.jpg, or train/CLASS/\*.jpg and val/CLASS")
    plain(tmp_path / "b" / "train")
    fails(tmp_path / "b", r"holds train; expected train/CLASS.*; data.root=.*b/train cuts the splits by hash")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", r"holds no folder; expected CLASS/\*.jpg")


def test_bad_folders_are_one_line(tmp_path):
    root = layouts.image_folder(tmp_path / "images")
    (root / "train" / "dog").mkdir()
    fails(root, r"train/dog: no image in this class folder; expected \*.jpg")
    (root / "val" / "dog").mkdir()
    (root / "train" / "dog" / "a.heic").touch()
    fails(root, r"train/dog: no image in this class folder; found .heic; expected \*.jpg")
    (root / "train" / "dog" / "a.heic").unlink()
    (root / "train" / "dog").rmdir()
    fails(root, "val/dog: class 'dog' is not among those of .*train")
    (root / "val" / "dog").rmdir()
    (root / "val" / "bee").rename(tmp_path / "bee")
    fails(root, "val/bee: there is no such folder; .*train has this class")
    bare = tmp_path / "bare"
    (bare / "train").mkdir(parents=True)
    (bare / "val").mkdir()
    fails(bare, r"train: no class folder; expected train/CLASS/\*.jpg")


def test_one_class_is_refused(tmp_path):
    fails(plain(tmp_path / "a", classes=1), r"'c0' is the one class there is, which any model gets right; expected two")
    for part in ("train", "val"):
        plain(tmp_path / "b" / part, classes=1)
    fails(tmp_path / "b", "'c0' is the one class there is")
    (tmp_path / "b" / "t.csv").write_text("path,label\n" + "".join(f"train/c0/{i}.png,x\n" for i in range(9)))
    fails(tmp_path / "b", "'x' is the one class there is", table="t.csv")


# ---- files ---------------------------------------------------------------------------------------------------------


def test_folders_below_a_class_are_read(tmp_path):
    plain(tmp_path)
    noise(tmp_path / "c0" / "day1" / "morning" / "0.png", seed=50)
    noise(tmp_path / "c0" / "day2" / "0.JFIF", seed=51, format="JPEG")
    (tmp_path / "c1" / "again").symlink_to(tmp_path / "c1")  # and no end
    (tmp_path / "c1" / "more").symlink_to(tmp_path / "c0" / "day1")
    source = opened(tmp_path)
    names = {*source.train.names, *source.test.names}
    assert len(names) == 33
    assert {"c0/day1/morning/0.png", "c0/day2/0.JFIF", "c1/more/morning/0.png"} <= names


def test_what_systems_leave_in_folders_is_passed_over(tmp_path, caplog):
    before = opened(plain(tmp_path))
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "c0/._0.png", "c1/.DS_Store", "c1/Thumbs.db"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    for name in (".git", "__MACOSX", "c0/.ipynb_checkpoints"):
        noise(tmp_path / name / "0.png")
    assert opened(tmp_path).digest == before.digest
    assert not caplog.records


def test_files_that_are_left_out_are_said(tmp_path, caplog):
    plain(tmp_path)
    for name in ("c0/a.heic", "c0/b.HEIC", "c1/labels.txt"):
        (tmp_path / name).touch()
    with caplog.at_level(logging.WARNING):
        source = opened(tmp_path)
    assert caplog.messages == [f"{tmp_path}: left out, no images by their suffix: 2 .heic, 1 .txt"]
    assert source.notes == ("3 files left out, no images by their suffix",)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_unreadable_images_of_any_split_are_found_when_the_data_is_opened(part, tmp_path):
    root = layouts.image_folder(tmp_path / "images", ("train", "val", "test"))
    path = root / part / "bee" / "1.png"
    whole = path.read_bytes()
    for content in (b"", b"no image", whole[:-40]):
        path.write_bytes(content)
        with pytest.raises(UnreadableImage, match=rf"{part}/bee/1.png: not a readable image \(.*\)$"):
            opened(root)
    (root / part / "bee" / "2.png").write_bytes(b"")
    fails(root, rf"{part}/bee/1.png: not a readable image \(.*\); 1 more in this folder$")
    path.unlink()
    path.symlink_to(tmp_path / "gone.png")
    fails(root, rf"{part}/bee/1.png: not a file, or a link to one that is not there")


def test_names_that_are_not_utf8(tmp_path):
    plain(tmp_path)
    for name in (b"c0/caf\xe9.png", b"c\xff/0.png", b"c\xff/1.png"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        noise(path.parent / "made.png", seed=len(name))
        (path.parent / "made.png").rename(path)
    source = opened(tmp_path)
    assert source.classes == ("c0", "c1", "c2", r"c\xff")
    assert r"c0/caf\xe9.png" in {*source.train.names, *source.test.names}
    path.write_bytes(b"")
    fails(tmp_path, r"c\\xff/1.png: not a readable image")


# ---- identity ------------------------------------------------------------------------------------------------------


def test_data_is_known_by_content(tmp_path):
    """Of equal names and sizes, as BMP and PPM of one shape are."""
    for end in ("bmp", "ppm", "tif"):
        first, same, other = (plain(tmp_path / f"{end}{i}", end=end) for i in range(3))
        noise(other / "c1" / "3.png", seed=99)
        os.replace(other / "c1" / "3.png", other / "spare.png")
        Image.open(other / "spare.png").save(other / "c1" / f"3.{end}")
        assert (other / "c1" / f"3.{end}").stat().st_size == (first / "c1" / f"3.{end}").stat().st_size
        assert opened(first).digest == opened(same).digest
        assert opened(first).digest != opened(other).digest
    moved = opened(same).digest
    (same / "c1" / "0.tif").rename(same / "c2" / "00.tif")
    assert opened(same).digest != moved


def test_files_are_examined_once_and_an_edit_in_place_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "UNSETTLED", 0)
    examined: list[Path] = []
    real = folder.examine

    def examine(path: Path) -> Facts:
        examined.append(path)
        return real(path)

    monkeypatch.setattr(folder, "examine", examine)
    root, store = plain(tmp_path / "images", end="bmp"), Store(tmp_path / "cache")
    before = opened(root, store=store).digest
    assert len(examined) == 30
    assert opened(root, store=store).digest == before
    assert len(examined) == 30
    path = root / "c1" / "3.bmp"
    state = path.stat()
    with path.open("r+b") as stream:
        stream.seek(60)
        stream.write(b"\7")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    assert opened(root, store=store).digest != before
    assert len(examined) == 40  # one class


# ---- what is in the files ------------------------------------------------------------------------------------------


def deep(root: Path, top: int, brightest: int) -> Path:
    """Columns whose place is the class, grey PNG of 16 bits with values of 0 to ``top``; one test image is brighter."""
    for part in ("train", "val"):
        for label in range(3):
            (root / part / f"c{label}").mkdir(parents=True)
            for i in range(4):
                values = np.full((12, 12), top // 8 * i, dtype=np.uint16)
                values[:, 4 * label : 4 * label + 4] = brightest if (part, i) == ("val", 0) else top
                Image.fromarray(values).save(root / part / f"c{label}" / f"{i}.png")
    return root


@pytest.mark.parametrize("top", [65535, 4000])
def test_deep_images_are_scaled_by_the_range_of_the_training_images(top, tmp_path):
    source = opened(deep(tmp_path, top, 65535))
    limit = {65535: 65535, 4000: 4095}[top]
    assert source.notes == (f"values 0 to {limit} scaled to 0 to 255",)
    images = source.train.images
    assert isinstance(images, ImageFiles)
    assert images.reader.range == (0, limit)
    found = source.read_by(size=(12, 12), central=1.0).train.images.read([0, 3])  # type: ignore[union-attr]
    assert found[0, 0, 0].tolist() == [round(255 * top / limit)] * 4 + [0] * 8
    assert found[1, 0, 0, -1] == round(255 * (top // 8 * 3) / limit)
    test = source.read_by(size=(12, 12), central=1.0).test.images.read([0])  # type: ignore[union-attr]
    assert test[0, 0, 0, 0] == 255


def test_what_was_made_of_odd_files_is_noted(tmp_path):
    plain(tmp_path)
    Image.new("RGBA", (8, 8)).save(tmp_path / "c0" / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(tmp_path / "c1" / "b.jpg", exif=exif)
    noise(tmp_path / "c1" / "c.gif", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert opened(tmp_path).notes == (
        "1 images transparent, on data.background",
        "1 images turned upright",
        "1 images of several frames, first one read",
    )


# ---- a table -------------------------------------------------------------------------------------------------------


def table(root: Path, text: str, name: str = "t.csv", encoding: str = "utf-8") -> str:
    (root / name).write_bytes(text.encode(encoding))
    return name


def test_a_table_of_paths_and_labels(tmp_path):
    plain(tmp_path / "files")
    rows = [f"files/c{c}/{i}.png;{10 - c}" for c in range(3) for i in range(10)]
    name = table(tmp_path, "\r\n".join(["path; label", *rows]), encoding="utf-8-sig")
    source = opened(tmp_path, table=name)
    assert source.classes == ("8", "9", "10")
    assert (len(source.train.labels), len(source.test.labels)) == (24, 6)
    by_name = dict(zip(source.train.names, source.train.labels, strict=True))
    assert all(label == 2 - int(key[7]) for key, label in by_name.items())
    parts = ["train"] * 6 + ["valid"] * 2 + ["Test"] * 2
    rows = [f"{tmp_path}/files/c{c}/{i}.png,{part},k{c}" for c in range(3) for i, part in enumerate(parts)]
    split = opened(tmp_path, table=table(tmp_path, "\n".join(["path,split,label", *rows])))
    assert split.val is not None
    assert (len(split.train.labels), len(split.val.labels), len(split.test.labels)) == (18, 6, 6)
    assert split.classes == ("k0", "k1", "k2")
    images = layouts.open_with(
        tmp_path / "cache", source="imagefolder", root=str(tmp_path), table=str(tmp_path / "t.csv"), size=8
    )
    assert images.sizes == {"train": 18, "val": 6, "test": 6}


BAD_TABLES = {
    "columns": ("file,class\n", r"t.csv: columns file, class; expected path,label or path,label,split"),
    "empty": ("", r"t.csv: columns none; expected path,label"),
    "no rows": ("path,label\n", r"t.csv: no image; expected a line for each"),
    "no label": ("path,label\nc0/0.png,\n", r"t.csv, line 2: no label"),
    "no file": (
        "path,label\nc0/0.png,a\nc9/0.png,b\n",
        r"line 3: there is no file .*c9/0.png; paths start from data.root",
    ),
    "twice": ("path,label\nc0/0.png,a\nc0/0.png,b\n", r"line 3: c0/0.png stands there twice"),
    "split": ("path,label,split\nc0/0.png,a,dev\n", r"line 2: split 'dev': expected train, val or test"),
    "no test": ("path,label,split\nc0/0.png,a,train\n", r"its splits are train; expected train and val \(or test\)"),
    "other class": (
        "path,label,split\nc0/0.png,a,train\nc1/0.png,b,train\nc2/0.png,bb,test\n",
        r"c2/0.png: class 'bb' is not among those of the training images: did you mean 'b'",
    ),
    "quotes": ('path,label\n"c0/0.png,a\n' + "x" * 200_000, r"t.csv, line \d+: not a table"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables_are_one_line(case, tmp_path):
    text, message = BAD_TABLES[case]
    fails(plain(tmp_path, each=1), message, table=table(tmp_path, text))


def test_a_table_that_cannot_be_read_is_one_line(tmp_path):
    plain(tmp_path, each=1)
    fails(tmp_path, r"none.csv: cannot be read \(No such file or directory\)", table="none.csv")
    fails(tmp_path, r"t.csv: byte 11 is not UTF-8", table=table(tmp_path, "path,label\n\xe9,b", encoding="latin1"))
