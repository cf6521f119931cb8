from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from kdbench.errors import KDBenchError
from kdbench.functional.akl import adaptive_kl_loss, head_share
from kdbench.functional.kd import kd_loss
from kdbench.functional.rkl import reverse_kl_loss
from tests.functional.checks import check_low_precision
from tests.functional.laws import kl, logits, mean


def share(p: np.ndarray, q: np.ndarray, head: float, code: bool) -> float:
    """Class by class: the head is filled from the most probable one on."""
    order, mass, inside = sorted(range(len(p)), key=lambda c: -p[c]), 0.0, []
    for c in order:
        if mass >= head:
            break
        inside.append(c)
        mass += p[c]
    if code:
        inside = [*range(len(inside))]
    gaps = [abs(x - y) for x, y in zip(p, q, strict=True)]
    return sum(gaps[c] for c in inside) / sum(gaps)


def pair(p: np.ndarray, q: np.ndarray, head: float, code: bool) -> float:
    w = share(p, q, head, code)
    return w * kl(p, q) + (1 - w) * kl(q, p)


@pytest.mark.parametrize("head", [0.2, 0.5, 0.95])
@pytest.mark.parametrize("faithful", ["paper", "code"])
def test_matches_the_equation(head, faithful):
    for shape in [(1, 2), (5, 3), (4, 40)]:
        student, teacher, weight = logits(*shape)
        found = adaptive_kl_loss(student, teacher, head, 2.0, faithful=faithful, weight=weight)
        expected = mean(student, teacher, partial(pair, head=head, code=faithful == "code"), 2.0, "categorical", weight)
        assert found.item() == pytest.approx(expected, rel=1e-9)


def test_the_release_takes_other_classes():
    student, teacher, _ = logits(2000, 40)
    p, q = teacher.softmax(1), student.softmax(1)
    paper, code = (head_share(q, p, faithful=faithful) for faithful in ("paper", "code"))
    assert paper.mean() > 3 * code.mean()
    assert abs(np.corrcoef(paper, code)[0, 1]) < 0.1


def test_no_gradient_comes_through_the_share():
    student, teacher, _ = logits(3, 5)
    leaf, again = student.clone().requires_grad_(), student.clone().requires_grad_()
    adaptive_kl_loss(leaf, teacher).backward()
    w = head_share(student.softmax(1), teacher.softmax(1))
    rows = zip(w, again.split(1), teacher.split(1), strict=True)
    parts = [x * kd_loss(s, t, 1.0) + (1 - x) * reverse_kl_loss(s, t) for x, s, t in rows]
    (torch.stack(parts).sum() / 3).backward()
    torch.testing.assert_close(leaf.grad, again.grad)


def test_edges():
    _, teacher, _ = logits(3, 5)
    same = teacher.clone().requires_grad_()
    value = adaptive_kl_loss(same, teacher)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert same.grad is not None
    assert same.grad.abs().max() < 1e-12
    assert head_share(teacher.softmax(1), teacher.softmax(1)).tolist() == [0.5] * 3
    assert adaptive_kl_loss(torch.zeros(0, 5), torch.zeros(0, 5)) == 0
    check_low_precision(adaptive_kl_loss, *logits(64, 50)[:2], rel=0.05)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"head": 1.0}, "head_share: head=1, expected a number between 0 and 1"),
        ({"faithful": "cod"}, "faithful='cod' is unknown; did you mean 'code'"),
        ({"law": "bernoulli"}, "AKL compares softmax distributions"),
    ],
)
def test_bad_options_are_one_line(options, line):
    with pytest.raises(KDBenchError, match=line):
        adaptive_kl_loss(torch.zeros(1, 3), torch.ones(1, 3), **options)
