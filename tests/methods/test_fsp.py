from __future__ import annotations

from kdbench.functional.fsp import fsp_loss
from kdbench.methods.fsp import FSP
from tests.methods.harness import check_gradients
from tests.methods.levels import ProjectedInvariants, check_init_then_distil
from tests.toy import Toy


class TestFSP(ProjectedInvariants):
    name, method = "fsp", FSP
    apart = ("project", "init_epochs")
    autocast = True

    def expected(self, student, teacher, **options):
        return fsp_loss(student, teacher)

    def test_the_first_stage_is_as_long_as_configured(self):
        assert self.bench(init_epochs=0.5).method.stages()[0].epochs == 0.5

    def test_zero_at_the_teacher(self):
        assert self.at_the_teacher() == 0

    def test_gradients_without_a_projection(self):
        check_gradients(self.equal())

    def test_every_sample_counts(self):
        made = self.bench()
        grads = made.gradients()
        assert all(grads[f"student.{i}"].flatten(1).any(1).all() for i in range(len(made.student)))

    def test_stages_train_what_they_should(self, tmp_path):
        check_init_then_distil("fsp", Toy(), tmp_path)
