"""Laws over other vocabularies: alone, and through the trainings of a run whose teacher has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.configuration.resolved import resolve
from kdbench.errors import KDBenchError
from kdbench.features import Logits
from kdbench.functional.uld import universal_loss
from kdbench.methods.uld import aligned
from kdbench.runs.trainings import Trainings
from kdbench.training.fit import Training
from tests.methods.harness import Bench, Invariants, normal
from tests.tiny import overrides


class TestULD(Invariants):
    name = "uld"
    other = {"temperature": 2.0}

    def bench(
        self, batch: int = 4, dtype: torch.dtype = torch.float32, law: Any = "categorical", **options: Any
    ) -> Bench:
        student, teacher = (
            Logits((3 * normal(batch, size, name=n)).to(dtype), law=law) for n, size in (("s", 5), ("t", 7))
        )
        return Bench("uld", {"logits": student}, {"logits": teacher}, **options)

    def test_is_the_loss_of_the_rows(self):
        for law in ("categorical", "bernoulli"):
            made = self.bench(law=law)
            assert made.loss().item() == pytest.approx(universal_loss(made.student[0], made.teacher[0], law=law).item())


def test_the_first_words_of_each_text_are_compared():
    student, teacher = normal(3, 4, 5, name="s"), normal(3, 6, 7, name="t")
    masks = (
        torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0], [1, 1, 1, 1]]),
        torch.tensor([[0, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]]),
    )
    masks = masks[0].bool(), torch.cat([masks[1], torch.zeros(1, 6, dtype=torch.long)]).bool()
    weight = torch.arange(12.0).view(3, 4)
    rows, others, weights = aligned(Logits(student, mask=masks[0], weight=weight), Logits(teacher, mask=masks[1]))
    assert torch.equal(rows, student[[0, 0, 0, 1], [0, 1, 2, 1]])
    assert torch.equal(others, teacher[[0, 0, 0, 1], [1, 2, 3, 0]])
    assert weights is not None
    assert weights.tolist() == [0, 1, 2, 5]


# ---- a teacher of other words ---------------------------------------------------------------------------------


def trainings(folder: Path, *more: str) -> Trainings:
    settings = ["task=text", "preset=smoke", "trainer.epochs=1", "teacher.trainer.epochs=1", "trainer.accelerator=cpu"]
    chosen = [*settings, *overrides("text", folder), *more]
    return Trainings(resolve(config.load(chosen), Store(folder / "cache")))


def test_it_reads_the_same_texts_in_its_own_words(tmp_path):
    run = trainings(tmp_path, "method=uld", "teacher.data.shuffle=1")
    foreign = run.foreign_to(run.student_recipe())
    assert foreign is run.teacher_task
    assert run.foreign_to(run.scratch_recipe) is None
    task, own = run.task, run.teacher_task
    assert isinstance(task, type(own))
    training = Training(run.student_recipe(), task, untrained=True, foreign=foreign)
    batch = training.first_batch()
    answer = training.cast.sources["teacher"].answer(batch)
    words: Any = task, own
    for row in range(3):
        said, read = (
            [which.words[number] for number in found.inputs.words[row].tolist()]
            for which, found in zip(words, (batch, answer.batch), strict=True)
        )
        assert said == read
    assert not torch.equal(batch.inputs.words, answer.batch.inputs.words)
    assert torch.equal(batch.targets.words >= 0, answer.batch.targets.words >= 0)
    manifest = run.make(run.student_recipe()).manifest
    assert manifest["terms"]["uld"]["first"] > 0
    taught: Any = run.teacher_recipe
    assert run.tested(taught).manifest["scores"]["test"]["golden_kl"] > 0  # by the law of its own numbers


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (
            ["method=kd"],
            r"teacher and student tell other classes \(\d+ is '\w+' of the one and '\w+' of the other\), and kd",
        ),
        (["method=gkd"], r"gkd compares them by their place: method=uld does not"),
        (["method=uld", "teacher.corpus.texts=8"], r"leave out teacher.corpus"),
    ],
)
def test_what_compares_words_by_their_place_is_refused(tmp_path, more, line):
    run = trainings(tmp_path, "teacher.data.shuffle=1", *more)
    with pytest.raises(KDBenchError, match=line):
        run.rehearse()
    assert trainings(tmp_path, *more[:1]).foreign_to(run.student_recipe()) is None


def test_numbers_in_another_order_are_the_same_texts(tmp_path):
    plain: Any = trainings(tmp_path, "method=none").task
    other: Any = trainings(tmp_path, "method=none", "data.shuffle=1").task
    for split in ("train", "test"):
        said, again = (
            [[task.words[number] for number in text] for text in getattr(task.texts, split).texts]
            for task in (plain, other)
        )
        assert said == again
    assert other.words[0] == "."
    law, same = plain.texts.test.law, other.texts.test.law
    order = [plain.words.index(word) for word in other.words]
    torch.testing.assert_close(torch.from_numpy(law[..., order]), torch.from_numpy(same))
    restored: Any = trainings(tmp_path, "method=none").task
    restored.restore(other.dataset())
    torch.testing.assert_close(torch.from_numpy(restored.truth.emission), torch.from_numpy(other.texts.law.emission))
