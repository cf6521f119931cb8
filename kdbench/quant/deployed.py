"""What quantisations for deployment share: stages after those of the method, the float student, the count of layers."""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from kdbench.errors import KDBenchError
from kdbench.needs import Stage
from kdbench.plugin import Plugin

#: Modules whose weights could be integers.
LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)
#: Most layers of a kind that a note names.
NAMED = 4


class Deployed(Plugin):
    """A quantisation by torchao: the student trains as the rest of the run says, then in stages of its own.

    The student before these is kept as ``float``.
    """

    def __init__(self) -> None:
        super().__init__()
        if importlib.util.find_spec("torchao") is None:
            raise KDBenchError("this quantisation needs torchao: pip install 'kdbench[quant]'")
        self._float: tuple[nn.Module, ...] = ()  # in a tuple, as it is no part of this plugin
        self._counted = ""

    def own(self) -> tuple[Stage, ...]:
        """Returns the stages on the quantised student."""
        raise NotImplementedError

    def stages(self) -> tuple[Stage, ...]:
        """Returns the default stage, which stands for those of the run's other plugins, and the own ones."""
        return Stage(), *self.own()

    def notes(self) -> tuple[str, ...]:
        """Counts the layers that are integers, and names those that stay in floating point."""
        return (self._counted,) if self._counted else ()

    def keep(self, model: nn.Module) -> None:
        """Keeps a copy of the float student.

        Raises:
            KDBenchError: It has a weight that is not finite.
        """
        for name, parameter in model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise KDBenchError(f"the student's {name} holds values that are not finite: it cannot be quantised")
        self._float = (copy.deepcopy(model),)

    def count(self, bits: int, layers: Collection[str]) -> None:
        """Notes which layers of the student are quantised and which are not."""
        kinds = {n: type(m).__name__ for n, m in self._float[0].named_modules() if isinstance(m, LAYERS)}
        left = {name: kind for name, kind in kinds.items() if name not in layers}
        said = []
        for kind, count in Counter(left.values()).items():
            names = [name for name, own in left.items() if own == kind]
            said.append(f"{count} {kind} ({', '.join(names[:NAMED])}{', …' if count > NAMED else ''})")
        self._counted = f"int{bits}: {len(layers)} of {len(layers) + len(left)} layers"
        self._counted += f"; in float {', '.join(said)}" if said else ""


@contextmanager
def silent() -> Iterator[None]:
    """Keeps what torchao says of torch while it is imported from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
