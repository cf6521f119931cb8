from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.augment.autoencoder import Autoencoder
from kdbench.augment.hard_vae import HARDVAE, SIDE, TAPS
from kdbench.base import rng
from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.configuration.resolved import resolve
from kdbench.needs import State
from kdbench.runs.trainings import Trainings
from kdbench.signals import Context
from kdbench.task import Batch


def network(**options: Any) -> Autoencoder:
    with rng.scope(0, "autoencoder"):
        return Autoencoder(5, 3, latents=4, width=8, **options)


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (1, 12)])
def test_shapes_of_any_size(size):
    images = torch.randn(2, 3, *size)
    made = network()
    mean, log_variance = made.encode(images)
    assert mean.shape == log_variance.shape == (2, 4, -(-size[0] // 4), -(-size[1] // 4))
    assert made.decoder(mean, images.shape[2:]).shape == images.shape
    assert made(images).shape == (2, 5)
    assert network(dense=True)(images).shape == (2, 5, *mean.shape[2:])


def test_latents_are_drawn_in_training_alone():
    images, made = torch.randn(1, 3, 8, 8), network()
    seen: list[torch.Tensor] = []
    made.decoder.register_forward_hook(lambda _m, _a, out: seen.append(out))
    for mode in (True, True, False, False):
        made.train(mode)(images)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], seen[3])


def test_the_change_of_an_image_is_that_of_its_reconstruction():
    made, plugin = network().eval(), HARDVAE(latents=4)
    plugin.autoencoder = (made,)
    batch = Batch(torch.randn(3, 3, 8, 8), torch.zeros(3).long(), torch.arange(3))
    context = Context(State(0, 0, 0.0), 0)
    still, _ = plugin.vary(batch, torch.zeros(3, 4), context)
    assert torch.equal(still.inputs, batch.inputs)
    by = 0.1 * torch.randn(3, 4)
    moved, _ = plugin.vary(batch, by.requires_grad_(), context)
    mean, _ = made.encode(batch.inputs)
    size = batch.inputs.shape[2:]
    expected = batch.inputs + made.decoder(mean + by[..., None, None], size) - made.decoder(mean, size)
    torch.testing.assert_close(moved.inputs, expected)
    (grad,) = torch.autograd.grad(moved.inputs.square().sum(), [by])
    assert (grad != 0).all()


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_it_is_a_training_of_its_own_without_teacher_and_seed(task, tmp_path):
    words = [f"task={task}", "augment=hard_vae", "preset=smoke"]
    keys = set()
    for seed in (0, 1):
        made = Trainings(resolve(config.load([*words, f"seed={seed}"]), Store(tmp_path)))
        (asked,) = [recipe for recipe in made.recipes() if recipe.name == SIDE]
        assert asked.inputs == {}
        assert [spec.plugin.__name__ for spec in asked.plugins.values()] == ["Autoencoding"]
        assert asked.pair["student"]["taps"] == TAPS
        assert asked.pair["student"]["architecture"]["dense"] == (task == "segmentation")
        assert made.student_recipe().inputs[SIDE].key == asked.key
        keys.add(asked.key)
    assert len(keys) == 1
