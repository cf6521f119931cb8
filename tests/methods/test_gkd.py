"""Distillation on own words, with two decoders on a few texts of the grammar."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.base import rng
from kdbench.base.instantiate import instantiate
from kdbench.configuration.compat import bind
from kdbench.configuration.resolved import ENGINE_KEYS
from kdbench.errors import KDBenchError
from kdbench.features import Logits
from kdbench.functional.jsd import jsd_loss
from kdbench.functional.kd import kd_loss
from kdbench.functional.rkl import reverse_kl_loss
from kdbench.methods.gkd import GKD, OPD, ImitKD
from kdbench.needs import STUDENT, TEACHER, State
from kdbench.roles.cast import Cast
from kdbench.roles.sources import Network
from kdbench.signals import Context, Signals
from kdbench.task import Batch
from tasks.text.task import Text
from tests.methods.harness import yaml
from tests.tasks.text import tiny
from tests.toy import Toy


class Pair:
    """A method, its signals on one batch, and what it draws from."""

    def __init__(self, folder: Any, name: str = "gkd", step: int = 0, **options: Any) -> None:
        self.task = tiny.task(folder)
        spec = {k: v for k, v in yaml(name).items() if k not in ENGINE_KEYS}
        self.method = instantiate("method", spec | options)
        with rng.scope(0, "pair"):
            nets = {role: self.task.build({**tiny.NET, "width": w}) for role, w in (("student", 8), ("teacher", 16))}
            for net in nets.values():
                for parameter in net.parameters():
                    torch.nn.init.normal_(parameter, std=0.3)
        nets["teacher"].eval().requires_grad_(False)
        self.student, self.teacher = nets["student"], nets["teacher"]
        roles = {"student": STUDENT, "teacher": TEACHER}
        self.cast = Cast(self.task, roles, {role: Network(self.task, net) for role, net in nets.items()})
        self.batch: Batch = next(iter(self.task.data(0).train_dataloader()))
        self.step = step

    def context(self, *wanted: str) -> Context:
        return Context(State(0, self.step, 0.0), 0, frozenset(wanted))

    def terms(self, *wanted: str) -> dict[str, torch.Tensor]:
        views = {role: {"main": self.batch} for role in self.cast.roles}
        return self.method.terms(Signals(self.cast, views, {}, self.step), self.context(*wanted))

    def rows(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of both networks on a batch of unmasked texts."""
        return tuple(net(batch.inputs.words).flatten(0, 1) for net in (self.student, self.teacher))

    def written(self, temperature: float = 1.0) -> Batch:
        """What the student writes at this step."""
        draw = self.context().generator("words")
        return self.task.ops()["generate"](self.student.eval(), self.batch, draw, temperature)


def test_binds_to_a_task_that_generates():
    side: dict[str, Any] = {"taps": {}}
    pair = {"name": "text", "student": side, "teacher": side}
    assert bind(GKD, Text, pair) == {"logits": "logits"}
    with pytest.raises(KDBenchError, match="GKD requires generates, which task toy lacks"):
        bind(GKD, Toy, {"name": "toy", "student": side, "teacher": side})


@pytest.mark.parametrize(("name", "beta"), [("gkd", 0.5), ("opd", 1.0), ("imitkd", 0.0)])
def test_own_words_are_compared(tmp_path, name, beta):
    made = Pair(tmp_path, name, share=1.0, sampling=1.7)
    (value,) = made.terms("own").values()
    assert made.student.training
    assert value.item() == pytest.approx(jsd_loss(*made.rows(made.written(1.7)), beta).item(), rel=1e-5)
    assert made.cast.passes == {"student": 8, "teacher": 4}  # written, then read by both


def test_the_ends_are_those_of_the_other_two(tmp_path):
    assert yaml("opd")["beta"] == yaml("opd")["share"] == yaml("imitkd")["share"] == 1
    assert yaml("imitkd")["beta"] == 0
    opd, imitkd = Pair(tmp_path, "opd"), Pair(tmp_path, "imitkd")
    assert isinstance(opd.method, OPD)
    assert isinstance(imitkd.method, ImitKD)
    rows = opd.rows(opd.written())
    assert opd.terms("own")["own"].item() == pytest.approx(reverse_kl_loss(*rows).item(), rel=1e-5)
    assert imitkd.terms("own")["own"].item() == pytest.approx(kd_loss(*rows, 1.0).item(), rel=1e-5)


def test_the_first_stage_reads_the_data_set(tmp_path):
    made = Pair(tmp_path)
    assert made.terms("start")["start"].item() == pytest.approx(kd_loss(*made.rows(made.batch), 1.0).item(), rel=1e-5)
    stages = made.method.stages()
    assert [(stage.epochs, stage.terms) for stage in stages] == [(0.5, ("start",)), (0.5, ("own",))]
    (only,) = Pair(tmp_path, start=0.0, lr=0.3).method.stages()
    assert (only.epochs, only.terms, only.lr) == (1.0, ("own",), 0.3)


def test_some_batches_are_those_of_the_data_set(tmp_path):
    own = 0
    for step in range(40):
        made = Pair(tmp_path, step=step, share=0.3)
        value = made.terms("own")["own"].item()
        given = jsd_loss(*made.rows(made.batch), 0.5).item()
        own += value != pytest.approx(given, rel=1e-5)
    assert 5 <= own <= 19


def test_gradients_reach_the_student_alone_and_steps_repeat(tmp_path):
    made = Pair(tmp_path, share=1.0)
    first = made.terms("own")["own"]
    first.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.student.parameters())
    torch.rand(3)
    assert made.terms("own")["own"].item() == first.item()
    assert Pair(tmp_path, share=1.0, step=1).terms("own")["own"].item() != first.item()


def test_a_batch_of_one_and_masked_texts(tmp_path):
    made = Pair(tmp_path, share=1.0)
    made.batch = next(iter(tiny.task(tmp_path, batch_size=1).data(0).train_dataloader()))
    assert made.terms("own")["own"].isfinite()
    made.batch.distilled = torch.tensor([False])
    assert made.terms("own")["own"] == 0
    assert Logits in {need.kind for need in GKD.needs}
