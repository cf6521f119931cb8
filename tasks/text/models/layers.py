"""The layers of a transformer, for models that read the words so far and for those that read whole texts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
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


class Heads(nn.Module):
    """Queries, keys and values of the heads of attention, a module of its own so that they can be tapped.

    Args:
        heads: How many.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, joined: Tensor) -> Tensor:
        """Returns ``(B, 3, heads, L, width / heads)`` of ``(B, L, 3 * width)``."""
        return joined.unflatten(2, (3, self.heads, -1)).permute(0, 2, 3, 1, 4)


class Attention(nn.Module):
    """Attention over the words so far, or over those of the whole text.

    Args:
        width: Of the model.
        heads: How many.
        causal: Whether a place looks at those before it alone.
    """

    def __init__(self, width: int, heads: int, causal: bool = True) -> None:
        super().__init__()
        self.causal = causal
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.split = Heads(heads)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, cache: Cache | None = None, layer: int = 0, there: Tensor | None = None) -> Tensor:
        """Returns ``(B, L, width)`` of the same.

        Args:
            x: ``(B, L, width)``.
            cache: Of the words before these, behind which they are read.
            layer: Which of the cache is this one's.
            there: ``(B, L)`` bool places that may be looked at, at least one a text; None for all.
        """
        q, k, v = self.split(self.queries_keys_values(x)).unbind(1)
        mask = None if there is None else there[:, None, None, :]
        if cache is not None:
            first, last = cache.read, cache.read + x.shape[1]
            cache.keys[layer, :, :, first:last] = k
            cache.values[layer, :, :, first:last] = v
            k, v = cache.keys[layer, :, :, :last], cache.values[layer, :, :, :last]
            if first and x.shape[1] > 1:
                mask = torch.ones(x.shape[1], last, dtype=torch.bool, device=x.device).tril(first)
        causal = self.causal and mask is None and x.shape[1] > 1
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
        causal: Whether a place looks at those before it alone.
    """

    def __init__(self, width: int, heads: int, ratio: int, dropout: float, causal: bool = True) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.mlp = nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: Cache | None = None, layer: int = 0, there: Tensor | None = None) -> Tensor:
        """Returns ``(B, L, width)`` of the same; the other arguments are those of :class:`Attention`."""
        x = x + self.dropout(self.attention(self.norm1(x), cache, layer, there))
        out: Tensor = x + self.dropout(self.mlp(self.norm2(x)))
        return out


def divides(width: int, heads: int) -> None:
    """Checks that every head gets as much of the width.

    Raises:
        KDBenchError: It does not.
    """
    if width % heads:
        raise KDBenchError(f"architecture.heads={heads}: expected a divisor of the width {width}")


def initialise(model: nn.Module, layers: int) -> None:
    """Gives a transformer its initial weights, drawn from a normal law of deviation 0.02 (Radford et al.).

    Args:
        model: Whose blocks are :class:`Block`.
        layers: How many: what adds to the sum of all layers starts small.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    for name, weight in model.named_parameters():
        if name.endswith(("attention.out.weight", "mlp.2.weight")):
            nn.init.normal_(weight, std=0.02 / (2 * layers) ** 0.5)
