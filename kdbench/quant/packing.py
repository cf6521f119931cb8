"""Quantised weights in a file of as many bits as they have: a safetensors file, written and read to the last bit.

It holds ``codes`` (uint8, the indices of one tensor after another, each from a whole byte on), ``ranges`` (float32, low
and high of each bucket), ``points`` (float32, of tensors that have others than evenly spaced ones), and as
``float.NAME`` what is not quantised, running statistics among it. The metadata hold, by name, the shape of each
quantised tensor, its bucket, how many points it has and whether they are in the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from kdbench.errors import KDBenchError
from kdbench.functional.quantize import (
    from_points,
    mean_code_length,
    pack_bits,
    quantized_bytes,
    uniform_points,
    unpack_bits,
)
from kdbench.needs import Packed

#: Key of the metadata, and what begins the name of what is not quantised.
FORMAT, APART = "kdbench.packed.1", "float."
#: Tensors that hold a part of every quantised one.
PARTS = ("codes", "ranges", "points")


class Entry(NamedTuple):
    """A quantised tensor.

    Attributes:
        shape: Of the tensor.
        bucket: Weights of a bucket; None for one of all.
        levels: How many points it has.
        codes: Index of each weight (N,).
        ranges: Low and high of each bucket (B, 2).
        points: (levels,), or None for evenly spaced ones, which are not stored.
    """

    shape: tuple[int, ...]
    bucket: int | None
    levels: int
    codes: Tensor
    ranges: Tensor
    points: Tensor | None

    @property
    def bits(self) -> int:
        """Of an index."""
        return width(self.levels)


def width(levels: int) -> int:
    """Returns the bits of an index of so many points."""
    return (levels - 1).bit_length()


def pack(model: nn.Module, entries: Mapping[str, Entry]) -> Packed:
    """Writes a model some of whose parameters are quantised.

    Args:
        model: Of plain names.
        entries: Its quantised parameters, by name.

    Returns:
        The file, and what the record says of it. ``coded_bytes`` are counted as in the paper: the mean length of one
        Huffman code for the indices of all tensors, 8 bytes a bucket, 4 a point and a weight that is not quantised; not
        the table of that code, nor running statistics.
    """
    found = [*entries.values()]
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in entries}
    tensors = {f"{APART}{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    tensors["codes"] = torch.cat([pack_bits(e.codes, e.bits) for e in found])
    tensors["ranges"] = torch.cat([e.ranges.cpu() for e in found])
    points = [e.points.cpu() for e in found if e.points is not None]
    if points:
        tensors["points"] = torch.cat(points)
    index = {name: [[*e.shape], e.bucket, e.levels, e.points is not None] for name, e in entries.items()}
    content = save(tensors, {FORMAT: json.dumps(index, separators=(",", ":"))})
    counts = torch.bincount(torch.cat([e.codes.cpu() for e in found])).tolist()
    weights = sum(counts)
    floats = sum(p.numel() for name, p in model.named_parameters() if name not in entries)
    apart = floats + sum(map(len, points))
    coded = quantized_bytes(mean_code_length(counts), weights, len(tensors["ranges"]), apart)
    return Packed(content, sum(e.bits * len(e.codes) for e in found) / weights, math.ceil(coded), floats)


def unpack(path: Path) -> dict[str, Tensor]:
    """Reads a packed file as the state dict of the plain model: what ``student.safetensors`` beside it holds.

    Raises:
        KDBenchError: It is missing or damaged, or no packed file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            index = json.loads((file.metadata() or {})[FORMAT])
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except KeyError:
        raise KDBenchError(f"{path} holds no packed weights: expected packed.safetensors of a quantised run") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise KDBenchError(f"{path} cannot be read: {' '.join(str(error).split())[:160]}") from None
    state = {name.removeprefix(APART): tensor for name, tensor in held.items() if name.startswith(APART)}
    begin = [0, 0, 0]
    for name, (shape, bucket, levels, own) in index.items():
        count = math.prod(shape)
        bits = width(levels)
        sizes = (-(-count * bits // 8), 1 if bucket is None else -(-count // bucket), levels if own else 0)
        parts = [held[key][at : at + size] for key, at, size in zip(PARTS, begin, sizes, strict=True) if size]
        begin = [at + size for at, size in zip(begin, sizes, strict=True)]
        points = parts[2] if own else uniform_points(levels)
        low, high = parts[1].unbind(1)
        state[name] = from_points(unpack_bits(parts[0], bits, count), points, (low, high), bucket).view(shape)
    return state
