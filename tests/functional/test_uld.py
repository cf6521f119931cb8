from __future__ import annotations

import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.kd import kd_loss
from kdbench.functional.uld import universal_loss
from tests.functional.checks import check_autocast, check_empty, check_low_precision


def logits(n: int, c: int, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = rng.generator(0, "uld", n, c, k)
    student, teacher = (2 * torch.randn(n, size, generator=g, dtype=torch.float64) for size in (c, k))
    return student, teacher, torch.rand(n, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(1, 2, 2), (5, 3, 7), (4, 40, 9)])
@pytest.mark.parametrize("law", ["categorical", "bernoulli"])
def test_matches_the_equation(shape, law):
    student, teacher, weight = logits(*shape)
    total = 0.0
    for z_s, z_t, w in zip(student.tolist(), teacher.tolist(), weight.tolist(), strict=True):
        ranked = []
        for z in (z_s, z_t):
            e = [2.718281828459045 ** (x / 1.5) for x in z]
            p = [x / sum(e) for x in e] if law == "categorical" else [x / (1 + x) for x in e]
            ranked.append(sorted(p, reverse=True) + [0.0] * (max(map(len, (z_s, z_t))) - len(p)))
        total += w * sum(abs(a - b) for a, b in zip(*ranked, strict=True))
    found = universal_loss(student, teacher, 1.5, law=law, weight=weight)
    assert found.item() == pytest.approx(total / weight.sum().item(), rel=1e-9)


def test_which_class_is_which_does_not_count():
    student, _, _ = logits(4, 6, 6)
    teacher = student[:, torch.tensor([3, 0, 5, 1, 4, 2])]
    assert universal_loss(student, teacher).item() == pytest.approx(0, abs=1e-12)
    assert kd_loss(student, teacher, 1.0) > 1


def test_gradients_precision_and_edges():
    student, teacher, weight = logits(3, 4, 6)
    leaf = student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: universal_loss(s, teacher, weight=weight), (leaf,))
    check_low_precision(universal_loss, *logits(64, 50, 30)[:2])
    check_autocast(universal_loss, *logits(8, 5, 4)[:2])
    check_empty(universal_loss, (0, 5), (0, 4))
    assert universal_loss(*logits(1, 3, 5)[:2]).shape == ()
    with pytest.raises(KDBenchError, match="found 2 rows of the student and 3 of the teacher"):
        universal_loss(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(KDBenchError, match="law='gauss' is unknown"):
        universal_loss(torch.zeros(2, 3), torch.zeros(2, 3), law="gauss")  # type: ignore[arg-type]
