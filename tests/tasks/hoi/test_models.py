"""Networks: attention against its equations and against torch_geometric's, padding, order, and what reaches what."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from kdbench.base import rng
from kdbench.errors import KDBenchError
from tasks.hoi.models import ContextNet, Tracks
from tasks.hoi.models.attention import Across, AcrossGATv2, GATv2, attended

FEATURES = {"human": 5, "object": 4, "edge": 3}
CLASSES = {"human": 3, "object": 2, "clip": 4}
FORMS: list[dict[str, Any]] = [
    {},
    {"form": "gatv2", "layers": 1},
    {"time": "gru"},
    {"time": "both", "layers": 1},
    {"time": "none", "local": 2},
    {"time": "none", "carried": True},
    {"local": 0},
    {"local": 0, "time": "none", "sets": True},
]


def seeded(*shape: int, name: str = "x", dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=rng.generator(0, "graphs", name, *shape), dtype=dtype)


def masks(*shape: int, share: float = 0.7) -> torch.Tensor:
    found = torch.rand(shape, generator=rng.generator(0, "masks", *shape)) < share
    found[..., 0] = True
    return found


def graph(heads: int = 2, edges: int = 3, carried: bool = False) -> GATv2:
    with rng.scope(0, "graph"):
        made = GATv2(8, heads, edges, carried).double()
        made.bias.data.normal_()
    return made


def by_hand(layer: GATv2, x: torch.Tensor, mask: torch.Tensor, edge: torch.Tensor) -> torch.Tensor:
    """Equation 7 of GATv2, a pair of nodes at a time; carried edges by equation 3 of Shaw et al."""
    found = torch.zeros_like(x)
    width = x.shape[1] // layer.heads
    assert layer.edge is not None
    for i in torch.nonzero(mask)[:, 0].tolist():
        others = torch.nonzero(mask)[:, 0].tolist()
        for h in range(layer.heads):
            part = slice(h * width, (h + 1) * width)
            scores = []
            for j in others:
                z = layer.source(x[j]) + layer.target(x[i]) + layer.edge(edge[i, j])
                z = torch.where(z > 0, z, 0.2 * z)
                scores.append(float((z[part] @ layer.score[h]).detach()))
            total = sum(math.exp(s) for s in scores)
            for j, s in zip(others, scores, strict=True):
                value = layer.source(x[j]) if layer.carry is None else layer.source(x[j]) + layer.carry(edge[i, j])
                found[i, part] += math.exp(s) / total * value[part]
        found[i] += layer.bias
    return found


@pytest.mark.parametrize("carried", [False, True])
def test_dense_gatv2_is_that_of_the_equations(carried):
    layer, x, edge, mask = graph(carried=carried), seeded(3, 5, 8), seeded(3, 5, 5, 3, name="edge"), masks(3, 5)
    found, attention = layer(x, mask, edge)
    for b in range(3):
        torch.testing.assert_close(found[b], by_hand(layer, x[b], mask[b], edge[b]))
    there = mask[:, :, None].expand(3, 5, 2).double()
    torch.testing.assert_close(attention.sum(2), there)
    assert not attention[~(mask[:, :, None] & mask[:, None])].any()


@pytest.mark.parametrize("heads", [1, 4])
def test_dense_gatv2_is_that_of_torch_geometric(heads):
    """On random graphs of random sizes, weights copied."""
    geometric = pytest.importorskip("torch_geometric.nn", reason="needs torch_geometric")
    layer, mask = graph(heads), masks(6, 7, share=0.6)
    other = geometric.GATv2Conv(8, 8 // heads, heads, edge_dim=3, add_self_loops=False).double()
    assert layer.edge is not None
    other.lin_l.load_state_dict(layer.source.state_dict())
    other.lin_r.load_state_dict(layer.target.state_dict())
    other.lin_edge.load_state_dict(layer.edge.state_dict())
    other.att.data = layer.score.data[None].clone()
    other.bias.data = layer.bias.data.clone()
    x, edge = seeded(6, 7, 8), seeded(6, 7, 7, 3, name="edge")
    found, attention = layer(x, mask, edge)
    place, i, j = (mask[:, :, None] & mask[:, None]).nonzero(as_tuple=True)
    index = torch.stack([place * 7 + j, place * 7 + i])
    expected, (_, weights) = other(x.flatten(0, 1), index, edge[place, i, j], return_attention_weights=True)
    torch.testing.assert_close(found[mask], expected.view(6, 7, 8)[mask])
    torch.testing.assert_close(attention[place, i, j], weights)


def across(kind: type = Across, heads: int = 2) -> Any:
    with rng.scope(0, "across"):
        made = kind(8, heads).double()
        for parameter in made.parameters():
            parameter.data.normal_(0, 0.4)
    return made


@pytest.mark.parametrize("kind", [Across, AcrossGATv2])
def test_attention_over_a_video_is_that_of_the_equations(kind):
    layer, x, mask = across(kind), seeded(2, 4, 3, 8), masks(2, 4, 3)
    found = layer(x, mask)
    for b in range(2):
        nodes = [(t, n) for t in range(4) for n in range(3) if mask[b, t, n]]
        for t, n in nodes:
            scores = torch.stack([_score(layer, x[b], (t, n), other) for other in nodes])
            weights = scores.softmax(0)
            values = torch.stack([_value(layer, x[b, s, m]) for s, m in nodes])
            joined = (weights[..., None] * values).sum(0).flatten()
            expected = layer.out(joined) if kind is Across else joined + layer.graph.bias
            torch.testing.assert_close(found[b, t, n], expected)
        assert not found[b][~mask[b]].any()


def _value(layer, node):
    return (layer.qkv(node)[16:] if isinstance(layer, Across) else layer.graph.source(node)).view(2, 4)


def _score(layer, x, here, there):
    time = (layer.time * torch.cos(layer.frequencies * (here[0] - there[0]))).sum(1)
    bias = time + (layer.same if here[1] == there[1] else 0)
    if isinstance(layer, Across):
        query, key = layer.qkv(x[here])[:8].view(2, 4), layer.qkv(x[there])[8:16].view(2, 4)
        return (query * key).sum(1) / 2 + bias
    z = layer.graph.source(x[there]) + layer.graph.target(x[here])
    return (torch.where(z > 0, z, 0.2 * z).view(2, 4) * layer.graph.score).sum(1) + bias


def test_weights_that_are_looked_at_are_those_of_the_forward():
    layer, x, mask = across(), seeded(2, 4, 3, 8), masks(2, 4, 3)
    weights = layer.attention(x, mask)
    values = layer.qkv(x)[..., 16:].reshape(2, 12, 2, 4)
    joined = torch.einsum("bhij,bjhd->bihd", weights, values).reshape(2, 4, 3, 8)
    torch.testing.assert_close(layer(x, mask), layer.out(joined) * mask[..., None])


def test_what_the_first_node_attends_to_is_a_mean_over_its_steps():
    layer, x, mask = across(), seeded(2, 4, 3, 8), masks(2, 4, 3)
    found = attended(layer, lambda model: model(x, mask))
    assert found is not None
    weights = layer.attention(x, mask).detach()
    for row in range(2):
        own = [weights[row, :, 3 * t].mean(0) for t in range(4) if mask[row, t, 0]]
        torch.testing.assert_close(found[row].detach(), torch.stack(own).mean(0).view(4, 3))
    assert not layer._forward_pre_hooks
    assert attended(nn.Linear(2, 2), lambda model: model(torch.zeros(1, 2))) is None


def net(**options) -> ContextNet:
    with rng.scope(0, "net"):
        return ContextNet(FEATURES, CLASSES, **{"width": 8, "heads": 2, "dropout": 0.0, **options}).double().eval()


def inputs(batch: int = 2, steps: int = 5, people: int = 1, objects: int = 3):
    nodes, mask = people + objects, masks(batch, steps, people + objects)
    human, thing, edge = (
        seeded(batch, steps, people, 5, name="h"),
        seeded(batch, steps, objects, 4, name="o"),
        seeded(batch, steps, nodes, nodes, 3, name="e"),
    )
    return [human, thing, edge, mask]


@pytest.mark.parametrize("options", FORMS)
def test_heads_have_their_shapes_and_all_parameters_learn(options):
    model = net(targets=("human", "object", "clip"), **options)
    found = model(*inputs())
    assert {name: tuple(x.shape) for name, x in found.items()} == {
        "human": (2, 5, 1, 3),
        "object": (2, 5, 3, 2),
        "clip": (2, 4),
    }
    sum(x.square().sum() for x in found.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("options", FORMS)
def test_padding_changes_nothing(options):
    """A video by itself and beside a longer one with more objects says the same."""
    model, given = net(targets=("human", "object", "clip"), **options), inputs(1, 4, 1, 2)
    alone = model(*given)
    human, thing, edge, mask = (
        torch.full(shape, 7.0, dtype=torch.float64)
        for shape in ((1, 6, 1, 5), (1, 6, 4, 4), (1, 6, 5, 5, 3), (1, 6, 5))
    )
    mask = torch.zeros(1, 6, 5, dtype=torch.bool)
    human[:, :4], thing[:, :4, :2], edge[:, :4, :3, :3], mask[:, :4, :3] = given
    padded = model(human, thing, edge, mask)
    there = given[3]
    torch.testing.assert_close(padded["human"][:, :4][there[..., :1]], alone["human"][there[..., :1]])
    torch.testing.assert_close(padded["object"][:, :4, :2][there[..., 1:]], alone["object"][there[..., 1:]])
    torch.testing.assert_close(padded["clip"], alone["clip"])


@pytest.mark.parametrize("options", FORMS)
def test_the_order_of_objects_means_nothing(options):
    model, (human, thing, edge, mask) = net(**options), inputs()
    order, nodes = torch.tensor([2, 0, 1]), torch.tensor([0, 3, 1, 2])
    first = model(human, thing, edge, mask)
    other = model(human, thing[:, :, order], edge[:, :, nodes][:, :, :, nodes], mask[:, :, nodes])
    there = mask[:, :, 1:]
    torch.testing.assert_close(other["human"], first["human"])
    torch.testing.assert_close(other["object"][there[:, :, order]], first["object"][:, :, order][there[:, :, order]])


def test_local_context_sees_its_step_alone_and_global_context_all():
    given = inputs()
    given[3][:] = True
    changed = [given[0].clone(), *given[1:]]
    changed[0][:, 4] += 1
    for options, reach in (({"time": "none"}, False), ({"time": "gru"}, True), ({}, True), ({"local": 0}, True)):
        model = net(**options)
        moved = (model(*changed)["human"] - model(*given)["human"]).abs().amax((0, 2, 3))
        assert moved[4] > 0
        assert bool(moved[:4].max() > 1e-12) is reach


def test_a_track_is_read_from_both_ends_of_its_video():
    with rng.scope(0, "tracks"):
        layer = Tracks(4).double()
    x, mask = seeded(2, 6, 3, 4), torch.ones(2, 6, 3, dtype=torch.bool)
    mask[1, 4:] = False
    found = layer(x, mask)
    for b, length in ((0, 6), (1, 4)):
        for n in range(3):
            track = x[b, None, :length, n]
            both = [layer.forwards(track)[0], layer.backwards(track.flip(1))[0].flip(1)]
            torch.testing.assert_close(found[b, :length, n], torch.cat(both, 2)[0])
    assert not found[1, 4:].any()


def test_a_video_in_which_nobody_is_there_gives_numbers():
    for options in FORMS:
        given = inputs()
        given[3][1] = False
        found = net(targets=("human", "object", "clip"), **options)(*given)
        assert all(x.isfinite().all() for x in found.values())


def test_options_that_do_not_fit_are_one_line():
    with pytest.raises(KDBenchError, match="targets: there is no head 'humn': did you mean 'human'"):
        net(targets=("humn",))
    with pytest.raises(KDBenchError, match="width=9 heads=2: expected an even width that is a multiple of the heads"):
        net(width=9)
