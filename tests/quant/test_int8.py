"""Eight-bit students: what rounding, freezing and conversion do to a small residual network, and whole runs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench import script
from kdbench.base import rng
from kdbench.base.weights import plain
from kdbench.errors import KDBenchError
from kdbench.needs import STUDENT, Stage
from kdbench.quant import pt2e
from kdbench.quant.int8 import PTQInt8, QATInt8
from kdbench.quant.pt2e import Converted, prepared, roundings
from kdbench.quant.traced import Trained, replaced, trace
from kdbench.roles.cast import Cast
from kdbench.roles.sources import Network
from kdbench.signals import Signals
from kdbench.task import ExportPlan
from kdbench.training.exported import open_onnx, write_onnx
from tests.toy import CLASSES, Toy, collate, same, weights


class Block(nn.Module):
    """A residual block; its ReLUs are functions or modules."""

    def __init__(self, functional: bool = True) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(8, eps=1e-3, momentum=0.02), nn.BatchNorm2d(8)
        self.relu = F.relu if functional else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.relu(x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        return found


class Residual(nn.Module):
    """A stem, two blocks, a layer that cannot be quantised, dropout and a classifier."""

    def __init__(self, functional: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.ModuleList([Block(functional), Block(functional)])
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.head(self.dropout(self.up(x).mean((2, 3))))


TAPS = {"stem": "stem", "deep": "blocks[-1]", "pooled": "head:input"}


def made(functional: bool = True) -> Any:
    """A network whose normalisation has something to fold: factors of both signs, and one that is zero."""
    with rng.scope(0, "residual"):
        net = Residual(functional)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
                nn.init.normal_(module.weight, 0.7, 0.5)
                nn.init.normal_(module.bias, 0, 0.3)
                with torch.no_grad():
                    module.weight[0] = 0
    return net.eval()


IMAGES = torch.randn(64, 3, 8, 8, generator=rng.generator(0, "images"))


class Residuals(Toy):
    def build(self, architecture: Mapping[str, Any]) -> Any:
        return made()


def entered(plugin: Any, net: nn.Module, taps: Mapping[str, str] = TAPS, task: Toy | None = None) -> tuple[Any, Cast]:
    """A student as a plugin's first stage of its own has it, and who else there is."""
    task = task or Residuals()
    cast = Cast(task, {"student": STUDENT}, {"student": Network(task, net, taps)})
    batch = collate([(image, 0, i) for i, image in enumerate(IMAGES[:16])])
    with torch.no_grad():
        plugin.enter(plugin.own()[0], Signals(cast, {"student": {"main": batch}}))
    return cast.model("student"), cast


@pytest.fixture(scope="module")
def first() -> tuple[QATInt8, Any, nn.Module]:
    """Plugin, prepared student and float student; tests that change them take copies."""
    plugin, net = QATInt8(), made()
    return plugin, entered(plugin, net)[0], net


@pytest.fixture
def student(first: tuple[QATInt8, Any, nn.Module]) -> Any:
    return copy.deepcopy(first[1])


@pytest.fixture(scope="module")
def converted(first: tuple[QATInt8, Any, nn.Module]) -> Any:
    return replaced(first[1].eval(), Converted)


@torch.no_grad()
def answers(model: nn.Module, images: Tensor = IMAGES) -> Tensor:
    found: Tensor = model.eval()(images)
    return found


# ---- rounding ------------------------------------------------------------------------------------------------------


def alone(layer: nn.Module, images: Tensor) -> Trained:
    graph, calls = trace(layer.eval(), (images,), [[0]], [])
    trained = Trained(layer, prepared(graph)[0], calls)
    for rounding in roundings(trained):
        rounding.training = True
    with torch.no_grad():
        trained(images)
    return trained.eval()


def reference(layer: nn.Conv2d, images: Tensor) -> Tensor:
    """In float64 from the equations: symmetric weights by channel, one scale and zero point for what is read, given."""
    weight = layer.weight.detach().double()
    scale = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    rounded = (weight / scale).round() * scale

    def activation(values: Tensor) -> Tensor:
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        step = (high - low) / 255
        zero = round(-low / step)
        return ((values / step).round() + zero).clamp(0, 255).sub(zero) * step

    assert layer.bias is not None
    return activation(F.conv2d(activation(images.double()), rounded, layer.bias.detach().double(), padding=1))


def test_rounding_is_that_of_the_equations():
    with rng.scope(0, "layer"):
        layer = nn.Conv2d(3, 8, 3, padding=1)
    found, expected = answers(alone(layer, IMAGES)), reference(layer, IMAGES)
    step = float(expected.max() - expected.min()) / 255
    # Float32 and float64 may fall on two sides of a half.
    assert float((found - expected).abs().max()) < 1.01 * step
    assert float(((found - expected).abs() > 0.01 * step).double().mean()) < 1e-3


def test_a_converted_layer_gives_the_same_numbers():
    """torchao's fused module scales weights otherwise than its conversion does."""
    with rng.scope(0, "layer"):
        layer = nn.Conv2d(3, 8, 3, padding=1)
    trained = alone(layer, IMAGES)
    assert torch.equal(answers(replaced(trained, Converted)), answers(trained))
    assert not torch.equal(answers(trained), answers(layer))


def test_a_converted_network_gives_the_same_classes(first, converted):
    found, expected = answers(converted), answers(first[1])
    assert float((found - expected).norm() / expected.norm()) < 0.01
    assert torch.equal(found.argmax(1), expected.argmax(1))
    assert float((expected - answers(first[2])).norm() / expected.norm()) > 1e-4  # rounding does something


def test_evaluation_leaves_the_state_as_it_was(student):
    before = weights(student)
    answers(student, 3 * IMAGES)
    assert same(before, weights(student))
    student.train()(3 * IMAGES)
    assert not same(before, weights(student))


@pytest.mark.parametrize("functional", [True, False])
def test_a_relu_belongs_to_what_is_before_it(first, functional):
    """As a function and as a module; between convolution, normalisation and ReLU nothing is rounded."""
    trained = first[1] if functional else entered(QATInt8(), made(False))[0]
    nodes = [node for node in trained.graph.graph.nodes if node.target in pt2e.RELUS]
    assert len(nodes) == 5
    for node in nodes:
        assert "activation_post_process" not in str(node.args[0].target)


def test_no_convolution_stays_in_float_in_the_optimised_graph(converted, tmp_path):
    import onnx
    import onnxruntime

    plan = ExportPlan(converted, (IMAGES[:1],), ("images",), ("logits",), {"images": {0: "batch"}})
    path = tmp_path / "student.onnx"
    write_onnx(plan, path, {})
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") == 5
    assert kinds.count("QLinearAdd") == 2
    assert "Conv" not in kinds
    (found,) = session.run(None, {"images": IMAGES.numpy()})
    expected = answers(converted).numpy()
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.995
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)
    (alone,) = session.run(None, {"images": IMAGES[:1].numpy()})
    np.testing.assert_allclose(alone, found[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("unsigned", [False, True])
def test_weights_held_unsigned_give_the_same(converted, unsigned, tmp_path, monkeypatch):
    """Which is how processors run them that would overflow."""
    plan = ExportPlan(converted, (IMAGES[:1],), ("images",), ("logits",), {"images": {0: "batch"}})
    path = tmp_path / "student.onnx"
    write_onnx(plan, path, {})
    monkeypatch.setattr(script, "overflows", lambda: unsigned)
    (found,) = open_onnx(path).run(None, {"images": IMAGES.numpy()})
    expected = answers(converted).numpy()
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


# ---- what stays ----------------------------------------------------------------------------------------------------


def test_the_float_student_does_not_train_along(first, student):
    plugin, _, net = first
    before = weights(net)
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    student.train()(IMAGES).square().sum().backward()
    optimizer.step()
    assert same(before, weights(net))
    assert same(before, weights(plugin._float[0]))


def test_names_stay_and_the_student_is_a_plain_one_at_any_time(first, student):
    net = first[2]
    assert [n for n, _ in student.named_parameters()] == [n for n, _ in net.named_parameters()]
    with torch.no_grad():
        student.head.bias.add_(1)
    taken = plain(student)
    assert type(taken) is Residual
    again = Residual()
    again.load_state_dict(taken.state_dict())
    torch.testing.assert_close(answers(again), answers(net) + 1)
    assert not hasattr(taken, "quantisers")


def test_taps_give_what_the_graph_computes(student):
    task = Residuals()
    source, batch = Network(task, student.eval(), TAPS), collate([(IMAGES[0], 0, 0), (IMAGES[1], 0, 1)])
    with torch.no_grad():
        outputs, taps = source(batch.inputs)
        features = source.answer(batch).features
    assert list(taps) == list(TAPS)
    assert taps["stem"].shape == taps["deep"].shape == (2, 8, 8, 8)
    torch.testing.assert_close(
        student.head.bias + taps["pooled"] @ student.head.weight.T, outputs, rtol=0.05, atol=0.05
    )
    assert features.keys() == {*TAPS, "logits"}
    levels = taps["deep"].unique()
    assert len(levels) <= 256
    student.train()
    outputs, taps = source(batch.inputs)
    taps["deep"].sum().backward()
    assert student.blocks[0].conv1.weight.grad is not None


def test_a_copy_and_a_state_dict_are_whole(first, student):
    expected = answers(student)
    again = entered(QATInt8(), made())[0]
    with torch.no_grad():
        again.head.weight.add_(1)
    again.load_state_dict(student.state_dict())
    assert torch.equal(answers(again), expected)
    other = copy.deepcopy(student)
    with torch.no_grad():
        other.stem[0].weight.mul_(-1)
    assert not torch.equal(answers(other), expected)
    assert torch.equal(answers(student), expected)


def test_a_converted_student_is_its_state(first, student, converted):
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.5)
    for rounding in roundings(student):
        rounding.training = True
    student(2 * IMAGES)
    other = replaced(student.eval(), Converted)
    expected = answers(converted)
    assert not torch.equal(answers(other), expected)
    other.load_state_dict(converted.state_dict())
    assert torch.equal(answers(other), expected)
    integers = [t for n, t in converted.state_dict().items() if t.dtype == torch.int8]
    assert sum(t.numel() for t in integers) == sum(
        m.weight.numel() for m in student.modules() if isinstance(m, nn.Conv2d | nn.Linear)
    )


# ---- stages --------------------------------------------------------------------------------------------------------


def trained_through(plugin: Any, stage: Stage, cast: Cast, images: Tensor) -> tuple[dict[str, Tensor], Any]:
    """What a stage changes in a training step of rate 0.1."""
    model: Any = cast.model("student")
    with torch.no_grad():
        plugin.enter(stage, Signals(cast, {"student": {"main": collate([(IMAGES[0], 0, 0)])}}))
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1 * stage.lr)
    model.train()(images).square().mean().backward()
    optimizer.step()
    after = weights(model)
    return {n: t for n, t in after.items() if not torch.equal(t, before[n])}, model


def test_ranges_and_statistics_are_frozen_as_a_stage():
    plugin = QATInt8()
    model, cast = entered(plugin, made())
    first, last = plugin.own()
    changed, _ = trained_through(plugin, first, cast, 3 * IMAGES)
    acts = {n for n, m in model.quantisers.named_modules() if isinstance(m, pt2e.Rounding) and not m.is_per_channel}
    assert {f"quantisers.{name}.scale" for name in acts} <= changed.keys()
    assert "stem.1.running_mean" in changed
    changed, _ = trained_through(plugin, last, cast, 9 * IMAGES)
    assert not [name for name in changed if "running" in name or any(name.startswith(f"quantisers.{a}.") for a in acts)]
    assert {"stem.0.weight", "blocks.1.conv2.weight", "stem.1.bias"} <= changed.keys()


def test_calibration_finds_ranges_and_changes_no_weight():
    plugin, net = PTQInt8(), made()
    model, cast = entered(plugin, net)
    changed, _ = trained_through(plugin, plugin.own()[0], cast, 3 * IMAGES)
    assert changed
    assert all(name.startswith("quantisers.") for name in changed)
    torch.testing.assert_close(model.train()(IMAGES), answers(net))  # unrounded, dropout and statistics at rest
    assert not torch.equal(answers(model), answers(net))


def test_a_frozen_model_stays_frozen_in_a_copy():
    plugin = PTQInt8()
    model, _ = entered(plugin, made())
    other = copy.deepcopy(model)
    before = weights(other)["stem.1.running_mean"]
    other.train()(3 * IMAGES)
    assert torch.equal(other.stem[1].running_mean, before)


# ---- odd input -----------------------------------------------------------------------------------------------------


def test_layers_that_stay_in_float_are_named(first):
    assert first[0].notes() == ("int8: 6 of 7 layers; in float 1 ConvTranspose2d (up)",)


def test_a_batch_of_one_and_any_other(student, converted):
    for model in (student.eval(), converted):
        whole = answers(model)
        torch.testing.assert_close(answers(model, IMAGES[:1]), whole[:1], rtol=1e-3, atol=0.05)
        assert answers(model, IMAGES[:7]).shape == (7, CLASSES)


def test_constant_weights_and_factors_of_zero_give_numbers():
    net = made()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.25)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight)
    nn.init.zeros_(net.head.weight)
    model, _ = entered(QATInt8(), net)
    expected = answers(model)
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(answers(replaced(model, Converted)), expected)
    model.train()(IMAGES).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_weight_that_is_not_finite_is_one_line():
    net = made()
    with torch.no_grad():
        net.blocks[1].conv1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(KDBenchError, match=r"student's blocks\.1\.conv1\.weight holds values that are not finite"):
        entered(QATInt8(), net)


class Choosy(Residual):
    """Branches on what it reads, which no graph can."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if bool((images.sum() > 0).item()) else -images)


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 8, 8))

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.scale).sum((1, 2, 3))[:, None].expand(-1, CLASSES)


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (Choosy(), "Choosy cannot be quantised: Choosy cannot be traced: .*"),
        (Bare(), "Bare cannot be quantised: no convolution or linear layer is in"),
    ],
)
def test_what_cannot_be_traced_is_one_line(net, says):
    with pytest.raises(KDBenchError, match=says) as caught:
        entered(QATInt8(), net, {})
    assert "\n" not in str(caught.value)


class Parts(nn.Module):
    """A network whose first part no graph can hold, as that of a detector on points."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 8)
        self.backbone = nn.Sequential(Block(), Block())
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        seen = self.encoder(images.movedim(1, -1)).movedim(-1, 1)
        return self.head(self.backbone(seen).mean((2, 3)))


class InParts(Residuals):
    """What is exported begins behind the encoder."""

    def export(self, model: nn.Module) -> ExportPlan:
        class Rest(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.parts = model

            def forward(self, maps: Tensor) -> Tensor:
                found: Tensor = model.head(model.backbone(maps).mean((2, 3)))  # type: ignore[operator]
                return found

        return ExportPlan(Rest().eval(), (torch.randn(1, 8, 8, 8),), ("maps",))


def test_only_what_is_exported_is_quantised():
    plugin, net = QATInt8(), Parts().eval()
    model, _ = entered(plugin, net, {"deep": "backbone[-1]"}, InParts())
    assert type(model) is Parts
    assert type(model.encoder) is nn.Linear
    assert plugin.notes() == ("int8: 5 of 6 layers; in float 1 Linear (encoder)",)
    assert float((answers(model) - answers(net)).norm() / answers(net).norm()) < 0.1
    assert type(plain(model).backbone) is nn.Sequential
    found = replaced(model, Converted)
    torch.testing.assert_close(answers(found), answers(model), rtol=0.02, atol=0.02)
