"""Token-level relationship graph.

Paper: Zhang, Liu, He, "Knowledge Distillation via Token-level Relationship Graph", 2023 (arXiv 2306.12442).
Equation: ``L = L_logit + a L_inner + b L_local + c L_global`` (``kdbench.functional.trg``), L_logit the supervised loss
and softened class scores. No code was released and no constant (k, sigma, number of tokens, schedule, weights) could be
read: those in the YAML file are ours.
Deviations: sums over tokens are means; tokens of L_local have unit length, so that one sigma serves features of any
width; L_local has the teacher's neighbours in both graphs and a temperature, without which its softmax is flat; a patch
of a grid is its mean, not its cells one after another. The temperature of L_global falls linearly over training.
Student and teacher are averaged to a common grid: the smaller size along each axis, at most ``grid``.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from kdbench import Context, Grid, KDBenchError, Logits, Method, Need, Signals, Tokens
from kdbench.functional.kd import kd_loss
from kdbench.functional.numerics import unit, upcast
from kdbench.functional.pool import average_pool
from kdbench.functional.trg import token_context_loss, token_global_loss, token_local_loss


class TRG(Method):
    """Teaches which tokens of a batch are alike, within an image and across images.

    Args:
        grid: Cells along an axis of the common grid, at most.
        tokens: Tokens that each image gives to the graph, drawn at random.
        neighbours: k of the graph.
        sigma: Width of its kernel, in squared units of tokens of unit length.
        temperature: Divides both logits.
        temperature_local: Divides the graph's edges.
        temperature_start: Of L_global when training starts.
        temperature_end: Of L_global when it ends.
    """

    fidelity: ClassVar[Literal["equations", "approximate"]] = "approximate"
    needs: ClassVar[tuple[Need, ...]] = (Need("tokens", (Tokens, Grid)), Need("logits", Logits))
    over_batch: ClassVar[bool] = True

    def __init__(
        self,
        grid: PositiveInt = 8,
        tokens: PositiveInt = 4,
        neighbours: PositiveInt = 8,
        sigma: PositiveFloat = 0.5,
        temperature: PositiveFloat = 4.0,
        temperature_local: PositiveFloat = 0.1,
        temperature_start: PositiveFloat = 0.5,
        temperature_end: PositiveFloat = 0.1,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.tokens = tokens
        self.neighbours = neighbours
        self.sigma = sigma
        self.temperature = temperature
        self.temperature_local = temperature_local
        self.temperature_global = (temperature_start, temperature_end)

    def build(self, probe: Signals) -> None:
        """Makes the projection of the student's tokens."""
        student, teacher = common(*probe.pair("tokens"), self.grid)
        self.project = nn.Linear(student.shape[2], teacher.shape[2])

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``kd``, ``inner``, ``local`` and ``global``."""
        s, t = signals.pair("logits")
        student, teacher = common(*signals.pair("tokens"), self.grid)
        draw = torch.rand(student.shape[:2], generator=ctx.generator("trg"))
        chosen = draw.argsort(dim=1)[:, : self.tokens].to(student.device)
        rows = torch.arange(len(chosen), device=chosen.device)[:, None]
        of_student, of_teacher = student[rows, chosen].flatten(0, 1), teacher[rows, chosen].flatten(0, 1)
        start, end = self.temperature_global
        return {
            "kd": kd_loss(s.rows(), t.rows(), self.temperature, law=s.law, weight=s.row_weight()),
            "inner": token_context_loss(student, teacher),
            "local": token_local_loss(
                unit(of_student),
                unit(of_teacher),
                self.neighbours,
                self.sigma,
                self.temperature_local,
            ),
            "global": token_global_loss(
                self.project(of_student), of_teacher, start + (end - start) * ctx.state.progress
            ),
        }


def common(student: Tokens | Grid, teacher: Tokens | Grid, limit: int) -> tuple[Tensor, Tensor]:
    """Returns both sides' tokens (B, L, D) at the same places, in float32 or wider.

    Args:
        student: A grid, or tokens whose prefix is left out.
        teacher: The same.
        limit: Cells along an axis, at most. Tokens without a grid stay as they are.
    """
    first, second = (f.as_tokens() if isinstance(f, Grid) else f for f in (student, teacher))
    if first.grid is None or second.grid is None or len(first.grid) != len(second.grid):
        values = [upcast(f.values[:, f.prefix :]) for f in (first, second)]
        if values[0].shape[1] != values[1].shape[1]:
            raise KDBenchError(
                f"TRG: found {values[0].shape[1]} tokens of the student and {values[1].shape[1]} of the teacher, "
                "expected two grids or as many of both: bind features that have a grid (method.bind.tokens)"
            )
        return values[0], values[1]
    size = tuple(min(a, b, limit) for a, b in zip(first.grid, second.grid, strict=True))
    return pooled(first, size), pooled(second, size)


def pooled(tokens: Tokens, size: tuple[int, ...]) -> Tensor:
    """Averages tokens that lie on a grid to one of another size."""
    values = upcast(tokens.values[:, tokens.prefix :])
    if tokens.grid == size:
        return values
    assert tokens.grid is not None
    return average_pool(values.transpose(1, 2).unflatten(2, tokens.grid), size).flatten(2).transpose(1, 2)
