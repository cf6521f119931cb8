from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdbench.data import Batches, Key
from kdbench.errors import KDBenchError
from kdbench.splits import cut
from kdbench.task import Batch, move
from tasks.pointcloud import kitti
from tasks.pointcloud.data import Collate, KittiData, Scans, Split
from tasks.pointcloud.database import Database
from tasks.pointcloud.frames import DATABASE, Frame, Frames
from tasks.pointcloud.transforms import Transforms, overlap_bev
from tests.tasks.pointcloud import tiny

CLASSES = tiny.CLASSES


def loaders(frames: Frames, root: Path, seed: int = 0, workers: int = 0) -> KittiData:
    transforms = Transforms(point_range=(0.0, -10.24, -3.0, 20.48, 10.24, 1.0))
    return KittiData(frames, Split.of(root), tiny.RANGE, transforms, 2, workers, seed)


def epoch(loader: Any, number: int = 0) -> list[Batch]:
    loader.sampler.set_epoch(number)
    return list(loader)


def same(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.ids, b.ids)
        and torch.equal(a.inputs["points"], b.inputs["points"])
        and torch.equal(a.targets["boxes"], b.targets["boxes"])
        for a, b in zip(first, second, strict=True)
    )


# ---- splits -------------------------------------------------------------------------------------------------------


def test_kittis_val_is_the_test_set_and_val_is_cut_from_train(root):
    split = Split.of(root)
    train, val = (kitti.read_split(root, name) for name in ("train", "val"))
    assert split.test == tuple(val)
    assert split.val == tuple(train[i] for i in cut(train))
    assert len(split.val) == 1
    assert sorted(split.train + split.val) == train
    assert split.train == tuple(n for n in train if n not in split.val)
    assert set(split.meta) < set(split.train)
    assert Split.of(root, train=2, test=1) == Split.of(root, 2, 1)
    assert len(Split.of(root, train=3).train) == 2
    assert Split.of(root, test=1).test == tuple(val[:1])


def test_a_cut_needs_two_frames_and_sets_apart(root, tmp_path):
    with pytest.raises(KDBenchError, match=r"train.txt: 1 frame to train on \(data.train=1\); expected at least 2"):
        Split.of(root, train=1)
    other = tiny.write(tmp_path / "kitti", 2, 1)
    (other / "ImageSets" / "val.txt").write_text("000001\n")
    with pytest.raises(KDBenchError, match="frame 000001 is in train.txt and in val.txt"):
        Split.of(other)


# ---- preparing ----------------------------------------------------------------------------------------------------


# ---- batches ------------------------------------------------------------------------------------------------------


def test_collate_joins_and_drops_what_is_outside():
    def frame(name: str, points: list[list[float]], boxes: list[float], labels: list[int]) -> Frame:
        found = np.array([[x, 0, 0, 4, 2, 1.5, 0] for x in boxes], dtype=np.float32).reshape(-1, 7)
        return Frame(name, np.array(points, dtype=np.float32), found, np.array(labels, dtype=np.int64))

    first = frame("000012", [[1, 0, 0, 0.5], [-1, 0, 0, 0], [20.48, 0, 0, 0], [2, 0, 1, 0]], [5, 30, 6], [2, 2, -1])
    second = frame("b", [[3, 3, -1, 0.1]], [], [])
    third = frame("000007", [[4, -3, -2, 0.2], [5, 9, 0.5, 0.3]], [7, 8], [0, 1])
    batch = Collate(tiny.RANGE, {"b": 1, "000012": 5})([first, second, third])
    assert len(batch) == batch.inputs["size"] == 3
    assert (
        batch.inputs["points"].tolist()
        == torch.tensor([[1, 0, 0, 0.5], [3, 3, -1, 0.1], [4, -3, -2, 0.2], [5, 9, 0.5, 0.3]]).tolist()
    )
    assert batch.inputs["batch"].tolist() == [0, 1, 2, 2]
    assert batch.targets["boxes"][:, 0].tolist() == [5, 7, 8]
    assert batch.targets["labels"].tolist() == [2, 0, 1]
    assert batch.targets["batch"].tolist() == [0, 2, 2]
    assert batch.ids.tolist() == [5, 1, 0]
    assert batch.memo["names"] == ["000012", "b", "000007"]


def test_empty_scans_and_scenes_make_a_batch():
    nothing = Frame("000000", np.empty((0, 4), np.float32), np.empty((0, 7), np.float32), np.empty(0, np.int64))
    batch = Collate(tiny.RANGE)([nothing, nothing])
    assert batch.inputs["points"].shape == (0, 4)
    assert batch.targets["boxes"].shape == (0, 7)
    assert (batch.targets["labels"].dtype, batch.targets["batch"].dtype) == (torch.int64, torch.int64)


def test_a_batch_moves_with_all_that_it_holds(frames, root):
    batch = next(iter(loaders(frames, root).test_dataloader()))
    assert move(batch, torch.device("cpu")) is batch
    moved = move(batch, torch.device("meta"))
    tensors = [*moved.inputs.values(), *moved.targets.values(), moved.ids]
    assert {t.device.type for t in tensors if isinstance(t, torch.Tensor)} == {"meta"}
    assert moved.inputs["size"] == 2
    assert moved.memo["names"] == batch.memo["names"]
    assert len(moved) == 2


# ---- loaders ------------------------------------------------------------------------------------------------------


def test_every_split_reads_its_own_frames(frames, root):
    split, made = Split.of(root), loaders(frames, root)
    for loader, names in (
        (made.val_dataloader(), split.val),
        (made.test_dataloader(), split.test),
    ):
        assert [n for batch in epoch(loader) for n in batch.memo["names"]] == list(names)
    seen = [n for batch in epoch(made.train_dataloader()) for n in batch.memo["names"]]
    assert len(seen) == 4  # of five: an incomplete last batch is dropped
    assert set(seen) <= set(split.train)
    meta = [n for batch in epoch(made.meta_dataloader()) for n in batch.memo["names"]]
    assert meta == list(split.meta)
    rest = {n for batch in epoch(made.train_dataloader(without_meta=True)) for n in batch.memo["names"]}
    assert rest
    assert rest <= set(split.train) - set(meta)


def test_a_cut_pastes_objects_of_its_own_frames_alone(frames, root):
    made, split = loaders(frames, root), Split.of(root)
    rest = set(split.train) - set(split.meta)
    assert split.meta
    assert rest
    for loader, names in (
        (made.train_dataloader(), set(split.train)),
        (made.train_dataloader(without_meta=True), rest),
        (made.meta_dataloader(), set(split.meta)),
    ):
        assert isinstance(loader.dataset, Batches)
        assert isinstance(loader.dataset.dataset, Scans)
        assert loader.dataset.dataset.database is not None
        assert set(loader.dataset.dataset.database.frames) == names


def test_the_database_is_read_once_for_all_loaders(frames, root, monkeypatch):
    made = loaders(frames, root)
    made.train_dataloader()
    monkeypatch.setattr(Database, "load", lambda _: pytest.fail("read again"))
    made.train_dataloader(without_meta=True)
    made.meta_dataloader()


def test_what_a_loaders_process_is_sent_is_small_and_whole(frames, root):
    loader = loaders(frames, root, workers=1).train_dataloader()
    before = len(pickle.dumps(loader.dataset))
    expected = loader.dataset[Key(0, 0)]  # the labels that it has read are not sent along
    sent = pickle.dumps(loader.dataset)
    assert len(sent) < before + 1000
    dataset = pickle.loads(sent)  # noqa: S301
    found = dataset.__getitems__([Key(0, 0)]).inputs["points"]
    assert torch.equal(found, Collate(tiny.RANGE)([expected]).inputs["points"])


@pytest.mark.slow
def test_a_loaders_process_may_be_spawned(frames, root):
    loader = loaders(frames, root, workers=1).train_dataloader()
    loader.multiprocessing_context = "spawn"
    assert same(epoch(loader), epoch(loaders(frames, root).train_dataloader()))


def test_batches_belong_to_seed_and_epoch_alone(frames, root):
    """As a student and its scratch twin ask: whatever else has drawn random numbers in between."""
    first = epoch(loaders(frames, root).train_dataloader())
    torch.rand(11)
    np.random.rand(3)  # noqa: NPY002
    twin = loaders(frames, root).train_dataloader()
    epoch(twin, 5)
    assert same(first, epoch(twin, 0))
    assert not same(first, epoch(twin, 1))
    assert not same(first, epoch(loaders(frames, root, seed=1).train_dataloader()))
    meta = loaders(frames, root).meta_dataloader()
    assert not same(epoch(meta, 0), epoch(meta, 1))


def test_augmentation_belongs_to_the_frame_and_not_to_its_place(frames, root):
    database = Database.load(frames.prepared / DATABASE).filter(CLASSES)
    forwards, backwards = (
        Scans(frames, names, Transforms(), database) for names in (("000000", "000001"), ("000001", "000000"))
    )
    first, again, later = forwards[Key(2, 0)], backwards[Key(2, 1)], forwards[Key(3, 0)]
    np.testing.assert_array_equal(first.points, again.points)
    assert first.name == again.name == "000000"
    assert len(first.points) != len(later.points) or not np.array_equal(first.points, later.points)


def test_test_frames_are_not_augmented(frames, root):
    made = loaders(frames, root)
    (batch, _), later = epoch(made.test_dataloader()), epoch(made.test_dataloader(), 4)
    assert same([batch], later[:1])
    alone = Collate(tiny.RANGE)([frames.read(n) for n in batch.memo["names"]])
    assert torch.equal(alone.inputs["points"], batch.inputs["points"])


@pytest.mark.slow
def test_loader_processes_give_the_same_batches(frames, root):
    alone, many = loaders(frames, root).train_dataloader(), loaders(frames, root, workers=2).train_dataloader()
    for number in (0, 1):
        assert same(epoch(alone, number), epoch(many, number))


def test_vans_take_up_space_but_are_no_targets(frames, root):
    """No pasted object overlaps a van, and no batch trains on one."""
    database = Database.load(frames.prepared / DATABASE).filter(CLASSES)
    frame = frames.read("000000")
    van = frame.boxes[frame.labels == -1]
    # A car exactly on the van is the only thing to paste.
    chosen = database.members("Car")[:1]
    car = Database(
        **{name: getattr(database, name)[chosen] for name in ("labels", "difficulty", "counts", "frames")},
        classes=database.classes, boxes=van.copy(), points=database.points_of(chosen),
    )  # fmt: skip
    transforms = Transforms(flip=0, rotation=(0, 0), scale=(1, 1), sample={"Car": 2})
    stream = np.random.default_rng(0)
    _, boxes, labels = transforms(frame.points, frame.boxes, frame.labels, stream, car)
    assert len(boxes) == len(frame.boxes)
    without = frame.labels >= 0
    _, boxes, labels = transforms(frame.points, frame.boxes[without], frame.labels[without], stream, car)
    assert (labels == CLASSES.index("Car")).sum() == 2
    assert overlap_bev(boxes[-1:], van).all()
    batch = Collate(tiny.RANGE)([frame])
    assert sorted(batch.targets["labels"].tolist()) == [0, 1, 2]
