"""A stand-in for mmcv's compiled operators, where mmcv was installed as pure Python."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor
from torchvision.ops import nms, sigmoid_focal_loss

from kdbench.errors import KDBenchError

NAME = "mmcv._ext"


class Operators(ModuleType):
    """Has ``nms`` of torchvision; every other operator says what is missing once it is called."""

    def nms(self, boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
        """Returns the indices of the boxes that are kept, as mmcv's operator without an offset."""
        if offset:
            raise KDBenchError("NMS with offset=1 is an operator of compiled mmcv: make setup-mmcv-ops")
        return nms(boxes, scores, iou_threshold)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def absent(*_: Any, **__: Any) -> Any:
            raise KDBenchError(f"this detector needs mmcv's compiled operator {name!r}: make setup-mmcv-ops")

        return absent


def compiled() -> bool:
    """Says whether mmcv came with its operators."""
    found = sys.modules.get(NAME)
    return importlib.util.find_spec(NAME) is not None if found is None else not isinstance(found, Operators)


def stand_in() -> None:
    """Puts the stand-in where mmcv looks for its operators, unless it has them."""
    if not compiled() and NAME not in sys.modules:
        sys.modules[NAME] = Operators(NAME)


def redirect() -> None:
    """Has mmdet's focal loss on an accelerator use torchvision's; on a processor it is plain PyTorch anyway."""
    if compiled():
        return
    import mmdet.models.losses.focal_loss as losses

    def focal(
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        gamma: float = 2.0,
        alpha: float = 0.25,
        reduction: str = "mean",
        avg_factor: float | None = None,
    ) -> Any:
        classes = pred.size(1)
        hot = target if target.dim() == pred.dim() else _one_hot(target, classes)
        loss = sigmoid_focal_loss(pred, hot.to(pred), alpha=alpha, gamma=gamma, reduction="none")
        if weight is not None and weight.shape != loss.shape:
            weight = weight.view(-1, 1) if weight.size(0) == loss.size(0) else weight.view(loss.size(0), -1)
        return losses.weight_reduce_loss(loss, weight, reduction, avg_factor)

    losses.sigmoid_focal_loss = focal


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    """Returns the classes as ``(N, classes)``; a label past the last one is background, all zeros."""
    hot: Tensor = labels.new_zeros(len(labels), classes + 1).scatter_(1, labels[:, None], 1)[:, :classes]
    return hot
