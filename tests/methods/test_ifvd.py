from __future__ import annotations

import pytest
import torch

from kdbench.configuration.compat import bind
from kdbench.features import Grid
from kdbench.functional.ifvd import class_variation_loss
from kdbench.functional.kd import kd_loss
from kdbench.methods.ifvd import IFVD
from tests.dense import Dense
from tests.methods.harness import Features, normal, yaml
from tests.methods.maps import CLASSES, PAIR, MapBench, MapInvariants, at_scores, labels, scores


class TestIFVD(MapInvariants):
    name = "ifvd"
    bindings = {"feature": "late"}

    def test_is_the_loss_at_the_labels_of_the_grid(self):
        made, found = self.bench(), made_labels(3)
        (student, s), (teacher, t) = made.student, made.teacher
        terms = made.checked()
        expected = class_variation_loss(student, teacher, found, CLASSES)
        assert terms["ifvd"].item() == pytest.approx(expected.item(), rel=1e-6)
        mine, taught = (z.movedim(1, -1)[found >= 0] for z in (s, t))
        assert terms["kd"].item() == pytest.approx(kd_loss(mine, taught, 1.0).item(), rel=1e-6)

    def test_samples_without_supervision_have_no_labels(self):
        made = self.bench()
        made.views["student"]["main"].supervised = torch.tensor([True, False, True])
        found = made_labels(3)
        found[1] = -1
        expected = class_variation_loss(made.student[0], made.teacher[0], found, CLASSES)
        assert made.checked()["ifvd"].item() == pytest.approx(expected.item(), rel=1e-6)

    def test_grids_of_two_sizes_are_compared_at_the_smaller(self):
        values = normal(2, 3, 3, 4)
        student: Features = {"logits": scores(2, "student"), "late": Grid(values.repeat_interleave(2, 3))}
        teacher: Features = {"logits": scores(2, "teacher"), "late": Grid(2 * values)}
        made = MapBench("ifvd", student, teacher, labels(2), bindings=self.bindings)
        assert made.checked()["ifvd"].item() == pytest.approx(0, abs=1e-10)


def made_labels(batch: int) -> torch.Tensor:
    return at_scores(labels(batch)).clone()


def test_binds_and_weighs():
    assert bind(IFVD, Dense, PAIR) == {"feature": "body", "logits": "logits"}
    assert yaml("ifvd")["weights"] == {"task": 1.0, "ifvd": 20.0, "kd": 1.0}
