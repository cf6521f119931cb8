from __future__ import annotations

import hashlib

import numpy as np
import pytest

from tasks.text.grammar import FOLLOWS, SLOTS, TOPICS, WORDS, Grammar, chain, make

PLACE = {word: index for index, word in enumerate(WORDS)}


@pytest.fixture(scope="module")
def texts() -> np.ndarray:
    return make(Grammar(texts=400, test=10))[0]


def test_every_word_is_one_word_and_every_slot_leads_on():
    assert len(WORDS) == len({*WORDS}) == 68
    assert {*SLOTS} == {*FOLLOWS}
    assert all(sum(following.values()) == pytest.approx(1) for following in FOLLOWS.values())
    assert {after for following in FOLLOWS.values() for after in following} <= {*SLOTS}


def test_the_law_is_one_and_every_text_is_possible():
    law = chain(Grammar())
    assert law.emission.shape == (272, 68)
    np.testing.assert_allclose(law.start.sum(), 1)
    np.testing.assert_allclose(law.transition.sum(1), 1)
    np.testing.assert_allclose(law.emission.sum(1), 1)
    assert law.emission.min() > 0


def test_a_verb_agrees_across_what_stands_between():
    law = chain(Grammar())
    one, many = (PLACE[word] for word in ("carries", "carry"))
    said = [
        [PLACE[word] for word in text.split()]
        for text in ("this river near these boats .", "these rivers near this boat .")
    ]
    single, several = law.law(np.array(said))[:, 5]
    assert single[one] > 10 * single[many]
    assert several[many] > 10 * several[one]


def test_a_topic_stays():
    law, said = chain(Grammar()), "the river carries the boat . the deep ."
    river = law.law(np.array([[PLACE[word] for word in said.split()]]))[0]
    assert river[7, PLACE["deep"]] > 3 * river[7, PLACE["hot"]]
    nouns = [PLACE[noun[0]] for topic in TOPICS for noun in topic[:2]]
    assert {*river[8].argsort()[::-1][:4]} & {*nouns}


def test_texts_are_those_of_the_seed(texts):
    np.testing.assert_array_equal(texts, make(Grammar(texts=500, test=10))[0][:400])
    assert (texts != make(Grammar(texts=400, test=10, seed=1))[0]).any()
    # Another machine makes the same.
    assert hashlib.sha256(texts.astype("<i2").tobytes()).hexdigest()[:16] == "0b8f206973a881e1"


def test_the_entropy_of_the_law_is_that_of_the_texts(texts):
    laws = chain(Grammar()).law(texts)
    entropy = -(laws * np.log(laws)).sum(2).mean()
    surprise = -np.log(np.take_along_axis(laws, texts[:, :, None], 2)).mean()
    assert entropy == pytest.approx(surprise, rel=0.02)
    assert 1.7 < entropy < 2.1
