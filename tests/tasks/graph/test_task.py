"""The task: what is seen and what is hidden, features, scores, and what a person gets to see."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdbench import export
from kdbench.configuration import config
from kdbench.configuration.resolved import resolve
from kdbench.errors import KDBenchError
from kdbench.features import Logits, Nodes, Vector
from kdbench.roles.sources import Network
from kdbench.runs import counts
from kdbench.runs.trainings import Trainings
from kdbench.task import Batch
from tasks.graph import layout
from tasks.graph.citations import Citations, make
from tasks.graph.data import views
from tasks.graph.task import GraphTask
from tests.tasks.graph import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> GraphTask:
    return tiny.task(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def batch(made) -> Batch:
    return next(iter(made.data(0).train_dataloader()))


def test_training_sees_neither_cold_nodes_nor_labels_of_others(made, batch):
    graph, opened = made.opened.graph, made.opened
    assert len(batch) == len(batch.inputs.words.crow) - 1 == 240 == made.dataset().sizes["train"]
    assert torch.equal(batch.ids, torch.arange(240))
    known = np.flatnonzero(batch.targets.labels.numpy() >= 0)
    assert np.array_equal(opened.seen[known], opened.train)
    assert torch.equal(batch.supervised, batch.targets.labels >= 0)
    assert batch.distilled is None
    inside = graph.edges[(graph.edges < 240).all(1)]
    pairs = {tuple(pair) for pair in batch.inputs.edges.T.tolist()}
    assert pairs == {*map(tuple, inside.tolist()), *map(tuple, inside[:, ::-1].tolist())}
    few = tiny.task(made.store.root, {**tiny.OPTIONS, "unlabelled": False, "labels": 2})
    first = next(iter(few.data(0).train_dataloader()))
    assert first.distilled.sum() == 12
    features: Any = few.describe(torch.randn(240, 6), {}, first)
    assert torch.equal(features["logits"].labels(), torch.from_numpy(graph.labels[few.opened.train]))


def test_cold_nodes_are_scored_with_their_edges_and_once_more_without(made):
    whole, unlinked = made.data(0).test_dataloader()
    sets = {name: int(mask.sum()) for name, mask in (whole.targets.sets | unlinked.targets.sets).items()}
    assert sets["scored"] == sets["unlinked"] == 60
    assert sets["tran"] == len(made.opened.tran)
    assert 0 < sets["blank"] < 30
    assert int(whole.inputs.edges.max()) >= 240 > int(unlinked.inputs.edges.max())
    torch.manual_seed(0)
    model, alone = made.build(tiny.GCN), made.build(tiny.MLP)
    found = made.evaluate(model, [whole, unlinked], "test", CPU)
    assert {"accuracy", "accuracy_tran", "accuracy_prod", "accuracy_blank", "accuracy_unlinked", "macro_f1"} <= {*found}
    words = made.evaluate(alone, [whole, unlinked], "test", CPU)
    assert words["accuracy"] == words["accuracy_unlinked"]
    validation = made.evaluate(model, made.data(0).val_dataloader(), "val", CPU)
    assert "accuracy" in validation
    assert "accuracy_tran" not in validation


def shuffled(batch: Batch) -> Batch:
    """The same nodes under edges drawn anew."""
    count = len(batch)
    edges = np.random.default_rng(0).integers(count, size=(3 * count, 2))
    inputs = batch.inputs._replace(views=views(edges, count), edges=torch.from_numpy(edges.T.copy()))
    return batch.with_inputs(inputs)


def test_a_student_of_words_has_bitwise_the_same_scores_under_any_edges(made):
    tests = [*made.data(0).test_dataloader()]
    torch.manual_seed(0)
    student, teacher = made.build(tiny.MLP).eval(), made.build(tiny.GCN).eval()
    for batch in tests:
        other = shuffled(batch)
        assert torch.equal(made.forward(student, batch.inputs), made.forward(student, other.inputs))
        assert not torch.allclose(made.forward(teacher, batch.inputs), made.forward(teacher, other.inputs))
    first, second = (made.evaluate(student, found, "test", CPU) for found in (tests, [*map(shuffled, tests)]))
    # Which nodes are isolated is said by the data, not by the batch.
    assert first == second


def test_a_network_is_given_the_edges_that_it_reads_alone(made, batch):
    class Curious(nn.Module):
        reads: tuple[str, ...] = ("cites",)

        def forward(self, words: Any, given: dict[str, Any]) -> torch.Tensor:
            assert [*given] == ["cites"]
            return torch.zeros(240, 6)

    made.forward(Curious(), batch.inputs)
    Curious.reads = ()
    with pytest.raises(AssertionError):
        made.forward(Curious(), batch.inputs)
    Curious.reads = ("kin",)
    with pytest.raises(KDBenchError, match="Curious reads the view 'kin', which these data do not have"):
        made.forward(Curious(), batch.inputs)

    class Echo(nn.Module):
        def forward(self, words: Any, given: dict[str, Any]) -> Any:
            return words

    with pytest.raises(KDBenchError, match=r"Echo gives Sparse, expected logits \(240, 6\) of nodes"):
        made.forward(Echo(), batch.inputs)


def test_an_undirected_graph_has_no_directions(tmp_path):
    np.savez(tmp_path / "graph.npz", **_undirected())
    options = {"source": "owngraph", "root": str(tmp_path), "cold": 0.5}
    task = tiny.task(tmp_path / "cache", options)
    with pytest.raises(KDBenchError, match="SAGE reads the view 'cites', which these data do not have"):
        task.build(tiny.SAGE)
    task.build({**tiny.SAGE, "views": ["neighbours"]})


def _undirected() -> dict[str, Any]:
    count = 40
    return {
        "indptr": np.arange(count + 1),
        "indices": np.arange(count) % 5,
        "shape": np.array([count, 5]),
        "y": np.arange(count) % 2,
        "edges": np.stack([np.arange(count - 1), np.arange(1, count)], 1),
        "train": np.arange(0, 10),
        "val": np.arange(10, 20),
        "test": np.arange(20, 40),
    }


def test_the_published_cut_is_transductive(tmp_path):
    np.savez(tmp_path / "graph.npz", **_undirected())
    task = tiny.task(tmp_path / "cache", {"source": "owngraph", "root": str(tmp_path), "cold": 0.0})
    (batch,) = task.data(0).test_dataloader()
    assert int(batch.targets.sets["scored"].sum()) == 20
    assert "transductive: every test node was answered by the teacher" in task.dataset().notes
    half = tiny.task(tmp_path / "cache", {"source": "owngraph", "root": str(tmp_path)})
    assert half.dataset().sizes == {"train": 30, "val": 10, "test": 10}
    with pytest.raises(KDBenchError, match="data.cold=0.5: citations says itself which nodes are cold"):
        _ = tiny.task(tmp_path / "cache", {**tiny.OPTIONS, "cold": 0.5}).opened


def test_a_class_without_a_labelled_node_is_named(tmp_path, caplog):
    np.savez(tmp_path / "graph.npz", **{**_undirected(), "train": np.arange(0, 10, 2)})
    task = tiny.task(tmp_path / "cache", {"source": "owngraph", "root": str(tmp_path)})
    counts.check(task)
    assert "owngraph: train holds no 1 to learn from" in caplog.text


def test_the_loss_is_the_mean_over_labelled_nodes(made, batch):
    logits = torch.randn(240, 6, dtype=torch.float64)
    known = batch.targets.labels >= 0
    expected = -logits.log_softmax(1)[known, batch.targets.labels[known]].mean()
    assert made.loss(nn.Identity(), logits, batch)["nodes"].item() == pytest.approx(expected.item(), rel=1e-9)
    none = replace(batch, supervised=torch.zeros(240, dtype=torch.bool))
    leaf = torch.randn(240, 6, requires_grad=True)
    loss = made.loss(nn.Identity(), leaf, none)["nodes"]
    loss.backward()
    assert loss.item() == 0
    assert leaf.grad is not None
    assert not leaf.grad.any()


def test_features_are_nodes_with_all_edges_and_vectors(made, batch):
    found: Any = Network(made, made.build(tiny.GCN), tiny.TAPS).answer(batch).features
    assert {name: type(feature) for name, feature in found.items()} == GraphTask.kinds({"taps": tiny.TAPS})
    assert [*found] == ["hidden", "pooled", "logits"]
    assert torch.equal(found["hidden"].edges, batch.inputs.edges)
    assert found["hidden"].values.shape == (240, 8)
    assert isinstance(found["hidden"], Nodes)
    assert isinstance(found["pooled"], Vector)
    assert found["logits"].rows().shape == (240, 6)
    part = replace(batch, distilled=batch.supervised, memo={})
    masked: Any = made.describe(torch.randn(240, 6), {"hidden": torch.randn(240, 3)}, part)
    assert masked["hidden"].rows().shape == masked["logits"].rows()[:, :3].shape == (30, 3)
    assert isinstance(masked["logits"], Logits)
    with pytest.raises(KDBenchError, match=r"tap 'hidden' has shape \(4, 8\), expected \(240, D\)"):
        made.describe(torch.zeros(240, 6), {"hidden": torch.zeros(4, 8)}, batch)


def test_several_processes_are_refused(made, monkeypatch):
    monkeypatch.setattr("tasks.graph.data.share", lambda: (0, 2))
    with pytest.raises(KDBenchError, match="trainer.devices=2: citations is one graph, which processes cannot share"):
        made.data(0).train_dataloader()


def test_the_twin_has_a_weight_decay_of_its_own(tmp_path):
    given = ["task=graph", "method=glnn", "preset=smoke", f"cache={tmp_path}", "data.citations.papers=300"]
    trainings = Trainings(resolve(config.load(given)))
    assert trainings.scratch_recipe.trainer["optimizer"]["weight_decay"] == 5e-4
    student = trainings.student_recipe().trainer
    assert student["optimizer"]["weight_decay"] == 0
    assert student["epochs"] == trainings.scratch_recipe.trainer["epochs"]
    assert trainings.twin_flags == ["twin:optimizer.weight_decay=0.0005"]
    plain = Trainings(resolve(config.load([*given, "pair.twin=null"])))
    assert plain.scratch_recipe.trainer == plain.student_recipe().trainer
    assert plain.twin_flags == []
    with pytest.raises(KDBenchError, match="pair.twin.trainer.epoch"):
        config.load([*given, "+pair.twin.trainer.epoch=3"])


def test_a_picture_and_comparisons(made):
    batch = next(iter(made.data(0).test_dataloader()))
    models = {"teacher": made.build(tiny.GCN), "scratch": made.build(tiny.MLP), "student": made.build(tiny.MLP)}
    image = made.picture(batch, models)
    assert image.size[0] > 1200
    assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 20
    found = made.compare(models, [batch])
    assert {*found["student"]} == {"structure_map", "agreement"}
    assert {*found["teacher"]} == {"structure_map"}


def test_a_restored_task_needs_no_data(made, tmp_path):
    told = made.dataset()
    info = json.loads(json.dumps({"inputs": dict(told.inputs), "classes": [*told.classes]}))
    other = tiny.task(tmp_path / "none", {"source": "cora", "root": "/nonexistent"})
    other.restore(replace(told, inputs=info["inputs"], classes=info["classes"]))
    layout.write(tmp_path / "mine.npz", make(Citations(papers=60, seed=3)))
    for architecture in (tiny.MLP, tiny.GCN, tiny.SAGE, tiny.GAT, tiny.POSITIONS):
        model, again = made.build(architecture), other.build(architecture)
        again.load_state_dict(model.state_dict())
        said = other.predictions(again, other.read(tmp_path / "mine.npz"))
        assert said == made.predictions(model, made.read(tmp_path / "mine.npz"))
        assert len(said) == 60
        assert len(other.predictions(again, other.example())) == 1
    assert other.show(other.read(tmp_path / "mine.npz"), again, "mine").size[0] > 500
    assert json.loads(json.dumps(said)) == said


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [tiny.MLP, tiny.GCN, tiny.SAGE, tiny.GAT, tiny.POSITIONS])
def test_what_is_exported_answers_as_the_model(made, tmp_path, architecture):
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    plan = made.export(made.build(architecture))
    assert export._onnx(plan, tmp_path / "student.onnx", "{}") < export.TOLERANCE
