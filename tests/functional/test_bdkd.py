from __future__ import annotations

import math

import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.bdkd import balanced_loss, entropy
from tests.functional.checks import check_empty, check_low_precision


def logits(n: int, c: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "bdkd", n, c)
    student, teacher = (3 * torch.randn(n, c, generator=g, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.rand(n, generator=g, dtype=torch.float64)


def laws(z: list[float], t: float, law: str) -> list[list[float]]:
    """The distributions of a row: one over classes, or one a class."""
    if law == "categorical":
        return [[math.exp(v / t) / sum(math.exp(u / t) for u in z) for v in z]]
    return [[1 / (1 + math.exp(-v / t)), 1 / (1 + math.exp(v / t))] for v in z]


def reference(student, teacher, weight, t, balance, law) -> float:
    """One row at a time: entropies, then the two divergences under the weights that their gap picks."""
    (major, minor), total = balance, 0.0
    for s, z, w in zip(student.tolist(), teacher.tolist(), weight.tolist(), strict=True):
        p_s, p_t = laws(s, t, law), laws(z, t, law)
        gap = sum(-x * math.log(x) for p in p_t for x in p) - sum(-x * math.log(x) for p in p_s for x in p)
        forward = sum(b * math.log(b / a) for p, q in zip(p_s, p_t, strict=True) for a, b in zip(p, q, strict=True))
        reverse = sum(a * math.log(a / b) for p, q in zip(p_s, p_t, strict=True) for a, b in zip(p, q, strict=True))
        total += w * t * t * (major * forward + minor * reverse if gap > 0 else minor * forward + major * reverse)
    return total / sum(weight.tolist())


@pytest.mark.parametrize("shape", [(1, 2), (4, 10), (9, 40)])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("law", ["categorical", "bernoulli"])
@pytest.mark.parametrize("balance", [(1.5, 0.5), (1.0, 0.0)])
def test_matches_the_equations(shape, temperature, law, balance):
    student, teacher, weight = logits(*shape)
    value = balanced_loss(student, teacher, temperature, major=balance[0], minor=balance[1], law=law, weight=weight)
    expected = reference(student, teacher, weight, temperature, balance, law)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_the_more_confident_network_is_spread_whoever_it_is():
    student, teacher, _ = logits(8, 5)
    gap = entropy(teacher) - entropy(student)
    assert gap.min() < 0 < gap.max()
    value = balanced_loss(student, teacher, major=2.0, minor=0.3)
    assert value.item() == pytest.approx(balanced_loss(teacher, student, major=2.0, minor=0.3).item())
    plain = balanced_loss(student, teacher, major=1.0, minor=1.0)
    only = [balanced_loss(student, teacher, major=a, minor=b) for a, b in ((1.0, 0.0), (0.0, 1.0))]
    assert plain.item() == pytest.approx((only[0] + only[1]).item())


def test_entropy_of_even_and_of_certain_predictions():
    assert entropy(torch.zeros(1, 7)).item() == pytest.approx(math.log(7))
    assert entropy(torch.tensor([[50.0, 0.0]])).item() == pytest.approx(0, abs=1e-6)
    assert entropy(torch.full((1, 3), 80.0), law="bernoulli").item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("law", ["categorical", "bernoulli"])
def test_gradients_and_minimum(law):
    student, teacher, weight = logits(3, 4)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: balanced_loss(s, teacher, 2.0, law=law, weight=weight), (student,))
    same = teacher.clone().requires_grad_()
    balanced_loss(same, teacher, law=law).backward()
    assert balanced_loss(same, teacher, law=law).item() == pytest.approx(0, abs=1e-12)
    assert same.grad is not None
    assert same.grad.abs().max() < 1e-9


def test_every_option_changes_the_value():
    student, teacher, weight = logits(6, 5)
    options: list[dict] = [{}, {"temperature": 2.0}, {"major": 2.0}, {"minor": 0.2}, {"law": "bernoulli"}]
    options.append({"weight": weight})
    assert len({round(balanced_loss(student, teacher, **o).item(), 6) for o in options}) == len(options)


def test_low_precision_no_rows_and_errors():
    student, teacher, _ = logits(64, 30)
    check_low_precision(balanced_loss, student, teacher, rel=0.03)
    check_empty(balanced_loss, (0, 5), (0, 5))
    with pytest.raises(KDBenchError, match="equal shapes"):
        balanced_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(KDBenchError, match="did you mean 'bernoulli'"):
        balanced_loss(torch.zeros(2, 3), torch.zeros(2, 3), law="bernouli")  # type: ignore[arg-type]
