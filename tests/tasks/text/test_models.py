from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from kdbench.base import rng
from kdbench.errors import KDBenchError
from tasks.text.generate import generate
from tasks.text.models import Decoder


@pytest.fixture
def model() -> Decoder:
    with rng.scope(0, "decoder"):
        made = Decoder(words=7, length=10, width=8, layers=2, heads=2).double().eval()
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.5)
    return made


def texts(count: int, length: int, words: int = 7) -> torch.Tensor:
    return torch.randint(words, (count, length), generator=rng.generator(0, "texts"))


def by_hand(model: Any, words: list[int]) -> torch.Tensor:
    """The scores behind the last word, place by place and head by head."""
    width, heads = 8, 2
    x = torch.stack([model.word.weight[word] + model.place.weight[place] for place, word in enumerate(words)])
    for block in model.blocks:
        y = block.norm1(x)
        q, k, v = (y @ block.attention.queries_keys_values.weight.T + block.attention.queries_keys_values.bias).split(
            width, 1
        )
        read = torch.zeros_like(x)
        for head in range(heads):
            at = slice(head * width // heads, (head + 1) * width // heads)
            for place in range(len(words)):
                scores = torch.stack([q[place, at] @ k[other, at] for other in range(place + 1)])
                shares = (scores / math.sqrt(width / heads)).softmax(0)
                read[place, at] = sum(share * v[other, at] for other, share in enumerate(shares))
        x = x + block.attention.out(read)
        x = x + block.mlp(block.norm2(x))
    return model.head(model.norm(x))[-1]


def test_the_decoder_is_that_of_the_equations(model):
    words = texts(1, 6)
    torch.testing.assert_close(model(words)[0, -1], by_hand(model, words[0].tolist()))


def test_scores_look_at_no_word_behind(model):
    words = texts(3, 10)
    other = words.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 7
    torch.testing.assert_close(model(words)[:, :5], model(other)[:, :5], rtol=0, atol=0)
    assert not torch.allclose(model(words)[:, 5:], model(other)[:, 5:])


@pytest.mark.parametrize("parts", [[10], [4, 6], [1] * 10, [3, 1, 2, 4]])
def test_a_cache_gives_what_reading_all_again_gives(model, parts):
    words = texts(3, 10)
    cache = model.cache(3)
    found = torch.cat([model(part, cache) for part in words.split(parts, 1)], 1)
    torch.testing.assert_close(found, model(words))
    assert cache.read == 10


def test_gradients_reach_every_parameter(model):
    model(texts(2, 10)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_heads_divide_the_width():
    with pytest.raises(KDBenchError, match=r"architecture.heads=3: expected a divisor of the width 8"):
        Decoder(words=5, length=4, width=8, heads=3)


# ---- generation -----------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """The same model without a cache."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.model(words)


def test_the_greedy_text_is_that_of_the_best_word_each_time(model):
    prompts = texts(4, 2)
    expected = prompts
    while expected.shape[1] < 10:
        expected = torch.cat([expected, model(expected)[:, -1:].argmax(2)], 1)
    assert torch.equal(generate(model, prompts, 10), expected)
    assert torch.equal(generate(Plain(model), prompts, 10), expected)


def test_what_is_drawn_is_that_of_the_stream_alone(model):
    prompts = texts(5, 1)
    torch.manual_seed(3)
    one = generate(model, prompts, 10, rng.generator(0, "draw"))
    torch.manual_seed(4)
    assert torch.equal(one, generate(model, prompts, 10, rng.generator(0, "draw")))
    assert torch.equal(one, generate(Plain(model), prompts, 10, rng.generator(0, "draw")))
    assert not torch.equal(one, generate(model, prompts, 10, rng.generator(1, "draw")))


class Fixed(Plain):
    """One that reads texts of ten words alone, as a graph of a fixed shape does, and shows the cache of another."""

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        assert words.shape[1] == 10
        return self.model(words)

    def cache(self, batch: int) -> None:
        raise AssertionError


def test_a_model_that_reads_whole_texts_alone_writes_the_same(model):
    prompts = texts(4, 2)
    for length in (8, 10, 11):
        expected = generate(Plain(model), prompts, length, rng.generator(0, "draw"))
        assert torch.equal(generate(Fixed(model), prompts, length, rng.generator(0, "draw"), window=10), expected)


def test_words_are_drawn_by_their_probability(model):
    prompts = torch.zeros(20000, 1, dtype=torch.long)
    found = generate(model, prompts, 2, rng.generator(0, "many"), temperature=2.0)[:, 1].bincount(minlength=7) / 20000
    expected = (model(torch.zeros(1, 1, dtype=torch.long))[0, -1] / 2).softmax(0).float()
    torch.testing.assert_close(found, expected, rtol=0, atol=0.015)


def test_prompts_of_unequal_length(model):
    """Each is continued as if it were alone."""
    prompts, known = texts(3, 5), torch.tensor([2, 5, 3])
    found = generate(model, prompts, 10, known=known)
    for row, words in enumerate(known.tolist()):
        assert torch.equal(found[row], generate(model, prompts[row : row + 1, :words], 10)[0])


def test_nothing_to_write_and_nobody_to_write_for(model):
    prompts = texts(3, 10)
    assert torch.equal(generate(model, prompts, 10), prompts)
    assert generate(model, texts(0, 2), 10).shape == (0, 10)


def test_bad_prompts_are_one_line(model):
    with pytest.raises(KDBenchError, match="found prompts of 0 words"):
        generate(model, texts(2, 0), 5)
    with pytest.raises(KDBenchError, match="found prompts of 6 words, length=5"):
        generate(model, texts(2, 6), 5)
    with pytest.raises(KDBenchError, match="a prompt without a word"):
        generate(model, texts(2, 3), 5, known=torch.tensor([0, 3]))
    with pytest.raises(KDBenchError, match="temperature=0; expected"):
        generate(model, texts(2, 3), 5, temperature=0)
