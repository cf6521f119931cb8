from __future__ import annotations

import pytest
import torch

from kdbench.errors import KDBenchError
from kdbench.functional.minilm import relation_loss
from tests.methods.words import HEADS, LayeredInvariants, mask


def products(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return first @ second.mT / first.shape[-1] ** 0.5


class TestMiniLM(LayeredInvariants):
    name, reads = "minilm", HEADS
    reached = ("logits", "heads2")
    other = {"layer": 3, "temperature": 2.0}

    @pytest.mark.parametrize("prefix", [0, 1])
    def test_is_the_divergence_of_attention_and_of_values(self, prefix):
        """Without a mark in front the network is a decoder, which looks back alone."""
        made, there = self.bench(prefix=prefix), mask(3)
        looks = there[:, None, :, None] & there[:, None, None, :]
        looks = looks if prefix else looks.tril()
        (s_q, s_k, s_v), (t_q, t_k, t_v) = (leaves[-1].unbind(1) for leaves in (made.student, made.teacher))
        found = made.terms()
        expected = relation_loss(products(s_q, s_k), products(t_q, t_k), looks)
        torch.testing.assert_close(found["attention"], expected)
        torch.testing.assert_close(found["values"], relation_loss(products(s_v, s_v), products(t_v, t_v), looks))

    def test_layers_are_counted_from_one_or_from_the_last(self):
        assert self.values(layer=4) == self.values(layer=-1)
        assert self.values(layer=1) == self.values(layer=-4)
        for layer in (0, 5, -5):
            with pytest.raises(KDBenchError, match=f"method.layer={layer}: the teacher has 4 layers, expected 1 to 4"):
                self.bench(layer=layer)

    def test_other_numbers_of_heads_are_one_line(self):
        with pytest.raises(KDBenchError, match="MiniLM: found 4 heads of the student and 2 of the teacher"):
            self.bench(heads=(4, 2))


class TestMiniLM2(LayeredInvariants):
    name, reads = "minilm2", HEADS
    reached = ("logits", "heads2")
    other = {"layer": 3, "relation_heads": 4, "temperature": 2.0}

    def test_is_the_divergence_of_three_relations(self):
        """With as many relation heads as the teacher has heads, its own; the student's are split anew."""
        made, there = self.bench(heads=(4, 2)), mask(3)
        looks = there[:, None, :, None] & there[:, None, None, :]
        found = made.terms()
        for part, name in enumerate(("queries", "keys", "values")):
            student, teacher = made.student[-1][:, part], made.teacher[-1][:, part]
            joined = torch.stack([torch.cat([student[:, 2 * a], student[:, 2 * a + 1]], 2) for a in range(2)], 1)
            expected = relation_loss(products(joined, joined), products(teacher, teacher), looks)
            torch.testing.assert_close(found[name], expected)

    def test_relation_heads_divide_both_widths(self):
        with pytest.raises(KDBenchError, match="found 8 relation heads and a width of 4"):
            self.bench(relation_heads=8)
