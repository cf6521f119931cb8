from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.mix import mix
from tests.augment.harness import augmentation, context, images, read


def test_all_roles_read_one_batch_which_the_stream_of_the_step_draws():
    plugin, ops = augmentation("mixup", alpha=0.4)
    batch = images()
    views = plugin.views(read(batch, "meta"), context())
    changed = views["student"]["main"]
    assert changed is views["teacher"]["main"]
    assert torch.equal(changed.inputs, mix(batch.inputs, ops.order, ops.own))
    stream = rng.generator(3, "augment", "main", 7)
    assert torch.equal(ops.order, torch.randperm(6, generator=stream))
    share = np.random.default_rng(stream.initial_seed()).beta(0.4, 0.4, 6)
    assert torch.equal(ops.own, torch.from_numpy(share).float())
    again = plugin.views(read(batch), context())["student"]["main"]
    assert torch.equal(again.inputs, changed.inputs)
    later = plugin.views(read(batch), context(step=8))["student"]["main"]
    assert not torch.equal(later.inputs, changed.inputs)


def test_the_cut_of_a_bilevel_method_stays_as_it_is():
    plugin, _ = augmentation("mixup")
    main, meta = images(), images(4)
    views = plugin.views({"student": {"main": main, "meta": meta}}, context())
    assert views["student"]["meta"] is meta
    assert views["student"]["main"] is not main


def test_the_teacher_may_read_clean_samples():
    plugin, _ = augmentation("mixup", teacher="clean")
    batch = images()
    views = plugin.views(read(batch), context())
    assert views["teacher"]["main"] is batch
    assert views["student"]["main"] is not batch


def test_a_batch_may_draw_one_share():
    plugin, ops = augmentation("mixup", per="batch")
    plugin.change(images(), rng.generator(0))
    assert len(ops.own.unique()) == 1
    plugin, ops = augmentation("mixup")
    plugin.change(images(), rng.generator(0))
    assert len(ops.own.unique()) == 6


def test_shares_have_the_law_that_alpha_says():
    plugin, ops = augmentation("mixup", alpha=2.0)
    plugin.change(images(4000, (1, 1, 1)), rng.generator(0))
    assert float(ops.own.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(ops.own.var()) == pytest.approx(1 / 20, abs=0.004)  # of beta(2, 2)


@pytest.mark.parametrize(
    ("size", "portion", "mixed"), [(64, 0.1, 7), (64, 0.5, 32), (10, 0.1, 1), (7, 0.0, 0), (5, 1.0, 5)]
)
def test_a_portion_of_the_samples_is_mixed(size, portion, mixed):
    plugin, ops = augmentation("partial_mixup", portion=portion)
    batch = images(size)
    changed = plugin.change(batch, rng.generator(0, str(size)))
    assert int((ops.own < 1).sum()) == mixed
    assert torch.equal(changed.inputs[ops.own == 1], batch.inputs[ops.own == 1])


def test_with_replacement_two_fifths_are_mixed_where_a_tenth_is_meant():
    plugin, _ = augmentation("partial_mixup", replacement=True)
    left = [len(plugin.left(64, rng.generator(n)).unique()) for n in range(300)]
    assert 1 - np.mean(left) / 64 == pytest.approx((63 / 64) ** 57, abs=0.01)  # 0.408
    exact, _ = augmentation("partial_mixup")
    assert {len(exact.left(64, rng.generator(n)).unique()) for n in range(20)} == {57}


@pytest.mark.parametrize("name", ["mixup", "partial_mixup", "cutmix", "saliencymix"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_batches_of_any_size(name, size):
    plugin, _ = augmentation(name)
    batch = images(size)
    changed = plugin.views(read(batch), context())["student"]["main"]
    assert changed.inputs.shape == batch.inputs.shape
    if size == 1:  # it is its own partner
        assert torch.allclose(changed.inputs, batch.inputs, atol=1e-6)


def test_labels_that_do_not_count_make_mixtures_that_do_not():
    plugin, ops = augmentation("mixup")
    batch = replace(
        images(), supervised=torch.tensor([True] * 5 + [False]), distilled=torch.tensor([True] * 5 + [False])
    )
    changed = plugin.change(batch, rng.generator(0))
    expected = [5 not in (i, j) for i, j in enumerate(ops.order.tolist())]
    assert changed.supervised.tolist() == expected
    assert changed.distilled.tolist() == expected


def test_the_clean_batch_stays_beside_the_mixture_that_regularises():
    plugin, ops = augmentation("regmixup")
    batch = images()
    views = plugin.views(read(batch), context())
    assert views["student"]["main"] is views["teacher"]["main"] is batch
    assert "mixed" not in views["teacher"]
    assert torch.equal(views["student"]["mixed"].inputs, mix(batch.inputs, ops.order, ops.own))
    assert not plugin.removes
    assert plugin.alpha == 10


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ({"alpha": 0}, "augment.alpha: found 0; input should be greater than 0"),
        ({"portion": 1.5}, "augment.portion: found 1.5; input should be less than or equal to 1"),
        ({"per": "row"}, "augment.per: found 'row'; input should be 'sample' or 'batch'"),
        ({"teacher": "dirty"}, "augment.teacher: found 'dirty'; input should be 'same' or 'clean'"),
    ],
)
def test_an_option_out_of_its_range_is_one_line(option, line):
    with pytest.raises(KDBenchError, match=line):
        augmentation("mixup", **option)
