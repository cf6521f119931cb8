"""Folds, scaling, batches, augmentation, labels that are withheld or moved."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.base.store import Store
from kdbench.data import Key
from kdbench.errors import KDBenchError
from tasks.hoi.batches import Samples, Scale, Transforms, collate, sample
from tasks.hoi.data import Clips, open_clips
from tasks.hoi.layout import CLIP, HUMAN, OBJECT, UNKNOWN
from tests.tasks.hoi import tiny


def opened(tmp_path, **options) -> Clips:
    given = {"source": "kitchen", "kitchen": tiny.KITCHEN, "batch_size": 4, **options}
    return open_clips(given, Store(tmp_path))


def test_splits_are_three_sets_of_whole_people(tmp_path):
    clips = opened(tmp_path)
    parts = {name: [s.name for s in getattr(clips, name)] for name in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == 36
    assert not {*parts["train"]} & {*parts["val"]} | {*parts["test"]} & {*parts["train"], *parts["val"]}
    people = {name: {int(n) % 4 for n in names} for name, names in parts.items()}
    assert people == {"train": {1, 3}, "val": {1, 3}, "test": {0, 2}}
    ids = [b.ids.tolist() for b in clips.module(0).val_dataloader()] + [
        b.ids.tolist() for b in clips.module(0).test_dataloader()
    ]
    assert sum(ids, []) == [*range(len(parts["train"]), 36)]
    assert opened(tmp_path, fold=1).digest != clips.digest
    assert opened(tmp_path, test=3).learned == clips.learned
    with pytest.raises(KDBenchError, match="data.fold=2: kitchen has the folds 0 .people 1 of 2., 1 .people 2 of 2."):
        opened(tmp_path, fold=2)
    with pytest.raises(KDBenchError, match="kitchen: 1 training video, expected two at least: set data.train=2"):
        opened(tmp_path, train=1)


def test_values_are_scaled_by_the_training_videos(tmp_path):
    clips = opened(tmp_path)
    held = [s.inputs for s in clips.train]
    human = torch.cat([x.human[x.mask[:, :1]] for x in held])
    pairs = [x.mask[:, :, None] & x.mask[:, None] & ~torch.eye(x.mask.shape[1], dtype=torch.bool) for x in held]
    edges = torch.cat([x.edge[p] for x, p in zip(held, pairs, strict=True)])
    for values in (human, edges):
        assert values.mean(0).abs().max() < 1e-2
        assert (values.std(0) - 1).abs().max() < 1e-2
    things = torch.cat([x.object[x.mask[:, 1:]] for x in held])
    assert things[:, -12:].sum(1).eq(1).all()  # the category
    for x, p in zip(held, pairs, strict=True):
        assert not x.edge[~p].any()
        assert not x.object[~x.mask[:, 1:]].any()


def test_a_constant_value_is_not_blown_up():
    video = tiny.video()
    video.human[...] = 3
    scale = Scale.of([video], 2)
    assert scale.std[HUMAN] == [1, 1]
    assert not scale.apply(HUMAN, video.human).any()


def test_batches_are_padded_and_padding_has_no_label():
    made = [
        sample(f"v{i}", v, Scale.of([v], 2)) for i, v in enumerate([tiny.video(0, 3, 2, 1), tiny.video(1, 5, 2, 3)])
    ]
    batch = collate(made, torch.tensor([4, 5]))
    assert [tuple(x.shape) for x in batch.inputs] == [(2, 5, 2, 2), (2, 5, 3, 5), (2, 5, 5, 5, 1), (2, 5, 5)]
    assert {k: tuple(v.shape) for k, v in batch.targets.items()} == {HUMAN: (2, 5, 2), OBJECT: (2, 5, 3), CLIP: (2, 1)}
    assert batch.inputs.mask[0].sum() == 3 * 3
    assert (batch.targets[HUMAN][0, 3:] == UNKNOWN).all()
    assert (batch.targets[OBJECT][0, :, 1:] == UNKNOWN).all()
    for padded, own in zip(batch.inputs, made[0].inputs, strict=True):
        assert padded[0].sum() == pytest.approx(float(own.sum()), abs=1e-4)
    whole = collate(made[1:], torch.tensor([5]))
    assert all(torch.equal(padded[0], own) for padded, own in zip(whole.inputs, made[1].inputs, strict=True))


def test_what_is_absent_has_no_label():
    video = tiny.video()
    mask = video.mask.copy()
    mask[2, 1] = False
    made = sample("v", tiny.video(mask=mask), Scale.of([video], 2))
    assert made.targets[OBJECT][2, 0] == UNKNOWN
    assert not made.inputs.object[2, 0].any()
    assert not made.inputs.edge[2, 1].any()
    assert not made.inputs.edge[2, :, 1].any()


def test_augmentation_follows_seed_epoch_and_sample_alone():
    given = [sample(f"v{i}", tiny.video(i, 9, 1, 3), Scale.of([tiny.video(i, 9, 1, 3)], 2)) for i in range(6)]
    transforms = Transforms(nodes=0.5, edges=0.5, human=0.3, object=0.3, crop=6)
    samples = Samples(given, transforms=transforms)

    def seen(epoch, seed, rows):
        return samples.__getitems__([Key(epoch, row, seed) for row in rows])

    first, again = seen(1, 0, [2, 3]), seen(1, 0, [3, 2])
    assert all(torch.equal(a, b.flip(0)) for a, b in zip(first.inputs, again.inputs, strict=True))
    assert not torch.equal(first.inputs.human, seen(2, 0, [2, 3]).inputs.human)
    assert not torch.equal(first.inputs.human, seen(1, 1, [2, 3]).inputs.human)
    assert first.inputs.mask.shape[1] == 6


def test_augmentation_leaves_an_object_and_masks_what_it_takes():
    given = sample("v", tiny.video(0, 9, 1, 3), Scale.of([tiny.video(0, 9, 1, 3)], 2))
    gone = Transforms(object=1.0, human=1.0)(given, 0, 0)
    assert gone.inputs.mask[:, 1:].sum() == 9
    assert not gone.inputs.human.any()
    absent = ~gone.inputs.mask[:, 1:]
    assert (gone.targets[OBJECT][absent] == UNKNOWN).all()
    assert not gone.inputs.object[absent].any()
    noisy = Transforms(nodes=0.5)(given, 0, 0).inputs
    spread = torch.cat([(noisy.human - given.inputs.human).flatten(), (noisy.object - given.inputs.object).flatten()])
    assert spread.std().item() == pytest.approx(0.5, rel=0.2)
    assert torch.equal(noisy.edge, given.inputs.edge)
    assert not Transforms().active


def test_labels_are_withheld_from_some_videos(tmp_path):
    every, few = opened(tmp_path), opened(tmp_path, labels=0.5)
    clips = opened(tmp_path, labels=0.5, unlabelled=True)
    assert clips.supervised is not None
    assert int(clips.supervised.sum()) == len(few.train) == round(0.5 * len(every.train))
    assert {s.name for s, known in zip(clips.train, clips.supervised, strict=True) if known} == {
        s.name for s in few.train
    }
    assert few.supervised is every.supervised is None
    assert few.scale == every.scale == clips.scale  # a teacher of more labels reads what its student reads
    assert len({every.learned, few.learned, clips.learned}) == 3
    batch = next(iter(clips.module(0).train_dataloader()))
    assert torch.equal(batch.supervised, clips.supervised[batch.ids])
    assert next(iter(clips.module(0).val_dataloader())).supervised is None


def test_boundaries_are_moved_and_classes_stay(tmp_path):
    clean, noisy = opened(tmp_path), opened(tmp_path, noise=0.5)
    assert clean.learned != noisy.learned
    changed = [
        (a.targets[HUMAN] != b.targets[HUMAN]).float().mean() for a, b in zip(clean.train, noisy.train, strict=True)
    ]
    assert 0.03 < np.mean(changed) < 0.3
    for a, b in zip(clean.train, noisy.train, strict=True):
        assert {*b.targets[HUMAN].unique().tolist()} <= {*a.targets[HUMAN].unique().tolist()}
        assert torch.equal(a.targets[OBJECT] < 0, b.targets[OBJECT] < 0)
    assert all(torch.equal(a.targets[HUMAN], b.targets[HUMAN]) for a, b in zip(clean.test, noisy.test, strict=True))


def test_the_meta_cut_is_a_part_of_training(tmp_path):
    data = opened(tmp_path).module(0)
    meta = {i for b in data.meta_dataloader() for i in b.ids.tolist()}
    rest = {i for b in data.train_dataloader(without_meta=True) for i in b.ids.tolist()}
    assert meta
    assert not meta & rest


def test_a_folder_in_the_layout_is_read_by_the_same_loader(tmp_path):
    root = tiny.folder(tmp_path / "data")
    clips = open_clips({"source": "graphs", "root": str(root), "fold": 1}, Store(tmp_path / "cache"))
    assert (len(clips.train), len(clips.val), len(clips.test)) == (3, 1, 4)
    assert not clips.layout.embedded
    assert not (tmp_path / "cache").exists()
