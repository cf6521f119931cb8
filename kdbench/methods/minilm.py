"""MiniLM: how the places of a text relate in one layer of attention.

Papers:
    MiniLM: Wang, Wei, Dong, Bao, Yang, Zhou, "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of
        Pre-Trained Transformers", NeurIPS 2020: the KL of the attention of the last layer, and of the relation of its
        values, ``softmax(V V^T / sqrt(d))``, means over heads and places, one weight for both.
    MiniLM2: Wang, Bao, Huang, Dong, Wei, "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing
        Pretrained Transformers", Findings of ACL 2021: the KL of the relations of queries, of keys and of values, a
        third each, whose heads are joined and split anew into relation heads (48 there, of a width of 768).
Deviations: the papers distil on a general corpus without any other loss; here class scores are distilled beside. Places
of padding are left out of all relations; in a decoder a place relates to those before it alone. ``layer`` is the
teacher's layer, for which the second paper takes one below the last of large teachers; the student's is its last.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from kdbench import Context, Heads, KDBenchError, Method, Need, Signals
from kdbench.functional.kd import kd_loss
from kdbench.functional.minilm import relation_heads, relation_loss
from kdbench.functional.tinybert import attention_scores
from kdbench.methods.layers import Layered, check_heads, heads_of, scores_of


class MiniLM(Method):
    """The attention of the student's last layer and the relation of its values follow the teacher's.

    Args:
        layer: Of the teacher, from 1, or from the last, -1.
        temperature: Divides both logits.
    """

    needs: ClassVar[tuple[Need, ...]] = (Layered.LOGITS, *Layered.HEADS)

    def __init__(self, layer: int = -1, temperature: PositiveFloat = 4.0) -> None:
        super().__init__()
        self.layer, self.temperature = layer, temperature

    def pair(self, signals: Signals) -> tuple[Heads, Heads]:
        """Returns the heads of the student's last layer and of the teacher's that it learns from.

        Raises:
            KDBenchError: The teacher has no such layer.
        """
        student, teacher = heads_of(signals)
        if self.layer == 0 or not -len(teacher) <= self.layer <= len(teacher):
            raise KDBenchError(
                f"method.layer={self.layer}: the teacher has {len(teacher)} layers, expected 1 to {len(teacher)}, or "
                "from the last, -1"
            )
        return student[-1], teacher[self.layer - (self.layer > 0)]

    def build(self, probe: Signals) -> None:
        """Checks that there are as many heads.

        Raises:
            KDBenchError: There are not, or no such layer.
        """
        check_heads("MiniLM", [self.pair(probe)])

    def relations(self, student: Heads, teacher: Heads) -> dict[str, Tensor]:
        """Returns the KL of each relation, by term."""
        looks = student.looks()
        (_, _, s_v), (_, _, t_v) = student.parts(), teacher.parts()
        return {
            "attention": relation_loss(scores_of(student), scores_of(teacher), looks),
            "values": relation_loss(attention_scores(s_v, s_v), attention_scores(t_v, t_v), looks),
        }

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``kd`` and a term of each relation."""
        s, t = signals.pair("logits")
        kd = kd_loss(s.rows(), t.rows(), self.temperature, law=s.law, weight=s.row_weight())
        return {"kd": kd, **self.relations(*self.pair(signals))}


class MiniLM2(MiniLM):
    """The relations of queries, keys and values of the student's last layer follow the teacher's.

    Args:
        layer: Of the teacher, from 1, or from the last, -1.
        relation_heads: How many; they divide both widths. None has as many as the teacher has heads.
        temperature: Divides both logits.
    """

    def __init__(
        self, layer: int = -1, relation_heads: PositiveInt | None = None, temperature: PositiveFloat = 4.0
    ) -> None:
        super().__init__(layer, temperature)
        self.relation_heads = relation_heads

    def build(self, probe: Signals) -> None:
        """Checks that the relation heads divide both widths.

        Raises:
            KDBenchError: They do not, or there is no such layer.
        """
        self.relations(*self.pair(probe))

    def relations(self, student: Heads, teacher: Heads) -> dict[str, Tensor]:
        """Returns the KL of each relation, by term."""
        looks, heads = student.looks(), self.relation_heads or teacher.values.shape[2]
        found = {}
        for name, s, t in zip(("queries", "keys", "values"), student.parts(), teacher.parts(), strict=True):
            s, t = relation_heads(s, heads), relation_heads(t, heads)
            found[name] = relation_loss(attention_scores(s, s), attention_scores(t, t), looks)
        return found
