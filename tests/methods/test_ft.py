from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Grid
from kdbench.functional.ft import factor_loss
from kdbench.methods.ft import FT
from kdbench.needs import State
from kdbench.signals import Context
from kdbench.training.fit import Training
from tests.methods.harness import Bench, differ, knobs, normal, yaml
from tests.toy import Toy, recipe, teacher_file, weights

OTHER: dict[str, Any] = {"rate": 0.25, "p": 2.0, "faithful": "paper"}


def bench(
    student: tuple[int, ...] = (3, 4, 6, 5),
    teacher: tuple[int, ...] = (3, 8, 6, 5),
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Bench:
    grids = [Grid(normal(*shape, name=n).to(dtype)) for shape, n in ((student, "s"), (teacher, "t"))]
    return Bench("ft", {"feature": grids[0]}, {"feature": grids[1]}, **options)


def outcome(made: Bench) -> list[torch.Tensor]:
    """Both terms and the gradients of their sum."""
    terms = made.terms()
    inputs = [*made.student, *made.trainable().values()]
    return [
        t.detach() for t in (*terms.values(), *torch.autograd.grad(terms["factor"] + terms["reconstruction"], inputs))
    ]


def test_binds_to_the_deepest_grid():
    side = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}}
    assert bind(FT, Toy, {"name": "toy", "student": side, "teacher": side}) == {"feature": "body"}


@pytest.mark.parametrize("space", [(7,), (6, 5), (3, 4, 5)])
def test_each_term_trains_its_own_side(space):
    made = bench((2, 4, *space), (2, 8, *space))
    terms = made.terms()
    assert set(terms) == set(yaml("ft")["weights"]) - {"task"}
    parameters = made.trainable()
    for term, owner in (("factor", "translator"), ("reconstruction", "paraphraser")):
        assert terms[term].shape == ()
        grads = torch.autograd.grad(
            terms[term], [*parameters.values(), made.student[0]], allow_unused=True, retain_graph=True
        )
        for name, grad in zip((*parameters, "student"), grads, strict=True):
            reached = name.startswith(owner) or (name == "student" and term == "factor")
            assert (grad is not None) == reached, (term, name)
            assert grad is None or grad.isfinite().all(), name
    sum(terms.values()).backward()  # type: ignore[union-attr]
    assert made.teacher[0].grad is None


def test_terms_are_the_losses_of_paraphraser_and_translator():
    made = bench()
    method, (student,), (teacher,) = made.method, made.student, made.teacher
    terms = made.terms()
    factor = factor_loss(method.translator(student), method.paraphraser.encoder(teacher))
    assert terms["factor"].item() == pytest.approx(factor.item(), rel=1e-6)
    assert method.paraphraser.encoder(teacher).shape[1] == 4
    error = (method.paraphraser(teacher) - teacher).square().mean()
    assert terms["reconstruction"].item() == pytest.approx(error.item(), rel=1e-6)


@pytest.mark.parametrize("faithful", ["code", "paper"])
def test_zero_where_the_translator_gives_the_factor(faithful):
    made = bench((2, 8, 4, 4), (2, 8, 4, 4), faithful=faithful)
    made.method.translator = made.method.paraphraser.encoder
    with torch.no_grad():
        made.teacher[0].copy_(made.student[0])
    assert made.terms()["factor"].item() == pytest.approx(0, abs=1e-7)


def test_a_stage_asks_for_its_own_term_alone():
    made = bench()
    for term in ("factor", "reconstruction"):
        context = Context(State(0, 0, 0.0), 0, frozenset({term}))
        assert set(made.method.terms(made.signals(), context)) == {term}


@pytest.mark.parametrize("knob", [k for k in knobs("ft") if k != "init_epochs"])
def test_every_knob_counts(knob):
    assert differ(outcome(bench()), outcome(bench(**{knob: OTHER[knob]})))


def test_same_step_same_bits():
    made = bench()
    assert all(torch.equal(a, b) for a, b in zip(outcome(made), outcome(made), strict=True))
    assert made.method.stages()[0].epochs == 0.125
    assert bench(init_epochs=0.5).method.stages()[0].epochs == 0.5


def test_the_paraphraser_is_trained_first_and_then_fixed(tmp_path):
    spec: dict[str, Any] = {
        "_target_": "kdbench.methods.ft.FT",
        "init_epochs": 0.5,
        "weights": {"factor": 200.0, "reconstruction": 1.0},
    }
    training: Any = Training(recipe("KD", **spec), Toy(), {"teacher": teacher_file(tmp_path)})
    student, method = training.cast.model("student"), training.plugins["method"]
    states, before = [], training._fit

    def spy(*args: Any, **kwargs: Any) -> Any:
        done = before(*args, **kwargs)
        states.append((weights(student), weights(method.paraphraser), weights(method.translator)))
        return done

    training._fit = spy
    start = weights(student)
    manifest = training.run(tmp_path)
    (student_1, paraphraser_1, _), (student_2, paraphraser_2, _) = states
    assert all(torch.equal(start[n], student_1[n]) for n in start)
    assert not all(torch.equal(student_1[n], student_2[n]) for n in start)
    assert all(torch.equal(paraphraser_1[n], paraphraser_2[n]) for n in paraphraser_1)
    assert manifest["cost"]["epochs"] == 3


def test_empty_batch_and_low_precision():
    empty = bench((0, 4, 6, 5), (0, 8, 3, 5)).terms()
    assert all(term == 0 and term.requires_grad for term in empty.values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = bench(dtype=torch.bfloat16).terms()
    for name, term in bench().terms().items():
        assert low[name].dtype == torch.float32
        assert low[name].item() == pytest.approx(term.item(), rel=0.05)


def test_bad_options_are_one_line():
    with pytest.raises(KDBenchError, match=r"method.rate: found 0.0; input should be greater than 0"):
        bench(rate=0.0)
