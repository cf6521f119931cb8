"""Texts that a language model writes: the most probable word each time, or words that are drawn."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import KDBenchError


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: Tensor,
    length: int,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    known: Tensor | None = None,
    window: int | None = None,
    end: int | None = None,
) -> Tensor:
    """Continues texts, all of a batch at a time.

    A model whose ``forward`` takes a cache reads each word once (:class:`tasks.text.models.Decoder`), another one all
    of them again for every word.

    Args:
        model: Scores the next word, ``(B, L)`` to ``(B, L, words)``; in eval mode.
        prompts: ``(B, P)`` integer words, P at least 1.
        length: Words of the texts that are returned.
        generator: Where words are drawn from, on the CPU; None takes the most probable one.
        temperature: Above 0; divides the scores that words are drawn by.
        known: ``(B,)`` words of each prompt, between 1 and P, where they differ; what is behind them is written anew.
        window: Words that a model without a cache is given each time, as one with a fixed graph must have, any behind
            the end; at least ``length - 1``. None gives it those so far.
        end: Word that ends a text, which says nothing more than that behind it; None where none does.

    Returns:
        ``(B, length)``, the prompts in front.

    Raises:
        KDBenchError: A prompt is empty, or no shorter than what is asked for.
    """
    count, given = prompts.shape
    if not 0 < given <= length or temperature <= 0:
        raise KDBenchError(
            f"generate: found prompts of {given} words, length={length} and temperature={temperature:g}; expected "
            "1 to length words and a temperature above 0"
        )
    ends = prompts.new_full((count,), given) if known is None else known
    shortest = int(ends.min()) if count else given
    if shortest < 1:
        raise KDBenchError("generate: found a prompt without a word, expected one at least")
    texts = prompts.new_zeros(count, max(length, window or 0))
    texts[:, :given] = prompts
    numbers = None if generator is None else torch.rand(length, count, generator=generator).to(prompts.device)
    cached: Any = model if "cache" in inspect.signature(model.forward).parameters else None
    cache = None if cached is None else cached.cache(count)
    read, over = 0, torch.zeros(count, dtype=torch.bool, device=prompts.device)
    for place in range(shortest, length):
        if cache is None:
            scores = model(texts[:, : window or place])[:, place - 1]
        else:
            scores = model(texts[:, read:place], cache)[:, -1]
        read = place
        word = _word(scores.float(), None if numbers is None else numbers[place], temperature)
        if end is not None:
            word = torch.where(over, end, word)
            over = over | ((word == end) & (place >= ends))
        texts[:, place] = torch.where(place < ends, texts[:, place], word)
        if end is not None and bool(over.all()):
            texts[:, place + 1 : length] = end
            break
    return texts[:, :length]


def _word(scores: Tensor, numbers: Tensor | None, temperature: float) -> Tensor:
    """Returns the word of each row of scores ``(B, words)`` that a number ``(B,)`` in [0, 1) falls on."""
    if numbers is None:
        return scores.argmax(1)
    upto = (scores / temperature).softmax(1).cumsum(1)
    return (upto <= (numbers * upto[:, -1])[:, None]).sum(1).clamp(max=scores.shape[1] - 1)
