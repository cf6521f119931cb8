"""A language model: a decoder that reads the words so far and scores the next, with a key-value cache."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from tasks.text.models.layers import Block, Cache, divides, initialise


class Decoder(nn.Module):
    """Scores the next word at every place of a text, from the words up to it.

    Args:
        words: How many there are.
        length: Most of them in a text.
        width: Of the model.
        layers: How many.
        heads: Of attention; they divide the width.
        ratio: Inner width of the fully connected layers, over ``width``.
        dropout: On words and after each part of a layer.

    Attributes:
        blocks: The layers; a tap of ``blocks[i]`` is ``(B, L, width)``.
        norm: What the scores are read from, ``(B, L, width)``.
    """

    def __init__(
        self,
        words: PositiveInt,
        length: PositiveInt,
        width: PositiveInt = 96,
        layers: PositiveInt = 3,
        heads: PositiveInt = 4,
        ratio: PositiveInt = 4,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        divides(width, heads)
        self.length = length
        self.heads = heads
        self.word = nn.Embedding(words, width)
        self.place = nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, ratio, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words)
        initialise(self, layers)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Scores the next word.

        Args:
            tokens: ``(B, L)`` integers; behind the end of a text there may be any, as nothing before looks at them.
            cache: Of the words before these, which it then holds too; None where these are the first.

        Returns:
            ``(B, L, words)``.
        """
        first = 0 if cache is None else cache.read
        places = torch.arange(first, first + tokens.shape[1], device=tokens.device)
        x = self.dropout(self.word(tokens) + self.place(places))
        for layer, block in enumerate(self.blocks):
            x = block(x, cache, layer)
        if cache is not None:
            cache.read += tokens.shape[1]
        scores: Tensor = self.head(self.norm(x))
        return scores

    def cache(self, batch: int) -> Cache:
        """Returns an empty cache for as many texts, of the most words that the model reads."""
        weight = self.head.weight
        shape = len(self.blocks), batch, self.heads, self.length, weight.shape[1] // self.heads
        return Cache(weight.new_zeros(shape), weight.new_zeros(shape))
