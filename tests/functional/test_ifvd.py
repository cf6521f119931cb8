"""Losses and gradients agree with ``CriterionIFV`` of winycg/CIRKD, as in YukangWang/IFVD (the authors'), run outside
of this repository on the same features of (2, 8, 12, 24), (4, 16 and 32, 24, 48) and (1, 4 and 9, 7, 5), all positions
labelled: exactly (gradients 1e-15) in float64, exactly (8e-7) in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.ifvd import class_centres, class_similarity, class_variation_loss
from tests.functional.checks import check_autocast, check_empty, check_low_precision, check_zero

K = 4


def given(b: int, c_s: int, c_t: int, *space: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "ifvd", b, c_s, c_t, *space)
    student, teacher = (torch.randn(b, c, *space, generator=g, dtype=torch.float64) for c in (c_s, c_t))
    return student, teacher, torch.randint(-1, K, (b, *space), generator=g)


def similarities(feature: np.ndarray, labels: np.ndarray) -> dict[tuple[int, ...], float]:
    """Eq. 1 and 2 of one sample, one labelled position at a time."""
    found, cells = {}, np.moveaxis(feature, 0, -1)
    for at in np.ndindex(*labels.shape):
        if labels[at] < 0:
            continue
        alike = [cells[p] for p in np.ndindex(*labels.shape) if labels[p] == labels[at]]
        centre, own = np.mean(alike, axis=0), cells[at]
        found[at] = float(centre @ own / np.sqrt((centre @ centre) * (own @ own)))
    return found


@pytest.mark.parametrize("shape", [(1, 2, 3, 6), (3, 4, 2, 4, 5), (2, 3, 3, 2, 3, 2)])
def test_matches_the_equations(shape):
    student, teacher, labels = given(*shape)
    squares = []
    for s, t, y in zip(*(x.numpy() for x in (student, teacher, labels)), strict=True):
        of_s, of_t = similarities(s, y), similarities(t, y)
        squares += [(of_s[p] - of_t[p]) ** 2 for p in of_s]
    value = class_variation_loss(student, teacher, labels, K)
    assert value.item() == pytest.approx(float(np.mean(squares)), rel=1e-9)


def test_centres():
    feature, _, labels = given(2, 3, 3, 4, 5)
    found = class_centres(feature, labels, K + 2)
    assert found.shape == (2, K + 2, 3)
    for b, k in np.ndindex(2, K + 2):
        chosen = feature[b].flatten(1)[:, labels[b].flatten() == k]
        expected = chosen.mean(1) if chosen.shape[1] else torch.zeros(3, dtype=torch.float64)
        torch.testing.assert_close(found[b, k], expected)


def test_invariants():
    student, teacher, labels = given(2, 3, 5, 4, 4)
    student.requires_grad_()
    value = class_variation_loss(student, teacher, labels, K)
    # Neither the scale of a feature matters, nor how classes are numbered, nor a rotation of its channels.
    torch.testing.assert_close(class_variation_loss(3 * student, 0.1 * teacher, labels, K), value)
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=rng.generator(0, "turn"), dtype=torch.float64))
    turned = torch.einsum("dc,bchw->bdhw", turn, teacher)
    torch.testing.assert_close(class_variation_loss(student, turned, labels, K), value)
    other = torch.where(labels >= 0, K - 1 - labels, -1)
    torch.testing.assert_close(class_variation_loss(student, teacher, other, K), value)
    assert class_variation_loss(teacher, teacher, labels, K) == pytest.approx(0, abs=1e-15)
    assert torch.autograd.gradcheck(lambda s: class_variation_loss(s, teacher, labels, K), (student,))
    (gradient,) = torch.autograd.grad(value, student)
    assert not gradient.where((labels < 0)[:, None], 0.0).any()


def test_alone_in_its_class_a_position_is_its_centre():
    feature = torch.randn(1, 3, 4, generator=rng.generator(0, "alone"))
    torch.testing.assert_close(class_similarity(feature, torch.arange(4)[None], 4), torch.ones(1, 4))


def test_low_precision_and_no_positions():
    student, teacher, labels = given(2, 6, 8, 5, 5)
    check_low_precision(class_variation_loss, student.float(), teacher.float(), labels=labels, classes=K, rel=0.05)
    check_autocast(class_variation_loss, student, teacher, labels=labels, classes=K)
    nothing = torch.full((2, 5, 5), -1)
    check_zero(class_variation_loss, student.float(), teacher.float(), labels=nothing, classes=K)
    check_empty(class_variation_loss, (0, 3, 4, 4), (0, 5, 4, 4), labels=nothing[:0, :4, :4], classes=K)
    with pytest.raises(KDBenchError, match=r"class_variation_loss: found a student .* and labels \(2, 5, 5\)"):
        class_variation_loss(student[..., 1:], teacher, labels, K)
