"""Parametrised weights: what a forward sees, where the gradient goes, and what is left."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdbench.base import rng
from kdbench.base.weights import load_plain, plain
from kdbench.errors import KDBenchError
from kdbench.quant.quantized_distillation import QuantizedDistillation
from kdbench.quant.weights import Fixed, Learned, Scheme, left, quantizers
from tests.toy import Net, same, weights

NAMES = ["stem.0.weight", "stem.1.weight", "stem.1.bias", "body.0.weight", "body.1.weight", "body.1.bias"]
NAMES += ["head.weight", "head.bias"]


def scheme(bits: int = 2, bucket: int | None = 16, tensors: Any = "all", skip_ends: bool = False) -> Scheme:
    return Scheme(bits, bucket, "linear", tensors, skip_ends)


def net() -> Any:
    with rng.scope(0, "quant", "net"):
        made = Net(4, dropout=0.0)
        for parameter in made.parameters():
            nn.init.normal_(parameter)
    return made


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=rng.generator(0, "quant", "images", count))


def quantised(model: nn.Module, bits: int = 2, bucket: int | None = 16, **options: Any) -> Any:
    scheme(bits, bucket).put_on(model, lambda *_: Fixed(bits, bucket, "linear", **options))
    return model


def learned(model: nn.Module, levels: int = 4, bucket: int | None = 16) -> Any:
    scheme().put_on(model, lambda _, weight: Learned(levels, weight, bucket, "linear"))
    return model


# ---- which ---------------------------------------------------------------------------------------------------------


def test_every_parameter_is_quantised_or_some():
    assert scheme().names(net()) == NAMES
    assert scheme(tensors="weights").names(net()) == [n for n in NAMES if n.endswith("0.weight") or n == "head.weight"]
    assert scheme(skip_ends=True).names(net()) == NAMES[1:-1]


def test_what_cannot_be_quantised_is_named_and_left():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight
            self.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
            self.none = nn.Parameter(torch.zeros(0, 4))

    assert scheme().names(Odd()) == ["first.bias", "second.bias"]
    assert scheme().unfit(Odd()) == ("phase", "none", "first.weight")
    assert scheme().unfit(quantised(Odd())) == ("phase", "none", "first.weight")
    recurrent = nn.ModuleDict({"gru": nn.GRU(3, 2), "head": nn.Linear(2, 2)})
    assert scheme().names(recurrent) == ["head.weight", "head.bias"]
    assert scheme().unfit(recurrent) == tuple(f"gru.{name}" for name, _ in recurrent["gru"].named_parameters())
    plugin = QuantizedDistillation()
    assert plugin.notes() == ()
    plugin.unfit = scheme().unfit(Odd())
    assert plugin.notes() == ("in float: phase, none, first.weight",)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_one_line(bad):
    model = net()
    with torch.no_grad():
        model.body[0].weight[0, 0, 0, :2] = bad
    with pytest.raises(KDBenchError, match=r"^body.0.weight holds 2 values that are no numbers"):
        scheme().names(model)


def test_nothing_to_quantise_is_one_line():
    with pytest.raises(KDBenchError, match=r"the BatchNorm2d has no parameter that quant.tensors=weights means"):
        scheme(tensors="weights").names(nn.BatchNorm2d(3))


# ---- the forward and its gradient ----------------------------------------------------------------------------------


@pytest.mark.parametrize("points", ["uniform", "quantiles"])
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_a_forward_sees_few_values_and_leaves_the_weights(bits, points):
    model = net()
    before = weights(model)
    outputs = quantised(model, bits, points=points)(images())
    for name, quantizer, original in quantizers(model):
        path, _, own = name.rpartition(".")
        seen = getattr(model.get_submodule(path), own).detach()
        assert all(len(part.unique()) <= 2**bits for part in seen.reshape(-1).split(16))
        assert torch.equal(original, before[name])
        assert torch.equal(seen, quantizer(original).detach())
        assert original.numel() <= 2**bits or not torch.equal(seen, original)
    deployed = plain(model.eval())
    assert deployed.state_dict().keys() == before.keys()
    assert torch.equal(deployed(images()), model(images()))
    assert outputs.isfinite().all()


def test_the_gradient_is_that_of_a_network_with_the_quantised_weights():
    model = quantised(net())
    other = plain(model)
    for made in (model, other):
        made(images()).square().sum().backward()
    expected: dict[str, Any] = {name: parameter.grad for name, parameter in other.named_parameters()}
    for name, _, original in quantizers(model):
        assert original.grad is not None
        assert torch.equal(original.grad, expected[name]), name
        assert expected[name].any()


def test_a_step_is_that_of_the_float_weights_with_that_gradient():
    """Against the loop of the paper: write the quantised weights, differentiate, write the float ones back, step."""
    model, reference = quantised(net()), net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = {name: p.detach().clone() for name, p in reference.named_parameters()}
    for step in range(3):
        batch = images(step + 2)
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            for name, p in reference.named_parameters():
                p.copy_(Fixed(2, 16, "linear")(kept[name]))
        gradients = torch.autograd.grad(reference(batch).square().mean(), list(reference.parameters()))
        for name, gradient in zip(kept, gradients, strict=True):
            kept[name] -= 0.1 * gradient
    for name, _, original in quantizers(model):
        torch.testing.assert_close(original.detach(), kept[name], rtol=0, atol=1e-6)
    for name in ("stem.1.running_mean", "body.1.running_var"):
        torch.testing.assert_close(model.get_buffer(name), reference.get_buffer(name))


def test_random_rounding_is_of_the_forwards_that_train():
    model = quantised(net(), stochastic=True)

    def seen(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model.body[0].weight.detach().clone()

    first = seen(1)
    assert torch.equal(first, seen(1))
    assert not torch.equal(first, seen(2))
    with torch.no_grad():
        still = seen(1)
    assert torch.equal(still, plain(model).state_dict()["body.0.weight"])
    model.eval()
    assert torch.equal(seen(1), still)
    assert torch.equal(seen(2), still)


def test_a_batch_of_one():
    model = quantised(net()).eval()
    assert model(images(1)).shape == (1, 5)


def test_constant_weights_stay_and_get_a_gradient():
    model = net()
    with torch.no_grad():
        model.stem[1].weight.fill_(1.0)
        model.stem[1].bias.zero_()
    quantised(model)(images()).square().sum().backward()
    assert torch.equal(model.stem[1].weight, torch.ones(4))
    assert torch.equal(model.stem[1].bias, torch.zeros(4))
    originals = {name: original for name, _, original in quantizers(model)}
    assert originals["stem.1.weight"].grad is not None
    assert originals["stem.1.weight"].grad.any()


def test_values_are_those_of_single_precision_in_the_layout_of_the_weight():
    model = quantised(net().double())
    seen = model.body[0].weight
    assert seen.dtype == torch.float64
    assert torch.equal(seen, seen.float().double())
    other = quantised(net())
    expected = other.body[0].weight
    for parameter in other.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    assert other.body[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(other.body[0].weight, expected)


def test_putting_them_on_twice_is_once():
    model = quantised(quantised(net()))
    assert len(list(quantizers(model))) == len(NAMES)
    assert all(len(m.parametrizations[n]) == 1 for m in model.modules() for n in getattr(m, "parametrizations", ()))


def test_plain_weights_are_loaded_into_quantised_ones():
    model, fresh = quantised(net()), Net(4)
    load_plain(model, fresh.state_dict())
    for name, _, original in quantizers(model):
        assert torch.equal(original, fresh.state_dict()[name])
    assert torch.equal(model.get_buffer("stem.1.running_var"), fresh.get_buffer("stem.1.running_var"))


# ---- learned points ------------------------------------------------------------------------------------------------


def test_points_begin_at_the_quantiles_and_their_gradient_is_that_of_finite_differences():
    model = learned(net()).double().eval()
    points: dict[str, Any] = {name: quantizer.points for name, quantizer, _ in quantizers(model)}
    unit = torch.tensor([0.0, 1 / 3, 2 / 3, 1.0])
    for name, _, original in quantizers(model):
        assert points[name].shape == (4,)
        if original.numel() <= 16:  # one bucket: the quantiles of the weights themselves
            low, high = original.min(), original.max()
            expected = (torch.quantile(original.flatten(), unit.double()) - low) / (high - low)
            torch.testing.assert_close(points[name].detach(), expected, rtol=0, atol=1e-5)

    def loss() -> Tensor:
        return model(images(3).double()).square().sum()

    for name in ("stem.0.weight", "head.weight", "stem.1.weight", "head.bias"):
        (gradient,) = torch.autograd.grad(loss(), points[name])
        for j in range(4):
            ends = []
            for step in (3e-5, -3e-5):  # so small that no weight goes to another point
                with torch.no_grad():
                    kept = points[name][j].clone()
                    points[name][j] += step
                    ends.append(float(loss()))
                    points[name][j] = kept
            assert float(gradient[j]) == pytest.approx((ends[0] - ends[1]) / 6e-5, rel=0.02, abs=0.1), (name, j)


def test_points_are_put_into_order():
    quantizer = Learned(4, torch.arange(9.0), None, "linear")
    with torch.no_grad():
        quantizer.points.copy_(torch.tensor([0.9, 0.1, 0.5, 0.2]))
    quantizer.sort()
    assert quantizer.points.tolist() == pytest.approx([0.1, 0.2, 0.5, 0.9])


def test_fewer_weights_than_points():
    quantizer: Any = Learned(16, torch.tensor([0.5]), 256, "linear")
    weight = nn.Parameter(torch.tensor([0.5]))
    seen = quantizer(weight)
    assert seen.item() == 0.5
    seen.sum().backward()
    assert quantizer.points.grad.sum() == 1


# ---- what is left --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [quantised, learned])
def test_both_students_are_left_and_the_one_that_trains_is_untouched(make):
    model = make(net())
    before, modes = weights(model), [m.training for m in model.modules()]
    found = left(model)
    assert found.keys() == {"student", "float"}
    assert same(weights(model), before)
    assert modes == [m.training for m in model.modules()]
    student, floats = found["student"].module, found["float"].module
    assert same(floats.state_dict(), net().state_dict())
    assert not any(parametrize.is_parametrized(m) for made in (student, floats) for m in made.modules())
    assert all(len(student.get_parameter(name).reshape(-1)[:16].unique()) <= 4 for name in NAMES)
    model.eval()
    assert torch.equal(student.eval()(images()), model(images()))


def test_what_surrounds_a_student_is_left_with_it():
    around = nn.Sequential(quantised(net()), nn.Linear(5, 2))
    found = left(around)["student"].module.state_dict()
    assert found.keys() == nn.Sequential(net(), nn.Linear(5, 2)).state_dict().keys()
    assert torch.equal(found["1.weight"], around.state_dict()["1.weight"])


def test_another_network_than_the_quantised_student_is_one_line():
    for model, names in ((net(), None), (nn.Sequential(quantised(net())), quantised(net()).state_dict().keys())):
        with pytest.raises(KDBenchError, match="the method deploys a .* and not the plain student"):
            left(model, names)


def test_a_given_float_student_stands_beside():
    other = copy.deepcopy(net())
    assert left(quantised(net()), None, other)["float"].module is other
