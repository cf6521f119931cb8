"""Models that tell the class of a text: an encoder, a convolution, a recurrent network, and a linear control.

All read ``(B, L)`` integers, :data:`~tasks.text.vocabulary.START` in front of a text and
:data:`~tasks.text.vocabulary.PAD` behind its end, and give ``(B, classes)`` scores. What stands behind the end of a
text changes nothing.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from tasks.text.models.layers import Block, divides, initialise
from tasks.text.vocabulary import PAD

Dropout = Annotated[float, Field(ge=0, lt=1)]


class Encoder(nn.Module):
    """A transformer over the whole text, which is judged by what stands at its start (as in BERT).

    Args:
        words: How many there are.
        length: Places of a text, its start included.
        classes: How many.
        width: Of the model.
        layers: How many.
        heads: Of attention; they divide the width.
        ratio: Inner width of the fully connected layers, over ``width``.
        dropout: On words and after each part of a layer.

    Attributes:
        embedding: Its output is what the first layer reads, ``(B, L, width)``.
        blocks: The layers; a tap of ``blocks[i]`` is ``(B, L, width)``, one of ``blocks[i].attention.split`` queries,
            keys and values ``(B, 3, heads, L, width / heads)``.
        norm: Its output is what the start is taken from, ``(B, L, width)``.
        head: Reads the start, ``(B, width)``.
    """

    def __init__(
        self,
        words: PositiveInt,
        length: PositiveInt,
        classes: PositiveInt,
        width: PositiveInt = 64,
        layers: PositiveInt = 2,
        heads: PositiveInt = 4,
        ratio: PositiveInt = 4,
        dropout: Dropout = 0.1,
    ) -> None:
        super().__init__()
        divides(width, heads)
        self.word = nn.Embedding(words, width)
        self.place = nn.Embedding(length, width)
        self.embedding = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, ratio, dropout, causal=False) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        initialise(self, layers)

    def forward(self, words: Tensor) -> Tensor:
        """Scores the classes, ``(B, classes)``."""
        there = words != PAD
        places = torch.arange(words.shape[1], device=words.device)
        x = self.embedding(self.word(words) + self.place(places))
        for block in self.blocks:
            x = block(x, there=there)
        scores: Tensor = self.head(self.norm(x)[:, 0])
        return scores


class CharCNN(nn.Module):
    """Convolutions of several widths along the text, the largest answer of each (Kim, 2014, on words).

    Args:
        words: How many characters (or words) there are.
        classes: How many.
        width: Of their vectors.
        channels: Of each convolution.
        kernels: Widths of the convolutions, in characters.
        dropout: On what is read from the text.

    Attributes:
        head: Reads ``(B, channels * kernels)``.
    """

    def __init__(
        self,
        words: PositiveInt,
        classes: PositiveInt,
        width: PositiveInt = 64,
        channels: PositiveInt = 128,
        kernels: tuple[PositiveInt, ...] = (2, 3, 4, 5),
        dropout: Dropout = 0.3,
    ) -> None:
        super().__init__()
        self.kernels = kernels
        self.word = nn.Embedding(words, width, padding_idx=PAD)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, channels, kernel, padding=kernel - 1) for kernel in kernels)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels * len(kernels), classes)

    def forward(self, words: Tensor) -> Tensor:
        """Scores the classes, ``(B, classes)``."""
        x = self.word(words).transpose(1, 2)
        # Windows that lie behind the end read nothing; before a ReLU its bias alone would be their answer.
        there = (words != PAD).float()[:, None]
        found = []
        for kernel, convolution in zip(self.kernels, self.convolutions, strict=True):
            seen = F.max_pool1d(F.pad(there, [kernel - 1] * 2), kernel, 1)
            found.append((convolution(x).relu() * seen).amax(2))
        scores: Tensor = self.head(self.dropout(torch.cat(found, 1)))
        return scores


class BiGRU(nn.Module):
    """A recurrent network forwards and one backwards, the largest of each of their states along the text.

    Args:
        words: How many there are.
        classes: How many.
        width: Of their vectors.
        hidden: Of each of the two states.
        dropout: On what is read from the text.

    Attributes:
        head: Reads ``(B, 2 * hidden)``.
    """

    def __init__(
        self,
        words: PositiveInt,
        classes: PositiveInt,
        width: PositiveInt = 16,
        hidden: PositiveInt = 24,
        dropout: Dropout = 0.1,
    ) -> None:
        super().__init__()
        self.word = nn.Embedding(words, width, padding_idx=PAD)
        self.forwards = nn.GRU(width, hidden, batch_first=True)
        self.backwards = nn.GRU(width, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, words: Tensor) -> Tensor:
        """Scores the classes, ``(B, classes)``."""
        there = words != PAD
        x = self.word(words)
        # Each text turned around within its own length, so that what is behind its end stays behind it.
        places = torch.arange(words.shape[1], device=words.device)
        back = (there.sum(1, keepdim=True) - 1 - places).clamp(min=0)
        turned = x.gather(1, back[..., None].expand(-1, -1, x.shape[2]))
        states = torch.cat([self.forwards(x)[0], self.backwards(turned)[0]], 2)
        largest = states.masked_fill(~there[..., None], -1.0).amax(1)  # no state is below -1
        scores: Tensor = self.head(self.dropout(largest))
        return scores


class BagOfWords(nn.Module):
    """A linear model of how often words, or runs of up to ``runs`` of them, come: what a board's networks are held to.

    Runs of two and more share ``buckets`` weights by a hash (Weinberger et al., Feature Hashing, 2009). Counts are
    divided by the square root of how many there are, about the length of their vector.

    Args:
        words: How many there are.
        classes: How many.
        runs: Longest run; 1 for single words.
        buckets: Weights that runs share.
    """

    def __init__(
        self, words: PositiveInt, classes: PositiveInt, runs: PositiveInt = 1, buckets: PositiveInt = 2**15
    ) -> None:
        super().__init__()
        self.runs, self.buckets = runs, buckets
        self.word = nn.Embedding(words, classes, padding_idx=PAD)
        self.run = nn.Embedding(buckets + 1, classes, padding_idx=0) if runs > 1 else None
        self.bias = nn.Parameter(torch.zeros(classes))
        for table in (self.word, self.run):
            if table is not None:
                nn.init.zeros_(table.weight)

    def forward(self, words: Tensor) -> Tensor:
        """Scores the classes, ``(B, classes)``."""
        there = words != PAD
        total, count = self.word(words).sum(1), there.sum(1)
        key = words
        for run in range(2, self.runs + 1):
            if run > words.shape[1] or self.run is None:
                break
            key = (key[:, :-1] * 1_000_003 + words[:, run - 1 :] + run) % (2**31 - 1)
            inside = there[:, run - 1 :]
            total = total + self.run(torch.where(inside, 1 + key % self.buckets, 0)).sum(1)
            count = count + inside.sum(1)
        scores: Tensor = total / count.clamp(min=1).sqrt()[:, None] + self.bias
        return scores
