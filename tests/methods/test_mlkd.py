"""On the toy's networks, because the method reads a second view and the supervised loss on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench.base import rng
from kdbench.base.instantiate import instantiate
from kdbench.configuration.compat import bind
from kdbench.configuration.resolved import ENGINE_KEYS
from kdbench.errors import KDBenchError
from kdbench.features import Feature, Logits
from kdbench.functional.mlkd import mlkd_losses
from kdbench.methods.mlkd import MLKD
from kdbench.needs import State
from kdbench.roles.cast import Cast
from kdbench.roles.sources import Network
from kdbench.signals import EVERY, Context, Signals
from kdbench.task import Batch
from kdbench.training.fit import Training
from tests.methods.harness import differ, knobs, normal, yaml
from tests.toy import Net, Toy, recipe, specs, teacher_file

OTHER: dict[str, Any] = {"temperatures": [1.0, 4.0], "share": 0.2, "faithful": "paper"}


class Views(Toy):
    """The toy with a strong view: noise."""

    capabilities = Toy.capabilities | {"strong_view"}
    law: Any = "categorical"
    weight: Tensor | None = None

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        return {"strong": lambda inputs, g: inputs + torch.randn(inputs.shape, generator=g, dtype=inputs.dtype)}

    def describe(self, outputs: Tensor, taps: Mapping[str, Tensor], batch: Batch) -> dict[str, Feature]:
        return {"logits": Logits(outputs, law=self.law, target=batch.targets, weight=self.weight)}


class Bench:
    """The built method on one batch, with its networks in eval mode."""

    def __init__(
        self,
        batch: int = 6,
        law: Any = "categorical",
        weight: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        spec = {k: v for k, v in yaml("mlkd").items() if k not in ENGINE_KEYS}
        self.method = instantiate("method", spec | options)
        task = Views()
        task.law, task.weight = law, weight
        with rng.scope(0, "mlkd"):
            self.nets = {"student": Net(4).eval(), "teacher": Net(8).eval()}
            for net in self.nets.values():
                nn.init.normal_(net.head.weight, std=5)
                net.to(dtype)
        self.cast = Cast(task, self.method.roles, {name: Network(task, net) for name, net in self.nets.items()})
        images = normal(batch, 3, 8, 8).to(dtype)
        self.main = Batch(images, torch.arange(batch) % 5, torch.arange(batch))
        self.method.build(self.signals())

    def signals(self, step: int = 0) -> Signals:
        views = {role: {"main": self.main} for role in self.method.roles}
        if hasattr(self.method, "strong"):
            views = self.method.views(views, self.context(step))
        return Signals(self.cast, views, {}, step)

    @staticmethod
    def context(step: int = 0) -> Context:
        return Context(State(0, step, 0.0), 0, frozenset({EVERY}))

    def terms(self, step: int = 0) -> dict[str, Tensor]:
        return self.method.terms(self.signals(step), self.context(step))

    def loss(self, step: int = 0) -> Tensor:
        terms, weights = self.terms(step), yaml("mlkd")["weights"]
        assert terms.keys() == weights.keys() - {"task"}
        assert all(v.shape == () and v.isfinite() for v in terms.values())
        return torch.stack([weights[name] * value for name, value in terms.items()]).sum()

    def outcome(self) -> list[Tensor]:
        loss = self.loss()
        return [loss.detach(), *torch.autograd.grad(loss, list(self.nets["student"].parameters()))]


def test_needs_a_strong_view():
    side = {"taps": {"body": "body"}}
    pair = {"name": "toy", "student": side, "teacher": side}
    assert bind(MLKD, Views, pair) == {"logits": "logits"}
    with pytest.raises(KDBenchError, match="^MLKD requires strong_view, which task toy lacks$"):
        bind(MLKD, Toy, pair)
    with pytest.raises(KDBenchError, match="^MLKD compares softmax distributions: found law='bernoulli'"):
        Bench(law="bernoulli").loss()


@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("faithful", ["code", "paper"])
def test_gradients(batch, faithful):
    bench = Bench(batch, faithful=faithful)
    bench.loss().backward()
    for parameter in bench.nets["student"].parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()
    assert all(parameter.grad is None for parameter in bench.nets["teacher"].parameters())


def test_views():
    bench = Bench()
    views = bench.signals().views
    assert views["student"]["strong"] is views["teacher"]["strong"]
    assert views["student"]["main"] is views["teacher"]["main"] is bench.main
    strong = views["student"]["strong"]
    assert torch.equal(strong.targets, bench.main.targets)
    assert not torch.equal(strong.inputs, bench.main.inputs)
    # By name: the same at the same step whatever else draws, another one at another.
    torch.rand(7)
    assert torch.equal(bench.signals().views["student"]["strong"].inputs, strong.inputs)
    assert not torch.equal(bench.signals(1).views["student"]["strong"].inputs, strong.inputs)
    assert all(torch.equal(a, b) for a, b in zip(bench.outcome(), bench.outcome(), strict=True))


@pytest.mark.parametrize("faithful", ["code", "paper"])
def test_is_the_loss_of_the_rows(faithful):
    weight = torch.tensor([1.0, 0, 2, 1, 1, 3])
    bench = Bench(faithful=faithful, weight=weight)
    student, teacher = bench.nets.values()
    weak, strong = (bench.signals().views["student"][name].inputs for name in ("main", "strong"))
    with torch.no_grad():
        found = bench.terms()
        pairs = (student(weak), teacher(weak)), (student(strong), teacher(strong))
        levels = mlkd_losses(*pairs, faithful=faithful, weight=weight)
        supervised = nn.functional.cross_entropy(student(strong), bench.main.targets)
    expected = {"instance": levels.instance, "batch": levels.batch, "class": levels.classes, "strong": supervised}
    assert {n: v.item() for n, v in found.items()} == pytest.approx({n: v.item() for n, v in expected.items()})


@pytest.mark.parametrize("knob", knobs("mlkd"))
def test_every_knob_counts(knob):
    assert differ(Bench().outcome(), Bench(**{knob: OTHER[knob]}).outcome())


def test_zero_at_the_teacher():
    bench = Bench()
    bench.cast.sources = {role: bench.cast.sources["student"] for role in bench.cast.sources}
    terms = bench.terms()
    assert [terms[n].item() for n in ("instance", "batch", "class")] == pytest.approx([0, 0, 0], abs=1e-5)


def test_no_rows_and_low_precision():
    empty = Bench(0).terms()
    assert [empty[n].item() for n in ("instance", "batch", "class")] == [0, 0, 0]
    assert all(empty[n].requires_grad for n in ("instance", "batch", "class"))
    low, full = Bench(dtype=torch.bfloat16, share=1.0).terms(), Bench(share=1.0).terms()
    assert low["instance"].dtype == torch.float32
    # The release reads the weak view alone here; the strong one is another one, drawn in low precision.
    for term in ("batch", "class"):
        assert low[term].item() == pytest.approx(full[term].item(), rel=0.1)


def test_trains_in_the_engine(tmp_path):
    spec = {k: v for k, v in yaml("mlkd").items() if k != "name"}
    training = Training(replace(recipe("KD"), plugins=specs(method=spec)), Views(), {"teacher": teacher_file(tmp_path)})
    manifest = training.run(tmp_path)
    assert manifest["terms"].keys() == spec["weights"].keys()
    assert manifest["cost"]["student_passes"] == manifest["cost"]["teacher_passes"] == 2
    assert manifest["cost"]["added_params"] == 0


def test_bad_options_are_one_line():
    with pytest.raises(KDBenchError, match=r"method.share: found 0.0; input should be greater than 0"):
        Bench(share=0.0)
    with pytest.raises(KDBenchError, match=r"method.temperatures.1: found -1.0; input should be greater than 0"):
        Bench(temperatures=[2.0, -1.0])
    with pytest.raises(KDBenchError, match=r"method.faithful: found 'both'; input should be 'paper' or 'code'"):
        Bench(faithful="both")
