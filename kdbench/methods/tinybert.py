"""TinyBERT: embeddings, hidden states and attention of a transformer, then its class scores.

Paper: Jiao, Yin, Shang, Jiang, Chen, Li, Wang, Liu, "TinyBERT: Distilling BERT for Natural Language Understanding",
Findings of EMNLP 2020. Equations: mean squared error of the attention scores before the softmax (eq. 7), of ``W h_S``
and the hidden states (eq. 8) and of the embeddings (eq. 9), over layers at the same share of the depth; then soft
cross-entropy of the class scores at temperature 1 (eq. 10).
Deviations: what the paper does in two runs on a task, layers and then class scores, is two stages here, of one run's
epochs together (20 and 3 epochs in the paper); there is no distillation on a general corpus and no augmented data.
Pairs of places with padding do not count, while in the authors' code (huawei-noah, TinyBERT) their scores are zero.
``shared`` is one W for all layers as in that code; the paper has one for the embeddings of its own. The soft
cross-entropy of the code is also a mean over classes; ours is the KL, which differs by a constant and that factor.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from kdbench import Context, Method, Need, Signals, Stage
from kdbench.functional.fitnet import hint_loss
from kdbench.functional.kd import kd_loss
from kdbench.functional.tinybert import attention_score_loss
from kdbench.methods.layers import Layered, check_heads, layers_of, mapped, mapped_heads, scores_of
from kdbench.signals import total

LAYERS = ("embedding", "hidden", "attention")


class TinyBERT(Method):
    """First the student's layers follow the teacher's, then its class scores do.

    Args:
        transfer: Share of training that is of layers.
        shared: Whether one projection serves all layers, or the embedding has its own.
        temperature: Divides both logits.
    """

    needs: ClassVar[tuple[Need, ...]] = (Layered.LOGITS, *Layered.LAYERS, *Layered.HEADS)

    def __init__(
        self,
        transfer: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        shared: bool = True,
        temperature: PositiveFloat = 1.0,
    ) -> None:
        super().__init__()
        self.transfer, self.shared, self.temperature = transfer, shared, temperature

    def stages(self) -> tuple[Stage, ...]:
        """Returns that of layers and that of class scores."""
        return (
            Stage("layers", self.transfer, terms=LAYERS, constant=True),
            Stage("scores", 1 - self.transfer, terms=("task", "kd"), trains=("student",)),
        )

    def build(self, probe: Signals) -> None:
        """Makes the projections.

        Raises:
            KDBenchError: Student and teacher have other numbers of heads.
        """
        check_heads("TinyBERT", mapped_heads(probe, "uniform"))
        student, teacher = (found[0].values.shape[-1] for found in layers_of(probe))
        self.project = nn.Linear(student, teacher)
        self.embed = self.project if self.shared else nn.Linear(student, teacher)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``embedding``, ``hidden`` and ``attention``, each a sum over layers, or ``kd``."""
        terms = {}
        if ctx.wants("kd"):
            s, t = signals.pair("logits")
            terms["kd"] = kd_loss(s.rows(), t.rows(), self.temperature, law=s.law, weight=s.row_weight())
        if not any(map(ctx.wants, LAYERS)):
            return terms
        student, teacher = (found[0].rows() for found in layers_of(signals))
        layers, attention = mapped(signals, "uniform"), mapped_heads(signals, "uniform")
        terms["embedding"] = hint_loss(self.embed(student), teacher)
        terms["hidden"] = total(hint_loss(self.project(s.rows()), t.rows()) for s, t in layers)
        terms["attention"] = total(attention_score_loss(scores_of(s), scores_of(t), s.looks()) for s, t in attention)
        return terms
