from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.functional.fgfi import imitated_anchors, imitation_loss
from kdbench.methods.fgfi import FGFI
from tests.methods.boxes import (
    LEVELS,
    PAIR,
    SHAPES,
    SIZES,
    BoxBench,
    Boxed,
    BoxInvariants,
    anchors,
    grids,
    predicted,
    truth,
)
from tests.methods.harness import Features, yaml


class TestFGFI(BoxInvariants):
    name = "fgfi"
    other = {"share": 0.9, "relu": True}
    autocast = True

    def features(self, batch: int, role: str, dtype: torch.dtype) -> Features:
        found = grids(batch, role, dtype)
        return {**found, "boxes": predicted(batch, role, dtype)} if role == "student" else found

    def made(self, student: Features, teacher: Features, found: tuple[Tensor, Tensor], **options: Any) -> BoxBench:
        made = super().made(student, teacher, found, **options)
        made.student.pop()  # boxes are read for where they start
        return made

    def test_is_the_loss_in_the_cells_of_near_anchors(self):
        made, (start, level) = self.bench(), anchors()
        near = imitated_anchors(*truth(3), start)
        cells = [near[:, level == i].view(3, *size, len(SHAPES)).any(3) for i, size in enumerate(SIZES)]
        adapted = [adapt(s) for adapt, s in zip(made.method.adapt, made.student, strict=True)]
        assert made.loss().item() == pytest.approx(imitation_loss(adapted, made.teacher, cells).item(), rel=1e-5)
        assert {p.shape[2:] for n, p in made.trainable().items() if "weight" in n} == {(3, 3)}
        assert sum(mask.sum().item() for mask in cells) > 3

    def test_as_many_grids_as_levels(self):
        student, teacher = (self.features(2, role, torch.float32) for role in ("student", "teacher"))
        with pytest.raises(KDBenchError, match="FGFI: found 1 grids and anchors of 2 levels, expected as many"):
            BoxBench("fgfi", student, teacher, truth(2), bindings={"stages": LEVELS[:1]})


def test_binds_and_weighs():
    with pytest.raises(KDBenchError, match=r"^FGFI needs Boxes \('boxes'\), which task toy with pair toy"):
        bind(FGFI, Boxed, PAIR)
    assert yaml("fgfi")["weights"] == {"task": 1.0, "imitation": 0.01}
