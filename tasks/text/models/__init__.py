"""Language models: a decoder that reads the words so far and scores the next, with a key-value cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from kdbench.errors import KDBenchError


@dataclass
class Cache:
    """Keys and values of the words that a decoder has read.

    Attributes:
        keys: ``(layers, B, heads, length, width / heads)``.
        values: Likewise.
        read: How many of the ``length`` places are taken.
    """

    keys: Tensor
    values: Tensor
    read: int = 0


class Attention(nn.Module):
    """Causal attention over the words so far.

    Args:
        width: Of the model.
        heads: How many.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, cache: Cache | None = None, layer: int = 0) -> Tensor:
        """Returns ``(B, L, width)`` of the same; with a cache L more words are read behind those that it holds."""
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.queries_keys_values(x).chunk(3, 2)
        )
        mask = None
        if cache is not None:
            first, last = cache.read, cache.read + x.shape[1]
            cache.keys[layer, :, :, first:last] = k
            cache.values[layer, :, :, first:last] = v
            k, v = cache.keys[layer, :, :, :last], cache.values[layer, :, :, :last]
            if first and x.shape[1] > 1:
                mask = torch.ones(x.shape[1], last, dtype=torch.bool, device=x.device).tril(first)
        causal = mask is None and x.shape[1] > 1
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        mixed: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """A layer of a transformer, normalised before each part (Radford et al., GPT-2, 2019).

    Args:
        width: Of the model.
        heads: Of attention.
        ratio: Inner width of the two fully connected layers, over ``width``.
        dropout: After each part.
    """

    def __init__(self, width: int, heads: int, ratio: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: Cache | None = None, layer: int = 0) -> Tensor:
        """Returns ``(B, L, width)`` of the same."""
        x = x + self.dropout(self.attention(self.norm1(x), cache, layer))
        out: Tensor = x + self.dropout(self.mlp(self.norm2(x)))
        return out


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
        if width % heads:
            raise KDBenchError(f"architecture.heads={heads}: expected a divisor of the width {width}")
        self.length = length
        self.heads = heads
        self.word = nn.Embedding(words, width)
        self.place = nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, ratio, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for name, weight in self.named_parameters():  # what adds to the sum of all layers starts small
            if name.endswith(("attention.out.weight", "mlp.2.weight")):
                nn.init.normal_(weight, std=0.02 / (2 * layers) ** 0.5)

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
