"""A method on features made by hand: no task, no networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from kdbench.base import rng
from kdbench.base.instantiate import instantiate
from kdbench.configuration import config
from kdbench.configuration.resolved import ENGINE_KEYS
from kdbench.features import Feature
from kdbench.needs import State
from kdbench.roles.cast import Cast
from kdbench.roles.sources import Answer, Source
from kdbench.signals import EVERY, Context, Signals
from kdbench.task import Batch, Task

Features = Mapping[str, Feature]


class Hand(Source):
    """Answers with features made by hand, on the graph of their leaves."""

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.features = features

    def answer(self, batch: Batch, params: Mapping[str, Tensor] | None = None) -> Answer:
        return by_hand(self.features, batch)


def by_hand(features: Features, batch: Batch) -> Answer:
    """Answers with features, on the graph of their leaves."""
    return Answer(batch, None, {name: replace(f, values=f.values * 1) for name, f in features.items()})


def normal(*shape: int, name: str = "x", dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=rng.generator(0, "methods", name, *shape), dtype=dtype)


def yaml(name: str) -> dict[str, Any]:
    """``conf/method/<name>.yaml``."""
    content = OmegaConf.to_container(OmegaConf.load(config.folder() / "method" / f"{name}.yaml"), resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def knobs(name: str) -> list[str]:
    """The method's own options."""
    return [key for key in yaml(name) if key not in ENGINE_KEYS | {"_target_"}]


def leaves(features: Features) -> list[Tensor]:
    """Makes the tensors of features leaves that want a gradient."""
    return [feature.values.requires_grad_() for feature in features.values()]


class Bench:
    """A built method with its signals.

    Args:
        name: As in ``method=``.
        student: Features of the student, made leaves.
        teacher: Features of the teacher, made leaves too, to show that no gradient comes to them.
        bindings: Feature name(s) of each need; each need's own name by default.
        options: Override those of the YAML file.
    """

    def __init__(
        self,
        name: str,
        student: Features,
        teacher: Features,
        bindings: Mapping[str, str | list[str]] | None = None,
        **options: Any,
    ) -> None:
        spec = {k: v for k, v in yaml(name).items() if k not in ENGINE_KEYS}
        self.name = name
        with rng.scope(0, "init", "method"):
            self.method = instantiate("method", spec | options)
            self.student, self.teacher = leaves(student), leaves(teacher)
            self.given = {"student": student, "teacher": teacher}
            self.cast = self.make_cast()
            batch = Batch(None, None, torch.arange(len(self.student[0])))
            self.views = {role: {"main": batch} for role in self.method.roles}
            self.bindings = bindings or {}
            with torch.no_grad():
                self.method.build(self.signals())

    def make_cast(self) -> Cast:
        return Cast(Task(), self.method.roles, {role: Hand(features) for role, features in self.given.items()})

    def signals(self, step: int = 0) -> Signals:
        return Signals(self.cast, self.views, self.bindings, step)

    def terms(self, step: int = 0) -> dict[str, Tensor]:
        context = Context(State(0, step, 0.0), 0, frozenset({EVERY}))
        return self.method.terms(self.signals(step), context)

    def checked(self, step: int = 0) -> dict[str, Tensor]:
        """The terms, after checking that they are those that the YAML file weighs."""
        terms = self.terms(step)
        assert set(terms) == set(yaml(self.name)["weights"]) - {"task"}
        for value in terms.values():
            assert value.shape == ()
            assert value.dtype in (torch.float32, torch.float64)
            assert value.isfinite()
        return terms

    def loss(self, step: int = 0) -> Tensor:
        """The one term, checked."""
        (value,) = self.checked(step).values()
        return value

    def trainable(self) -> dict[str, Tensor]:
        return {n: p for n, p in self.method.named_parameters() if p.requires_grad}

    def gradients(self, step: int = 0) -> dict[str, Tensor]:
        """Gradients of the loss by parameter, and of the student's features by ``student.<i>``."""
        inputs = {f"student.{i}": leaf for i, leaf in enumerate(self.student)} | self.trainable()
        grads = torch.autograd.grad(self.loss(step), list(inputs.values()), allow_unused=True)
        return {n: torch.zeros_like(inputs[n]) if g is None else g for n, g in zip(inputs, grads, strict=True)}

    def outcome(self, step: int = 0) -> list[Tensor]:
        """Loss and gradients, of a method as it was built: what a knob must change."""
        state = {n: b.clone() for n, b in self.method.state_dict().items()}
        found = [self.loss(step), *self.gradients(step).values()]
        self.method.load_state_dict(state)
        return [tensor.detach() for tensor in found]


def differ(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether two outcomes are not the same."""
    if [t.shape for t in first] != [t.shape for t in second]:
        return True
    return not all(torch.allclose(a, b, rtol=1e-5, atol=0) for a, b in zip(first, second, strict=True))


def check_gradients(bench: Bench) -> None:
    """A gradient reaches every feature of the student and every trainable parameter, and nothing of the teacher."""
    bench.loss().backward()
    for name, leaf in {**bench.trainable(), **{str(i): leaf for i, leaf in enumerate(bench.student)}}.items():
        assert leaf.grad is not None, name
        assert leaf.grad.isfinite().all(), name
        assert leaf.grad.any(), name
    assert all(leaf.grad is None for leaf in bench.teacher)
    assert not any(f.values.requires_grad for f in bench.signals().answer("teacher").features.values())


def check_deterministic(bench: Bench) -> None:
    """The same step gives the same bits, whatever else draws random numbers."""
    first = bench.outcome()
    torch.rand(7)
    again = bench.outcome()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


class Invariants:
    """What holds of every method, as tests: a test class inherits them and says how its bench is made.

    Attributes:
        name: As in ``method=``.
        other: Another value for each of the method's own options.
        apart: Those options that a test of their own changes.
        variants: Options under which a gradient must reach everything.
        autocast: Whether low precision is that of autocast, as for methods with layers of their own.
    """

    name: str
    other: Mapping[str, Any] = {}
    apart: Sequence[str] = ()
    variants: Sequence[Mapping[str, Any]] = ({},)
    autocast = False

    def bench(self, batch: int = 3, dtype: torch.dtype = torch.float32, **options: Any) -> Bench:
        raise NotImplementedError

    def test_gradients_and_determinism(self):
        for options in self.variants:
            check_gradients(self.bench(**options))
            check_gradients(self.bench(batch=1, **options))
        check_deterministic(self.bench())

    def test_every_knob_counts(self):
        assert set(knobs(self.name)) == {*self.other, *self.apart}
        for knob, value in self.other.items():
            assert differ(self.bench().outcome(), self.bench(**{knob: value}).outcome()), knob

    def test_no_rows(self):
        empty = self.bench(batch=0)
        assert empty.loss() == 0
        assert empty.loss().requires_grad

    def test_low_precision(self):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast):
            low, full = self.bench(dtype=torch.bfloat16).loss(), self.bench().loss()
        assert low.item() == pytest.approx(full.item(), rel=0.05)
