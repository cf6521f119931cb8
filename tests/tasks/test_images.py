from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode, functional

from kdbench.base import rng
from kdbench.errors import KDBenchError
from tasks.classification.sources.files import ImageFiles, Resize
from tasks.images import Reader, UnreadableImage, examine
from tasks.pixels import ORIENTATION, Facts, natural_range, to_size


def pixels(path: Path, channels: int = 3, **options: object) -> np.ndarray:
    return np.asarray(Reader(**options).decode(path, channels))  # type: ignore[arg-type]


def ramp(top: int) -> np.ndarray:
    """``(16, 16)`` integers that rise from 0 to ``top``."""
    return np.linspace(0, top, 256).round().reshape(16, 16).astype(np.int64)


def png(values: np.ndarray) -> bytes:
    """A PNG of 16 bits, grey to RGBA, which Pillow writes in grey alone."""
    height, width, channels = values.shape

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(values: np.ndarray, order: str) -> bytes:
    """A TIFF of 16 bits in RGB, little (``<``) or big endian."""
    height, width, _ = values.shape
    content = values.astype(f"{order}u2").tobytes()
    bits = 8 + 2 + 12 * 9 + 4
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 2), (273, bits + 6)]
    tags += [(277, 3), (278, height), (279, len(content))]
    file = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HIH", 42, 8, len(tags))
    for tag, value in tags:
        short = tag in (259, 262, 277)
        file += struct.pack(f"{order}HH", tag, 3 if short or tag == 258 else 4)
        file += struct.pack(f"{order}I", 3 if tag == 258 else 1)
        file += struct.pack(f"{order}HH", value, 0) if short else struct.pack(f"{order}I", value)
    return file + bytes(4) + struct.pack(f"{order}HHH", 16, 16, 16) + content


# ---- more than eight bits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [65535, 4095])
@pytest.mark.parametrize("kind", ["png", "tif", "int32.tif", "pgm", "big.tif"])
def test_values_of_many_bits_are_scaled_by_the_range_of_their_type(kind, top, tmp_path):
    values, path = ramp(top), tmp_path / f"a.{kind}"
    if kind == "pgm":
        path.write_bytes(b"P5 16 16 %d\n" % top + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values.astype({"int32.tif": "i4", "big.tif": ">u2"}.get(kind, "u2"))).save(path)
    expected = np.rint(255 * values / top)
    for channels in (1, 3):
        found = pixels(path, channels)
        assert np.abs(found - (expected if channels == 1 else expected[..., None])).max() <= 1
    assert examine(path).extent is not None
    if kind != "pgm":  # Pillow scales these itself
        half = pixels(path, 1, range=(0.0, 2.0 * top))  # beside images whose brightest value is twice as high
        assert np.abs(half - expected / 2).max() <= 1


@pytest.mark.parametrize("top", [65535, 4095])
def test_colours_of_16_bits_keep_what_is_in_their_low_byte(top, tmp_path):
    values = np.stack([ramp(top), ramp(top)[::-1], np.full((16, 16), top // 2)], -1)
    expected = np.rint(255 * values / top)
    for name, content in {"a.png": png(values), "b.tif": tiff(values, "<"), "c.tif": tiff(values, ">")}.items():
        (tmp_path / name).write_bytes(content)
        assert np.abs(pixels(tmp_path / name) - expected).max() <= 1
        assert examine(tmp_path / name) == Facts((0.0, float(top), True))
    alpha = np.where(values[..., :1] > top // 2, top, 0)
    (tmp_path / "alpha.png").write_bytes(png(np.concatenate([values, alpha], -1)))
    on_grey = np.where(alpha > 0, expected, 128)
    assert np.abs(pixels(tmp_path / "alpha.png") - on_grey).max() <= 1
    assert examine(tmp_path / "alpha.png").alpha
    # Of grey with transparency Pillow gives the high bytes alone, of both: 16 steps of 4095.
    (tmp_path / "grey.png").write_bytes(png(np.concatenate([values[..., :1], alpha], -1)))
    assert np.abs(pixels(tmp_path / "grey.png", 1) - on_grey[..., 0]).max() <= 1.5 * 255 * 256 / top + 1
    assert examine(tmp_path / "grey.png").alpha


def test_fractions_are_scaled_by_their_range(tmp_path):
    unit = ramp(255) / 255
    for values in (unit, unit * 5 - 2):
        Image.fromarray(values.astype(np.float32)).save(tmp_path / "a.tiff")
        assert np.abs(pixels(tmp_path / "a.tiff", 1) - ramp(255)).max() <= 1
    Image.fromarray(np.where(unit > 0.5, np.nan, unit).astype(np.float32)).save(tmp_path / "nan.tiff")
    with pytest.raises(UnreadableImage, match=r"nan.tiff: not a readable image \(it holds values that are not finite"):
        examine(tmp_path / "nan.tiff")


def test_the_range_of_a_type():
    assert natural_range(3, 200, True) == (0, 255)
    assert natural_range(0, 1000, True) == (0, 1023)
    assert natural_range(0, 4096, True) == (0, 8191)
    assert natural_range(-1024, 3071, True) == (-1024, 3071)
    assert natural_range(0.2, 0.7, False) == (0, 1)
    assert natural_range(0, 255.0, False) == (0, 255)
    assert natural_range(-2.0, -2.0, False) == (-2, -1)


# ---- upright, on a ground, in every mode ---------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_pictures_are_turned_upright(tag, end, tmp_path):
    upright = np.zeros((24, 40, 3), dtype=np.uint8)
    upright[:8, :16, 0] = upright[16:, 16:, 1] = 255
    undo = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
    methods = dict(zip(range(2, 9), (0, 3, 1, 5, 4, 6, 2), strict=True))  # Image.Transpose by tag
    stored = Image.fromarray(upright)
    if tag > 1:
        stored = stored.transpose(Image.Transpose(methods[undo[tag]]))
    exif = Image.Exif()
    exif[ORIENTATION] = tag
    path = tmp_path / f"a.{end}"
    stored.save(path, exif=exif, quality=95)
    assert np.abs(pixels(path).astype(int) - upright).mean() < 6
    if end != "tif":  # Pillow turns these itself
        assert examine(path).turned == (tag > 1)
    if end == "png":  # and values of 16 bits, in grey
        Image.fromarray(np.asarray(stored)[..., 0].astype(np.uint16) * 257).save(path, exif=exif)
        np.testing.assert_array_equal(pixels(path, 1), upright[..., 0])


def test_broken_metadata_is_no_broken_picture(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert pixels(tmp_path / "a.jpg").shape == (8, 8, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB with a key", "PA"])
def test_transparent_pixels_show_the_ground(mode, tmp_path):
    alpha = np.zeros((8, 8), dtype=np.uint8)
    alpha[:, :4] = 255
    image = Image.fromarray(np.dstack([np.where(alpha > 0, 200, 0)] * 3 + [alpha]).astype(np.uint8), "RGBA")
    path = tmp_path / ("a.tif" if mode == "PA" else "a.png")
    if mode == "RGB with a key":
        image.convert("RGB").save(path, transparency=(0, 0, 0))
    elif mode == "P":
        image.convert("RGB").quantize(2, dither=Image.Dither.NONE).save(path)
        index = Image.open(path).getpixel((7, 0))
        Image.open(path).save(path, transparency=index)
    else:
        image.convert(mode).save(path)
    for background, ground in (("white", (255, 255, 255)), ("#0000ff", (0, 0, 255))):
        found = pixels(path, background=background)
        assert np.abs(found[:, :4].astype(int) - 200).max() <= 2
        np.testing.assert_array_equal(found[:, 4:], np.broadcast_to(ground, (8, 4, 3)))
    assert pixels(path, 1)[0, 7] == 128
    assert examine(path).alpha


def test_an_opaque_alpha_is_no_transparency(tmp_path):
    Image.new("RGBA", (8, 8), (10, 20, 30, 255)).save(tmp_path / "a.png")
    assert not examine(tmp_path / "a.png").alpha
    assert pixels(tmp_path / "a.png")[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("mode", "end"), [("1", "png"), ("L", "jpg"), ("CMYK", "jpg"), ("CMYK", "tif"), ("RGB", "gif")]
)
def test_other_modes_become_grey_and_colour(mode, end, tmp_path):
    picture = Image.fromarray(np.dstack([ramp(255)] * 3).astype(np.uint8))
    picture.convert(mode).save(tmp_path / f"a.{end}")
    for channels, shape in ((1, (16, 16)), (3, (16, 16, 3))):
        assert pixels(tmp_path / f"a.{end}", channels).shape == shape
    if mode != "1":
        assert np.abs(pixels(tmp_path / f"a.{end}", 1).astype(int) - ramp(255)).mean() < 4
    assert examine(tmp_path / f"a.{end}") == Facts()


def test_further_frames_are_noticed(tmp_path):
    frames = [Image.new("L", (8, 8), value) for value in (10, 200)]
    for end in ("gif", "tif"):
        frames[0].save(tmp_path / f"a.{end}", save_all=True, append_images=frames[1:])
        assert examine(tmp_path / f"a.{end}").frames
        assert pixels(tmp_path / f"a.{end}", 1)[0, 0] == 10


def test_an_unknown_colour_is_one_line():
    with pytest.raises(KDBenchError, match=r"data.background=blck: there is no such colour; expected a name or"):
        Reader("blck")


# ---- broken files --------------------------------------------------------------------------------------------------


def test_images_that_do_not_decode_are_named(tmp_path, monkeypatch):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    noise.save(tmp_path / "a.png")
    noise.save(tmp_path / "a.jpg")
    noise.save(tmp_path / "progressive.jpg", progressive=True)
    bad = {"empty.jpg": b"", "text.jpg": b"no image", "cut.png": (tmp_path / "a.png").read_bytes()[:900]}
    for name in ("a.jpg", "progressive.jpg"):
        bad[f"cut_{name}"] = (tmp_path / name).read_bytes()[:-200]
    for name, content in bad.items():
        path = tmp_path / name
        path.write_bytes(content)
        for read in (lambda p=path: ImageFiles([p], (8, 8)).read([0]), lambda p=path: examine(p)):
            with pytest.raises(UnreadableImage, match=rf"{name}: not a readable image \(.*\)$") as error:
                read()
            assert "\n" not in str(error.value)
    with pytest.raises(UnreadableImage, match=r"none.png: not a readable image \(No such file or directory\)$"):
        pixels(tmp_path / "none.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(
        UnreadableImage, match=r"a.png: not a readable image \(Image size \(1600 pixels\) exceeds limit"
    ):
        examine(tmp_path / "a.png")


def test_an_error_of_a_worker_is_the_same_line_again():
    from torch._utils import ExceptionWrapper

    try:
        raise UnreadableImage("a.jpg: not a readable image (cut)")
    except UnreadableImage:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(UnreadableImage) as error:
        wrapped.reraise()
    assert str(error.value) == "a.jpg: not a readable image (cut)"


# ---- sizes ---------------------------------------------------------------------------------------------------------


def test_files_are_resized_from_their_centre_or_a_box(tmp_path):
    columns = np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (32, 1, 3))
    Image.fromarray(columns).save(tmp_path / "ramp.png")
    files = ImageFiles([tmp_path / "ramp.png"], (16, 16), central=1.0)
    centre = files.read([0])[0, 0, 0].float()
    # The central 32 columns, 16 to 47, two to one.
    torch.testing.assert_close(centre[4:12], 4 * (16.5 + 2 * torch.arange(16.0))[4:12], atol=1.0, rtol=0)
    box = files.read([0], lambda place, height, width: (0, 0, height, width // 4))[0, 0, 0].float()
    torch.testing.assert_close(box, 4 * torch.arange(16.0), atol=1.0, rtol=0)
    smaller = ImageFiles([tmp_path / "ramp.png"], (16, 16), central=0.5).read([0])[0, 0, 0].float()
    torch.testing.assert_close(smaller, 4 * (24 + torch.arange(16.0)), atol=1.0, rtol=0)
    assert files.read([]).shape == (0, 3, 16, 16)
    assert ImageFiles([], (1, 40)).one(tmp_path / "ramp.png", 1).shape == (1, 1, 40)


@pytest.mark.parametrize("shape", [(90, 130), (131, 64), (47, 47)])
@pytest.mark.parametrize(("crop", "interpolation"), [(0.875, "bilinear"), (0.95, "bicubic"), (1.0, "bicubic")])
def test_evaluation_of_a_model_of_timm(shape, crop, interpolation, tmp_path):
    """Pixel by pixel what timm's own transform makes of a picture."""
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    files = ImageFiles([], (48, 48), resize=Resize(crop, None, interpolation))
    transform = timm.data.create_transform(
        48, interpolation=interpolation, crop_pct=crop, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    expected = transform(Image.open(tmp_path / "a.png")) * 255
    torch.testing.assert_close(files.one(tmp_path / "a.png", 3).float(), expected, atol=0.01, rtol=0)
    side = ImageFiles([], (48, 48), resize=Resize(None, int(48 / crop), interpolation))
    assert torch.equal(side.one(tmp_path / "a.png", 3), files.one(tmp_path / "a.png", 3))


@pytest.mark.parametrize("size", [(16, 16), (24, 12)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_resizing_is_torchvisions(size, interpolation):
    """To the bit, on images of any shape; exported models bring the same lines along."""
    mode = InterpolationMode(interpolation)
    for height, width in ((40, 61), (61, 40), (24, 24), (33, 17)):
        image = Image.fromarray(rng.numpy(0, height, width).integers(0, 256, (height, width, 3)).astype(np.uint8))
        box = (3, 2, height - 5, width - 7)
        boxed = functional.resized_crop(image, *box, list(size), mode, antialias=True)
        assert (to_size(image, size, box, interpolation=interpolation) == np.asarray(boxed).transpose(2, 0, 1)).all()
        side = max(size) + 3
        centre = functional.center_crop(functional.resize(image, [side], mode, antialias=True), list(size))
        found = to_size(image, size, side=side, interpolation=interpolation)
        assert (found == np.asarray(centre).transpose(2, 0, 1)).all()
