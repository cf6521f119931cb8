from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdbench.functional.kd import kd_loss
from kdbench.functional.taid import interpolated_loss, next_share
from tests.functional.checks import check_empty, check_low_precision
from tests.functional.laws import kl, logits, mean


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("law", ["categorical", "bernoulli"])
def test_matches_the_equation(share, law):
    student, teacher, weight = logits(5, 4)
    between = torch.from_numpy((1 - share) * student.numpy() + share * teacher.numpy())
    found = interpolated_loss(student, teacher, share, 2.0, law=law, weight=weight)
    assert found.item() == pytest.approx(mean(student, between, kl, 2.0, law, weight), rel=1e-9, abs=1e-12)


def test_no_gradient_comes_through_the_target():
    student, teacher, _ = logits(3, 4)
    leaf, held = student.clone().requires_grad_(), torch.lerp(student, teacher, 0.3)
    interpolated_loss(leaf, teacher, torch.tensor(0.3)).backward()
    again = student.clone().requires_grad_()
    kd_loss(again, held, 1.0).backward()
    torch.testing.assert_close(leaf.grad, again.grad)


def test_low_precision_and_no_rows():
    check_low_precision(interpolated_loss, *logits(64, 50)[:2], share=0.5)
    check_empty(interpolated_loss, (0, 5), (0, 5), share=0.5)


def test_the_share_moves_as_written():
    losses = [2.0, 1.5, 1.6, 0.8, 0.7, 0.7]
    share, momentum, last = torch.tensor(0.4), torch.tensor(0.0), torch.tensor(torch.nan)
    t, m, before = 0.4, 0.0, None
    for step, loss in enumerate(losses):
        progress = step / 20
        if before is not None:
            m = 0.9 * m + 0.1 * (before - loss) / before
            t = t + 0.05 / (1 + math.exp(-m)) * (1 - t)
        t, before = min(1.0, max(0.4 + 0.6 * progress, t)), loss
        share, momentum = next_share(share, momentum, torch.tensor(loss), last, progress, alpha=0.05, decay=0.9)
        last = torch.tensor(loss)
        assert (share.item(), momentum.item()) == pytest.approx((t, m), rel=1e-5)


def test_the_share_is_never_behind_the_line_nor_beyond_the_end():
    values = torch.tensor(0.4), torch.tensor(0.0), torch.tensor(1.0), torch.tensor(1.0)
    assert next_share(*values, progress=0.5)[0].item() == pytest.approx(0.7)
    assert next_share(*values, progress=0.0, alpha=50.0, end=0.9)[0].item() == pytest.approx(0.9)
    assert np.isfinite(next_share(*values[:3], torch.tensor(0.0), progress=0.1)[1].item())
