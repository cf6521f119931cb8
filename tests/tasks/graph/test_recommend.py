"""Users and items: what is made and cut, what networks and scores are, and one run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.base.store import Store
from kdbench.errors import KDBenchError
from kdbench.records.record import find_records, read_record
from tasks.graph.interactions import Made, Wanted, make
from tasks.graph.recommend import LightGCN, Ranked, Recommendation
from tests.cli import CommandLine
from tests.tasks.graph.tiny import write_ratings

OPTIONS: dict[str, Any] = {"source": "interactions", "made": {"users": 30, "items": 50}, "steps": 2}
NET = {"_target_": "tasks.graph.recommend.LightGCN", "width": 4, "layers": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Recommendation:
    return Recommendation(OPTIONS, Store(tmp_path_factory.mktemp("cache")))


def test_fewer_users_are_the_first_of_more():
    few, many = make(Made(users=20, items=50)), make(Made(users=30, items=50))
    assert np.array_equal(few, many[many[:, 0] < 20])
    assert len(np.unique(few[:, :2], axis=0)) == len(few)
    assert np.bincount(few[:, 0]).min() >= 10


def test_cuts_are_by_time(made):
    opened, table = made.opened, make(Made(users=30, items=50))
    assert len(opened.train) + len(opened.val) + len(opened.test) == len(table)
    for user in range(30):
        parts = [part[part[:, 0] == user, 1].tolist() for part in (opened.train, opened.val, opened.test)]
        own = table[table[:, 0] == user]
        assert sum(parts, []) == own[own[:, 2].argsort(), 1].tolist()
        assert len(parts[2]) == round(0.2 * len(own))


def test_who_took_the_same_tells_more_than_what_is_popular(tmp_path):
    made = Recommendation({"source": "interactions", "made": {"users": 400}}, Store(tmp_path))
    had = np.zeros((400, made.opened.items), np.float32)
    had[tuple(made.opened.train.T)] = 1
    alike = had / np.maximum(np.linalg.norm(had, axis=0), 1)
    metric = Ranked()
    metric.update(torch.from_numpy(had @ (alike.T @ alike)), made.opened.asked("test").targets)
    popularity = made.dataset().inputs["popularity"]
    assert metric.compute()["recall_20"].item() > 1.4 * popularity > 5


def test_triples_hold_what_a_user_has_not_had(made):
    first, second = made.data(0).train_dataloader()
    had = {(a, b) for a, b in made.opened.train.tolist()}
    count = len(made.opened.train)
    assert torch.equal(first.supervised.nonzero()[:, 0], torch.arange(count))
    assert torch.equal(first.distilled, ~first.supervised)
    assert torch.equal(first.inputs.user[count:], first.inputs.user[:count])
    user, liked, other = (part[:count] for part in first.inputs)
    assert {(a, b) for a, b in zip(user.tolist(), liked.tolist(), strict=True)} == had
    assert not had & {(a, b) for a, b in zip(user.tolist(), other.tolist(), strict=True)}
    assert not torch.equal(other, second.inputs.other[:count])
    assert torch.equal(other, next(iter(made.data(0).train_dataloader())).inputs.other[:count])


def test_the_network_is_that_of_the_paper(made):
    torch.manual_seed(0)
    model, opened = made.build(NET), made.opened
    adjacency = np.zeros((80, 80))
    for user, item in opened.train:
        adjacency[user, 30 + item] = adjacency[30 + item, user] = 1
    degree = np.maximum(adjacency.sum(1), 1)
    spread = adjacency / np.sqrt(degree[:, None] * degree)
    start = model.embedding.weight.detach().double().numpy()
    expected = (start + spread @ start + spread @ spread @ start) / 3
    np.testing.assert_allclose(model().detach().numpy(), expected, atol=1e-6)
    other = LightGCN(30, 50, len(opened.train), width=4, layers=2)
    other()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(), model())
    bare = made.build({**NET, "layers": 0})
    assert torch.equal(bare(), bare.embedding.weight)
    assert bare.pairs.numel() == 0


def test_scores_match_a_second_implementation():
    scores = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    seen = torch.tensor([[0, 0, 1, 4], [3, 4, 9, 0]])
    asked = torch.tensor([[0, 0, 1, 2, 2, 2, 4], [1, 7, 2, 0, 5, 30, 11]])
    metric = Ranked()
    metric.update(scores, Wanted(seen, asked))
    recalls, gains = [], []
    for user in (0, 1, 2, 4):
        known = {i for u, i in seen.T.tolist() if u == user}
        true = {i for u, i in asked.T.tolist() if u == user}
        ranked = sorted((i for i in range(40) if i not in known), key=lambda i: -scores[user, i].item())[:20]
        recalls.append(len(true & {*ranked}) / len(true))
        own = sum(1 / np.log2(place + 2) for place, i in enumerate(ranked) if i in true)
        gains.append(own / sum(1 / np.log2(place + 2) for place in range(len(true))))
    found = metric.compute()
    assert found["recall_20"].item() == pytest.approx(100 * np.mean(recalls))
    assert found["ndcg_20"].item() == pytest.approx(100 * np.mean(gains))


def test_loss_and_preferences(made):
    batch = next(iter(made.data(0).train_dataloader()))
    nodes = torch.randn(80, 4, dtype=torch.float64)
    user, liked, other = batch.inputs
    apart = (nodes[user] * nodes[30 + liked]).sum(1) - (nodes[user] * nodes[30 + other]).sum(1)
    found: Any = made.describe(nodes, {}, batch)["logits"]
    torch.testing.assert_close(found.rows()[:, 0], apart[batch.distilled])
    assert found.law == "bernoulli"
    loss = made.loss(nn.Identity(), nodes, batch)["bpr"]
    assert loss.item() == pytest.approx(-apart[batch.supervised].sigmoid().log().mean().item(), rel=1e-9)


def test_what_a_person_asks_for(made, tmp_path):
    told, model = made.dataset(), made.build(NET)
    other = Recommendation({"source": "movielens"}, Store(tmp_path))
    other.restore(replace(told))
    again = other.build(NET)
    again.load_state_dict(model.state_dict())
    (tmp_path / "who.txt").write_text("3\n7\n")
    said = other.predictions(again, other.read(tmp_path / "who.txt"))
    assert said == made.predictions(model, made.read(tmp_path / "who.txt"))
    assert [row["user"] for row in said] == [3, 7]
    assert len(other.predictions(again, other.example())) == 1
    (test,) = made.data(0).test_dataloader()
    assert made.picture(test, {"student": model}).size[0] > 400
    plan = made.export(model)
    assert plan.module(*plan.example).shape == (1, 50)
    (tmp_path / "who.txt").write_text("30\n")
    with pytest.raises(KDBenchError, match="expected numbers of users from 0 to 29"):
        made.read(tmp_path / "who.txt")


def test_files_of_movielens(tmp_path):
    write_ratings(tmp_path)
    made = Recommendation({"source": "movielens", "root": str(tmp_path)}, Store(tmp_path))
    table = np.loadtxt(tmp_path / "u.data", dtype=int)
    assert sum(made.dataset().sizes.values()) == int((table[:, 2] >= 4).sum())
    (tmp_path / "u.data").write_text("1,2,3,4\n")
    for options, line in (
        ({"root": str(tmp_path)}, "expected four integers a line"),
        ({}, "movielens is not embedded"),
        ({"source": "interactions", "root": "x"}, "is made up and reads no files"),
        ({"source": "lastfm"}, "there is no such source"),
    ):
        with pytest.raises(KDBenchError, match=line):
            _ = Recommendation({"source": "movielens", **options}, Store(tmp_path)).opened


def test_a_run_distils_a_graph_into_a_factorisation(tmp_path, monkeypatch, capsys):
    kdbench = CommandLine(tmp_path, monkeypatch, capsys, task="graph")
    small = ["data.made.users=30", "data.made.items=50", "data.steps=2", "trainer.accelerator=cpu"]
    done = kdbench("data=interactions", "method=kd", *small)
    assert done.code == 0, done.err
    (run,) = find_records(kdbench.results)
    record = read_record(run)
    assert record.primary is not None
    assert record.primary.name == "recall_20"
    assert {"recall_20", "ndcg_20"} <= record.scores["student"].test.keys()
