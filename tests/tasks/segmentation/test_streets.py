"""Rendered streets: deterministic, a function of (seed, split, row), and true to a pinhole camera."""

from __future__ import annotations

import numpy as np
import pytest

from kdbench.base import rng
from kdbench.base.store import Store
from kdbench.errors import KDBenchError
from tasks.segmentation import streets
from tasks.segmentation.sources.names import CITYSCAPES_IDS
from tasks.segmentation.sources.rendered import streets as rendered
from tasks.segmentation.sources.rendered import write
from tasks.segmentation.streets import CLASSES, INSTANCES, Render, layout, paint, render, shapes, things
from tests.tasks.segmentation.test_masks import values

SMALL = Render(size=(48, 96))


@pytest.fixture(scope="module")
def pictures() -> list[streets.Picture]:
    return [render(SMALL, "train", row) for row in range(24)]


def test_a_scene_is_a_function_of_seed_split_and_row(pictures):
    np.random.seed(1)  # noqa: NPY002  (a global generator has no part in it)
    again = render(SMALL, "train", 3)
    for name in ("image", "labels", "instances"):
        assert np.array_equal(getattr(again, name), getattr(pictures[3], name))
    for other in (render(SMALL, "val", 3), render(SMALL, "train", 4), render(Render((48, 96), seed=2), "train", 3)):
        assert not np.array_equal(other.image, again.image)


def test_every_class_is_there_and_none_rules(pictures):
    pixels = dict.fromkeys(CITYSCAPES_IDS, 0)
    for picture in pictures:
        for name, count in zip(picture.names, np.bincount(picture.labels.ravel(), minlength=99), strict=False):
            pixels[name] += int(count)
    shares = {name: count / sum(pixels.values()) for name, count in pixels.items() if count}
    assert set(shares) <= {*CLASSES, "static", "ego vehicle"}
    assert all(shares[name] > 0.004 for name in CLASSES)
    assert max(shares.values()) < 0.5
    assert shares["road"] > 10 * shares["fence"]  # as unbalanced as streets are
    assert 0.005 < shares["static"] + shares["ego vehicle"] < 0.06


def test_things_are_told_apart(pictures):
    seen = 0
    for picture in pictures:
        for number, name in enumerate(picture.names):
            found = np.unique(picture.instances[picture.labels == number])
            if name in INSTANCES:
                seen = max(seen, len(found))
                assert 0 not in found
            else:
                assert {*found.tolist()} <= {0}
    assert seen > 3


def test_larger_images_show_the_same_scene():
    small, large = render(SMALL, "train", 0), render(Render((96, 192)), "train", 0)
    shrunk = large.labels[::2, ::2]
    assert large.names == small.names
    assert (shrunk == small.labels).mean() > 0.9


def camera(size=(60, 100)) -> paint.Camera:
    return paint.Camera(1.5, 80.0, (50.0, 25.0), size)


def test_the_camera_is_a_pinhole():
    seen = camera().project(np.array([[0.0, 1.5, 10.0], [2.0, 0.0, 10.0], [4.0, 0.0, 20.0]]))
    assert seen == pytest.approx(np.array([[50, 25], [66, 37], [66, 31]]))
    first, x, z = camera().on_ground()
    assert first == 26
    back = camera().project(np.stack([x, 0 * x, z], -1))
    rows, columns = np.mgrid[first:60, 0:100]
    assert back == pytest.approx(np.stack([columns + 0.5, rows + 0.5], -1))


def street() -> layout.Street:
    return layout.Street(-5.0, 5.0, 3.0, 3.0, None, 60.0, (1, 1), (False, False), (False, False))


def test_near_things_cover_far_ones():
    stage = shapes.Stage()
    light = paint.Light(np.array([0.0, 1.0, 0.0]), 0.2, 0.0, np.ones(3), np.ones(3))
    for z, label in ((8.0, "car"), (12.0, "bus")):  # added in either order
        number = stage.things(label, [z])
        stage.add(number, *shapes.boxes(np.array([[0.0, 0.0, z]]), np.array([[2.0, 2.0, 1.0]])), np.ones((1, 3)))
    _, numbers = paint.paint(stage, camera(), street(), light, rng.numpy(0, "test"))
    seen = [["sky", "road", "sidewalk", "terrain", "car", "bus"][n] for n in np.unique(numbers)]
    assert "car" in seen
    u, v = camera().project(np.array([0.0, 1.0, 7.5])).astype(int)
    assert numbers[v, u] == 4
    assert (numbers == 4).sum() > (numbers == 5).sum()


def test_a_box_shows_its_faces_outwards():
    points, normals = shapes.boxes(np.array([[1.0, 0, 5]]), np.array([[2.0, 3.0, 4.0]]), np.array([0.3]))
    middle = points.mean(2)
    outwards = ((middle - [1.0, 1.5, 5]) * normals).sum(-1)
    assert (outwards > 0).all()
    for face, normal in zip(points[0], normals[0], strict=True):
        assert (face - face.mean(0)) @ normal == pytest.approx(0)


def test_a_pane_lies_within_its_face():
    points, _ = shapes.boxes(np.zeros((1, 3)), np.array([[2.0, 3.0, 4.0]]))
    pane = shapes.inset(points[0, 2], 0.5, 0.2, 0.8)
    assert pane.min(0) == pytest.approx([-0.5, 0.6, -2])
    assert pane.max(0) == pytest.approx([0.5, 2.4, -2])


def test_what_is_behind_the_camera_is_cut_off():
    cut = paint._clipped(np.array([[0.0, 0, -1], [0.0, 0, 3], [1.0, 0, 3]]))
    assert cut[:, 2].min() == pytest.approx(layout.NEAR)
    assert len(cut) == 4
    assert paint._clipped(np.full((3, 3), -1.0)).shape == (0, 3)


def test_most_pixels_of_a_block_win_and_the_nearer_thing_of_two():
    numbers = np.array([[1, 1, 2, 5], [1, 7, 5, 2], [3, 3, 0, 1], [3, 3, 2, 3]])
    assert paint.majority(numbers).tolist() == [[1, 5], [3, 3]]


def test_shadows_fall_away_from_the_sun():
    stage = shapes.Stage()
    things.poles(stage, rng.numpy(0, "pole"), np.array([[0.0, 0, 10]]), np.array([4.0]), np.array([0.3]), np.zeros(1))
    sun = np.array([0.6, 0.8, 0.0])
    light = paint.Light(sun, 0.5, 0.0, np.ones(3), np.ones(3))
    left = paint.shadows(camera(), light, stage.merged())
    end = camera().project(np.array([-4.0 * 0.6 / 0.8, 0.0, 10.0]))
    dark = np.argwhere(left < 1)
    assert dark[:, 1].min() == pytest.approx(end[0], abs=3)
    assert dark[:, 1].max() <= 54
    assert (np.unique(left) == pytest.approx([0.475, 1.0])) is True


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"density": {"lorry": 1}}, "data.render.density.lorry: no such thing: "),
        ({"density": {"person": 99}}, "data.render.density.person=99.0; expected a mean from 0 to 60"),
        ({"size": [8, 8]}, "data.render.size.0: found 8; input should be greater than or equal to 32"),
        ({"seeds": 1}, "data.render.seeds: unknown key: did you mean 'seed'?"),
    ],
)
def test_bad_options_are_one_line(tmp_path, options, line):
    with pytest.raises(KDBenchError) as error:
        rendered(Store(tmp_path), options, 2, 1, progress=False)
    assert str(error.value).startswith(line)


def test_none_of_a_thing_can_be_asked_for():
    none = dict.fromkeys(layout.DENSITY, 0.0)
    seen = {n for row in range(3) for n in render(Render((48, 96), density=none), "train", row).names}
    assert not {"person", "traffic sign", "pole"} & seen


def test_files_are_those_of_cityscapes_and_few_begin_many(tmp_path):
    for folder, count in (("few", 2), ("more", 3)):
        write(tmp_path / folder, SMALL, {"train": count, "val": 1})
    few, more = (sorted(p.relative_to(tmp_path / f) for p in (tmp_path / f).rglob("*.png")) for f in ("few", "more"))
    assert {*few} < {*more}
    for path in few:
        assert (tmp_path / "few" / path).read_bytes() == (tmp_path / "more" / path).read_bytes()
    made = render(SMALL, "train", 1)
    stem = tmp_path / "few" / "gtFine" / "train" / "streets" / "streets_000001_000000_gtFine"
    ids = values(stem.with_name(f"{stem.name}_labelIds.png"))
    assert [CITYSCAPES_IDS[i] for i in np.unique(ids)] == sorted(
        {made.names[i] for i in np.unique(made.labels)}, key=CITYSCAPES_IDS.index
    )
    instances = values(stem.with_name(f"{stem.name}_instanceIds.png"))
    apart = instances > 999
    assert np.array_equal(instances[apart] // 1000, ids[apart])
    assert np.array_equal(instances[apart] % 1000, made.instances[apart])
    assert np.array_equal(instances[~apart], ids[~apart])
