"""Layers and heads of two transformers made by hand: texts of five places, the last of some of them padding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from kdbench.base.instantiate import locate
from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Feature, Heads, Layer, Logits
from kdbench.plugin import Plugin
from kdbench.signals import total
from tasks.text.classes import TextClassification
from tests.methods.harness import Bench, knobs, normal, yaml
from tests.toy import Toy

LENGTH, CLASSES = 5, 4
LAYERS = ("layers", "taught_layers")
HEADS = ("heads", "taught_heads")


def mask(batch: int) -> torch.Tensor:
    """Which places of the texts are words: all but the last two of every other text."""
    there = torch.ones(batch, LENGTH, dtype=torch.bool)
    there[::2, -2:] = False
    return there


def side(
    role: str, batch: int, layers: int, width: int, prefix: int, heads: int, dtype: torch.dtype = torch.float32
) -> dict[str, Feature]:
    """Class scores, embedding and layers, and the heads of these."""
    there = mask(batch)
    found: dict[str, Feature] = {"logits": Logits((3 * normal(batch, CLASSES, name=f"{role} logits")).to(dtype))}
    for layer in range(layers + 1):
        values = normal(batch, LENGTH, width, name=f"{role} {layer}").to(dtype)
        found[f"layer{layer}"] = Layer(values, prefix, there)
    for layer in range(1, layers + 1):
        values = normal(batch, 3, heads, LENGTH, width // heads, name=f"{role} heads {layer}").to(dtype)
        found[f"heads{layer}"] = Heads(values, there, causal=not prefix)
    return found


def bench(
    name: str,
    batch: int = 3,
    dtype: torch.dtype = torch.float32,
    layers: tuple[int, int] = (2, 4),
    widths: tuple[int, int] = (4, 8),
    prefix: int = 1,
    heads: tuple[int, int] = (2, 2),
    reads: tuple[str, ...] = (*LAYERS, *HEADS),
    **options: Any,
) -> Bench:
    """A method bound to all layers that it reads."""
    given = [
        side(role, batch, count, width, prefix, split, dtype)
        for role, count, width, split in zip(("student", "teacher"), layers, widths, heads, strict=True)
    ]
    bindings: dict[str, str | list[str]] = {"logits": "logits"}
    kept = []
    for features, layer, head in zip(given, LAYERS, HEADS, strict=True):
        for need, start in ((layer, "layer"), (head, "heads")):
            names = [n for n in features if n.startswith(start)]
            if need in reads:
                bindings[need] = names
            else:
                features = {n: f for n, f in features.items() if n not in names}
        kept.append(features)
    return Bench(name, kept[0], kept[1], bindings, **options)


class LayeredInvariants:
    """What holds of every method over layers, as tests: a test class inherits them.

    Attributes:
        name: As in ``method=``.
        reads: Needs beside the class scores.
        reached: Beginnings of the names of features of the student that a gradient comes to.
        other: Another value for each of the method's own options.
    """

    name: str
    reads: tuple[str, ...]
    reached: tuple[str, ...]
    other: Mapping[str, Any] = {}

    def bench(self, **options: Any) -> Bench:
        return bench(self.name, reads=self.reads, **options)

    def values(self, **options: Any) -> dict[str, float]:
        return {name: value.item() for name, value in self.bench(**options).checked().items()}

    @pytest.mark.parametrize("batch", [2, 3])
    def test_gradients_reach_what_learns_and_no_teacher(self, batch):
        made = self.bench(batch=batch)
        total(made.terms().values()).backward()
        names = [*made.given["student"]]
        for name, leaf in zip(names, made.student, strict=True):
            assert (leaf.grad is not None and bool(leaf.grad.any())) == name.startswith(self.reached), name
        for name, parameter in made.trainable().items():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        assert all(leaf.grad is None for leaf in made.teacher)

    def test_every_knob_counts(self):
        assert set(knobs(self.name)) == {*self.other}
        for knob, value in self.other.items():
            assert self.values() != pytest.approx(self.values(**{knob: value}), rel=1e-5), knob

    def test_no_text_and_one(self):
        for value in self.bench(batch=0).checked().values():
            assert value == 0
            assert value.requires_grad
        assert all(map(math.isfinite, self.values(batch=1).values()))

    def test_low_precision(self):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = self.values(dtype=torch.bfloat16)
        assert low == pytest.approx(self.values(), rel=0.1)

    def test_padding_does_not_count(self):
        made, other = self.bench(), self.bench()
        for leaf in (*other.student, *other.teacher):
            if leaf.dim() > 2:
                places = leaf.data.movedim(-2, 1)
                places[~mask(len(leaf))] = 9.0
        for first, second in zip(made.terms().values(), other.terms().values(), strict=True):
            torch.testing.assert_close(first, second)

    def test_binds_to_transformers_of_other_depths(self):
        side: dict[str, Any] = {
            "taps": {"layer0": "embedding", "layer*": "blocks[*]", "heads*": "blocks[*].heads", "x": "y"}
        }
        pair = {
            "name": "text",
            "student": {**side, "architecture": {"layers": 1}},
            "teacher": {**side, "architecture": {"layers": 2}},
        }
        found = bind(instantiated(self.name), TextClassification, pair)
        expected = {
            "layers": ["layer0", "layer1"],
            "taught_layers": ["layer0", "layer1", "layer2"],
            "heads": ["heads1"],
            "taught_heads": ["heads1", "heads2"],
        }
        assert found == {"logits": "logits"} | {need: expected[need] for need in self.reads}
        with pytest.raises(KDBenchError, match=f"needs (Layer|Heads) .'{self.reads[0]}'., which task toy"):
            bind(instantiated(self.name), Toy, {"name": "toy", "student": {"taps": {}}, "teacher": {"taps": {}}})


def instantiated(name: str) -> type[Plugin]:
    """The class of a method."""
    found: Any = locate(yaml(name)["_target_"])
    return found
