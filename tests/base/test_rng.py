from __future__ import annotations

import random

import numpy as np
import torch

from kdbench.base import rng


def test_streams_are_named_and_stable_over_processes_and_releases():
    assert rng.derive(0, "augment", 1, 2) == 2162223175341892991
    assert rng.derive(0, "a", "bc") != rng.derive(0, "ab", "c")
    assert rng.derive(0, "a", 1) != rng.derive(1, "a", 0)
    assert torch.equal(torch.rand(3, generator=rng.generator(1, "x")), torch.rand(3, generator=rng.generator(1, "x")))
    assert rng.numpy(1, "x").random() == rng.numpy(1, "x").random() != rng.numpy(1, "y").random()


def test_scope_leaves_the_global_generator_where_it_was():
    before = torch.get_rng_state()
    with rng.scope(3, "init"):
        first = torch.rand(2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    with rng.scope(3, "init"):
        assert torch.equal(torch.rand(2), first)


def test_named_streams_reach_the_generators_of_numpy_and_python():
    def drawn() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(1))]  # noqa: NPY002

    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    outside = drawn()
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    with rng.scope(3, "init"):
        inside = drawn()
    assert drawn()[:2] == outside[:2]
    rng.seed_global(3, "init")
    assert drawn() == inside
    rng.seed_global(3, "other")
    assert all(a != b for a, b in zip(drawn(), inside, strict=True))


def test_numbers_of_many_samples_at_once_are_those_of_each_alone():
    index = np.arange(4096)
    drawn = rng.uniform(0, "crop", 3, index=index, count=2)
    assert drawn.shape == (4096, 2)
    chosen = np.array([7, 4000, 7])
    np.testing.assert_array_equal(rng.uniform(0, "crop", 3, index=chosen, count=2), drawn[chosen])
    # A longer draw begins with the shorter one, and negative indices are indices like others.
    np.testing.assert_array_equal(rng.uniform(0, "crop", 3, index=chosen, count=5)[:, :2], drawn[chosen])
    assert rng.uniform(0, "crop", 3, index=np.array([-1])).shape == (1, 1)
    assert rng.uniform(0, "crop", 3, index=np.empty(0, np.int64), count=3).shape == (0, 3)
    for other in (rng.uniform(1, "crop", 3, index=index, count=2), rng.uniform(0, "crop", 4, index=index, count=2)):
        assert (other != drawn).all()


def test_numbers_of_many_samples_are_uniform_and_independent():
    drawn = rng.uniform(0, "x", index=np.arange(20000), count=3)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = np.stack([np.histogram(column, 20, (0, 1))[0] for column in drawn.T])
    assert (((counts - 1000) ** 2 / 1000).sum(axis=1) < 45).all()  # chi-squared of 19 degrees of freedom, p = 0.001
    shifted = np.column_stack([drawn[:-1], drawn[1:]])
    assert np.abs(np.corrcoef(shifted.T) - np.eye(6)).max() < 0.03
    assert rng.uniform(0, "x", index=np.array([0])).item() == drawn[0, 0]


def test_splitmix64_as_published():
    """The first outputs of the reference generator from state 1234567."""
    state = np.array([1234567], dtype=np.uint64)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    for value in expected:
        state = state + rng._GOLDEN
        assert int(rng._mix(state)[0]) == value
