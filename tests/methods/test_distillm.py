"""DistiLLM with two decoders on a few texts of the grammar."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.functional.skl import skew_kl_loss, skew_reverse_kl_loss
from kdbench.needs import State
from kdbench.signals import EVERY, Context, Signals
from kdbench.task import Batch
from tests.methods.harness import knobs
from tests.methods.test_gkd import Pair


class Store(Pair):
    """A built method at a share of training."""

    def __init__(self, folder: Any, progress: float = 0.5, **options: Any) -> None:
        super().__init__(folder, "distillm", **options)
        self.progress = progress
        with torch.no_grad():
            self.method.build(self.signals())
        self.cast.passes.clear()

    def signals(self) -> Signals:
        return Signals(self.cast, {role: {"main": self.batch} for role in self.cast.roles}, {}, self.step)

    def context(self, *wanted: str) -> Context:
        return Context(State(0, self.step, self.progress), 0, frozenset({EVERY}))

    def read(self, step: int) -> Batch:
        """What both read at a step."""
        self.step = step
        found: Batch = self.method.read(self.signals(), self.context())
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distillm")


def test_at_first_it_is_the_data_set(folder):
    made = Store(folder, progress=0.0)
    assert all(made.read(step) is made.batch for step in range(20))
    torch.testing.assert_close(made.terms()["distillm"], skew_reverse_kl_loss(*made.rows(made.batch), 0.1))
    forward = Store(folder, progress=0.0, reverse=False, skew=0.3)
    torch.testing.assert_close(forward.terms()["distillm"], skew_kl_loss(*forward.rows(made.batch), 0.3))
    assert {*knobs("distillm")} == {"skew", "reverse", "share", "capacity", "sampling"}


def test_at_last_texts_that_were_written_are_read_again(folder):
    made = Store(folder, progress=1.0, share=1.0, capacity=8)
    first, second = made.read(0), made.read(1)
    assert torch.equal(first.inputs.words, made_again(made, 0).inputs.words)
    assert made.cast.passes == {"student": 12}  # each of four texts written; the last of them a check
    held = torch.cat([second.targets.words, first.targets.words])
    replayed = made.read(2)
    assert made.cast.passes == {"student": 12}
    assert all((held == text).all(1).any() for text in replayed.targets.words)
    assert replayed.supervised is not None
    assert not replayed.supervised.any()
    assert torch.equal(replayed.inputs.words[:, 1:], replayed.targets.words[:, :-1])
    again = made.read(2)
    assert torch.equal(again.inputs.words, replayed.inputs.words)
    made.terms()["distillm"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.student.parameters())


def made_again(made: Store, step: int) -> Batch:
    """What the student writes at a step."""
    made.step = step
    return made.signals().generate("student", made.batch, made.context().generator("words"))


def test_the_oldest_texts_go(folder):
    made = Store(folder, share=1.0, progress=1.0, capacity=6)
    texts = [made.read(step).targets.words for step in range(2)]
    assert int(made.method.written) == 8
    state = made.method.state_dict()
    assert "written" in state
    held = [value for name, value in state.items() if name.startswith("kept")]
    expected = torch.cat([texts[1][2:], texts[0][2:], texts[1][:2]])
    assert any(value.shape == expected.shape and torch.equal(value, expected) for value in held)


def test_the_share_rises(folder):
    counts = []
    for progress in (0.2, 0.8):
        made = Store(folder, progress=progress, share=1.0, capacity=4)
        counts.append(sum(made.read(step) is not made.batch for step in range(40)))
    assert 1 <= counts[0] < 20 < counts[1]


def test_one_text(folder):
    made = Store(folder, progress=1.0, share=1.0, capacity=2)
    assert made.terms()["distillm"].isfinite()
