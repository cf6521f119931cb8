"""Capabilities of detectors that a task declares and does not keep."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench.base import rng
from kdbench.roles.sources import Network
from kdbench.training.promises import CHECKS
from tests.tasks.detection import tiny

TAPS = {f"{kind}_tower.{i}": f"bbox_head.{kind}_convs[-1]@{i}:input" for kind in ("cls", "reg") for i in range(1, 6)}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with rng.scope(0, "test"):
        return tiny.shaped().build(tiny.RETINANET).eval()


def complaint(
    capability: str, model: nn.Module, taps: Mapping[str, str] = TAPS, **ops: Callable[..., Any]
) -> str | None:
    """What is said of a task whose ops are other ones."""
    task, batch = tiny.shaped(), tiny.batch()
    own = {name: op for name, op in {**task.ops(), **ops}.items() if op is not None}
    seen: Any = SimpleNamespace(
        task=SimpleNamespace(ops=lambda: own),
        batch=batch,
        signals=SimpleNamespace(
            answer=lambda role: Network(task, model, taps).answer(batch),
            cast=SimpleNamespace(model=lambda role: model),
        ),
    )
    with torch.no_grad():
        return CHECKS[capability](seen)


@pytest.mark.parametrize("capability", ["boxes", "cross_head", "assigned"])
def test_what_is_kept_is_not_complained_of(model, capability):
    assert complaint(capability, model) is None
    absent: Any = {capability: None}
    assert complaint(capability, model, **absent) == f"ops() has no {capability!r}"


def given(boxes: Tensor, labels: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda batch: (boxes, labels)


GOOD = torch.tensor([0.0, 0, 5, 5]).expand(3, 2, 4)
LABELS = torch.zeros(3, 2, dtype=torch.long)


@pytest.mark.parametrize(
    ("capability", "op", "line"),
    [
        ("boxes", given(GOOD[0], LABELS), r"gives boxes \(2, 4\) torch.float32, expected floats \(3, M, 4\)"),
        ("boxes", given(GOOD, LABELS[:, :1]), r"gives classes \(3, 1\) torch.int64, expected integers \(3, 2\)"),
        ("boxes", given(GOOD.flip(2), LABELS), "gives a box whose right is not greater than its left"),
        (
            "assigned",
            lambda model, batch, boxes: torch.zeros(3, 5).long(),
            r"gives \(3, 5\) torch.int64, expected integers",
        ),
        ("assigned", lambda model, batch, boxes: torch.full((3, 1161), 9), "gives 9 to 9 for 3 boxes"),
        (
            "cross_head",
            lambda model, cls, reg: tiny.shaped().ops()["cross_head"](model, reg, cls),
            "of a network's own maps does not give its",
        ),
    ],
)
def test_what_is_not_kept(model, capability, op, line):
    changed: Any = {capability: op}
    found = complaint(capability, model, **changed)
    assert found is not None
    assert re.search(line, found), found


def test_maps_of_the_head_have_to_be_tapped(model):
    assert "describe() gives no Levels" in str(complaint("cross_head", model, taps={}))
