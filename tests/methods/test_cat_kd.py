from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Grid
from kdbench.functional.cat_kd import class_activation_maps, class_attention_loss
from kdbench.methods.cat_kd import CATKD
from tests.methods.harness import check_deterministic, check_gradients, differ, knobs, normal, yaml
from tests.methods.test_simkd import ClassifiedBench
from tests.toy import Toy

OTHER: dict[str, Any] = {"resolution": 3, "normalize": False}


def bench(
    batch: int = 3, space: tuple[int, ...] = (4, 5), dtype: torch.dtype = torch.float32, **options: Any
) -> ClassifiedBench:
    grids = [Grid(normal(batch, c, *space, name=n).to(dtype)) for c, n in ((4, "s"), (8, "t"))]
    return ClassifiedBench("cat_kd", {"feature": grids[0]}, {"feature": grids[1]}, **options)


def test_binds_to_the_deepest_grid_and_needs_both_classifiers():
    side = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}, "parts": {"classifier": "head"}}
    pair = {"name": "toy", "student": side, "teacher": side}
    assert bind(CATKD, Toy, pair) == {"feature": "body", "logits": "logits"}
    with pytest.raises(KDBenchError, match="calls the part 'classifier'"):
        bind(CATKD, Toy, {**pair, "student": {"taps": side["taps"]}})


@pytest.mark.parametrize("normalize", [True, False])
def test_gradients_and_determinism(normalize):
    for batch in (3, 1):
        made = bench(batch, normalize=normalize)
        check_gradients(made)
        # The student's classifier learns where to see a class; its bias has no part in a map.
        assert made.heads["student"].weight.grad is not None
        assert made.heads["student"].weight.grad.any()
        assert made.heads["student"].bias.grad is None
        assert all(p.grad is None for p in made.heads["teacher"].parameters())
    check_deterministic(bench(normalize=normalize))


@pytest.mark.parametrize("knob", knobs("cat_kd"))
def test_every_knob_counts(knob):
    assert differ(bench().outcome(), bench(**{knob: OTHER[knob]}).outcome())


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("space", [(6,), (4, 5), (3, 4, 2)])
def test_is_the_loss_of_the_classifiers_maps(space, normalize):
    made = bench(space=space, normalize=normalize)
    maps = [
        class_activation_maps(leaf, made.heads[role].weight, 2)
        for leaf, role in ((made.student[0], "student"), (made.teacher[0], "teacher"))
    ]
    expected = class_attention_loss(*maps, normalize=normalize)
    assert made.loss().item() == pytest.approx(expected.item(), rel=1e-6)


def test_zero_for_equal_networks():
    grid = {"feature": Grid(normal(3, 4, 4, 4))}
    made = ClassifiedBench("cat_kd", grid, grid)
    made.heads["student"].load_state_dict(made.heads["teacher"].state_dict())
    assert made.loss().item() == 0


def test_empty_batch_and_low_precision():
    empty = bench(batch=0)
    assert empty.loss() == 0
    assert empty.loss().requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bench(dtype=torch.bfloat16).loss().item() == pytest.approx(bench().loss().item(), rel=0.05)


def test_a_grid_that_the_classifier_does_not_read_is_one_line():
    grids = {"feature": Grid(normal(2, 4, 4, 4))}
    with pytest.raises(KDBenchError, match="student's classifier reads 7 channels and its map 'feature' has 4"):
        ClassifiedBench("cat_kd", grids, grids, widths={"student": 7})


def test_a_pair_without_published_values_has_the_defaults():
    found = yaml("cat_kd")
    assert (found["resolution"], found["normalize"], found["weights"]["cat"]) == (2, True, 15.0)
