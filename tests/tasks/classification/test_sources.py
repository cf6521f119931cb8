from __future__ import annotations

import errno
import functools
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.ma
import pytest
from PIL import Image
from scipy.interpolate import interp1d
from scipy.ndimage import gaussian_filter

from kdbench.base import rng
from kdbench.errors import KDBenchError
from tasks.classification.sources import LAYOUTS, REAL, embedded, open_source
from tasks.classification.sources.idx import read_idx
from tests.tasks.classification import layouts

#: What may not be read.
refused: set[str] = set()


@functools.cache
def guard() -> None:
    """Refuses it by an audit hook, which hears every event from then on and cannot be taken away again."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if refused and event in ("open", "os.scandir") and str(arguments[0]) in refused:
            raise PermissionError(errno.EACCES, "Permission denied", str(arguments[0]))

    sys.addaudithook(hook)


def line(error: pytest.ExceptionInfo[KDBenchError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- embedded -------------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_with_a_fixed_test_set():
    from sklearn.datasets import load_digits

    published, source = load_digits(), open_source("digits")
    assert (len(source.train.labels), len(source.test.labels)) == (1000, 797)
    rows = np.array([int(n) for n in (*source.train.names, *source.test.names)])
    assert sorted(rows) == list(range(1797))
    pixels = np.concatenate([source.train.array, source.test.array])
    np.testing.assert_allclose(pixels[:, 0] / 255 * 16, published.images[rows], atol=0.04)
    np.testing.assert_array_equal(np.concatenate([source.train.labels, source.test.labels]), published.target[rows])
    assert set(np.bincount(source.test.labels)) == {79, 80}
    # Written down: a record on the leaderboard names this digest.
    assert source.digest == "79dbad80553caef1"
    assert source.test.names[:5] == ["1", "5", "6", "7", "12"]
    values = source.train.array / 255
    np.testing.assert_allclose([*source.mean, *source.std], [values.mean(), values.std()], atol=1e-4)


def test_mnist1d_is_the_published_recipe():
    """Sample by sample with SciPy's interpolation, from the draws of the same stream; the paper's logistic regression
    reaches 32% on it, ours 31%."""
    source = open_source("mnist1d")
    signals = np.concatenate([source.train.array, source.test.array]).reshape(5000, 40)
    stream = rng.numpy(0, "mnist1d")
    labels = stream.permutation(np.arange(5000) % 10)
    np.testing.assert_array_equal(labels, np.concatenate([source.train.labels, source.test.labels]))
    padding, scale = stream.random(5000), stream.random(5000)
    moved = stream.integers(48, size=5000)
    correlated, noise = stream.standard_normal((5000, 72)), stream.standard_normal((5000, 72))
    shear = stream.random(5000)
    made = []
    for i in range(200):
        template = np.array(embedded.TEMPLATES[labels[i]], dtype=float)
        template = (template - template.mean()) / template.std()
        x = np.concatenate([(template - template[0]) / 6 + 1e-8, np.zeros(36 + int(padding[i] * 25))])
        x = interp1d(np.linspace(0, 1, len(x)), x)(np.linspace(0, 1, 72)) * (1 + 0.4 * (scale[i] - 0.5))
        x = np.roll(x, moved[i])
        x = np.where(x != 0, x, gaussian_filter(0.25 * correlated[i], 2)) + 0.02 * noise[i]
        x = x - 0.75 * (shear[i] - 0.5) * np.linspace(-0.5, 0.5, 72)
        made.append(interp1d(np.linspace(0, 1, 72), x)(np.linspace(0, 1, 40)))
    # Delivered in 0..1: an affine map of all signals.
    slope, offset = np.polyfit(np.ravel(made), signals[:200].ravel(), 1)
    np.testing.assert_allclose(signals[:200], slope * np.array(made) + offset, atol=1e-6)
    assert (signals.min(), signals.max()) == (0, 1)
    assert source.train.array.shape == (4000, 1, 1, 40)
    assert set(np.bincount(labels)) == {500}
    assert source.digest == "199c8447c8892ebd"


# ---- CIFAR ----------------------------------------------------------------------------------------------------------


def test_cifar10_binary(tmp_path):
    root = layouts.cifar10_binary(tmp_path)
    source = open_source("cifar10", str(root))
    np.testing.assert_array_equal(source.train.array[20:40], layouts.images(20, 1))
    np.testing.assert_array_equal(source.test.array, layouts.images(10, 9))
    assert source.train.labels.tolist() == [*range(10)] * 10
    assert source.classes == tuple(str(i) for i in range(10))
    (root / "cifar-10-batches-bin" / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    inside = open_source("cifar10", str(root / "cifar-10-batches-bin"))
    assert inside.classes == tuple("abcdefghij")
    assert inside.digest == source.digest


def test_python_batches_are_the_same_data_set(tmp_path):
    """As Python 2 wrote the official ones, and as Python 3 pickles the like, in the protocols that it knows."""
    binary = open_source("cifar10", str(layouts.cifar10_binary(tmp_path / "binary")))
    folder = tmp_path / "python" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    labels = [i % 10 for i in range(20)]
    for i in range(5):
        pixels = layouts.images(20, i).reshape(20, -1)
        batch: dict[Any, Any] = {b"data": pixels, b"labels": labels, b"batch_label": b"training batch 1 of 5"}
        if i % 2:
            batch = {str(k, "ascii"): v for k, v in batch.items()}
        content = pickle.dumps(batch, protocol=i) if i else layouts.python2_pickle(pixels, labels)
        (folder / f"data_batch_{i + 1}").write_bytes(content)
    test = np.asfortranarray(layouts.images(10, 9).reshape(10, -1))
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": test, b"labels": [*range(10)]}, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"%d!" % i for i in range(10)]}, protocol=2))
    source = open_source("cifar10", str(tmp_path / "python"))
    assert source.digest == binary.digest
    assert source.classes[3] == "3!"


def test_cifar100_python(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        pixels = layouts.images(4).reshape(4, -1)
        (folder / name).write_bytes(layouts.python2_pickle(pixels, [0, 99, 5, 5], key=b"fine_labels"))
    source = open_source("cifar100", str(tmp_path))
    np.testing.assert_array_equal(source.test.array, layouts.images(4))
    assert source.train.labels.tolist() == [0, 99, 5, 5]


def python_batch(root: Path, content: bytes) -> None:
    folder = root / "cifar-100-python"
    folder.mkdir()
    whole = layouts.python2_pickle(layouts.images(4).reshape(4, -1), [0, 1, 2, 3], key=b"fine_labels")
    (folder / "test").write_bytes(whole)
    (folder / "train").write_bytes(content or whole[:500])


def batch(**items: Any) -> bytes:
    return pickle.dumps({k.encode(): v for k, v in items.items()}, protocol=2)


PIXELS = np.zeros((2, 3072), dtype=np.uint8)
BAD_PYTHON: dict[str, tuple[bytes, str]] = {
    "truncated": (b"", r"train: not a whole file, expected a python batch \(500 bytes; .*\)"),
    "a list": (pickle.dumps([1]), "train: holds list; expected a dict"),
    "no pixels": (batch(fine_labels=[1]), "train: no 'data' in this batch; found fine_labels"),
    "coarse labels": (batch(data=PIXELS, coarse_labels=[1, 2]), "no 'fine_labels' in this batch; found coarse_labels"),
    "shape": (batch(data=PIXELS[:, :100], fine_labels=[1, 2]), r"data of shape \(2, 100\); expected \(images, 3072\)"),
    "halves": (batch(data=PIXELS / 2, fine_labels=[1, 2]), "data of float64; expected bytes"),
    "few labels": (batch(data=PIXELS, fine_labels=[1]), "1 labels for 2 images; expected an integer for each"),
    "words": (batch(data=PIXELS, fine_labels=[1, "a"]), "2 labels for 2 images; expected an integer for each"),
    "range": (batch(data=PIXELS, fine_labels=[1, 100]), r"label 100 of sample 1 is out of range .*; expected 0 to 99"),
    "negative": (batch(data=PIXELS, fine_labels=[-1, 0]), r"label -1 of sample 0 is out of range .*; expected 0 to 99"),
}


@pytest.mark.parametrize("case", BAD_PYTHON)
def test_bad_python_batches_are_one_line(case, tmp_path):
    content, message = BAD_PYTHON[case]
    python_batch(tmp_path, content)
    with pytest.raises(KDBenchError, match=message) as error:
        open_source("cifar100", str(tmp_path))
    line(error)


def test_bad_binary_batches_are_one_line(tmp_path):
    root = layouts.cifar10_binary(tmp_path)
    path = root / "cifar-10-batches-bin" / "data_batch_3.bin"
    whole = path.read_bytes()
    cases = {
        whole[:-5]: "data_batch_3.bin: 61455 bytes are 19 records and 3068 bytes; expected records of 3073 bytes each",
        b"": "data_batch_3.bin: 0 bytes are 0 records and 0 bytes; expected records of 3073",
        bytes([10]) + whole[1:]: r"data_batch_3.bin: label 10 of sample 0 is out of range \(1 such\); expected 0 to 9",
    }
    for content, message in cases.items():
        path.write_bytes(content)
        with pytest.raises(KDBenchError, match=message) as error:
            open_source("cifar10", str(root))
        line(error)
    path.unlink()
    with pytest.raises(KDBenchError, match="data_batch_3.bin: there is no such file; this batch is part of the data"):
        open_source("cifar10", str(root))


def test_real_cifar100(shared_data):
    source = open_source("cifar100", str(shared_data / "cifar100"))
    assert source.train.array.shape == (2000, 3, 32, 32)
    assert source.test.array.shape == (600, 3, 32, 32)
    assert set(np.bincount(source.train.labels)) == {20}
    assert set(np.bincount(source.test.labels)) == {6}
    assert source.classes[:2] == ("apple", "aquarium_fish")
    # Rightly oriented, real images: neighbours are alike along both sides, and the mean is that of the whole set.
    values = source.train.array[::4] / 255
    for axis in (2, 3):
        assert np.abs(np.diff(values, axis=axis)).mean() < 0.08
    np.testing.assert_allclose(values.mean((0, 2, 3)), source.mean, atol=0.02)
    np.testing.assert_allclose(values.std((0, 2, 3)), source.std, atol=0.02)


# ---- idx ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_plain_and_compressed_in_every_place(name, tmp_path):
    plain = open_source(name, str(layouts.mnist(tmp_path / "plain", end="")))
    folder = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name]
    layouts.mnist(tmp_path / "packed" / folder / "raw")
    packed = open_source(name, str(tmp_path / "packed"))
    assert plain.digest == packed.digest
    assert plain.train.array.shape == (60, 1, 28, 28)
    assert plain.test.labels.tolist() == [*range(10)] * 2
    assert len(plain.classes) == 10
    reference = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
    np.testing.assert_array_equal(packed.train.array[:, 0], reference)


BAD_IDX: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "truncated": (
        "train-images-idx3-ubyte", lambda c: c[:-7], r"47049 bytes; expected 47056 .*\(60, 28, 28\)",
    ),
    "longer": ("train-labels-idx1-ubyte", lambda c: c + b"0", "69 bytes; expected 68"),
    "of labels": ("train-images-idx3-ubyte", lambda c: b"\0\0\x08\x01" + c[4:], "begins with 00000801; expected"),
    "floats": ("train-images-idx3-ubyte", lambda c: b"\0\0\x0d\x03" + c[4:], "begins with 00000d03"),
    "empty": ("t10k-labels-idx1-ubyte", lambda c: b"", "begins with nothing; expected 00000801"),
    "header": ("t10k-images-idx3-ubyte", lambda c: c[:9], "begins with 00000803; expected 00000803"),
    "range": ("t10k-labels-idx1-ubyte", lambda c: c[:-1] + b"\x0a", "label 10 of sample 19 is out of range"),
    "few": ("t10k-labels-idx1-ubyte", lambda c: c[:4] + b"\0\0\0\x02" + c[8:10], "2 labels for the 20 images"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_IDX)
def test_bad_idx_files_are_one_line(case, tmp_path):
    name, spoil, message = BAD_IDX[case]
    root = layouts.mnist(tmp_path, end="")
    (root / name).write_bytes(spoil((root / name).read_bytes()))
    with pytest.raises(KDBenchError, match=message) as error:
        open_source("mnist", str(root))
    line(error)


def test_a_compressed_file_that_is_cut_or_no_archive(tmp_path):
    root = layouts.mnist(tmp_path)
    path = root / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for content in (whole[:100], b"no archive", whole[:50] + b"\0\0\0\0" + whole[54:]):
        path.write_bytes(content)
        with pytest.raises(KDBenchError, match=r"train-images-idx3-ubyte.gz: does not decompress .*download it again"):
            read_idx(path, 3)
    path.unlink()
    with pytest.raises(KDBenchError, match="there is no train-images-idx3-ubyte or train-images-idx3-ubyte.gz"):
        open_source("mnist", str(root))


def test_real_mnist(shared_data):
    source = open_source("mnist", str(shared_data / "mnist"))
    assert source.train.array.shape == (6000, 1, 28, 28)
    assert source.test.array.shape == (2000, 1, 28, 28)
    assert source.train.labels.max() <= 9
    # Digits: dark ground, nothing at the corners, ink in the middle.
    assert source.train.array[:, 0, :3, :3].max() == 0
    assert source.train.array[:, 0, 8:20, 8:20].mean() > 60


# ---- sizes ----------------------------------------------------------------------------------------------------------


def test_arrays_are_resized_in_their_type(tmp_path):
    source = open_source("mnist", str(layouts.mnist(tmp_path))).resized(32)
    assert source.train.array.shape == (60, 1, 32, 32)
    assert source.train.array.dtype == np.uint8
    reference = Image.fromarray(open_source("mnist", str(tmp_path)).train.array[0, 0]).resize((32, 32), 2)
    difference = source.train.array[0, 0].astype(int) - np.asarray(reference).astype(int)
    assert np.abs(difference).max() <= 1
    signals = open_source("mnist1d").resized(20)
    assert signals.test.array.shape == (1000, 1, 1, 20)
    assert signals.test.array.dtype == np.float32
    same = open_source("digits")
    assert same.train.resized(8) is same.train


# ---- choosing a source ----------------------------------------------------------------------------------------------


def test_a_wrong_source_or_root_is_one_line(tmp_path):
    assert LAYOUTS.keys() == {*REAL}
    cases: list[tuple[str, str | None, str]] = [
        ("cifar11", None, "data.source=cifar11: there is no such source: did you mean 'cifar10'"),
        ("digits", "/tmp", "data.root=/tmp: digits is embedded and reads no files; choose data=cifar10"),
        ("cifar100", None, "data.root: cifar100 is not embedded; set the folder that holds cifar-100-binary/train.bin"),
        ("mnist", str(tmp_path / "none"), "data.root=.*none: there is no such folder; expected .* train-images-idx3"),
        ("cifar10", str(tmp_path), "no cifar10 there; expected cifar-10-batches-bin/data_batch_1.bin"),
        ("mnist", str(tmp_path), "there is no train-images-idx3-ubyte or"),
    ]
    for name, root, message in cases:
        with pytest.raises(KDBenchError, match=message) as error:
            open_source(name, root)
        line(error)
    with pytest.raises(KDBenchError, match=r"data.table=a.csv: mnist reads no table; choose data=imagefolder"):
        open_source("mnist", str(tmp_path), table="a.csv")


@pytest.mark.parametrize(
    ("name", "layout", "file"),
    [
        ("cifar10", layouts.cifar10_binary, "cifar-10-batches-bin/data_batch_2.bin"),
        ("cifar100", lambda root: python_batch(root, b""), "cifar-100-python/train"),
        ("mnist", layouts.mnist, "train-labels-idx1-ubyte.gz"),
        ("imagefolder", layouts.image_folder, "val/bee"),
        ("imagefolder", layouts.image_folder, "val/bee/1.png"),
    ],
)
def test_what_may_not_be_read_is_one_line(name, layout, file, tmp_path):
    """As for a user without the permission; root, who runs tests in containers, has every one."""
    layout(tmp_path)
    guard()
    refused.add(str(tmp_path / file))
    try:
        with pytest.raises(KDBenchError, match=rf"{file}: cannot be read \(Permission denied\)$") as error:
            open_source(name, str(tmp_path))
    finally:
        refused.clear()
    line(error)
