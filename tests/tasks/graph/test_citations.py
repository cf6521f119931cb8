"""The made-up papers."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.graph import layout
from tasks.graph.citations import FIELDS, Citations, make


@pytest.fixture(scope="module")
def papers():
    return make(Citations(papers=800))


def test_a_smaller_set_is_the_beginning_of_a_larger_one(papers):
    small = make(Citations(papers=300))
    assert (small.words != papers.words[:300]).nnz == 0
    assert np.array_equal(small.labels, papers.labels[:300])
    early = papers.edges[(papers.edges < 300).all(1)]
    assert np.array_equal(small.edges, early)


def test_papers_cite_earlier_ones_mostly_of_their_field(papers):
    assert (papers.edges[:, 0] > papers.edges[:, 1]).all()
    same = papers.labels[papers.edges[:, 0]] == papers.labels[papers.edges[:, 1]]
    assert 0.74 < same.mean() < 0.84
    cycle = make(Citations(papers=800, mode="cycle", homophily=0.1))
    source, cited = cycle.labels[cycle.edges.T]
    assert 0.05 < (source == cited).mean() < 0.15
    assert 0.62 < ((source + 1) % len(FIELDS) == cited).mean() < 0.76


def test_cuts_are_apart_and_the_newest_are_cold(papers):
    parts = [*papers.splits.values()]
    assert sum(map(len, parts)) == len(np.unique(np.concatenate(parts))) == 800
    assert np.array_equal(papers.splits["cold"], np.arange(640, 800))
    assert np.bincount(papers.labels[papers.splits["train"]]).tolist() == [15] * 6


def test_a_reader_who_knows_the_laws_is_right_mostly_and_not_of_blank_papers(papers):
    right = papers.law.argmax(1) == papers.labels
    assert 0.7 < right.mean() < 0.85
    assert right[papers.blank].mean() < 0.35
    assert np.allclose(papers.law.sum(1), 1, atol=1e-5)
    # It is sure as often as it is right: what it says is a law.
    assert abs(papers.law.max(1).mean() - right.mean()) < 0.04


def test_the_file_holds_what_was_made(papers, tmp_path):
    layout.write(tmp_path / "graph.npz", papers)
    again = layout.read(tmp_path / "graph.npz", "citations")
    assert (again.words != papers.words).nnz == 0
    assert np.array_equal(again.edges, papers.edges)
    assert again.classes == FIELDS
    assert again.directed
    assert not again.notes
    assert {k: v.tolist() for k, v in again.splits.items()} == {k: v.tolist() for k, v in papers.splits.items()}
    other = make(Citations(papers=300, seed=1))
    assert not np.array_equal(other.labels, papers.labels[:300])
