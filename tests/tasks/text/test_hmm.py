"""The filter against an enumeration of all paths, and samples against the law."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from kdbench.base import rng
from tasks.text.hmm import Chain


def random_chain(states: int, words: int, seed: int = 0) -> Chain:
    draw = rng.numpy(seed, "chain")
    return Chain(
        draw.dirichlet(np.ones(states)),
        draw.dirichlet(np.ones(states), states),
        draw.dirichlet(np.ones(words), states),
    )


def probability(chain: Chain, words: tuple[int, ...]) -> float:
    """The sum over all paths of states of the probability of path and words."""
    total = 0.0
    for path in product(range(len(chain.start)), repeat=len(words)):
        one = chain.start[path[0]]
        for step, (state, word) in enumerate(zip(path, words, strict=True)):
            one *= chain.emission[state, word]
            if step + 1 < len(path):
                one *= chain.transition[state, path[step + 1]]
        total += one
    return total


@pytest.mark.parametrize("seed", range(3))
def test_the_filter_is_the_enumeration(seed):
    chain = random_chain(3, 4, seed)
    texts = np.array([*product(range(4), repeat=3)])
    laws = chain.law(texts)
    for text, law in zip(texts, laws, strict=True):
        for step in range(3):
            before = tuple(text[:step])
            told = probability(chain, before) if before else 1.0
            expected = [probability(chain, (*before, word)) / told for word in range(4)]
            np.testing.assert_allclose(law[step], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(laws.sum(2), 1, atol=1e-12)


def test_the_probability_of_a_text_is_the_enumeration():
    chain = random_chain(3, 4)
    texts = np.array([*product(range(4), repeat=3)])
    found = chain.likelihood(texts)
    np.testing.assert_allclose(np.exp(found), [probability(chain, tuple(text)) for text in texts], rtol=1e-12)
    assert np.exp(found).sum() == pytest.approx(1, abs=1e-12)
    assert np.isfinite(chain.likelihood(chain.sample(2, 2000, rng.numpy(0, "long")))).all()


def test_a_long_text_keeps_its_precision():
    chain = random_chain(5, 6)
    laws = chain.law(chain.sample(2, 2000, rng.numpy(0, "long")))
    assert np.isfinite(laws).all()
    np.testing.assert_allclose(laws.sum(2), 1, atol=1e-12)


def test_samples_follow_the_law():
    chain = random_chain(3, 3)
    texts = chain.sample(40000, 2, rng.numpy(0, "texts"))
    found = np.bincount(texts[:, 0] * 3 + texts[:, 1], minlength=9) / len(texts)
    expected = [probability(chain, (first, second)) for first in range(3) for second in range(3)]
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_the_first_texts_do_not_depend_on_how_many_there_are():
    chain = random_chain(3, 4)
    few, many = (chain.sample(count, 7, rng.numpy(0, "texts")) for count in (5, 50))
    np.testing.assert_array_equal(few, many[:5])


def test_no_text_has_no_law():
    assert random_chain(3, 4).law(np.zeros((0, 5), dtype=int)).shape == (0, 5, 4)
    assert random_chain(3, 4).likelihood(np.zeros((2, 0), dtype=int)).tolist() == [0, 0]
    assert random_chain(3, 4).sample(0, 5, rng.numpy(0)).shape == (0, 5)
