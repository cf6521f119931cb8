"""What methods that hold two laws against each other share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.configuration.compat import bind
from kdbench.features import Logits
from kdbench.plugin import Method
from tests.methods.harness import Bench, Invariants, normal
from tests.toy import Toy


class LawInvariants(Invariants):
    """Tests of a method on the logits of two heads of five classes.

    Attributes:
        method: The class of the method.
        loss: What it is of the rows of both.
        sigmoid: Whether it serves sigmoid heads.
    """

    method: type[Method]
    loss: Callable[..., Tensor]
    sigmoid = True

    def bench(
        self, batch: int = 6, dtype: torch.dtype = torch.float32, law: Any = "categorical", **options: Any
    ) -> Bench:
        student, teacher = (Logits((3 * normal(batch, 5, name=n)).to(dtype), law=law) for n in ("s", "t"))
        return Bench(self.name, {"logits": student}, {"logits": teacher}, **options)

    def test_binds_to_the_logits(self):
        side = {"taps": {"body": "body"}}
        assert bind(self.method, Toy, {"name": "toy", "student": side, "teacher": side}) == {"logits": "logits"}

    def test_is_the_loss_of_the_rows(self):
        for law in ("categorical", *(["bernoulli"] if self.sigmoid else [])):
            made = self.bench(law=law)
            expected = type(self).loss(made.student[0], made.teacher[0], law=law)
            assert made.loss().item() == pytest.approx(expected.item())

    def test_masked_tokens_do_not_count_and_weights_do(self):
        mask = torch.tensor([[True, True, False], [False, False, False]])
        weight = torch.tensor([[1.0, 2.0, 9.0], [9.0, 9.0, 9.0]])
        given = [3 * normal(2, 3, 5, name=name) for name in ("s", "t")]
        student, teacher = (Logits(v, mask=mask, weight=weight) for v in given)
        found = Bench(self.name, {"logits": student}, {"logits": teacher}).loss()
        expected = type(self).loss(*(v[0, :2] for v in given), weight=weight[0, :2])
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        nothing = [Logits(v, mask=torch.zeros_like(mask)) for v in given]
        assert Bench(self.name, {"logits": nothing[0]}, {"logits": nothing[1]}).loss() == 0
