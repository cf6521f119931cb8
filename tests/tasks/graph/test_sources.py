"""Graphs read from files: what is put right, and what is one clear line."""

from __future__ import annotations

import os
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from kdbench.base.store import Store
from kdbench.errors import KDBenchError
from tasks.graph import layout, planetoid, tables
from tasks.graph.data import DataOptions, Opened
from tasks.graph.sources import open_source

REAL = Path(__file__).parents[4] / "shared" / "data" / "graph"


def arrays(**changes: Any) -> dict[str, Any]:
    """Six nodes of two classes, two words each."""
    held = {
        "indptr": np.arange(0, 13, 2),
        "indices": np.array([0, 1] * 6),
        "shape": np.array([6, 2]),
        "y": np.array([0, 1, 0, 1, 0, -1]),
        "edges": np.array([[0, 1], [1, 2], [2, 3]]),
        "train": np.array([0, 1]),
        "val": np.array([2]),
        "test": np.array([3, 4]),
    }
    return {**held, **changes}


def saved(folder: Path, **changes: Any) -> Path:
    np.savez(folder / "graph.npz", **arrays(**changes))
    return folder / "graph.npz"


def test_edges_that_are_there_twice_or_join_a_node_with_itself_are_left_out(tmp_path):
    graph = layout.read(saved(tmp_path, edges=np.array([[0, 1], [1, 0], [0, 1], [2, 2], [3, 4]])), "x")
    assert graph.edges.tolist() == [[0, 1], [3, 4]]
    assert graph.notes == ("edges:1 self left out", "edges:2 duplicate left out")
    both = layout.read(saved(tmp_path, edges=np.array([[0, 1], [1, 0]]), directed=np.array(True)), "x")
    assert both.edges.tolist() == [[0, 1], [1, 0]]
    opened = Opened(graph, DataOptions("owngraph", cold=0.0))
    assert "isolated:2 nodes have no edge" in opened.notes
    assert "unlabelled:1 nodes have no label" in opened.notes


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"edges": np.array([[0, 1], [2, 6]])}, "edge 1 joins 2 and 6, expected nodes 0 to 5"),
        ({"val": np.array([1, 2])}, "1 nodes are in train and in val, the first is 1: expected each in one"),
        ({"test": np.array([3, 5])}, "node 5 of test has no label: leave it out of test"),
        ({"values": np.array([1.0] * 7 + [np.nan] + [1.0] * 4)}, "a feature of node 3 is not finite"),
        ({"y": np.array([0, 1, 0, 1, 0, -2])}, r"labels go from -2 to 1, expected -1 \(none\) to 1"),
        ({"y": np.array([0, 1])}, "6 rows of features for 2 labels"),
        ({"indices": np.array([0, 2] * 6)}, "a word has the number 2, expected 0 to 1"),
        ({"indptr": np.arange(0, 12, 2)}, "indptr does not cut indices into 6 rows"),
        ({"edges": np.array([0, 1])}, r"edges are \(2,\), expected \(E, 2\)"),
        ({"train": np.array([0, 9])}, "train names node 9, expected 0 to 5"),
    ],
)
def test_arrays_that_contradict_each_other_are_one_line(tmp_path, changes, line):
    with pytest.raises(KDBenchError, match=line):
        layout.read(saved(tmp_path, **changes), "x")


def test_a_file_that_is_none_is_one_line(tmp_path):
    bare = arrays()
    del bare["edges"]
    np.savez(tmp_path / "graph.npz", **bare)
    with pytest.raises(KDBenchError, match="there is no array 'edges'"):
        layout.read(tmp_path / "graph.npz", "x")
    np.savez(tmp_path / "graph.npz", **arrays(y=np.array([{}] * 6, object)))
    with pytest.raises(KDBenchError, match="no .npz of plain arrays"):
        layout.read(tmp_path / "graph.npz", "x")
    (tmp_path / "graph.npz").write_bytes(b"nothing")
    with pytest.raises(KDBenchError, match="no .npz of plain arrays"):
        layout.read(tmp_path / "graph.npz", "x")


# ---- tables -----------------------------------------------------------------------------------------------------


def written(folder: Path, nodes: str, edges: str) -> Path:
    (folder / tables.NODES).write_text(nodes)
    (folder / tables.EDGES).write_text(edges)
    return folder


def test_tables_are_read_with_nodes_without_label_between_the_others(tmp_path):
    rows = "".join(f"p{i},{'' if i % 5 == 4 else 'ab'[i % 2]},{i},{i % 3}\n" for i in range(60))
    root = written(tmp_path, f"id,label,size,kind\n{rows}", "source,target\np0,p1\np1,p0\np7,p7\np3,p59\n")
    graph = tables.read(root, "mine", directed=False)
    assert graph.classes == ("a", "b")
    assert (graph.labels == -1).sum() == 12
    assert graph.edges.tolist() == [[0, 1], [3, 59]]
    parts = np.concatenate([*graph.splits.values()])
    assert len(parts) == len(np.unique(parts)) == 48
    assert np.array_equal(graph.words[7].toarray(), [[7, 1]])
    assert len(tables.read(root, "mine", directed=True).edges) == 3


@pytest.mark.parametrize(
    ("nodes", "edges", "line"),
    [
        ("id,label,x\na,0,1\nb,1,2\n", "source,target\na,c\n", r"edges.csv:2: target 'c' is no id of nodes.csv"),
        ("id,label,x\na,0,1\na,1,2\n", "source,target\n", r"nodes.csv:3: the id 'a' is there twice"),
        ("id,label,x\na,0,nan\n", "source,target\n", r"nodes.csv:2: x is 'nan', expected a finite number"),
        ("id,label,x\na,0,red\n", "source,target\n", r"nodes.csv:2: x is 'red', expected a number"),
        ("id,lable,x\na,0,1\n", "source,target\n", "there is no column 'label': did you mean 'lable'"),
        ("id,label\na,0\n", "source,target\n", "there is no column of numbers"),
        ("id,label,x\na,0\n", "source,target\n", "nodes.csv:2: expected 3 values"),
        ("id,label,split,x\na,0,dev,1\n", "source,target\n", "nodes.csv:2: there is no split 'dev'"),
    ],
)
def test_tables_that_are_wrong_are_one_line(tmp_path, nodes, edges, line):
    with pytest.raises(KDBenchError, match=line):
        tables.read(written(tmp_path, nodes, edges), "mine", directed=False)


def test_a_class_without_a_labelled_node_is_told(tmp_path):
    saved(tmp_path, y=np.array([0, 0, 0, 1, 0, -1]))
    opened = Opened(layout.read(tmp_path / "graph.npz", "x"), DataOptions("owngraph", cold=0.0))
    assert opened.graph.labels[opened.train].tolist() == [0, 0]  # tasks' counts() names it, see test_task


# ---- Planetoid --------------------------------------------------------------------------------------------------


def release(folder: Path, **changes: Any) -> Path:
    """Eight nodes of the release's form, one of which (6) is missing in the test index."""
    words = sp.csr_matrix(np.eye(8, 4, dtype=np.float32))
    known = np.eye(2)[[0, 1, 0, 1, 0, 1, 0, 1]]
    parts = {
        "x": words[:2],
        "y": known[:2],
        "allx": words[:5],
        "ally": known[:5],
        "tx": words[[7, 5]],
        "ty": known[[7, 5]],
        "graph": defaultdict(list, {0: [1, 5], 1: [0], 5: [0], 7: [7]}),
    }
    for part, value in {**parts, **changes}.items():
        (folder / f"ind.mini.{part}").write_bytes(pickle.dumps(value, protocol=2))
    (folder / "ind.mini.test.index").write_text("7\n5\n")
    return folder


def test_the_release_is_read_without_running_what_it_names(tmp_path):
    graph = planetoid.read(release(tmp_path), "mini")
    assert graph.labels.tolist() == [0, 1, 0, 1, 0, 1, -1, 1]
    expected = np.eye(8, 4)
    expected[6] = 0
    assert np.array_equal(graph.words.toarray(), expected)
    assert graph.edges.tolist() == [[0, 1], [0, 5]]
    assert {k: v.tolist() for k, v in graph.splits.items()} == {"train": [0, 1], "val": [2, 3, 4], "test": [5, 7]}


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    release(tmp_path, graph=Evil(tmp_path / "made"))
    with pytest.raises(KDBenchError, match=r"ind\.mini\.graph: asks for (posix|nt)\.mkdir, .*it was not run"):
        planetoid.read(tmp_path, "mini")
    assert not (tmp_path / "made").exists()
    (tmp_path / "ind.mini.graph").write_bytes(b"\x80\x02half")
    with pytest.raises(KDBenchError, match="not a whole file, expected Planetoid"):
        planetoid.read(tmp_path, "mini")
    (tmp_path / "ind.mini.graph").unlink()
    with pytest.raises(KDBenchError, match=r"there is no 'ind\.mini\.graph'"):
        planetoid.read(tmp_path, "mini")


@pytest.mark.parametrize(
    ("name", "root", "options", "line"),
    [
        ("citation", None, {}, "there is no such source: did you mean 'citations'"),
        ("citations", "/tmp", {}, "citations is made up and reads no files"),
        ("cora", None, {}, "cora is not embedded; set the folder that holds cora.npz"),
        ("cora", "/nonexistent", {}, "there is no such folder"),
        ("cora", ".", {"papers": 3}, "cora is not made up"),
        ("citations", None, {"paper": 300}, "data.citations.paper: unknown key: did you mean 'papers'"),
    ],
)
def test_a_source_that_cannot_be_opened_is_one_line(tmp_path, name, root, options, line):
    with pytest.raises(KDBenchError, match=line):
        open_source(name, root, Store(tmp_path), options, False)


@pytest.mark.parametrize(
    ("name", "nodes", "edges", "bare", "alone"), [("cora", 2708, 5278, 0, 0), ("citeseer", 3327, 4552, 15, 48)]
)
def test_published_sets(tmp_path, name, nodes, edges, bare, alone):
    if not (REAL / f"{name}.npz").is_file():
        pytest.skip("the real data is not here")
    graph = open_source(name, str(REAL), Store(tmp_path), {}, False)
    assert (len(graph), len(graph.edges), int((graph.labels == -1).sum())) == (nodes, edges, bare)
    opened = Opened(graph, DataOptions(name))
    assert (len(opened.cold), len(opened.tran)) == (500, 500)
    assert any(f"isolated:{alone} " in note for note in opened.notes) == bool(alone)
    whole = Opened(graph, DataOptions(name, cold=0.0))
    assert len(whole.tran) == 1000
    assert not len(whole.cold)
