"""The task: loss, features, the label channel, scores, and what a person gets to see."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.errors import KDBenchError
from kdbench.features import Activated, Grid, Logits
from kdbench.roles.sources import Network
from kdbench.task import Batch, scalars
from tasks.segmentation.sources.base import IGNORED
from tasks.segmentation.task import Outputs, Segmentation, dense_label, described, enlarged, stretched
from tests.tasks.segmentation import tiny

NOTHING = nn.Identity()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Segmentation:
    return tiny.task(tmp_path_factory.mktemp("cache"))


def test_kinds_are_read_from_the_configuration_alone():
    taps = {"a": "x", "a.pre": "x:input", "b": "y"}
    assert [*Segmentation.kinds({"taps": taps}).items()] == [("a", Activated), ("b", Grid), ("logits", Logits)]
    assert Segmentation.kinds({}) == {"logits": Logits}
    with pytest.raises(KDBenchError, match="pair: there is no tap 'c' beside 'c.pre': did you mean 'a'|available"):
        Segmentation.kinds({"taps": {"a": "x", "c.pre": "x"}})


# ---- the loss ------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_pixels_of_a_class():
    task, batch = tiny.shaped(), tiny.batch()
    logits = torch.randn(2, 3, 8, 12, dtype=torch.float64, requires_grad=True)
    (loss,) = task.loss(NOTHING, Outputs(logits), batch).values()
    # By hand: enlarge by the weights of bilinear interpolation, then log-softmax.
    rows, columns = (_weights(small, 4 * small) for small in (8, 12))
    large = torch.einsum("yh,bchw,xw->bcyx", rows, logits, columns)
    logs = large.log_softmax(1)
    kept = batch.targets != IGNORED
    expected = -logs.movedim(1, -1)[kept].gather(1, batch.targets[kept][:, None]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)


def _weights(small: int, large: int) -> torch.Tensor:
    at = ((torch.arange(large, dtype=torch.float64) + 0.5) * small / large - 0.5).clamp(0, small - 1)
    low = at.floor().long().clamp(max=small - 1)
    high = (low + 1).clamp(max=small - 1)
    weights = torch.zeros(large, small, dtype=torch.float64)
    share = at - low
    weights[torch.arange(large), low] += 1 - share
    weights[torch.arange(large), high] += share
    return weights


def test_a_batch_without_any_class_gives_a_zero_on_the_graph():
    task, batch = tiny.shaped(), tiny.batch(ignored=1.1)
    logits = torch.randn(2, 3, 8, 12, requires_grad=True)
    losses = task.loss(NOTHING, Outputs(logits, logits), batch)
    assert [value.item() for value in losses.values()] == [0.0, 0.0]
    (losses["ce"] + losses["aux"]).backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_unsupervised_samples_have_no_part_in_it():
    task, batch = tiny.shaped(), tiny.batch()
    logits = torch.randn(2, 3, 8, 12)
    alone = task.loss(NOTHING, Outputs(logits[:1]), Batch(batch.inputs[:1], batch.targets[:1], batch.ids[:1]))
    both = Batch(batch.inputs, batch.targets, batch.ids, supervised=torch.tensor([True, False]))
    assert task.loss(NOTHING, Outputs(logits), both)["ce"] == pytest.approx(alone["ce"].item())
    found: Any = task.describe(Outputs(logits), {}, both)["logits"]
    assert found.target is None


def test_an_auxiliary_head_has_a_term_of_its_own():
    task, batch = tiny.shaped(), tiny.batch()
    losses = task.loss(NOTHING, Outputs(torch.randn(2, 3, 8, 12), torch.randn(2, 3, 2, 3)), batch)
    assert set(losses) == {"ce", "aux"}
    assert task.loss_weights() == {"aux": 0.4}


# ---- features ------------------------------------------------------------------------------------------------------


def test_features_of_the_default_pair(made):
    taps = {"stage1": "stages[0]", "stage1.pre": "backbone.layer1[-1].act2:input", "neck": "decoder"}
    model = made.build(tiny.NET)
    batch = next(iter(made.data(0).test_dataloader()))
    features: dict[str, Any] = dict(Network(made, model, taps).answer(batch).features)
    assert [(name, type(f)) for name, f in features.items()] == [
        ("stage1", Activated),
        ("neck", Grid),
        ("logits", Logits),
    ]
    assert features["stage1"].stride == (4, 4)
    assert torch.equal(features["stage1"].pre.relu(), features["stage1"].values)
    logits = features["logits"]
    assert logits.values.shape == (3, 12, 8, 16)
    assert logits.mask.shape == logits.target.shape == (3, 8, 16)
    assert torch.equal(logits.mask, logits.target != IGNORED)
    assert len(logits.rows()) == len(logits.labels()) == int(logits.mask.sum())


def test_a_cell_has_the_class_at_its_middle():
    task, batch = tiny.shaped(), tiny.batch()
    assert torch.equal(task.labels(batch, (8, 12)), batch.targets[:, 2::4, 2::4])
    assert task.labels(batch, (32, 48)) is batch.targets
    assert task.labels(batch, (8, 12)) is task.labels(batch, (8, 12))
    assert set(task.labels(batch, (5, 7)).unique().tolist()) <= {0, 1, 2, IGNORED}


def test_samples_that_are_not_distilled_are_masked():
    task, batch = tiny.shaped(), tiny.batch(ignored=0)
    batch.distilled = torch.tensor([False, True])
    logits: Any = task.describe(torch.randn(2, 3, 8, 12), {}, batch)["logits"]
    assert not logits.mask[0].any()
    assert logits.mask[1].all()


def test_a_tap_of_another_shape_is_one_line():
    with pytest.raises(KDBenchError, match=r"tap 'pooled' has shape \(2, 8\), expected a grid \(B, C, h, w\)"):
        tiny.shaped().describe(torch.randn(2, 3, 8, 12), {"pooled": torch.zeros(2, 8)}, tiny.batch())


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (
            torch.zeros(2, 5, 8, 8),
            r"Fixed gives \(2, 5, 8, 8\), expected logits \(batch, 3, h, w\) for the 3 cl",
        ),
        (torch.zeros(2, 3), r"Fixed gives \(2, 3\), expected logits"),
        ({"out": 1}, "Fixed gives dict, expected logits"),
    ],
)
def test_a_network_that_answers_otherwise_is_one_line(answer, line):
    class Fixed(nn.Module):
        def forward(self, images: torch.Tensor) -> object:
            return answer

    with pytest.raises(KDBenchError, match=line):
        tiny.shaped().forward(Fixed(), torch.zeros(2, 3, 32, 32))


def test_networks_are_built_for_the_classes_and_channels_of_the_data(made):
    assert made.build(tiny.NET).classifier.out_channels == 12
    assert made.build({**tiny.NET, "in_chans": 4}).channels == 4
    with pytest.raises(KDBenchError, match="architecture.in_chans=5, but the data streets needs 3 or 4"):
        made.build({**tiny.NET, "in_chans": 5})
    with pytest.raises(KDBenchError, match="architecture.num_classes=3, but the data streets needs 12"):
        made.build({**tiny.NET, "num_classes": 3})
    assert not any(getattr(m, "inplace", False) for m in made.build(tiny.NET).modules())


@pytest.mark.parametrize("size", [(32, 48), (33, 50), (8, 12), (4, 5)])
def test_logits_are_stretched_as_pixels_are_interpolated(size):
    logits, like = torch.randn(2, 3, 8, 12, requires_grad=True), torch.randn(2, *size)
    found, expected = stretched(logits, like), enlarged(logits, like)
    assert torch.allclose(found, expected, atol=1e-5)
    upstream = torch.randn(2, 3, *size)
    (gradient,), (wanted,) = (torch.autograd.grad(values, logits, upstream) for values in (found, expected))
    assert torch.allclose(gradient, wanted, atol=1e-4)


# ---- the label as an input -----------------------------------------------------------------------------------------


def test_the_class_of_each_pixel_is_known_or_not():
    batch = tiny.batch()
    found = dense_label(batch)
    assert torch.equal(found, torch.where(batch.targets == IGNORED, -1, batch.targets))
    batch.supervised = torch.tensor([False, True])
    assert (dense_label(batch)[0] == -1).all()
    assert torch.equal(dense_label(batch)[1], found[1])


def test_a_network_of_one_more_channel(made):
    extended = made.ops()["label_as_input"](tiny.NET)
    assert extended == {**tiny.NET, "in_chans": 4} == made.ops()["label_as_input"](extended)
    batch, model = tiny.batch(12, (32, 64)), made.build(extended).eval()
    channel = dense_label(batch)[:, None].float()
    seen = Network(made, model, {}).answer(batch.with_inputs(torch.cat([batch.inputs, channel], 1)))
    bare = Network(made, model, {}).answer(batch)
    assert not torch.equal(seen.outputs.logits, bare.outputs.logits)
    assert torch.equal(seen.features["logits"].mask, bare.features["logits"].mask)  # type: ignore[attr-defined]
    with pytest.raises(KDBenchError, match="flatnet.FlatNet: a label channel needs a network of tasks.segm"):
        made.ops()["label_as_input"]({"_target_": "flatnet.FlatNet"})


# ---- scores, pictures, files ---------------------------------------------------------------------------------------


class Perfect(nn.Module):
    """Says the truth of the batch it is shown next."""

    def __init__(self, truth: torch.Tensor, classes: int) -> None:
        super().__init__()
        self.truth, self.classes = truth, classes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        known = torch.where(self.truth == IGNORED, 0, self.truth)
        return nn.functional.one_hot(known, self.classes).movedim(-1, 1).float()


def test_scores_of_the_truth_are_perfect(made):
    batch = next(iter(made.data(0).test_dataloader()))
    model = Perfect(batch.targets, 12)
    found = made.evaluate(model, [batch], "test", torch.device("cpu"))
    assert found["miou"] == found["pixel_acc"] == found["class_acc"] == pytest.approx(100)
    assert found["boundary_f"] == pytest.approx(100)
    names = {name.removeprefix("iou.") for name in found if name.startswith("iou.")}
    assert names == {made.preprocess.classes[i] for i in batch.targets[batch.targets != IGNORED].unique()}
    metrics = made.metrics("test")
    made.score(metrics, NOTHING, torch.randn(3, 12, 8, 16), batch)
    assert scalars(metrics)["miou"] < 60


def test_agreement_is_of_pixels_of_a_class(made):
    batch = next(iter(made.data(0).test_dataloader()))
    models = {"teacher": Perfect(batch.targets, 12), "student": Perfect(batch.targets.roll(1, 0), 12)}
    found = made.compare(models, [batch])
    kept = batch.targets != IGNORED
    other = torch.where(batch.targets.roll(1, 0) == IGNORED, 0, batch.targets.roll(1, 0))
    share = 100 * (other == batch.targets)[kept].float().mean().item()
    assert found == {"student": {"agreement": pytest.approx(share)}}
    assert made.compare({"student": models["student"]}, [batch]) == {}


def test_counts_are_the_pixels_of_the_masks(made):
    counts = made.counts()
    assert {name: c.samples for name, c in counts.items()} == {"train": 9, "val": 1, "test": 3}
    targets = torch.cat([b.targets for b in made.data(0).test_dataloader()])
    found = targets[targets != IGNORED].bincount(minlength=12).tolist()
    assert list(counts["test"].labels.values()) == found
    assert list(counts["test"].labels) == list(made.dataset().classes)
    assert counts["test"].unit == "pixels"


def test_a_picture_has_a_panel_for_each_and_where_they_differ(made):
    batch = next(iter(made.data(0).test_dataloader()))
    models = {name: Perfect(batch.targets.roll(i, 0), 12) for i, name in enumerate(("teacher", "scratch", "student"))}
    picture = made.picture(batch, models)
    assert picture.width == 1500
    colours = {tuple(c) for c in np.asarray(picture).reshape(-1, 3).tolist()}
    assert {(128, 64, 128), (213, 94, 0)} <= colours
    alone = Batch(batch.inputs[:1], batch.targets[:1], batch.ids[:1])
    assert made.show(alone, Perfect(alone.targets, 12), "x").width == 1500


def test_predictions_are_shares_and_runs():
    found = described(np.array([[0, 0, 1], [1, 1, 2]]), ("a", "b", "c", "d"))
    assert found["size"] == [2, 3]
    assert found["runs"] == [[0, 2], [1, 3], [2, 1]]
    assert found["classes"] == [
        {"class": "b", "share": 0.5},
        {"class": "a", "share": 0.3333},
        {"class": "c", "share": 0.1667},
    ]


def test_a_file_is_read_as_the_record_says(made, tmp_path):
    tiny.image(size=(40, 80)).save(tmp_path / "x.png")
    model = made.build(tiny.NET).eval()
    before = made.predictions(model, made.read(tmp_path / "x.png"))
    json.dumps(before)
    assert before[0]["size"] == [40, 80]
    restored = tiny.shaped()
    restored.restore(made.dataset())
    assert restored.predictions(model, restored.read(tmp_path / "x.png")) == before
    assert restored.example().inputs.shape == (1, 3, 32, 64)
