"""Models that tell the class of a text: against their equations, and what they must not see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kdbench.base import rng
from kdbench.errors import KDBenchError
from tasks.text.models import BagOfWords, BiGRU, CharCNN, Encoder
from tasks.text.vocabulary import PAD, START

WORDS, LENGTH, CLASSES = 9, 8, 5


def made(kind: Any, **options: Any) -> Any:
    facts = {"words": WORDS, "classes": CLASSES} | ({"length": LENGTH} if kind is Encoder else {})
    with rng.scope(0, kind.__name__):
        model = kind(**facts, **options).double().eval()
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.5)
                if name in ("word.weight", "run.weight") and not isinstance(model, Encoder):
                    parameter.data[PAD] = 0
    return model


MODELS = {
    "encoder": lambda: made(Encoder, width=8, layers=2, heads=2),
    "cnn": lambda: made(CharCNN, width=4, channels=3),
    "gru": lambda: made(BiGRU, width=4, hidden=3),
    "bag": lambda: made(BagOfWords),
    "runs": lambda: made(BagOfWords, runs=3, buckets=50),
}


@pytest.fixture(params=sorted(MODELS))
def model(request) -> Any:
    return MODELS[request.param]()


def texts(count: int, length: int, name: str = "texts") -> torch.Tensor:
    words = torch.randint(START + 1, WORDS, (count, length), generator=rng.generator(0, name))
    words[:, 0] = START
    return words


def test_what_is_behind_the_end_changes_nothing(model):
    words = texts(3, 5)
    padded = torch.cat([words, torch.full((3, 3), PAD)], 1)
    torch.testing.assert_close(model(padded), model(words))
    assert model(words).shape == (3, CLASSES)
    for row in range(3):
        torch.testing.assert_close(model(padded)[row], model(words[row : row + 1])[0])


def test_an_empty_text_is_scored(model):
    words = torch.tensor([[START, PAD, PAD], [START, 3, 4]])
    assert model(words).isfinite().all()
    torch.testing.assert_close(model(words)[1], model(words[1:])[0])
    assert model(words[:0]).shape == (0, CLASSES)


def test_the_words_of_a_text_matter(model):
    assert not torch.allclose(model(texts(3, 6)), model(texts(3, 6, "others")))


def test_gradients_reach_every_parameter(model):
    model.train()
    model(texts(16, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_a_bag_is_a_sum_over_words_whatever_their_order():
    model = MODELS["bag"]()
    words = texts(1, 6)
    expected = sum(model.word.weight[word] for word in words[0].tolist()) / 6**0.5 + model.bias
    torch.testing.assert_close(model(words)[0], expected)
    torch.testing.assert_close(model(words.flip(1)), model(words))
    runs = MODELS["runs"]()
    assert not torch.allclose(runs(words.flip(1)), runs(words))


def test_runs_are_those_of_the_text():
    model = MODELS["runs"]()
    words = texts(1, 4)[0].tolist()
    key, total, count = words[:], sum(model.word.weight[word] for word in words), len(words)
    for run in (2, 3):
        key = [(key[i] * 1_000_003 + words[i + run - 1] + run) % (2**31 - 1) for i in range(len(words) - run + 1)]
        total = total + sum(model.run.weight[1 + k % 50] for k in key)
        count += len(key)
    torch.testing.assert_close(model(torch.tensor([words]))[0], total / count**0.5 + model.bias)


def test_convolutions_are_those_of_the_equations():
    model = MODELS["cnn"]()
    words = texts(1, 4)[0].tolist()
    vectors = [model.word.weight[word] for word in words]
    found = []
    for convolution in model.convolutions:
        size = convolution.kernel_size[0]
        nothing = [torch.zeros(4, dtype=torch.float64)] * (size - 1)
        line = [*nothing, *vectors, *nothing]
        answers = [
            sum(convolution.weight[:, :, i] @ line[at + i] for i in range(size)) + convolution.bias
            for at in range(len(line) - size + 1)
        ]
        found.append(torch.stack(answers).relu().amax(0))
    torch.testing.assert_close(model(torch.tensor([words]))[0], model.head(torch.cat(found)))


def test_the_recurrent_network_reads_both_ways():
    model = MODELS["gru"]()
    words = texts(1, 5)
    ahead = model.forwards(model.word(words))[0][0]
    back = model.backwards(model.word(words.flip(1)))[0][0]
    torch.testing.assert_close(model(words)[0], model.head(torch.cat([ahead.amax(0), back.amax(0)])))


def test_the_encoder_looks_at_the_whole_text():
    model = MODELS["encoder"]()
    words = texts(1, 6).requires_grad_(False)
    other = words.clone()
    other[0, -1] = (other[0, -1] - 1) % 7 + 2
    assert not torch.allclose(model(words), model(other))
    with pytest.raises(KDBenchError, match=r"architecture.heads=3: expected a divisor of the width 8"):
        Encoder(WORDS, LENGTH, CLASSES, width=8, heads=3)
