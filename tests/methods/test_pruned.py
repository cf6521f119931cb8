from __future__ import annotations

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional as F

from kdbench.base import rng
from kdbench.base.instantiate import instantiate
from kdbench.configuration import config
from kdbench.configuration.compat import bind
from kdbench.configuration.resolved import ENGINE_KEYS
from kdbench.errors import KDBenchError
from kdbench.functional.kd import kd_loss
from kdbench.methods.pruned import Pruned
from kdbench.needs import State
from kdbench.roles.cast import Cast
from kdbench.roles.sources import Network
from kdbench.signals import EVERY, Context, Signals
from kdbench.task import Batch
from tests.methods.harness import knobs, normal, yaml
from tests.toy import Net, Toy

OTHER: dict[str, Any] = {"alpha": 0.2, "fraction": 0.25, "temperature": 2.0}


class Pair:
    """The method with the toy's networks, because it asks for the supervised loss."""

    def __init__(self, batch: int = 6, **options: Any) -> None:
        self.method = instantiate("method", {k: v for k, v in yaml("pruned").items() if k not in ENGINE_KEYS} | options)
        with rng.scope(0, "pruned"):
            nets = {"student": Net(4, 0.0).eval(), "teacher": Net(8, 0.0).eval()}
        self.nets = nets
        self.batch = Batch(normal(batch, 3, 8, 8), torch.arange(batch) % 5, torch.arange(batch))
        self.cast = Cast(Toy(), self.method.roles, {role: Network(Toy(), net) for role, net in nets.items()})

    def loss(self) -> Tensor:
        signals = Signals(self.cast, {role: {"main": self.batch} for role in self.nets})
        terms = self.method.terms(signals, Context(State(0, 0, 0.0), 0, frozenset({EVERY})))
        assert set(terms) == set(yaml("pruned")["weights"]) - {"task"}
        return terms["pruned"]


def test_binds_to_the_logits():
    side = {"taps": {"body": "body"}}
    assert bind(Pruned, Toy, {"name": "toy", "student": side, "teacher": side}) == {"logits": "logits"}
    assert Pruned.fidelity == "approximate"


@pytest.mark.parametrize(("options", "alpha"), [({}, 0.5), ({"fraction": 0.2}, 0.9), ({"alpha": 0.3}, 0.3)])
def test_mixes_the_supervised_loss_with_the_teacher(options, alpha):
    pair = Pair(**options)
    with torch.no_grad():
        student, teacher = (net(pair.batch.inputs) for net in pair.nets.values())
    expected = (1 - alpha) * F.cross_entropy(student, pair.batch.targets) + alpha * kd_loss(student, teacher)
    assert pair.loss().item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_supervised_loss_counts_once():
    assert yaml("pruned")["weights"]["task"] == 0


@pytest.mark.parametrize("batch", [1, 6])
def test_gradients_reach_the_student_alone(batch):
    pair = Pair(batch)
    pair.loss().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pair.nets["student"].parameters())
    assert all(p.grad is None for p in pair.nets["teacher"].parameters())


@pytest.mark.parametrize("knob", knobs("pruned"))
def test_every_knob_counts(knob):
    assert Pair().loss().item() != pytest.approx(Pair(**{knob: OTHER[knob]}).loss().item(), rel=1e-5)


def test_the_recipe_ties_the_weight_to_the_share_that_the_student_sees():
    recipe = OmegaConf.load(config.folder() / "recipe" / "classification_pruned.yaml")
    assert recipe.method.fraction == recipe.data.keep.fraction == 0.25
    assert recipe.teacher.data.keep.fraction == 1


def test_bad_options_are_one_line():
    with pytest.raises(KDBenchError, match=r"method.fraction: found 0; input should be greater than 0"):
        Pair(fraction=0)
    with pytest.raises(KDBenchError, match=r"method.alpha: found 2; input should be less than or equal to 1"):
        Pair(alpha=2)
