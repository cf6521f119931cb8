from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.task import Batch
from tests.augment.harness import augmentation, context, images, read


def drawn(**options: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    plugin, _ = augmentation("polarmix", **options)
    seen: dict[str, torch.Tensor] = {}

    def swap(batch: Batch, order: torch.Tensor, start: torch.Tensor, width: torch.Tensor) -> Batch:
        seen.update(order=order, start=start, width=width)
        return batch.with_inputs(batch.inputs)

    def paste(batch: Batch, source: Batch, order: torch.Tensor, turns: torch.Tensor, pasted: torch.Tensor) -> Batch:
        assert source is not batch
        assert torch.equal(order, seen["order"])
        seen.update(turns=turns, pasted=pasted)
        return batch.with_inputs(batch.inputs)

    plugin.ops = {"swap_sectors": swap, "paste_instances": paste}
    return plugin, seen


def test_a_portion_of_the_scans_has_a_sector():
    plugin, seen = drawn(portion=0.25, width=0.4)
    plugin.change(images(4000, (1,)), rng.generator(0))
    assert seen["width"].unique().tolist() == pytest.approx([0.0, 0.4])
    assert float((seen["width"] > 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert float(seen["start"].mean()) == pytest.approx(0.5, abs=0.03)
    assert sorted(seen["order"].tolist()) == list(range(4000))


def test_objects_are_pasted_into_a_share_of_the_scans_in_turns_of_parts_of_their_own():
    plugin, seen = drawn(paste=0.25, copies=3)
    plugin.change(images(4000, (1,)), rng.generator(0))
    assert float(seen["pasted"].float().mean()) == pytest.approx(0.25, abs=0.03)
    turns = seen["turns"]
    assert turns.shape == (4000, 3)
    assert not turns[:, 0].any()
    assert bool(((turns[:, 1] >= 0) & (turns[:, 1] < 1 / 3) & (turns[:, 2] >= 1 / 3) & (turns[:, 2] < 2 / 3)).all())
    assert turns[:, 1:].mean(0).tolist() == pytest.approx([1 / 6, 1 / 2], abs=0.02)


def test_without_pasting_a_task_need_not_know_how():
    plugin, seen = drawn(paste=0)
    plugin.change(images(5), rng.generator(0))
    assert "turns" not in seen
    ops = SimpleNamespace(ops=lambda: {"swap_sectors": None}, name="mine")
    probe: Any = SimpleNamespace(cast=SimpleNamespace(task=ops))
    plugin.build(probe)
    other, _ = augmentation("polarmix")
    with pytest.raises(KDBenchError, match=r"augment\.paste=1: the task 'mine' does not say how objects are pasted"):
        other.build(probe)


def test_roles_read_the_same_scans_and_the_step_names_them():
    plugin, seen = drawn()
    batch = images(5)
    views = plugin.views(read(batch), context())
    assert views["student"]["main"] is views["teacher"]["main"] is not batch
    first = {name: value.clone() for name, value in seen.items()}
    plugin.views(read(batch), context())
    assert all(torch.equal(first[name], value) for name, value in seen.items())


def test_one_scan_is_its_own_partner():
    plugin, seen = drawn()
    plugin.change(images(1), rng.generator(0))
    assert seen["order"].tolist() == [0]


@pytest.mark.parametrize(
    "option", [{"portion": 1.1}, {"width": 0}, {"width": 1.5}, {"paste": -0.1}, {"paste": 2}, {"copies": 0}]
)
def test_an_option_out_of_its_range_is_one_line(option):
    with pytest.raises(KDBenchError, match=r"augment\.(portion|width|paste|copies): found .*; input should be"):
        augmentation("polarmix", **option)
