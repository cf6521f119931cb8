"""The task: loss, features, scores, and what a person gets to see."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdbench import export
from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.features import Logits, Tokens, Vector
from kdbench.predict import find_inputs
from kdbench.predict import main as predict
from kdbench.records.record import find_records, read_record
from kdbench.roles.sources import Network
from kdbench.runs.deployment import read_run
from kdbench.task import Batch
from tasks.text.task import Text
from tests.cli import CommandLine
from tests.tasks.text import tiny
from tests.tiny import overrides

NOTHING = nn.Identity()
SAID = "the proud kings near the river ."


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Text:
    return tiny.task(tmp_path_factory.mktemp("cache"), labels=30, unlabelled=10)


@pytest.fixture
def batch(made) -> Batch:
    found = next(iter(made.data(0).train_dataloader()))
    return replace(found, supervised=torch.tensor([True, False, True, True]))


@pytest.fixture
def model(made) -> nn.Module:
    with rng.scope(0, "model"):
        return made.build(tiny.NET).eval()


def test_kinds_are_read_from_the_configuration_alone():
    assert Text.kinds({"taps": tiny.TAPS}) == {"first": Tokens, "last": Tokens, "pooled": Vector, "logits": Logits}
    assert Text.kinds({}) == {"logits": Logits}


def test_the_loss_is_the_mean_over_words_of_texts_with_labels(made, batch):
    logits = torch.randn(4, 12, 68, dtype=torch.float64)
    rows = [-logits[b, t].log_softmax(0)[batch.targets.words[b, t]] for b in range(4) for t in range(12) if b != 1]
    found = made.loss(NOTHING, logits, batch)
    assert found.keys() == {"next_word"}
    assert found["next_word"].item() == pytest.approx(torch.stack(rows).mean().item(), rel=1e-9)


def test_a_batch_without_labels_gives_a_zero_on_the_graph(made, batch):
    logits = torch.randn(4, 12, 68, requires_grad=True)
    loss = made.loss(NOTHING, logits, replace(batch, supervised=torch.zeros(4, dtype=torch.bool)))["next_word"]
    assert loss.item() == 0
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_features_are_aligned_and_masked(made, batch, model):
    some = replace(batch, distilled=torch.tensor([True, True, False, True]))
    found: dict[str, Any] = dict(Network(made, model, tiny.TAPS).answer(some).features)
    assert found["first"].values.shape == found["last"].values.shape == (4, 12, 8)
    torch.testing.assert_close(found["pooled"].values, found["last"].values.mean(1))
    logits = found["logits"]
    assert logits.target is None
    assert logits.mask.sum(1).tolist() == [12, 12, 0, 12]
    assert len(logits.rows()) == 36
    whole: Any = made.mark(Logits(logits.values), replace(batch, supervised=None))
    assert torch.equal(whole.row_target(), batch.targets.words.flatten())


def test_scores_of_a_model_that_knows_the_law(made):
    """Its golden divergence is none, and its own words are the truth's."""

    class Oracle(nn.Module):
        def forward(self, words):
            texts = np.concatenate([words[:, 1:].numpy(), np.zeros((len(words), 1), dtype=int)], 1)
            return torch.from_numpy(np.log(made.truth.law(texts))).float()

    found = made.evaluate(Oracle(), made.data(0).test_dataloader(), "test", torch.device("cpu"))
    assert found["golden_kl"] == pytest.approx(0, abs=1e-6)
    assert found["own_kl"] == pytest.approx(0, abs=1e-6)
    assert found["perplexity"] == pytest.approx(np.exp(found["nll"]), rel=1e-6)


def test_own_words_are_scored_by_the_law_of_what_was_written(made, model):
    batch = made.written(model, torch.zeros(3, 1, dtype=torch.long), rng.generator(0, "write"))
    assert batch.inputs.words.shape == batch.targets.words.shape == (3, 12)
    assert torch.equal(batch.inputs.words[:, 1:], batch.targets.words[:, :-1])
    assert batch.supervised is not None
    assert not batch.supervised.any()
    found = made.evaluate(model, made.data(0).test_dataloader(), "test", torch.device("cpu"))
    assert "own_kl" not in made.evaluate(model, made.data(0).val_dataloader(), "val", torch.device("cpu"))
    with torch.no_grad():
        uniform = -np.log(68) - np.log(made.truth.law(batch.targets.words.numpy())).mean()
    assert found["own_kl"] == pytest.approx(uniform, rel=0.1)  # it says anything at all


def test_what_is_written_goes_on_from_the_prompt(tmp_path, model):
    made = tiny.task(tmp_path, prompt=3)
    batch = next(iter(made.data(0).train_dataloader()))
    write = made.ops()["generate"]
    found, again = (write(model, batch, rng.generator(0, "write")) for _ in range(2))
    assert torch.equal(found.inputs.words, again.inputs.words)
    assert torch.equal(found.inputs.words[:, :4], batch.inputs.words[:, :4])
    assert not torch.equal(found.inputs.words, batch.inputs.words)
    assert torch.equal(found.targets.words[:, 3:-1], found.inputs.words[:, 4:])
    logits: Any = made.describe(torch.zeros(4, 12, 68), {}, found)["logits"]
    assert logits.mask.tolist() == [[False] * 3 + [True] * 9] * 4
    assert torch.equal(found.ids, batch.ids)
    assert not found.supervised.any()


def test_how_far_from_the_teacher(made, model):
    loader = made.data(0).test_dataloader()
    found = made.compare({"teacher": model, "student": model}, loader)
    assert found == {"student": {"proxy_kl": pytest.approx(0, abs=1e-6), "agreement": 100.0}}
    assert made.compare({"student": model}, loader) == {}


@pytest.mark.parametrize(
    ("network", "line"),
    [
        (nn.Identity(), r"Identity gives \(4, 12\), expected scores \(4, 12, 68\) of the next of the 68 words"),
        (nn.Embedding(68, 12), r"Embedding gives \(4, 12, 12\)"),
    ],
)
def test_a_model_that_scores_something_else_is_one_line(made, batch, network, line):
    with pytest.raises(KDBenchError, match=line):
        made.forward(network, batch.inputs)


def test_a_tap_that_is_no_token_is_one_line(made, batch):
    with pytest.raises(KDBenchError, match=r"tap 'x' has shape \(3, 2\), expected tokens \(4, 12, D\)"):
        made.describe(torch.zeros(4, 12, 68), {"x": torch.zeros(3, 2)}, batch)


def test_what_a_person_gives_is_read(made, tmp_path):
    batch = made.parse("The proud KINGS near the river.")
    assert [made.words[word] for word in batch.inputs.words[0]] == [".", *SAID.split()]
    assert made.parse(" ").inputs.words.tolist() == [[0]]
    path = tmp_path / "a.txt"
    path.write_text("the king")
    assert made.read(path).inputs.words.shape == (1, 3)
    with pytest.raises(KDBenchError, match=r"'kong' is no word of grammar: did you mean .*'king'"):
        made.parse("the kong")
    with pytest.raises(KDBenchError, match=r"found a text of 12 words, expected at most 11: shorten it"):
        made.parse("the king " * 6)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(KDBenchError, match=r"a.txt: cannot be read as text: .*codec"):
        made.read(path)


def test_a_prompt_is_no_file(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.txt").write_text("the")
    long = "the " * 200
    assert find_inputs(made, ["the king", "b.txt", "", long]) == ["the king", Path("b.txt"), "", long]
    for name in ("c.txt", "folder/the king"):
        with pytest.raises(KDBenchError, match="there is no"):
            find_inputs(made, [name])


@pytest.mark.slow
def test_a_run_continues_a_prompt_and_is_exported(tmp_path, monkeypatch, capsys):
    kdbench = CommandLine(tmp_path, monkeypatch, capsys, task="text")
    done = kdbench("method=kd", "trainer.accelerator=cpu", *overrides("text", tmp_path))
    assert done.code == 0, done.err
    (run,) = find_records(kdbench.results)
    record = read_record(run)
    test = record.scores["student"].test
    assert record.primary is not None
    assert {"golden_kl", "proxy_kl", "own_kl", "nll", "perplexity", "accuracy", "ece", "agreement"} == {*test}
    assert not record.primary.higher_is_better
    capsys.readouterr()
    assert predict([str(run), "the king", "--out", str(tmp_path / "p.png")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["input"] == "the king"
    assert len(found["next"]) == 5
    assert len(found["drawn"]) == 3
    assert (tmp_path / "p.png").is_file()
    assert export.export(read_run(run), out=tmp_path / "s.onnx")[1] < 1e-3
