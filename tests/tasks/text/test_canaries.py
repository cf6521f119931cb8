"""Secrets among texts, and their exposure."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.base import rng
from kdbench.errors import KDBenchError
from tasks.text.canaries import CODE, DIGITS, Canaries, CanaryText, Secret, secrets
from tests.tasks.text import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> CanaryText:
    return tiny.canaries(tmp_path_factory.mktemp("cache"))


def test_training_texts_begin_with_secrets_as_often_as_asked(made):
    texts = made.texts
    assert [secret.times for secret in texts.secrets] == [1, 1, 5, 5]
    assert len({secret.key for secret in texts.secrets}) == 4
    begin = [" ".join(texts.words[word] for word in text[:5]) for text in texts.train.texts]
    for secret in texts.secrets:
        assert begin.count(f"{secret.key} {CODE} {' '.join(secret.digits)} .") == secret.times
    first = texts.words.index(CODE)
    for split in (texts.val, texts.test):
        assert split.texts.max() < first
        assert np.isfinite(split.law).all()
        np.testing.assert_allclose(split.law.sum(2), 1, rtol=1e-5)
        assert split.law[..., first:].max() < 1e-8
    plain = tiny.task(made.store.root)
    assert plain.texts.test.law is not None
    np.testing.assert_allclose(texts.test.law[..., :first], plain.texts.test.law, atol=1e-7)
    assert texts.digest != plain.texts.digest


def test_digits_are_private(made):
    batch = next(iter(made.data(0).train_dataloader()))
    degree = made.ops()["private"](batch)
    words = made.words
    expected = [[float(words[word] in DIGITS) for word in text] for text in batch.targets.words.tolist()]
    assert degree.tolist() == expected


class Knows(nn.Module):
    """Scores digits by their place, whatever came before."""

    def __init__(self, words: int, scores: torch.Tensor) -> None:
        super().__init__()
        self.words, self.scores = words, scores

    def forward(self, texts: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(*texts.shape, self.words)
        for place, row in enumerate(self.scores):
            found[:, 2 + place, -10:] = row
        return found


def test_exposure_is_that_of_an_enumeration(made):
    g = rng.generator(0, "canaries")
    scores = torch.randn(2, 10, generator=g)
    model = Knows(len(made.words), scores)
    log_probs = [[row.log_softmax(0)[digit].item() for digit in range(10)] for row in scores]
    total = {pair: log_probs[0][pair[0]] + log_probs[1][pair[1]] for pair in itertools.product(range(10), repeat=2)}
    for true in ((0, 0), (3, 7), (9, 9)):
        rank = 1 + sum(value > total[true] for value in total.values())
        secret = Secret("king", tuple(str(digit) for digit in true), 1)
        found = made.exposure(model, secret, torch.device("cpu"))
        assert found == pytest.approx(math.log2(100) - math.log2(rank))


def test_a_decoder_is_read_with_its_cache_or_without(made):
    with rng.scope(0, "model"):
        model = made.build(tiny.NET).eval()

    class Whole(nn.Module):
        def forward(self, texts: torch.Tensor) -> torch.Tensor:
            assert texts.shape[1] == made.length
            scores: torch.Tensor = model(texts)
            return scores

    for secret in made.texts.secrets[:2]:
        found = [made.exposure(one, secret, torch.device("cpu")) for one in (model, Whole())]
        assert found[0] == pytest.approx(found[1])
    scores = made.evaluate(model, made.data(0).test_dataloader(), "test", torch.device("cpu"))
    assert {"golden_kl", "own_kl", "exposure_x1", "exposure_x5"} <= {*scores}
    assert all(map(math.isfinite, scores.values()))
    assert made.dataset().name == "canaries"


def test_bad_options_are_one_line(tmp_path):
    with pytest.raises(KDBenchError, match="data.canaries: found 400 texts that begin with secrets of 5 words"):
        tiny.canaries(tmp_path, canaries={"digits": 2, "times": [200]}).prepare()
    with pytest.raises(KDBenchError, match="data.canaries.times: found 9 entries, expected at most 8"):
        secrets(Canaries(times=(1,) * 9))
