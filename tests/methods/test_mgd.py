from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Grid
from kdbench.functional.mgd import mgd_loss
from kdbench.functional.pool import average_pool
from kdbench.methods.mgd import MGD
from tests.methods.harness import Bench, check_deterministic, check_gradients, differ, knobs, normal, yaml
from tests.toy import Toy

OTHER: dict[str, Any] = {"ratio": 0.6, "mask": "positions"}


def bench(student: tuple[int, ...] = (3, 4, 4, 4), teacher: tuple[int, ...] = (3, 8, 4, 4), **options: Any) -> Bench:
    grids = [Grid(normal(*shape, name=n)) for shape, n in ((student, "s"), (teacher, "t"))]
    return Bench("mgd", {"feature": grids[0]}, {"feature": grids[1]}, **options)


def test_binds_to_the_deepest_grid():
    side = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}}
    assert bind(MGD, Toy, {"name": "toy", "student": side, "teacher": side}) == {"feature": "body"}


def test_published_setting():
    assert (yaml("mgd")["ratio"], yaml("mgd")["weights"]) == (0.15, {"task": 1.0, "mgd": 7e-5})


@pytest.mark.parametrize("mask", ["channels", "positions"])
def test_gradients_and_determinism(mask):
    check_gradients(bench(mask=mask))
    check_gradients(bench((1, 4, 4, 4), (1, 8, 4, 4), mask=mask))
    check_gradients(bench((2, 8, 6), (2, 8, 3), mask=mask))
    check_gradients(bench((2, 4, 2, 3, 4), (2, 8, 2, 3, 4), mask=mask))
    check_deterministic(bench(mask=mask))


@pytest.mark.parametrize("knob", knobs("mgd"))
def test_every_knob_counts(knob):
    assert differ(bench(ratio=0.4).outcome(), bench(**{"ratio": 0.4, knob: OTHER[knob]}).outcome())


def test_masks_change_from_step_to_step():
    made = bench(ratio=0.5)
    assert made.loss(0) == made.loss(0)
    assert len({made.loss(step).item() for step in range(4)}) == 4


def test_equation_without_a_mask():
    """Two convolutions of size 3 with a ReLU between, after one of size 1, in float64 from the parameters."""
    made = bench(ratio=0.0)
    method: Any = made.method
    (align,), ((first, _, second),) = method.align, method.generate
    values, target = (leaf.double() for leaf in (made.student[0], made.teacher[0]))
    aligned = torch.einsum("bchw,kc->bkhw", values, align.weight.flatten(1).double()) + align.bias[:, None, None]

    def conv3(x: torch.Tensor, layer: Any) -> torch.Tensor:
        x, out = nn.functional.pad(x, (1, 1, 1, 1)), torch.zeros(())
        for i in range(3):
            for j in range(3):
                out = out + torch.einsum(
                    "bchw,kc->bkhw", x[:, :, i : i + 4, j : j + 4], layer.weight[..., i, j].double()
                )
        return out + layer.bias[:, None, None]

    expected = (conv3(conv3(aligned, first).clamp_min(0), second) - target).square().sum() / 3
    assert made.loss().item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("mask", "dims"), [("channels", (2, 3)), ("positions", (1,))])
def test_a_mask_takes_whole_channels_or_whole_positions_of_the_aligned_feature(mask, dims):
    made = bench((2, 8, 6, 6), (2, 8, 6, 6), ratio=0.5, mask=mask)
    assert isinstance(made.method.align[0], nn.Identity)
    seen = made.gradients()["student.0"] != 0
    share = seen.any(dims).float().mean()
    assert 0.2 < share < 0.8
    assert torch.equal(seen.any(dims), seen.all(dims))


def test_maps_of_different_sizes_are_pooled_to_the_smaller():
    made = bench((2, 4, 6, 4), (2, 8, 3, 8), ratio=0.0)
    made.method.eval()
    generated = made.method.generate[0](made.method.align[0](average_pool(made.student[0], (3, 4))))
    expected = mgd_loss(generated, average_pool(made.teacher[0], (3, 4)))
    assert made.loss().item() == pytest.approx(expected.item(), rel=1e-6)


def test_zero_where_the_block_gives_the_teacher():
    made = bench((2, 8, 4, 4), (2, 8, 4, 4), ratio=0.0)
    with torch.no_grad():
        made.teacher[0].copy_(made.method.generate[0](made.student[0]))
    assert made.loss().item() == 0


def test_each_level_of_a_pyramid_has_a_block_of_its_own_and_they_add_up():
    grids = {r: {n: Grid(normal(2, 3, k, k, name=r + n)) for n, k in (("p3", 4), ("p4", 2))} for r in "st"}
    both = Bench("mgd", grids["s"], grids["t"], {"feature": ["p3", "p4"]}, ratio=0.0)
    check_gradients(both)
    blocks = zip(both.method.generate, both.student, both.teacher, strict=True)
    expected = sum(mgd_loss(generate(s), t).item() for generate, s, t in blocks)
    assert both.loss().item() == pytest.approx(expected, rel=1e-6)


def test_the_masks_of_two_levels_differ():
    student, teacher = ({name: Grid(normal(2, 64, 3, 3)) for name in ("p3", "p4")} for _ in range(2))
    made = Bench("mgd", student, teacher, {"feature": ["p3", "p4"]}, ratio=0.5)
    seen = [made.gradients()[f"student.{i}"].flatten(2).any(2) for i in range(2)]
    assert not torch.equal(*seen)


def test_empty_batch_and_low_precision():
    empty = bench((0, 4, 4, 4), (0, 8, 4, 4))
    assert empty.loss() == 0
    assert empty.loss().requires_grad
    low = bench()
    for leaf in (*low.student, *low.teacher):
        leaf.data = leaf.data.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert low.loss().item() == pytest.approx(bench().loss().item(), rel=0.05)


def test_bad_options_are_one_line():
    with pytest.raises(KDBenchError, match=r"method.ratio: found 1.0; input should be less than 1"):
        bench(ratio=1.0)
    with pytest.raises(KDBenchError, match=r"method.mask: found 'pixels'"):
        bench(mask="pixels")
