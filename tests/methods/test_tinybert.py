from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdbench.errors import KDBenchError
from kdbench.functional.kd import kd_loss
from kdbench.needs import State
from kdbench.signals import Context
from tests.methods.words import HEADS, LAYERS, LayeredInvariants, mask


class TestTinyBERT(LayeredInvariants):
    name, reads = "tinybert", (*LAYERS, *HEADS)
    reached = ("logits", "layer", "heads")
    other = {"shared": False, "temperature": 2.0}

    def test_every_knob_counts(self):
        one, two = self.bench(transfer=0.25).method.stages()
        assert (one.epochs, two.epochs) == (0.25, 0.75)
        assert one.constant
        assert (one.terms, two.terms) == (("embedding", "hidden", "attention"), ("task", "kd"))
        assert two.trains == ("student",)
        for knob, value in self.other.items():
            assert self.values() != pytest.approx(self.values(**{knob: value}), rel=1e-5), knob

    def test_is_the_squared_error_of_words(self):
        """A student of two layers learns from the second and the fourth of the teacher."""
        made, there = self.bench(), mask(3)
        found, project = made.terms(), made.method.project
        (_, *student), (_, *teacher) = made.student, made.teacher
        torch.testing.assert_close(found["embedding"], F.mse_loss(project(student[0][there]), teacher[0][there]))
        hidden = [F.mse_loss(project(student[m][there]), teacher[2 * m][there]) for m in (1, 2)]
        torch.testing.assert_close(found["hidden"], hidden[0] + hidden[1])
        torch.testing.assert_close(found["kd"], kd_loss(made.student[0], made.teacher[0], 1.0))
        pairs = (there[:, None, :, None] & there[:, None, None, :]).expand(-1, 2, -1, -1)
        total = torch.zeros(())
        for m in (1, 2):
            scores = []
            for heads in (student[2 + m], teacher[4 + 2 * m]):
                q, k, _ = heads.unbind(1)
                scores.append((q @ k.mT / heads.shape[-1] ** 0.5)[pairs])
            total = total + F.mse_loss(*scores)
        torch.testing.assert_close(found["attention"], total)

    def test_each_stage_works_out_its_own_terms(self):
        made = self.bench()
        for wanted in ({"kd"}, {"hidden", "attention", "embedding"}):
            context = Context(State(0, 0, 0.0), 0, frozenset(wanted))
            assert made.method.terms(made.signals(), context).keys() == wanted

    def test_other_numbers_of_heads_are_one_line(self):
        with pytest.raises(KDBenchError, match="TinyBERT: found 1 heads of the student and 2 of the teacher.*minilm2"):
            self.bench(heads=(1, 2))
