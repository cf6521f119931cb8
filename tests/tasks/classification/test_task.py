from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from kdbench.base import rng
from kdbench.base.instantiate import instantiate
from kdbench.base.store import Store
from kdbench.base.weights import load_weights, save_weights
from kdbench.configuration import config
from kdbench.errors import KDBenchError
from kdbench.features import Logits
from kdbench.runs.counts import check
from kdbench.task import Batch
from tasks.classification.task import Classification, rotate
from tests.tasks.classification import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Classification:
    return tiny.task(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def model(made) -> Any:
    with rng.scope(0, "model"):
        return made.build(tiny.NET).eval()


def net(task: Classification, architecture: dict[str, Any]) -> Any:
    """A model whose parts are read by name."""
    return task.build(architecture)


def first(task: Classification, split: str = "test") -> Batch:
    batch = next(iter(getattr(task.data(0), f"{split}_dataloader")()))
    assert isinstance(batch, Batch)
    return batch


# ---- configuration and data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"batchsize": 2}, r"data.batchsize: unknown key: did you mean 'batch_size'"),
        ({"root": "/nonexistent"}, r"data.root=/nonexistent: digits is embedded and reads no files"),
    ],
)
def test_bad_data_options_are_one_line(data, line, tmp_path):
    with pytest.raises(KDBenchError, match=line):
        tiny.task(tmp_path, data).prepare()


def test_bad_task_options_are_one_line(tmp_path):
    spec = config.load(["task=classification", "task.label_smoothing=-1"])
    own = {k: v for k, v in spec["task"].items() if k != "name"}
    with pytest.raises(KDBenchError, match=r"task.label_smoothing: found -1"):
        instantiate("task", own, data=spec["data"], store=None)


def test_what_it_says_of_the_data(made, tmp_path):
    info = made.dataset()
    assert (info.name, info.embedded) == ("digits", True)
    assert dict(info.sizes) == {"train": 50, "val": 20, "test": 60}
    assert tiny.task(Path(tmp_path), {"batch_size": 8}).dataset().digest == info.digest


def test_counts_are_those_of_the_labelled_images(made, tmp_path):
    counts = made.counts()
    assert [found.samples for found in counts.values()] == [50, 20, 60]
    assert all(number == 5 for number in counts["train"].labels.values())
    labels = torch.cat([batch.targets for batch in made.data(0).test_dataloader()])
    assert list(counts["test"].judged.values()) == labels.bincount(minlength=10).tolist()
    few = tiny.task(tmp_path, {"labels": 20, "unlabelled": 30}).counts()["train"]
    assert (few.samples, sum(few.labels.values())) == (50, 20)
    check(made)


# ---- models ---------------------------------------------------------------------------------------------------------


def test_the_data_decides_on_classes_channels_and_size(made):
    assert net(made, {"_target_": tiny.NET["_target_"], "model_name": "cifar_vgg8"}).fc.out_features == 10
    vit = net(made, tiny.VIT)
    assert vit.patch_embed.grid_size == (4, 4)
    assert vit.patch_embed.proj.in_channels == 1
    signals = net(tiny.shaped((1, 40), 1, 10), tiny.VIT | {"patch_size": [1, 4]})
    assert signals.patch_embed.grid_size == (1, 10)


def test_no_activation_overwrites_what_it_reads(made):
    made_here = made.build({"_target_": tiny.NET["_target_"], "model_name": "resnet18"})
    assert not any(getattr(m, "inplace", False) for m in made_here.modules())


class Own(nn.Module):
    """A model of a user, which asks for nothing or for the number of classes."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1))


def fixed() -> Own:
    return Own()


def test_a_model_of_the_user(made):
    batch = first(made)
    own = made.build({"_target_": f"{__name__}.Own"})
    assert made.forward(own, batch.inputs).logits.shape == (len(batch), 10)
    with pytest.raises(KDBenchError, match=r"Own gives \(16, 3\), expected logits \(batch, 10\) for the 10 classes of"):
        made.forward(made.build({"_target_": f"{__name__}.fixed"}), batch.inputs)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"num_classes": 100}, r"architecture.num_classes=100, but the data digits has 10: leave it out"),
        ({"in_chans": 3}, r"architecture.in_chans=3, but the data digits has 1: leave it out"),
        ({"img_size": [32, 32]}, r"architecture.img_size=\(32, 32\), but the data digits has \(8, 8\)"),
        ({"model_name": "cifar_resnet9"}, r"there is no such model: did you mean 'cifar_resnet"),
    ],
)
def test_wrong_architectures_are_one_line(made, options, line):
    with pytest.raises(KDBenchError, match=line):
        made.build(tiny.NET | options)
    assert net(made, tiny.NET | {"num_classes": 10, "img_size": [8, 8]}).fc.out_features == 10


def test_weights_for_other_classes_are_one_line(made, tmp_path):
    hundred = tiny.shaped((8, 8), 1, 100).build(tiny.NET)
    save_weights(hundred, tmp_path / "hundred.safetensors")
    line = r"'fc' has 100 outputs, ResNet here has 10: it was trained on other classes"
    with pytest.raises(KDBenchError, match=line):
        load_weights(made.build(tiny.NET), tmp_path / "hundred.safetensors")


# ---- labels and loss ------------------------------------------------------------------------------------------------


def test_true_classes_are_given_where_all_are_known(made, model):
    batch = first(made)
    logits = made.describe(made.forward(model, batch.inputs), {}, batch)["logits"]
    assert logits.labels().equal(batch.targets)
    some = replace(batch, supervised=batch.targets > 0, distilled=batch.targets < 5)
    logits = made.describe(made.forward(model, batch.inputs), {}, some)["logits"]
    assert logits.target is None
    assert len(logits.rows()) == (batch.targets < 5).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_cross_entropy(made, model, smoothing, monkeypatch):
    monkeypatch.setattr(made, "label_smoothing", smoothing)
    batch = first(made)
    outputs = made.forward(model, batch.inputs)
    expected = F.cross_entropy(outputs.logits, batch.targets, label_smoothing=smoothing)
    assert made.loss(model, outputs, batch)["ce"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert made.loss(model, outputs.logits, batch)["ce"].item() == pytest.approx(expected.item(), rel=1e-6)
    low = made.loss(model, outputs._replace(logits=outputs.logits.bfloat16()), batch)["ce"]
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(expected.item(), rel=0.02)
    assert made.loss(model, outputs._replace(logits=outputs.logits.double()), batch)["ce"].dtype == torch.float64


def test_targets_may_be_distributions(made, model):
    batch = first(made)
    outputs = made.forward(model, batch.inputs)
    soft = torch.rand(outputs.logits.shape, generator=rng.generator(0)).softmax(1)
    mixed = replace(batch, targets=soft, supervised=torch.arange(len(batch)) > 0)
    expected = F.cross_entropy(outputs.logits[1:], soft[1:])
    assert made.loss(model, outputs, mixed)["ce"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_samples_without_a_label_do_not_count(made, model):
    batch = first(made)
    logits = made.forward(model, batch.inputs).logits
    half = torch.arange(len(batch)) % 2 == 0
    some = replace(batch, supervised=half, targets=torch.where(half, batch.targets, -1))
    expected = F.cross_entropy(logits[half], batch.targets[half]).item()
    assert made.loss(model, logits, some)["ce"].item() == pytest.approx(expected, rel=1e-6)
    # A method may hide labels that are known.
    assert made.loss(model, logits, replace(batch, supervised=half))["ce"].item() == pytest.approx(expected, rel=1e-6)
    leaf = logits.detach().requires_grad_()
    none = made.loss(model, leaf, replace(batch, supervised=torch.zeros(len(batch), dtype=torch.bool)))["ce"]
    none.backward()
    assert none == 0
    assert leaf.grad is not None
    assert not leaf.grad.any()
    empty = Batch(batch.inputs[:0], batch.targets[:0], batch.ids[:0])
    assert made.loss(model, logits[:0], empty)["ce"] == 0


def test_the_unlabelled_part_of_the_data(tmp_path):
    task = tiny.task(tmp_path, {"unlabelled": 40})
    batch = first(task, "train")
    assert batch.supervised is not None
    assert ((batch.targets >= 0) == batch.supervised).all()
    model = task.build(tiny.NET)
    outputs = task.forward(model, batch.inputs)
    logits = task.describe(outputs, {}, batch)["logits"]
    assert isinstance(logits, Logits)
    with pytest.raises(KDBenchError, match=r"leave out data.unlabelled"):
        logits.labels()
    assert task.loss(model, outputs, batch)["ce"].isfinite()


def test_the_loss_falls_on_one_batch(made):
    with rng.scope(1, "fall"):
        net = made.build(tiny.NET)
    batch = first(made, "train")
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        loss = made.loss(net, made.forward(net, batch.inputs), batch)["ce"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# ---- scores ---------------------------------------------------------------------------------------------------------


def changed(loader: Iterable[Batch], targets: int) -> list[Batch]:
    return [replace(batch, targets=torch.full_like(batch.targets, targets)) for batch in loader]


def test_evaluate_scores_and_scales_with_validation_alone(made, model):
    device = torch.device("cpu")
    data = made.data(0)
    found = made.evaluate(model, data.test_dataloader(), "test", device, **made.beside(data))
    assert {"top1", "top5", "worst_class", "nll", "ece", "nll_ts", "ece_ts", "temperature"} == {*found}
    assert made.primary in found
    again = made.evaluate(model, data.val_dataloader(), "val", device)
    assert {*again} == {"top1", "top5", "worst_class", "nll", "ece"}
    # On the set that it was fitted on, the temperature can only help.
    own = made.evaluate(model, data.val_dataloader(), "test", device, **made.beside(data))
    assert own["nll_ts"] <= own["nll"]
    # Test labels do not move it, and samples without a label are not scored.
    other = made.evaluate(model, changed(data.test_dataloader(), 3), "test", device, **made.beside(data))
    assert other["temperature"] == found["temperature"]
    assert other["top1"] != found["top1"]
    unknown = made.evaluate(model, changed(data.test_dataloader(), -1), "val", device)
    assert unknown == {}


def test_the_validation_of_a_training_is_that_of_evaluate(made, model):
    metrics = made.metrics("val")
    for batch in made.data(0).val_dataloader():
        made.score(metrics, model, made.forward(model, batch.inputs), batch)
    found = {name: float(value) for name, value in metrics.compute().items()}
    expected = made.evaluate(model, made.data(0).val_dataloader(), "val", torch.device("cpu"))
    assert found == pytest.approx(expected, rel=1e-5)


def test_agreement_with_the_teacher(made, model):
    loader = made.data(0).test_dataloader()
    other = made.build(tiny.NET | {"width": 2})
    found = made.compare({"teacher": model, "student": model, "scratch": other}, loader)
    assert found["student"] == {"agreement": 100}
    agree = [
        (made.forward(model, b.inputs).logits.argmax(1) == made.forward(other, b.inputs).logits.argmax(1)).float()
        for b in loader
    ]
    assert found["scratch"]["agreement"] == pytest.approx(100 * torch.cat(agree).mean().item())
    assert made.compare({"student": model}, loader) == {}


def test_who_was_scored_on_the_test_set_is_not_run_again_to_be_compared(made, model, tmp_path):
    made = copy.copy(made)
    data, device = made.data(0), torch.device("cpu")
    other = made.build(tiny.NET | {"width": 2})
    expected = made.compare({"teacher": model, "student": other}, data.test_dataloader())
    made.store = Store(tmp_path)
    for network in (model, other):
        made.evaluate(network, data.test_dataloader(), "test", device)
    assert made.compare({"teacher": model, "student": other}, ()) == expected
    third = made.build(tiny.NET | {"width": 3})
    made.evaluate(third, list(data.test_dataloader()), "test", device)  # perhaps not as every student reads it
    with pytest.raises(ValueError, match="non-empty"):
        made.compare({"teacher": model, "student": third}, ())


# ---- operations, pictures, predictions ------------------------------------------------------------------------------


def test_the_noise_of_an_accuracy_falls_with_the_size_of_the_test_set(tmp_path):
    assert config.load(["task=classification"])["task"]["noise"] is None
    few, many = tiny.task(tmp_path), tiny.task(tmp_path, {"test": 600})
    assert few.standard_error(90.0, 80.0) == pytest.approx(100 * ((0.9 * 0.1 + 0.8 * 0.2) / 60) ** 0.5)
    assert many.standard_error(90.0, 80.0) == pytest.approx(few.standard_error(90.0, 80.0) / 10**0.5)
    # What drawing two test sets anew gives.
    drawn = np.random.default_rng(0).binomial(60, [0.9, 0.8], (4000, 2)) / 60 * 100
    assert np.subtract(*drawn.T).std() == pytest.approx(few.standard_error(90.0, 80.0), rel=0.05)


def test_rotate_turns_by_quarters(made):
    image = torch.arange(4.0).reshape(1, 1, 2, 2)
    turned = made.ops()["rotate"](image, 1)
    assert turned[0, 0].tolist() == [[1, 3], [0, 2]]
    torch.testing.assert_close(made.ops()["rotate"](turned, 3), image)
    with pytest.raises(KDBenchError, match="images of 1 x 40 cannot be turned by a quarter: this needs square images"):
        rotate(torch.zeros(2, 1, 1, 40), 1)


def test_a_strong_view_has_the_same_shape_and_is_drawn_by_name(made):
    inputs = first(made).inputs
    strong = made.ops()["strong"]
    views = [strong(inputs, rng.generator(0, "strong", i)) for i in (0, 0, 1)]
    assert views[0].shape == inputs.shape
    assert views[0].dtype == inputs.dtype
    assert views[0].equal(views[1])
    assert not views[0].equal(views[2])
    assert not views[0].equal(inputs)


def test_every_capability_with_an_operation_has_it(made):
    operations = {"rotate": {"rotate"}, "strong_view": {"strong"}, "mixable": {"mix"}, "class_scores": {"with_scores"}}
    operations |= {"warp": {"warp"}, "deform": {"deform"}, "pixels": {"to_pixels", "to_inputs"}}
    assert {name for names in operations.values() for name in names} == {*made.ops()}
    assert operations.keys() <= made.capabilities


def test_export_plan_exports_and_equals_the_model(made, model):
    plan = made.export(model)
    exported = torch.export.export(plan.module, plan.example).module()
    torch.testing.assert_close(exported(*plan.example), model(*plan.example))
    assert len(plan.names) == len(plan.example) == 1


def test_picture_shows_where_the_models_disagree(made, model):
    with rng.scope(1, "other"):
        other = made.build(tiny.NET)
    batch = first(made)
    image = made.picture(batch, {"teacher": model, "student": other})
    assert image.mode == "RGB"
    assert image.width == 1500
    assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 20
    alone = made.picture(batch, {"teacher": model})
    assert alone.size != image.size or alone.tobytes() != image.tobytes()


def test_predictions_of_a_file(made, model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 20), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    batch = made.read(tmp_path / "digit.png")
    assert batch.inputs.shape == (1, 1, 8, 8)
    (found,) = json.loads(json.dumps(made.predictions(model, batch)))
    assert len(found["classes"]) == 5
    assert found["classes"][0].keys() == {"class", "probability"}
    probabilities = [entry["probability"] for entry in found["classes"]]
    assert probabilities == sorted(probabilities, reverse=True)
    expected = made.forward(model, batch.inputs).logits.softmax(1).max().item()
    assert probabilities[0] == pytest.approx(expected, abs=1e-4)
