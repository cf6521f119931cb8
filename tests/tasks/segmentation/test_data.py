"""Splits, loaders and batches; what the data are known by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kdbench.data import Key
from kdbench.errors import KDBenchError
from kdbench.task import Batch
from tasks.segmentation.data import Samples
from tasks.segmentation.sources.base import IGNORED
from tasks.segmentation.sources.names import CITYSCAPES, CITYSCAPES_IDS
from tests.tasks.segmentation import test_layouts, tiny


@pytest.fixture
def cityscapes(tmp_path):
    """Writes Cityscapes' folders; see the function of that name."""

    def write(**options):
        test_layouts.cityscapes(tmp_path / "cityscapes", **options)
        return tmp_path / "cityscapes"

    return write


def opened(place, cache, **given):
    return tiny.task(cache, "cityscapes", {"root": str(place), **given}).scenes


def test_the_splits_of_rendered_streets(tmp_path):
    scenes = tiny.task(tmp_path).scenes
    assert (len(scenes.train), len(scenes.val), len(scenes.test)) == (9, 1, 3)
    names = [s.name for part in (scenes.train, scenes.val, scenes.test) for s in part.samples]
    assert len({*names}) == 13
    data = scenes.module(0)
    assert max(int(b.ids.max()) for b in data.train_dataloader()) < 9
    assert [b.ids.tolist() for b in (*data.val_dataloader(), *data.test_dataloader())] == [[9], [10, 11, 12]]
    assert scenes.embedded
    again = tiny.task(tmp_path).scenes
    assert again.digest == scenes.digest
    assert tiny.task(tmp_path, given={"train": 9}).scenes.digest != scenes.digest


def test_label_ids_become_the_nineteen_classes(cityscapes, tmp_path):
    scenes = opened(cityscapes(), tmp_path)
    assert scenes.preprocess.classes == CITYSCAPES
    assert (len(scenes.train), len(scenes.val), len(scenes.test)) == (4, 1, 2)
    for sample in scenes.test.samples:
        _, mask = scenes.read(sample)
        ids = np.asarray(Image.open(sample.mask))
        for number, name in ((7, "road"), (23, "sky"), (26, "car")):
            assert (mask.numpy()[ids == number] == CITYSCAPES.index(name)).all()
        assert (mask.numpy()[ids == CITYSCAPES_IDS.index("static")] == IGNORED).all()


def test_train_ids_are_read_as_they_are(cityscapes, tmp_path):
    root = cityscapes(kind="labelTrainIds", numbers=(0, 18, 255))
    scenes = opened(root, tmp_path)
    _, mask = scenes.read(scenes.test.samples[0])
    assert np.array_equal(mask.numpy(), np.asarray(Image.open(scenes.test.samples[0].mask)))


def test_some_classes_alone_have_another_digest(cityscapes, tmp_path):
    root = cityscapes()
    some, every = opened(root, tmp_path, classes=["car", "road"]), opened(root, tmp_path)
    assert some.preprocess.classes == ("car", "road")
    assert {*np.unique(some.read(some.test.samples[0])[1])} == {0, 1, IGNORED}
    assert some.digest != every.digest
    counted = some.source.counted(some.test.samples)
    assert counted.tolist() == [sum(int((some.read(s)[1] == c).sum()) for s in some.test.samples) for c in (0, 1)]


@pytest.mark.parametrize(("part", "learned"), [("train", True), ("val", True), ("test", False)])
def test_one_changed_pixel_is_other_data(cityscapes, tmp_path, part, learned):
    """Of the test set it is no reason to train anew, nor is a test set of another size."""
    root = cityscapes()
    task = tiny.task(tmp_path, "cityscapes", {"root": str(root)})
    before, sample = task.dataset(), getattr(task.scenes, part).samples[0]
    ids = np.asarray(Image.open(sample.mask)).copy()
    ids[0, 0] = 8
    Image.fromarray(ids).save(sample.mask)
    after = tiny.task(tmp_path, "cityscapes", {"root": str(root)}).dataset()
    assert after.digest != before.digest
    assert (after.learned != before.learned) == learned
    fewer = tiny.task(tmp_path, "cityscapes", {"root": str(root), "test": 1}).dataset()
    assert fewer.digest != after.digest
    assert fewer.learned == after.learned


def test_images_are_resized_with_their_masks(cityscapes, tmp_path):
    scenes = opened(cityscapes(), tmp_path, size=[10, 15])
    batch = next(iter(scenes.module(0).test_dataloader()))
    assert batch.inputs.shape == (2, 3, 10, 15)
    assert batch.targets.shape == (2, 10, 15)
    assert set(batch.targets.unique().tolist()) <= {0, 10, 13, IGNORED}


def test_images_of_several_sizes_need_a_crop_and_are_scored_one_by_one(cityscapes, tmp_path):
    root = cityscapes(sizes=((20, 30), (24, 18)))
    with pytest.raises(KDBenchError, match=r"are of 2 sizes \(30 x 20, 18 x 24, …\); set data.transforms.crop"):
        opened(root, tmp_path, transforms={})
    scenes = opened(root, tmp_path, transforms={"crop": [16, 16], "flip": True, "scale": [0.8, 1.2], "colour": 0.1})
    for batch in scenes.module(0).train_dataloader():
        assert batch.inputs.shape[1:] == (3, 16, 16)
    assert [tuple(b.targets.shape) for b in scenes.module(0).test_dataloader()] == [(1, 20, 30), (1, 24, 18)]


def test_an_image_without_any_class_is_read_and_has_no_part_in_the_loss(cityscapes, tmp_path):
    root = cityscapes()
    task = tiny.task(tmp_path, "cityscapes", {"root": str(root)})
    sample = task.scenes.train.samples[0]
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(sample.mask)  # unlabelled
    task = tiny.task(tmp_path, "cityscapes", {"root": str(root), "transforms": {"crop": [16, 16]}})
    (batch,) = task.data(0).train_dataloader()
    void = (batch.targets == IGNORED).flatten(1).all(1)
    assert void.sum() == 1
    logits = torch.randn(4, 19, 4, 4)
    rest = Batch(batch.inputs[~void], batch.targets[~void], batch.ids[~void])
    found, expected = (
        task.loss(nn.Identity(), values, b)["ce"] for values, b in ((logits, batch), (logits[~void], rest))
    )
    assert found.item() == pytest.approx(expected.item())
    alone = Batch(batch.inputs[void], batch.targets[void], batch.ids[void])
    assert task.loss(nn.Identity(), logits[void], alone)["ce"] == 0


def test_a_sample_is_a_function_of_seed_and_epoch(tmp_path):
    scenes = tiny.task(tmp_path).scenes
    assert scenes.transforms.flip
    samples = Samples(scenes, scenes.train, transforms=scenes.transforms)
    together = samples.__getitems__([Key(2, 0, 1), Key(2, 5, 1)])
    alone = samples[Key(2, 5, 1)]
    assert torch.allclose(together.inputs[1], alone.inputs[0], atol=1e-6)
    assert torch.equal(together.targets[1], alone.targets[0])
    assert not torch.equal(samples[Key(3, 5, 1)].inputs, alone.inputs)
    assert not torch.equal(samples[Key(2, 5, 2)].inputs, alone.inputs)


def test_the_meta_cut_and_the_rest_are_all_of_train(tmp_path):
    data = tiny.task(tmp_path, given={"batch_size": 1}).scenes.module(0)
    meta = [int(b.ids) for b in data.meta_dataloader()]
    rest = [int(b.ids) for b in data.train_dataloader(without_meta=True)]
    assert sorted(meta + rest) == list(range(9))
    assert meta


def test_fewer_images_never_meet_the_validation_of_more(cityscapes, tmp_path):
    root = cityscapes(train=40, val=3)
    every, few = opened(root, tmp_path), opened(root, tmp_path, train=20, test=2)
    names = {part: {s.name for s in getattr(every, part).samples} for part in ("train", "val", "test")}
    assert (len(names["train"]), len(names["val"]), len(names["test"])) == (36, 4, 3)
    assert {s.name for s in few.train.samples} < names["train"]
    assert {s.name for s in few.val.samples} < names["val"]
    assert (len(few.train), len(few.val), len(few.test)) == (18, 2, 2)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"root": None}, "data.root: cityscapes is not embedded; set the folder that holds leftImg8bit/"),
        ({"root": "/nowhere"}, "data.root=/nowhere: there is no such folder; expected one that holds leftImg8bit"),
        ({"source": "cityscape"}, "data.source=cityscape: there is no such source: did you mean 'cityscapes'"),
        ({"source": "streets"}, "data.root=/: streets is rendered and reads no files; choose data=cityscapes"),
        ({"render": {"seed": 1}}, "data.render={'seed': 1}: cityscapes is not rendered; choose data=streets"),
        ({"std": [1.0]}, "data.std=[1.0]: expected a number for each of 3 channels"),
        ({"root": "/dev"}, "data.root=/dev: there is no gtFine/train/CITY/*_gtFine_labelIds.png; expected a folder"),
    ],
)
def test_bad_options_are_one_line(tmp_path, given, line):
    with pytest.raises(KDBenchError) as error:
        opened("/", tmp_path, **given)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
