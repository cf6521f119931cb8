"""What methods over the layers of two transformers share: which layer learns from which, and what stands for a text."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

from torch import Tensor, nn

from kdbench import Heads, KDBenchError, Layer, Logits, Need, Signals
from kdbench.functional.numerics import upcast
from kdbench.functional.tinybert import attention_scores

#: ``uniform``: layers at the same share of the depth; ``last``: the teacher's last ones.
Map: TypeAlias = Literal["uniform", "last"]


class Layered:
    """Needs of a method over layers.

    Attributes:
        LOGITS: Class scores of both.
        LAYERS: All layers of both, the embeddings first.
        HEADS: Heads of the attention in all layers of both.
    """

    LOGITS: ClassVar[Need] = Need("logits", Logits)
    LAYERS: ClassVar[tuple[Need, Need]] = (
        Need("layers", Layer, ("student",), many=True),
        Need("taught_layers", Layer, ("teacher",), many=True),
    )
    HEADS: ClassVar[tuple[Need, Need]] = (
        Need("heads", Heads, ("student",), many=True),
        Need("taught_heads", Heads, ("teacher",), many=True),
    )


def layer_map(student: int, teacher: int, how: Map) -> list[int]:
    """Returns for each layer of a student, from 1, the number of the teacher's layer that it learns from.

    Args:
        student: Layers of the student.
        teacher: Of the teacher.
        how: Which.
    """
    if how == "last":
        return [max(1, teacher - student + layer) for layer in range(1, student + 1)]
    return [-(-layer * teacher // student) for layer in range(1, student + 1)]


def layers_of(signals: Signals) -> tuple[list[Layer], list[Layer]]:
    """Returns all layers of the student and of the teacher, the embeddings first."""
    return (
        [layer for layer in signals.features("layers", "student") if isinstance(layer, Layer)],
        [layer for layer in signals.features("taught_layers", "teacher") if isinstance(layer, Layer)],
    )


def heads_of(signals: Signals) -> tuple[list[Heads], list[Heads]]:
    """Returns the heads of all layers of the student and of the teacher."""
    return (
        [layer for layer in signals.features("heads", "student") if isinstance(layer, Heads)],
        [layer for layer in signals.features("taught_heads", "teacher") if isinstance(layer, Heads)],
    )


def mapped(signals: Signals, how: Map, final: bool = True) -> list[tuple[Layer, Layer]]:
    """Returns the layers of the student, each with that of the teacher that it learns from; no embeddings.

    Args:
        signals: Bound to the needs ``LAYERS``.
        how: Which learns from which.
        final: Whether the student's last layer is among them; it is where it has no other.
    """
    student, teacher = (found[1:] for found in layers_of(signals))
    pairs = [
        (layer, teacher[number - 1])
        for layer, number in zip(student, layer_map(len(student), len(teacher), how), strict=True)
    ]
    return pairs if final or len(pairs) == 1 else pairs[:-1]


def mapped_heads(signals: Signals, how: Map) -> list[tuple[Heads, Heads]]:
    """Returns the heads of each layer of the student with those of the teacher's layer that it learns from."""
    student, teacher = heads_of(signals)
    numbers = layer_map(len(student), len(teacher), how)
    return [(layer, teacher[number - 1]) for layer, number in zip(student, numbers, strict=True)]


def check_heads(method: str, pairs: list[tuple[Heads, Heads]]) -> None:
    """Checks that student and teacher have as many heads.

    Raises:
        KDBenchError: They have not.
    """
    for student, teacher in pairs:
        found = student.values.shape[2], teacher.values.shape[2]
        if found[0] != found[1]:
            raise KDBenchError(
                f"{method}: found {found[0]} heads of the student and {found[1]} of the teacher, expected as many: set "
                "pair.student.architecture.heads, or take minilm2, which splits them anew"
            )


def scores_of(heads: Heads) -> Tensor:
    """Returns the scores of attention before the softmax, ``(B, H, L, L)``."""
    queries, keys, _ = heads.parts()
    return attention_scores(queries, keys)


def projection(student: Tensor, teacher: Tensor) -> nn.Module:
    """Makes what brings the student's hidden states to the teacher's width, nothing where they are of it."""
    widths = student.shape[-1], teacher.shape[-1]
    return nn.Identity() if widths[0] == widths[1] else nn.Linear(*widths)


def stands_for(layer: Layer) -> Tensor:
    """Returns what stands for a sample, ``(B, D)``: its first place, or where none does, the mean of all that count."""
    if layer.prefix:
        return layer.values[:, 0]
    if layer.mask is None:
        return layer.values.mean(1)
    there = layer.mask[..., None].to(upcast(layer.values).dtype)
    return (layer.values * there).sum(1) / there.sum(1).clamp(min=1)
