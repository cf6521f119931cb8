"""What the processes of one training exchange: gradients, buffers, a check that they hold the same weights.

A batch is shared out sample by sample: its sample ``i`` is with process ``i % size``. Every process has a loss whose
*mean over processes* is that of the whole batch, so gradients are averaged before a step. A mean over rows is such a
loss, because it divides by what all processes have (:func:`kdbench.base.collectives.normalizer`). One that relates rows
to each other needs them all (:mod:`kdbench.roles.gathering`). Without a group of processes nothing is exchanged.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn

from kdbench.base.collectives import Gather, average, share
from kdbench.errors import KDBenchError

# ---- gradients ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Averages the gradients of parameters over the processes, in place.

    Which of them have one must not depend on the data: a term of no rows is a zero on the graph.
    """
    if share()[1] > 1:
        grads = [p.grad for p in parameters if p.grad is not None]
        for grad, mean in zip(grads, average(grads), strict=True):
            grad.copy_(mean)


def check_same(parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Checks that all processes hold the same weights.

    Raises:
        KDBenchError: They do not.
    """
    named = dict(parameters)
    if share()[1] == 1 or not named:
        return
    with torch.no_grad():
        sums = Gather.apply(torch.stack([p.double().sum() for p in named.values()]))
    apart = (sums != sums[:1]).any(0) & sums.isfinite().all(0)
    if bool(apart.any()):
        name = list(named)[int(apart.nonzero()[0])]
        raise KDBenchError(f"{name} starts from other values in each process: it must depend on the seed alone")


@torch.no_grad()
def share_buffers(module: nn.Module) -> None:
    """Gives the buffers of ``module`` the values of the first process."""
    if share()[1] > 1:
        for buffer in module.buffers():
            value = buffer.contiguous()
            dist.broadcast(value, 0)
            buffer.copy_(value)
