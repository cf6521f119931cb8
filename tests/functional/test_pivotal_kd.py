"""References are the authors' masks and loss in words (CVMI-Lab/SparseKD), one position at a time, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.features import Law
from kdbench.functional.pivotal_kd import pivotal_logit_loss, pivotal_positions, probabilities
from tests.functional.checks import check_autocast, check_empty, check_low_precision, check_zero


def logits(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    g = rng.generator(0, "pivotal_kd", *shape)
    student, teacher = (2 * torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.rand(shape[:-1], generator=g, dtype=torch.float64)


def masks(
    scores: np.ndarray, threshold: float = 0, top: int | None = None, peaks: Any = None, soft: bool = False
) -> np.ndarray:
    found = np.zeros(scores.shape[:2])
    for b, p in np.ndindex(*found.shape):
        best = max(scores[b, p])
        value = float(best > threshold)
        if top is not None:
            better = [int((scores[b] > s).sum()) for s in scores[b, p]]
            value *= min(better) < top
        if peaks is not None:
            value *= float(peaks[b, p])
        found[b, p] = value * best if soft else value
    return found


@pytest.mark.parametrize("shape", [(2, 9, 3), (1, 4, 1)])
@pytest.mark.parametrize(
    "options",
    [{}, {"threshold": 0.7}, {"top": 3}, {"top": 1000}, {"soft": True}, {"threshold": 0.4, "top": 5, "soft": True}],
)
@pytest.mark.parametrize("peaked", [False, True])
def test_positions(shape, options, peaked):
    _, teacher, peaks = logits(*shape)
    given = options | ({"peaks": peaks} if peaked else {})
    found = pivotal_positions(teacher.sigmoid(), **given)
    torch.testing.assert_close(found, torch.from_numpy(masks(teacher.sigmoid().numpy(), **given)))


@pytest.mark.parametrize("law", ["bernoulli", "categorical"])
@pytest.mark.parametrize("shape", [(7, 3), (1, 2)])
def test_loss(law: Law, shape):
    student, teacher, weight = logits(*shape)
    expected = 0.0
    for n in range(shape[0]):
        rows = []
        for values in (student[n].tolist(), teacher[n].tolist()):
            if law == "bernoulli":
                rows.append([1 / (1 + math.exp(-v)) for v in values])
            else:
                rows.append([math.exp(v) / sum(map(math.exp, values)) for v in values])
        expected += weight[n].item() * sum((a - b) ** 2 for a, b in zip(*rows, strict=True))
    value = pivotal_logit_loss(student, teacher, weight, law)
    assert value.item() == pytest.approx(expected / weight.sum().item(), rel=1e-12)


def test_only_pivotal_rows_learn():
    student, teacher, weight = logits(6, 3)
    weight[2] = 0
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(pivotal_logit_loss(student, teacher, weight), student)
    assert not gradient[2].any()
    assert gradient[[0, 1, 3, 4, 5]].all()
    assert torch.autograd.gradcheck(lambda s: pivotal_logit_loss(s, teacher, weight), (student,))
    assert pivotal_logit_loss(teacher, teacher, weight) == 0
    check_zero(pivotal_logit_loss, (6, 3), (6, 3), torch.zeros(6))


def test_low_precision_and_no_rows():
    student, teacher, weight = (x.float() for x in logits(6, 3))
    check_low_precision(pivotal_logit_loss, student, teacher, weight)
    check_autocast(pivotal_logit_loss, student, teacher, weight)
    check_empty(pivotal_logit_loss, (0, 3), (0, 3), (0,))
    assert pivotal_positions(torch.zeros(0, 4, 3), top=2).shape == (0, 4)
    assert pivotal_positions(torch.zeros(2, 0, 3), top=2).shape == (2, 0)
    assert pivotal_positions(torch.full((1, 2, 3), 0.5).bfloat16()).dtype == torch.float32
    assert probabilities(teacher.bfloat16(), "bernoulli").dtype == torch.float32


def test_what_does_not_fit_is_one_line():
    with pytest.raises(KDBenchError, match=r"^pivotal_positions: peaks of shape \(2, 3\) for scores of shape"):
        pivotal_positions(torch.zeros(2, 4, 3), peaks=torch.zeros(2, 3))
    with pytest.raises(KDBenchError, match="pivotal_logit_loss: the student has shape"):
        pivotal_logit_loss(torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2))
