"""Real layouts: which image goes with which mask, what the numbers mean, and folders that are not as they should be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdbench.errors import KDBenchError
from tasks.segmentation.sources.base import IGNORED
from tasks.segmentation.sources.layouts import HOLDS, LAYOUTS
from tasks.segmentation.sources.names import ADE20K, COCO_STUFF, VOC
from tests.tasks.segmentation import tiny

SIZE = (20, 30)


def put(folder: Path, name: str, image: Image.Image) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name)
    return folder / name


def pairs(images: Path, masks: Path, stems: Sequence[str], numbers: tuple[int, ...], ends: tuple[str, str]) -> None:
    """Writes images and masks of the same names."""
    for seed, stem in enumerate(stems):
        put(images, stem + ends[0], tiny.image(seed, SIZE))
        put(masks, stem + ends[1], tiny.mask(seed, SIZE, numbers))


def camvid(root: Path) -> None:
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        stems = [f"{part}_{i}" for i in range(count)]
        pairs(root / part, root / f"{part}annot", stems, (0, 3, 10, 11), (".png", ".png"))


def cityscapes(
    root: Path,
    sizes: Sequence[tuple[int, int]] = (SIZE,),
    train: int = 5,
    val: int = 2,
    kind: str = "labelIds",
    numbers: tuple[int, ...] = (7, 23, 26, 4),
) -> None:
    for part, count in (("train", train), ("val", val)):
        for i in range(count):
            city, size = ("bonn", "ulm")[i % 2], sizes[i % len(sizes)]
            stem = f"{city}_{i:06d}_000019"
            put(root / "leftImg8bit" / part / city, f"{stem}_leftImg8bit.png", tiny.image(i, size))
            put(root / "gtFine" / part / city, f"{stem}_gtFine_{kind}.png", tiny.mask(i, size, numbers))


def ade20k(root: Path) -> None:
    for part in ("training", "validation"):
        stems = [f"ADE_{part}_{i:08d}" for i in range(4)]
        pairs(root / "images" / part, root / "annotations" / part, stems, (0, 1, 150), (".jpg", ".png"))


def voc(root: Path, inner: str = "", aug: bool = False) -> None:
    root = root / inner
    sets = root / "ImageSets" / "Segmentation"
    sets.mkdir(parents=True)
    for part, count in (("train", 4), ("val", 2)):
        stems = [f"2007_{part}{i}" for i in range(count)]
        for seed, stem in enumerate(stems):
            put(root / "JPEGImages", f"{stem}.jpg", tiny.image(seed, SIZE))
            mask = tiny.mask(seed, SIZE, (0, 15, 20, 255)).convert("P")
            mask.putpalette([i % 256 for i in range(768)])
            put(root / "SegmentationClass", f"{stem}.png", mask)
            if aug:
                put(root / "SegmentationClassAug", f"{stem}.png", tiny.mask(seed, SIZE, (1, 2)))
        (sets / f"{part}.txt").write_text("\n".join(stems) + "\n")
        if aug:
            (sets / f"{part}aug.txt").write_text(f"/JPEGImages/{stems[0]}.jpg /SegmentationClassAug/{stems[0]}.png\n")


def cocostuff(root: Path, top: str = "stuffthingmaps_trainval2017", end: str = ".png") -> None:
    numbers = (0, 12, 91, 181, 255) if end == ".png" else (0, 11, 80, 170, 255)
    for part in ("train2017", "val2017"):
        pairs(root / "images" / part, root / top / part, [f"{i:012d}" for i in range(4)], numbers, (".jpg", end))


def maskfolder(root: Path, parts: Sequence[str] = (), classes: str = "sky\nroad\nvoid\ncar\n") -> None:
    for part in parts or [""]:
        stems = [f"{part}{i}" for i in range(6)]
        pairs(root / "images" / part, root / "masks" / part, stems, (0, 1, 2, 3), (".jpg", ".png"))
    (root / "classes.txt").write_text(classes)


WRITE = {"camvid": camvid, "ade20k": ade20k, "voc": voc, "cocostuff": cocostuff, "maskfolder": maskfolder}


@pytest.mark.parametrize("name", WRITE)
def test_a_layout_is_read(name, tmp_path):
    WRITE[name](tmp_path / "data")
    scenes = tiny.task(tmp_path / "cache", name, {"root": str(tmp_path / "data")}).scenes
    layout = scenes.source.layout
    assert layout.name == name == scenes.preprocess.name
    assert not scenes.embedded
    assert all(len(part) for part in (scenes.train, scenes.val, scenes.test))
    names = [sample.name for sample in layout.samples]
    assert len(names) == len({*names})
    for sample in layout.samples:
        image, mask = scenes.read(sample)
        assert image.shape == (3, *SIZE)
        raw, codes = np.asarray(Image.open(sample.mask)), layout.labels.codes
        assert np.array_equal(mask.numpy(), np.vectorize(codes.__getitem__)(raw))
    batch = next(iter(scenes.module(0).train_dataloader()))
    assert batch.inputs.shape[2:] == tuple(scenes.transforms.crop or SIZE)
    assert set(HOLDS) == set(LAYOUTS)


def test_the_splits_of_camvid_are_used_as_they_are(tmp_path):
    camvid(tmp_path)
    layout = LAYOUTS["camvid"](tmp_path)
    assert layout.val is not None
    assert [len(part) for part in (layout.train, layout.val, layout.test)] == [4, 2, 3]
    assert layout.labels.codes[11] == layout.labels.codes[255] == IGNORED


def test_numbers_of_ade20k_count_from_one(tmp_path):
    ade20k(tmp_path / "ADEChallengeData2016")
    layout = LAYOUTS["ade20k"](tmp_path)
    assert (len(ADE20K), layout.labels.codes[0], layout.labels.codes[1], layout.labels.codes[150]) == (
        150,
        IGNORED,
        0,
        149,
    )
    assert (ADE20K[0], ADE20K[149]) == ("wall", "flag")


@pytest.mark.parametrize("inner", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc_is_found_and_more_masks_are_used(tmp_path, inner):
    voc(tmp_path / "plain", inner)
    plain = LAYOUTS["voc"](tmp_path / "plain")
    assert [len(plain.train), len(plain.test)] == [4, 2]
    assert plain.train[0].mask.parent.name == "SegmentationClass"
    voc(tmp_path / "more", inner, aug=True)
    more = LAYOUTS["voc"](tmp_path / "more")
    assert [sample.name for sample in more.train] == ["train/2007_train0"]
    assert {sample.mask.parent.name for sample in more.samples} == {"SegmentationClassAug"}
    assert (len(VOC), more.labels.codes[20]) == (21, 20)


@pytest.mark.parametrize("top", ["stuffthingmaps_trainval2017", "stuffthingmaps", "annotations"])
def test_numbers_of_coco_stuff_have_holes_where_things_are_absent(tmp_path, top):
    cocostuff(tmp_path, top)
    codes = LAYOUTS["cocostuff"](tmp_path).labels.codes
    assert len(COCO_STUFF) == 171 == len(codes) - 1
    names = {number: COCO_STUFF[code] for number, code in codes.items() if code != IGNORED}
    assert [names[n] for n in (0, 12, 89, 91, 181)] == ["person", "stop sign", "toothbrush", "banner", "wood"]
    assert not {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90} & {*names}


def test_converted_numbers_of_coco_stuff_are_the_classes(tmp_path):
    cocostuff(tmp_path, "annotations", "_labelTrainIds.png")
    labels = LAYOUTS["cocostuff"](tmp_path).labels
    assert labels.codes == {n: n for n in range(171)} | {255: IGNORED}


# ---- own folders ----------------------------------------------------------------------------------------------------


def test_a_line_is_a_class_and_void_is_none(tmp_path):
    maskfolder(tmp_path, classes="# mine\nsky\n\nroad\nVoid\ntraffic sign\n")
    labels = LAYOUTS["maskfolder"](tmp_path).labels
    assert labels.classes == ("sky", "road", "traffic sign")
    assert labels.codes == {0: 0, 1: 1, 2: IGNORED, 3: 2, 255: IGNORED}


def test_a_fifth_is_test_and_a_tenth_of_the_rest_validation(tmp_path):
    maskfolder(tmp_path)
    layout = LAYOUTS["maskfolder"](tmp_path)
    assert (len(layout.train), len(layout.test), layout.val) == (5, 1, None)
    assert LAYOUTS["maskfolder"](tmp_path) == layout


@pytest.mark.parametrize(
    ("parts", "found"),
    [(("train", "val"), ("train", "val", None)), (("train", "val", "test"), ("train", "test", "val"))],
)
def test_splits_are_folders_or_lists(tmp_path, parts, found):
    maskfolder(tmp_path / "folders", parts)
    layout = LAYOUTS["maskfolder"](tmp_path / "folders")
    for own, part in zip((layout.train, layout.test, layout.val), found, strict=True):
        assert (own is None) == (part is None)
        assert all(sample.name.startswith(f"{part}/") for sample in own or ())
    maskfolder(tmp_path / "lists")
    for place, part in enumerate(parts):
        (tmp_path / "lists" / f"{part}.txt").write_text(f"{2 * place}\n{2 * place + 1}.jpg\n")
    layout = LAYOUTS["maskfolder"](tmp_path / "lists")
    of = {"train": layout.train, found[1]: layout.test, found[2]: layout.val}
    for place, part in enumerate(parts):
        assert [sample.name for sample in of[part] or ()] == [f"all/{2 * place}", f"all/{2 * place + 1}"]


def test_masks_may_be_pictures_in_colours_that_are_told(tmp_path):
    maskfolder(tmp_path, classes="sky 70 130 180\ntraffic sign, 220, 220, 0\nvoid 0 0 0\ncar;0;0;142\n")
    table = np.array([[70, 130, 180], [220, 220, 0], [0, 0, 0], [0, 0, 142]], dtype=np.uint8)
    numbers = {}
    for path in (tmp_path / "masks").iterdir():
        numbers[path.stem] = np.asarray(Image.open(path))
        Image.fromarray(table[numbers[path.stem]]).save(path)
    scenes = tiny.task(tmp_path / "cache", "maskfolder", {"root": str(tmp_path)}).scenes
    assert scenes.preprocess.classes == ("sky", "traffic sign", "car")
    classes = np.array([0, 1, IGNORED, 2])
    for sample in scenes.source.layout.samples:
        assert np.array_equal(scenes.read(sample)[1].numpy(), classes[numbers[sample.mask.stem]])
    picture = table[numbers["3"]]
    picture[0, :2] = (1, 2, 3)
    Image.fromarray(picture).save(tmp_path / "masks" / "3.png")
    with pytest.raises(KDBenchError) as error:
        _ = tiny.task(tmp_path / "cache", "maskfolder", {"root": str(tmp_path)}).scenes
    assert str(error.value) == (
        f"maskfolder: masks hold colours that classes.txt does not name: (1, 2, 3) (2 pixels in 1 masks, first "
        f"{tmp_path}/masks/3.png); give each a line there"
    )


def test_images_of_sixteen_bits_are_scaled_by_those_of_training(tmp_path):
    maskfolder(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    for i in range(6):
        values = np.full(SIZE, 1000 + i, np.uint16)
        values[0, 0] = 4000  # of twelve bits
        put(tmp_path / "images", f"{i}.png", Image.fromarray(values))
    task = tiny.task(tmp_path / "cache", "maskfolder", {"root": str(tmp_path)})
    image, _ = task.scenes.read(task.scenes.train.samples[0])
    assert int(image[0, 5, 5]) == round(255 * 1000 / 4095)
    assert task.dataset().notes == ("values 0 to 4095 scaled to 0 to 255",)
    assert task.dataset().inputs["range"] == [0.0, 4095.0]


# ---- what is not as it should be ------------------------------------------------------------------------------------


def test_numbers_that_mean_nothing_are_told_with_how_often_they_occur(tmp_path):
    maskfolder(tmp_path, classes="sky\nroad\n")
    with pytest.raises(KDBenchError) as error:
        _ = tiny.task(tmp_path / "cache", "maskfolder", {"root": str(tmp_path)}).scenes
    pixels = {n: 0 for n in (2, 3)}
    masks: dict[int, list[Path]] = {n: [] for n in (2, 3)}
    for path in sorted((tmp_path / "masks").iterdir()):
        found = np.asarray(Image.open(path))
        for n in pixels:
            pixels[n] += int((found == n).sum())
            masks[n] += [path] * bool((found == n).any())
    line = str(error.value)
    assert line.startswith("maskfolder: masks hold label ids outside the class list: ")
    for n in (2, 3):
        assert f"{n} ({pixels[n]} pixels in {len(masks[n])} masks, first {tmp_path}/masks/" in line
    assert line.endswith("; expected 0 to 1 for the 2 classes, or 255 for none; data.ignore=[2,3] ignores them")
    scenes = tiny.task(tmp_path / "cache", "maskfolder", {"root": str(tmp_path), "ignore": [2, 3]}).scenes
    assert set(np.unique(scenes.read(scenes.test.samples[0])[1])) <= {0, 1, IGNORED}


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text(text)


def both(*changes: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda root: [change(root) for change in changes]


#: What breaks a folder of own images.
BROKEN: dict[str, Callable[[Path], object]] = {
    "no mask": lambda root: (root / "masks" / "3.png").unlink(),
    "no images": both(*(lambda root, stem=stem: (root / "images" / f"{stem}.jpg").unlink() for stem in ("2", "4"))),
    "other size": lambda root: tiny.mask(size=(20, 31)).save(root / "masks" / "1.png"),
    "truncated": lambda root: os.truncate(root / "masks" / "1.png", 60),
    "picture": lambda root: tiny.image(size=SIZE).save(root / "masks" / "1.png"),
    "two of a name": lambda root: tiny.image(size=SIZE).save(root / "images" / "1.png"),
    "no classes": lambda root: (root / "classes.txt").unlink(),
    "one class": write("classes.txt", "sky\nvoid\n"),
    "class twice": write("classes.txt", "sky\nroad\nsky\n"),
    "half the colours": write("classes.txt", "sky 1 2 3\nroad\n"),
    "colour twice": write("classes.txt", "sky 1 2 3\nroad 1 2 3\n"),
    "unknown name": both(write("train.txt", "0\n1\n"), write("val.txt", "2\n33.jpg\n")),
    "in two lists": both(write("train.txt", "0\n1\n"), write("val.txt", "1\n")),
    "train alone": write("train.txt", "0\n1\n"),
    "no masks": lambda root: shutil.rmtree(root / "masks"),
}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("no mask", "{root}/images/3.jpg: there is no mask for it; expected one of the same name"),
        (
            "no images",
            "{root}/masks/2.png: there is no image for it (2 such); expected one of the same",
        ),
        ("other size", "{root}/masks/1.png: 31 x 20 pixels, its image 1.jpg has 30 x 20; expected equal sizes"),
        ("truncated", "{root}/masks/1.png: not a readable image (image file is truncated"),
        (
            "picture",
            "{root}/masks/1.png: an RGB picture; expected a mask of one class number a pixel. For colours: data",
        ),
        ("two of a name", "{root}/images/1.png: 1.jpg has that name too; keep one of them"),
        (
            "no classes",
            "{root}/classes.txt: cannot be read (No such file or directory); expected the name of a class a",
        ),
        ("one class", "{root}/classes.txt: names 1 classes; expected 2 to 254 classes, each once"),
        ("class twice", "{root}/classes.txt: names 'sky' twice; expected 2 to 254 classes, each once"),
        ("half the colours", "{root}/classes.txt: 'road' has no colour; expected one for each class (road 128 64 128)"),
        ("colour twice", "{root}/classes.txt: 'road 1 2 3': expected three numbers from 0 to 255 that no other line"),
        ("unknown name", "{root}/val.txt: there is no image '33.jpg' in {root}/images: "),
        ("in two lists", "{root}/val.txt: '1' is in train.txt too; keep one of them"),
        ("train alone", "data.root={root}: its splits are train; expected train and val (or test), or none of them"),
        ("no masks", "{root}/masks: there is no such folder; expected images/ and masks/ with files of one name"),
    ],
)
def test_a_folder_that_is_not_as_it_should_be_is_one_line(tmp_path, change, line):
    root = tmp_path / "data"
    maskfolder(root)
    BROKEN[change](root)
    with pytest.raises(KDBenchError) as error:
        _ = tiny.task(tmp_path / "cache", "maskfolder", {"root": str(root)}).scenes
    assert str(error.value).startswith(line.format(root=root))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("camvid", "{root}/train: holds no image; expected some, each with a mask"),
        ("ade20k", "data.root={root}: there is no folder images; expected it there or in ADEChallengeData2016"),
        ("voc", "data.root={root}: there is no folder ImageSets; expected it there or in VOC2012 or VOCdevkit"),
        ("cocostuff", "data.root={root}: there is no stuffthingmaps_trainval2017/train2017/*.png; expected a folder"),
        (
            "cityscapes",
            "data.root={root}: there is no gtFine/train/CITY/*_gtFine_labelIds.png; expected a folder that h",
        ),
    ],
)
def test_an_empty_folder_is_one_line(tmp_path, name, line):
    with pytest.raises(KDBenchError) as error:
        _ = tiny.task(tmp_path / "cache", name, {"root": str(tmp_path)}).scenes
    assert str(error.value).startswith(line.format(root=tmp_path))


def test_a_listed_image_that_is_not_there_is_one_line(tmp_path):
    voc(tmp_path)
    (tmp_path / "SegmentationClass" / "2007_train1.png").unlink()
    with pytest.raises(KDBenchError, match="2007_train1.png: there is no such file; .*train.txt lists 2007_train1"):
        LAYOUTS["voc"](tmp_path)
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").unlink()
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_train0\n")
    with pytest.raises(KDBenchError, match="val.txt: cannot be read .No such file.*expected an image's name a line"):
        LAYOUTS["voc"](tmp_path)


def test_real_frames_of_camvid(shared_data, tmp_path):
    task = tiny.task(tmp_path, "camvid", {"root": str(shared_data / "camvid")})
    assert {name: c.samples for name, c in task.counts().items()} == {"train": 20, "val": 6, "test": 10}
    counts = task.counts()["train"].labels
    assert counts["road"] > counts["pole"] > 0
    batch = next(iter(task.data(0).test_dataloader()))
    assert batch.inputs.shape == (4, 3, 360, 480)
    assert 0 <= int(batch.targets.min()) <= int(batch.targets[batch.targets != IGNORED].max()) <= 10
