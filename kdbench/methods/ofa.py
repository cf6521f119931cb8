"""Distillation between architectures of different kinds, in logit space.

Paper: Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
NeurIPS 2023. Equation: ``L = CE + sum over {head, exit branches} of l_gamma`` (``kdbench.functional.ofa``), all
weights one, T = 1. An exit branch at each of the student's stages brings its feature to class scores. The branches are
dropped after training; they can outweigh a small student, and their size is the record's ``added_params``.
Branches as in the released code: a grid gets strided separable convolutions, each doubling the width, until it is as
small as the last stage, then pooling and a linear layer; tokens get patch mergings while their grid is at least twice
7 x 7, transformer blocks (as many as stages follow, at least one), and a linear layer on the class token, or on the
mean where there is none.
Deviations: where the class scores are a map, so are those of an exit: the pooling is left out, and the map brought to
the size of the head's by linear interpolation; where there are class scores of each token (language models), an exit is
a norm and a linear layer on each, as blocks would let it look at tokens that the student does not see; branches end
with the width of the student's last stage (released: the larger of student's and teacher's); torch's default initial
weights; a stage is as deep as its place in the list of ``stages`` says, which ``method.bind.stages`` can shorten.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from kdbench import Context, Feature, Grid, KDBenchError, Logits, Method, Need, Signals, Tokens
from kdbench.functional.categorical import check_categorical
from kdbench.functional.ofa import ofa_loss
from kdbench.functional.pool import resize
from kdbench.methods.blocks import BatchNorm, conv
from kdbench.signals import total

#: Global pooling by the number of spatial axes.
_POOL: dict[int, Any] = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
#: Side of a token grid from which no more patches are merged, and heads of a block.
_SIDE, _HEADS = 7, 4


def separable(width: int, out: int, axes: int) -> nn.Sequential:
    """Two separable convolutions, the first of stride 2."""
    layers: list[nn.Module] = []
    for stride, to in ((2, width), (1, out)):
        layers += [conv(axes, width, width, 3, stride=stride, groups=width), conv(axes, width, to)]
        layers += [BatchNorm(to), nn.ReLU()]
    return nn.Sequential(*layers)


class GridBranch(nn.Sequential):
    """Exit branch of a grid: ``steps`` halvings, or a 1x1 convolution where there are none.

    It gives ``(B, classes)``, or maps ``(B, classes, *space)`` where it is ``dense``.
    """

    def __init__(self, grid: Grid, steps: int, out: int, classes: int, dense: bool) -> None:
        width, axes = grid.values.shape[1], grid.values.dim() - 2
        widths = [width * 2**i for i in range(steps)] + [out]
        body: list[nn.Module] = [separable(*pair, axes) for pair in zip(widths[:-1], widths[1:], strict=True)]
        body = body or [conv(axes, width, out, bias=True)]
        pooled = (_POOL[axes](1), nn.Flatten(), nn.Linear(out, classes))
        super().__init__(*body, *([conv(axes, out, classes, bias=True)] if dense else pooled))


class Merge(nn.Module):
    """Joins 2x2 neighbouring tokens of a grid into one."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.linear = nn.Linear(4 * width, out, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Takes and gives ``(B, H, W, D)``."""
        batch, height, width, depth = tokens.shape
        cells = tokens.reshape(batch, height // 2, 2, width // 2, 2, depth).transpose(2, 3).flatten(3)
        return nn.functional.gelu(self.linear(self.norm(cells)))


class TokenBranch(nn.Module):
    """Exit branch of tokens: patch mergings, ``blocks`` transformer blocks, a linear layer."""

    def __init__(self, tokens: Tokens, blocks: int, out: int, classes: int) -> None:
        super().__init__()
        self.prefix, self.grid = tokens.prefix, tokens.grid or ()
        width, sides, merges = tokens.values.shape[2], self.grid, nn.Sequential()
        while len(sides) == 2 and all(side >= 2 * _SIDE and side % 2 == 0 for side in sides):
            merges.append(Merge(out if merges else width, out))
            sides = tuple(side // 2 for side in sides)
        self.merges = merges
        # Class tokens skip the mergings, so they and unmerged tokens may still have another width.
        straight = bool(self.prefix) or not merges
        self.widen = nn.Linear(width, out) if straight and width != out else nn.Identity()
        heads = math.gcd(out, _HEADS)
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(out, heads, 4 * out, 0.0, "gelu", batch_first=True, norm_first=True)
                for _ in range(blocks)
            )
        )
        self.linear = nn.Linear(out, classes)

    def forward(self, values: Tensor) -> Tensor:
        """Takes ``(B, L, D)`` and gives ``(B, classes)``."""
        if len(self.merges):
            merged = self.merges(values[:, self.prefix :].unflatten(1, self.grid)).flatten(1, 2)
            tokens = torch.cat([self.widen(values[:, : self.prefix]), merged], dim=1) if self.prefix else merged
        else:
            tokens = self.widen(values)
        tokens = self.blocks(tokens)
        return self.linear(tokens[:, 0] if self.prefix else tokens.mean(dim=1))


class EachTokenBranch(nn.Sequential):
    """Exit branch of tokens that have class scores each: ``(B, L, D)`` to ``(B, L, classes)``."""

    def __init__(self, tokens: Tokens, classes: int) -> None:
        width = tokens.values.shape[2]
        super().__init__(nn.LayerNorm(width), nn.Linear(width, classes))


class OFA(Method):
    """Teaches the student's head and an exit branch at each of its stages from the teacher's class scores.

    Args:
        gamma: Exponent of the enhanced target at the head.
        gamma_branch: The same at the branches.
    """

    needs: ClassVar[tuple[Need, ...]] = (
        Need("stages", (Grid, Tokens), roles=("student",), many=True),
        Need("logits", Logits),
    )
    requires: ClassVar[frozenset[str]] = frozenset({"single_label"})

    def __init__(self, gamma: PositiveFloat = 1.5, gamma_branch: PositiveFloat = 1.5) -> None:
        super().__init__()
        self.gamma = gamma
        self.gamma_branch = gamma_branch

    def build(self, probe: Signals) -> None:
        """Makes the branches."""
        stages, (logits, _) = probe.features("stages", "student"), probe.pair("logits")
        self.branches = nn.ModuleList(make_branch(stages, i, logits) for i in range(len(stages)))

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``ofa`` of the head and ``ofa_branches``, the sum over the branches."""
        student, teacher = signals.pair("logits")
        check_categorical(student.law, "OFA")
        rows, labels, weight = teacher.rows(), student.labels(), student.row_weight()
        terms = {"ofa": ofa_loss(student.rows(), rows, labels, self.gamma, weight=weight)}
        if ctx.wants("ofa_branches"):
            stages = signals.features("stages", "student")
            exits = [branch(s.values) for branch, s in zip(self.branches, stages, strict=True)]
            size = student.values.shape[2:]
            exits = [
                scores if scores.dim() == 2 or scores.shape[2:] == size else resize(scores, size) for scores in exits
            ]
            # Each exit has the mask of the head.
            losses = [
                ofa_loss(replace(student, values=scores).rows(), rows, labels, self.gamma_branch, weight=weight)
                for scores in exits
            ]
            terms["ofa_branches"] = total(losses)
        return terms


def make_branch(stages: list[Feature], index: int, logits: Logits) -> nn.Module:
    """Makes the exit branch of one of the student's stages, for class scores of samples, of positions or of tokens."""
    stage, last = stages[index], stages[-1]
    classes, dense = logits.values.shape[logits.class_dim], logits.values.dim() > 2
    by_token = logits.values.dim() == 3 and logits.values.movedim(logits.class_dim, -1).shape[:2]
    if isinstance(stage, Tokens) and by_token == stage.values.shape[:2]:
        return EachTokenBranch(stage, classes)
    if dense and isinstance(stage, Tokens):
        raise KDBenchError("ofa: an exit of tokens gives a class a sample, not a map: set method.bind.stages to grids")
    out = last.values.shape[1 if isinstance(last, Grid) else 2]
    if isinstance(stage, Tokens):
        return TokenBranch(stage, max(len(stages) - 1 - index, 1), out, classes)
    assert isinstance(stage, Grid)
    steps = 0
    if isinstance(last, Grid):
        steps = round(math.log2(max(1, stage.values.shape[-1] / last.values.shape[-1])))
    return GridBranch(stage, steps, out, classes, dense)
