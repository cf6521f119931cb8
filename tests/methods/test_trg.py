from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Feature, Grid, Logits, Tokens
from kdbench.functional.kd import kd_loss
from kdbench.functional.trg import token_context_loss
from kdbench.methods.trg import TRG, common
from kdbench.needs import State
from kdbench.signals import EVERY, Context
from tests.methods.harness import Bench, knobs, normal, yaml
from tests.toy import Toy

OTHER: dict[str, Any] = {
    "grid": 2,
    "tokens": 2,
    "neighbours": 3,
    "sigma": 1.0,
    "temperature": 2.0,
    "temperature_local": 0.5,
    "temperature_start": 1.0,
    "temperature_end": 0.2,
}


def feature(kind: str, batch: int, width: int, name: str) -> Feature:
    if kind == "tokens":
        return Tokens(normal(batch, 17, width, name=name), 1, (4, 4))
    sides = {"line": (6,), "fine": (8, 8), "grid": (4, 4), "cube": (2, 3, 2)}[kind]
    return Grid(normal(batch, width, *sides, name=name))


def bench(
    student: str = "grid", teacher: str = "grid", batch: int = 5, dtype: torch.dtype = torch.float32, **options: Any
) -> Bench:
    logits = {name: Logits((3 * normal(batch, 5, name=name)).to(dtype)) for name in ("ls", "lt")}
    return Bench(
        "trg",
        {"logits": logits["ls"], "tokens": feature(student, batch, 6, "s")},
        {"logits": logits["lt"], "tokens": feature(teacher, batch, 8, "t")},
        **options,
    )


def terms(made: Bench, step: int = 0, progress: float = 0.5) -> dict[str, Tensor]:
    found = made.method.terms(made.signals(step), Context(State(0, step, progress), 0, frozenset({EVERY})))
    assert set(found) == set(yaml("trg")["weights"]) - {"task"}
    return found


def values(made: Bench, **at: Any) -> list[float]:
    return [value.item() for value in terms(made, **at).values()]


def test_binds_to_the_deepest_grid():
    side = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}}
    pair = {"name": "toy", "student": side, "teacher": side}
    assert bind(TRG, Toy, pair) == {"tokens": "body", "logits": "logits"}
    assert TRG.fidelity == "approximate"


PAIRS = [("grid", "grid"), ("fine", "tokens"), ("tokens", "grid"), ("tokens", "tokens"), ("line", "line")]


@pytest.mark.parametrize(("student", "teacher"), [*PAIRS, ("cube", "cube")])
def test_gradients_reach_student_and_projection_and_no_teacher(student, teacher):
    made = bench(student, teacher)
    sum(terms(made).values(), start=torch.zeros(())).backward()
    for name, leaf in {**made.trainable(), **{str(i): leaf for i, leaf in enumerate(made.student)}}.items():
        assert leaf.grad is not None, name
        assert leaf.grad.isfinite().all(), name
        assert leaf.grad.any(), name
    assert all(leaf.grad is None for leaf in made.teacher)


@pytest.mark.parametrize("knob", knobs("trg"))
def test_every_knob_counts(knob):
    first, second = values(bench()), values(bench(**{knob: OTHER[knob]}))
    assert any(a != pytest.approx(b, rel=1e-4) for a, b in zip(first, second, strict=True))


def test_terms_of_logits_and_context():
    made = bench()
    found = terms(made)
    assert found["kd"].item() == pytest.approx(kd_loss(made.student[0], made.teacher[0], 4.0).item())
    flat = [leaf.flatten(2).transpose(1, 2) for leaf in (made.student[1], made.teacher[1])]
    assert found["inner"].item() == pytest.approx(token_context_loss(*flat).item())


def test_tokens_are_drawn_anew_at_each_step_and_the_temperature_falls():
    made = bench()
    assert values(made) == values(made)
    first, other = terms(made, step=0), terms(made, step=1)
    assert first["local"] != other["local"]
    assert first["inner"] == other["inner"]
    early, late = terms(made, progress=0.0), terms(made, progress=1.0)
    assert early["global"] != late["global"]
    assert early["local"] == late["local"]


def test_both_sides_are_averaged_to_the_same_places():
    """The teacher's prefix is left out and its 4 x 4 tokens meet the 8 x 8 cells that they cover."""
    grid, tokens = Grid(normal(2, 3, 8, 8)), Tokens(normal(2, 17, 5), 1, (4, 4))
    student, teacher = common(grid, tokens, 8)
    assert torch.equal(teacher, tokens.values[:, 1:])
    torch.testing.assert_close(student[:, 5], grid.values[:, :, 2:4, 2:4].mean((2, 3)))
    assert common(grid, tokens, 2)[0].shape == (2, 4, 3)


def test_tokens_without_a_grid_need_as_many_on_both_sides():
    first, second = Tokens(normal(2, 5, 3), 1), Tokens(normal(2, 4, 6))
    assert [v.shape[1] for v in common(first, second, 8)] == [4, 4]
    with pytest.raises(KDBenchError, match=r"4 tokens of the student and 9 of the teacher.*method.bind.tokens"):
        common(first, Tokens(normal(2, 9, 6)), 8)


def test_one_sample_no_sample_and_low_precision():
    assert all(value.isfinite() for value in terms(bench(batch=1)).values())
    for value in terms(bench(batch=0)).values():
        assert value == 0
        assert value.requires_grad
    full, low = terms(bench(sigma=4.0)), bench(dtype=torch.bfloat16, sigma=4.0)
    for leaf in (*low.student, *low.teacher):
        leaf.data = leaf.data.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = terms(low)
    assert all(value.dtype == torch.float32 for value in found.values())
    assert all(found[name].item() == pytest.approx(full[name].item(), rel=0.1) for name in ("kd", "inner", "global"))


def test_bad_options_are_one_line():
    with pytest.raises(KDBenchError, match=r"method.tokens: found 0; input should be greater than 0"):
        bench(tokens=0)
