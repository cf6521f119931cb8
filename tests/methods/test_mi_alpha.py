from __future__ import annotations

import torch

from kdbench.functional.mi_alpha import mutual_information_loss
from kdbench.methods.mi_alpha import MIAlpha
from tests.methods.words import LAYERS, LayeredInvariants, mask


class TestMIAlpha(LayeredInvariants):
    name, reads = "mi_alpha", LAYERS
    reached = ("logits", "layer1", "layer2")
    other = {
        "alpha": 1.0,
        "critic": 0.5,
        "width": 16,
        "baseline": "learned",
        "strategy": "last",
        "temperature": 2.0,
    }

    def test_is_the_bound_of_what_stands_for_a_text(self):
        made = self.bench()
        losses = [
            mutual_information_loss(critics[0](made.student[1 + m][:, 0]), critics[1](made.teacher[1 + 2 * m][:, 0]))
            for m, critics in enumerate(zip(made.method.students, made.method.teachers, strict=True), 1)
        ]
        torch.testing.assert_close(made.terms()["mi"], torch.stack(losses).mean())

    def test_without_a_mark_that_is_the_mean_of_the_words(self):
        made, there = self.bench(prefix=0, layers=(1, 1)), mask(3)
        (student,), (teacher,) = made.method.students, made.method.teachers
        means = [torch.stack([x[b][there[b]].mean(0) for b in range(3)]) for x in (made.student[2], made.teacher[2])]
        expected = mutual_information_loss(student(means[0]), teacher(means[1]))
        torch.testing.assert_close(made.terms()["mi"], expected)

    def test_a_learned_baseline_is_of_the_teacher(self):
        made = self.bench(baseline="learned", layers=(1, 1))
        made.terms()["mi"].backward()
        assert all(p.grad is not None and p.grad.any() for p in made.method.baselines.parameters())
        assert all(leaf.grad is None for leaf in made.teacher)

    def test_it_relates_texts_to_each_other(self):
        assert MIAlpha.over_batch
        assert MIAlpha.fidelity == "approximate"
