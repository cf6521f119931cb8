from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.divergence import bernoulli_kl, categorical_kl, divergence, gaussian_kl, squared_error

LAWS = {"categorical": categorical_kl, "bernoulli": bernoulli_kl}
VALUES = {"plain": squared_error, "gaussian": gaussian_kl}


def logits(n: int, c: int, scale: float = 3.0) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "divergence", n, c)
    return tuple(scale * torch.randn(n, c, generator=g, dtype=torch.float64) for _ in range(2))


def reference(student: np.ndarray, teacher: np.ndarray, temperature: float, law: str) -> list[float]:
    """Sums of probability ratios, straight from the definition."""
    rows = []
    for s, t in zip(student / temperature, teacher / temperature, strict=True):
        if law == "categorical":
            p, q = [[math.exp(v) / sum(math.exp(u) for u in z) for v in z] for z in (t, s)]
            rows.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        else:
            p, q = [[1 / (1 + math.exp(-v)) for v in z] for z in (t, s)]
            rows.append(
                sum(a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b)) for a, b in zip(p, q, strict=True))
            )
    return rows


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 3), (16, 20)])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
def test_matches_the_definition(law, shape, temperature):
    student, teacher = logits(*shape)
    expected = torch.tensor(reference(student.numpy(), teacher.numpy(), temperature, law), dtype=torch.float64)
    torch.testing.assert_close(divergence(student, teacher, temperature, law), expected, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(LAWS[law](student, teacher, torch.tensor(temperature)), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("law", LAWS)
def test_is_zero_at_the_teacher_and_positive_elsewhere(law):
    student, teacher = logits(8, 5)
    assert divergence(teacher, teacher, 2.0, law).abs().max() == 0
    assert (divergence(student, teacher, 2.0, law) > 0).all()


def test_one_sigmoid_is_a_softmax_over_two_classes():
    student, teacher = logits(6, 1)
    s, t = (torch.cat([z, torch.zeros_like(z)], dim=1) for z in (student, teacher))
    torch.testing.assert_close(bernoulli_kl(student, teacher, 3.0), categorical_kl(s, t, 3.0))


@pytest.mark.parametrize("law", LAWS)
def test_gradients(law):
    student, teacher = logits(3, 4)
    both = student.requires_grad_(), teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t: divergence(s, t, 2.0, law), both)


@pytest.mark.parametrize("law", LAWS)
def test_extreme_logits_stay_finite(law):
    student = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    value = divergence(student, torch.tensor([[-200.0, 200.0], [-200.0, 200.0]]), 1.0, law)
    value.sum().backward()
    # Both classes are wrong by 400 nats; a sigmoid head pays 200 for each, a softmax head 400 once.
    torch.testing.assert_close(value, torch.tensor([400.0, 0.0]))
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(law, dtype):
    student, teacher = (z.to(dtype) for z in logits(32, 100))
    value = divergence(student, teacher, 4.0, law)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, divergence(student.float(), teacher.float(), 4.0, law))


@pytest.mark.parametrize("law", LAWS)
def test_no_rows(law):
    student = torch.zeros(0, 4, requires_grad=True)
    value = divergence(student, torch.zeros(0, 4), 1.0, law)
    assert value.shape == (0,)
    value.sum().backward()
    assert student.grad is not None


# ---- predicted values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 1), (16, 3)])
def test_gaussian_is_that_of_torch(shape):
    rows, values = shape
    student, teacher = logits(rows, 2 * values, scale=2.0)
    laws = [Normal(mean, (0.5 * log).exp()) for mean, log in (x.chunk(2, dim=1) for x in (student, teacher))]
    expected = kl_divergence(laws[1], laws[0]).sum(1)
    torch.testing.assert_close(divergence(student, teacher, law="gaussian"), expected, rtol=1e-12, atol=1e-12)


def test_plain_is_the_squared_error_and_twice_the_gaussian_of_unit_variance():
    student, teacher = logits(5, 4)
    expected = [sum((a - b) ** 2 for a, b in zip(*r, strict=True)) for r in zip(student, teacher, strict=True)]
    torch.testing.assert_close(divergence(student, teacher, law="plain"), torch.stack(expected))
    unit = (torch.cat([x, torch.zeros_like(x)], dim=1) for x in (student, teacher))
    torch.testing.assert_close(squared_error(student, teacher), 2 * gaussian_kl(*unit))


@pytest.mark.parametrize("law", ["plain", "gaussian"])
def test_values_have_no_temperature(law):
    student, teacher = logits(6, 4)
    assert torch.equal(divergence(student, teacher, 4.0, law), VALUES[law](student, teacher))
    assert divergence(teacher, teacher, 4.0, law).abs().max() == 0
    assert (divergence(student, teacher, 4.0, law) > 0).all()


@pytest.mark.parametrize("law", VALUES)
def test_gradients_precision_and_emptiness_of_values(law):
    student, teacher = (x.requires_grad_() for x in logits(3, 4))
    assert torch.autograd.gradcheck(lambda s, t: divergence(s, t, law=law), (student, teacher))
    low_s, low_t = (x.detach().bfloat16() for x in (student, teacher))
    low = divergence(low_s, low_t, law=law)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, divergence(low_s.float(), low_t.float(), law=law))
    empty = torch.zeros(0, 4, requires_grad=True)
    divergence(empty, torch.zeros(0, 4), law=law).sum().backward()
    assert empty.grad is not None


def test_errors():
    with pytest.raises(KDBenchError, match=r"\(2, 3\).*\(1, 3\)"):
        squared_error(torch.zeros(2, 3), torch.zeros(1, 3))
    with pytest.raises(KDBenchError, match="gaussian_kl: found 3 numbers a row, expected D means, then D log-var"):
        gaussian_kl(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(KDBenchError, match=r"\(2, 3\).*\(1, 3\)"):
        categorical_kl(torch.zeros(2, 3), torch.zeros(1, 3))
    with pytest.raises(KDBenchError, match="did you mean 'bernoulli'"):
        divergence(torch.zeros(2, 3), torch.zeros(2, 3), law="bernouli")  # type: ignore[arg-type]
