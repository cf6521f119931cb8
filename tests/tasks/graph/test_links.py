"""Edges that are to be forgotten: what each training sees, how it is scored, and how far it is from the aim."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from kdbench.base.store import Store
from kdbench.errors import KDBenchError
from kdbench.features import Logits, Vector
from kdbench.records.record import find_records, read_record
from kdbench.roles.sources import Network
from kdbench.training.promises import CHECKS
from tasks.graph import layout
from tasks.graph.citations import Citations, make
from tasks.graph.links import LinkScores, LinkTask
from tasks.graph.models import GCN, LinkGCN
from tests.cli import CommandLine

OPTIONS: dict[str, Any] = {"source": "citations", "citations": {"papers": 200}, "steps": 2}
NET = {"_target_": "tasks.graph.models.LinkGCN", "width": 8, "out": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> LinkTask:
    return LinkTask(OPTIONS, Store(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def batch(made) -> Any:
    return next(iter(made.data(0).train_dataloader()))


def pairs(batch: Any, name: str) -> set[tuple[int, int]]:
    return {(a, b) for a, b in batch.inputs.pairs[:, batch.targets.sets[name]].T.tolist()}


def entries(batch: Any) -> set[tuple[int, int]]:
    edges = batch.inputs.views["neighbours"].edges()
    return {(a, b) for a, b in zip(edges.source.tolist(), edges.target.tolist(), strict=True) if a < b}


def test_the_student_reads_and_learns_what_is_kept_alone(made, batch):
    opened = made.opened
    everything = {(a, b) for a, b in opened.edges.tolist()}
    learned, forgotten, others = (pairs(batch, name) for name in ("edges", "forgotten", "others"))
    (test,) = made.data(0).test_dataloader()
    (val,) = made.data(0).val_dataloader()
    cuts = [learned, forgotten, pairs(test, "edges"), pairs(val, "edges")]
    assert set().union(*cuts) == everything
    assert sum(map(len, cuts)) == len(everything)
    assert entries(batch) == entries(test) == learned
    assert pairs(test, "forgotten") == forgotten
    assert not others & learned
    assert len(batch.targets.sets["others"].nonzero()) == len(learned)
    assert torch.equal(batch.supervised, ~batch.targets.sets["forgotten"])
    assert torch.equal(batch.distilled, batch.supervised)
    first, again = (next(iter(made.data(0).train_dataloader())).inputs.pairs for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, [*made.data(0).train_dataloader()][1].inputs.pairs)


def test_the_teacher_learns_them_as_all_others(made, batch):
    teacher = LinkTask({**OPTIONS, "unlearn": False}, made.store)
    (seen, _) = teacher.data(0).train_dataloader()
    assert pairs(seen, "edges") == entries(seen) == pairs(batch, "edges") | pairs(batch, "forgotten")
    assert not seen.targets.sets["forgotten"].any()
    (test,), (own,) = teacher.data(0).test_dataloader(), made.data(0).test_dataloader()
    assert torch.equal(test.inputs.pairs[:, : len(made.opened.test)], own.inputs.pairs[:, : len(made.opened.test)])
    assert pairs(test, "forgotten") == pairs(own, "forgotten")
    assert teacher.dataset().learned != made.dataset().learned


def test_scores_are_areas_under_curves(made):
    draw = np.random.default_rng(0)
    scores, names = draw.normal(size=90).astype(np.float32), np.repeat(["edges", "forgotten", "others"], 30)
    metric = LinkScores()
    metric.update(torch.from_numpy(scores), {n: torch.from_numpy(names == n) for n in np.unique(names)})
    found = metric.compute()
    for key, high, low in (
        ("auc", "edges", "others"),
        ("forget_auc", "forgotten", "others"),
        ("member_auc", "forgotten", "edges"),
    ):
        kept = np.isin(names, [high, low])
        expected = 100 * roc_auc_score(names[kept] == high, scores[kept])
        assert found[key].item() == pytest.approx(expected, abs=1e-4), key
    (val,) = made.data(0).val_dataloader()
    assert {*made.evaluate(made.build(NET), [val], "val", torch.device("cpu"))} == {"auc", "nll"}


def test_scores_are_products_of_what_a_graph_network_holds(made, batch):
    torch.manual_seed(0)
    model = LinkGCN(made.features, width=8, out=4).eval()
    nodes = GCN.forward(model, batch.inputs.words, batch.inputs.views)
    first, second = (nodes[row] for row in batch.inputs.pairs)
    torch.testing.assert_close(made.forward(model, batch.inputs), (first * second).sum(1))
    found: Any = Network(made, model, {"ends": "ends"}).answer(batch).features
    assert {n: type(f) for n, f in found.items()} == LinkTask.kinds({"taps": {"ends": "ends"}})
    assert isinstance(found["logits"], Logits)
    assert isinstance(found["ends"], Vector)
    assert len(found["logits"].rows()) == int(batch.supervised.sum())
    with pytest.raises(KDBenchError, match=r"Linear gives|tap 'words' has shape"):
        Network(made, model, {"words": "words"}).answer(batch)


def test_the_loss_is_of_what_is_kept(made, batch):
    scores = torch.randn(len(batch), dtype=torch.float64)
    kept, truth = batch.supervised, batch.targets.labels.double()
    expected = nn.functional.binary_cross_entropy_with_logits(scores[kept], truth[kept])
    assert made.loss(nn.Identity(), scores, batch)["pairs"].item() == pytest.approx(expected.item(), rel=1e-6)
    none = replace(batch, supervised=torch.zeros_like(kept))
    assert made.loss(nn.Identity(), scores.requires_grad_(), none)["pairs"].item() == 0


def test_what_it_promises(made, batch):
    seen: Any = SimpleNamespace(task=made, batch=batch)
    assert CHECKS["forgets"](seen) is None
    assert "is supervised" not in str(CHECKS["forgets"](seen))
    all_known: Any = SimpleNamespace(task=made, batch=replace(batch, supervised=None))
    assert CHECKS["forgets"](all_known) == "ops()['forgotten'] names samples that are supervised"
    ops: Any = SimpleNamespace(task=SimpleNamespace(ops=dict), batch=batch)
    assert CHECKS["forgets"](ops) == "ops() has no 'forgotten'"
    wrong: Any = SimpleNamespace(task=SimpleNamespace(ops=lambda: {"forgotten": lambda b: b.ids}), batch=batch)
    assert "expected bool" in str(CHECKS["forgets"](wrong))


def test_what_a_person_asks_for(made, tmp_path):
    told = made.dataset()
    other = LinkTask({"source": "cora", "root": "/nonexistent"}, Store(tmp_path / "none"))
    other.restore(told)
    layout.write(tmp_path / "mine.npz", make(Citations(papers=60, seed=3)))
    model = made.build(NET)
    said = other.predictions(model, other.read(tmp_path / "mine.npz"))
    assert said == made.predictions(model, made.read(tmp_path / "mine.npz"))
    assert 0 <= said[0]["probability"] <= 1
    assert len(other.predictions(model, other.example())) == 1
    (test,) = made.data(0).test_dataloader()
    assert made.picture(test, {"teacher": model, "student": model}).size[0] > 500
    plan = made.export(model)
    assert plan.module(*plan.example).shape == (1,)


def test_bad_input_is_one_line(tmp_path):
    few = make(Citations(papers=50))
    layout.write(tmp_path / "graph.npz", replace(few, edges=few.edges[:30]))
    with pytest.raises(KDBenchError, match="found .* edges, expected 40 at least"):
        _ = LinkTask({**OPTIONS, "source": "owngraph", "root": str(tmp_path), "citations": {}}, Store(tmp_path)).opened
    with pytest.raises(KDBenchError, match="data.forget"):
        _ = LinkTask({**OPTIONS, "forget": 0.7}, Store(tmp_path)).opened


def test_a_run_is_held_against_the_network_that_never_saw_them(tmp_path, monkeypatch, capsys):
    kdbench = CommandLine(tmp_path, monkeypatch, capsys, task="graph")
    small = ["data.citations.papers=200", "data.steps=2", "pair.teacher.architecture.width=8"]
    own = ["pair.student.architecture.width=8", "trainer.accelerator=cpu", "trainer.val_every=10"]
    done = kdbench("data=unlearning", "method=d2dgn", *small, *own)
    assert done.code == 0, done.err
    (run,) = find_records(kdbench.results)
    record = read_record(run)
    scores = {role: found.test for role, found in record.scores.items()}
    assert record.primary is not None
    assert (record.primary.name, record.primary.higher_is_better) == ("forget_distance", False)
    assert scores["scratch"]["forget_distance"] == 0
    for role in ("teacher", "student"):
        reached, aim = (float(scores[r]["forget_auc"] or 0) for r in (role, "scratch"))
        assert scores[role]["forget_distance"] == pytest.approx(abs(reached - aim))
    assert record.gap_closed is None
    assert record.gap_reason == "the aim is the student trained alone, not the teacher"
    assert "forget_auc_cut" in scores["teacher"]
    assert (record.cost.epochs if record.cost else 0) == 1
