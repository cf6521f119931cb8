from __future__ import annotations

import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.mobilebert import feature_map_loss
from tests.functional.checks import check_autocast, check_empty, check_low_precision


def maps(n: int, d: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = rng.generator(0, "mobilebert", n, d)
    student, teacher = (2 * torch.randn(n, d, generator=g, dtype=torch.float64) + 1 for _ in range(2))
    return student, teacher, torch.rand(n, generator=g, dtype=torch.float64)


def moments(row: list[float]) -> tuple[float, float]:
    mean = sum(row) / len(row)
    return mean, sum((x - mean) ** 2 for x in row) / len(row)


@pytest.mark.parametrize("shape", [(1, 2), (5, 7)])
def test_matches_the_equations(shape):
    student, teacher, weight = maps(*shape)
    paper = code = 0.0
    for s, t, w in zip(student.tolist(), teacher.tolist(), weight.tolist(), strict=True):
        paper += w * sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / shape[1]
        (m_s, v_s), (m_t, v_t) = moments(s), moments(t)
        normed = [[(x - m) / (v + 1e-3) ** 0.5 for x in row] for row, m, v in ((s, m_s, v_s), (t, m_t, v_t))]
        code += w * sum((a - b) ** 2 for a, b in zip(*normed, strict=True)) / shape[1]
        code += w * ((m_s - m_t) ** 2 + abs(v_s - v_t))
    total = weight.sum().item()
    assert feature_map_loss(student, teacher, weight=weight).item() == pytest.approx(paper / total, rel=1e-9)
    found = feature_map_loss(student, teacher, faithful="code", weight=weight)
    assert found.item() == pytest.approx(code / total, rel=1e-9)


@pytest.mark.parametrize("faithful", ["paper", "code"])
def test_gradients_precision_and_edges(faithful):
    student, teacher, weight = maps(3, 4)
    options = {"faithful": faithful}
    leaf = student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: feature_map_loss(s, teacher, faithful=faithful, weight=weight), (leaf,))
    check_low_precision(feature_map_loss, *maps(64, 32)[:2], **options)
    check_autocast(feature_map_loss, *maps(8, 5)[:2], **options)
    check_empty(feature_map_loss, (0, 5), (0, 5), **options)


def test_bad_input_is_one_line():
    with pytest.raises(KDBenchError, match="feature_map_loss: the student has shape"):
        feature_map_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(KDBenchError, match="faithful='papers' is unknown"):
        feature_map_loss(torch.zeros(2, 3), torch.zeros(2, 3), faithful="papers")  # type: ignore[arg-type]
