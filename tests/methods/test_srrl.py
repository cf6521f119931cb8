from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Grid, Vector
from kdbench.methods.srrl import SRRL
from tests.methods.harness import knobs, normal, yaml
from tests.methods.parts import PartBench
from tests.toy import Toy

GRID = (4, 3)


def bench(batch: int = 6, space: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> PartBench:
    kind = Grid if space else Vector
    student, teacher = (kind(normal(batch, d, *space, name=n).to(dtype)) for d, n in ((4, "s"), (8, "t")))
    return PartBench("srrl", {"pooled": student}, {"pooled": teacher})


def losses(made: PartBench) -> dict[str, float]:
    return {name: value.item() for name, value in made.terms().items()}


def test_binds_to_the_pooled_vector_and_on_request_to_the_last_grid():
    side = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}, "parts": {"classifier": "head"}}
    pair = {"name": "toy", "student": side, "teacher": side}
    assert bind(SRRL, Toy, pair) == {"pooled": "pooled"}
    assert bind(SRRL, Toy, pair, {"pooled": "body"}) == {"pooled": "body"}
    with pytest.raises(KDBenchError, match="calls the part 'classifier'"):
        bind(SRRL, Toy, {**pair, "teacher": {"taps": side["taps"]}})


def test_has_no_knob_but_its_weights():
    assert knobs("srrl") == []
    assert yaml("srrl")["weights"].keys() == {"task"} | bench().terms().keys()


@pytest.mark.parametrize("space", [(), (5,), GRID, (2, 3, 2)])
def test_equations(space):
    """Connector, average and classifier from the parameters, in float64."""
    made = bench(space=space)
    kernel, norm, _ = made.method.connector
    values, target = (leaf.double().reshape(*leaf.shape[:2], -1) for leaf in (made.student[0], made.teacher[0]))
    mapped = torch.einsum("bcl,kc->bkl", values, kernel.weight.squeeze(2).double())
    centred = mapped - mapped.mean((0, 2), True)
    scaled = centred / (centred.square().mean((0, 2), True) + 1e-5).sqrt() * norm.weight[:, None] + norm.bias[:, None]
    gap = scaled.clamp_min(0).mean(2) - target.mean(2)
    said = gap @ made.heads["teacher"].weight.double().T
    expected = {"fm": gap.square().mean().item(), "sr": said.square().mean().item()}
    assert losses(made) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("space", [(), GRID])
@pytest.mark.parametrize("batch", [6, 1])
@pytest.mark.parametrize("term", ["fm", "sr"])
def test_a_gradient_passes_the_teachers_classifier_but_none_comes_to_it(space, batch, term):
    made = bench(batch, space)
    value = made.terms()[term]
    assert value.dtype == torch.float32
    value.backward()
    for name, leaf in {**made.trainable(), "student": made.student[0]}.items():
        assert leaf.grad is not None, name
        assert leaf.grad.isfinite().all(), name
        assert leaf.grad.any(), name
    assert all(leaf.grad is None for leaf in (*made.teacher, *made.heads["teacher"].parameters()))
    assert not any(p is q for p in made.method.parameters() for q in made.heads["teacher"].parameters())


def test_determinism():
    first = losses(bench())
    torch.rand(7)
    assert losses(bench()) == first


def test_zero_where_the_connector_gives_the_teacher():
    made = bench()
    values = made.student[0]
    with torch.no_grad():
        made.teacher[0].copy_(made.method.connector(values.unsqueeze(2)).squeeze(2))
    assert losses(made) == pytest.approx({"fm": 0, "sr": 0}, abs=1e-10)


@pytest.mark.parametrize("space", [(), GRID])
def test_empty_batch_and_low_precision(space):
    empty = bench(0, space)
    for value in empty.terms().values():
        assert value == 0
        assert value.requires_grad
    assert all(buffer.isfinite().all() for buffer in empty.method.buffers())
    low: Any = bench(space=space, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert losses(low) == pytest.approx(losses(bench(space=space)), rel=0.05)
