"""The task: loss, features, scores, and what a person gets to see."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdbench import export
from kdbench.errors import KDBenchError
from kdbench.features import Logits, Nodes, Vector
from kdbench.roles.sources import Network
from kdbench.task import Batch
from tasks.hoi.batches import Inputs
from tasks.hoi.layout import CLIP, HUMAN, OBJECT, UNKNOWN
from tasks.hoi.task import HOI
from tests.tasks.hoi import tiny

NOTHING = nn.Identity()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> HOI:
    return tiny.task(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def batch(made) -> Batch:
    return next(iter(made.data(0).train_dataloader()))


def test_kinds_are_read_from_the_configuration_alone():
    assert [*HOI.kinds({"taps": tiny.TAPS}).items()] == [
        ("local", Nodes),
        ("context", Nodes),
        ("pooled", Vector),
        (OBJECT, Logits),
        (HUMAN, Logits),
    ]
    assert [*HOI.kinds({"architecture": {"targets": [CLIP]}})] == [CLIP]
    with pytest.raises(
        KDBenchError, match="pair: there is no tap 'locl' beside 'locl.attention': did you mean 'local'"
    ):
        HOI.kinds({"taps": {"local": "local", "locl.attention": "x"}})


def test_the_loss_is_the_mean_over_labelled_nodes(made, batch):
    logits = {
        k: torch.randn(*v.shape, len(made.meta.classes[k]), dtype=torch.float64)
        for k, v in batch.targets.items()
        if k != CLIP
    }
    found = made.loss(NOTHING, logits, batch)
    assert found.keys() == {HUMAN, OBJECT}
    for kind, value in found.items():
        truth = batch.targets[kind]
        rows = [-logits[kind][at].log_softmax(0)[truth[at]] for at in map(tuple, (truth != UNKNOWN).nonzero().tolist())]
        assert value.item() == pytest.approx(torch.stack(rows).mean().item(), rel=1e-9)


def test_unsupervised_samples_have_no_part_in_it(made, batch):
    logits = {HUMAN: torch.randn(*batch.targets[HUMAN].shape, 10), CLIP: torch.randn(4, 10)}
    first = Batch(Inputs(*(x[:1] for x in batch.inputs)), {k: v[:1] for k, v in batch.targets.items()}, batch.ids[:1])
    alone = made.loss(NOTHING, {k: v[:1] for k, v in logits.items()}, first)
    part = replace(batch, supervised=torch.arange(4) < 1, memo={})
    both = made.loss(NOTHING, logits, part)
    assert {k: v.item() for k, v in both.items()} == pytest.approx({k: v.item() for k, v in alone.items()}, rel=1e-5)
    features = made.describe(logits, {}, part)
    assert features[HUMAN].target is None


def test_a_batch_without_labels_gives_a_zero_on_the_graph(made):
    example = replace(made.example(), supervised=torch.tensor([False]))
    leaves = {
        k: torch.randn(*v.shape, len(made.meta.classes[k]), requires_grad=True)
        for k, v in example.targets.items()
        if k != CLIP
    }
    leaves[CLIP] = torch.randn(1, 10, requires_grad=True)
    losses = made.loss(NOTHING, leaves, example)
    assert all(value.item() == 0 for value in losses.values())
    sum(losses.values()).backward()
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves.values())


def test_the_loss_of_a_clip_is_binary(made, batch):
    logits = torch.randn(4, 10, dtype=torch.float64)
    truth, p = batch.targets[CLIP].double(), logits.sigmoid()
    expected = -(truth * p.log() + (1 - truth) * (1 - p).log()).mean()
    assert made.loss(NOTHING, {CLIP: logits}, batch)[CLIP].item() == pytest.approx(expected.item(), rel=1e-6)


def test_features_are_nodes_joined_within_their_step(made, batch):
    model = made.build(tiny.NET)
    found: dict[str, Any] = dict(Network(made, model, tiny.TAPS).answer(batch).features)
    assert [*found] == ["local", "context", "pooled", OBJECT, HUMAN]
    mask = batch.inputs.mask
    nodes, attention = found["local"], found["local"].edge_values
    assert nodes.values.shape == (int(mask.sum()), 8)
    assert torch.equal(nodes.sample(), mask.nonzero()[:, 0])
    place = mask.nonzero()  # video, step and node of each row
    source, target = nodes.edges
    assert torch.equal(place[source][:, :2], place[target][:, :2])
    assert len(source) == int(mask.sum(2).square().sum())
    total = torch.zeros(len(nodes.values)).index_add(0, target, attention)
    torch.testing.assert_close(total, torch.ones_like(total))
    assert found["context"].edge_values is None
    assert found["pooled"].values.shape == (4, 8)
    for kind, part in ((HUMAN, mask[..., :1]), (OBJECT, mask[..., 1:])):
        assert torch.equal(found[kind].mask, part)
        assert torch.equal(found[kind].row_target(), batch.targets[kind][part])


def test_samples_that_are_not_distilled_are_masked(made, batch):
    part = replace(batch, distilled=torch.arange(4) == 2, memo={})
    found: Any = made.describe(made.forward(made.build(tiny.NET), batch.inputs), {}, part)
    for kind in (HUMAN, OBJECT):
        assert {*found[kind].sample().tolist()} == {2}
    clip: Any = made.describe({CLIP: torch.randn(4, 10)}, {}, part)[CLIP]
    assert clip.law == "bernoulli"
    assert clip.rows().shape == (1, 10)


def test_a_tap_that_is_no_graph_is_one_line(made, batch):
    with pytest.raises(KDBenchError, match=r"tap 'local' has shape \(4, 8\), expected nodes \(4, \d+, \d, D\)"):
        made.describe({}, {"local": torch.zeros(4, 8)}, batch)


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (torch.zeros(2, 3), "Fixed gives Tensor, expected logits by target: human, object, clip"),
        ({"verb": torch.zeros(2)}, "Fixed gives dict, expected logits by target"),
        (
            {HUMAN: torch.zeros(2, 3)},
            r"Fixed gives \(2, 3\) for 'human', expected \(..., 10\) for the classes of kitchen",
        ),
    ],
)
def test_a_network_that_answers_otherwise_is_one_line(made, answer, line):
    class Fixed(nn.Module):
        def forward(self, *inputs: torch.Tensor) -> object:
            return answer

    with pytest.raises(KDBenchError, match=line):
        made.forward(Fixed(), made.example().inputs)


def test_a_head_without_labels_is_one_line(tmp_path):
    root = tiny.folder(tmp_path / "data")
    task = tiny.task(tmp_path / "cache", {"source": "graphs", "root": str(root), "kitchen": {}})
    assert task.build({**tiny.NET, "targets": ["clip"]}).targets == ("clip",)
    with pytest.raises(KDBenchError, match="architecture.targets: numbers has no labels for 'verb': available: clip"):
        task.build({**tiny.NET, "targets": ["verb"]})


class Perfect(nn.Module):
    """Says the truth of a batch."""

    def __init__(self, batch: Batch, classes: dict[str, int]) -> None:
        super().__init__()
        self.truth = {k: nn.functional.one_hot(batch.targets[k].clamp(min=0), n).float() for k, n in classes.items()}

    def forward(self, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.truth


def test_scores_of_the_truth_are_perfect(made):
    batch = next(iter(made.data(0).test_dataloader()))
    model = Perfect(batch, {HUMAN: 10, OBJECT: 12})
    found = made.evaluate(model, [batch], "test", torch.device("cpu"))
    for name in ("macro_f1", "accuracy", "f1_10", "f1_50", "object.macro_f1", "object.f1_50"):
        assert found[name] == pytest.approx(100)
    other = made.build(tiny.NET)
    agreed = made.compare({"teacher": model, "student": other}, [batch])
    rows, same = 0, 0
    for kind, logits in other(*batch.inputs).items():
        known = batch.targets[kind] != UNKNOWN
        rows += int(known.sum())
        same += int((logits.argmax(-1) == batch.targets[kind])[known].sum())
    assert agreed == {"student": {"agreement": pytest.approx(100 * same / rows)}}
    assert made.compare({"student": other}, [batch]) == {}


def test_clips_are_scored_by_their_ranking(made):
    batch = next(iter(made.data(0).test_dataloader()))
    model = made.build({**tiny.NET, "targets": [CLIP]})
    found = made.evaluate(model, [batch], "test", torch.device("cpu"))
    assert {*found} == {"macro_f1", "map"}


def test_counts_are_labelled_steps(made):
    counts = made.counts()
    assert {name: c.samples for name, c in counts.items()} == made.dataset().sizes
    labels = torch.cat([b.targets[HUMAN].flatten() for b in made.data(0).test_dataloader()])
    assert [*counts["test"].labels.values()] == labels[labels != UNKNOWN].bincount(minlength=10).tolist()


def test_a_picture_has_a_line_for_each_model(made):
    batch = next(iter(made.data(0).test_dataloader()))
    models = {name: made.build(tiny.NET) for name in ("teacher", "scratch", "student")}
    image = made.picture(batch, models)
    assert image.size[0] == 1500
    assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 20


def test_a_restored_task_needs_no_data(made, tmp_path):
    info = json.loads(json.dumps({"inputs": dict(made.dataset().inputs), "classes": [*made.dataset().classes]}))
    other = tiny.task(tmp_path / "none", {"source": "graphs", "root": "/nonexistent", "kitchen": {}})
    other.restore(replace(made.dataset(), inputs=info["inputs"], classes=info["classes"]))
    model = made.build(tiny.NET)
    again = other.build(tiny.NET)
    again.load_state_dict(model.state_dict())
    name = made.clips.test[0].name
    path = tmp_path / f"{name}.npz"
    video = made.clips.layout.videos[name]
    np.savez(path, **vars(video))
    read, whole = other.read(path), made.read(path)
    assert all(torch.equal(a, b) for a, b in zip(read.inputs, whole.inputs, strict=True))
    assert other.predictions(again, read) == made.predictions(model, whole)
    assert other.show(read, again, "mine").size[0] == 1500
    assert other.example().inputs.edge.shape == made.example().inputs.edge.shape


def test_predictions_are_runs_of_what_is_there(made):
    batch = next(iter(made.data(0).test_dataloader()))
    (first, *_) = made.predictions(Perfect(batch, {HUMAN: 10, OBJECT: 12}), batch)
    assert json.loads(json.dumps(first)) == first
    (runs,) = first[HUMAN]
    truth = batch.targets[HUMAN][0, :, 0]
    for run in runs:
        span = truth[run["from"] : run["to"] + 1]
        assert {made.meta.classes[HUMAN][c] for c in span.tolist()} == {run["class"]}
    assert sum(run["to"] - run["from"] + 1 for run in runs) == int((truth != UNKNOWN).sum())
    there = [bool(batch.inputs.mask[0, :, 1 + n].any()) for n in range(len(first[OBJECT]))]
    assert [bool(track) for track in first[OBJECT]] == there
    clip = made.build({**tiny.NET, "targets": [CLIP]})
    assert {*made.predictions(clip, batch)[0][CLIP]} == {*made.meta.classes[CLIP]}


@pytest.mark.slow
@pytest.mark.parametrize(("options", "any_length"), [({"time": "gru"}, False), ({}, True)])
def test_what_is_exported_answers_as_the_model(made, tmp_path, options, any_length):
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    plan = made.export(made.build({**tiny.NET, **options}))
    assert plan.outputs == ("human_logits", "object_logits")
    assert plan.facts == {"objects": made.objects, "steps": None if any_length else made.steps}
    assert ("steps" in plan.dynamic["human"].values()) is any_length
    assert export._onnx(plan, tmp_path / "student.onnx", "{}") < export.TOLERANCE
