"""Readers as tables of answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from kdbench.errors import KDBenchError
from tasks.graph import reader
from tasks.graph.citations import Citations, make
from tests.tasks.graph import tiny

REAL = Path(__file__).parents[4] / "shared" / "data" / "graph"
PAPERS = "data.citations.papers=300"


def test_the_table_holds_what_a_reader_says_of_every_node(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path))
    assert reader.main([str(tmp_path / "r.safetensors"), "--knows", "1.0", PAPERS]) == 0
    held = load_file(tmp_path / "r.safetensors")
    papers = make(Citations(papers=300))
    assert sorted(held["ids"].tolist()) == list(range(300))
    assert papers.law is not None
    np.testing.assert_allclose(held["outputs"].exp().numpy(), papers.law, atol=1e-5)
    assert "tran " in capsys.readouterr().out


def test_a_reader_who_knows_fewer_words_is_right_less_often(tmp_path):
    opened = tiny.task(tmp_path).opened
    right = [float((reader.made_up(opened, k).argmax(1) == opened.graph.labels).mean()) for k in (0.0, 0.4, 1.0)]
    assert right[0] < right[1] < right[2]
    law = reader.made_up(opened, 0.0)
    assert np.allclose(law, law[0], atol=1e-9)  # the prior alone


def test_guesses_weigh_by_their_place(tmp_path):
    opened = tiny.task(tmp_path).opened
    ranks = np.full((300, 6), -1)
    ranks[:, 0], ranks[5, 1] = 2, 4
    np.savez(tmp_path / "g.npz", ranks=ranks, y=opened.graph.labels)
    law = reader.guessed(opened, tmp_path / "g.npz")
    total = 6 * 0.02 + 1
    assert law[0, 2] == pytest.approx(1.02 / total)
    assert law[5, 4] == pytest.approx(0.27 / (total + 0.25))
    assert np.allclose(law.sum(1), 1)


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"y": np.zeros(300)}, r"ranks are nothing, expected \(300, K\) of -1 to 5"),
        ({"ranks": np.zeros((299, 2), int)}, r"ranks are \(299, 2\), expected \(300, K\)"),
        ({"ranks": np.full((300, 2), 6)}, "of -1 to 5"),
        ({"ranks": np.zeros((300, 2), int), "y": np.zeros(300)}, "its labels are not those of citations"),
    ],
)
def test_guesses_of_other_nodes_are_one_line(tmp_path, arrays, line):
    np.savez(tmp_path / "g.npz", **arrays)
    with pytest.raises(KDBenchError, match=line):
        reader.guessed(tiny.task(tmp_path).opened, tmp_path / "g.npz")


def test_what_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path))
    np.savez(tmp_path / "graph.npz", **_two())
    own = ["data=owngraph", f"data.root={tmp_path}"]
    assert reader.main([str(tmp_path / "r"), *own]) == 1
    assert "owngraph is not made up: give the guesses of a reader" in capsys.readouterr().err


def _two() -> dict[str, Any]:
    return {
        "indptr": np.arange(7),
        "indices": np.zeros(6, int),
        "shape": np.array([6, 1]),
        "y": np.array([0, 1] * 3),
        "edges": np.array([[0, 1]]),
        "train": np.array([0, 1]),
        "val": np.array([2, 3]),
        "test": np.array([4, 5]),
    }


def test_the_guesses_of_a_language_model_are_of_these_papers(tmp_path):
    if not (REAL / "cora_llm.npz").is_file():
        pytest.skip("the real data is not here")
    opened = tiny.task(tmp_path, {"source": "cora", "root": str(REAL), "cold": 0.0}).opened
    law = reader.guessed(opened, REAL / "cora_llm.npz")
    assert 100 * (law.argmax(1) == opened.graph.labels).mean() == pytest.approx(67.69, abs=0.3)
