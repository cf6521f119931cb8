"""Weights of four bits: what is rounded, how, and what it takes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.needs import STUDENT
from kdbench.quant.int4 import QATInt4Weight
from kdbench.quant.packing import unpack
from kdbench.roles.cast import Cast
from kdbench.roles.sources import Network
from kdbench.signals import Signals
from tests.toy import Toy, collate, same, weights


class Words(nn.Module):
    """An embedding, a linear layer of whole groups, one that they do not divide, a convolution and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.table = nn.Embedding(10, 64)
        self.wide = nn.Linear(64, 48)
        self.attention = nn.MultiheadAttention(48, 4, batch_first=True)
        self.narrow = nn.Linear(48, 5)

    def forward(self, images: Tensor) -> Tensor:
        words = (self.conv(images).flatten(1)[:, :6].abs() * 3).long() % 10
        seen = self.wide(self.table(words))
        found: Tensor = self.narrow((seen + self.attention(seen, seen, seen)[0]).mean(1))
        return found


IMAGES = torch.randn(8, 3, 8, 8, generator=rng.generator(0, "images"))
LAYERS = ("table", "wide", "narrow")


def entered(net: nn.Module, group: int = 32) -> tuple[QATInt4Weight, Any]:
    plugin = QATInt4Weight(group)
    cast = Cast(Toy(), {"student": STUDENT}, {"student": Network(Toy(), net, {})})
    batch = collate([(image, 0, i) for i, image in enumerate(IMAGES)])
    plugin.enter(plugin.own()[0], Signals(cast, {"student": {"main": batch}}))
    return plugin, cast.model("student")


@pytest.fixture
def net() -> Words:
    with rng.scope(0, "words"):
        return Words().eval()


def reference(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """In float64: to -8 … 7 times the largest magnitude of a group over 7.5, and where that is met, which is a tie."""
    rows = weight.detach().double().reshape(-1, group)
    largest = rows.abs().amax(1, keepdim=True)
    scale = largest / 7.5
    return ((rows / scale).round().clamp(-8, 7) * scale).reshape(weight.shape), (rows.abs() == largest).reshape(
        weight.shape
    )


def test_weights_are_rounded_by_group_and_the_rest_stays(net):
    before = copy.deepcopy(net)
    plugin, student = entered(net)
    left = plugin.artifacts({"student": student})
    rounded: Any = left["student"].module
    assert rounded.state_dict().keys() == before.state_dict().keys()
    assert type(rounded.wide) is nn.Linear
    assert type(rounded.table) is nn.Embedding
    for name, group in zip(LAYERS, (32, 32, 48), strict=True):
        expected, tie = reference(before.get_submodule(name).weight, group)
        found = rounded.get_submodule(name).weight.detach().double()
        torch.testing.assert_close(found[~tie], expected[~tie], rtol=0, atol=1e-6)
        assert float((found - expected).abs().max()) < 1.1 * float(expected.abs().max()) / 7
    others = {n: t for n, t in weights(before).items() if n not in {f"{name}.weight" for name in LAYERS}}
    assert all(torch.equal(rounded.state_dict()[n], t) for n, t in others.items())
    assert torch.equal(rounded(IMAGES), student(IMAGES))
    assert not torch.equal(rounded(IMAGES), before(IMAGES))
    assert same(weights(left["float"].module), weights(before))
    assert plugin.notes() == (
        "int4: 3 of 6 layers; in float 1 Conv2d (conv), 1 MultiheadAttention (attention), "
        "1 NonDynamicallyQuantizableLinear (attention.out_proj)",
    )


def test_the_float_weights_train_through_the_rounding(net):
    plugin, student = entered(net)
    first = weights(plugin.artifacts({"student": student})["student"].module)
    kept = weights(plugin._float[0])
    optimizer = torch.optim.SGD(student.parameters(), 1.0)
    student.train()(IMAGES).square().mean().backward()
    assert all(student.get_submodule(name).weight.grad.abs().sum() > 0 for name in LAYERS)
    optimizer.step()
    assert not same(first, weights(plugin.artifacts({"student": student})["student"].module))
    assert same(kept, weights(plugin._float[0]))


def test_the_file_takes_four_bits_and_gives_the_weights_back(net, tmp_path):
    plugin, student = entered(net)
    left = plugin.artifacts({"student": student})["student"]
    assert left.pack is not None
    packed = left.pack()
    counts = {name: student.get_submodule(name).weight.numel() for name in LAYERS}
    assert packed.bits == 4
    assert packed.float_params == sum(p.numel() for p in student.parameters()) - sum(counts.values())
    tensors = load(packed.content)
    assert tensors["codes"].numel() == sum(counts.values()) // 2
    assert tensors["ranges"].shape == (10 * 2 + 48 * 2 + 5, 2)
    (tmp_path / "packed.safetensors").write_bytes(packed.content)
    state = unpack(tmp_path / "packed.safetensors")
    expected = left.module.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-6)


def test_a_network_without_such_layers_is_one_line():
    with pytest.raises(KDBenchError, match="student Conv2d has no linear or embedding layer$"):
        entered(nn.Conv2d(3, 5, 8))


def test_a_weight_that_is_not_finite_is_one_line(net):
    nn.init.constant_(net.wide.weight, float("inf"))
    with pytest.raises(KDBenchError, match="the student's wide.weight holds values that are not finite"):
        entered(net)


def test_constant_weights_give_numbers(net):
    nn.init.zeros_(net.wide.weight)
    nn.init.constant_(net.narrow.weight, 0.5)
    plugin, student = entered(net)
    assert torch.isfinite(student(IMAGES)).all()
    assert torch.isfinite(plugin.artifacts({"student": student})["student"].module(IMAGES[:1])).all()
