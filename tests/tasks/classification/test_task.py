from __future__ import annotations

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

from kdbench import config, rng
from kdbench.build import build
from kdbench.cache import Store
from kdbench.errors import KDBenchError
from kdbench.features import Activated, Grid, Logits, Tokens, Vector
from kdbench.fit import Training
from kdbench.recipe import Recipe
from kdbench.signals import total
from kdbench.sources import Network, find_module
from kdbench.task import Batch
from kdbench.weights import load_weights, save_weights
from tasks.classification.task import Classification, Outputs, rotate
from tests.tasks.classification import tiny

SAME = ["wrn40_2_wrn16_2", "wrn40_2_wrn40_1", "resnet56_resnet20", "resnet110_resnet20", "resnet110_resnet32"]
SAME += ["resnet32x4_resnet8x4", "vgg13_vgg8"]
CROSS = ["vgg13_mobilenetv2", "resnet50_mobilenetv2", "resnet50_vgg8", "resnet32x4_shufflenetv1"]
CROSS += ["resnet32x4_shufflenetv2", "wrn40_2_shufflenetv1"]
OTHER = ["resnet8_w16_w4", "cnn_vit_small", "resnet34_resnet18"]


def pairs() -> list[str]:
    return sorted({*SAME, *CROSS, *OTHER})


def loaded(pair: str, *overrides: str) -> dict[str, Any]:
    return config.load(["task=classification", f"pair={pair}", *overrides])


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


# ---- pairs --------------------------------------------------------------------------------------------------------


def test_these_are_the_pairs():
    assert {p for p in config.options("pair") if not p.startswith("point")} == {*pairs(), "classification"}
    assert config.load(["task=classification"])["pair"]["name"] == "resnet8_w16_w4"


@pytest.mark.parametrize("name", pairs())
def test_taps_and_parts_of_a_pair(name):
    """Every tap gives what the configuration says, at a resolution that falls, and both sides have as many stages."""
    pair = loaded(name)["pair"]
    task = tiny.shaped((8, 8), 1, 10) if name in ("resnet8_w16_w4", "cnn_vit_small") else tiny.shaped((32, 32))
    stages = []
    for side in ("teacher", "student"):
        kinds = Classification.kinds(pair[side])
        with rng.scope(0, name, side):
            model = task.build(pair[side]["architecture"])
        network = Network(task, model, pair[side]["taps"]).eval()
        with torch.no_grad():
            features = network.answer(tiny.batch(task)).features
        assert [*features] == [*kinds]
        assert all(type(features[n]) is kind for n, kind in kinds.items())
        classifier = find_module(model, pair[side]["parts"]["classifier"])
        torch.testing.assert_close(classifier(features["pooled"].values), features["logits"].values)
        own = [n for n in kinds if n.startswith("stage")]
        assert own == sorted(own)
        stages.append(own)
        grids = [features[n] for n in own]
        if side == "student" and name == "cnn_vit_small":
            assert all(isinstance(f, Tokens) and f.prefix == 1 and f.grid == (4, 4) for f in grids)
            continue
        strides = [f.stride[0] for f in grids if isinstance(f, Grid) and f.stride]
        assert strides == sorted(strides)
        for feature in grids:
            assert isinstance(feature, Activated)
            assert feature.pre.shape == feature.values.shape
            if "wrn" in model_name(pair, side):
                continue  # its stages are sums; the activation belongs to the next
            expected = feature.pre if "mobilenet" in model_name(pair, side) else feature.pre.relu()
            torch.testing.assert_close(feature.values, expected)
            # timm starts the last norm of a block at zero: only the shortcut passes, which is positive.
            assert feature.pre.min() < 0 or name == "resnet34_resnet18"
    assert stages[0] == stages[1]


def model_name(pair: dict[str, Any], side: str) -> str:
    return str(pair[side]["architecture"]["model_name"])


def test_kinds_are_read_from_the_configuration_alone():
    taps = {"a": "x", "a.pre": "x:input", "b": "y", "pooled": "fc:input"}
    kinds = Classification.kinds({"taps": taps, "kinds": {"b": "tokens"}})
    assert [*kinds.items()] == [("a", Activated), ("b", Tokens), ("pooled", Vector), ("logits", Logits)]
    assert Classification.kinds({}) == {"logits": Logits}


@pytest.mark.parametrize(
    ("side", "line"),
    [
        ({"taps": {"a": "x"}, "kinds": {"a": "token"}}, r"kinds.a=token: there is no such kind: did you mean 'tokens'"),
        ({"taps": {"stage1": "x"}, "kinds": {"stage2": "grid"}}, r"there is no tap 'stage2': did you mean 'stage1'"),
        ({"taps": {"stage1": "x", "stage2.pre": "x"}}, r"there is no tap 'stage2': did you mean"),
    ],
)
def test_wrong_kinds_are_one_line(side, line):
    with pytest.raises(KDBenchError, match=line):
        Classification.kinds(side)


# ---- models -------------------------------------------------------------------------------------------------------


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
    line = r"'fc.weight' has shape \(100, 16\), ResNet expects \(10, 16\)"
    with pytest.raises(KDBenchError, match=line):
        load_weights(made.build(tiny.NET), tmp_path / "hundred.safetensors")


# ---- what the roles see -------------------------------------------------------------------------------------------


def described(task: Classification, **taps: torch.Tensor) -> dict[str, Any]:
    batch = tiny.batch(task)
    outputs = Outputs(torch.zeros(2, len(task.images.classes)), prefix=1, grid=(4, 4))
    return task.describe(outputs, taps, batch)


def test_describe_goes_by_the_axes():
    task = tiny.shaped((8, 16), 1, 10)
    found = described(task, a=torch.zeros(2, 3, 4, 4), b=torch.zeros(2, 17, 6), c=torch.zeros(2, 9, 6))
    assert found["a"].stride == (2, 4)
    assert (found["b"].prefix, found["b"].grid) == (1, (4, 4))
    assert (found["c"].prefix, found["c"].grid) == (1, None)  # merged tokens: the grid is another
    assert isinstance(described(task, proj=torch.zeros(2, 5))["proj"], Vector)
    assert [*task.describe(torch.zeros(2, 10), {}, tiny.batch(task))] == ["logits"]


@pytest.mark.parametrize(("name", "shape"), [("pooled", (2, 3, 1, 1)), ("pooled", (2, 4, 3)), ("a", (2, 3, 4, 4, 4))])
def test_a_tap_of_other_axes_is_one_line(name, shape):
    with pytest.raises(KDBenchError, match=rf"tap '{name}' has shape \(2, .*, expected a .*: tap another module"):
        described(tiny.shaped((8, 8)), **{name: torch.zeros(shape)})


def test_a_map_and_what_its_activation_reads_are_of_one_shape():
    task = tiny.shaped((8, 8))
    fitting = {"a": torch.zeros(2, 3, 4, 4), "a.pre": torch.ones(2, 3, 4, 4)}
    found = described(task, **fitting)["a"]
    assert isinstance(found, Activated)
    assert found.pre is fitting["a.pre"]
    with pytest.raises(KDBenchError, match=r"taps 'a' and 'a.pre' have shapes .*, expected equal ones"):
        described(task, **fitting | {"a.pre": torch.zeros(2, 3, 8, 8)})
    with pytest.raises(KDBenchError, match=r"tap 'a' has shape \(2, 3\), expected a grid \(B, C, H, W\): tap another"):
        described(task, **fitting | {"a": torch.zeros(2, 3)})


def test_tokens_and_channels_last_maps_of_timm():
    task = tiny.shaped((32, 32))
    swin = {
        "_target_": tiny.NET["_target_"],
        "model_name": "swin_tiny_patch4_window7_224",
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 1],
        "window_size": 4,
    }
    network = Network(task, task.build(swin), {"stage1": "layers[0]", "stage2": "layers[1]"}).eval()
    features = network.answer(tiny.batch(task)).features
    assert features["stage1"].values.shape == (2, 8, 8, 8)
    deep = features["stage2"]
    assert isinstance(deep, Grid)
    assert (deep.values.shape, deep.stride) == ((2, 16, 4, 4), (8, 8))
    deit = {**tiny.VIT, "model_name": "vit_small_patch14_reg4_dinov2", "patch_size": 4}
    network = Network(task, task.build(deit), {"stage1": "blocks[0]"}).eval()
    tokens = network.answer(tiny.batch(task)).features["stage1"]
    assert isinstance(tokens, Tokens)
    assert (tokens.prefix, tokens.grid) == (5, (8, 8))
    assert tokens.values.shape[1] == 5 + 64


def test_true_classes_are_given_where_all_are_known(made, model):
    batch = first(made)
    logits = made.describe(made.forward(model, batch.inputs), {}, batch)["logits"]
    assert logits.labels().equal(batch.targets)
    some = replace(batch, supervised=batch.targets > 0, distilled=batch.targets < 5)
    logits = made.describe(made.forward(model, batch.inputs), {}, some)["logits"]
    assert logits.target is None
    assert len(logits.rows()) == (batch.targets < 5).sum()


# ---- loss ---------------------------------------------------------------------------------------------------------


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


# ---- scores -------------------------------------------------------------------------------------------------------


def changed(loader: Iterable[Batch], targets: int) -> list[Batch]:
    return [replace(batch, targets=torch.full_like(batch.targets, targets)) for batch in loader]


def test_evaluate_scores_and_scales_with_validation_alone(made, model):
    device = torch.device("cpu")
    data = made.data(0)
    found = made.evaluate(model, data.test_dataloader(), "test", device)
    assert {"top1", "top5", "worst_class", "nll", "ece", "nll_ts", "ece_ts", "temperature"} == {*found}
    assert made.primary in found
    again = made.evaluate(model, data.val_dataloader(), "val", device)
    assert {*again} == {"top1", "top5", "worst_class", "nll", "ece"}
    # On the set that it was fitted on, the temperature can only help.
    own = made.evaluate(model, data.val_dataloader(), "test", device)
    assert own["nll_ts"] <= own["nll"]
    # Test labels do not move it, and samples without a label are not scored.
    other = made.evaluate(model, changed(data.test_dataloader(), 3), "test", device)
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


# ---- operations, pictures, predictions ----------------------------------------------------------------------------


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
    assert {"rotate", "strong"} == {*made.ops()}
    assert {"rotate", "strong_view"} <= made.capabilities


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


# ---- configuration ------------------------------------------------------------------------------------------------


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
        build("task", own, data=spec["data"], store=None)


@pytest.mark.parametrize("preset", ["smoke", "quick", "paper"])
@pytest.mark.parametrize("data", ["classification", "cifar100", "mnist1d"])
def test_presets_compose(preset, data):
    composed = config.load(["task=classification", f"data={data}", f"preset={preset}"])
    assert composed["task"]["name"] == "classification"
    assert (composed["trainer"]["epochs"] == 240) is (preset == "paper")


@pytest.mark.parametrize("name", [*SAME, *CROSS])
def test_the_published_protocol(name):
    composed = loaded(name, "preset=paper", "data=cifar100", "data.root=/data")
    assert (composed["trainer"]["epochs"], composed["data"]["batch_size"]) == (240, 64)
    assert composed["data"]["augment"] == {"crop": 4, "flip": True, "scale": None}
    sgd = {"_target_": "torch.optim.SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    assert composed["trainer"]["optimizer"] == sgd
    student_lr = 0.01 if name.endswith(("netv1", "netv2")) else 0.05
    assert composed["student"]["trainer"]["optimizer"] == sgd | {"lr": student_lr}
    milestones = composed["trainer"]["scheduler"]["milestones"]
    assert [m * 240 for m in milestones] == [150, 180, 210]


def test_the_published_protocol_on_imagenet():
    composed = loaded("resnet34_resnet18", "preset=paper", "data=imagefolder", "data.root=/data")
    assert (composed["trainer"]["epochs"], composed["data"]["batch_size"]) == (100, 256)
    for optimizer in (composed["trainer"]["optimizer"], composed["student"]["trainer"]["optimizer"]):
        assert (optimizer["lr"], optimizer["weight_decay"]) == (0.1, 1e-4)
    assert [m * 100 for m in composed["trainer"]["scheduler"]["milestones"]] == [30, 60, 90]


@pytest.mark.parametrize("name", pairs())
def test_methods_read_what_is_published_for_the_pair(name):
    """Every number below ``published`` arrives in the method's options, and no other pair's does."""
    published = loaded(name)["pair"].get("published") or {}
    for method, given in published.items():
        found = loaded(name, f"method={method}")["method"]
        for key, value in given.items():
            places = [found.get(key), (found["weights"].get(key))]
            places += [w.get(key) for w in found["weights"].values() if isinstance(w, dict)]
            assert value in [p["value"] if isinstance(p, dict) else p for p in places], (method, key)
    beta = loaded(name, "method=dkd")["method"]["weights"]["nckd"]["value"]
    assert beta == (published.get("dkd") or {}).get("nckd", 8.0)


@pytest.mark.parametrize("name", ["resnet56_resnet20", "cnn_vit_small"])
def test_the_paper_preset_takes_two_steps(name, tmp_path):
    composed = loaded(name, "preset=paper", "method=kd", "data.workers=0", "data.batch_size=8", "data.labels=50")
    spec = {k: v for k, v in composed["task"].items() if k != "name"}
    task = build("task", spec, data=composed["data"], store=Store(tmp_path / "cache"))
    save_weights(task.build(composed["pair"]["teacher"]["architecture"]), tmp_path / "teacher.safetensors")
    recipe = Recipe("student", "student", composed, {"method": composed["method"]}, 0, "tiny", "teacher")
    training = Training(recipe, task, tmp_path / "teacher.safetensors")
    distiller = training.distiller()
    batch = training.first_batch()
    distiller.rehearse(batch)
    distiller.train()
    before = {n: p.detach().clone() for n, p in distiller.trainable()}
    optimizer = torch.optim.SGD([p for _, p in distiller.trainable()], 0.05)
    for _ in range(2):
        terms = {n: v for found in distiller.every_term(batch).values() for n, v in found.items()}
        assert set(terms) == {"task", "kd"}
        optimizer.zero_grad()
        total(terms.values()).backward()
        optimizer.step()
    assert all(p.isfinite().all() for _, p in distiller.trainable())
    assert any(not torch.equal(p, before[n]) for n, p in distiller.trainable())


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


def test_what_it_says_of_the_data(made, tmp_path):
    info = made.dataset()
    assert (info.name, info.embedded) == ("digits", True)
    assert dict(info.sizes) == {"train": 50, "val": 20, "test": 60}
    assert tiny.task(Path(tmp_path), {"batch_size": 8}).dataset().digest == info.digest
