"""Packed files: read to the last bit, and as large as bits, ranges and header make them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.needs import Packed
from kdbench.quant.packing import unpack
from kdbench.quant.weights import Fixed, Learned, Scheme, left
from tests.quant.test_weights import learned, net, quantised
from tests.toy import same


def packed(model: nn.Module, path: Path) -> tuple[Packed, nn.Module]:
    """Writes what a quantised training leaves; returns what is said of it, and the student that is scored."""
    found = left(model)["student"]
    assert found.pack is not None
    made = found.pack()
    path.write_bytes(made.content)
    return made, found.module


@pytest.mark.parametrize("points", ["uniform", "quantiles"])
@pytest.mark.parametrize("bucket", [None, 7, 256])
@pytest.mark.parametrize("bits", range(1, 9))
def test_what_is_read_is_the_student_to_the_last_bit(bits, bucket, points, tmp_path):
    made, student = packed(quantised(net(), bits, bucket, points=points), tmp_path / "packed.safetensors")
    read = unpack(tmp_path / "packed.safetensors")
    assert same(read, student.state_dict())
    net().load_state_dict(read)
    assert made.bits == bits
    assert made.float_params == 0


def test_tensors_may_have_each_as_many_points_as_it_likes(tmp_path):
    model, levels = net(), iter([2, 3, 5, 256, 129, 4, 16, 7])
    Scheme(2, 10, "absmax", "all", False).put_on(model, lambda _, w: Learned(next(levels), w, 10, "absmax"))
    made, student = packed(model, tmp_path / "packed.safetensors")
    assert same(unpack(tmp_path / "packed.safetensors"), student.state_dict())
    sizes = [p.numel() for p in net().parameters()]
    expected = sum(n * b for n, b in zip(sizes, [1, 2, 3, 8, 8, 2, 4, 3], strict=True)) / sum(sizes)
    assert made.bits == pytest.approx(expected)


@pytest.mark.parametrize(("bits", "bucket"), [(2, 256), (3, 256), (4, 64), (8, None)])
def test_the_file_is_as_large_as_bits_and_the_overhead_that_is_in_it(bits, bucket, tmp_path):
    with rng.scope(0, "quant", "sizes"):
        model = nn.Sequential(nn.Conv2d(8, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 3), nn.Linear(64, 10))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = [p.numel() for p in model.parameters() if p.dim() > 1]
    save_file(state, tmp_path / "plain.safetensors")
    Scheme(bits, bucket, "linear", "weights", False).put_on(model, lambda *_: Fixed(bits, bucket, "linear"))
    path = tmp_path / "packed.safetensors"
    made, _ = packed(model, path)
    ranges = sum(8 * (-(-n // bucket) if bucket else 1) for n in weights)
    header = 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]
    overhead = ranges + header + sum(t.numel() * t.element_size() for t in state.values() if t.dim() < 2)
    assert path.stat().st_size == pytest.approx(sum(weights) * bits / 8 + overhead, rel=0.02)
    floats = 4 * made.float_params
    assert made.float_params == sum(p.numel() for p in model.parameters() if p.dim() == 1)
    assert sum(weights) / 8 + floats < made.coded_bytes <= sum(weights) * bits / 8 + ranges + floats + 1
    assert path.stat().st_size < (tmp_path / "plain.safetensors").stat().st_size * (bits + 3) / 32


def test_skewed_indices_take_fewer_bits_in_a_code(tmp_path):
    model: Any = nn.Linear(100, 100, bias=False)
    with torch.no_grad():
        model.weight.zero_()[0, :3] = torch.tensor([-1.0, 1.0, 0.5])
    Scheme(8, None, "linear", "all", False).put_on(model, lambda *_: Fixed(8, None, "linear"))
    made, _ = packed(model, tmp_path / "packed.safetensors")
    assert made.coded_bytes < 10_000 / 8 + 100
    assert len(made.content) > 10_000


def test_shared_weights_are_in_the_file_as_floats(tmp_path):
    model: Any = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    quantised(model)
    made, student = packed(model, tmp_path / "packed.safetensors")
    assert same(unpack(tmp_path / "packed.safetensors"), student.state_dict())
    assert made.float_params == 9


def test_what_is_no_packed_file_is_one_line(tmp_path):
    path = tmp_path / "packed.safetensors"
    with pytest.raises(KDBenchError, match=r"packed.safetensors cannot be read: No such file"):
        unpack(path)
    save_file(net().state_dict(), path)
    with pytest.raises(KDBenchError, match="holds no packed weights: expected packed.safetensors of a quantised run"):
        unpack(path)
    packed(learned(net()), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(KDBenchError, match="cannot be read"):
        unpack(path)


def test_the_file_is_plain_safetensors(tmp_path):
    path = tmp_path / "packed.safetensors"
    packed(quantised(net(), 4), path)
    held = load_file(path)
    assert held["codes"].dtype == torch.uint8
    assert {n.removeprefix("float.") for n in held if n.startswith("float.")} == {n for n, _ in net().named_buffers()}
    header = json.loads(path.read_bytes()[8 : 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]])
    index = json.loads(header["__metadata__"]["kdbench.packed.1"])
    assert index["body.0.weight"] == [[4, 4, 3, 3], 16, 16, False]
