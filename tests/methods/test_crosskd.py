from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench.configuration.compat import bind, no_replay
from kdbench.errors import KDBenchError
from kdbench.features import Boxes, Edges, Feature, Levels, Logits
from kdbench.functional.crosskd import align_scale, box_overlap_loss, quality_focal_loss
from kdbench.functional.divergence import categorical_kl
from kdbench.functional.numerics import weighted_mean
from kdbench.methods.crosskd import CrossKD
from kdbench.roles.cast import Cast
from tests.methods.boxes import CLASSES, PAIR, SIZES, BoxBench, Boxed, BoxInvariants, anchors, truth
from tests.methods.harness import Features, check_deterministic, normal, yaml

WIDTH, BINS = 4, 3
TOWERS = ("cls_tower", "reg_tower")


class Head(nn.Module):
    """The rest of a head: two linear maps of every cell; with edges it gives their laws too."""

    def __init__(self, edges: bool) -> None:
        super().__init__()
        self.per_cell = 2
        self.cls = nn.Linear(WIDTH, self.per_cell * CLASSES)
        self.reg = nn.Linear(WIDTH, self.per_cell * 4 * (BINS if edges else 1))
        self.edges = edges
        self.requires_grad_(False)

    def forward(self, cls: list[Tensor], reg: list[Tensor]) -> dict[str, Feature]:
        cells, borders = (torch.cat([m.flatten(2) for m in maps], 2).transpose(1, 2) for maps in (cls, reg))
        start, level = anchors()
        scores = self.cls(cells.to(self.cls.weight)).unflatten(2, (self.per_cell, CLASSES)).flatten(1, 2)
        raw = self.reg(borders.to(self.reg.weight)).unflatten(2, (self.per_cell, -1)).flatten(1, 2)
        found: dict[str, Feature] = {"logits": Logits(scores, law="bernoulli")}
        if self.edges:
            found["edges"] = Edges(raw.unflatten(2, (4, BINS)))
            raw = raw.unflatten(2, (4, BINS)).mean(3)
        return found | {"boxes": Boxes(start + raw, start, level)}


class HeadCast(Cast):
    head: Head

    def model(self, role: str) -> nn.Module:
        return self.head


class CrossBench(BoxBench):
    def make_cast(self) -> Cast:
        made = super().make_cast()
        cast = HeadCast(made.task, made.roles, made.sources)
        cast.head = self.ops["head"]  # type: ignore[assignment]
        return cast


def assigned(batch: int) -> Tensor:
    rows = torch.arange(len(anchors()[0]))
    return torch.where(rows % 7 == 0, 0, -1).expand(batch, -1)


class TestBoxes(BoxInvariants):
    name = "crosskd"
    other = {"align": False}
    variants = ({}, {"align": False})
    edges = False

    def features(self, batch: int, role: str, dtype: torch.dtype) -> Features:
        return {
            name: Levels.of([normal(batch, WIDTH, *size, name=f"{role}{name}").to(dtype) for size in SIZES])
            for name in TOWERS
        }

    def made(self, student: Features, teacher: Features, found: tuple[Tensor, Tensor], **options: Any) -> BoxBench:
        torch.manual_seed(0)
        head, given = Head(self.edges), assigned(len(found[0]))
        ops: dict[str, Any] = {
            "head": head,
            "cross_head": lambda model, cls, reg: model(cls, reg),
            "assigned": lambda model, batch, boxes: given,
        }
        return CrossBench(self.name, student, teacher, found, ops, **options)

    def test_gradients_and_determinism(self):
        """As of every method, but that answers of the teacher may be on a graph, for gradients through its head."""
        for options in self.variants:
            for batch in (3, 1):
                made = self.bench(batch=batch, **options)
                made.loss().backward()
                for leaf in made.student:
                    assert leaf.grad is not None
                    assert leaf.grad.isfinite().all()
                    assert leaf.grad.any()
                assert all(leaf.grad is None for leaf in made.teacher)
        check_deterministic(self.bench())

    @pytest.mark.parametrize("align", [True, False])
    def test_terms(self, align):
        made = self.bench(align=align)
        head: Any = made.cast.model("teacher")
        maps = [[Levels(values, SIZES).maps() for values in side] for side in (made.student, made.teacher)]
        if align:
            maps[0] = [[align_scale(s, t) for s, t in zip(*x, strict=True)] for x in zip(*maps, strict=True)]
        crossed, taught = (head(*side) for side in maps)
        positives = (assigned(3) >= 0).sum()
        wanted = taught["logits"].values.flatten(0, 1)
        weight = wanted.sigmoid().amax(1)
        expected = {"cls": quality_focal_loss(crossed["logits"].values.flatten(0, 1), wanted, positives)}
        if self.edges:
            laws = (found["edges"].values.reshape(-1, BINS) for found in (crossed, taught))
            expected["reg"] = weighted_mean(categorical_kl(*laws), weight.repeat_interleave(4))
        else:
            boxes, given = (found["boxes"].values.flatten(0, 1) for found in (crossed, taught))
            expected["reg"] = box_overlap_loss(boxes, given, weight, positives)
        found = made.checked()
        assert {n: t.item() for n, t in found.items()} == pytest.approx(
            {n: t.item() for n, t in expected.items()}, rel=1e-5
        )

    def test_nothing_is_left_where_student_and_teacher_are_the_same(self):
        same = self.features(2, "teacher", torch.float32)
        made = self.made(same, self.features(2, "teacher", torch.float32), truth(2))
        assert made.loss().item() == pytest.approx(0, abs=1e-4)

    def test_samples_that_are_not_distilled_have_no_part(self):
        made = self.bench(align=False)
        made.views["student"]["main"].distilled = torch.tensor([True, False, True])
        grads = torch.autograd.grad(made.loss(), made.student)
        assert all(bool(grad[0].any()) and not grad[1].any() for grad in grads)


class TestEdges(TestBoxes):
    edges = True


def test_heads_of_two_widths_are_one_line():
    student = {name: Levels(normal(2, 3, 10), ((2, 5),)) for name in TOWERS}
    teacher = {name: Levels(normal(2, 4, 10), ((2, 5),)) for name in TOWERS}
    with pytest.raises(KDBenchError, match="CrossKD: 'cls_tower' is 3 wide in the student and 4 in the teacher"):
        BoxBench("crosskd", student, teacher, truth(2))


def test_binds_and_weighs():
    with pytest.raises(KDBenchError, match="^CrossKD requires assigned, cross_head, which task toy lacks$"):
        bind(CrossKD, Boxed, PAIR)
    assert no_replay(CrossKD) == "it takes gradients through the teacher"
    assert yaml("crosskd")["weights"] == {"task": 1.0, "cls": 1.0, "reg": 1.0}
