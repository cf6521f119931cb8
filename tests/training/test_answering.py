"""Answers of a trained network: asked for once, stored, and read as if the network were there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.base import rng
from kdbench.base.store import MANIFEST
from kdbench.data import POOL, Key, SeededLoader
from kdbench.errors import KDBenchError
from kdbench.features import Activated, Feature, Grid, Logits, Points
from kdbench.roles.replay import Packed, Shelf
from kdbench.task import Batch
from kdbench.training import answering
from kdbench.training.fit import Training
from kdbench.training.recipe import Recipe, Replay
from tests import toy
from tests.toy import Patterns, Toy, collate, same, teacher_file, weights


def replayed(method: str, views: int, half: bool = False, **keys: Any) -> Recipe:
    """A recipe of the toy whose teacher is replayed."""
    plain = toy.recipe(method, **keys)
    source = plain.inputs["teacher"]
    assert isinstance(source, Recipe)
    config = {**plain.config, "data": {}}
    source = replace(source, config=config)
    replay = Replay(source, config, "toy", views, half)
    return replace(plain, config=config, inputs={"teacher": replay}, views=views)


def stored(folder: Path, recipe: Recipe, task: Toy) -> dict[str, Path]:
    """Makes the answers that a recipe reads."""
    (replay,) = recipe.inputs.values()
    assert isinstance(replay, Replay)
    folders = {name: folder / name for name in recipe.reads(task, "teacher")}
    for made in folders.values():
        made.mkdir(parents=True)
    loader = task.data(0).train_dataloader()
    found = answering.answer(replay, task, teacher_file(folder), loader, folders, limit=1.0)
    for name, made in folders.items():
        (made / MANIFEST).write_text(json.dumps(found[name]))
    return folders


@pytest.mark.parametrize("method", ["KD", "Hint"])
@pytest.mark.parametrize("keys", [{}, {"precision": "bf16-mixed"}, {"precision": "64-true"}, {"channels_last": False}])
def test_a_student_of_stored_answers_is_that_of_the_network(tmp_path, method, keys):
    recipe = replayed(method, views=2, epochs=3, **keys)
    shelves = stored(tmp_path / "answers", recipe, Toy())
    reading = Training(recipe, Toy(), {"teacher": shelves})
    assert set(reading.cast.models()) == {"student"}
    asking = Training(
        replace(recipe, inputs={"teacher": recipe.inputs["teacher"].source}),  # type: ignore[union-attr]
        Toy(),
        {"teacher": teacher_file(tmp_path)},
    )
    manifests = [training.run(tmp_path / name) for name, training in (("r", reading), ("a", asking))]
    assert same(weights(reading.cast.model("student")), weights(asking.cast.model("student")))
    assert [m["cost"]["teacher_passes"] for m in manifests] == [0, 1]
    assert [m["flags"] for m in manifests] == [["replay:2"], ["replay:2"]]
    assert manifests[0]["scores"] == manifests[1]["scores"]


class Uneven(Toy):
    """Samples that do not fill their last batch."""

    def data(self, seed: int) -> Any:
        data: Any = super().data(seed)
        data.train_dataloader = lambda: SeededLoader(Patterns(57, "train"), 16, seed, collate, train=True)
        return data


def test_a_last_batch_is_filled_up_so_that_all_are_of_one_size(tmp_path):
    loader = Uneven().data(0).train_dataloader()
    sizes = [len(batch) for batch in loader.pool(1)]
    assert sizes == [16, 16, 16, 16]
    ids = torch.cat([batch.ids for batch in loader.pool(1)])
    assert ids.tolist() == [*range(57), *range(7)]
    recipe = replayed("KD", views=3)
    shelf = Shelf(stored(tmp_path, recipe, Uneven())["logits"])
    assert shelf.columns["values"].stored.shape == (3 * 57, toy.CLASSES)
    network = Training(
        replace(recipe, inputs={"teacher": recipe.inputs["teacher"].source}),  # type: ignore[union-attr]
        Toy(),
        {"teacher": teacher_file(tmp_path)},
    ).cast.sources["teacher"]
    (last,) = [batch for batch in loader.pool(2) if 56 in batch.ids]
    expected = network.eval().answer(last).features["logits"].values
    torch.testing.assert_close(shelf.packed(last.ids, 2).tensors["values"], expected, rtol=1e-6, atol=1e-6)


def test_views_belong_to_the_pool_and_not_to_seed_or_epoch():
    def batches(seed: int, epoch: int, views: int | None) -> list[Batch]:
        loader = toy.Data(seed).train_dataloader()
        if views:
            loader.replay(views)
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        return list(loader)

    def by_id(found: list[Batch]) -> dict[int, Tensor]:
        return {int(i): image for batch in found for i, image in zip(batch.ids, batch.inputs, strict=True)}

    first, other, again = batches(0, 1, 4), batches(5, 1, 4), batches(5, 9, 4)
    assert {batch.drawn for batch in first} == {1}
    assert [b.ids.tolist() for b in first] != [b.ids.tolist() for b in other]
    for found in (other, again):
        assert all(torch.equal(image, by_id(first)[i]) for i, image in by_id(found).items())
    assert not torch.equal(by_id(batches(0, 2, 4))[3], by_id(first)[3])
    assert {batch.drawn for batch in batches(0, 1, None)} == {None}
    key = next(iter(toy.Data(3).train_dataloader().sampler))
    assert (key.seed, key.epoch) == (3, 0)
    assert Key(0, 0, POOL) != Key(0, 0)
    assert first[0].with_inputs(first[0].inputs).drawn is None


# ---- features ---------------------------------------------------------------------------------------------------


def shelf(
    folder: Path, features: list[Feature], ids: list[Tensor], samples: int, views: int, half: bool = False
) -> Any:
    """Writes batches of a feature and reads them back."""
    replay = replayed("KD", views, half).inputs["teacher"]
    assert isinstance(replay, Replay)
    packed = [Packed.of(f, "mine", len(i)) for f, i in zip(features, ids, strict=True)]
    writer = answering.Writer(folder, "mine", packed[0], samples, replay)
    for part, own in zip(packed, ids, strict=True):
        writer.put(part, own, len(own))
    facts = writer.close()
    (folder / MANIFEST).write_text(json.dumps(facts))
    return Shelf(folder)


def test_rows_of_uneven_number_come_back_sample_by_sample(tmp_path):
    counts = [[2, 0, 3], [1, 4, 0]]  # a sample without any; two views of three samples
    g = rng.generator(0, "points")
    features: list[Feature] = []
    for lengths in counts:
        total, owner = sum(lengths), torch.arange(3).repeat_interleave(torch.tensor(lengths))
        features.append(Points(torch.randn(total, 2, generator=g), torch.randn(total, 3, generator=g), owner))
    ids = [torch.tensor([7, 3, 5])] * 2
    found = shelf(tmp_path, features, ids, 3, 2).packed(torch.tensor([5, 7, 3, 5]), 1).feature(lambda f: f)
    assert isinstance(found, Points)
    expected = features[1]
    assert isinstance(expected, Points)
    assert found.batch.tolist() == [1, 2, 2, 2, 2]
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.coords, expected.coords)
    again = shelf(tmp_path, features, ids, 3, 2).packed(torch.tensor([5, 7]), 0).feature(lambda f: f)
    assert torch.equal(again.values, torch.cat([features[0].values[2:], features[0].values[:2]]))


def test_a_map_keeps_its_strides_and_its_other_fields(tmp_path):
    values = torch.randn(4, 6, 5, 3).contiguous(memory_format=torch.channels_last)
    grid = Activated(values, (2.0, 4.0), pre=values - 1)
    found = shelf(tmp_path, [grid], [torch.arange(4)], 4, 1).packed(torch.tensor([2, 0]), 0).feature(lambda f: f)
    assert isinstance(found, Activated)
    assert found.stride == (2.0, 4.0)
    assert torch.equal(found.values, values[[2, 0]])
    assert torch.equal(found.pre, values[[2, 0]] - 1)
    assert found.values.is_contiguous(memory_format=torch.channels_last)


def test_half_precision_says_what_it_loses_and_ends_where_numbers_do_not_fit(tmp_path):
    values = torch.tensor([[1.0, 2049.0], [0.5, -3.0]])
    kept = shelf(tmp_path, [Logits(values)], [torch.arange(2)], 2, 1, half=True)
    found = kept.packed(torch.tensor([0]), 0).tensors["values"]
    assert found.tolist() == [[1.0, 2048.0]]
    assert found.dtype == torch.float32
    assert kept.error == pytest.approx(1 / 2049)
    with pytest.raises(
        KDBenchError, match="float16: values of 'mine' goes to 2.05e\\+05, and half precision ends at 65504"
    ):
        shelf(tmp_path, [Logits(100 * values)], [torch.arange(2)], 2, 1, half=True).packed(torch.tensor([0]), 0)


def test_what_cannot_be_stored_sample_by_sample_is_refused(tmp_path):
    with pytest.raises(KDBenchError, match="values of 'mine' is \\(3, 2\\) in a batch of 4, expected 4 rows"):
        Packed.of(Grid(torch.zeros(3, 2)), "mine", 4)
    with pytest.raises(KDBenchError, match="no stored answer for the training sample 9"):
        shelf(tmp_path, [Logits(torch.zeros(2, 3))], [torch.arange(2)], 2, 1).packed(torch.tensor([1, 9]), 0)
    with pytest.raises(KDBenchError, match="two training samples have one id"):
        shelf(tmp_path, [Logits(torch.zeros(2, 3))], [torch.zeros(2, dtype=torch.int64)], 2, 1)


# ---- rehearsal ----------------------------------------------------------------------------------------------------


def rehearse(recipe: Recipe, task: Toy, limit: float = 1.0) -> None:
    training = Training(recipe, task, untrained=True)
    batch = training.first_batch()
    answering.rehearse(training, batch, limit)
    training.distiller(training.stages[0]).rehearse(batch)


def test_a_rehearsal_answers_as_the_stored_features_will():
    rehearse(replayed("KD", views=2), Toy())
    with pytest.raises(KDBenchError, match="the teacher is asked about a batch that a plugin made"):
        rehearse(replayed("Privileged", views=2), Toy())


def test_too_large_answers_are_refused_before_anything_is_written():
    line = (
        "teacher.replay=4: the answers take 0.00 GB, 0.00 of them body, expected at most teacher.replay_limit=1e-05: "
        "fewer views than 4, a method on logits alone, teacher.replay_dtype=float16 or teacher.replay_limit=0.0"
    )
    with pytest.raises(KDBenchError) as found:
        rehearse(replayed("Hint", views=4), Toy(), limit=1e-5)
    assert str(found.value) == line


class Seeded(Toy):
    """Augments from the seed of its loader, whatever the key says."""

    def data(self, seed: int) -> Any:
        data: Any = super().data(seed)
        plain = data.train_dataloader()

        class Own(Patterns):
            def __getitem__(self, key: Key) -> tuple[Tensor, int, int]:
                return super().__getitem__(key._replace(seed=seed))

        plain.dataset.dataset = Own(64, "train")
        data.train_dataloader = lambda: plain
        return data


class Marked(Toy):
    """Gives logits a mask that stored ones do not get."""

    def describe(self, outputs: Tensor, taps: Mapping[str, Tensor], batch: Batch) -> dict[str, Feature]:
        found = super().describe(outputs, taps, batch)
        logits = found["logits"]
        assert isinstance(logits, Logits)
        return found | {"logits": replace(logits, mask=torch.ones(len(batch), dtype=torch.bool))}


def test_a_task_whose_samples_cannot_be_replayed_is_found_out():
    with pytest.raises(KDBenchError, match="draws other views of one key under another seed"):
        rehearse(replayed("KD", views=2), Seeded())
    with pytest.raises(KDBenchError, match=r"describe\(\) gives 'logits' a mask that mark\(\) does not"):
        rehearse(replayed("KD", views=2), Marked())
