from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Edges, Feature, Logits
from kdbench.functional.kd import kd_loss
from kdbench.functional.ld import localisation_loss, valuable_region
from kdbench.methods.ld import LD
from kdbench.roles.cast import Cast
from tests.methods.boxes import CLASSES, PAIR, BoxBench, Boxed, BoxInvariants, anchors, predicted, truth
from tests.methods.harness import Features, normal, yaml

BINS = 5


class Modelled(Cast):
    """A cast whose networks are not asked for."""

    def model(self, role: str) -> nn.Module:
        return nn.Identity()


class LDBench(BoxBench):
    def make_cast(self) -> Cast:
        made = super().make_cast()
        return Modelled(made.task, made.roles, made.sources)


def assigned(batch: int) -> Tensor:
    """Every seventh row is assigned to the first box, where there is one."""
    rows = torch.arange(len(anchors()[0]))
    found = torch.where(rows % 7 == 0, 0, -1).expand(batch, -1)
    return torch.where(truth(batch)[1][:, :1] >= 0, found, -1)


class TestLD(BoxInvariants):
    name = "ld"
    other = {"temperature": 2.0, "kd_temperature": 1.0, "share": 0.6}

    def features(self, batch: int, role: str, dtype: torch.dtype) -> Features:
        rows = len(anchors()[0])
        found: dict[str, Feature] = {"edges": Edges((3 * normal(batch, rows, 4, BINS, name=role)).to(dtype))}
        found["logits"] = Logits(normal(batch, rows, CLASSES, name=role).to(dtype), law="bernoulli")
        if role == "student":
            # Where rows start is what is read; their values have no part.
            found["boxes"] = predicted(batch, role, dtype)
        return found

    def made(self, student: Features, teacher: Features, found: tuple[Tensor, Tensor], **options: Any) -> BoxBench:
        batch = len(found[0])
        given = assigned(batch) if bool((found[1] >= 0).any()) else torch.full((batch, len(anchors()[0])), -1)
        made = LDBench(self.name, student, teacher, found, {"assigned": lambda model, b, start: given}, **options)
        made.student.pop(2)  # boxes are read for where they start
        return made

    def test_terms(self):
        made, (start, level) = self.bench(), anchors()
        (edges, scores), (edges_t, scores_t) = made.student, made.teacher
        inside = assigned(3) >= 0
        weight = torch.where(inside, scores.sigmoid().amax(2), 0.0).detach()
        expected = {
            "ld": localisation_loss(edges, edges_t, weight),
            "vlr": localisation_loss(edges, edges_t, valuable_region(*truth(3), start, level)),
            "kd": kd_loss(scores[inside], scores_t[inside], 2.0, law="bernoulli"),
        }
        found = made.checked()
        assert {n: t.item() for n, t in found.items()} == pytest.approx({n: t.item() for n, t in expected.items()})
        # No gradient by the score that weighs.
        (gradient,) = torch.autograd.grad(found["ld"], scores, allow_unused=True)
        assert gradient is None or not gradient.any()

    def test_rows_that_are_not_distilled_have_no_part(self):
        made, mask = self.bench(), torch.ones(3, len(anchors()[0]), dtype=torch.bool)
        mask[1] = False
        for found in made.given.values():
            found["logits"] = Logits(found["logits"].values, mask=mask, law="bernoulli")  # type: ignore[index]
        (gradient,) = torch.autograd.grad(made.loss(), made.student[0])
        assert not gradient[1].any()
        assert gradient[2].any()


def test_binds_and_weighs():
    with pytest.raises(KDBenchError, match="^LD requires assigned, which task toy lacks$"):
        bind(LD, Boxed, PAIR)
    assert yaml("ld")["weights"] == {"task": 1.0, "ld": 0.5, "vlr": 0.125, "kd": 0.125}
