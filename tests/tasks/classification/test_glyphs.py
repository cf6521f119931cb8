from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFont, features

from kdbench.base import rng
from kdbench.base.store import Store
from kdbench.errors import KDBenchError
from tasks.classification import glyphs
from tasks.classification.glyphs import CLASSES, FACES, MONOSPACED, Render, render
from tasks.classification.sources import rendered
from tasks.classification.sources.base import ImageSet
from tasks.classification.task import Classification
from tests.tasks.classification import layouts, tiny

PLAIN = Render(strength=0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("glyphs")


def few(cache: Path, options: dict[str, Any] | None = None, **more: Any) -> ImageSet:
    """Two images of a class to train with and one to test with."""
    return rendered.glyphs(Store(cache), options or {}, progress=False, **{"pool": 2, "test": 1, **more})


# ---- images ---------------------------------------------------------------------------------------------------------


def test_the_classes_are_those_of_emnist_balanced():
    assert len(CLASSES) == len(set(CLASSES)) == 47
    assert len(FACES) == len(set(FACES)) == 21
    assert len(MONOSPACED) == 5
    assert all(glyphs.font_file(face).is_file() for face in FACES)


def test_every_image_has_a_stream_of_its_own():
    """Whatever is rendered with it, a smaller set is the beginning of a larger one."""
    many = render(Render(), FACES, "train", range(94))
    np.testing.assert_array_equal(render(Render(), FACES, "train", range(47)), many[:47])
    np.testing.assert_array_equal(render(Render(), FACES, "train", range(60, 62)), many[60:62])
    assert len(np.unique(many, axis=0)) == 94
    for other in (render(Render(), FACES, "t10k", range(94)), render(Render(seed=2), FACES, "train", range(94))):
        assert not (other == many).all((1, 2, 3)).any()


def test_a_plain_character_is_its_glyph_in_the_middle(monkeypatch):
    """Alone, without warp and clutter: as Pillow draws it, at twelve pixels an em, light on an even ground."""
    monkeypatch.setattr(glyphs, "NEIGHBOUR", 0)
    font = ImageFont.truetype(glyphs.font_file("DejaVuSans"), 30, layout_engine=ImageFont.Layout.BASIC)
    for row, (image,) in enumerate(render(PLAIN, ["DejaVuSans"], "train", range(47))):
        drawn = Image.new("L", (40, 40))
        ImageDraw.Draw(drawn).text((20, 20), CLASSES[row], fill=255, font=font, anchor="mm")
        left, top, right, bottom = drawn.getbbox() or (0, 0, 0, 0)
        moved = ImageChops.offset(drawn, 20 - left - (right - left) // 2, 20 - top - (bottom - top) // 2)
        expected = np.asarray(moved.resize((16, 16), Image.Resampling.BILINEAR), dtype=float)
        assert np.corrcoef(expected.ravel(), image.ravel())[0, 1] > 0.85, CLASSES[row]
        ground, ink = int(image.min()), int(np.ptp(image))
        assert image[0, 0] == image[-1, -1] == ground
        assert ink <= 0.7 * 255 + 1
        assert ground + ink <= 255


def test_neighbours_stand_beside_it(monkeypatch):
    def edges() -> float:
        images = render(PLAIN, FACES, "train", range(470))
        return float(np.ptp(images[:, 0, :, [0, -1]], axis=2).mean())

    between = edges()
    monkeypatch.setattr(glyphs, "NEIGHBOUR", 0)
    assert edges() < 0.4 * between


def test_strength_warps_and_clutters():
    plain, half, full = (render(Render(strength=s), FACES, "train", range(94)) / 255 for s in (0, 0.5, 1.0))
    corners = [np.abs(v[..., 0, 0] - v[..., 0, 1]).mean() for v in (plain, half, full)]
    assert corners == sorted(corners)
    assert corners[0] < 0.02 < corners[1]
    assert np.corrcoef(plain.ravel(), half.ravel())[0, 1] > np.corrcoef(plain.ravel(), full.ravel())[0, 1] > 0.3


def test_size_and_colour():
    grey = render(Render(size=24), FACES, "train", range(2))
    colour = render(Render(colour=True), FACES, "train", range(8))
    assert (grey.shape, grey.dtype) == ((2, 1, 24, 24), np.uint8)
    assert colour.shape == (8, 3, 16, 16)
    assert np.ptp(colour.mean((2, 3)), axis=1).min() > 0, "the channels have grounds of their own"


def test_rendering_needs_no_torch():
    """A process that renders starts in a moment."""
    code = """if True:
        import sys
        from tasks.classification.glyphs import FACES, Render, render
        render(Render(), FACES, "train", range(2))
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- the data set ---------------------------------------------------------------------------------------------------


def test_the_digest_under_the_pinned_versions(cache):
    """Written down: a record on the leaderboard names the digest of a data set made like this one."""
    pinned = dict(re.findall(r"(?m)^([\w-]+)==([\w.]+)", (Path(__file__).parents[3] / "constraints.txt").read_text()))
    differing = [name for name in ("matplotlib", "numpy", "pillow") if version(name) != pinned[name]]
    if differing:
        pytest.skip(f"other versions than constraints.txt: {', '.join(differing)}")
    assert features.version("freetype2") == "2.14.3"
    assert few(cache).digest == "9aa55c874f651b62"


def test_it_is_written_as_mnist_is_and_read_by_its_loader(cache):
    source = few(cache)
    (product,) = (cache / "glyphs").iterdir()
    assert {path.name for path in product.iterdir()} == {"manifest.json"} | {
        f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")
    }
    np.testing.assert_array_equal(source.train.array, render(Render(), FACES, "train", range(94)))
    np.testing.assert_array_equal(source.test.array, render(Render(), FACES, "t10k", range(47)))
    assert source.train.labels.tolist() == [*range(47), *range(47)]
    assert (source.name, source.embedded, "".join(source.classes)) == ("glyphs", True, CLASSES)
    values = source.train.array / 255
    np.testing.assert_allclose([*source.mean, *source.std], [values.mean(), values.std()], atol=1e-4)


def test_colour_is_read_back(cache):
    source = few(cache, {"colour": True})
    assert source.train.array.shape == (94, 3, 16, 16)
    np.testing.assert_array_equal(source.test.array, render(Render(colour=True), FACES, "t10k", range(47)))
    assert len(source.mean) == 3


def test_the_digest_holds_pixels_fonts_and_freetype(cache, monkeypatch):
    plain = few(cache).digest
    assert few(cache).digest == plain
    assert few(cache, {"seed": 2}).digest != plain
    # The same pixels, made with another version.
    monkeypatch.setattr(rendered, "made_with", lambda faces: ["other"])
    assert few(cache).digest != plain


def test_unseen_typefaces_are_in_a_second_test_set_alone(cache, monkeypatch):
    drawn: dict[str, set[str]] = {}
    line = glyphs._glyphs

    def recorded(face: str, em: int) -> Any:
        drawn.setdefault(part[0], set()).add(face)
        return line(face, em)

    def each(function: Any, items: Any, *_: Any, **__: Any) -> Any:
        for item in items:
            part[0] = item[0]
            yield function(item)

    part = [""]
    monkeypatch.setattr(glyphs, "_glyphs", recorded)
    monkeypatch.setattr(rendered, "mapped", each)
    source = few(cache, test_fonts="unseen", pool=4, test=2)
    assert source.shifted is not None
    assert source.shifted.array.shape == source.test.array.shape
    assert drawn["unseen"] == set(MONOSPACED)
    assert drawn["train"] == set(FACES) - set(MONOSPACED)
    assert drawn["t10k"] <= drawn["train"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fonts": ["DejaVuSan"]}, r"data.render.fonts: there is no typeface 'DejaVuSan': did you mean 'DejaVuSans'"),
        ({"fonts": []}, r"data.render.fonts=\[\]: expected a typeface at least"),
        ({"size": 4}, "data.render.size: found 4; input should be greater"),
        ({"strenght": 1}, r"data.render.strenght: .*'strength'"),
    ],
)
def test_wrong_options(options, message, cache):
    with pytest.raises(KDBenchError, match=message):
        few(cache, options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"render": {"size": 20}}, r"data.render={'size': 20}: digits is not rendered; choose data=glyphs"),
        ({"test_fonts": "unseen"}, r"data.test_fonts=unseen: digits is not rendered"),
    ],
)
def test_other_data_are_not_rendered(options, message, tmp_path):
    with pytest.raises(KDBenchError, match=message):
        layouts.open_with(tmp_path, source="digits", **options)


def test_the_pool_is_cut_as_documented(cache):
    """250 images of a class are a pool of 10,575 and 1,175 of validation; more labels hold fewer."""
    student = layouts.open_with(cache, source="glyphs", labels=940, test_fonts="unseen", test=470)
    teacher = layouts.open_with(cache, source="glyphs", labels=3760, test_fonts="unseen")
    assert student.sizes == {"train": 940, "val": 1175, "test": 470}
    assert teacher.sizes == {"train": 3760, "val": 1175, "test": 9400}
    assert set(student.train.rows) < set(teacher.train.rows)
    assert set(np.bincount(student.train.targets)) == {20}
    assert set(np.bincount(teacher.train.targets)) == {80}
    assert not set(student.val.rows) & set(teacher.train.rows)
    assert student.shifted is not None
    assert len(student.shifted) == 470
    ids = [batch.ids for batch in student.module(0).shifted_dataloader() or ()]
    assert int(ids[0][0]) == 940 + 1175 + 470


def test_both_test_sets_are_scored(cache):
    data = {"source": "glyphs", "test": 94, "labels": 94, "test_fonts": "unseen"}
    made = Classification(data, Store(cache))
    with rng.scope(0, "init"):
        model = made.build(tiny.NET).eval()
    module = made.images.module(0)
    found = made.evaluate(model, module.test_dataloader(), "test", torch.device("cpu"), **made.beside(module))
    hits = []
    with torch.no_grad():
        for batch in module.shifted_dataloader() or ():
            hits.append(made.forward(model, batch.inputs).logits.argmax(1) == batch.targets)
    assert len(torch.cat(hits)) == 94
    assert found["shifted_top1"] == pytest.approx(100 * torch.cat(hits).float().mean().item())
    assert {"top1", "top5", "nll", "ece", "worst_class"} <= {name.removeprefix("shifted_") for name in found}
    validation = made.evaluate(model, module.val_dataloader(), "val", torch.device("cpu"))
    assert not any(name.startswith("shifted_") for name in validation)
    plain = Classification({**data, "test_fonts": "seen"}, Store(cache))
    assert plain.beside(plain.data(0)).keys() == {"val"}
