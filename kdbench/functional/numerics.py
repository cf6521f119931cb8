"""What every loss here needs to stay safe: precision, means of nothing, shapes and options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdbench.base.collectives import normalizer, share
from kdbench.errors import KDBenchError, nearest

#: Which form of a loss, where the paper and its released code differ.
Faithful: TypeAlias = Literal["paper", "code"]


def upcast(x: Tensor) -> Tensor:
    """Returns ``x`` in float32, or as it is where it is float32 or wider: low precision is never summed as such."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_precision(x: Tensor) -> torch.autocast:
    """Turns autocast off on the device of ``x``: it would take products of upcast tensors back to low precision."""
    return torch.autocast(x.device.type, enabled=False)


def unit(x: Tensor, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """Scales to unit l2 norm along ``dim``, as ``F.normalize`` does; what is no longer than ``eps`` is zero.

    No gradient comes to that, which has no direction; that of ``F.normalize`` is divided by ``eps``.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    long = norm > eps
    return torch.where(long, x / torch.where(long, norm, 1.0), 0.0)


def spread(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centres rows (N, C) and says how far they spread.

    Returns:
        The centred rows (N, C), their l2 norm (N, 1), and whether it exceeds what rounding leaves of a constant row
        (N, 1) bool.

    Example:
        >>> spread(torch.tensor([[0.0, 2.0], [0.1, 0.1]]))[1:]
        (tensor([[1.4142],
                [0.0000]]), tensor([[ True],
                [False]]))
    """
    centred = x - x.mean(dim=1, keepdim=True)
    norm = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    rounding = torch.finfo(x.dtype).eps * torch.linalg.vector_norm(x.detach(), dim=1, keepdim=True)
    return centred, norm, norm > 4 * rounding


def safe_mean(values: Tensor) -> Tensor:
    """Mean over all elements; of an empty tensor a zero that is connected to the graph.

    Where several processes train together, the sum is divided by their mean number of elements, so that the mean over
    processes is that over all elements; likewise in :func:`weighted_mean`.
    """
    count = max(values.numel(), 1) if share()[1] == 1 else normalizer(values.new_tensor(float(values.numel())))
    return values.sum() / count


def weighted_mean(rows: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of ``rows`` (N,), or ``sum(weight * rows) / sum(weight)`` with non-negative weights (N,).

    No rows, or no weight at all, give a zero that is connected to the graph.

    Example:
        >>> weighted_mean(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1, 1, 0]))
        tensor(1.5000)
    """
    if weight is None:
        return safe_mean(rows)
    check_same_shape(rows, weight, "row weights")
    weight = weight.to(rows.dtype)
    return (weight * rows).sum() / normalizer(weight.sum(), torch.finfo(rows.dtype).tiny)


def in_chunks(value: Callable[..., Tensor], rows: tuple[Tensor, ...], step: int) -> Tensor:
    """Joins what ``value`` gives for chunks of rows, each computed again in backward where there are several.

    Args:
        value: of a chunk of each of ``rows``, with a row for each of its rows.
        rows: (N, ...) each.
        step: rows that are held at a time, at least one.

    Returns:
        (N, ...).

    Example:
        >>> in_chunks(lambda x, y: x * y, (torch.arange(3.0), torch.ones(3)), 2)
        tensor([0., 1., 2.])
    """
    if max(1, step) >= len(rows[0]):
        return value(*rows)
    chunks = zip(*(x.split(max(1, step)) for x in rows), strict=True)
    return torch.cat([checkpoint(value, *c, use_reentrant=False, preserve_rng_state=False) for c in chunks])


def check_same_shape(student: Tensor, teacher: Tensor, what: str) -> None:
    """Raises ``KDBenchError`` where the shapes differ, which torch would broadcast into a wrong loss."""
    if student.shape != teacher.shape:
        raise KDBenchError(
            f"{what}: the student has shape {tuple(student.shape)} and the teacher {tuple(teacher.shape)}, "
            "expected equal shapes; project one of them or check the pair's taps"
        )


def check_faithful(faithful: str) -> None:
    """Raises ``KDBenchError`` where ``faithful`` is neither ``"paper"`` nor ``"code"``."""
    if faithful not in get_args(Faithful):
        raise KDBenchError(f"faithful={faithful!r} is unknown; {nearest(str(faithful), get_args(Faithful))}")
