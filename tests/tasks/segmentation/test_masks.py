"""Masks: what the numbers in them mean, and files that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdbench.errors import KDBenchError
from tasks.segmentation.sources.base import IGNORED, Labels
from tasks.segmentation.sources.masks import UNKNOWN, MaskReader, examine, read_numbers
from tests.tasks.segmentation import tiny


def values(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(np.int64)


def saved(path: Path, image: Image.Image) -> Path:
    image.save(path)
    return path


def test_every_kind_of_number_is_read(tmp_path):
    bytes_ = tiny.mask(numbers=(0, 1, 200))
    whole = np.asarray(bytes_).astype(np.int64)
    palette = bytes_.convert("L").copy()
    palette.putpalette([255 - i // 3 for i in range(768)])
    wide = Image.fromarray((whole * 100).astype(np.uint16))
    for name, image, expected in (
        ("grey.png", bytes_, whole),
        ("palette.png", palette, whole),
        ("wide.png", wide, whole * 100),
        ("bit.png", Image.fromarray(whole > 0), whole > 0),
        ("grey.bmp", bytes_, whole),
        ("grey.tif", bytes_, whole),
    ):
        assert np.array_equal(read_numbers(saved(tmp_path / name, image)), expected), name


@pytest.mark.parametrize(
    ("name", "image", "line"),
    [
        ("m.png", tiny.image(), "an RGB picture; expected a mask of one class number a pixel. For colours: data=maskf"),
        ("m.png", tiny.image().convert("RGBA"), "an RGBA picture; expected a mask"),
        ("m.png", tiny.mask().convert("LA"), "grey with transparency; expected a mask"),
        ("m.tif", Image.fromarray(np.ones((4, 4), np.float32)), "fractions; expected a mask"),
        ("m.jpg", tiny.mask(), "a mask in JPEG, which blurs its numbers; expected PNG"),
    ],
)
def test_what_is_no_mask_is_one_line(tmp_path, name, image, line):
    with pytest.raises(KDBenchError) as error:
        read_numbers(saved(tmp_path / name, image))
    assert str(error.value).startswith(f"{tmp_path / name}: {line}")
    assert "\n" not in str(error.value)


def test_a_cut_off_file_is_one_line(tmp_path):
    whole = saved(tmp_path / "m.png", tiny.image(size=(60, 60)))
    whole.write_bytes(whole.read_bytes()[:-2000])
    with pytest.raises(KDBenchError, match="m.png: not a readable image .*truncated"):
        read_numbers(whole)
    with pytest.raises(KDBenchError, match="m.png: not a readable image"):
        examine(whole, saved(tmp_path / "mask.png", tiny.mask(size=(60, 60))), pictures=False)
    whole.write_bytes(b"nothing")
    with pytest.raises(KDBenchError, match="m.png: not a readable image .of no known format"):
        read_numbers(whole)


def test_image_and_mask_are_of_one_size(tmp_path):
    image, mask = saved(tmp_path / "i.png", tiny.image()), saved(tmp_path / "m.png", tiny.mask(size=(20, 31)))
    with pytest.raises(KDBenchError, match=r"m.png: 31 x 20 pixels, its image i.png has 30 x 20; expected equal sizes"):
        examine(image, mask, pictures=False)


def test_what_a_pair_of_files_holds(tmp_path):
    image, mask = saved(tmp_path / "i.png", tiny.image()), saved(tmp_path / "m.png", tiny.mask(numbers=(0, 7)))
    facts = examine(image, mask, pictures=False)
    assert facts.size == (20, 30)
    assert sum(facts.numbers.values()) == 600
    assert set(facts.numbers) == {0, 7}
    assert facts.extent is None
    other = examine(saved(tmp_path / "j.png", tiny.image(1)), mask, pictures=False)
    assert facts.digest != other.digest
    assert examine(saved(tmp_path / "k.png", tiny.image()), mask, pictures=False) == facts


def test_numbers_become_classes():
    labels = Labels(("a", "b"), {3: 0, 4: 1, 9: IGNORED, 2000: 1})
    found = MaskReader(labels).classes(np.array([[3, 4, 9, 2000, 5, 0]]))
    assert found.tolist() == [[0, 1, IGNORED, 1, UNKNOWN, UNKNOWN]]


def test_colours_become_classes(tmp_path):
    labels = Labels(("a", "b"), {0: 0, 1: 1}, {(128, 64, 128): 0, (0, 0, 1): 1})
    picture = np.zeros((2, 3, 3), np.uint8)
    picture[0], picture[1], picture[1, 2] = (128, 64, 128), (0, 0, 1), (5, 5, 5)
    reader = MaskReader(labels)
    found = reader.classes(reader.numbers(saved(tmp_path / "c.png", Image.fromarray(picture))))
    assert found.tolist() == [[0, 0, 0], [1, 1, UNKNOWN]]


def test_some_classes_alone():
    labels = Labels.of(("a", "b", "c"), first=1, void=(0,)).chosen(["c", "a"], void=[99])
    assert labels.classes == ("c", "a")
    assert labels.codes == {1: 1, 2: IGNORED, 3: 0, 0: IGNORED, 99: IGNORED}
    with pytest.raises(KDBenchError, match="data.classes: there is no class 'd': "):
        labels.chosen(["c", "d"])
    with pytest.raises(KDBenchError, match=r"data.classes=\['c'\]: expected two classes at least, each once"):
        labels.chosen(["c"])
