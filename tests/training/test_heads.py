"""Models with several heads: the terms of a method run for each of them."""

from __future__ import annotations

import torch

from kdbench.features import Logits
from kdbench.training.fit import Training
from tests.plugins import kl
from tests.toy import Toy, recipe, teacher_file


class TwoHeads(Toy):
    """Scores of whether a pattern is one of the first classes, and of which it is, from one forward."""

    @classmethod
    def kinds(cls, side):
        return {"first": Logits, "which": Logits}

    def describe(self, outputs, taps, batch):
        return {"first": Logits(outputs[:, :2]), "which": Logits(outputs)}


def two_heads(folder, method, **keys):
    folder.mkdir(parents=True, exist_ok=True)
    return Training(recipe(method, **keys), TwoHeads(), {"teacher": teacher_file(folder)})


def test_terms_run_for_each_head_and_carry_its_name(tmp_path):
    trained = two_heads(tmp_path, "PerHead")
    trained.recipe.plugins["method"].given["weights"] = {"kd": 0.5, "kd.which": 2.0}
    distiller, batch = trained.distiller(), trained.first_batch()
    terms = distiller.rehearse(batch)
    student, teacher = (trained.cast.model(r).eval()(batch.inputs) for r in ("student", "teacher"))
    torch.testing.assert_close(terms["kd.first"], kl(student[:, :2], teacher[:, :2]).detach())
    torch.testing.assert_close(terms["kd.which"], kl(student, teacher).detach())
    assert {n: s.value for n, s in distiller.plan.schedules.items()} == {"task": 1, "kd.first": 0.5, "kd.which": 2}
    assert set(trained.run(tmp_path)["terms"]) == {"task", "kd.first", "kd.which"}


def test_an_update_means_the_terms_of_all_heads(tmp_path):
    trained = two_heads(tmp_path, "MutualPerHead", epochs=1)
    distiller = trained.distiller()
    distiller.rehearse(trained.first_batch())
    assert [set(u.terms) for u in distiller.plan.updates] == [
        {"task", "mutual.first", "mutual.which"},
        {"task.peer", "mutual.peer.first", "mutual.peer.which"},
    ]
    trained.run(tmp_path)


def test_one_head_alone_keeps_the_plain_name(tmp_path):
    trained = two_heads(tmp_path, "PerHead", bind={"logits": "which"})
    assert set(trained.distiller().rehearse(trained.first_batch())) == {"task", "kd"}
