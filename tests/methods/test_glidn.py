"""GLIDN on features by hand, and its mutual form as a training."""

from __future__ import annotations

import pytest
import torch

from kdbench.base.instantiate import instantiate
from kdbench.configuration.compat import bind
from kdbench.functional.divergence import bernoulli_kl, categorical_kl
from kdbench.functional.glidn import relative_error
from kdbench.methods.glidn import GLIDN, GLIDNMutual
from kdbench.needs import State
from kdbench.roles.cast import Cast
from kdbench.signals import EVERY, Context, Signals
from kdbench.task import Batch, Task
from tasks.hoi.task import HOI
from tests.methods.graphs import features
from tests.methods.harness import Bench, Hand, differ, knobs, leaves, yaml
from tests.tasks.hoi import tiny

HEADS = {"logits": ["object", "human"]}


def bench(batch=3, dtype=torch.float32, **options):
    return Bench("glidn", features("student", 4, batch, dtype), features("teacher", 6, batch, dtype), HEADS, **options)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_terms_are_those_of_the_equations(temperature):
    """A softmax head has a softmax's divergence, several labels have binary ones; rows that do not count have none."""
    made = bench(temperature=temperature)
    terms = made.checked()
    rows = {role: {n: f.rows().detach() for n, f in made.given[role].items()} for role in ("student", "teacher")}
    human = categorical_kl(rows["student"]["human"], rows["teacher"]["human"], temperature).mean()
    thing = bernoulli_kl(rows["student"]["object"], rows["teacher"]["object"], temperature).mean()
    torch.testing.assert_close(terms["logit"], temperature**2 * (human + thing))
    adapted = made.method.adapter(rows["student"]["context"])
    torch.testing.assert_close(terms["node"], relative_error(adapted, rows["teacher"]["context"]))


def test_gradients_reach_the_student_and_the_adapter_alone():
    made = bench()
    sum(made.checked().values()).backward()
    assert all(leaf.grad is not None and leaf.grad.any() for leaf in made.student)
    assert all(leaf.grad is None for leaf in made.teacher)
    assert all(p.grad is not None and p.grad.any() for p in made.method.parameters())


def test_knobs_nothing_and_low_precision():
    assert knobs("glidn") == ["temperature"]
    assert differ([bench().terms()["logit"]], [bench(temperature=3.0).terms()["logit"]])
    assert all(value == 0 and value.requires_grad for value in bench(batch=0).checked().values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = bench(dtype=torch.bfloat16).terms()
    for name, value in bench().terms().items():
        assert low[name].item() == pytest.approx(value.item(), rel=0.1)


def test_it_reads_every_head_and_the_nodes_that_they_read():
    side = {"taps": tiny.TAPS}
    for method in (GLIDN, GLIDNMutual):
        found = bind(method, HOI, {"name": "p", "student": side, "teacher": side})
        assert found == {"logits": ["object", "human"], "context": "context"}
    assert GLIDN.fidelity == GLIDNMutual.fidelity == "approximate"


def test_mutual_networks_hold_each_other_fixed():

    given = {"student": features("student", 4), "peer": features("peer", 6)}
    found = {role: leaves(made) for role, made in given.items()}
    cast = Cast(Task(), GLIDNMutual.roles, {role: Hand(made) for role, made in given.items()})
    batch = Batch(None, None, torch.arange(3))
    signals = Signals(cast, {role: {"main": batch} for role in given}, HEADS)
    method = instantiate("method", {"_target_": "kdbench.methods.glidn.GLIDNMutual"})
    with torch.no_grad():
        method.build(signals)
    terms = method.terms(Signals(cast, signals.views, HEADS), Context(State(0, 0, 0.0), 0, frozenset({EVERY})))
    assert {*terms} == {*yaml("glidn_mutual")["weights"]} - {"task", "task.peer"}
    for term, role in (("logit", "student"), ("node", "student"), ("logit.peer", "peer")):
        for leaf in (*found["student"], *found["peer"]):
            leaf.grad = None
        terms[term].backward(retain_graph=True)
        reached = {r for r, made in found.items() if any(leaf.grad is not None and leaf.grad.any() for leaf in made)}
        assert reached == {role}
