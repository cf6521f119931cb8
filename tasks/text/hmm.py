"""Hidden Markov models of words: sampled, and asked for the exact law of the next word."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Chain:
    """A hidden Markov model of S states and V words, in float64.

    Attributes:
        start: ``(S,)`` law of the first state.
        transition: ``(S, S)`` law of the next state, by row.
        emission: ``(S, V)`` law of the word that a state says, by row.
    """

    start: np.ndarray
    transition: np.ndarray
    emission: np.ndarray

    def sample(self, count: int, length: int, draw: np.random.Generator) -> np.ndarray:
        """Draws texts; the first of them do not depend on how many there are.

        Args:
            count: N texts.
            length: L words each.
            draw: Where the numbers come from.

        Returns:
            ``(N, L)`` int64 words.
        """
        numbers = draw.random((count, length, 2))
        moves, says = self.transition.cumsum(1), self.emission.cumsum(1)
        words = np.empty((count, length), dtype=np.int64)
        state = _pick(np.broadcast_to(self.start.cumsum(), (count, len(self.start))), numbers[:, 0, 0])
        for step in range(length):
            words[:, step] = _pick(says[state], numbers[:, step, 1])
            if step + 1 < length:
                state = _pick(moves[state], numbers[:, step + 1, 0])
        return words

    def law(self, words: np.ndarray) -> np.ndarray:
        """Returns the law of each word given those before it, by the forward filter.

        With the belief ``b_t`` over the state that says word t, ``p(w_t | w_<t) = b_t E``; then ``b_{t+1}`` is
        ``(b_t * E[:, w_t]) A``, put to sum one at every step so that no product of probabilities vanishes.

        Args:
            words: ``(N, L)`` integers from 0 to V - 1.

        Returns:
            ``(N, L, V)`` float64; the row at t does not depend on the words from t on.
        """
        count, length = words.shape
        laws = np.empty((count, length, self.emission.shape[1]))
        belief = np.broadcast_to(self.start, (count, len(self.start)))
        for step in range(length):
            laws[:, step] = belief @ self.emission
            seen = belief * self.emission.T[words[:, step]]
            belief = (seen / seen.sum(1, keepdims=True)) @ self.transition
        return laws

    def likelihood(self, words: np.ndarray) -> np.ndarray:
        """Returns the logarithm of the probability of texts, by the forward filter.

        Args:
            words: ``(N, L)`` integers from 0 to V - 1.

        Returns:
            ``(N,)`` float64, in nats.
        """
        total = np.zeros(len(words))
        belief = np.broadcast_to(self.start, (len(words), len(self.start)))
        for step in range(words.shape[1]):
            seen = belief * self.emission.T[words[:, step]]
            share = seen.sum(1)
            total += np.log(share)
            belief = (seen / share[:, None]) @ self.transition
        return total


def _pick(cumulated: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Returns which entry of each row of cumulated laws ``(N, K)`` a number ``(N,)`` in [0, 1) falls into."""
    picked: np.ndarray = (cumulated < (numbers * cumulated[:, -1])[:, None]).sum(1)
    return picked
