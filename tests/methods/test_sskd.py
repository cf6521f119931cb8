"""On the toy's networks, because the method reads a second view of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench.base import rng
from kdbench.base.instantiate import instantiate
from kdbench.configuration.compat import bind
from kdbench.configuration.resolved import ENGINE_KEYS
from kdbench.errors import KDBenchError
from kdbench.features import Feature, Logits, Vector
from kdbench.functional.kd import kd_loss
from kdbench.functional.sskd import contrast_loss, contrast_similarities, contrast_transfer_loss, select_transfer
from kdbench.methods.sskd import SSKD
from kdbench.needs import Stage, State
from kdbench.roles.cast import Cast
from kdbench.roles.sources import Network
from kdbench.signals import EVERY, Context, Signals
from kdbench.task import Batch
from kdbench.training.fit import Training
from tests.methods.harness import differ, knobs, normal, yaml
from tests.toy import TAPS, Net, Toy, recipe, specs, teacher_file

OTHER: dict[str, Any] = {"temperature": 2.0, "ssl_temperature": 1.0, "keep_rotated": 0.3, "keep_ssl": 0.1}


class Turning(Toy):
    """The toy with rotations."""

    capabilities = Toy.capabilities | {"rotate"}
    known = True

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        return {"rotate": lambda inputs, k: inputs.rot90(k, (2, 3))}

    def describe(self, outputs: Tensor, taps: Mapping[str, Tensor], batch: Batch) -> dict[str, Feature]:
        target = batch.targets if self.known else None
        return {"pooled": Vector(taps["pooled"]), "logits": Logits(outputs, target=target)}


class Bench:
    """The built method on one batch, with its networks in eval mode."""

    def __init__(self, batch: int = 6, size: tuple[int, int] = (8, 8), known: bool = True, **options: Any) -> None:
        spec = {k: v for k, v in yaml("sskd").items() if k not in ENGINE_KEYS}
        self.method = instantiate("method", spec | options)
        task = Turning()
        task.known = known
        with rng.scope(0, "sskd"):
            self.nets = {"student": Net(4).eval(), "teacher": Net(8).eval()}
            for net in self.nets.values():
                nn.init.normal_(net.head.weight, std=5)
            sources = {name: Network(task, net, {"pooled": TAPS["pooled"]}) for name, net in self.nets.items()}
            self.cast = Cast(task, self.method.roles, sources)
            self.cast.sources["teacher"].requires_grad_(False)
            self.main = Batch(normal(batch, 3, *size), torch.arange(batch) % 5, torch.arange(batch))
            self.method.build(Signals(self.cast, {role: {"main": self.main} for role in self.method.roles}))

    def signals(self) -> Signals:
        views = {role: {"main": self.main} for role in self.method.roles}
        return Signals(self.cast, self.method.views(views, self.context()))

    @staticmethod
    def context(*terms: str) -> Context:
        return Context(State(0, 0, 0.0), 0, frozenset(terms or {EVERY}))

    def terms(self, *terms: str) -> dict[str, Tensor]:
        return self.method.terms(self.signals(), self.context(*terms))

    def outcome(self) -> list[Tensor]:
        loss = torch.stack(list(self.terms().values())).sum()
        leaves = [*self.nets["student"].parameters(), *self.method.parameters()]
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def test_needs_rotations():
    side = {"taps": TAPS}
    pair = {"name": "toy", "student": side, "teacher": side}
    assert bind(SSKD, Turning, pair) == {"logits": "logits", "pooled": "pooled"}
    with pytest.raises(KDBenchError, match="^SSKD requires rotate, which task toy lacks$"):
        bind(SSKD, Toy, pair)


def test_views():
    made = Bench()
    supervised = torch.tensor([True, False] * 3)
    made.main = replace(made.main, supervised=supervised)
    views = made.signals().views
    rotated = views["student"]["rotated"]
    assert rotated is views["teacher"]["rotated"]
    for k, part in enumerate(rotated.inputs.split(6), start=1):
        assert torch.equal(part, made.main.inputs.rot90(k, (2, 3)))
    assert rotated.targets.tolist() == made.main.targets.tolist() * 3
    assert rotated.ids.tolist() == list(range(6)) * 3
    assert rotated.supervised is not None
    assert rotated.supervised.tolist() == supervised.tolist() * 3
    assert rotated.distilled is None
    # A teacher that reads other inputs gets rotations of its own.
    own = made.main.with_inputs(2 * made.main.inputs)
    views = made.method.views({"student": {"main": made.main}, "teacher": {"main": own}}, made.context())
    assert torch.equal(views["teacher"]["rotated"].inputs, 2 * views["student"]["rotated"].inputs)
    with pytest.raises(KDBenchError, match="one shape, as square images are"):
        Bench(size=(8, 6)).signals()


def test_terms():
    made = Bench(keep_rotated=0.5)
    views = made.signals().views["student"]
    targets, origin = made.main.targets.repeat(3), torch.arange(6).repeat(3)
    logits, pooled = {}, {}
    for role, net in made.nets.items():
        head = getattr(made.method, f"{role}_head")
        for name, batch in views.items():
            grid = net.body(net.stem(batch.inputs)).mean((2, 3))
            logits[role, name], pooled[role, name] = net.head(grid), head(grid)
    similarities = {r: contrast_similarities(pooled[r, "rotated"], pooled[r, "main"]) for r in made.nets}
    chosen = select_transfer(logits["teacher", "rotated"], targets, 0.5)
    expected = {
        "ssl_teacher": contrast_loss(similarities["teacher"], origin),
        "kd": kd_loss(logits["student", "main"], logits["teacher", "main"], 4.0),
        "kd_rotated": kd_loss(logits["student", "rotated"], logits["teacher", "rotated"], 4.0, weight=chosen),
        "ssl": contrast_transfer_loss(similarities["student"], similarities["teacher"], origin, 0.5, 0.75),
    }
    found = made.terms()
    assert found.keys() == yaml("sskd")["weights"].keys() - {"task"}
    assert {n: v.item() for n, v in found.items()} == pytest.approx({n: v.item() for n, v in expected.items()})


REACHED = {
    "ssl_teacher": {"teacher_head"},
    "kd": {"student"},
    "kd_rotated": {"student"},
    "ssl": {"student", "student_head"},
}


@pytest.mark.parametrize("term", REACHED)
@pytest.mark.parametrize("batch", [1, 6])
def test_gradients(term, batch):
    made = Bench(batch, keep_ssl=1.0)
    made.cast.passes.clear()
    found = made.terms(term)
    assert set(found) == {term}
    found[term].backward()
    owners = {name: getattr(made.method, name) for name in ("student_head", "teacher_head")} | made.nets
    for name, owner in owners.items():
        grads = [p.grad for p in owner.parameters() if p.grad is not None]
        assert all(grad.isfinite().all() for grad in grads)
        if name not in REACHED[term]:
            assert not grads
        # Among one sample there is nothing to contrast.
        elif batch > 1 or term.startswith("kd"):
            assert all(grad.any() for grad in grads)
            assert len(grads) == len(list(owner.parameters())) or (name, term) == ("student", "ssl")
    # The first stage does not run the student.
    assert ("student" in made.cast.passes) == (term != "ssl_teacher")


def test_zero_at_the_teacher():
    made = Bench()
    made.cast.sources = {role: made.cast.sources["teacher"] for role in made.cast.sources}
    made.method.student_head = made.method.teacher_head
    terms = made.terms("kd", "kd_rotated", "ssl")
    assert [value.item() for value in terms.values()] == pytest.approx([0, 0, 0], abs=1e-5)


@pytest.mark.parametrize("knob", knobs("sskd"))
def test_every_knob_counts(knob):
    assert differ(Bench().outcome(), Bench(**{knob: OTHER[knob]}).outcome())
    assert not differ(Bench().outcome(), Bench().outcome())


def test_only_selection_needs_the_classes():
    assert Bench(known=False).terms()["kd_rotated"] == Bench().terms()["kd_rotated"]
    with pytest.raises(KDBenchError, match="true class"):
        Bench(known=False, keep_rotated=0.5).terms()


def test_empty_batch_and_low_precision():
    for value in Bench(0).terms().values():
        assert value == 0
        assert value.requires_grad
    full = Bench().terms()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = Bench().terms()
    for name, value in low.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(full[name].item(), rel=0.15)


def test_trains_on_the_engine(tmp_path: Path):
    """The head learns alone and for a quarter of the epochs, then stays as it is while the student learns."""
    spec = {k: v for k, v in yaml("sskd").items() if k != "name"}
    training = Training(
        replace(recipe("KD", epochs=4), plugins=specs(method=spec)), Turning(), {"teacher": teacher_file(tmp_path)}
    )
    head, distil = training.stages
    assert (head.name, head.epochs, distil.epochs) == ("head", 0.25, 1.0)
    kept: dict[str, dict[str, Tensor]] = {}

    def copy(stage: Stage) -> None:
        owners = {"method": training.plugins["method"], "student": training.cast.model("student")}
        kept[stage.name] = {
            f"{owner}.{name}": p.detach().clone() for owner, m in owners.items() for name, p in m.named_parameters()
        }

    enter = SSKD.enter

    def entering(self: SSKD, stage: Stage, probe: Signals) -> None:
        enter(self, stage, probe)
        copy(stage)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SSKD, "enter", entering)
        manifest = training.run(tmp_path)
    copy(Stage("end"))

    def changed(first: str, second: str) -> set[str]:
        moved = {n for n, p in kept[first].items() if not torch.equal(p, kept[second][n])}
        return {".".join(n.split(".")[: 2 if n.startswith("method") else 1]) for n in moved}

    assert changed("head", "distil") == {"method.teacher_head"}
    assert changed("distil", "end") == {"method.student_head", "student"}
    assert not any(p.requires_grad for p in training.plugins["method"].teacher_head.parameters())  # type: ignore[union-attr]
    assert manifest["terms"].keys() == spec["weights"].keys()
    assert manifest["cost"]["epochs"] == 5
    # Of five epochs each reads four views through the teacher, and four of them through the student.
    assert manifest["cost"]["teacher_passes"] == pytest.approx(4)
    assert manifest["cost"]["student_passes"] == pytest.approx(4 * 4 / 5)
