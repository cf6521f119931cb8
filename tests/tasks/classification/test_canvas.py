"""Digits on a canvas, and the second test set in which they are elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kdbench.configuration import config
from kdbench.errors import KDBenchError
from tasks.classification.canvas import Canvas, on_canvas
from tasks.classification.models.plain import ConvNet, Perceptron
from tasks.classification.sources.embedded import digits, mnist1d
from tests.tasks.classification import layouts

SOURCE: Any = digits()
SMALL = Canvas(side=16, content=8, deviation=3.0, limit=4)


@pytest.fixture(scope="module")
def made():
    return on_canvas(SOURCE, SMALL)


def test_digits_are_in_the_middle(made):
    for part in ("train", "test"):
        placed, own = getattr(made, part), getattr(SOURCE, part)
        assert torch.equal(placed.images[:, :, 4:12, 4:12], own.images)
        assert int(placed.images.sum()) == int(own.images.sum())  # the rest is black
        assert placed.images.dtype == torch.uint8
        assert (placed.labels == own.labels).all()


def test_the_second_test_set_has_the_same_digits_elsewhere(made):
    shifts = []
    for image, own in zip(made.shifted.images[:200, 0], SOURCE.test.images[:200, 0], strict=True):
        places = [(r, c) for r in range(9) for c in range(9) if torch.equal(image[r : r + 8, c : c + 8], own)]
        assert image.sum() == own.sum()
        shifts.append(places[0])
    moved = np.array(shifts) - 4
    assert np.abs(moved).max() == 4  # as far as the limit, and no further
    assert len(np.unique(moved, axis=0)) > 40
    assert np.abs(moved.mean(0)).max() < 0.6
    assert made.shifted.names == made.test.names
    assert (made.shifted.labels == made.test.labels).all()


def test_they_are_the_same_each_time_and_of_a_sample_whatever_the_others(made):
    again: Any = on_canvas(SOURCE, SMALL)
    assert torch.equal(again.shifted.images, made.shifted.images)
    few: Any = on_canvas(SOURCE.each(lambda split: split.take(np.arange(5))), SMALL)
    assert torch.equal(few.shifted.images, made.shifted.images[:5])


def test_digests_tell_what_is_read_from_what_is_scored(made):
    wider = on_canvas(SOURCE, Canvas(side=16, content=8, deviation=1.0, limit=4))
    assert wider.learned == made.learned
    assert wider.digest != made.digest
    assert on_canvas(SOURCE, Canvas(side=18, content=8, limit=4)).learned != made.learned


@pytest.mark.parametrize("options", [{"side": 41}, {"side": 38}, {"limit": 7}])
def test_a_canvas_that_is_too_small_is_refused(options):
    with pytest.raises(KDBenchError, match=r"expected a border of \(side - content\) / 2 pixels"):
        Canvas(**options)


def test_signals_have_no_canvas():
    with pytest.raises(KDBenchError, match=r"data\.canvas: mnist1d has no images in memory"):
        on_canvas(mnist1d(20, 10), Canvas())


@pytest.mark.parametrize("name", ["shifted_digits", "shifted_mnist"])
def test_both_are_configured(name, tmp_path):
    loaded = config.load(["task=classification", f"data={name}", "experiment=hard_shift"])
    assert (loaded["pair"]["name"], loaded["method"]["weights"]["task"]) == ("cnn_mlp_canvas", 0.0)
    options = {key: value for key, value in loaded["data"].items() if key not in ("name", "task", "protocol")}
    if name == "shifted_mnist":
        options |= {"root": str(layouts.mnist(tmp_path / "data")), "train": None, "test": None}
    images = layouts.open_with(tmp_path / "cache", **options)
    assert images.preprocess.size == (40, 40)
    data: Any = images.module(0)
    batch, shifted = next(iter(data.test_dataloader())), next(iter(data.shifted_dataloader()))
    assert torch.equal(batch.targets, shifted.targets)
    assert not torch.equal(batch.inputs, shifted.inputs)


def test_the_convolutional_network_does_not_see_where_a_digit_is():
    image = torch.zeros(1, 1, 40, 40)
    image[..., 12:24, 12:24] = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    network = ConvNet(10, 1, 4).eval()
    torch.testing.assert_close(network(image), network(image.roll((4, -4), (2, 3))))
    assert sum(p.numel() for p in ConvNet(10, 1).parameters()) < 30_000


def test_blurred_pooling_hardly_sees_a_shift_of_one_pixel():
    image = torch.zeros(1, 1, 40, 40)
    image[..., 12:24, 12:24] = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    apart = {}
    for pool in ("max", "blur"):
        torch.manual_seed(0)
        network = ConvNet(10, 1, 4, pool).eval()
        with torch.no_grad():
            apart[pool] = float((network(image) - network(image.roll((1, 1), (2, 3)))).norm())
    assert apart["blur"] < apart["max"] / 2


def test_the_other_one_has_the_layers_of_the_toy():
    network = Perceptron(10, 1, (40, 40))
    assert [layer.in_features for layer in network if hasattr(layer, "in_features")] == [1600, 256, 128]
    assert network(torch.zeros(2, 1, 40, 40)).shape == (2, 10)
