from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kdbench.configuration.compat import bind
from kdbench.features import Logits, Tokens
from kdbench.methods.distilbert import DistilBERT
from tests.methods.harness import Invariants, normal
from tests.methods.softmax import Weighed
from tests.methods.words import CLASSES, LENGTH, mask
from tests.toy import Toy


class TestDistilBERT(Invariants):
    name, autocast = "distilbert", True
    other = {"temperature": 4.0}

    def bench(self, batch: int = 3, dtype: torch.dtype = torch.float32, width: int = 4, **options: Any) -> Weighed:
        sides = [
            {
                "logits": Logits((3 * normal(batch, CLASSES, name=name)).to(dtype)),
                "hidden": Tokens(normal(batch, LENGTH, size, name=name).to(dtype), mask=mask(batch)),
            }
            for name, size in (("s", width), ("t", 8))
        ]
        return Weighed("distilbert", sides[0], sides[1], **options)

    def test_is_the_cosine_at_words(self):
        made, there = self.bench(), mask(3)
        rows = made.method.project(made.student[1][there]), made.teacher[1][there]
        expected = (1 - F.cosine_similarity(*rows)).mean()
        torch.testing.assert_close(made.terms()["cosine"], expected)
        assert not self.bench(width=8).trainable()

    def test_padding_does_not_count(self):
        made, other = self.bench(), self.bench()
        other.student[1].data[~mask(3)] = 9.0
        assert made.loss().item() == pytest.approx(other.loss().item())


def test_binds_to_the_deepest_tokens():
    side = {"taps": {"tokens": "body"}, "kinds": {}}
    assert DistilBERT.needs[1].kind is Tokens
    with pytest.raises(Exception, match="DistilBERT needs Tokens"):
        bind(DistilBERT, Toy, {"name": "toy", "student": side, "teacher": side})
