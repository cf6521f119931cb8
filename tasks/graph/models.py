"""Networks over nodes: perceptrons that read features alone, and graph networks that read edges too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from kdbench.errors import KDBenchError, nearest
from kdbench.functional.numerics import upcast
from tasks.graph.operators import Operator, Sparse, dropped, entries, product, row_softmax

#: What networks may read of the edges (:func:`tasks.graph.data.views`).
VIEWS = ("undirected", "neighbours", "cites", "cited", "hyper")
#: Which rows of a table of positions each node reads (:func:`tasks.graph.positions.places`).
PLACES = "places"
Layer = TypeVar("Layer", bound=nn.Linear)
Dropout = Annotated[float, Field(ge=0, lt=1)]
#: What a network reads of the edges, by name.
Views = Mapping[str, Operator]


class Words(nn.Linear):
    """A linear map of features, of which some are dropped while it trains.

    Args:
        features: How many there are.
        width: Of what it gives.
        dropout: Share of the entries.
        bias: Whether it has one.
    """

    def __init__(self, features: int, width: int, dropout: float, bias: bool = True) -> None:
        super().__init__(features, width, bias)
        self.dropout = dropout
        _start(self)

    def forward(self, words: Sparse | Tensor) -> Tensor:
        """Returns ``(N, width)`` of features ``(N, V)``, sparse or dense."""
        share = self.dropout if self.training else 0.0
        if isinstance(words, Tensor):
            return F.linear(F.dropout(words, share), self.weight, self.bias)
        found = product(dropped(words, share) if share else words, self.weight.T)
        return found if self.bias is None else found + self.bias


class Spread(nn.Linear):
    """A linear map of nodes whose values go along edges: ``A x W + b``."""

    def forward(self, nodes: Tensor, matrix: Operator) -> Tensor:  # type: ignore[override]
        """Returns ``(N, width)`` of nodes ``(N, D)`` and a matrix ``(N, N)``."""
        found = product(matrix, F.linear(nodes, self.weight))
        return found if self.bias is None else found + self.bias


def _start(layer: Layer) -> Layer:
    """Gives a layer Glorot's initial weights, as graph networks are published with."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Network(nn.Module):
    """Base of the networks.

    Attributes:
        reads: Names of the views of the edges that it is given.
        neighbourhood: Nodes and entries of each view that it is exported and timed with, to answer for one node.
        hidden: What the classifier reads, ``(N, width)``; a tap.
    """

    reads: tuple[str, ...] = ()
    neighbourhood: tuple[int, int] = (64, 160)

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Identity()
        self.drop = nn.Dropout(dropout)


class MLP(Network):
    """A perceptron over the features of each node; it is given no edge.

    Args:
        features: Of a node.
        classes: How many there are.
        width: Of the hidden layers.
        layers: Linear ones in all.
        dropout: Of features and hidden values.
    """

    def __init__(
        self,
        features: PositiveInt,
        classes: PositiveInt,
        width: PositiveInt = 64,
        layers: Annotated[int, Field(ge=2)] = 2,
        dropout: Dropout = 0.5,
    ) -> None:
        super().__init__(dropout)
        self.words = Words(features, width, dropout)
        self.layers = nn.ModuleList(_start(nn.Linear(width, width)) for _ in range(layers - 2))
        self.classify = _start(nn.Linear(width, classes))

    def forward(self, words: Sparse | Tensor, views: Views | None = None) -> Tensor:
        """Returns logits ``(N, classes)`` of features ``(N, features)``."""
        nodes = self.words(words).relu()
        for layer in self.layers:
            nodes = layer(self.drop(nodes)).relu()
        found: Tensor = self.classify(self.drop(self.hidden(nodes)))
        return found


class PositionMLP(MLP):
    """A perceptron that reads, beside the features of a node, where it stands among those that training saw.

    The table of positions is part of it, and of its file. After NOSMOG (:mod:`tasks.graph.positions`).

    Args:
        features: Of a node.
        classes: How many there are.
        nodes: Rows of the table.
        positions: Columns of the table.
        scale: Size of its entries.
        width: Of the hidden layer.
        dropout: Of features, positions and hidden values.
    """

    reads = (PLACES,)
    neighbourhood = (1, 4)
    table: Tensor

    def __init__(
        self,
        features: PositiveInt,
        classes: PositiveInt,
        nodes: PositiveInt,
        positions: PositiveInt = 32,
        scale: PositiveFloat = 0.05,
        width: PositiveInt = 64,
        dropout: Dropout = 0.5,
    ) -> None:
        super().__init__(features, classes, width, 2, dropout)
        self.scale = scale
        self.placed = _start(nn.Linear(positions, width, bias=False))
        self.register_buffer("table", torch.zeros(nodes, positions))

    def place(self, positions: Tensor) -> None:
        """Fills the table with positions ``(nodes, positions)`` whose entries are of size one."""
        self.table.copy_(self.scale * positions)

    def forward(self, words: Sparse | Tensor, views: Views | None = None) -> Tensor:
        """Returns logits ``(N, classes)``; the view says which rows of the table each node reads."""
        count = words.shape[0] if isinstance(words, Tensor) else words.size[0]
        stands = product((views or {})[PLACES], self.table, count)
        nodes = (self.words(words) + self.placed(self.drop(stands))).relu()
        found: Tensor = self.classify(self.drop(self.hidden(nodes)))
        return found


class GCN(Network):
    """Kipf, Welling: Semi-Supervised Classification with Graph Convolutional Networks, ICLR 2017, eq. 2.

    Args:
        features: Of a node.
        classes: How many there are.
        width: Of the hidden layers.
        layers: Convolutions in all.
        dropout: Of features and hidden values.
    """

    reads = ("undirected",)

    def __init__(
        self,
        features: PositiveInt,
        classes: PositiveInt,
        width: PositiveInt = 64,
        layers: Annotated[int, Field(ge=2)] = 2,
        dropout: Dropout = 0.5,
    ) -> None:
        super().__init__(dropout)
        self.words = Words(features, width, dropout, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))
        self.layers = nn.ModuleList(_start(Spread(width, width)) for _ in range(layers - 2))
        self.classify = _start(Spread(width, classes))

    def forward(self, words: Sparse | Tensor, views: Views) -> Tensor:
        """Returns logits ``(N, classes)``; the view is the normalised matrix of edges, and of each node with itself."""
        matrix = views[self.reads[0]]
        nodes = (product(matrix, self.words(words)) + self.bias).relu()
        for layer in self.layers:
            nodes = layer(self.drop(nodes), matrix).relu()
        found: Tensor = self.classify(self.drop(self.hidden(nodes)), matrix)
        return found


class HGNN(GCN):
    """Feng, You, Zhang, Ji, Gao: Hypergraph Neural Networks, AAAI 2019, eq. 10: a convolution over hyperedges."""

    reads = ("hyper",)


class SAGE(Network):
    """Each node beside the mean of its neighbours, of each view by weights of its own.

    Hamilton, Ying, Leskovec: Inductive Representation Learning on Large Graphs, NeurIPS 2017, with the mean aggregator
    and without its normalisation. With the views ``cites`` and ``cited`` directions stay apart.

    Args:
        features: Of a node.
        classes: How many there are.
        width: Of the hidden layers.
        layers: In all.
        views: Which neighbours there are: ``neighbours``, or ``cites`` and ``cited``.
        dropout: Of features and hidden values.
    """

    def __init__(
        self,
        features: PositiveInt,
        classes: PositiveInt,
        width: PositiveInt = 64,
        layers: Annotated[int, Field(ge=2)] = 2,
        views: Sequence[str] = ("neighbours",),
        dropout: Dropout = 0.5,
    ) -> None:
        super().__init__(dropout)
        for view in views:
            if view not in VIEWS:
                raise KDBenchError(f"architecture.views: there is no view {view!r}: {nearest(view, VIEWS)}")
        self.reads = tuple(views)
        self.words = Words(features, width, dropout)
        self.around = nn.ModuleDict({view: Words(features, width, dropout, bias=False) for view in views})
        widths = [width] * (layers - 2) + [classes]
        self.layers = nn.ModuleList(_start(nn.Linear(width, out)) for out in widths)
        self.others = nn.ModuleList(
            nn.ModuleDict({view: _start(nn.Linear(width, out, bias=False)) for view in views}) for out in widths
        )

    def forward(self, words: Sparse | Tensor, views: Views) -> Tensor:
        """Returns logits ``(N, classes)``; the views are means over the neighbours of each node."""
        nodes = self.words(words)
        for view, layer in self.around.items():
            nodes = nodes + product(views[view], layer(words))
        nodes = nodes.relu()
        for number, (own, others) in enumerate(zip(self.layers, self.others, strict=True)):
            last = number == len(self.layers) - 1
            held = self.drop(self.hidden(nodes) if last else nodes)
            nodes = own(held)
            for view in self.reads:
                nodes = nodes + product(views[view], others[view](held))  # type: ignore[index]
            nodes = nodes if last else nodes.relu()
        return nodes


class Attention(nn.Module):
    """Each node as a mean of its neighbours and itself whose weights are told by both ends of an edge, by head.

    Args:
        heads: How many there are.
        width: Of the values of one.
        dropout: Of the weights.
    """

    def __init__(self, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.source = nn.Parameter(nn.init.xavier_uniform_(torch.empty(heads, width)))
        self.target = nn.Parameter(nn.init.xavier_uniform_(torch.empty(heads, width)))
        self.bias = nn.Parameter(torch.zeros(heads * width))
        self.drop = nn.Dropout(dropout)

    def forward(self, nodes: Tensor, matrix: Operator) -> Tensor:
        """Returns ``(N, heads * width)`` of such; of the matrix ``(N, N)`` it matters where entries are alone."""
        edges = entries(matrix)
        values = upcast(nodes).unflatten(1, tuple(self.source.shape))
        given, taken = (values * self.source).sum(2), (values * self.target).sum(2)
        scores = F.leaky_relu(given.index_select(0, edges.source) + taken.index_select(0, edges.target), 0.2)
        weights = self.drop(row_softmax(scores, edges.target, values.shape[0]))
        sent = values.index_select(0, edges.source) * weights[..., None]
        return torch.zeros_like(values).index_add(0, edges.target, sent).flatten(1) + self.bias


class GAT(Network):
    """Velickovic et al.: Graph Attention Networks, ICLR 2018, eqs. 1-6, one head in the last layer.

    Args:
        features: Of a node.
        classes: How many there are.
        width: Of the hidden layers, over all heads.
        heads: Of each layer but the last.
        layers: In all.
        dropout: Of features, hidden values and weights of edges.
    """

    reads = ("undirected",)

    def __init__(
        self,
        features: PositiveInt,
        classes: PositiveInt,
        width: PositiveInt = 64,
        heads: PositiveInt = 8,
        layers: Annotated[int, Field(ge=2)] = 2,
        dropout: Dropout = 0.5,
    ) -> None:
        super().__init__(dropout)
        if width % heads:
            raise KDBenchError(f"architecture.width={width}: {heads} heads cannot share it: choose a multiple of them")
        self.words = Words(features, width, dropout, bias=False)
        self.around = nn.ModuleList(Attention(heads, width // heads, dropout) for _ in range(layers - 1))
        self.layers = nn.ModuleList(_start(nn.Linear(width, width, bias=False)) for _ in range(layers - 2))
        self.classify = _start(nn.Linear(width, classes, bias=False))
        self.last = Attention(1, classes, dropout)

    def forward(self, words: Sparse | Tensor, views: Views) -> Tensor:
        """Returns logits ``(N, classes)``; the view has an entry for each edge, and for each node with itself."""
        matrix = views["undirected"]
        nodes = F.elu(self.around[0](self.words(words), matrix))
        for layer, around in zip(self.layers, self.around[1:], strict=True):
            nodes = F.elu(around(layer(self.drop(nodes)), matrix))
        found: Tensor = self.last(self.classify(self.drop(self.hidden(nodes))), matrix)
        return found


class LinkGCN(GCN):
    """A graph convolutional network that scores pairs of nodes by the product of what it holds of both.

    After Kipf, Welling: Variational Graph Auto-Encoders, 2016, the non-probabilistic form.

    Args:
        features: Of a node.
        width: Of the hidden layers.
        out: Of what is held of a node.
        layers: Convolutions in all.
        dropout: Of features and hidden values.

    Attributes:
        ends: What is held of both ends of each pair, ``(P, 2 out)``; a tap.
    """

    def __init__(
        self,
        features: PositiveInt,
        width: PositiveInt = 64,
        out: PositiveInt = 32,
        layers: Annotated[int, Field(ge=2)] = 2,
        dropout: Dropout = 0.5,
    ) -> None:
        super().__init__(features, out, width, layers, dropout)
        self.ends = nn.Identity()

    def forward(self, words: Sparse | Tensor, views: Views, pairs: Tensor) -> Tensor:  # type: ignore[override]
        """Returns scores ``(P,)`` of pairs ``(2, P)``."""
        nodes = super().forward(words, views)
        first, second = self.ends(torch.cat([nodes[pairs[0]], nodes[pairs[1]]], 1)).chunk(2, 1)
        return (first * second).sum(1)
