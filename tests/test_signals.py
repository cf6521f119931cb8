from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from kdbench.errors import KDBenchError
from kdbench.features import Vector
from kdbench.needs import STUDENT, TEACHER, Role, State
from kdbench.roles.cast import Cast
from kdbench.roles.sources import Network, Table
from kdbench.signals import EVERY, Context, Signals, total
from kdbench.task import Batch, Task


class Line(nn.Module):
    """y = a * b * x."""

    def __init__(self, a: float, b: float = 1.0) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(b, dtype=torch.float64))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.a * self.b * x


class Lines(Task):
    name = "lines"

    def describe(self, outputs, taps, batch):
        return {"y": Vector(outputs)}

    def loss(self, model, outputs, batch):
        return {"fit": (outputs - batch.targets).square().mean(), "size": outputs.abs().mean()}

    def loss_weights(self):
        return {"size": 0.5}


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


@pytest.fixture
def batch():
    return Batch(column(1.0, 2.0), column(3.0, 1.0), torch.arange(2))


def cast_of(**roles: tuple[Role, Line]) -> Cast:
    task = Lines()
    for role, model in roles.values():
        model.requires_grad_(role.mode == "train")
    return Cast(task, {n: r for n, (r, _) in roles.items()}, {n: Network(task, m) for n, (_, m) in roles.items()})


def views_of(cast: Cast, batch: Batch, **more: Batch):
    return {role: {"main": batch, **more} for role in cast.roles}


def test_a_forward_runs_when_asked_and_once(batch):
    student, teacher = Line(2.0), Line(3.0)
    cast = cast_of(student=(STUDENT, student), teacher=(TEACHER, teacher))
    kept: dict = {}
    signals = Signals(cast, views_of(cast, batch), {"feat": "y"}, kept=kept)
    assert (student.calls, teacher.calls) == (0, 0)
    s, t = signals.pair("feat")
    signals.bound({"other": "y"}).feature("other", "student")
    signals.supervised()
    assert (student.calls, teacher.calls) == (1, 1)
    assert s.values.requires_grad
    assert not t.values.requires_grad
    again = Signals(cast, views_of(cast, batch), {"feat": "y"}, kept=kept)
    again.pair("feat")
    assert (student.calls, teacher.calls) == (2, 1)
    assert cast.passes == {"student": 4, "teacher": 2}


def test_a_frozen_role_passes_gradient_to_its_input_where_asked(batch):
    teacher = Line(3.0)
    role = Role("frozen", side="teacher", grad="input")
    cast = cast_of(student=(STUDENT, Line(2.0)), teacher=(role, teacher))
    kept: dict = {}
    moved = batch.with_inputs(batch.inputs.clone().requires_grad_())
    for _ in range(2):
        signals = Signals(cast, views_of(cast, batch, moved=moved), kept=kept)
        signals.feature("y", "teacher", "moved").values.sum().backward()
        assert not signals.feature("y", "teacher").values.requires_grad
    assert moved.inputs.grad.tolist() == [[6.0], [6.0]]
    assert teacher.a.grad is None
    assert teacher.calls == 3  # the plain batch is answered once, the one with a gradient every time


def test_supervised_terms_are_weighed_by_the_task(batch):
    cast = cast_of(student=(STUDENT, Line(2.0)))
    signals = Signals(cast, views_of(cast, batch))
    # outputs 2 and 4, targets 3 and 1
    assert signals.loss()["fit"].item() == 5.0
    assert signals.supervised().item() == 5.0 + 0.5 * 3.0


def test_virtual_step_is_differentiable_to_second_order(batch):
    """One step on gate * a^2 * mean(x^2), then the loss at the stepped parameter, against the derivative by hand."""
    gate, lr, a = torch.tensor(0.3, dtype=torch.float64, requires_grad=True), 0.1, 2.0
    student = Line(a)
    student.b.requires_grad_(False)
    cast = cast_of(student=(STUDENT, student))
    student.b.requires_grad_(False)
    meta = Batch(column(1.5), column(1.0), torch.arange(1))
    signals = Signals(cast, views_of(cast, meta, train=batch))
    context = Context(State(0, 0, 0.0), 0, lr=lr)

    inner = gate * signals.feature("y", "student", "train").values.square().mean()
    stepped = context.virtual_step(signals, inner)
    outer = (stepped.feature("y", "student").values - meta.targets).square().sum()
    (derivative,) = torch.autograd.grad(outer, gate)

    energy = 2.5  # mean(x^2) on the training batch
    moved = a - lr * gate.item() * 2 * a * energy
    by_hand = 2 * (moved * 1.5 - 1.0) * 1.5 * (-lr * 2 * a * energy)
    assert derivative.item() == pytest.approx(by_hand, rel=1e-12)
    assert student.a.item() == a
    assert student.a.grad is None
    # The step that was tried leaves the ordinary answer alone, and other parameters where they are.
    assert torch.equal(signals.feature("y", "student").values, a * meta.inputs)


def test_parts_are_found_by_the_pairs_name():
    cast = cast_of(teacher=(TEACHER, Line(1.0)))
    cast.parts = {"teacher": {"self": "inner"}}
    cast.model("teacher").inner = nn.Identity()
    signals = Signals(cast, {})
    assert signals.part("self") is cast.model("teacher").inner
    with pytest.raises(KDBenchError, match="names no part 'head' of its teacher"):
        signals.part("head")


def test_errors_are_one_line(batch):
    cast = cast_of(student=(STUDENT, Line(1.0)))
    signals = Signals(cast, views_of(cast, batch), {"many": ["y"]})
    with pytest.raises(KDBenchError, match="role 'student' gives no feature 'z': it gives y"):
        signals.feature("z", "student")
    with pytest.raises(KDBenchError, match="read it with features"):
        signals.feature("many", "student")
    assert len(signals.features("many", "student")) == 1
    with pytest.raises(KDBenchError, match="no view 'mian': did you mean 'main'"):
        signals.answer("student", "mian")
    with pytest.raises(KDBenchError, match="no term to minimise"):
        total([])
    cast.sources = {"student": Table(torch.arange(2), column(1.0, 2.0), cast.task.describe)}
    with pytest.raises(KDBenchError, match="is a Table without a network"):
        cast.model("student")


def test_context_streams_and_wishes():
    context = Context(State(1, 10, 0.5), 3, frozenset({"kd"}))
    assert context.wants("kd")
    assert not context.wants("hint")
    assert Context(context.state, 3, frozenset({EVERY})).wants("hint")
    first, again = (torch.rand(2, generator=context.generator("mix")) for _ in range(2))
    assert torch.equal(first, again)
    other = Context(State(1, 11, 0.5), 3)
    assert not torch.equal(first, torch.rand(2, generator=other.generator("mix")))


class Penalised(Lines):
    """Its loss reads the weights."""

    def loss(self, model, outputs, batch):
        return {"weight": model.a.square()}


def test_a_loss_that_needs_the_model_reads_the_stepped_weights(batch):
    cast = replace(cast_of(student=(STUDENT, Line(2.0))), task=Penalised())
    signals = Signals(cast, views_of(cast, batch))
    stepped = Context(State(0, 0, 0.0), 0).virtual_step(signals, signals.loss()["weight"], lr=0.25)
    assert stepped.loss()["weight"].item() == (2.0 - 0.25 * 4.0) ** 2
    assert signals.loss()["weight"].item() == 4.0


def test_asking_runs_a_role_on_any_batch_by_its_rules(batch):
    student, teacher = Line(2.0), Line(3.0)
    cast = cast_of(student=(STUDENT, student), teacher=(TEACHER, teacher))
    signals = Signals(cast, views_of(cast, batch), {"feat": "y"})
    made = batch.with_inputs(signals.feature("feat", "student").values)
    answer = signals.ask("teacher", made)
    assert answer.batch is made
    assert answer.outputs.tolist() == [[6.0], [12.0]]
    assert not answer.outputs.requires_grad
    signals.ask("teacher", made)
    assert teacher.calls == 2
    assert cast.passes == {"student": 2, "teacher": 4}
    # In the place of a view it is answered once, whoever asks, and its loss is known.
    assert signals.bound({"other": "y"}).feature("other", "teacher", made).values.tolist() == [[6.0], [12.0]]
    signals.pair("feat", made)
    assert teacher.calls == 3
    assert signals.supervised("student", made).item() == pytest.approx((4 - 3) ** 2 / 2 + (8 - 1) ** 2 / 2 + 0.5 * 6)
    assert signals.batch("student", made) is made


def test_an_answer_to_a_made_batch_is_not_kept_for_other_groups(batch):
    teacher = Line(3.0)
    cast = cast_of(student=(STUDENT, Line(2.0)), teacher=(TEACHER, teacher))
    kept: dict = {}
    for _ in range(2):
        Signals(cast, views_of(cast, batch), kept=kept).answer("teacher", batch.with_inputs(batch.inputs + 1))
    assert teacher.calls == 2
    assert not kept


class Noisy(Line):
    """Adds noise of torch's global generator in training."""

    def forward(self, x):
        return super().forward(x) + (torch.randn_like(x) if self.training else 0)


def test_every_ask_of_a_step_has_a_random_stream_of_its_own(batch):
    def answers():
        cast = cast_of(student=(STUDENT, Noisy(2.0)))
        signals = Signals(cast, views_of(cast, batch), step=3)
        return [signals.ask("student", batch).outputs for _ in range(2)]

    first, second = answers()
    torch.rand(5)
    again = answers()
    assert not torch.equal(first, second)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_virtual_steps_continue_from_each_other(batch, steps):
    """Unrolled descent on both parameters of a line, against plain tensors: the value and its derivative by a gate."""
    lr = 0.01

    def fit(a, b, x, y):
        return (a * b * x - y).square().mean() + 0.5 * (a * b * x).abs().mean()

    cast = cast_of(student=(STUDENT, Line(1.3, 0.7)))
    signals = Signals(cast, views_of(cast, batch))
    context = Context(State(0, 0, 0.0), 0, lr=lr)
    gate = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    stepped = signals
    for _ in range(steps):
        stepped = context.virtual_step(stepped, gate * stepped.supervised())
    outer = stepped.supervised()
    (derivative,) = torch.autograd.grad(outer, gate)

    plain_gate = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    a, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (1.3, 0.7))
    for _ in range(steps):
        loss = plain_gate * fit(a, b, batch.inputs, batch.targets)
        da, db = torch.autograd.grad(loss, (a, b), create_graph=True)
        a, b = a - lr * da, b - lr * db
    expected = fit(a, b, batch.inputs, batch.targets)
    (plain,) = torch.autograd.grad(expected, plain_gate)
    assert outer.item() == pytest.approx(expected.item(), rel=1e-12)
    assert derivative.item() == pytest.approx(plain.item(), rel=1e-12)
    assert stepped.params()["a"].item() == pytest.approx(a.item(), rel=1e-12)
    assert signals.params()["a"].item() == 1.3


def test_a_role_writes_in_eval_mode_without_gradient_and_is_counted(batch):
    seen = []

    class Writing(Lines):
        def ops(self):
            def generate(model, given, generator, temperature=1.0):
                seen.append((model.training, torch.is_grad_enabled(), temperature))
                return given.with_inputs(model(given.inputs), memo={"tokens": 7})

            return {"generate": generate}

    cast = cast_of(student=(STUDENT, Line(2.0)))
    cast = Cast(Writing(), cast.roles, cast.sources)
    model = cast.model("student").train()
    signals = Signals(cast, {"student": {"main": batch}})
    written = signals.generate("student", batch, torch.Generator(), temperature=0.5)
    assert torch.equal(written.inputs, column(2.0, 4.0))
    assert not written.inputs.requires_grad
    assert seen == [(False, False, 0.5)]
    assert model.training
    assert cast.passes == {"student": 2}
    assert cast.tokens == {"student": 7}
    assert signals.feature("y", "student", written).values.requires_grad
