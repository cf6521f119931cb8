from __future__ import annotations

import pytest
import torch

from kdbench.base import rng
from kdbench.functional.randaugment import rand_augment, trivial_augment
from tests.augment.harness import augmentation, context, images, read

#: Inputs are pixels from 0 to 1, shifted and scaled as a network's normalisation does.
OPS = {"to_pixels": lambda inputs: (inputs * 0.1 + 0.5).clamp(0, 1), "to_inputs": lambda pixels: (pixels - 0.5) / 0.1}


@pytest.mark.parametrize("moves", [True, False])
@pytest.mark.parametrize("name", ["randaugment", "trivialaugment"])
def test_pixels_are_changed_by_the_stream_of_the_step(name, moves):
    plugin, _ = augmentation(name)
    plugin.ops, plugin.moves = OPS, moves
    batch = images()
    changed = plugin.views(read(batch), context())["student"]["main"]
    pixels, stream = OPS["to_pixels"](batch.inputs), rng.generator(3, "augment", "main", 7)
    if name == "randaugment":
        expected = rand_augment(pixels, stream, plugin.number, plugin.magnitude, moves)
    else:
        expected = trivial_augment(pixels, stream, moves)
    assert torch.equal(changed.inputs, OPS["to_inputs"](expected))
    assert not torch.equal(changed.inputs, batch.inputs)
    assert changed.targets is batch.targets


def test_the_options_of_randaugment_arrive():
    plugin, _ = augmentation("randaugment", number=1, magnitude=1.0)
    plugin.ops, plugin.moves = OPS, False
    pixels = torch.rand(4, 3, 8, 8, generator=rng.generator(0, "pixels"))
    strong = plugin.applied(pixels, rng.generator(0, "draw"))
    assert torch.equal(strong, rand_augment(pixels, rng.generator(0, "draw"), 1, 1.0, False))
    assert not torch.equal(strong, rand_augment(pixels, rng.generator(0, "draw"), 1, 0.3, False))
