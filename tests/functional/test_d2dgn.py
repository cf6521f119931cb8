"""Two teachers, row by row."""

from __future__ import annotations

import math

import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.d2dgn import unlearning_feature_loss, unlearning_response_loss
from tests.functional.checks import check_autocast, check_empty, check_low_precision

FORGOTTEN = torch.tensor([False, True, False, True, True])


def made(name: str, width: int = 3) -> torch.Tensor:
    return torch.randn(5, width, generator=rng.generator(0, "d2dgn", name), dtype=torch.float64)


def kl(teacher: list[float], student: list[float], law: str) -> float:
    if law == "categorical":
        p, q = ([math.exp(x) / sum(map(math.exp, row)) for x in row] for row in (teacher, student))
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    p, q = ([1 / (1 + math.exp(-x)) for x in row] for row in (teacher, student))
    return sum(a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b)) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("law", ["categorical", "bernoulli"])
def test_response_matches_the_equation(law):
    student, knows, blank = made("s"), made("p"), made("d")
    kept = [kl(knows[i].tolist(), student[i].tolist(), law) for i in (0, 2)]
    gone = [kl(blank[i].tolist(), student[i].tolist(), law) for i in (1, 3, 4)]
    found = unlearning_response_loss(student, knows, blank, FORGOTTEN, law)
    assert found.item() == pytest.approx(sum(kept) / 2 + sum(gone) / 3, rel=1e-9)


def test_feature_matches_the_equation():
    student, knows, blank = made("s"), made("p"), made("d")
    kept = [(a - b) ** 2 for i in (0, 2) for a, b in zip(student[i].tolist(), knows[i].tolist(), strict=True)]
    gone = [(a - b) ** 2 for i in (1, 3, 4) for a, b in zip(student[i].tolist(), blank[i].tolist(), strict=True)]
    found = unlearning_feature_loss(student, knows, blank, FORGOTTEN)
    assert found.item() == pytest.approx(sum(kept) / 6 + sum(gone) / 9, rel=1e-9)


@pytest.mark.parametrize("loss", [unlearning_response_loss, unlearning_feature_loss])
def test_what_holds_of_both(loss):
    student, knows, blank = made("s").requires_grad_(), made("p"), made("d")
    assert torch.autograd.gradcheck(lambda x: loss(x, knows, blank, FORGOTTEN), student)
    wanted = torch.where(FORGOTTEN[:, None], blank, knows)
    assert loss(wanted, knows, blank, FORGOTTEN).item() == pytest.approx(0, abs=1e-12)
    # The destroyer says nothing of what is kept, the preserver nothing of what goes.
    assert loss(student, knows, blank + ~FORGOTTEN[:, None], FORGOTTEN) == loss(student, knows, blank, FORGOTTEN)
    assert loss(student, knows + FORGOTTEN[:, None], blank, FORGOTTEN) == loss(student, knows, blank, FORGOTTEN)
    none = torch.zeros(5, dtype=torch.bool)
    assert loss(knows, knows, blank, none).item() == 0
    check_empty(loss, (0, 3), torch.zeros(0, 3), torch.zeros(0, 3), none[:0])
    check_low_precision(loss, student.detach(), knows, blank, FORGOTTEN)
    check_autocast(loss, student.detach(), knows, blank, forgotten=FORGOTTEN)
    with pytest.raises(KDBenchError, match="expected"):
        loss(student, knows, blank[:2], FORGOTTEN)
