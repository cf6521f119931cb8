from __future__ import annotations

import pytest

from kdbench.configuration.compat import bind
from kdbench.functional.dsd import category_similarity_loss, pixel_similarity_loss
from kdbench.methods.dsd import DSD
from tests.dense import Dense
from tests.methods.harness import yaml
from tests.methods.maps import PAIR, STAGES, MapInvariants, at_scores, labels


class TestDSD(MapInvariants):
    name = "dsd"
    other = {"layers": 1, "temperature": 1.0}
    bindings = {"stages": STAGES}

    @pytest.mark.parametrize("layers", [1, 2, 7])
    def test_layers_are_the_deepest_and_the_scores(self, layers):
        made = self.bench(layers=layers)
        terms = made.checked()
        used = slice(-min(layers, 2) - 1, None)
        expected = pixel_similarity_loss(made.student[used], made.teacher[used])
        assert terms["psd"].item() == pytest.approx(expected.item(), rel=1e-6)
        mask = at_scores(labels(3)) >= 0
        csd = category_similarity_loss(made.student[-1], made.teacher[-1], 4.0, mask)
        assert terms["csd"].item() == pytest.approx(csd.item(), rel=1e-6)


def test_binds_and_weighs():
    assert bind(DSD, Dense, PAIR) == {"stages": ["stem", "body"], "logits": "logits"}
    assert yaml("dsd")["weights"] == {"task": 1.0, "psd": 1000.0, "csd": 10.0}
    assert DSD.fidelity == "approximate"
