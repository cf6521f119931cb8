"""What the losses for softmax heads share: the check of the head, and the classes that are not the true one."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.features import Law


def check_categorical(law: Law, what: str) -> None:
    """Raises ``KDBenchError`` where a loss on softmax distributions meets a sigmoid head."""
    if law != "categorical":
        raise KDBenchError(f"{what} compares softmax distributions: found law={law!r}, expected 'categorical'; use kd")


def non_target(logits: Tensor, target: Tensor) -> Tensor:
    """Returns the scores of all classes but the true one, in their order.

    Args:
        logits: (N, C), C >= 2.
        target: true classes (N,), in 0..C-1.

    Returns:
        (N, C - 1).

    Example:
        >>> non_target(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.tensor([0, 1]))
        tensor([[2., 3.],
                [4., 6.]])
    """
    if logits.shape[1] < 2:
        raise KDBenchError(f"found {logits.shape[1]} class, expected at least 2: no class but the true one is left")
    column = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, column + (column >= target[:, None]))
