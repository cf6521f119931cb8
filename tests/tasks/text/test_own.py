"""Texts of one's own: a language model over bytes, and classes with a vocabulary of the training texts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.base import rng
from kdbench.base.store import Store
from kdbench.errors import KDBenchError
from kdbench.predict import main as predict
from kdbench.records.record import find_records, read_record
from tasks.text.classes import TextClassification
from tasks.text.own import OwnText
from tasks.text.sequences import NONE
from tasks.text.vocabulary import PAD, START, UNKNOWN, Bytes, numbers, pieces, vocabulary
from tests.cli import CommandLine
from tests.tasks.text import tiny

TEXTS = ["", "ab", "äß", "abcdefghij" * 2, *(f"number {n}" for n in range(20))]


def written(folder: Path, texts: list[str] = TEXTS) -> Path:
    lines = [json.dumps({"text": text, "label": "xyz"[n % 3]}) for n, text in enumerate(texts)]
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text("\n".join(lines))
    (folder / "test.jsonl").write_text("\n".join(lines[:9]))
    return folder


def language(folder: Path, **options: Any) -> OwnText:
    given = {"name": "owntext", "task": "text", "root": str(written(folder / "own")), "length": 8, "batch_size": 4}
    return OwnText({**given, **options}, Store(folder / "cache"))


def labelled(folder: Path, **options: Any) -> TextClassification:
    given = {"name": "ownlabels", "source": "files", "root": str(written(folder / "own")), "batch_size": 4}
    return TextClassification({**given, **options}, Store(folder / "cache"), None)


# ---- language models ------------------------------------------------------------------------------------------


def test_bytes_are_read_back():
    tokens = Bytes()
    for text in (*TEXTS, "İ", "\ud800"):
        found = tokens.encode(text)
        assert all(0 < number < 257 for number in found)
        if text != "\ud800":
            assert tokens.decode(found) == text
    assert len(tokens.words) == 257
    assert tokens.decode([0, 0xFF + 1]) == "\ufffd"


def test_texts_are_cut_into_pieces_that_hold_all_bytes(tmp_path):
    texts = language(tmp_path).texts
    test: Any = texts.test
    assert test.size.sum() == sum(len(text.encode()) for text in TEXTS[:9])
    assert ((test.texts >= 0).sum(1) - (test.texts == 0).sum(1)).tolist() == test.size.tolist()
    assert (test.texts == 0).sum() == 9  # each text ends once
    assert test.texts[0].tolist() == [0] + [NONE] * 7  # the empty one
    long = [row for row in test.texts if row[0] == ord("a") + 1 and (row >= 0).all()]
    assert len(long) == 1
    assert texts.name == "own"


def test_a_batch_masks_what_is_not_there(tmp_path):
    made = language(tmp_path)
    batch: Any = made.texts.test.batch(np.array([0, 1]))
    assert batch.inputs.words.tolist() == [[0] * 8, [0, 98, 99, 0, 0, 0, 0, 0]]
    assert batch.inputs.mask.sum(1).tolist() == [2, 4]
    assert batch.targets.words[1].tolist() == [98, 99, 0] + [NONE] * 5
    logits: Any = made.describe(torch.zeros(2, 8, 257), {}, batch)["logits"]
    assert logits.mask.sum(1).tolist() == [1, 3]


def test_bits_are_those_of_all_bytes(tmp_path):
    """A model that knows nothing takes as many bits for each byte, and for each end, as 257 equal choices do."""

    class Uniform(nn.Module):
        def forward(self, words):
            return torch.zeros(*words.shape, 257)

    made = language(tmp_path)
    found = made.evaluate(Uniform(), made.data(0).test_dataloader(), "test", torch.device("cpu"))
    size = sum(len(text.encode()) for text in TEXTS[:9])
    assert found["bits_per_byte"] == pytest.approx(math.log2(257) * (size + 9) / size)
    assert "golden_kl" not in found
    batch = next(iter(made.data(0).test_dataloader()))
    sums = made.contributions(torch.zeros(4, 8, 257), batch).sum(0)
    there = int((batch.targets.words >= 0).sum())
    assert sums.tolist() == pytest.approx([there * math.log2(257), batch.targets.size.sum().item()])


def test_what_is_written_ends(tmp_path):
    made = language(tmp_path)

    class Ends(nn.Module):
        """Says what is there once more, and then the end."""

        def forward(self, words):
            scores = torch.zeros(*words.shape, 257)
            places = torch.arange(words.shape[1]).expand(words.shape)
            scores.scatter_(2, torch.where(places < 3, 98, 0)[..., None], 50.0)
            return scores

    batch: Any = made.texts.test.batch(np.array([1, 3]))
    found = made.ops()["generate"](Ends(), batch, rng.generator(0, "x"))
    assert found.targets.words.tolist() == [[98, 98, 98, 0] + [NONE] * 4] * 2
    assert found.memo["tokens"] == 8
    kept = made.ops()["write"](Ends(), 3, rng.generator(0, "x"), None)
    assert kept["texts"].tolist() == [[98, 98, 98, 0] + [NONE] * 4] * 3
    assert kept["tokens"].tolist() == [4] * 3
    assert kept["given"].tolist() == [0] * 3
    prompted = language(tmp_path, prompt=2).ops()["write"](Ends(), 4, rng.generator(0, "x"), None)
    assert prompted["given"].tolist() == [2] * 4
    assert prompted["tokens"].tolist() == [2] * 4


def test_prompts_are_read_and_shown(tmp_path):
    made = language(tmp_path)
    with rng.scope(0, "model"):
        model = made.build(tiny.NET).eval()
    assert made.parse("").inputs.words.tolist() == [[0]]
    assert made.parse("   ").inputs.words.tolist() == [[0, 33, 33, 33]]
    assert made.parse("a long text").inputs.words.shape == (1, 8)  # its end
    (said,) = made.predictions(model, made.parse("ab"))
    assert len(said["next"]) == 5
    assert made.show(made.parse("ab"), model, "ab").width == 1500
    test = next(iter(made.data(0).test_dataloader()))
    assert made.picture(test, {"student": model}).width == 1500


def test_validation_is_that_of_the_files_where_they_have_one(tmp_path):
    made = language(tmp_path)
    own = Path(str(made.options["root"]))
    whole: Any = made.texts
    both = whole.train.size.sum() + whole.val.size.sum()
    assert both == sum(len(text.encode()) for text in TEXTS)
    assert len(made.texts.val) > 0
    (own / "val.jsonl").write_text('{"text": "v"}\n')
    again: Any = language(tmp_path).texts
    assert again.val.texts[0, 0] == ord("v") + 1
    assert len(again.val) == 1
    assert again.train.size.sum() == both


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"root": None}, "data.root is not set: expected a folder or a table"),
        ({"prompt": 8}, "data.prompt=8: pieces have 8 bytes; expected fewer"),
        ({"columns": {"txt": "a"}}, "data.columns.txt: unknown key: did you mean 'text'"),
    ],
)
def test_bad_options_are_one_line(tmp_path, options, line):
    with pytest.raises(KDBenchError, match=line):
        language(tmp_path, **options).texts  # noqa: B018


# ---- classes --------------------------------------------------------------------------------------------------


def test_pieces_and_their_numbers():
    assert pieces("It's 3 O'Clock.", "words") == ["it", "'", "s", "3", "o", "'", "clock", "."]
    assert pieces("aß ", "characters") == ["a", "ß", " "]
    words = vocabulary([["b", "a"], ["a", "c"], []], 2)
    assert words == ("", "^", "?", "a", "b")
    assert numbers(["a", "c"], {word: n for n, word in enumerate(words)}) == [3, UNKNOWN]


def test_a_lower_case_that_is_longer_is_cut_behind_it(tmp_path):
    """The Turkish capital I with a dot becomes two characters."""
    texts = ["İ" * 9, "b b"] * 6
    made = labelled(tmp_path, length=4, root=str(written(tmp_path / "other", texts)))
    assert made.texts.train.texts.shape[1] <= 4


def test_classes_are_those_of_the_training_texts(tmp_path):
    made = labelled(tmp_path, length=2)
    texts = made.texts
    assert made.classes == ("x", "y", "z")
    assert texts.source.notes == ()
    batch: Any = texts.test.batch(np.arange(3))
    assert batch.inputs.words[:, 0].tolist() == [START] * 3
    assert batch.inputs.mask.sum(1).tolist() == [1, 2, 2]  # the first text is empty
    info = made.dataset()
    assert not info.embedded
    assert info.name == "own"
    again = labelled(tmp_path)
    again.restore(info)
    assert again.parse("number nine").inputs.words.tolist()[0][2] in (UNKNOWN, PAD)
    characters = labelled(tmp_path, unit="characters", length=5)
    assert characters.texts.source.notes[0].startswith("shortened:")
    assert characters.parse("ab!").inputs.words[0, 1:].tolist().count(UNKNOWN) == 1


def test_a_class_of_test_alone_is_one_line(tmp_path):
    made = labelled(tmp_path)
    (Path(str(made.options["root"])) / "test.jsonl").write_text('{"text": "a", "label": "w"}')
    with pytest.raises(KDBenchError, match=r"test.jsonl:1: 'w' is no class of the training texts"):
        made.texts  # noqa: B018
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "train.csv").write_text("text,label\na,x\nb,x\nc,x\nd,x\n")
    with pytest.raises(KDBenchError, match=r"found the class x alone, expected two at least"):
        labelled(tmp_path, root=str(tmp_path / "one")).texts  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize("data", ["owntext", "ownlabels"])
def test_a_run_on_own_texts(tmp_path, monkeypatch, capsys, data):
    kdbench = CommandLine(tmp_path, monkeypatch, capsys, task="text")
    root = written(tmp_path / "own", [f"text {'abc'[n % 3]} {n}" for n in range(60)])
    done = kdbench(f"data={data}", f"data.root={root}", "method=kd", "trainer.accelerator=cpu", "data.batch_size=16")
    assert done.code == 0, done.err
    (run,) = find_records(kdbench.results)
    record = read_record(run)
    assert record.primary is not None
    assert record.primary.name == ("bits_per_byte" if data == "owntext" else "accuracy")
    capsys.readouterr()
    assert predict([str(run), "text a", "--out", str(tmp_path / "p.png")]) == 0
    assert json.loads(capsys.readouterr().out)["input"] == "text a"
