"""What methods that compare the logits of two softmax heads share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Logits
from kdbench.plugin import Method
from tests.methods.harness import Bench, Invariants, normal, yaml
from tests.toy import Toy


class Weighed(Bench):
    """A bench whose loss is the sum of the terms under the weights of the YAML file, warmed up."""

    def loss(self, step: int = 0) -> Tensor:
        terms, weights = self.checked(step), yaml(self.name)["weights"]
        full = {name: w["value"] if isinstance(w, dict) else w for name, w in weights.items()}
        return torch.stack([full[name] * value for name, value in terms.items()]).sum()


class SoftmaxInvariants(Invariants):
    """Tests of a method on the logits of two heads of five classes.

    Attributes:
        method: The class of the method.
        made_by: The kind of its bench.
        labels: Whether the true classes are known.
        positive: An option that must be above zero.
    """

    method: type[Method]
    made_by: type[Bench] = Bench
    labels = False
    positive = "temperature"

    def bench(
        self, batch: int = 6, dtype: torch.dtype = torch.float32, law: Any = "categorical", **options: Any
    ) -> Bench:
        target = torch.arange(batch) % 5 if self.labels else None
        student, teacher = (
            Logits((3 * normal(batch, 5, name=n)).to(dtype), law=law, target=target) for n in ("s", "t")
        )
        return self.made_by(self.name, {"logits": student}, {"logits": teacher}, **options)

    def at_the_teacher(self, values: Tensor) -> float:
        """The loss where student and teacher give the same logits."""
        same = Logits(values, target=torch.arange(len(values)) if self.labels else None)
        return self.made_by(self.name, {"logits": same}, {"logits": same}).loss().item()

    def masked(self) -> tuple[Bench, list[Tensor], Tensor]:
        """A bench on two samples of three rows, of which some are masked and one weighs nothing.

        Returns:
            The bench; logits of student and teacher and, where known, classes of the rows that weigh; their weights.
        """
        mask = torch.tensor([[True, True, False], [False, True, False]])
        weight = torch.tensor([[1.0, 2.0, 9.0], [9.0, 0.0, 9.0]])
        target = torch.tensor([[4, 1, 0], [0, 2, 0]]) if self.labels else None
        given = [3 * normal(2, 3, 5, name=name) for name in ("s", "t")]
        student, teacher = (Logits(v, mask=mask, weight=weight, target=target) for v in given)
        rows = [tensor[0, :2] for tensor in (*given, target) if tensor is not None]
        return self.made_by(self.name, {"logits": student}, {"logits": teacher}), rows, weight[0, :2]

    def test_binds_to_the_logits_of_a_softmax_head(self):
        side = {"taps": {"body": "body"}}
        assert bind(self.method, Toy, {"name": "toy", "student": side, "teacher": side}) == {"logits": "logits"}
        assert "single_label" in self.method.requires
        line = f"^{self.method.__name__} compares softmax distributions: found law='bernoulli'"
        with pytest.raises(KDBenchError, match=line):
            self.bench(law="bernoulli").loss()

    def test_bad_options_are_one_line(self):
        line = rf"method.{self.positive}: found 0.0; input should be greater than 0"
        options: dict[str, Any] = {self.positive: 0.0}
        with pytest.raises(KDBenchError, match=line):
            self.bench(**options)


class LabelledInvariants(SoftmaxInvariants):
    """Tests of a method that also reads the true class of each row."""

    labels = True

    def test_the_true_class_must_be_known(self):
        logits = Logits(normal(4, 5))
        with pytest.raises(KDBenchError, match="the true class of each row is not known here"):
            Bench(self.name, {"logits": logits}, {"logits": logits}).terms()
