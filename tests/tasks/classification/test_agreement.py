from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench.base.store import Store
from kdbench.task import Batch
from tasks.classification.agreement import Classes

IMAGES = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))


class Scaled(nn.Module):
    """A classifier with an option that is shown."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.sign = sign
        self.layer = nn.Linear(5, 4)

    def extra_repr(self) -> str:
        return f"sign={self.sign}"

    def forward(self, x: Tensor) -> Tensor:
        return self.sign * self.layer(x)


class Counted:
    """Test images, and how often they were read and how often a model ran on them."""

    def __init__(self) -> None:
        self.batches = self.runs = 0

    def __iter__(self) -> Iterator[Batch]:
        for rows in torch.arange(20).split(8):
            self.batches += 1
            yield Batch(IMAGES[rows], torch.zeros(len(rows), dtype=torch.long), rows)

    def predict(self, model: nn.Module, inputs: Any) -> Tensor:
        self.runs += 1
        return model(inputs).argmax(1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def nets(count: int) -> list[Scaled]:
    torch.manual_seed(0)
    made = [Scaled() for _ in range(count)]
    for net in made:
        net.eval()
    return made


def test_it_is_the_share_of_images_taken_for_the_same_class(store):
    teacher, student = nets(2)
    models = {"student": student, "teacher": teacher, "twin": teacher}
    found = Classes(store, "").agreement(models, Counted(), Counted().predict)
    same = (student(IMAGES).argmax(1) == teacher(IMAGES).argmax(1)).float().mean().item()
    assert found == {"student": pytest.approx(100 * same), "twin": 100.0}
    assert 0 < same < 1


def test_a_model_that_is_known_is_not_run_again(store):
    teacher, first, second = nets(3)
    classes, counted = Classes(store, ""), Counted()
    classes.agreement({"teacher": teacher, "student": first}, counted, counted.predict)
    assert (counted.batches, counted.runs) == (3, 6)
    again = classes.agreement({"teacher": copy.deepcopy(teacher), "student": second}, counted, counted.predict)
    assert (counted.batches, counted.runs) == (6, 9)
    assert again == classes.agreement({"teacher": teacher, "student": second}, (), counted.predict)


def test_whatever_may_change_the_classes_makes_another_model(store):
    (teacher,) = nets(1)
    moved, other_sign = copy.deepcopy(teacher), copy.deepcopy(teacher)
    moved.layer.bias.data += torch.tensor([0.1, 0, 0, 0])
    other_sign.sign = -1.0
    for model, images in ((teacher, "a"), (moved, "a"), (other_sign, "a"), (teacher, "b")):
        counted = Counted()
        Classes(store, images).agreement({"teacher": model}, counted, counted.predict)
        assert counted.runs == 3
