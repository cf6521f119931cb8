from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.configuration.compat import bind
from kdbench.features import Grid
from kdbench.functional.cirkd import cross_image_loss, memory_loss
from kdbench.functional.kd import kd_loss
from kdbench.functional.numerics import unit
from kdbench.methods.cirkd import CIRKD
from kdbench.needs import State
from kdbench.signals import Context
from tests.dense import Dense
from tests.methods.harness import Features, normal, yaml
from tests.methods.maps import CLASSES, PAIR, MapBench, MapInvariants, at_scores, labels, scores, trained

SMALL: dict[str, Any] = {"pixel_memory": 40, "region_memory": 6, "pixels": 12, "regions": 8}


def step(made: MapBench, number: int = 0) -> dict[str, Tensor]:
    """One training step without an optimizer."""
    terms = made.checked(number)
    with torch.no_grad():
        made.method.after_step(made.signals(number), State(0, number, 0.0))
    return terms


def state(made: MapBench) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in made.method.named_buffers()}


class TestCIRKD(MapInvariants):
    name = "cirkd"
    other = {"temperature": 0.5, "pixel_memory": 30, "region_memory": 5, "pixels": 30, "regions": 20, "pool": 2}
    apart = ("stored", "faithful")
    bindings = {"feature": "late"}
    autocast = True

    def bench(self, batch: int = 3, dtype: torch.dtype = torch.float32, **options: Any) -> MapBench:
        return super().bench(batch, dtype, **{**SMALL, **options})

    def test_terms(self):
        made = self.bench(pixels=10**6, regions=10**6)
        (feature, s), (taught, t) = made.student, made.teacher
        before, found = state(made), at_scores(labels(3))
        terms = made.checked()
        assert terms["batch"].item() == pytest.approx(cross_image_loss(feature, taught).item(), rel=1e-6)
        mine, theirs = (z.movedim(1, -1)[found >= 0] for z in (s, t))
        assert terms["kd"].item() == pytest.approx(kd_loss(mine, theirs, 1.0).item(), rel=1e-6)
        projected = made.method.head(feature)
        mine, theirs = (unit(z).movedim(1, -1)[found >= 0] for z in (projected, taught))
        for name in ("pixel", "region"):
            expected = memory_loss(mine, theirs, before[f"{name}_queue"].flatten(0, 1))
            assert terms[name].item() == pytest.approx(expected.item(), rel=1e-4)

    def test_as_many_entries_of_every_class_are_compared(self):
        made = self.bench()
        made.method.pixel_queue.copy_(torch.arange(CLASSES).view(-1, 1, 1).expand_as(made.method.pixel_queue))
        drawn = made.method._drawn("pixel", Context(State(0, 3, 0.0), 0))
        assert drawn[:, 0].unique(return_counts=True)[1].tolist() == [12 // CLASSES + 1] * CLASSES

    @pytest.mark.parametrize("faithful", ["paper", "code"])
    def test_memories_take_in_regions_and_pixels_after_the_step(self, faithful):
        made = self.bench(faithful=faithful, stored=2)
        before, found, taught = state(made), at_scores(labels(3)), unit(made.teacher[0])
        step(made)
        after = state(made)
        for k in range(CLASSES):
            inside = [found[b] == k for b in range(3) if (found[b] == k).any()]
            centres = [unit(taught[b][:, found[b] == k].mean(1), dim=0) for b in range(3) if (found[b] == k).any()]
            assert int(after["region_start"][k]) == len(centres)
            torch.testing.assert_close(after["region_queue"][k, : len(centres)], torch.stack(centres))
            count = sum(min(2, int(mask.sum())) for mask in inside)
            assert int(after["pixel_start"][k]) == count
            assert torch.equal(after["pixel_queue"][k, count:], before["pixel_queue"][k, count:])
            for row in after["pixel_queue"][k, :count]:
                place = (taught.movedim(1, -1) - row).norm(dim=-1).argmin()
                assert (taught.movedim(1, -1).flatten(0, 2)[place] - row).norm() < 1e-5
                cells = place % found[0].numel()
                if faithful == "paper":
                    assert found.flatten()[place] == k
                else:
                    assert cells < max(int(mask.sum()) for mask in inside)
        assert made.checked(1)["region"] != made.checked(0)["region"]

    def test_a_rehearsal_leaves_no_trace(self):
        made = self.bench()
        before = state(made)
        made.method.eval()
        step(made)
        made.method.train()
        made.method.after_step(made.signals(), State(0, 1, 0.0))  # no step was taken
        assert all(torch.equal(before[n], b) for n, b in state(made).items())

    def test_places_are_as_coarse_as_asked_for(self):
        made, found = self.bench(pool=2, pixels=10**6), labels(3)[:, 2::4, 2::4]
        mine, theirs = (torch.nn.functional.avg_pool2d(x[0], 2) for x in (made.student, made.teacher))
        assert made.checked()["batch"].item() == pytest.approx(cross_image_loss(mine, theirs).item(), rel=1e-6)
        rows, taught = (unit(z).movedim(1, -1)[found >= 0] for z in (made.method.head(mine), theirs))
        expected = memory_loss(rows, taught, made.method.pixel_queue.flatten(0, 1))
        assert made.checked()["pixel"].item() == pytest.approx(expected.item(), rel=1e-4)

    def test_large_grids_are_averaged_before_a_batch_is_compared(self, monkeypatch):
        monkeypatch.setattr("kdbench.methods.cirkd.LARGE", 6)
        made = self.bench()
        assert made.checked()["batch"] != cross_image_loss(made.student[0], made.teacher[0])
        square = {"logits": scores(2, "student"), "late": Grid(normal(2, 3, 8, 8))}
        taught: Features = {"logits": scores(2, "teacher"), "late": Grid(normal(2, 4, 8, 8))}
        made = MapBench("cirkd", square, taught, labels(2), bindings=self.bindings, **SMALL)
        mine, theirs = (torch.nn.functional.avg_pool2d(x[1], 4) for x in (made.student, made.teacher))
        assert made.checked()["batch"].item() == pytest.approx(cross_image_loss(mine, theirs).item(), rel=1e-6)


def test_binds_and_weighs():
    assert bind(CIRKD, Dense, PAIR) == {"feature": "body", "logits": "logits"}
    weights = {"task": 1.0, "kd": 1.0, "batch": 1.0, "pixel": 0.1, "region": 0.1}
    assert yaml("cirkd")["weights"] == weights
    assert (yaml("cirkd")["pixel_memory"], yaml("cirkd")["region_memory"]) == (20000, 2000)


def test_memories_fill_in_a_training(tmp_path):
    made, manifest = trained(tmp_path, "cirkd", *(f"method.{key}={value}" for key, value in SMALL.items()))
    assert manifest["terms"].keys() == {"task", "kd", "batch", "pixel", "region"}
    assert made.plugins["method"].region_start.any()
