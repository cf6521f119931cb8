"""Graph attention over padded nodes: within each step, and over all steps of a video."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Slope of the leaky ReLU of GAT and GATv2.
SLOPE = 0.2


class GATv2(nn.Module):
    """Dense GATv2: every node attends to all nodes of its graph that are there, itself included.

    Brody, Alon, Yahav: How Attentive are Graph Attention Networks?, ICLR 2022, eq. 7: with values ``v_j = W_l x_j``,
    ``s_ij = a . LeakyReLU(W_l x_j + W_r x_i + W_e e_ij)``, ``y_i = sum_j softmax_j(s_ij) v_j``, heads joined.

    Args:
        width: Of nodes, in and out; a multiple of ``heads``.
        heads: Of the attention.
        edges: Values of an edge; 0 for none.
        carried: Whether a node also reads the edges that it attends through, ``v_ij = W_l x_j + W_v e_ij`` (Shaw et
            al., NAACL 2018, eq. 3): GATv2 lets them say where to look alone, which is one number a head.
    """

    def __init__(self, width: int, heads: int, edges: int = 0, carried: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.source = nn.Linear(width, width)
        self.target = nn.Linear(width, width)
        self.edge = nn.Linear(edges, width, bias=False) if edges else None
        self.carry = nn.Linear(edges, width, bias=False) if edges and carried else None
        self.score = nn.Parameter(torch.empty(heads, width // heads))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.xavier_uniform_(self.score)

    def forward(
        self, nodes: Tensor, mask: Tensor, edge: Tensor | None = None, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Runs the layer.

        Args:
            nodes: ``(..., M, D)``.
            mask: ``(..., M)`` bool, nodes that are there.
            edge: ``(..., M, M, E)``; ``[..., i, j, :]`` is what node i sees of node j.
            bias: ``(..., M, M, heads)``, added to scores.

        Returns:
            Nodes ``(..., M, D)``, zero where they are not there, and attention ``(..., M, M, heads)`` of i to j.
        """
        values = self.source(nodes)
        pairs = self.target(nodes)[..., :, None, :] + values[..., None, :, :]
        if self.edge is not None and edge is not None:
            pairs = pairs + self.edge(edge)
        by_head = F.leaky_relu(pairs, SLOPE).unflatten(-1, (self.heads, -1))
        scores = (by_head * self.score).sum(-1)
        if bias is not None:
            scores = scores + bias
        scores = scores.masked_fill(~mask[..., None, :, None], torch.finfo(scores.dtype).min)
        attention = scores.softmax(-2) * (mask[..., :, None, None] & mask[..., None, :, None])
        found = torch.einsum("...ijh,...jhd->...ihd", attention, values.unflatten(-1, (self.heads, -1)))
        if self.carry is not None and edge is not None:
            seen = torch.einsum(
                "...ijh,...ije->...ihe", attention, edge
            )  # before W_v, which has more channels or as many
            found = found + torch.einsum("...ihe,hde->...ihd", seen, self.carry.weight.unflatten(0, (self.heads, -1)))
        return (found.flatten(-2) + self.bias) * mask[..., None], attention


class Across(nn.Module):
    """Scaled dot-product attention over all nodes of all steps, with a bias for time and one for the same entity.

    Scores are ``q_i . k_j / sqrt(d) + sum_f w_f cos(f pi (t_i - t_j) / span) + c [n_i = n_j]`` by head. A cosine of a
    difference is a product of what belongs to either side, ``cos a cos b + sin a sin b``, and so is the indicator: both
    stand as further channels of q and k, and no table of all pairs is made.

    Args:
        width: Of nodes; a multiple of ``heads``.
        heads: Of the attention.
        waves: Cosines of the bias for time.
        span: Steps of half a period of the slowest one.
    """

    frequencies: Tensor

    def __init__(self, width: int, heads: int, waves: int = 6, span: float = 64.0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.time = nn.Parameter(torch.zeros(heads, waves))
        self.same = nn.Parameter(torch.ones(heads))
        self.register_buffer("frequencies", 2.0 ** torch.arange(waves) * math.pi / span, persistent=False)

    def sides(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries and keys, biases and scale included, ``(B, heads, T M, d + 2 waves + M)``, and values.

        Args:
            nodes: ``(B, T, M, D)``.
        """
        batch, steps, count, width = nodes.shape
        size = width // self.heads
        query, key, value = self.qkv(nodes).reshape(batch, steps * count, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        phase = torch.arange(steps, device=nodes.device, dtype=nodes.dtype)[:, None] * self.frequencies
        wave = torch.cat([phase.cos(), phase.sin()], 1).repeat_interleave(count, 0)
        who = torch.eye(count, device=nodes.device, dtype=nodes.dtype).repeat(steps, 1)
        weights = torch.cat([self.time, self.time], 1)[:, None] * wave
        here = torch.cat([weights, self.same[:, None, None] * who], 2).expand(batch, -1, -1, -1)
        there = torch.cat([wave, who], 1).expand(batch, self.heads, -1, -1)
        return torch.cat([query / math.sqrt(size), here], -1), torch.cat([key, there], -1), value

    def forward(self, nodes: Tensor, mask: Tensor) -> Tensor:
        """Attends.

        Args:
            nodes: ``(B, T, M, D)``.
            mask: ``(B, T, M)`` bool, nodes that are there.

        Returns:
            ``(B, T, M, D)``, zero where nodes are not there.
        """
        query, key, value = self.sides(nodes)
        seen = mask.flatten(1)[:, None, None]
        missing = query.shape[-1] - value.shape[-1]  # equally wide sides take the fused kernel
        found = F.scaled_dot_product_attention(query, key, F.pad(value, (0, missing)), attn_mask=seen, scale=1.0)
        joined = found[..., : value.shape[-1]].transpose(1, 2).reshape(nodes.shape)
        # A video without any node that is there has no key: what softmax makes of it is no number.
        return self.out(joined).masked_fill(~mask[..., None], 0.0)

    def attention(self, nodes: Tensor, mask: Tensor) -> Tensor:
        """Returns the weights ``(B, heads, T M, T M)`` of a forward, to be looked at."""
        query, key, _ = self.sides(nodes)
        scores = (query @ key.transpose(-1, -2)).masked_fill(~mask.flatten(1)[:, None, None], -torch.inf)
        return scores.softmax(-1)


def attended(model: nn.Module, run: Callable[[nn.Module], object]) -> Tensor | None:
    """Returns what the first node attends to in the last :class:`Across` of a model.

    Args:
        model: Any; without such a layer the answer is None.
        run: A forward of it.

    Returns:
        ``(B, T, M)``, the mean over heads and over the steps at which the first node is there.
    """
    layers = [module for module in model.modules() if isinstance(module, Across)]
    if not layers:
        return None
    given: list[tuple[Tensor, Tensor]] = []
    hook = layers[-1].register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    try:
        run(model)
    finally:
        hook.remove()
    nodes, mask = given[-1]
    weights = layers[-1].attention(nodes, mask).mean(1).unflatten(1, mask.shape[1:])[:, :, 0]
    there = mask[:, :, 0, None]
    mean = (weights * there).sum(1) / there.sum(1).clamp_min(1)
    return mean.unflatten(1, mask.shape[1:])


class AcrossGATv2(nn.Module):
    """GATv2 over all nodes of all steps, with the same two biases; memory and time grow with ``(T M)^2 D``.

    Args:
        width: Of nodes; a multiple of ``heads``.
        heads: Of the attention.
        waves: Cosines of the bias for time.
        span: Steps of half a period of the slowest one.
    """

    frequencies: Tensor

    def __init__(self, width: int, heads: int, waves: int = 6, span: float = 64.0) -> None:
        super().__init__()
        self.graph = GATv2(width, heads)
        self.time = nn.Parameter(torch.zeros(heads, waves))
        self.same = nn.Parameter(torch.ones(heads))
        self.register_buffer("frequencies", 2.0 ** torch.arange(waves) * math.pi / span, persistent=False)

    def forward(self, nodes: Tensor, mask: Tensor) -> Tensor:
        """Attends; see :meth:`Across.forward`."""
        steps, count = nodes.shape[1:3]
        phase = torch.arange(steps, device=nodes.device, dtype=nodes.dtype)[:, None] * self.frequencies
        apart = (phase[:, None] - phase[None]).cos() @ self.time.T
        same = torch.eye(count, device=nodes.device, dtype=nodes.dtype).repeat(steps, steps)[..., None] * self.same
        bias = apart.repeat_interleave(count, 0).repeat_interleave(count, 1) + same
        found, _ = self.graph(nodes.flatten(1, 2), mask.flatten(1), None, bias)
        return found.view(nodes.shape)
