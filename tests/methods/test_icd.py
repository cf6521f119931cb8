from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Grid, Logits
from kdbench.methods.icd import ICD
from tests.methods.boxes import CLASSES, LEVELS, PAIR, BoxBench, Boxed, BoxInvariants, grids, truth
from tests.methods.harness import Features, normal, yaml


class TestICD(BoxInvariants):
    name = "icd"
    other = {"heads": 3, "negatives": 2}
    autocast = True

    def features(self, batch: int, role: str, dtype: torch.dtype) -> Features:
        found = grids(batch, role, dtype)
        return {**found, "logits": Logits(normal(batch, 5, CLASSES))} if role == "student" else found

    def made(self, student: Features, teacher: Features, found: tuple[Tensor, Tensor], **options: Any) -> BoxBench:
        made = super().made(student, teacher, found, **{"heads": 2, **options})
        made.student.pop()  # class scores are read for their number
        return made

    def test_the_decoder_trains_by_its_own_terms_and_the_student_by_what_it_attends_to(self):
        made = self.bench()
        terms, trained = made.checked(), made.trainable()
        inputs = {f"student.{i}": leaf for i, leaf in enumerate(made.student)} | trained
        for name, value in terms.items():
            grads = torch.autograd.grad(value, list(inputs.values()), retain_graph=True, allow_unused=True)
            reached = {n for n, grad in zip(inputs, grads, strict=True) if grad is not None and grad.any()}
            mine = {n for n in inputs if n.startswith(("student.", "value."))}
            assert reached <= mine if name == "icd" else not reached & mine, name

    def test_instances_differ_from_step_to_step(self):
        made = self.bench()
        assert torch.equal(made.checked(0)["identify"], made.checked(0)["identify"])
        assert not torch.equal(made.checked(0)["identify"], made.checked(1)["identify"])

    def test_made_up_instances(self):
        method: Any = self.bench().method
        (boxes, labels), extent = truth(3), torch.tensor([48.0, 32.0])
        context: Any = type("Context", (), {"generator": lambda self, *n: torch.Generator().manual_seed(1)})()
        shares, classes, there = method._instances(boxes, labels, extent, context)
        true = labels >= 0
        torch.testing.assert_close(shares[:, :3][true] * extent.repeat(2), boxes[true])
        assert torch.equal(classes[:, :3][true], labels[true])
        assert there[:, 4:].sum(1).tolist() == [1, *(5 * true.sum(1))[1:].tolist()]
        assert bool((shares >= 0).all() and (shares <= 48).all())
        assert bool((shares[:, 4:, 2:] > shares[:, 4:, :2]).all())

    def test_bad_widths_are_one_line(self):
        with pytest.raises(KDBenchError, match="method.heads=4: expected a divisor of the teacher's width 6"):
            self.bench(heads=4)
        two = {"p3": Grid(normal(2, 4, 2, 2), stride=(8, 8)), "p4": Grid(normal(2, 6, 1, 1), stride=(16, 16))}
        student: dict[str, Any] = {**two, "logits": Logits(normal(2, 5, CLASSES))}
        with pytest.raises(KDBenchError, match="ICD: found levels of the widths"):
            BoxBench("icd", student, dict(two), truth(2), bindings={"stages": LEVELS})


def test_binds_and_weighs():
    assert bind(ICD, Boxed, PAIR) == {"stages": ["stem", "body"], "logits": "logits"}
    assert yaml("icd")["weights"] == {"task": 1.0, "identify": 1.0, "localise": 1.0, "icd": 8.0}
    assert ICD.fidelity == "approximate"
