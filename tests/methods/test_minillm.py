"""MiniLLM with two decoders on a few texts of the grammar."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdbench.functional.kd import kd_loss
from kdbench.functional.minillm import later_rewards, long_term_loss
from kdbench.functional.rkl import reverse_kl_loss
from kdbench.methods.minillm import MiniLLM
from tests.methods.harness import knobs, yaml
from tests.methods.test_gkd import Pair


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("minillm")


@pytest.mark.parametrize("faithful", ["paper", "code"])
def test_terms_are_of_own_words_and_of_the_data_set(folder, faithful):
    made = Pair(folder, "minillm", faithful=faithful, sampling=1.3)
    found = made.terms("kd", "single", "long")
    assert made.student.training
    torch.testing.assert_close(found["kd"], kd_loss(*made.rows(made.batch), 1.0))
    written = made.written(1.3)
    torch.testing.assert_close(found["single"], reverse_kl_loss(*made.rows(written)))
    words = written.targets.words
    log_q, log_p = (
        net(written.inputs.words).log_softmax(2).gather(2, words[..., None])[..., 0]
        for net in (made.student, made.teacher)
    )
    mask = torch.ones_like(words, dtype=torch.bool)
    earned = later_rewards(log_p - log_q, mask, faithful=faithful)
    torch.testing.assert_close(found["long"], long_term_loss(log_q, earned, mask))
    assert made.cast.passes["student"] == 12  # the data set, written, and read


def test_gradients_reach_the_student_alone_and_steps_repeat(folder):
    made = Pair(folder, "minillm")
    first = made.terms("long")["long"]
    first.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.student.parameters())
    assert all(p.grad is None for p in made.teacher.parameters())
    torch.rand(3)
    assert made.terms("long")["long"].item() == first.item()
    assert Pair(folder, "minillm", step=1).terms("long")["long"].item() != first.item()


def test_stages_and_knobs(folder):
    made = Pair(folder, "minillm")
    stages = [(stage.epochs, stage.terms) for stage in made.method.stages()]
    assert stages == [(0.5, ("start",)), (0.5, ("task", "kd", "single", "long"))]
    (only,) = Pair(folder, "minillm", start=0.0, lr=0.3).method.stages()
    assert (only.epochs, only.lr) == (1.0, 0.3)
    assert made.terms("start").keys() == {"start"}
    assert {"start", "kd", "single", "long", "task"} == {*yaml("minillm")["weights"]}
    assert {*knobs("minillm")} == {"faithful", "gamma", "sampling", "start", "lr"}
    discounts = [Pair(folder, "minillm", faithful="code", gamma=g).method.gamma for g in (0.5, 0.95)]
    assert discounts == [0.5, 0.95]


def test_a_prompt_and_masked_texts_do_not_count(folder):
    made = Pair(folder, "minillm")
    made.batch = replace(made.batch, distilled=torch.tensor([True, False, False, False]))
    part = made.terms("long")["long"]
    assert part.isfinite()
    made.batch = replace(made.batch, distilled=torch.zeros(4, dtype=torch.bool))
    assert all(value == 0 for value in made.terms("kd", "single", "long").values())
    assert MiniLLM.requires == {"generates", "single_label"}
