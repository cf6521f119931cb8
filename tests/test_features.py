from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdbench.features import (
    Boxes,
    Edges,
    Feature,
    Grid,
    Heads,
    Last,
    Layer,
    Levels,
    Logits,
    Nodes,
    Points,
    Tokens,
    Values,
    Vector,
)


def test_rows_follow_class_axis_and_mask():
    values = torch.arange(24.0).reshape(2, 3, 2, 2)
    logits = Logits(values, class_dim=1, target=torch.arange(8).reshape(2, 2, 2))
    assert torch.equal(logits.rows()[5], values[1, :, 0, 1])
    target = logits.row_target()
    assert target is not None
    assert target.tolist() == list(range(8))
    assert logits.row_weight() is None

    mask = torch.zeros(2, 2, 2, dtype=torch.bool)
    mask[1, 0, 1] = True
    masked = Logits(values, 1, mask, weight=torch.arange(8.0).reshape(2, 2, 2), target=logits.target)
    assert torch.equal(masked.rows(), values[1, :, 0, 1][None])
    weight, target = masked.row_weight(), masked.row_target()
    assert weight is not None
    assert target is not None
    assert weight.tolist() == [5.0]
    assert target.tolist() == [5]


def test_an_empty_mask_gives_no_rows_but_keeps_the_classes():
    assert Logits(torch.zeros(2, 7), mask=torch.zeros(2, dtype=torch.bool)).rows().shape == (0, 7)


def test_rows_of_predicted_values():
    values = torch.arange(16.0).reshape(2, 4, 2)  # at two places, two means and two log-variances
    predicted = Values(values, value_dim=1, law="gaussian")
    assert predicted.rows().tolist() == [[0, 2, 4, 6], [1, 3, 5, 7], [8, 10, 12, 14], [9, 11, 13, 15]]
    assert predicted.row_weight() is None
    mask = torch.tensor([[False, True], [True, False]])
    masked = Values(values, 1, mask, weight=torch.arange(4.0).reshape(2, 2))
    assert masked.law == "plain"
    assert masked.rows().tolist() == [[1, 3, 5, 7], [8, 10, 12, 14]]
    weight = masked.row_weight()
    assert weight is not None
    assert weight.tolist() == [1, 2]
    assert Values(torch.zeros(2, 3), mask=torch.zeros(2, dtype=torch.bool)).rows().shape == (0, 3)


V = torch.arange(24.0)
BATCH = torch.tensor([0, 0, 2, 2, 2, 3])
KEPT = torch.tensor([[True, False, True], [False, False, True]])
#: A feature, the sample of each of its rows, and one row.
KINDS = [
    (Vector(V.view(4, 6)), [0, 1, 2, 3], (1, V[6:12])),
    (Grid(V.view(2, 3, 2, 2)), [0] * 4 + [1] * 4, (6, V.view(2, 3, 2, 2)[1, :, 1, 0])),
    (Tokens(V.view(2, 3, 4)), [0] * 3 + [1] * 3, (4, V[16:20])),
    (Tokens(V.view(2, 3, 4), mask=KEPT), [0, 0, 1], (1, V[8:12])),
    (Layer(V.view(2, 3, 4)), [0] * 3 + [1] * 3, (4, V[16:20])),
    (Layer(V.view(2, 3, 4), 1, KEPT), [0, 0, 1], (1, V[8:12])),
    (Heads(V.view(2, 3, 1, 2, 2)), [0, 0, 1, 1], (2, V[[12, 13, 16, 17, 20, 21]])),
    (Heads(V.view(2, 3, 1, 2, 2), KEPT[:, :2]), [0], (0, V[[0, 1, 4, 5, 8, 9]])),
    (Points(V.view(6, 4), torch.zeros(6, 3), BATCH), BATCH.tolist(), (2, V[8:12])),
    (Nodes(V.view(6, 4), None, BATCH), BATCH.tolist(), (2, V[8:12])),
    (Nodes(V.view(6, 4), None, BATCH, mask=BATCH > 0), [2, 2, 2, 3], (0, V[8:12])),
    (Logits(V.view(2, 4, 3), class_dim=1), [0] * 3 + [1] * 3, (4, V.view(2, 4, 3)[1, :, 1])),
    (Logits(V.view(2, 4, 3), class_dim=1, mask=KEPT), [0, 0, 1], (2, V.view(2, 4, 3)[1, :, 2])),
    (Values(V.view(2, 3, 4), mask=KEPT), [0, 0, 1], (2, V[20:])),
    (Boxes(V.view(2, 3, 4), V[:12].view(3, 4), torch.arange(3)), [0] * 3 + [1] * 3, (4, V[16:20])),
    (Boxes(V.view(2, 3, 4), V[:12].view(3, 4), torch.arange(3), mask=KEPT), [0, 0, 1], (1, V[8:12])),
    (Edges(V.view(1, 2, 4, 3)), [0] * 8, (5, V[15:18])),
    (Edges(V.view(1, 2, 4, 3), mask=torch.tensor([[False, True]])), [0] * 4, (1, V[15:18])),
    (Levels.of([V[:16].view(2, 2, 2, 2), V[16:20].view(2, 2, 1, 1)]), [0] * 5 + [1] * 5, (9, V[18:20])),
]


@pytest.mark.parametrize(("feature", "sample", "row"), KINDS)
def test_every_kind_is_rows_that_know_their_sample(feature: Feature, sample: list[int], row):
    assert feature.sample().tolist() == sample
    assert feature.rows().shape[0] == len(sample)
    assert torch.equal(feature.rows()[row[0]], row[1])


def test_heads_look_at_words_alone_and_a_decoder_back():
    heads = Heads(V.view(2, 3, 2, 2, 1), torch.tensor([[True, True], [True, False]]))
    queries, keys, values = heads.parts()
    assert torch.equal(torch.stack([queries, keys, values], 1), heads.values)
    assert heads.looks()[:, 0].tolist() == [[[True, True], [True, True]], [[True, False], [False, False]]]
    back = replace(heads, causal=True)
    assert back.looks()[:, 0].tolist() == [[[True, False], [True, True]], [[True, False], [False, False]]]
    assert Heads(heads.values).looks().all()
    assert not issubclass(Layer, Tokens)


def test_levels_are_the_maps_that_they_were_made_of():
    maps = [V.view(2, 2, 2, 3), V[:4].view(2, 2, 1, 1)]
    joined = Levels.of(maps)
    assert joined.values.shape == (2, 2, 7)
    assert all(torch.equal(a, b) for a, b in zip(joined.maps(), maps, strict=True))
    assert not issubclass(Levels, Grid)


def test_tokens_with_a_grid_are_one():
    grid = Grid(V.view(2, 3, 2, 2))
    tokens = grid.as_tokens()
    with_class = Tokens(torch.cat([torch.ones(2, 1, 3), tokens.values], 1), prefix=1, grid=(2, 2))
    for made in (tokens, with_class):
        found = made.as_grid()
        assert isinstance(found, Grid)
        assert torch.equal(found.values, grid.values)
    assert isinstance(Tokens(tokens.values).as_grid(), Tokens)


def test_grid_as_tokens_and_as_points_keep_cells_with_their_places():
    grid = Grid(torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0)))
    tokens = grid.as_tokens()
    assert tokens.values.shape == (2, 12, 5)
    assert tokens.grid == (3, 4)
    points = grid.as_points()
    assert points.values.shape == (24, 5)
    for row in (0, 7, 13, 23):
        y, x, zero = (int(v) for v in points.coords[row])
        assert zero == 0
        assert torch.equal(points.values[row], grid.values[points.batch[row], :, y, x])
        assert torch.equal(points.values[row], tokens.values[points.batch[row], y * 4 + x])


def test_adapters_keep_the_gradient():
    values = torch.zeros(1, 2, 3, 3, requires_grad=True)
    Grid(values).as_points().values.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == torch.ones(1, 2, 3, 3).tolist()


def test_signature():
    assert Grid(torch.zeros(1, 2, 3, 4)).signature() == "Grid(1, 2, 3, 4) float32"
    assert Last(torch.zeros(1, 2, 3, 4)).signature() == "Last(1, 2, 3, 4) float32"
