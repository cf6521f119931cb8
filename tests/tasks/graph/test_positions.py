"""Where nodes stand: eigenvectors against a dense solver, who reads which row, and what a network makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tasks.graph.models import PLACES
from tasks.graph.positions import places, positions
from tests.tasks.graph import tiny


def test_positions_are_eigenvectors_of_the_normalised_matrix_of_edges():
    draw = np.random.default_rng(0)
    edges = np.unique(draw.integers(30, size=(90, 2)), axis=0)
    edges = edges[edges[:, 0] != edges[:, 1]]
    found = positions(edges, 30, 5).astype(np.float64) / 30**0.5
    matrix = np.zeros((30, 30))
    matrix[edges[:, 0], edges[:, 1]] = matrix[edges[:, 1], edges[:, 0]] = 1
    scale = matrix.sum(1) ** -0.5
    values, vectors = np.linalg.eigh(scale[:, None] * matrix * scale)
    expected = vectors[:, ::-1][:, 1:6]
    expected = expected * np.sign(expected[np.abs(expected).argmax(0), np.arange(5)])
    assert (np.diff(values[::-1][:7]) < -1e-3).all()  # none comes twice, so that each vector is the only one
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.array_equal(positions(edges[:, ::-1], 30, 5), positions(edges, 30, 5))
    assert positions(np.array([[0, 1]]), 3, 4).any(0).tolist() == [True, False, False, False]
    assert not positions(np.empty((0, 2), np.int64), 3, 4).any()
    assert not positions(np.array([[0, 1]]), 2, 4).any()


def test_a_new_node_reads_the_mean_over_its_neighbours_that_have_a_row():
    edges = np.array([[3, 0], [3, 2], [3, 4], [1, 2]])
    rows = np.array([1, 0, 2, 3, 4])  # nodes 3 and 4 have none
    found = places(np.array([0, 1, 3, 4]), edges, rows, 3).toarray()
    assert found.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0.5, 0.5], [0, 0, 0]]
    assert not places(np.array([3]), edges[3:], rows, 3).toarray().any()
    assert places(np.array([2, 0]), edges[:0], rows, 3).toarray().tolist() == [[0, 0, 1], [0, 1, 0]]


@pytest.fixture
def made(tmp_path):
    return tiny.task(tmp_path)


def test_the_table_is_of_what_training_sees_and_part_of_the_network(made):
    model = made.build(tiny.POSITIONS).eval()
    opened = made.opened
    inside = opened.graph.edges[np.isin(opened.graph.edges, opened.seen).all(1)]
    torch.testing.assert_close(model.state_dict()["table"], 0.05 * torch.from_numpy(positions(inside, 240, 4)))
    batch = opened.training()
    assert torch.equal(batch.inputs.views[PLACES].col, torch.arange(240))
    found = made.forward(model, batch.inputs)
    model.table.zero_()
    alone = made.build({**tiny.MLP}).eval()
    alone.load_state_dict({k: v for k, v in model.state_dict().items() if k not in ("table", "placed.weight")})
    assert not torch.allclose(found, made.forward(model, batch.inputs))
    torch.testing.assert_close(made.forward(model, batch.inputs), made.forward(alone, batch.inputs))


def test_a_cold_node_stands_at_what_it_cites_and_nowhere_without_its_citations(made):
    model = made.build(tiny.POSITIONS).eval()
    whole, unlinked = made.opened.tests()
    cold = whole.targets.sets["scored"]
    with_them, without = (made.forward(model, batch.inputs) for batch in (whole, unlinked))
    torch.testing.assert_close(with_them[~cold], without[~cold])
    assert not torch.allclose(with_them[cold], without[cold])
    model.table.zero_()
    torch.testing.assert_close(made.forward(model, whole.inputs)[cold], without[cold])
    other = replace(whole, inputs=whole.inputs._replace(edges=whole.inputs.edges[:, :4]))
    assert torch.equal(made.forward(model, other.inputs), made.forward(model, whole.inputs))
