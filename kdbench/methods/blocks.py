"""What several methods put between a student's grid and a teacher's, or ask of it; with one to three spatial axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdbench import Grid, KDBenchError, Signals
from kdbench.functional.kd import kd_loss
from kdbench.functional.numerics import upcast
from kdbench.functional.pool import global_average

_CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_DECONV: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}

#: The largest unpadded kernel of :func:`conv_regressor`: as wide as the images it was made for.
LARGEST_KERNEL = 32

#: Share of the logits' norm by which those of the pooled map may differ: low precision, but no other map.
TOLERANCE = 0.02


def conv(
    axes: int,
    inputs: int,
    outputs: int,
    kernel: int = 1,
    bias: bool = False,
    stride: int = 1,
    groups: int = 1,
    padding: int | None = None,
) -> nn.Module:
    """Makes a convolution over ``axes`` spatial axes that keeps their size (odd kernels), or divides it by a stride."""
    padding = kernel // 2 if padding is None else padding
    return _CONV[axes](inputs, outputs, kernel, stride, padding, groups=groups, bias=bias)


def deconv(axes: int, inputs: int, outputs: int, kernel: int = 1) -> nn.Module:
    """Makes a transposed convolution over ``axes`` spatial axes that keeps their size (odd kernels)."""
    return _DECONV[axes](inputs, outputs, kernel, padding=kernel // 2)


class BatchNorm(_BatchNorm):
    """Batch normalisation over any number of spatial axes.

    A batch with at most one value a channel, which has no variance, is normalised by the running statistics.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """Normalises (B, C, *space)."""
        if input.numel() > self.num_features:
            return super().forward(input)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def connector(student: Tensor, teacher: Tensor) -> nn.Sequential:
    """Makes a 1x1 convolution with batch normalisation from the student's width to the teacher's (Heo et al.)."""
    width = teacher.shape[1]
    kernel = conv(student.dim() - 2, student.shape[1], width)
    nn.init.normal_(kernel.get_parameter("weight"), std=(2 / width) ** 0.5)
    return nn.Sequential(kernel, BatchNorm(width))


def conv_regressor(student: Tensor, teacher: Tensor, relu: bool = True) -> nn.Sequential:
    """Makes the convolutional regressor of RepDistiller: a convolution, batch normalisation and, where asked, a ReLU.

    The convolution goes from the student's width and size to the teacher's. By axis: equal sizes, kernel 1; the student
    twice as large, kernel 3 at stride 2; otherwise larger, kernel ``1 + student - teacher`` without padding; half as
    large, a transposed kernel 4 at stride 2. Where no such convolution serves all axes, or its kernel exceeds
    :data:`LARGEST_KERNEL`, it is a kernel of 3 that keeps the size, as in SimKD's tables, and the grids want pooling.

    Args:
        student: (B, C_s, *space_s), one to three spatial axes.
        teacher: (B, C_t, *space_t), as many.
        relu: Whether a ReLU follows, for teachers that were tapped behind one.
    """
    axes, widths = student.dim() - 2, (student.shape[1], teacher.shape[1])
    sizes = list(zip(student.shape[2:], teacher.shape[2:], strict=True))
    if all(t <= s and (s == 2 * t or s - t < LARGEST_KERNEL) for s, t in sizes):
        per_axis = [(3, 2, 1) if s == 2 * t else (1 + s - t, 1, 0) for s, t in sizes]
        kernel = _CONV[axes](*widths, *zip(*per_axis, strict=True))
    elif all(t in (s, 2 * s) for s, t in sizes):
        per_axis = [(4, 2, 1) if t == 2 * s else (1, 1, 0) for s, t in sizes]
        kernel = _DECONV[axes](*widths, *zip(*per_axis, strict=True))
    else:
        kernel = conv(axes, *widths, kernel=3, bias=True)
    return nn.Sequential(kernel, BatchNorm(teacher.shape[1]), *([nn.ReLU()] if relu else []))


def levels(signals: Signals, need: str, at_least: int = 1) -> list[tuple[Any, Any]]:
    """Returns the features of a need with ``many`` as pairs of student and teacher, shallow to deep.

    Raises:
        KDBenchError: The two give different numbers of features, or fewer than ``at_least``.
    """
    student, teacher = signals.features(need, "student"), signals.features(need, "teacher")
    if len(student) != len(teacher):
        raise KDBenchError(
            f"{need!r} gives {len(student)} features of the student and {len(teacher)} of the teacher, "
            f"expected as many: choose them by method.bind.{need}=[…]"
        )
    if len(student) < at_least:
        raise KDBenchError(
            f"{need!r} gives {len(student)} feature, expected at least {at_least}: name more taps in the pair"
        )
    return list(zip(student, teacher, strict=True))


def projectors(pairs: Sequence[tuple[Any, Any]], project: bool) -> nn.ModuleList:
    """Makes a 1x1 convolution to the teacher's width for each level whose widths differ.

    Raises:
        KDBenchError: Widths differ and ``project`` is off.
    """
    made: list[nn.Module] = []
    for level, (student, teacher) in enumerate(pairs):
        width, wanted = student.values.shape[1], teacher.values.shape[1]
        if width != wanted and not project:
            raise KDBenchError(
                f"level {level} is {width} wide in the student and {wanted} in the teacher, expected equal widths: "
                "set method.project=true or choose a pair of equal widths"
            )
        made.append(nn.Identity() if width == wanted else conv(student.values.dim() - 2, width, wanted, bias=True))
    return nn.ModuleList(made)


def check_pooled(probe: Signals, need: str, role: str) -> None:
    """Checks that a role's classifier reads the global average of the grid that is bound to a need.

    Raises:
        KDBenchError: It reads something else, so that what it says of the grid means nothing.
    """
    grid, logits = (probe.feature(name, role).values for name in (need, "logits"))
    classifier = probe.part("classifier", role)
    weight, bias = upcast(classifier.get_parameter("weight").flatten(1)), getattr(classifier, "bias", None)
    found = f"the {role}'s classifier reads {weight.shape[1]} channels and its map {probe.bindings.get(need, need)!r}"
    fix = f"expected the map right before global average pooling: set method.bind.{need}"
    if weight.shape[1] != grid.shape[1]:
        raise KDBenchError(f"{found} has {grid.shape[1]}, {fix}")
    answer = F.linear(global_average(upcast(grid)), weight, None if bias is None else upcast(bias))
    said = upcast(logits).flatten(1)
    if answer.shape != said.shape or (answer - said).norm() > TOLERANCE * said.norm():
        raise KDBenchError(f"{found}, averaged, does not give its logits, {fix}")


def label_map(signals: Signals, size: Sequence[int]) -> Tensor:
    """Returns the class of each cell of a grid of ``size``, that of the inputs in its middle (B, *size).

    It is -1 where the class is unknown or does not count. For plugins that require ``dense_label``.
    """
    batch = signals.batch()
    labels: Tensor = signals.cast.task.ops()["dense_label"](batch)
    if batch.supervised is not None:
        labels = torch.where(batch.supervised.view(-1, *(1 for _ in labels.shape[1:])), labels, -1)
    for axis, cells in enumerate(size, start=1):
        places = (2 * torch.arange(cells, device=labels.device) + 1) * labels.shape[axis] // (2 * cells)
        labels = labels.index_select(axis, places)
    return labels


def pixel_kd(signals: Signals, need: str = "logits") -> Tensor:
    """Returns the pixel-wise term that several methods of dense prediction add: KL of the rows, temperature 1."""
    student, teacher = signals.pair(need)
    return kd_loss(student.rows(), teacher.rows(), 1.0, law=student.law, weight=student.row_weight())


def true_boxes(signals: Signals) -> tuple[Tensor, Tensor]:
    """Returns the true boxes ``(B, M, 4)`` in input units and their classes ``(B, M)``, -1 in rows of no box.

    For plugins that require ``boxes``.
    """
    found: tuple[Tensor, Tensor] = signals.cast.task.ops()["boxes"](signals.batch())
    return found


def strides(grid: Grid, size: Sequence[int]) -> list[float]:
    """Returns the input units per cell of a grid that has been brought to ``size``, along each axis.

    Raises:
        KDBenchError: The task does not say where its cells are.
    """
    if grid.stride is None:
        raise KDBenchError(f"a {grid.signature()} comes without a stride: where true boxes lie in it is not known")
    return [s * n / m for s, n, m in zip(grid.stride, grid.values.shape[2:], size, strict=True)]
