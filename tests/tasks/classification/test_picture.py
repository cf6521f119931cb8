from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageColor

from kdbench.base import rng
from tasks.classification import picture
from tasks.lettering import font as letters

CLASSES = ["aquarium_fish", "crab", "lawn_mower"]


def images(n: int, channels: int = 3, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    return rng.numpy(0, "images").integers(0, 256, (n, channels, *size), dtype=np.uint8)


def found(labels: list[int], sure: float = 0.5) -> picture.Found:
    return np.array(labels), np.full(len(labels), sure)


def ink(image: Image.Image, color: str) -> int:
    """Pixels of a colour below the title, anti-aliased ones left out."""
    return int((np.asarray(image)[picture.TITLE :] == ImageColor.getrgb(color)).all(-1).sum())


def test_the_images_on_which_models_disagree_are_chosen_in_order():
    truth = np.array([0, 1, 2, 0])
    chosen, title = picture._choose(
        truth, {"a": found([0, 1, 1, 0]), "b": found([0, 2, 2, 0]), "c": found([0, 1, 2, 0])}
    )
    assert chosen.tolist() == [1, 2]
    assert title == "a, b and c disagree on 2 of 4 test images"
    chosen, title = picture._choose(truth.repeat(20), {"a": found([0] * 80), "b": found([1] * 80)})
    assert chosen.tolist() == [*range(picture.CARDS)]
    assert title == f"a and b disagree on 80 of 80 test images; the first {picture.CARDS}"


def test_without_disagreement_mistakes_come_first():
    truth = np.array([0, 1, -1, 2])
    chosen, title = picture._choose(truth, {"a": found([0, 0, 0, 0])})
    assert chosen.tolist() == [1, 3, 0, 2]
    assert title == "a is wrong on 2 of 4 test images"
    _, title = picture._choose(truth, {"a": found([0, 0, 0, 0]), "b": found([0, 0, 0, 0])})
    assert title == "a, b agree and are wrong on 2 of 4 test images"


@pytest.mark.parametrize(
    ("channels", "size"), [(1, (8, 8)), (3, (32, 32)), (3, (300, 200)), (1, (1, 40)), (3, (1, 40))]
)
def test_any_images(channels, size):
    n = 9
    shown = picture.render(
        images(n, channels, size), np.zeros(n, np.int64), {"a": found([0] * n), "b": found([1] * n)}, CLASSES
    )
    assert shown.mode == "RGB"
    assert shown.width == 1500
    rows = -(-n // picture.COLUMNS)
    assert shown.height > rows * picture.THUMB


def test_right_and_wrong_have_their_colours():
    truth = np.array([0])
    for label, right in ((0, True), (1, False)):
        shown = picture.render(images(1, 1), truth, {"a": found([label])}, CLASSES)
        assert (ink(shown, picture.RIGHT) > 10) is right
        assert (ink(shown, picture.WRONG) > 10) is not right
    unknown = picture.render(images(1, 1), np.array([-1]), {"a": found([1])}, CLASSES)
    assert ink(unknown, picture.RIGHT) == ink(unknown, picture.WRONG) == 0


def test_small_images_are_not_smoothed():
    thumb = np.asarray(picture._thumb(images(1, 1)[0]))
    assert thumb.shape == (picture.THUMB, picture.THUMB, 3)
    assert set(np.unique(thumb)) <= set(np.unique(images(1, 1)[0]))


def test_long_names_are_cut():
    font = letters(16)
    assert picture._fit("crab", 100, font) == "crab"
    cut = picture._fit("a very long name of a class", 100, font)
    assert cut.endswith("…")
    assert font.getlength(cut) <= 100


def test_pictures_repeat():
    args = images(3), np.zeros(3, np.int64), {"a": found([0, 1, 2]), "b": found([2, 1, 0])}, CLASSES
    assert picture.render(*args).tobytes() == picture.render(*args).tobytes()


def test_a_card_shows_how_probable_each_class_is():
    image = images(1)[0]
    for found in ([("crab", 0.75), ("lawn_mower", 0.25)], [("crab", 1.0)]):
        card = picture.card(image, found, "sea/0.png")
        bars = (np.asarray(card) == ImageColor.getrgb(picture.RIGHT)).all(-1).sum(1)
        lengths = [int(n) for n in bars if n > 0][::5]
        assert lengths == pytest.approx([480 * p for _, p in found], abs=2)
    other = picture.card(255 - image, found, "sea/0.png")
    assert card.size == other.size
    assert card.tobytes() != other.tobytes()
