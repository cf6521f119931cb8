from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdbench.data import EpochSampler, SeededLoader
from kdbench.errors import KDBenchError
from kdbench.task import Batch
from tasks.classification.choice import balanced, keys_of, labelled, long_tail, noisy
from tasks.classification.data import Images
from tasks.images import UnreadableImage
from tests.tasks.classification import layouts

DATA_SETS = ("classification", "mnist1d", "cifar10", "cifar100", "mnist", "fashion_mnist", "imagefolder")


def digits(cache: Path, **options: Any) -> Images:
    return layouts.open_with(cache, source="digits", **options)


def epoch(loader: SeededLoader, number: int = 0) -> list[Batch]:
    assert isinstance(loader.sampler, EpochSampler)
    loader.sampler.set_epoch(number)
    return list(loader)


def joined(batches: list[Batch]) -> Batch:
    """All samples of some batches as one, in the order of their ids."""
    ids = torch.cat([b.ids for b in batches])
    order = ids.argsort()
    known = [b.supervised for b in batches if b.supervised is not None]
    inputs, targets = torch.cat([b.inputs for b in batches])[order], torch.cat([b.targets for b in batches])[order]
    return Batch(inputs, targets, ids[order], torch.cat(known)[order] if known else None)


def same(a: list[Batch], b: list[Batch]) -> bool:
    return all(
        torch.equal(x.ids, y.ids) and torch.equal(x.targets, y.targets) and torch.equal(x.inputs, y.inputs)
        for x, y in zip(a, b, strict=True)
    )


# ---- splits ---------------------------------------------------------------------------------------------------------


def test_splits_of_the_default(tmp_path):
    images = digits(tmp_path, labels=300)
    assert images.sizes == {"train": 300, "val": 100, "test": 797}
    reading = images.preprocess
    assert (reading.name, images.embedded, reading.channels, reading.size) == ("digits", True, 1, (8, 8))
    assert set(np.bincount(images.train.targets)) == {30}
    assert len(np.bincount(images.val.targets)) == 10
    assert not {*images.train.rows} & {*images.val.rows}
    whole = digits(tmp_path)
    assert whole.sizes == {"train": 900, "val": 100, "test": 797}
    assert sorted([*whole.train.rows, *whole.val.rows]) == list(range(1000))


def test_validation_and_test_stay_whatever_is_done_to_training(tmp_path):
    options: list[dict[str, Any]] = [
        {"labels": 100},
        {"labels": 300, "unlabelled": 500},
        {"noise": 0.4},
        {"imbalance": 20},
        {"keep": {"fraction": 0.3}},
    ]
    plain = digits(tmp_path)
    digests = {plain.digest}
    for option in options:
        other = digits(tmp_path, **option)
        for split in ("val", "test"):
            mine, theirs = getattr(plain, split), getattr(other, split)
            np.testing.assert_array_equal(mine.rows, theirs.rows)
            np.testing.assert_array_equal(mine.targets, theirs.targets)
        digests.add(other.digest)
        assert digits(tmp_path, **option).digest == other.digest
    assert len(digests) == 6


def test_fewer_labels_are_part_of_more(tmp_path):
    chosen = [set(digits(tmp_path, labels=n).train.rows) for n in (20, 95, 300, 900)]
    for less, more in zip(chosen, chosen[1:], strict=False):
        assert less < more
    counts = np.bincount(digits(tmp_path, labels=95).train.targets)
    assert (counts.min(), counts.max()) == (9, 10)
    # Where a class runs out the others fill up.
    labels = np.array([0] * 2 + [1] * 50 + [2] * 50)
    found = balanced(np.arange(102), labels, 42, "labels")
    assert np.bincount(labels[found]).tolist() == [2, 20, 20]


@pytest.mark.parametrize(("given", "left"), [({"labels": 300}, 600), ({"labels": 50, "train": 200}, 130), ({}, 0)])
def test_the_rest_joins_without_labels_whatever_is_left(tmp_path, given, left):
    images = digits(tmp_path, unlabelled="rest", **given)
    assert int((images.train.targets < 0).sum()) == images.sizes["train"] - images.labelled == left
    if left:
        assert images.digest == digits(tmp_path, unlabelled=left, **given).digest


def test_unlabelled_samples_join_behind_the_labelled_ones(tmp_path):
    images = digits(tmp_path, labels=300, unlabelled=500, batch_size=100)
    assert images.sizes["train"] == 800
    assert images.labelled == 300
    batch = joined(epoch(images.module(0).train_dataloader()))
    assert batch.ids.tolist() == list(range(800))
    assert batch.supervised is not None
    assert batch.supervised.tolist() == [True] * 300 + [False] * 500
    assert (batch.targets[300:] == -1).all()
    assert (batch.targets[:300] >= 0).all()
    few = digits(tmp_path, labels=300)
    np.testing.assert_array_equal(images.train.rows[:300], few.train.rows)
    plain = joined(epoch(few.module(0).train_dataloader()))
    assert plain.supervised is None
    meta = joined(epoch(images.module(0).meta_dataloader()))
    assert (meta.targets >= 0).all()
    assert meta.ids.max() < 300
    rest = joined(epoch(images.module(0).train_dataloader(without_meta=True)))
    assert len(rest.ids) == 700  # whole batches
    assert not set(rest.ids.tolist()) & set(meta.ids.tolist())


def test_noise_is_an_exact_share_uniform_over_the_other_classes(tmp_path):
    clean, some, more = (digits(tmp_path, noise=share) for share in (0.0, 0.2, 0.4))
    flipped = [i.train.targets != clean.train.targets for i in (some, more)]
    assert [f.sum() for f in flipped] == [180, 360]
    assert (flipped[1] | ~flipped[0]).all()  # what is wrong stays so
    np.testing.assert_array_equal(some.train.targets[flipped[0]], more.train.targets[flipped[0]])
    labels = np.repeat(np.arange(10), 2000)
    made = noisy(np.arange(20000), labels, 0.9, 10)
    counts = np.bincount((made - labels) % 10, minlength=10)
    assert counts[0] == 2000
    assert np.abs(counts[1:] - 2000).max() < 150
    names = [clean.train.split.names[i] for i in clean.train.rows]
    np.testing.assert_array_equal(some.train.targets, noisy(keys_of(names), clean.train.targets, 0.2, 10))
    meta = joined(epoch(some.module(0).meta_dataloader()))
    np.testing.assert_array_equal(meta.targets, some.train.targets[meta.ids])


def test_a_long_tail_is_exponential():
    assert long_tail(np.full(10, 5000), 100).tolist() == [
        5000,
        2997,
        1796,
        1077,
        645,
        387,
        232,
        139,
        83,
        50,
    ]  # CIFAR-LT
    assert long_tail(np.array([60, 50, 40]), 4.0).tolist() == [60, 30, 15]
    assert long_tail(np.array([60, 20, 40]), 4.0).tolist() == [40, 20, 10]
    with_total = long_tail(np.full(10, 90), 20.0, 300)
    assert with_total.sum() == 300
    assert with_total[0] / with_total[-1] == pytest.approx(20, rel=0.1)
    assert (np.diff(with_total) < 0).all()
    assert long_tail(np.array([5]), 3.0).tolist() == [5]
    assert long_tail(np.full(10, 90), 1.0, 95).sum() == 95


def test_an_imbalanced_training_set(tmp_path):
    images = digits(tmp_path, imbalance=20)
    counts = np.bincount(images.train.targets)
    assert counts[0] == 88
    assert counts[0] / counts[-1] == pytest.approx(20, rel=0.15)
    few = digits(tmp_path, imbalance=10, labels=200, unlabelled=300)
    assert np.bincount(few.train.targets[:200]).tolist() == long_tail(np.full(10, 90), 10, 200).tolist()
    names, labels = tuple("ab"), np.array([0] * 5 + [1] * 5)
    with pytest.raises(KDBenchError, match=r"takes 6 samples of class 'a'; there are 5: ask for fewer labels"):
        labelled(np.arange(10), labels, names, 7, 5.0)


def test_most_samples_of_training_and_test_for_trials(tmp_path):
    images = digits(tmp_path, train=60, test=30)
    assert images.sizes == {"train": 50, "val": 10, "test": 30}  # ten, as there is one of each class
    assert set(np.bincount(images.test.targets)) == {3}
    assert set(np.bincount([*images.train.targets, *images.val.targets])) == {6}
    assert digits(tmp_path, train=10**6, test=10**6).digest == digits(tmp_path).digest


@pytest.mark.parametrize("count", [40, 300, 600, 899])
def test_no_other_number_of_training_samples_reaches_validation(tmp_path, count):
    """A teacher may see more samples than its student, whose epochs and weights validation chooses."""
    few, all_of_it = digits(tmp_path, train=count), digits(tmp_path)
    assert len(few.train) + len(few.val) == count
    assert len(few.val) == max(10, round(0.1 * count))
    assert not set(few.val.rows) & set(all_of_it.train.rows)
    assert set(few.val.targets) == set(few.train.targets) == set(range(10))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"labels": 901}, r"data.labels=901: 900 training samples are left beside validation; expected at most 900"),
    ({"labels": 5}, r"data.labels=5: there are 10 classes; expected one of each at least, or null for all"),
    ({"labels": 9, "imbalance": 2}, r"data.labels=9: there are 10 classes"),
    ({"labels": 0}, r"data.labels: found 0; input should be greater than 0"),
    ({"labels": 300, "unlabelled": 601}, r"data.unlabelled=601: 600 training samples are left .* 300 labelled ones"),
    ({"unlabelled": 1}, r"expected at most 0, after fewer data.labels"),
    ({"labels": 300, "imbalance": 50}, r"data.imbalance=50 with data.labels=300 takes .* class '0'; there are 88"),
    ({"imbalance": 0.5}, r"data.imbalance: found 0.5; input should be greater than or equal to 1"),
    ({"noise": 1.0}, r"data.noise: found 1.0; input should be less than 1"),
    ({"keep": {"fraction": 0}}, r"data.keep.fraction: found 0; input should be greater than 0"),
    ({"keep": {"fraction": 1.5}}, r"data.keep.fraction: found 1.5; input should be less than or equal to 1"),
    ({"keep": {"by": "grand"}}, r"data.keep.by: found 'grand'; input should be 'random', 'el2n' or 'forgetting'"),
    ({"keep": {"fraction": 0.01}}, r"data.keep.fraction=0.01: 9 of 900 labelled samples are fewer than the 10 classes"),
    ({"keep": {"share": 0.5}}, r"data.keep.share: unknown key"),
    ({"transforms": {"crop": 1.5}}, r"data.transforms.crop: found 1.5"),
    ({"train": 10}, r"data.train=10: 10 training samples of 10 classes; expected two of a class at least"),
    ({"batch": 3}, r"data.batch: unknown key: did you mean 'batch_size'"),
    ({"mean": [0.5, 0.5, 0.5]}, r"data.mean=\[0.5, 0.5, 0.5\]: digits has 1 channels; expected a number for each"),
    ({"std": [0.0]}, r"data.std.0: found 0.0; input should be greater than 0"),
    ({"resize": 9}, r"data.resize=9: digits has images of one size; data.size resizes them"),
    ({"background": "whit"}, r"data.background=whit: there is no such colour; expected a name or '#rrggbb'"),
    ({"table": "a.csv"}, r"data.table=a.csv: digits reads no table; choose data=imagefolder"),
    ({"root": "/tmp"}, r"data.root=/tmp: digits is embedded"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), BAD, ids=lambda v: "")
def test_bad_options_are_one_line(options, message, tmp_path):
    with pytest.raises(KDBenchError, match=message) as error:
        digits(tmp_path, **options)
    assert "\n" not in str(error.value)


# ---- batches --------------------------------------------------------------------------------------------------------


def test_batches_hold_normalised_images_and_ids_that_count_on(tmp_path):
    images = digits(tmp_path, labels=300)
    module = images.module(0)
    train, val, test = (
        joined(epoch(loader())) for loader in (module.train_dataloader, module.val_dataloader, module.test_dataloader)
    )
    assert train.ids.max() < 300
    assert val.ids.tolist() == list(range(300, 400))
    assert test.ids.tolist() == list(range(400, 1197))
    source = images.test.split
    expected = (torch.from_numpy(source.array).float() / 255 - images.preprocess.mean[0]) / images.preprocess.std[0]
    torch.testing.assert_close(test.inputs, expected)
    np.testing.assert_array_equal(test.targets, source.labels)
    assert test.inputs.dtype == torch.float32
    assert abs(float(test.inputs.mean())) < 0.05
    assert abs(float(test.inputs.std()) - 1) < 0.05
    assert torch.equal(images.preprocess.denormalise(test.inputs), torch.from_numpy(source.array))


def test_signals_are_images_of_one_row(tmp_path):
    images = layouts.open_with(tmp_path, source="mnist1d", train=100, test=50)
    batch = next(iter(images.module(0).test_dataloader()))
    assert batch.inputs.shape == (50, 1, 1, 40)
    assert images.preprocess.size == (1, 40)
    assert images.preprocess.denormalise(batch.inputs).dtype == torch.uint8
    assert abs(float(batch.inputs.std()) - 1) < 0.2
    strong = images.strong(batch.inputs, torch.Generator().manual_seed(0))
    assert strong.shape == batch.inputs.shape


def test_batches_belong_to_seed_and_epoch_alone(tmp_path):
    """As a student and its scratch twin ask: whatever else has drawn random numbers in between."""
    images = digits(tmp_path, transforms={"crop": 1, "flip": True})
    first = epoch(images.module(0).train_dataloader())
    torch.rand(11)
    twin = images.module(0).train_dataloader()
    epoch(twin, 5)
    assert same(first, epoch(twin, 0))
    assert not same(first, epoch(twin, 1))
    assert not same(first, epoch(images.module(1).train_dataloader()))
    assert not same(epoch(images.module(0).meta_dataloader(), 0), epoch(images.module(0).meta_dataloader(), 1))
    test = images.module(0).test_dataloader()
    assert same(epoch(test, 0), epoch(test, 3))


def test_augmentation_belongs_to_the_sample_and_not_to_its_batch(tmp_path):
    options = {"transforms": {"crop": 2, "flip": True}, "labels": 300}
    small = joined(epoch(digits(tmp_path, batch_size=50, **options).module(4).train_dataloader(), 2))
    large = joined(epoch(digits(tmp_path, batch_size=100, **options).module(4).train_dataloader(), 2))
    assert torch.equal(small.inputs, large.inputs)
    # The same samples among others: their positions differ, what is drawn for them does not.
    wide_images, few_images = (
        digits(tmp_path, batch_size=900, transforms=options["transforms"]),
        digits(tmp_path, **options),
    )
    wide = joined(epoch(wide_images.module(4).train_dataloader(), 2))
    places = np.searchsorted(wide_images.train.rows, few_images.train.rows)
    assert torch.equal(wide.inputs[torch.from_numpy(places)], small.inputs)


@pytest.mark.slow
def test_loader_processes_give_the_same_batches(tmp_path):
    root = str(layouts.image_folder(tmp_path / "images"))
    options: dict[str, Any] = {
        "root": root,
        "size": 16,
        "batch_size": 4,
        "transforms": {"flip": True, "scale": [0.1, 1]},
    }
    alone, many = (
        layouts.open_with(tmp_path, source="imagefolder", workers=workers, **options).module(0).train_dataloader()
        for workers in (0, 2)
    )
    for number in (0, 1):
        assert same(epoch(alone, number), epoch(many, number))


def test_the_meta_cut_is_a_part_of_training_with_its_ids(tmp_path):
    images = digits(tmp_path, labels=300)
    meta = joined(epoch(images.module(0).meta_dataloader()))
    train = joined(epoch(images.module(0).train_dataloader()))
    assert len(meta) == 30
    assert len(meta.targets.unique()) == 10
    whole = {int(i): x for i, x in zip(train.ids, train.inputs, strict=True)}
    assert all(torch.equal(whole[int(i)], x) for i, x in zip(meta.ids, meta.inputs, strict=True) if int(i) in whole)


# ---- image files ----------------------------------------------------------------------------------------------------


def test_an_image_folder(tmp_path):
    root = layouts.image_folder(tmp_path / "images")
    options: dict[str, Any] = {"source": "imagefolder", "root": str(root), "batch_size": 4}
    images = layouts.open_with(tmp_path, size=24, transforms={"scale": [0.08, 1.0], "flip": True}, **options)
    assert images.sizes == {"train": 15, "val": 3, "test": 18}
    assert (images.preprocess.channels, images.preprocess.size) == (3, (24, 24))
    loader = images.module(0).train_dataloader()
    first = epoch(loader)
    assert first[0].inputs.shape == (4, 3, 24, 24)
    assert same(first, epoch(loader))
    assert not same(first, epoch(loader, 1))
    plain = layouts.open_with(tmp_path, size=24, **options)
    assert same(epoch(plain.module(0).test_dataloader()), epoch(images.module(0).test_dataloader()))
    assert layouts.open_with(tmp_path, **options).preprocess.size == (224, 224)
    batch = images.preprocess.read(root / "val" / "ant" / "0.jpg")
    torch.testing.assert_close(batch.inputs, joined(epoch(plain.module(0).test_dataloader())).inputs[:1])
    kept = layouts.open_with(tmp_path, keep={"fraction": 0.5, "by": "el2n"}, **options)
    assert kept.sizes["train"] == 8


def test_three_published_splits_are_used_as_they_are(tmp_path):
    root = layouts.image_folder(tmp_path / "images", ("train", "val", "test"))
    images = layouts.open_with(tmp_path, source="imagefolder", root=str(root), size=16)
    assert images.sizes == {"train": 18, "val": 18, "test": 18}
    assert images.val.split.names[0] == "val/ant/0.jpg"


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_broken_image_is_one_line(workers, tmp_path):
    root = layouts.image_folder(tmp_path / "images")
    images = layouts.open_with(tmp_path, source="imagefolder", root=str(root), size=16, workers=workers)
    (root / "val" / "bee" / "1.png").write_bytes(b"broken")  # after it was found whole
    with pytest.raises(UnreadableImage, match=r"val/bee/1.png: not a readable image \(.*\)$") as error:
        epoch(images.module(0).test_dataloader())
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(root))


def test_training_and_a_file_of_a_user_are_read_alike(tmp_path):
    """Deep values are scaled by the data set's range, transparency gets its ground, also for kdbench.predict."""
    root = tmp_path / "images"
    for part in ("train", "val"):
        for label in range(2):
            (root / part / f"c{label}").mkdir(parents=True)
            for i in range(4):
                values = np.full((20, 20), 1000 * i + 200 * label, dtype=np.uint16)
                Image.fromarray(values).save(root / part / f"c{label}" / f"{i}.png")
    Image.new("LA", (20, 20)).save(root / "val" / "c0" / "clear.png")
    options: dict[str, Any] = {"source": "imagefolder", "root": str(root), "size": 8, "background": "#ff0000"}
    images = layouts.open_with(tmp_path, **options)
    assert images.notes == ("values 0 to 4095 scaled to 0 to 255", "1 images transparent, on data.background")
    test = joined(epoch(images.module(0).test_dataloader()))
    for i, name in enumerate(images.test.split.names):
        torch.testing.assert_close(images.preprocess.read(root / name).inputs[0], test.inputs[i], atol=0, rtol=0)
    found = images.preprocess.denormalise(images.preprocess.read(root / "val" / "c1" / "3.png").inputs)
    assert found.unique().tolist() == [round(255 * 3200 / 4095)]
    ground = images.preprocess.denormalise(images.preprocess.read(root / "val" / "c0" / "clear.png").inputs)
    assert ground[0, :, 0, 0].tolist() == [255, 0, 0]


def test_images_for_a_teacher_that_was_trained_elsewhere(tmp_path):
    root = str(layouts.image_folder(tmp_path / "images"))
    options: dict[str, Any] = {"source": "imagefolder", "root": root, "size": 16}
    own = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.25], "crop_pct": 0.9, "interpolation": "bicubic"}
    plain, given = layouts.open_with(tmp_path, **options), layouts.open_with(tmp_path, **options, **own)
    assert (plain.preprocess.mean, plain.preprocess.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    path = Path(root) / "val" / "bee" / "1.png"
    pixels = given.preprocess.files.one(path, 3)
    assert not torch.equal(pixels, plain.preprocess.files.one(path, 3))
    expected = (pixels / 255 - 0.5) / torch.tensor([0.5, 0.5, 0.25])[:, None, None]
    torch.testing.assert_close(given.preprocess.read(path).inputs[0], expected)
    test = joined(epoch(given.module(0).test_dataloader()))
    torch.testing.assert_close(test.inputs[given.test.split.names.index("val/bee/1.png")], expected)
    resized = layouts.open_with(tmp_path, **options, resize=17, interpolation="bicubic")
    assert torch.equal(resized.preprocess.files.one(path, 3), pixels)  # floor(16 / 0.9)
    signals = layouts.open_with(tmp_path, source="mnist1d", mean=[0.25], std=[0.5])
    raw = layouts.open_with(tmp_path, source="mnist1d", mean=[0.0], std=[1.0])
    batch, unit = (next(iter(images.module(0).test_dataloader())).inputs for images in (signals, raw))
    torch.testing.assert_close(batch, (unit - 0.25) / 0.5)


@pytest.mark.parametrize("options", [{"resize": 15}, {"resize": 20, "crop_pct": 0.9}])
def test_two_ways_to_say_one_resize_are_one_line(options, tmp_path):
    root = str(layouts.image_folder(tmp_path / "images"))
    with pytest.raises(KDBenchError, match=r"expected one of the first two, and resize at least size"):
        layouts.open_with(tmp_path, source="imagefolder", root=root, size=16, **options)


def test_the_scores_of_pruning_belong_to_what_they_were_made_of(tmp_path):
    """Another mean or ground gives other pixels to score."""
    kept = {}
    for name, options in {"plain": {}, "again": {}, "mean": {"mean": [0.9], "std": [0.01]}}.items():
        store = tmp_path / "cache"
        before = len([*store.glob("pruning-scores/*")])
        digits(store, keep={"fraction": 0.1, "by": "el2n"}, labels=100, **options)
        kept[name] = len([*store.glob("pruning-scores/*")]) - before
    assert kept == {"plain": 1, "again": 0, "mean": 1}


# ---- what a user brings ---------------------------------------------------------------------------------------------


def test_a_file_of_a_user_is_read_at_the_size_and_in_the_channels(tmp_path):
    Image.fromarray(np.full((30, 50, 3), 200, dtype=np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.full((30, 50), 200, dtype=np.uint8)).save(tmp_path / "grey.jpg")
    cifar = layouts.open_with(tmp_path, source="cifar10", root=str(layouts.cifar10_binary(tmp_path)))
    for images, shape in ((digits(tmp_path), (1, 1, 8, 8)), (cifar, (1, 3, 32, 32))):
        for name in ("a.png", "grey.jpg"):
            batch = images.preprocess.read(tmp_path / name)
            assert batch.inputs.shape == shape
            assert len(batch) == 1
            assert images.preprocess.denormalise(batch.inputs).unique().tolist() == [200]
    with pytest.raises(KDBenchError, match="none.png: not a readable image"):
        cifar.preprocess.read(tmp_path / "none.png")


def test_the_strong_view_is_of_normalised_images(tmp_path):
    images = layouts.open_with(tmp_path, source="cifar10", root=str(layouts.cifar10_binary(tmp_path)))
    batch = next(iter(images.module(0).train_dataloader()))
    strong = images.strong(batch.inputs, torch.Generator().manual_seed(0))
    again = images.strong(batch.inputs, torch.Generator().manual_seed(0))
    assert strong.shape == batch.inputs.shape
    assert torch.equal(strong, again)
    assert not torch.equal(strong, batch.inputs)
    low, high = images.preprocess.normalise(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1))
    assert ((strong >= low - 1e-5) & (strong <= high + 1e-5)).all()
    assert images.strong(batch.inputs.bfloat16(), torch.Generator()).dtype == torch.bfloat16
