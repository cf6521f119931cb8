"""How tensors lie in memory: image-like ones with their channels last, which convolutions are faster on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kdbench.task import Batch


def channels_last(module: nn.Module) -> None:
    """Lays the 4-D parameters and buffers of ``module`` out channel last, in place."""
    tensors: Iterable[Tensor] = (*module.parameters(), *module.buffers())
    for tensor in tensors:
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def laid_out(batch: Batch) -> Batch:
    """Lays inputs that are one 4-D tensor out channel last."""
    inputs = batch.inputs
    if isinstance(inputs, Tensor) and inputs.dim() == 4:
        batch.inputs = inputs.contiguous(memory_format=torch.channels_last)
    return batch
