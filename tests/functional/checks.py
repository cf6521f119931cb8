"""What holds of every loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

Loss = Callable[..., Tensor]


def check_low_precision(loss: Loss, *inputs: Any, rel: float = 0.02, **options: Any) -> None:
    """In bfloat16 the loss is a float32 number close to that of the inputs as they are."""
    low = loss(*(x.bfloat16() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs), **options)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(loss(*inputs, **options).item(), rel=rel)


def check_autocast(loss: Loss, *inputs: Tensor, **options: Any) -> None:
    """Autocast leaves the loss of float32 inputs as it is."""
    full = [x.float() for x in inputs]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(*full, **options)
    torch.testing.assert_close(inside, loss(*full, **options))


def check_zero(loss: Loss, *inputs: Tensor | tuple[int, ...], **options: Any) -> None:
    """The loss is zero and connected to the graph of the first input, with a finite gradient.

    Args:
        loss: Gives a scalar.
        inputs: Tensors, or shapes of zeros; the first is made a leaf.
        options: Of the loss.
    """
    leaf, *others = (torch.zeros(x) if isinstance(x, tuple) else x for x in inputs)
    value = loss(leaf.requires_grad_(), *others, **options)
    value.backward()
    assert value == 0
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


def check_empty(loss: Loss, *inputs: Tensor | tuple[int, ...], **options: Any) -> None:
    """Of no rows, samples or graphs the loss is a zero that is connected to the graph."""
    first = inputs[0]
    assert 0 in (first if isinstance(first, tuple) else first.shape)
    check_zero(loss, *inputs, **options)
