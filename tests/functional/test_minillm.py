from __future__ import annotations

import itertools

import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.minillm import later_rewards, long_term_loss
from tests.functional.checks import check_autocast, check_empty, check_low_precision

MASK = torch.tensor([[False, True, True, True, True], [False, True, True, False, False]])


def words(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = rng.generator(0, "minillm", *shape)
    first, second = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    return first, second


def test_a_word_earns_the_mean_of_later_ones():
    reward, _ = words(2, 5)
    found = later_rewards(reward, MASK)
    for b, (first, last) in enumerate(((1, 5), (1, 3))):
        for t in range(5):
            later = reward[b, t + 1 : last].tolist() if first <= t < last else []
            expected = sum(later) / len(later) if later else 0.0
            assert found[b, t].item() == pytest.approx(expected, abs=1e-12)


def test_the_code_counts_the_word_itself_discounts_and_whitens():
    reward, _ = words(2, 5)
    raw = torch.zeros(2, 5, dtype=torch.float64)
    for b, (first, last) in enumerate(((1, 5), (1, 3))):
        for t in range(first, last):
            sums = sum(0.9 ** (u - t) * reward[b, u].item() for u in range(t, last))
            raw[b, t] = sums / (last - t)
    # The word in front was given; places behind the last word are whitened too.
    expected = torch.zeros(2, 5, dtype=torch.float64)
    expected[:, 1:] = (raw[:, 1:] - raw[:, 1:].mean()) / (raw[:, 1:].var() + 1e-8).sqrt()
    torch.testing.assert_close(later_rewards(reward, MASK, faithful="code", gamma=0.9), expected)


def test_the_gradient_is_that_of_the_reverse_kl_of_whole_texts():
    """Two words of three, all texts counted out: one-step terms and rewards together, without the length's share."""
    g = rng.generator(0, "minillm", "enumerated")
    first, second = (torch.randn(3, generator=g, dtype=torch.float64), torch.randn(3, 3, generator=g).double())
    log_p = (
        torch.randn(3, generator=g).double().log_softmax(0),
        torch.randn(3, 3, generator=g).double().log_softmax(1),
    )
    leaves = first.requires_grad_(), second.requires_grad_()
    log_q = leaves[0].log_softmax(0), leaves[1].log_softmax(1)
    texts = [*itertools.product(range(3), range(3))]
    whole = torch.stack(
        [
            (log_q[0][a] + log_q[1][a, b]).exp() * (log_q[0][a] + log_q[1][a, b] - log_p[0][a] - log_p[1][a, b])
            for a, b in texts
        ]
    ).sum()
    expected = torch.autograd.grad(whole, leaves, retain_graph=True)
    chance = torch.stack([(log_q[0][a] + log_q[1][a, b]).exp() for a, b in texts]).detach()
    single = (log_q[0].exp() * (log_q[0] - log_p[0])).sum()
    single = single + sum(
        log_q[0][a].exp().detach() * (log_q[1][a].exp() * (log_q[1][a] - log_p[1][a])).sum() for a in range(3)
    )
    said_q = torch.stack([torch.stack([log_q[0][a], log_q[1][a, b]]) for a, b in texts])
    said_p = torch.stack([torch.stack([log_p[0][a], log_p[1][a, b]]) for a, b in texts])
    mask = torch.ones(1, 2, dtype=torch.bool)
    long = torch.zeros((), dtype=torch.float64)
    for row, share in enumerate(chance):
        q, p = said_q[row : row + 1], said_p[row : row + 1]
        long = long + share * 2 * long_term_loss(q, later_rewards(p - q, mask), mask)
    found = torch.autograd.grad(single + long, leaves)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_value_precision_and_edges():
    log_q, advantage = words(2, 5)
    loss = long_term_loss(log_q, advantage, MASK)
    assert loss.item() == pytest.approx(-advantage[MASK].mean().item())
    (gradient,) = torch.autograd.grad(long_term_loss(log_q.requires_grad_(), advantage, MASK), log_q)
    torch.testing.assert_close(gradient, torch.where(MASK, -advantage / 6, 0.0))
    check_low_precision(long_term_loss, *words(8, 16), torch.ones(8, 16, dtype=torch.bool))
    check_autocast(long_term_loss, *words(2, 3), mask=torch.ones(2, 3, dtype=torch.bool))
    check_empty(long_term_loss, (0, 3), (0, 3), torch.ones(0, 3, dtype=torch.bool))
    assert long_term_loss(log_q, advantage, MASK & False) == 0
    for faithful in ("paper", "code"):
        assert later_rewards(torch.zeros(0, 3), torch.ones(0, 3) > 0, faithful=faithful).shape == (0, 3)
        one = later_rewards(torch.tensor([[torch.nan, 3.0]]), torch.tensor([[False, True]]), faithful=faithful)
        assert one.isfinite().all()
    with pytest.raises(KDBenchError, match="later_rewards: the student has shape"):
        later_rewards(torch.zeros(2, 3), MASK)
