from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Grid, Logits
from kdbench.functional.cwd import channel_wise_loss
from kdbench.methods.cwd import CWD
from tests.dense import Dense
from tests.methods.harness import normal, yaml
from tests.methods.maps import PAIR, MapBench, MapInvariants, at_scores, labels
from tests.toy import Toy


class TestScores(MapInvariants):
    name = "cwd"
    other = {"temperature": 1.0}
    reads = (False, True)
    bindings = {"maps": "logits"}

    def test_is_the_loss_of_the_maps_where_they_count(self):
        made = self.bench()
        mask = at_scores(labels(3)) >= 0
        expected = channel_wise_loss(made.student[0], made.teacher[0], 4.0, mask)
        assert made.loss().item() == pytest.approx(expected.item(), rel=1e-6)
        assert not made.trainable()

    def test_other_places_of_the_class_axis(self):
        made, maps = self.bench(), {}
        for role, leaf in (("student", made.student[0]), ("teacher", made.teacher[0])):
            mask = at_scores(labels(3)) >= 0
            maps[role] = {"logits": Logits(leaf.detach().movedim(1, -1), mask=mask)}
        moved = MapBench("cwd", maps["student"], maps["teacher"], labels(3), bindings=self.bindings)
        torch.testing.assert_close(moved.loss(), made.loss())


class TestFeature(MapInvariants):
    """Bound to a feature, a 1x1 convolution brings the student to the teacher's width."""

    name = "cwd"
    other = {"temperature": 1.0}
    reads = (True, False)
    bindings = {"maps": "late"}
    autocast = True

    def test_is_the_loss_of_the_projected_grid(self):
        made = self.bench()
        assert set(made.trainable()) == {"projectors.0.weight"}
        expected = channel_wise_loss(made.method.projectors[0](made.student[0]), made.teacher[0], 4.0)
        assert made.loss().item() == pytest.approx(expected.item(), rel=1e-6)

    def test_equal_widths_and_other_sizes(self):
        values = normal(2, 3, 4, 4)
        same: dict[str, Any] = {"late": Grid(values)}
        made = MapBench("cwd", same, same, labels(2), bindings=self.bindings)
        assert not made.trainable()
        assert made.loss().item() == pytest.approx(0, abs=1e-6)
        larger: dict[str, Any] = {"late": Grid(values.repeat_interleave(2, 2))}
        assert MapBench("cwd", larger, same, labels(2), bindings=self.bindings).loss().item() == pytest.approx(
            0, abs=1e-6
        )


class TestLevels(MapInvariants):
    """Of several features it is the sum, each with a projector of its own."""

    name = "cwd"
    other = {"temperature": 1.0}
    reads = (True, False)
    bindings = {"maps": ["early", "late"]}
    autocast = True

    def test_is_the_sum(self):
        made = self.bench()
        assert set(made.trainable()) == {"projectors.0.weight", "projectors.1.weight"}
        pairs = zip(made.method.projectors, made.student, made.teacher, strict=True)
        expected = sum(channel_wise_loss(project(s), t, 4.0).item() for project, s, t in pairs)
        assert made.loss().item() == pytest.approx(expected, rel=1e-6)


class Pyramid(Toy):
    capabilities = Toy.capabilities | {"pyramid"}


def test_binds_to_the_class_scores_of_dense_tasks_to_all_levels_of_a_pyramid_and_else_to_the_deepest_grid():
    assert bind(CWD, Dense, PAIR) == {"maps": "logits"}
    assert bind(CWD, Dense, PAIR, {"maps": "body"}) == {"maps": "body"}
    assert bind(CWD, Pyramid, PAIR) == {"maps": ["stem", "body"]}
    assert bind(CWD, Toy, PAIR) == {"maps": "body"}


def test_bad_options_and_published_values():
    with pytest.raises(KDBenchError, match=r"method.temperature: found 0.0; input should be greater than 0"):
        TestScores().bench(temperature=0.0)
    assert (yaml("cwd")["temperature"], yaml("cwd")["weights"]["cwd"]) == (4.0, 3.0)
