"""Feature kinds: the vocabulary between tasks, which produce them, and methods, which ask for them.

A kind says what the axes of a tensor mean, so that a method written for one domain can be tried in another. All are
frozen dataclasses; ``values`` is always the tensor that carries the gradient. What is one vector for each of many
things (samples, cells, tokens, points, nodes, anchors) is read as rows, alike for all kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from kdbench.errors import KDBenchError

#: Law of a row of class scores.
Law: TypeAlias = Literal["categorical", "bernoulli"]
#: Law of a row of predicted values.
ValueLaw: TypeAlias = Literal["plain", "gaussian"]


@dataclass(frozen=True)
class Feature:
    """Base of all kinds.

    Attributes:
        values: The tensor, on the graph of the role that made it.
        common: Fields that all samples of a batch share.
    """

    common: ClassVar[frozenset[str]] = frozenset()
    values: Tensor

    def rows(self) -> Tensor:
        """Returns the rows that count, sample after sample, shape ``(N, D)``."""
        return self.values

    def sample(self) -> Tensor:
        """Returns which sample of the batch each row of :meth:`rows` is of, shape ``(N,)``."""
        return torch.arange(len(self.values), device=self.values.device)

    def signature(self) -> str:
        """Describes kind, shape and dtype in one short line, e.g. ``Grid(4, 64, 56, 56) float32``."""
        return f"{type(self).__name__}{tuple(self.values.shape)} {str(self.values.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Logits(Feature):
    """Class scores before the link function.

    Attributes:
        values: Any shape with one class axis, e.g. ``(B, C)``, ``(B, C, H, W)`` or ``(B, anchors, C)``.
        class_dim: The class axis.
        mask: Rows that are distilled, shaped as ``values`` without its class axis; all of them when None.
        weight: Weight of each row, same shape as ``mask``; equal when None.
        law: ``categorical`` for a softmax head, ``bernoulli`` for independent sigmoids.
        target: The one true class of each row, same shape as ``mask`` (capability ``single_label``), or None.
    """

    class_dim: int = -1
    mask: Tensor | None = None
    weight: Tensor | None = None
    law: Law = "categorical"
    target: Tensor | None = None

    def rows(self) -> Tensor:
        """Returns the unmasked rows, shape ``(N, C)``."""
        return _rows(self.values, self.class_dim, self.mask)

    def sample(self) -> Tensor:
        """Returns the sample of each row, shape ``(N,)``."""
        return _samples(self.values.movedim(self.class_dim, -1)[..., 0], self.mask)

    def row_weight(self) -> Tensor | None:
        """Returns the weight of each row of :meth:`rows`, shape ``(N,)``."""
        return _by_row(self.weight, self.mask)

    def row_target(self) -> Tensor | None:
        """Returns the true class of each row of :meth:`rows`, shape ``(N,)``."""
        return _by_row(self.target, self.mask)

    def labels(self) -> Tensor:
        """Returns :meth:`row_target`, for methods that cannot do without the true class.

        Raises:
            KDBenchError: The classes are not known.
        """
        target = self.row_target()
        if target is None:
            raise KDBenchError(
                "the true class of each row is not known here, and this method needs it: leave out data.unlabelled"
            )
        return target


@dataclass(frozen=True)
class Values(Feature):
    """Predicted values of a regression, in the unit in which the task's loss compares them.

    Attributes:
        values: Any shape with one axis of predictions, e.g. ``(B, D)``, ``(B, D, H, W)`` or ``(B, points, D)``. Of
            ``gaussian`` rows it holds D means, then D log-variances.
        value_dim: The axis of the predictions.
        mask: Rows that are distilled, shaped as ``values`` without that axis; all of them when None.
        weight: Weight of each row, same shape as ``mask``; equal when None.
        law: ``plain`` for values alone, ``gaussian`` for independent normal laws.
    """

    value_dim: int = -1
    mask: Tensor | None = None
    weight: Tensor | None = None
    law: ValueLaw = "plain"

    def rows(self) -> Tensor:
        """Returns the unmasked rows, shape ``(N, D)``, or ``(N, 2 D)`` of ``gaussian`` ones."""
        return _rows(self.values, self.value_dim, self.mask)

    def sample(self) -> Tensor:
        """Returns the sample of each row, shape ``(N,)``."""
        return _samples(self.values.movedim(self.value_dim, -1)[..., 0], self.mask)

    def row_weight(self) -> Tensor | None:
        """Returns the weight of each row of :meth:`rows`, shape ``(N,)``."""
        return _by_row(self.weight, self.mask)


def _rows(values: Tensor, axis: int, mask: Tensor | None) -> Tensor:
    rows = values.movedim(axis, -1)
    return rows[mask] if mask is not None else rows.reshape(-1, rows.shape[-1])


def _samples(cells: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns the index on the first axis of each of ``cells``, or of those that a mask leaves, in one row."""
    index = torch.arange(len(cells), device=cells.device).view(-1, *(1 for _ in cells.shape[1:])).expand(cells.shape)
    return index.reshape(-1) if mask is None else index[mask]


def _by_row(value: Tensor | None, mask: Tensor | None) -> Tensor | None:
    if value is None:
        return None
    return value[mask] if mask is not None else value.reshape(-1)


@dataclass(frozen=True)
class Grid(Feature):
    """A regular grid of cells.

    Attributes:
        values: ``(B, C, *space)`` with one to three spatial axes.
        stride: Input units per cell, one per spatial axis (pixels, pillars, …), or None where unknown.
    """

    stride: tuple[float, ...] | None = None

    def rows(self) -> Tensor:
        """Returns the cells, shape ``(B * prod(space), C)``."""
        return self.values.flatten(2).transpose(1, 2).flatten(0, 1)

    def sample(self) -> Tensor:
        """Returns the sample of each cell, shape ``(B * prod(space),)``."""
        return _samples(self.values[:, 0])

    def as_tokens(self) -> Tokens:
        """Returns the cells as tokens ``(B, prod(space), C)``."""
        space = tuple(self.values.shape[2:])
        return Tokens(self.values.flatten(2).transpose(1, 2), grid=space)

    def as_points(self) -> Points:
        """Returns the cells as points ``(B * prod(space), C)`` whose coords are cell indices, zero-padded."""
        batch, _, *space = self.values.shape
        axes = [torch.arange(n, device=self.values.device) for n in space]
        cells = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(space))
        cells = torch.nn.functional.pad(cells, (0, 3 - len(space))).to(self.values.dtype)
        return Points(self.rows(), cells.repeat(batch, 1), self.sample())


@dataclass(frozen=True)
class Activated(Grid):
    """A grid right after its activation.

    Attributes:
        pre: The same grid before the activation.
    """

    pre: Tensor = field(kw_only=True)


@dataclass(frozen=True)
class Last(Feature):
    """The grid that global average pooling reads, ``values`` of shape ``(B, C, *space)``; the classifier sees its mean.

    It is no :class:`Grid`: it repeats the deepest one or lies behind it, so that methods over grids leave it out.
    """


@dataclass(frozen=True)
class Tokens(Feature):
    """A sequence of tokens.

    Attributes:
        values: ``(B, L, D)``.
        prefix: How many leading tokens are not positions (class and register tokens).
        grid: Spatial shape of the other tokens, or None where they have none.
        mask: ``(B, L)`` tokens that count (no padding), or None for all.
    """

    prefix: int = 0
    grid: tuple[int, ...] | None = None
    mask: Tensor | None = None

    def rows(self) -> Tensor:
        """Returns the tokens that count, shape ``(N, D)``."""
        return _rows(self.values, -1, self.mask)

    def sample(self) -> Tensor:
        """Returns the sample of each token, shape ``(N,)``."""
        return _samples(self.values[..., 0], self.mask)

    def as_grid(self) -> Tokens | Grid:
        """Returns the positions as a grid ``(B, D, *grid)``, without the prefix; tokens without a grid as they are."""
        if self.grid is None:
            return self
        return Grid(self.values[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid))


@dataclass(frozen=True)
class Layer(Feature):
    """What one layer of a transformer leaves at every place; a network's first is that of its embedding.

    It is no :class:`Tokens`: a network has one of each layer, and methods over tokens read those that a pair names.

    Attributes:
        values: ``(B, L, D)``.
        prefix: How many leading places stand for the whole sample (a class token).
        mask: ``(B, L)`` places that count (no padding), or None for all.
    """

    prefix: int = 0
    mask: Tensor | None = None

    def rows(self) -> Tensor:
        """Returns the places that count, shape ``(N, D)``."""
        return _rows(self.values, -1, self.mask)

    def sample(self) -> Tensor:
        """Returns the sample of each place, shape ``(N,)``."""
        return _samples(self.values[..., 0], self.mask)


@dataclass(frozen=True)
class Heads(Feature):
    """Queries, keys and values of the heads of attention in one layer of a transformer.

    Attributes:
        values: ``(B, 3, H, L, D)``, each head of width D.
        mask: ``(B, L)`` places that count (no padding), or None for all.
        causal: Whether a place looks at itself and those before it alone.
    """

    mask: Tensor | None = None
    causal: bool = False

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries, keys and values, ``(B, H, L, D)`` each."""
        queries, keys, values = self.values.unbind(1)
        return queries, keys, values

    def looks(self) -> Tensor:
        """Returns which places (last axis) each place that counts looks at, ``(B, 1, L, L)`` bool."""
        batch, length = len(self.values), self.values.shape[3]
        there = self.values.new_ones((batch, length), dtype=torch.bool) if self.mask is None else self.mask
        pairs = there[:, None, :, None] & there[:, None, None, :]
        return pairs.tril() if self.causal else pairs

    def rows(self) -> Tensor:
        """Returns the places that count, shape ``(N, 3 * H * D)``."""
        return _rows(self.values.permute(0, 3, 1, 2, 4).flatten(2), -1, self.mask)

    def sample(self) -> Tensor:
        """Returns the sample of each place, shape ``(N,)``."""
        return _samples(self.values[:, 0, 0, :, 0], self.mask)


@dataclass(frozen=True)
class Points(Feature):
    """A ragged batch of points, voxels or pillars, samples one after another.

    Attributes:
        values: ``(M, C)``.
        coords: ``(M, 3)`` coordinates or cell indices.
        batch: ``(M,)`` sample of each point, ascending.
        counts: ``(M,)`` raw points behind each (pillars and voxels), or None.
    """

    coords: Tensor
    batch: Tensor
    counts: Tensor | None = None

    def sample(self) -> Tensor:
        """Returns the sample of each point, shape ``(M,)``."""
        return self.batch


@dataclass(frozen=True)
class Nodes(Feature):
    """A batch of graphs.

    Attributes:
        values: ``(N, D)`` node features.
        edges: ``(2, E)`` source and target node of each edge, or None for a student without edges.
        batch: ``(N,)`` graph of each node.
        edge_values: ``(E, …)`` edge features or attention, or None.
        mask: ``(N,)`` nodes that count, or None for all.
    """

    edges: Tensor | None
    batch: Tensor
    edge_values: Tensor | None = None
    mask: Tensor | None = None

    def rows(self) -> Tensor:
        """Returns the nodes that count, shape ``(M, D)``."""
        return _rows(self.values, -1, self.mask)

    def sample(self) -> Tensor:
        """Returns the graph of each of :meth:`rows`, shape ``(M,)``."""
        return self.batch if self.mask is None else self.batch[self.mask]


@dataclass(frozen=True)
class Vector(Feature):
    """One vector a sample, ``values`` of shape ``(B, D)``."""


@dataclass(frozen=True)
class Boxes(Feature):
    """Boxes that a detector predicts, one a row; its :class:`Logits` are of the same rows.

    Attributes:
        values: ``(B, A, 4)`` left, top, right, bottom in input pixels.
        anchors: ``(A, 4)`` likewise, the box that each row starts from.
        level: ``(A,)`` integers, which level of the pyramid each row is of, finest first.
        mask: ``(B, A)`` rows that are distilled, or None for all.
    """

    common: ClassVar[frozenset[str]] = frozenset({"anchors", "level"})
    anchors: Tensor
    level: Tensor
    mask: Tensor | None = None

    def rows(self) -> Tensor:
        """Returns the rows that count, shape ``(N, 4)``."""
        return _rows(self.values, -1, self.mask)

    def sample(self) -> Tensor:
        """Returns the sample of each row, shape ``(N,)``."""
        return _samples(self.values[..., 0], self.mask)


@dataclass(frozen=True)
class Edges(Feature):
    """Laws of the distances from where a box starts to its left, top, right and bottom edge.

    Attributes:
        values: ``(B, A, 4, bins)`` logits over 0, 1, … cells of the row's level; rows as of :class:`Boxes`.
        mask: ``(B, A)`` rows that are distilled, or None for all.
    """

    mask: Tensor | None = None

    def rows(self) -> Tensor:
        """Returns the rows that count, one for each edge, shape ``(N * 4, bins)``."""
        kept = self.values.flatten(0, 1) if self.mask is None else self.values[self.mask]
        return kept.flatten(0, 1)

    def sample(self) -> Tensor:
        """Returns the sample of each of :meth:`rows`, shape ``(N * 4,)``."""
        return _samples(self.values[..., 0, 0], self.mask).repeat_interleave(4)


@dataclass(frozen=True)
class Levels(Feature):
    """Maps of all levels of a pyramid, of one width, inside a head that the levels share.

    It is no :class:`Grid`, so that methods over grids leave it out.

    Attributes:
        values: ``(B, C, cells)``, level after level, finest first; in a level row by row.
        sizes: Height and width of each level.
    """

    sizes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, maps: Sequence[Tensor]) -> Levels:
        """Joins maps ``(B, C, h, w)``."""
        sizes = tuple((int(m.shape[2]), int(m.shape[3])) for m in maps)
        return cls(torch.cat([m.flatten(2) for m in maps], 2), sizes)

    def maps(self) -> list[Tensor]:
        """Returns the map ``(B, C, h, w)`` of each level."""
        parts = self.values.split([tall * wide for tall, wide in self.sizes], 2)
        return [part.unflatten(2, size) for part, size in zip(parts, self.sizes, strict=True)]

    def rows(self) -> Tensor:
        """Returns the cells, shape ``(B * cells, C)``."""
        return self.values.transpose(1, 2).flatten(0, 1)

    def sample(self) -> Tensor:
        """Returns the sample of each cell, shape ``(B * cells,)``."""
        return _samples(self.values[:, 0])


Kind: TypeAlias = type[Feature]
