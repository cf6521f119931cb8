from __future__ import annotations

import math

import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.tgeo import class_sums, fused_loss, trilateral_state
from tests.functional.checks import check_empty, check_low_precision


def drawn(n: int, c: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "tgeo", n, c)
    student, teacher = (3 * torch.randn(n, c, generator=g, dtype=torch.float64) for _ in range(2))
    ratio, weight = torch.rand(2, n, generator=g, dtype=torch.float64)
    return student, teacher, torch.randint(c, (n,), generator=g), ratio, weight


def softmax(z: list[float], t: float = 1.0) -> list[float]:
    exps = [math.exp(v / t) for v in z]
    return [e / sum(exps) for e in exps]


@pytest.mark.parametrize("shape", [(1, 2), (4, 10), (9, 40)])
@pytest.mark.parametrize("temperature", [1.0, 1.5, 4.0])
def test_the_inner_loss_matches_the_equation(shape, temperature):
    student, teacher, labels, ratio, weight = drawn(*shape)
    total = 0.0
    for s, t, y, a, w in zip(*(x.tolist() for x in (student, teacher, labels, ratio, weight)), strict=True):
        pairs = zip(softmax(t, temperature), softmax(s, temperature), strict=True)
        kl = sum(q * math.log(q / p) for q, p in pairs)
        total += w * (a * temperature**2 * kl - (1 - a) * math.log(softmax(s)[y]))
    value = fused_loss(student, teacher, labels, ratio, temperature, weight=weight)
    assert value.item() == pytest.approx(total / weight.sum().item(), rel=1e-6)


@pytest.mark.parametrize("shape", [(1, 2), (4, 3), (9, 5)])
def test_the_state_holds_the_points_and_the_sides_between_them(shape):
    student, teacher, labels, _, _ = drawn(*shape)
    p, q = student.softmax(1), teacher.softmax(1)
    sums, counts = class_sums(q, labels)
    mean = sums[labels] / counts[labels, None]
    state = trilateral_state(p, q, mean, labels)
    assert state.shape == (shape[0], 9 * shape[1])
    for n in range(shape[0]):
        same = [i for i in range(shape[0]) if labels[i] == labels[n]]
        m = [sum(q[i, k].item() for i in same) / len(same) for k in range(shape[1])]
        s, t, y = p[n].tolist(), q[n].tolist(), [float(k == labels[n]) for k in range(shape[1])]
        blocks = [s, t, y, m]
        for a, b in ((m, s), (y, s), (t, s), (t, y), (m, t)):
            blocks.append([(u - v) ** 2 for u, v in zip(a, b, strict=True)])
        expected = [v for block in blocks for v in block]
        assert state[n].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_ends_of_the_ratio_are_distillation_and_supervision():
    student, teacher, labels, _, _ = drawn(6, 5)
    supervised = torch.nn.functional.cross_entropy(student, labels)
    assert fused_loss(student, teacher, labels, 0.0).item() == pytest.approx(supervised.item())
    assert fused_loss(teacher, teacher, labels, 1.0).item() == pytest.approx(0, abs=1e-12)
    # The ratio of a sample falls where the teacher costs more than the label.
    ratio = torch.full((6,), 0.5, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(fused_loss(student, teacher, labels, ratio), ratio)
    rows = [
        fused_loss(student[i : i + 1], teacher[i : i + 1], labels[i : i + 1], 1.0)
        - fused_loss(student[i : i + 1], teacher[i : i + 1], labels[i : i + 1], 0.0)
        for i in range(6)
    ]
    torch.testing.assert_close(slope, torch.stack(rows) / 6)


def test_gradients_and_options():
    student, teacher, labels, ratio, weight = drawn(4, 3)
    student.requires_grad_()
    ratio.requires_grad_()
    assert torch.autograd.gradcheck(lambda s, a: fused_loss(s, teacher, labels, a, weight=weight), (student, ratio))
    options: list[dict] = [{}, {"temperature": 4.0}, {"weight": weight}]
    values = [fused_loss(student, teacher, labels, ratio, **o).item() for o in options]
    assert len({round(v, 6) for v in values}) == len(options)


def test_low_precision_no_rows_and_errors():
    student, teacher, labels, ratio, _ = drawn(64, 30)
    check_low_precision(lambda s, t: fused_loss(s, t, labels, ratio.float()), student, teacher, rel=0.03)
    check_empty(fused_loss, (0, 5), (0, 5), labels[:0], ratio[:0].float())
    sums, counts = class_sums(torch.zeros(0, 5), labels[:0])
    assert not sums.any()
    assert not counts.any()
    with pytest.raises(KDBenchError, match="equal shapes"):
        fused_loss(student, teacher[:, 1:], labels, 0.5)


def test_sums_stay_in_float32_under_autocast():
    probabilities = torch.full((300, 2), 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums, counts = class_sums(probabilities, torch.zeros(300, dtype=torch.long))
    assert sums.dtype == torch.float32
    assert sums[0].tolist() == [150.0, 150.0]
    assert counts.tolist() == [300.0, 0.0]
