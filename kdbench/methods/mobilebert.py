"""MobileBERT: feature maps and attention, layer after layer, then class scores.

Paper: Sun, Yu, Song, Liu, Yang, Zhou, "MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices",
ACL 2020. Equations: feature map transfer, the mean squared error of the hidden states of a layer, and attention
transfer, the KL of its attention by head; progressive knowledge transfer trains one layer after the other so, and then
the whole.
Deviations: a learned projection stands where widths differ, which the paper's bottlenecks exclude. Layers at the same
share of the depth are compared, as the paper's networks have as many. ``progressive`` compares one layer more in each
of as many equal shares of the first stage, the mean over those so far: all below train on, where the paper freezes them
or trains them slowly. ``faithful=code`` has the feature maps of the trainer in TensorFlow's model garden (its factors
are set by the user; here 1 each), whose attention term differs from the KL by a constant. Embeddings are not copied.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from kdbench import Context, Method, Need, Signals, Stage
from kdbench.functional.kd import kd_loss
from kdbench.functional.minilm import relation_loss
from kdbench.functional.mobilebert import feature_map_loss
from kdbench.functional.numerics import Faithful
from kdbench.methods.layers import Layered, check_heads, mapped, mapped_heads, projection, scores_of
from kdbench.signals import total


class MobileBERT(Method):
    """First the student's layers follow the teacher's, one after another, then its class scores do.

    Args:
        transfer: Share of training that is of layers.
        progressive: Whether they come in one after another, or all are compared from the start.
        faithful: ``paper``, or ``code``: feature maps compared apart from their mean and variance, and these.
        temperature: Divides both logits.
    """

    needs: ClassVar[tuple[Need, ...]] = (Layered.LOGITS, *Layered.LAYERS, *Layered.HEADS)

    def __init__(
        self,
        transfer: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        progressive: bool = True,
        faithful: Faithful = "paper",
        temperature: PositiveFloat = 1.0,
    ) -> None:
        super().__init__()
        self.transfer, self.progressive = transfer, progressive
        self.faithful, self.temperature = faithful, temperature

    def stages(self) -> tuple[Stage, ...]:
        """Returns that of layers and that of class scores."""
        return (
            Stage("layers", self.transfer, terms=("features", "attention")),
            Stage("scores", 1 - self.transfer, terms=("task", "kd"), trains=("student",)),
        )

    def build(self, probe: Signals) -> None:
        """Makes a projection for each layer, where widths differ.

        Raises:
            KDBenchError: Student and teacher have other numbers of heads.
        """
        check_heads("MobileBERT", mapped_heads(probe, "uniform"))
        self.project = nn.ModuleList(projection(s.values, t.values) for s, t in mapped(probe, "uniform"))

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``features`` and ``attention``, each a mean over layers, or ``kd``."""
        terms = {}
        if ctx.wants("kd"):
            s, t = signals.pair("logits")
            terms["kd"] = kd_loss(s.rows(), t.rows(), self.temperature, law=s.law, weight=s.row_weight())
        if not (ctx.wants("features") or ctx.wants("attention")):
            return terms
        layers, attention = mapped(signals, "uniform"), mapped_heads(signals, "uniform")
        # Layers whose turn has not come have no weight, but are on the graph: what trains is the same at every step.
        upto = min(len(layers), 1 + int(ctx.state.progress * len(layers))) if self.progressive else len(layers)
        shares = [float(layer < upto) / upto for layer in range(len(layers))]
        features = [
            share * feature_map_loss(project(s.rows()), t.rows(), faithful=self.faithful)
            for share, (s, t), project in zip(shares, layers, self.project, strict=True)
        ]
        looks = [
            share * relation_loss(scores_of(s), scores_of(t), s.looks())
            for share, (s, t) in zip(shares, attention, strict=True)
        ]
        return {**terms, "features": total(features), "attention": total(looks)}
