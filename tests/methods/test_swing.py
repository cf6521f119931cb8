"""Swing distillation with two decoders on a few texts that hold secrets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.functional.kd import kd_loss
from kdbench.functional.swing import private_loss
from kdbench.methods.swing import Swing
from tasks.text.canaries import CanaryText
from tasks.text.task import Text
from tests.methods.harness import knobs
from tests.methods.test_gkd import Pair
from tests.tasks.text import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("swing")


@pytest.fixture
def pair(folder, monkeypatch):
    """Makes a pair on the secrets."""
    monkeypatch.setattr(tiny, "task", tiny.canaries)

    def made(**options: Any) -> Pair:
        return Pair(folder, "swing", **options)

    return made


def test_private_words_are_told_at_a_temperature_of_their_own(pair):
    made = pair(temperature=2.0, private=8.0)
    degree = made.task.ops()["private"](made.batch).flatten()
    assert 0 < degree.sum() < len(degree)
    student, teacher = made.rows(made.batch)
    torch.testing.assert_close(made.terms()["swing"], private_loss(student, teacher, 2.0 + 6.0 * degree))
    same = pair(temperature=2.0, private=2.0)
    student, teacher = same.rows(same.batch)
    torch.testing.assert_close(same.terms()["swing"], kd_loss(student, teacher, 2.0))


def test_noise_is_of_private_words_alone_and_of_the_step(pair):
    made = pair(noise=0.5)
    first = made.terms()["swing"]
    first.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.student.parameters())
    torch.rand(3)
    assert made.terms()["swing"].item() == first.item()
    assert pair(noise=0.5, step=1).terms()["swing"].item() != first.item()
    assert pair().terms()["swing"].item() != first.item()
    assert {*knobs("swing")} == {"temperature", "private", "noise"}


def test_masked_texts_and_a_task_without_secrets(pair):
    made = pair()
    made.batch.distilled = torch.zeros(4, dtype=torch.bool)
    assert made.terms()["swing"] == 0
    side: dict[str, Any] = {"taps": {}}
    sides = {"name": "text", "student": side, "teacher": side}
    assert bind(Swing, CanaryText, sides) == {"logits": "logits"}
    with pytest.raises(KDBenchError, match="Swing requires private, which task text lacks"):
        bind(Swing, Text, sides)
    assert Swing.fidelity == "approximate"
