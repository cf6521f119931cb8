"""Means over hyperedges, one by one."""

from __future__ import annotations

import math

import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.lighthgnn import high_order_loss, hyperedge_mean, reliability
from tests.functional.checks import check_autocast, check_empty, check_low_precision

SETS = [(0, 1, 2), (2, 3), (4,), (1, 4)]
MEMBERS = torch.tensor([(node, number) for number, own in enumerate(SETS) for node in own]).T
KEPT = torch.tensor([True, False, True, True])


def made(name: str, rows: int = 5, width: int = 3) -> torch.Tensor:
    return torch.randn(rows, width, generator=rng.generator(0, "lighthgnn", name), dtype=torch.float64)


def law(logits: list[float]) -> list[float]:
    powers = [math.exp(x) for x in logits]
    return [p / sum(powers) for p in powers]


def mean_law(logits: torch.Tensor, own: tuple[int, ...]) -> list[float]:
    laws = [law(logits[node].tolist()) for node in own]
    return [sum(column) / len(own) for column in zip(*laws, strict=True)]


@pytest.mark.parametrize("faithful", ["paper", "code"])
def test_the_loss_matches_the_equation(faithful):
    student, teacher = made("s"), made("t")
    total = 0.0
    for own in (SETS[0], SETS[2], SETS[3]):
        p, q = mean_law(teacher, own), mean_law(student, own)
        if faithful == "paper":
            total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        else:
            total += sum(math.exp(a) * (a - math.log(b)) for a, b in zip(p, q, strict=True))
    found = high_order_loss(student, teacher, MEMBERS, KEPT, faithful)
    assert found.item() == pytest.approx(total / 3, rel=1e-9)
    assert torch.autograd.gradcheck(
        lambda x: high_order_loss(x, teacher, MEMBERS, KEPT, faithful), student.requires_grad_()
    )


def test_reliability_matches_the_equation():
    clean, noised = made("c"), made("n")
    apart = []
    for own in SETS:
        entropies = [
            sum(-sum(p * math.log(p) for p in law(logits[node].tolist())) for node in own) / len(own)
            for logits in (clean, noised)
        ]
        apart.append(abs(entropies[0] - entropies[1]))
    expected = torch.tensor([1 - a / max(apart) for a in apart], dtype=torch.float64)
    torch.testing.assert_close(reliability(clean, noised, MEMBERS), expected)
    assert torch.equal(reliability(clean, clean, MEMBERS), torch.ones(4, dtype=torch.float64))


def test_what_the_loss_does_not_see_and_empty_input():
    student, teacher = made("s"), made("t")
    plain = high_order_loss(student, teacher, MEMBERS, KEPT)
    assert high_order_loss(teacher, teacher, MEMBERS, KEPT).item() == pytest.approx(0, abs=1e-12)
    order = torch.randperm(MEMBERS.shape[1], generator=torch.Generator().manual_seed(0))
    assert high_order_loss(student, teacher, MEMBERS[:, order], KEPT).item() == pytest.approx(plain.item())
    others = student.clone()
    others[3] += 1  # in the hyperedge that is not kept alone
    assert high_order_loss(others, teacher, MEMBERS, KEPT) == plain
    none = torch.empty(2, 0, dtype=torch.long)
    check_empty(high_order_loss, (0, 3), torch.zeros(0, 3), none, torch.zeros(0, dtype=torch.bool))
    assert high_order_loss(student, teacher, MEMBERS, torch.zeros(4, dtype=torch.bool)).item() == 0
    assert hyperedge_mean(student, none).shape == (0, 3)
    assert reliability(student[:0], student[:0], none).shape == (0,)
    check_low_precision(high_order_loss, student, teacher, MEMBERS, KEPT)
    check_autocast(high_order_loss, student, teacher, members=MEMBERS, kept=KEPT)
    with pytest.raises(KDBenchError, match="expected"):
        high_order_loss(student, teacher[:2], MEMBERS, KEPT)
