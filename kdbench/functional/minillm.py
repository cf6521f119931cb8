"""The reverse KL of whole texts: its gradient through the words that a student has drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.functional.numerics import Faithful, check_faithful, check_same_shape, upcast, weighted_mean

#: Of the released code: discount of later words, and the largest advantage of one word, in nats.
GAMMA, LARGEST = 0.95, 50.0


def later_rewards(reward: Tensor, mask: Tensor, *, faithful: Faithful = "paper", gamma: float = GAMMA) -> Tensor:
    """Returns what each word of a text earns by the words that follow.

    Gu, Dong, Wei & Huang, MiniLLM (ICLR 2024), section 2.2: the mean of the rewards of all later words, so that long
    texts earn no more; zero for the last. ``faithful="code"`` has what the authors' release does instead
    (microsoft/LMOps): the word's own reward is among them, later ones are discounted, the sum is divided by the number
    of words from here on, and all that was written, padding behind it included, is whitened.

    Args:
        reward: ``log p(y) - log q(y)`` of the words that were drawn (B, L), nats.
        mask: words that were drawn (B, L), bool; they stand side by side.
        faithful: ``"paper"`` or ``"code"``.
        gamma: discount of the code, 0 to 1.

    Returns:
        (B, L) without a gradient, float32 for low-precision input; zero where no word was drawn, of ``"paper"``.

    Example:
        >>> reward, mask = torch.tensor([[1.0, 2.0, 4.0]]), torch.ones(1, 3, dtype=torch.bool)
        >>> later_rewards(reward, mask)
        tensor([[3., 4., 0.]])
    """
    check_faithful(faithful)
    check_same_shape(reward, mask, "later_rewards")
    there = mask.to(upcast(reward).dtype)
    left = there.flip(1).cumsum(1).flip(1) * there  # words from here on
    # A place without a word may hold what is no number.
    reward = torch.where(mask, upcast(reward.detach()), 0.0)
    if faithful == "paper":
        behind = reward.flip(1).cumsum(1).flip(1) - reward
        return torch.where(mask, behind / (left - 1).clamp(min=1), 0.0)
    reward = reward.clamp(-LARGEST, LARGEST)
    places = torch.arange(reward.shape[1], device=reward.device)
    apart = places[None] - places[:, None]
    discount = torch.where(apart >= 0, gamma ** apart.clamp(min=0).to(reward.dtype), 0.0)
    earned = reward @ discount.T / left.clamp(min=1)
    written = there.cumsum(1) > 0  # from the first word on, which is behind what was given
    those = earned[written]
    if len(those) < 2:
        return torch.zeros_like(earned)
    return torch.where(written, (earned - those.mean()) * (those.var() + 1e-8).rsqrt(), 0.0)


def long_term_loss(log_q: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """A loss whose gradient is that of a policy: ``-mean (advantage * grad log q(y))`` over the words that were drawn.

    Args:
        log_q: log-probabilities of the words under the student that has just drawn them (B, L).
        advantage: of each, without a gradient (B, L), as :func:`later_rewards` gives it.
        mask: words that were drawn (B, L), bool.

    Returns:
        A scalar, minus the mean advantage, float32 for low-precision input; zero where nothing was drawn.

    Example:
        >>> mask = torch.ones(1, 2, dtype=torch.bool)
        >>> long_term_loss(torch.tensor([[-1.0, -2.0]]), torch.tensor([[1.0, 3.0]]), mask)
        tensor(-2.)
    """
    check_same_shape(log_q, advantage, "long_term_loss")
    log_q = torch.where(mask, upcast(log_q), 0.0)
    ratio = (log_q - log_q.detach()).exp()
    return weighted_mean((-advantage.detach() * ratio).flatten(), mask.flatten())
