from __future__ import annotations

import pytest
import torch
from torch import nn

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.features import Grid
from kdbench.methods.blocks import BatchNorm, connector, conv, deconv, label_map, levels, projectors
from kdbench.roles.cast import Cast
from kdbench.signals import Signals
from kdbench.task import Batch
from tests.methods.harness import Bench, normal
from tests.methods.maps import Labelled


@pytest.mark.parametrize("space", [(4,), (3, 4), (2, 3, 4)])
def test_convolutions_keep_the_size(space):
    for kernel in (1, 3):
        for make in (conv, deconv):
            assert make(len(space), 2, 5, kernel)(normal(2, 2, *space)).shape == (2, 5, *space)


def test_batch_norm_is_that_of_torch():
    x = 3 * normal(4, 3, 5, 5) + 1
    mine, torchs = BatchNorm(3), nn.BatchNorm2d(3)
    assert torch.equal(mine(x), torchs(x))
    assert torch.equal(mine.eval()(x), torchs.eval()(x))
    assert mine.state_dict().keys() == torchs.state_dict().keys()


@pytest.mark.parametrize("batch", [0, 1])
def test_a_single_value_a_channel_uses_the_running_statistics(batch):
    norm, x = BatchNorm(3), normal(batch, 3, 1, 1).requires_grad_()
    norm(2 * normal(6, 3, 1, 1))
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    out = norm(x)
    out.sum().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())
    assert torch.equal(out, norm.eval()(x))
    assert norm.weight.grad is not None
    assert x.grad is not None


def pairs(*widths: tuple[int, int]) -> list[tuple[Grid, Grid]]:
    return [(Grid(normal(2, s, 4, 4)), Grid(normal(2, t, 4, 4))) for s, t in widths]


@pytest.mark.parametrize("space", [(7,), (4, 5), (3, 2, 4)])
def test_a_connector_ends_normalised_at_the_width_of_the_teacher(space):
    out = connector(normal(2, 4, *space), normal(2, 6, *space))(normal(2, 4, *space))
    assert out.shape == (2, 6, *space)
    torch.testing.assert_close(out.transpose(0, 1).flatten(1).mean(1), torch.zeros(6), atol=1e-5, rtol=0)


def test_projectors_are_there_where_widths_differ():
    made = projectors(pairs((3, 3), (3, 5)), project=True)
    assert isinstance(made[0], torch.nn.Identity)
    assert made[1](normal(2, 3, 4, 4)).shape == (2, 5, 4, 4)
    with pytest.raises(KDBenchError, match=r"level 1 is 3 wide in the student and 5 in the teacher.*project=true"):
        projectors(pairs((3, 3), (3, 5)), project=False)


def test_levels_pair_what_both_sides_give():
    grids = {name: Grid(normal(2, 3, 4, 4)) for name in ("a", "b")}
    signals = Bench("nst", grids, grids, {"stages": ["a", "b"]}).signals()
    assert len(levels(signals, "stages")) == 2
    with pytest.raises(KDBenchError, match="gives 2 feature, expected at least 3"):
        levels(signals, "stages", at_least=3)


@pytest.mark.parametrize("size", [(4, 6), (2, 3), (3, 4), (8, 12), (1, 1)])
def test_a_label_map_takes_the_middle_of_a_cell(size):
    found = torch.randint(-1, 5, (3, 4, 6), generator=rng.generator(0, "labels"))
    batch = Batch(None, None, torch.arange(3))
    signals = Signals(Cast(Labelled(found), {}, {}), {"student": {"main": batch}})
    expected = torch.nn.functional.interpolate(found[:, None].double(), size, mode="nearest-exact")[:, 0]
    assert torch.equal(label_map(signals, size), expected.long())
    batch.supervised = torch.tensor([True, False, True])
    expected[1] = -1
    assert torch.equal(label_map(signals, size), expected.long())
