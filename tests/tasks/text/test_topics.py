"""Topics whose posterior is exact."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from tasks.text.grammar import WORDS
from tasks.text.topics import Topics, chains, make, names, posterior
from tests.tasks.text.test_hmm import probability, random_chain

FEW = Topics(texts=400, test=300, topics=4)


def test_the_posterior_is_that_of_all_paths():
    laws = [random_chain(2, 3, seed) for seed in range(3)]
    texts = np.array([*product(range(3), repeat=3)])
    for text, found in zip(texts, posterior(laws, texts), strict=True):
        told = np.array([probability(law, tuple(text)) for law in laws])
        np.testing.assert_allclose(found, told / told.sum(), rtol=0, atol=1e-12)


def test_a_topic_is_a_draw_from_its_posterior():
    (texts, topics), _ = make(replace(FEW, texts=4000, concentration=1.0))
    law = posterior(chains(replace(FEW, concentration=1.0)), texts)
    # Of the texts that a topic is said to be of with some probability, as many are.
    for low, high in ((0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9)):
        row, topic = np.nonzero((law > low) & (law <= high))
        assert (topics[row] == topic).mean() == pytest.approx(law[row, topic].mean(), abs=0.05)


def test_where_a_word_stands_tells_something():
    """A posterior that sees the words of each text in another order is wrong more often."""
    (texts, topics), _ = make(replace(FEW, texts=2000))
    laws, draw = chains(FEW), np.random.default_rng(0)
    right = (posterior(laws, texts).argmax(1) == topics).mean()
    shuffled = (posterior(laws, draw.permuted(texts, axis=1)).argmax(1) == topics).mean()
    assert right > shuffled + 0.1


def test_laws_and_texts():
    laws = chains(FEW)
    assert len(laws) == len(names(FEW)) == 4
    for law in laws:
        np.testing.assert_allclose(law.emission.sum(1), 1, atol=1e-12)
        np.testing.assert_allclose(law.transition.sum(1), 1, atol=1e-12)
        assert law.emission.min() > 0
    (texts, topics), (test, _) = make(FEW)
    assert texts.shape == (400, 12)
    assert test.shape == (300, 12)
    assert texts.max() < len(WORDS)
    assert set(topics) == {0, 1, 2, 3}
    again = make(FEW)
    assert np.array_equal(again[0][0], texts)
    assert not np.array_equal(make(replace(FEW, seed=1))[0][0], texts)
    easy, hard = (posterior(chains(replace(FEW, concentration=c)), test).max(1).mean() for c in (0.1, 2.0))
    assert easy > hard
