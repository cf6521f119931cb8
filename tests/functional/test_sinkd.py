"""Against the authors' released code (outside of this repository, float64): equal to 4e-16, gradients to 6e-16."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.sinkd import sinkhorn_loss, transport_cost
from tests.functional.checks import check_empty, check_low_precision

OPTIONS = [{}, {"debiased": True}]


def logits(n: int, c: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = rng.generator(0, "sinkd", n, c)
    student, teacher = (3 * torch.randn(n, c, generator=g, dtype=torch.float64) for _ in range(2))
    return student, teacher


def cost(p: np.ndarray, q: np.ndarray, eps: float, iterations: int) -> float:
    n = len(p)
    distance = [[sum(abs(a - b) for a, b in zip(p[i], q[j], strict=True)) for j in range(n)] for i in range(n)]
    plan = [[np.exp(-distance[i][j] / eps) for j in range(n)] for i in range(n)]
    for _ in range(iterations):
        plan = [[v / sum(row) for v in row] for row in plan]
        columns = [sum(plan[i][j] for i in range(n)) for j in range(n)]
        plan = [[plan[i][j] / columns[j] for j in range(n)] for i in range(n)]
    return float(sum(plan[i][j] * distance[i][j] for i in range(n) for j in range(n)))


def reference(s: np.ndarray, t: np.ndarray, temperature: float, eps: float, iterations: int, debiased: bool) -> float:
    p, q = (np.exp(z / temperature) / np.exp(z / temperature).sum(1, keepdims=True) for z in (s, t))
    own = (cost(p, p, eps, iterations) + cost(q, q, eps, iterations)) / 2
    return cost(p, q, eps, iterations) - (own if debiased else 0)


@pytest.mark.parametrize("shape", [(1, 3), (5, 2), (7, 10)])
@pytest.mark.parametrize(("eps", "iterations", "temperature"), [(0.1, 20, 2.0), (0.5, 3, 1.0)])
@pytest.mark.parametrize("debiased", [False, True])
def test_matches_the_equations(shape, eps, iterations, temperature, debiased):
    student, teacher = logits(*shape)
    value = sinkhorn_loss(student, teacher, temperature, eps=eps, iterations=iterations, debiased=debiased)
    expected = reference(student.numpy(), teacher.numpy(), temperature, eps, iterations, debiased)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_the_released_loss_is_biased_and_the_other_is_not():
    """At agreement of soft predictions the released loss still has a value and a gradient."""
    _, teacher = logits(16, 10)
    values, sizes = [], []
    for options in OPTIONS:
        student = (teacher / 3).clone().requires_grad_()
        value = sinkhorn_loss(student, teacher / 3, **options)
        value.backward()
        assert student.grad is not None
        values.append(value.item())
        sizes.append(student.grad.norm().item())
    assert values[0] > 0.1
    assert values[1] == pytest.approx(0, abs=1e-12)
    assert sizes[0] > 0.05
    assert sizes[1] < 1e-2 * sizes[0]  # what 20 alternations leave


def test_single_rows_are_compared_by_twice_their_total_variation():
    student, teacher = logits(1, 4)
    expected = (student.softmax(1) - teacher.softmax(1)).abs().sum()
    assert sinkhorn_loss(student, teacher, 1.0).item() == pytest.approx(expected.item())


def test_the_order_of_the_teacher_does_not_matter():
    """Transport is between clouds: it knows no pairs."""
    student, teacher = logits(6, 4)
    assert sinkhorn_loss(student, teacher.flip(0)).item() == pytest.approx(sinkhorn_loss(student, teacher).item())


def test_a_small_eps_does_not_underflow():
    p = torch.eye(3, requires_grad=True)
    value = transport_cost(p, 1 - torch.eye(3), eps=1e-3)
    value.backward()
    assert value.isfinite()
    assert p.grad is not None
    assert p.grad.isfinite().all()


@pytest.mark.parametrize("options", OPTIONS)
def test_gradients(options):
    student, teacher = logits(4, 3)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: sinkhorn_loss(s, teacher, **options), (student,))


def test_every_option_changes_the_value():
    student, teacher = logits(6, 5)
    options: list[dict] = [{}, {"temperature": 1.0}, {"eps": 0.5}, {"iterations": 1}, {"debiased": True}]
    assert len({round(sinkhorn_loss(student, teacher, **o).item(), 9) for o in options}) == len(options)


@pytest.mark.parametrize("options", OPTIONS)
def test_low_precision(options):
    student, teacher = logits(32, 20)
    check_low_precision(sinkhorn_loss, student, teacher, **options)


@pytest.mark.parametrize("options", OPTIONS)
def test_no_rows(options):
    check_empty(sinkhorn_loss, (0, 5), (0, 5), **options)


def test_errors():
    with pytest.raises(KDBenchError, match="sinkhorn_loss"):
        sinkhorn_loss(torch.zeros(2, 3), torch.zeros(1, 3))
