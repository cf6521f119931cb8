"""Texts that a model wrote: as they are written, and as they are learned from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdbench.base import rng
from kdbench.errors import KDBenchError
from tasks.text.sequences import NONE
from tasks.text.task import Text
from tests.tasks.text import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Text:
    return tiny.task(tmp_path_factory.mktemp("cache"), labels=20, prompt=3)


@pytest.fixture(scope="module")
def model(made) -> nn.Module:
    with rng.scope(0, "model"):
        model = made.build(tiny.NET).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def written(made, model) -> dict[str, torch.Tensor]:
    return made.ops()["write"](model, 30, rng.generator(0, "corpus"), 1.0)


def folder(path: Path, texts: Any, **more: torch.Tensor) -> Path:
    save_file({"texts": texts, **more}, path / "corpus.safetensors")
    return path


def test_texts_begin_as_those_of_the_data_set(made, written):
    assert {name: tuple(value.shape) for name, value in written.items()} == {
        "texts": (30, 12),
        "given": (30,),
        "tokens": (30,),
        "log_probs": (30,),
    }
    train = torch.from_numpy(made.texts.train.texts)
    assert torch.equal(written["texts"][:, :3], torch.cat([train, train])[:30, :3])  # twenty, then again from the first
    assert not torch.equal(written["texts"][20:], written["texts"][:10])
    assert written["tokens"].tolist() == [9] * 30


def test_the_log_probability_is_that_of_what_was_written(model, written):
    for row in range(3):
        text = [0, *written["texts"][row].tolist()]
        with torch.no_grad():
            scores = model(torch.tensor([text[:-1]]))[0].log_softmax(1)
        expected = sum(float(scores[place, text[place + 1]]) for place in range(3, 12))
        assert written["log_probs"][row].item() == pytest.approx(expected, rel=1e-4)


def test_what_is_written_is_that_of_the_stream_or_the_best(made, model, written):
    again = made.ops()["write"](model, 30, rng.generator(0, "corpus"), 1.0)
    assert torch.equal(again["texts"], written["texts"])
    best = [made.ops()["write"](model, 30, rng.generator(seed, "corpus"), None)["texts"] for seed in (0, 1)]
    assert torch.equal(*best)
    assert torch.equal(best[0][:10], best[0][20:])


def test_they_take_the_place_of_the_training_texts(made, tmp_path, written):
    path = folder(tmp_path, **written)
    own = tiny.task(tmp_path, labels=20, corpus=str(path)).texts
    assert np.array_equal(own.train.texts, written["texts"].numpy())
    assert own.train.supervised is None
    assert np.array_equal(own.val.texts, made.texts.val.texts)
    assert own.val.first == 30
    assert own.learned != made.texts.learned
    batch: Any = own.train.batch(np.arange(2))
    assert batch.targets.words[:, :3].tolist() == [[NONE] * 3] * 2
    assert torch.equal(batch.targets.words[:, 3:], written["texts"][:2, 3:])


def test_they_stand_beside_the_training_texts(made, tmp_path, written):
    path = folder(tmp_path, **written)
    own = tiny.task(tmp_path, labels=20, unlabelled=5, corpus=str(path), beside=True)
    train: Any = own.texts.train
    assert len(train) == 55
    assert train.supervised.tolist() == [True] * 20 + [False] * 5 + [True] * 30
    assert train.given.tolist() == [0] * 25 + [3] * 30
    assert own.dataset().sizes["train"] == 55


def test_a_record_says_who_wrote_them(tmp_path):
    path = folder(tmp_path, torch.zeros(4, 12, dtype=torch.long))
    assert tiny.task(tmp_path, corpus=str(path)).dataset().notes == ("corpus:4 texts",)
    facts = {"writer": "0123456789abcdef", "options": {"temperature": 1.0, "seed": 3}}
    (path / "manifest.json").write_text(json.dumps(facts))
    (note,) = tiny.task(tmp_path, corpus=str(path)).dataset().notes
    assert note == "corpus:4 texts by 01234567, temperature 1.0, seed 3"


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        (torch.zeros(4, 11, dtype=torch.long), r"found texts of 11 words, expected 12: written for other data"),
        (torch.full((4, 12), 68), r"found words 68 to 68, expected 0 to 67"),
        (torch.full((4, 12), -1), r"found words -1 to -1"),
        (torch.zeros(4, 12), r"found no integer texts \(N, L\)"),
        (torch.zeros(4, dtype=torch.long), r"found no integer texts"),
    ],
)
def test_texts_of_something_else_are_one_line(tmp_path, texts, line):
    with pytest.raises(KDBenchError, match=line):
        tiny.task(tmp_path, corpus=str(folder(tmp_path, texts))).texts  # noqa: B018


def test_a_folder_of_something_else_is_one_line(tmp_path):
    with pytest.raises(KDBenchError, match=r"data.corpus=.*: found no corpus.safetensors, expected a folder"):
        tiny.task(tmp_path, corpus=str(tmp_path)).texts  # noqa: B018
