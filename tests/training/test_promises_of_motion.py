"""What a task declares of moving and recolouring its samples, and does not keep, is one line before anything trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from kdbench.errors import KDBenchError
from kdbench.task import Warp
from kdbench.training.fit import Training
from kdbench.training.promises import check_promises
from tasks import warping
from tests.augment.test_hard import Grey, Movable, hard_recipe
from tests.toy import teacher_file


class Drawn(Movable):
    def picture(self, *_: Any) -> Image.Image:
        return Image.new("RGB", (8, 8))


def check(folder: Any, name: str, **ops: Any) -> None:
    class Changed(Drawn):
        def ops(self) -> Mapping[str, Any]:
            found = {**super().ops(), **ops}
            return {key: value for key, value in found.items() if value is not None}

    made = Training(hard_recipe(name), Changed(), {"teacher": teacher_file(folder)})
    batch = made.first_batch()
    # As pixels are: the toy's patterns go beyond 0 to 1 in places.
    check_promises(made, replace(batch, inputs=Grey().normalise(Grey().unit(batch.inputs))))


@pytest.mark.parametrize("name", ["hard_affine", "hard_thinplate", "hard_color"])
def test_a_task_that_keeps_them_is_taken(tmp_path, name):
    check(tmp_path, name)


def moved(batch, by):
    return warping.affine(warping.deform_images)(batch, by + 0.2)


def off(batch, source):
    return moved(batch, source(torch.zeros(1, 2))[:, 0, :1] * torch.ones(6))


def still(batch, by):
    return batch.with_inputs(batch.inputs + 0 * by.sum().detach()), lambda feature: feature


BROKEN: dict[str, tuple[str, dict[str, Any], str]] = {
    "no warp": ("hard_affine", {"warp": None}, "ops() has no 'warp' of the class Warp"),
    "a function": ("hard_affine", {"warp": moved}, "ops() has no 'warp' of the class Warp"),
    "moves at zero": ("hard_affine", {"warp": Warp(warping.AFFINE, moved)}, "ops()['warp'] with zeros changes"),
    "no gradient": ("hard_affine", {"warp": Warp(warping.AFFINE, still)}, "no gradient of class scores reaches"),
    "no deform": ("hard_thinplate", {"deform": None}, "ops() has no 'deform'"),
    "deforms at zero": ("hard_thinplate", {"deform": off}, "ops()['deform'] with zeros changes"),
    "no pixels": ("hard_color", {"to_pixels": None}, "ops() has no 'to_pixels'"),
    "beyond 1": ("hard_color", {"to_pixels": lambda x: x}, "expected 0 to 1"),
    "not back": ("hard_color", {"to_inputs": lambda x: 2 * x}, "ops()['to_inputs'] of the pixels of inputs does not"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_not_kept_is_one_line(tmp_path, case):
    name, ops, line = BROKEN[case]
    with pytest.raises(KDBenchError) as caught:
        check(tmp_path, name, **ops)
    assert line in str(caught.value)
    assert str(caught.value).startswith("task toy: it declares the capability")
