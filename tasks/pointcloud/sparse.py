"""Sparse 3-D convolutions in plain PyTorch: gather, multiply, add, by rulebooks.

Graham, Engelcke & van der Maaten, "3D Semantic Segmentation with Submanifold Sparse Convolutional Networks", CVPR 2018,
section 3; Yan, Mao & Li, "SECOND: Sparsely Embedded Convolutional Detection", Sensors 2018, section 3.1.2.

A grid is the sorted keys of its sites, ``((sample * Z + z) * Y + y) * X + x``, and a row of features for each. A
rulebook lists, one kernel offset after another, which input row goes into which output row; layers over the same sites
share it. On the sites of its output a convolution equals a dense one over a grid that is zero elsewhere. Weights have
the layout of spconv 2, (out, kz, ky, kx, in), so that its checkpoints load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Triple = tuple[int, int, int]


class Rules(NamedTuple):
    """Which rows of the input a convolution adds to which rows of its output.

    Attributes:
        inputs: Input row of each of the P pairs, (P,), one kernel offset after another.
        outputs: Their output rows, (P,).
        sizes: Pairs of each kernel offset, z slowest.
        keys: Sorted keys of the output's sites, (N,).
        shape: Cells (z, y, x) of the output.
    """

    inputs: Tensor
    outputs: Tensor
    sizes: list[int]
    keys: Tensor
    shape: Triple


def sites(keys: Tensor, shape: Triple) -> Tensor:
    """Returns the (sample, z, y, x) of keys, (M, 4)."""
    depth, height, width = shape
    rest, x = keys // width, keys % width
    rest, y = rest // height, rest % height
    return torch.stack([rest // depth, rest % depth, y, x], 1)


def keys_of(cells: Tensor, shape: Triple) -> Tensor:
    """Returns the keys (M,) of cells (M, 4) as (sample, z, y, x), the inverse of :func:`sites`."""
    sample, z, y, x = cells.unbind(1)
    return ((sample * shape[0] + z) * shape[1] + y) * shape[2] + x


def _offsets(kernel: Triple, device: torch.device) -> Tensor:
    """Returns the places in a kernel, (K, 3), z slowest."""
    return torch.cartesian_prod(*(torch.arange(n, device=device) for n in kernel)).view(-1, 3)


def submanifold(keys: Tensor, shape: Triple, kernel: Triple = (3, 3, 3)) -> Rules:
    """Rules of a submanifold convolution: its output has the sites of its input, whatever their surroundings.

    Args:
        keys: Sorted keys of the sites, (M,).
        shape: Cells (z, y, x) of the grid.
        kernel: Odd sizes (z, y, x).
    """
    limits = torch.tensor(shape, device=keys.device)
    offsets = _offsets(kernel, keys.device) - torch.tensor(kernel, device=keys.device) // 2
    places = sites(keys, shape)[:, 1:] + offsets[:, None]
    # Rows of ascending queries, which a search for one after another is quick with.
    steps = offsets @ torch.tensor([shape[1] * shape[2], shape[2], 1], device=keys.device)
    wanted = keys + steps[:, None]
    found = torch.searchsorted(keys, wanted).clamp(max=max(len(keys) - 1, 0))
    there = (keys[found] == wanted) if len(keys) else torch.zeros_like(wanted, dtype=torch.bool)
    there &= ((places >= 0) & (places < limits)).all(2)
    _, outputs = there.nonzero(as_tuple=True)
    return Rules(found[there], outputs, there.sum(1).tolist(), keys, shape)


def strided(keys: Tensor, shape: Triple, kernel: Triple, stride: Triple, padding: Triple) -> Rules:
    """Rules of a sparse convolution: its output has every site that a site of the input reaches.

    Args:
        keys: Sorted keys of the sites, (M,).
        shape: Cells (z, y, x) of the input.
        kernel: Sizes (z, y, x).
        stride: Likewise.
        padding: Likewise, on both ends.
    """
    grown = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape, kernel, stride, padding, strict=True)]
    out: Triple = (grown[0], grown[1], grown[2])
    steps, pads, limits = (torch.tensor(values, device=keys.device) for values in (stride, padding, out))
    cells = sites(keys, shape)
    places = cells[:, 1:] + pads - _offsets(kernel, keys.device)[:, None]
    reached = torch.div(places, steps, rounding_mode="floor")
    there = ((places == reached * steps) & (reached >= 0) & (reached < limits)).all(2)
    _, inputs = there.nonzero(as_tuple=True)
    made = keys_of(torch.cat([cells[inputs, :1], reached[there]], 1), out)
    found, outputs = torch.unique(made, return_inverse=True)
    return Rules(inputs, outputs, there.sum(1).tolist(), found, out)


def convolve(values: Tensor, rules: Rules, weight: Tensor) -> Tensor:
    """Convolves the features of a sparse grid.

    Args:
        values: Of the input's sites, (M, C).
        rules: From :func:`submanifold` or :func:`strided` of these sites.
        weight: (D, kz, ky, kx, C).

    Returns:
        Features of the sites ``rules.keys``, (N, D).
    """
    kernels = weight.flatten(1, 3).permute(1, 2, 0)
    gathered = values.index_select(0, rules.inputs).split(rules.sizes)
    products = torch.cat([part @ kernel for part, kernel in zip(gathered, kernels.unbind(0), strict=True)])
    return products.new_zeros(len(rules.keys), len(weight)).index_add(0, rules.outputs, products)


class RowNorm(nn.BatchNorm1d):
    """BatchNorm of rows (M, C), by running statistics where fewer than two rows have none of their own."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and len(input) >= 2:
            return super().forward(input)
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(input, mean, var, self.weight, self.bias, False, 0.0, self.eps)


class SparseConv(nn.Module):
    """A sparse convolution without bias, BatchNorm and ReLU on the rows that it makes."""

    def __init__(self, inputs: int, outputs: int, kernel: Triple = (3, 3, 3)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, *kernel, inputs))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.norm = RowNorm(outputs, eps=1e-3)

    def forward(self, values: Tensor, rules: Rules) -> Tensor:
        """Returns the features (N, D) of the sites of ``rules``."""
        return F.relu(self.norm(convolve(values, rules, self.weight)))


class Stage(nn.Module):
    """Convolutions of one resolution: a strided one that leads there, where ``stride`` says so, then submanifold ones.

    Args:
        inputs: Channels that come in.
        outputs: Channels of all layers.
        depth: Submanifold layers.
        stride: By axis, or None for a stage at the resolution of its input.
        padding: Of the strided layer, by axis.
        kernel: Of the strided layer, by axis.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        depth: int,
        stride: Triple | None = (2, 2, 2),
        padding: Triple = (1, 1, 1),
        kernel: Triple = (3, 3, 3),
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.kernel = stride, padding, kernel
        widths = [inputs, *[outputs] * (depth + (stride is not None))]
        kernels = [kernel] if stride is not None else []
        kernels += [(3, 3, 3)] * depth
        self.layers = nn.ModuleList(
            SparseConv(a, b, size) for a, b, size in zip(widths[:-1], widths[1:], kernels, strict=True)
        )

    def forward(self, values: Tensor, keys: Tensor, shape: Triple) -> tuple[Tensor, Tensor, Triple]:
        """Takes features (M, C), sorted keys (M,) and cells (z, y, x) to those of this stage."""
        layers = list(self.layers)
        if self.stride is not None:
            rules = strided(keys, shape, self.kernel, self.stride, self.padding)
            values, keys, shape = layers.pop(0)(values, rules), rules.keys, rules.shape
        if layers:
            rules = submanifold(keys, shape)
            for layer in layers:
                values = layer(values, rules)
        return values, keys, shape


class SparseEncoder(nn.Sequential):
    """SECOND's middle encoder: an eighth of the resolution along x and y, by way of four stages, then less along z.

    Args:
        inputs: Channels of a voxel.
        channels: Of the four stages.
        outputs: Channels of a cell of the last grid.
    """

    def __init__(self, inputs: int, channels: Sequence[int], outputs: int) -> None:
        first, second, third, fourth = channels
        super().__init__(
            Stage(inputs, first, 2, None),
            Stage(first, second, 2),
            Stage(second, third, 2),
            Stage(third, fourth, 2, padding=(0, 1, 1)),
            Stage(fourth, outputs, 0, (2, 1, 1), (0, 0, 0), (3, 1, 1)),
        )

    def forward(self, values: Tensor, keys: Tensor, shape: Triple) -> list[tuple[Tensor, Tensor, Triple]]:  # type: ignore[override]
        """Returns features, keys and cells of each stage."""
        made = []
        for stage in self:
            values, keys, shape = stage(values, keys, shape)
            made.append((values, keys, shape))
        return made


def flatten(values: Tensor, keys: Tensor, shape: Triple, batch_size: int) -> Tensor:
    """Makes the bird's-eye view of a sparse grid, channels-last in memory.

    Args:
        values: (M, C).
        keys: Sorted keys, (M,).
        shape: Cells (z, y, x).
        batch_size: Samples of the batch.

    Returns:
        (batch_size, C * z, y, x), zero where there is no site; the channel of c at z is ``c * Z + z``.
    """
    depth, height, width = shape
    sample, z, y, x = sites(keys, shape).unbind(1)
    rows = ((sample * height + y) * width + x) * depth + z
    dense = values.new_zeros(batch_size * height * width * depth, values.shape[1]).index_copy(0, rows, values)
    return dense.view(batch_size, height, width, depth, -1).transpose(3, 4).flatten(3).permute(0, 3, 1, 2)
