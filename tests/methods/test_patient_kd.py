from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdbench.functional.kd import kd_loss
from tests.methods.words import LAYERS, LayeredInvariants, mask


class TestPatientKD(LayeredInvariants):
    name, reads = "patient_kd", LAYERS
    reached = ("logits", "layer1")  # of two layers, the last has the class scores after it
    other = {"strategy": "last", "faithful": "paper", "temperature": 2.0}

    def test_is_the_distance_of_unit_vectors_at_the_mark(self):
        made = self.bench()
        found = made.terms()
        student, teacher = made.student[2][:, 0], made.teacher[3][:, 0]
        (project,) = made.method.project
        expected = F.mse_loss(F.normalize(project(student)), F.normalize(teacher))
        torch.testing.assert_close(found["patience"], expected)
        paper = self.bench(faithful="paper").terms()["patience"]
        torch.testing.assert_close(paper, 8 * expected)
        torch.testing.assert_close(found["kd"], kd_loss(made.student[0], made.teacher[0], 4.0))

    @pytest.mark.parametrize(("strategy", "layers"), [("skip", [2, 4, 6, 8, 10]), ("last", [7, 8, 9, 10, 11])])
    def test_the_layers_of_the_paper(self, strategy, layers):
        made = self.bench(layers=(6, 12), widths=(8, 8), strategy=strategy)
        found = [next(n for n, leaf in enumerate(made.teacher[1:]) if torch.equal(leaf, t.values))
                 for _, t in made.method.pairs(made.signals())]  # fmt: skip
        assert found == layers
        assert not made.trainable()  # of one width nothing is projected

    def test_a_student_of_one_layer_learns_from_the_last(self):
        made = self.bench(layers=(1, 2))
        ((student, teacher),) = made.method.pairs(made.signals())
        assert torch.equal(student.values, made.student[2])
        assert torch.equal(teacher.values, made.teacher[3])

    def test_without_a_mark_every_word_counts(self):
        made = self.bench(prefix=0)
        there = mask(3)
        (project,) = made.method.project
        rows = project(made.student[2][there]), made.teacher[3][there]
        torch.testing.assert_close(made.terms()["patience"], F.mse_loss(F.normalize(rows[0]), F.normalize(rows[1])))
