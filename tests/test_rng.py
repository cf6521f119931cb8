from __future__ import annotations

import torch

from kdbench import rng


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
