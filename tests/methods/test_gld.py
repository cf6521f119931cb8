from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.features import Logits
from kdbench.functional.gld import graph_logits_loss
from tests.methods.harness import Bench, Invariants, normal, yaml


class Both(Bench):
    """The sum of the terms under the weights of the YAML file."""

    def loss(self, step: int = 0) -> Tensor:
        weights = yaml("gld")["weights"]
        return torch.stack([weights[name] * value for name, value in self.checked(step).items()]).sum()


class TestGLD(Invariants):
    name = "gld"
    other = {"top": 2}

    def bench(self, batch: int = 4, dtype: torch.dtype = torch.float32, **options: Any) -> Bench:
        student, teacher = (Logits((3 * normal(batch, 3, size, name=n)).to(dtype)) for n, size in (("s", 5), ("t", 7)))
        return Both("gld", {"logits": student}, {"logits": teacher}, **options)

    def test_a_graph_for_each_sample(self):
        made = self.bench()
        owner = torch.arange(4).repeat_interleave(3)
        rows = made.student[0].flatten(0, 1), made.teacher[0].flatten(0, 1)
        expected = graph_logits_loss(*rows, owner, owner, 4)
        assert made.terms()["gld"].item() == pytest.approx(expected.item(), rel=1e-5)
