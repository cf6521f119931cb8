from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kdbench.base.store import Store
from kdbench.data import Key
from kdbench.errors import KDBenchError
from tasks.text.data import open_texts
from tasks.text.loading import Samples
from tasks.text.sequences import collate
from tests.tasks.text import tiny


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def opened(store: Store, **options) -> Any:
    return open_texts({"source": "grammar", "grammar": tiny.GRAMMAR, "batch_size": 4, **options}, store)


def rows(texts: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(text) for text in texts.tolist()}


def test_three_sets(store):
    texts = opened(store)
    assert (len(texts.train), len(texts.val), len(texts.test)) == (54, 6, 8)
    assert texts.val.first == 54
    assert texts.test.first == 60
    assert not rows(texts.train.texts) & (rows(texts.val.texts) | rows(texts.test.texts))


def test_the_student_reads_some_of_what_the_teacher_has_read(store):
    all_, few, fewer = opened(store), opened(store, labels=20), opened(store, labels=10)
    assert rows(fewer.train.texts) < rows(few.train.texts) < rows(all_.train.texts)
    assert np.array_equal(all_.val.texts, few.val.texts)
    assert len({all_.learned, few.learned, fewer.learned}) == 3


def test_texts_without_labels_come_behind_those_with(store):
    few, more = opened(store, labels=10), opened(store, labels=10, unlabelled="rest")
    assert rows(few.train.texts) == rows(more.train.texts[:10])
    assert len(more.train) == 54
    assert more.train.supervised.tolist() == [True] * 10 + [False] * 44
    assert opened(store, labels=10, unlabelled=5).train.supervised.sum() == 10


def test_a_test_set_alone_trains_nothing_anew(store):
    one, other = opened(store), opened(store, test=5)
    assert one.learned == other.learned
    assert one.digest != other.digest


def test_a_batch_is_what_was_said_and_what_comes_next(store):
    texts = opened(store, labels=10, unlabelled=5)
    batch: Any = Samples(texts.train).__getitems__([Key(0, 12), Key(0, 3)])
    assert batch.ids.tolist() == [12, 3]
    assert batch.supervised.tolist() == [False, True]
    assert torch.equal(batch.targets.words, torch.from_numpy(texts.train.texts[[12, 3]]))
    assert torch.equal(batch.inputs.words[:, 1:], batch.targets.words[:, :-1])
    assert not batch.inputs.words[:, 0].any()
    assert batch.inputs.mask.all()
    assert batch.targets.law is None
    test = next(iter(texts.module(0).test_dataloader()))
    torch.testing.assert_close(test.targets.law.sum(2), torch.ones(4, 12))


def test_meta_is_cut_from_texts_with_labels(store):
    data = opened(store, labels=20, unlabelled=10).module(0)
    meta = [i for batch in data.meta_dataloader() for i in batch.ids.tolist()]
    rest = [i for batch in data.train_dataloader(without_meta=True) for i in batch.ids.tolist()]
    assert len(meta) == 2
    assert max(meta) < 20
    assert not {*meta} & {*rest}


def test_no_text_is_a_batch():
    empty = collate(torch.zeros(0, 5, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    assert empty.inputs.words.shape == (0, 5)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"train": 1}, r"data.train=1: found 1 texts to learn from, expected two at least"),
        ({"labels": 60}, r"data.labels=60: 54 training texts are left beside validation"),
        ({"labels": 50, "unlabelled": 5}, r"data.unlabelled=5: 4 training texts are left beside the 50 with labels"),
        ({"grammar": {"lenght": 5}}, r"data.grammar.lenght: unknown key: did you mean 'length'"),
        ({"grammar": {"length": 1}}, r"data.grammar.length: found 1; input should be greater than or equal to 2"),
        ({"prompt": 12}, r"data.prompt=12: texts have 12 words; expected fewer"),
        ({"source": "topics"}, r"data.source: found 'topics'"),
    ],
)
def test_bad_options_are_one_line(store, options, line):
    with pytest.raises(KDBenchError, match=line):
        opened(store, **options)
