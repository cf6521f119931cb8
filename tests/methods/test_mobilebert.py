from __future__ import annotations

import pytest
import torch

from kdbench.errors import KDBenchError
from kdbench.functional.minilm import relation_loss
from kdbench.functional.mobilebert import feature_map_loss
from kdbench.needs import State
from kdbench.signals import EVERY, Context
from tests.methods.words import HEADS, LAYERS, LayeredInvariants, mask


class TestMobileBERT(LayeredInvariants):
    name, reads = "mobilebert", (*LAYERS, *HEADS)
    reached = ("logits", "layer1", "heads1")  # at the start, when the others have not come yet
    other = {"progressive": False, "faithful": "code", "temperature": 2.0}

    def at(self, progress: float, **options):
        made = self.bench(**options)
        return made, made.method.terms(made.signals(), Context(State(0, 0, progress), 0, frozenset({EVERY})))

    def test_every_knob_counts(self):
        one, two = self.bench(transfer=0.25).method.stages()
        assert (one.epochs, two.epochs) == (0.25, 0.75)
        assert (one.terms, two.terms) == (("features", "attention"), ("task", "kd"))
        for knob, value in self.other.items():
            assert self.values() != pytest.approx(self.values(**{knob: value}), rel=1e-5), knob

    @pytest.mark.parametrize("faithful", ["paper", "code"])
    @pytest.mark.parametrize(("progress", "layers"), [(0.0, 1), (0.49, 1), (0.5, 2), (1.0, 2)])
    def test_layers_come_in_one_after_another(self, progress, layers, faithful):
        made, found = self.at(progress, faithful=faithful)
        there = mask(3)
        looks = there[:, None, :, None] & there[:, None, None, :]
        features, attention = [], []
        for m in range(1, layers + 1):
            rows = made.method.project[m - 1](made.student[1 + m][there]), made.teacher[1 + 2 * m][there]
            features.append(feature_map_loss(*rows, faithful=faithful))
            scores = []
            for heads in (made.student[3 + m], made.teacher[5 + 2 * m]):
                q, k, _ = heads.unbind(1)
                scores.append(q @ k.mT / heads.shape[-1] ** 0.5)
            attention.append(relation_loss(scores[0], scores[1], looks))
        torch.testing.assert_close(found["features"], torch.stack(features).mean())
        torch.testing.assert_close(found["attention"], torch.stack(attention).mean())

    def test_all_of_them_from_the_start(self):
        first, last = (self.at(p, progressive=False)[1] for p in (0.0, 1.0))
        torch.testing.assert_close(first, last)
        torch.testing.assert_close(last, self.at(1.0)[1])

    def test_other_numbers_of_heads_are_one_line(self):
        with pytest.raises(KDBenchError, match="MobileBERT: found 1 heads of the student"):
            self.bench(heads=(1, 2))
