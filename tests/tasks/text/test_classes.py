"""Classification of texts: data, loss, features, scores, and what a person gets to see."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.base import rng
from kdbench.configuration.network import named_taps
from kdbench.errors import KDBenchError
from kdbench.features import Heads, Layer, Logits, Tokens, Vector
from kdbench.functional.tinybert import attention_scores
from kdbench.predict import main as predict
from kdbench.records.record import find_records, read_record
from kdbench.roles.sources import Network
from kdbench.task import Batch
from tasks.text.classes import TextClassification
from tasks.text.labelled import read
from tasks.text.topics import Topics, chains, posterior
from tasks.text.vocabulary import PAD, START
from tests.cli import CommandLine
from tests.tasks.text import tiny

NOTHING = nn.Identity()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> TextClassification:
    return tiny.classification(tmp_path_factory.mktemp("cache"), labels=30, unlabelled=10)


@pytest.fixture
def batch(made) -> Batch:
    found = next(iter(made.data(0).train_dataloader()))
    return replace(found, supervised=torch.tensor([True, False, True, True]))


@pytest.fixture
def model(made) -> nn.Module:
    with rng.scope(0, "model"):
        return made.build(tiny.ENCODER).eval()


def test_three_sets_with_some_labels(made):
    texts = made.texts
    assert (len(texts.train), len(texts.val), len(texts.test)) == (40, 8, 20)  # of each class one is in validation
    assert texts.train.supervised.tolist() == [True] * 30 + [False] * 10
    assert set(texts.val.classes) == {0, 1, 2, 3}
    info = made.dataset()
    assert info.classes == ("topic 1", "topic 2", "topic 3", "topic 4")
    assert info.notes[0].startswith("bayes_accuracy:")
    counts = made.counts()
    assert sum(counts["train"].labels.values()) == 30
    assert counts["test"].samples == sum(counts["test"].labels.values()) == 20


def test_the_law_is_the_posterior_of_the_text(made):
    texts, laws = made.texts, chains(Topics(**tiny.TOPICS))
    for split in (texts.val, texts.test):
        np.testing.assert_allclose(split.law, posterior(laws, split.texts - 2), rtol=1e-5, atol=1e-7)
    assert texts.train.law is None


def test_a_batch_begins_with_a_mark(made, batch):
    assert batch.inputs.words.shape == (4, 10)
    assert (batch.inputs.words[:, 0] == START).all()
    assert batch.inputs.mask.all()
    assert torch.equal(batch.inputs.words[:, 1:], torch.from_numpy(made.texts.train.texts[batch.ids]))


def test_the_loss_is_the_mean_over_texts_with_labels(made, batch):
    logits = torch.randn(4, 4, dtype=torch.float64)
    rows = [-logits[b].log_softmax(0)[batch.targets.classes[b]] for b in (0, 2, 3)]
    assert made.loss(NOTHING, logits, batch)["class"].item() == pytest.approx(torch.stack(rows).mean().item(), rel=1e-9)
    none = replace(batch, supervised=torch.zeros(4, dtype=torch.bool))
    leaf = logits.requires_grad_()
    loss = made.loss(NOTHING, leaf, none)["class"]
    loss.backward()
    assert loss.item() == 0
    assert leaf.grad is not None


def test_features(made, batch, model):
    side = {"taps": tiny.ENCODER_TAPS}
    assert made.kinds(side) == {"first": Tokens, "last": Tokens, "pooled": Vector, "logits": Logits}
    some = replace(batch, distilled=torch.tensor([True, True, False, True]))
    found: dict[str, Any] = dict(Network(made, model, tiny.ENCODER_TAPS).answer(some).features)
    torch.testing.assert_close(found["pooled"].values, found["last"].values[:, 0])
    assert found["logits"].rows().shape == (3, 4)
    assert found["logits"].target is None
    whole: Any = made.mark(Logits(found["logits"].values), replace(batch, supervised=None))
    assert torch.equal(whole.row_target(), batch.targets.classes)


def test_layers_and_heads(made, batch, model):
    """What the heads of a layer say of a text is what its attention makes of it."""
    side = {"taps": {"layer0": "embedding", **tiny.LAYER_TAPS}, "architecture": tiny.ENCODER}
    kinds = {"layer0": Layer, "layer1": Layer, "layer2": Layer, "heads1": Heads, "heads2": Heads, "logits": Logits}
    assert made.kinds(side) == kinds
    short = batch.with_inputs(read(torch.where(torch.arange(9) < 6, batch.inputs.words[:, 1:], PAD)))
    found: dict[str, Any] = dict(Network(made, model, named_taps(side)).answer(short).features)
    assert (found["layer0"].prefix, found["heads1"].causal) == (1, False)
    assert torch.equal(found["layer2"].mask, short.inputs.mask)
    assert found["heads2"].values.shape == (4, 3, 2, 10, 4)
    block = model.blocks[1]
    queries, keys, values = found["heads2"].parts()
    shut = ~found["heads2"].looks()
    attention = attention_scores(queries, keys).masked_fill(shut, torch.finfo(torch.float32).min).softmax(-1)
    mixed = block.attention.out((attention @ values).transpose(1, 2).flatten(2))
    expected = block.attention(block.norm1(found["layer1"].values), there=short.inputs.mask)
    torch.testing.assert_close(mixed[short.inputs.mask], expected[short.inputs.mask])
    with pytest.raises(KDBenchError, match=r"tap 'heads1' has shape \(4, 10, 8\), expected heads \(4, 3, H, 10, D\)"):
        made.describe(torch.zeros(4, 4), {"heads1": found["layer1"].values}, short)


def test_scores_of_a_model_that_knows_the_law(made):
    class Oracle(nn.Module):
        def forward(self, words):
            return torch.from_numpy(np.log(posterior(chains(Topics(**tiny.TOPICS)), words[:, 1:].numpy() - 2)))

    found = made.evaluate(Oracle(), made.data(0).test_dataloader(), "test", torch.device("cpu"))
    assert found["golden_kl"] == pytest.approx(0, abs=1e-5)
    assert {"accuracy", "nll", "ece", "worst_class", "golden_kl"} == {*found}
    same = made.compare({"teacher": Oracle(), "student": Oracle()}, made.data(0).test_dataloader())
    assert same["student"] == pytest.approx({"proxy_kl": 0.0, "agreement": 100.0}, abs=1e-6)
    assert made.compare({"student": Oracle()}, made.data(0).test_dataloader()) == {}


def test_the_error_of_two_accuracies(made):
    assert made.standard_error(50.0, 50.0) == pytest.approx(100 * (0.5 / 20) ** 0.5)


def test_a_model_of_something_else_is_one_line(made, batch):
    with pytest.raises(KDBenchError, match=r"Embedding gives \(4, 10, 3\), expected scores \(4, 4\) of the classes"):
        made.forward(nn.Embedding(80, 3), batch.inputs)
    with pytest.raises(KDBenchError, match=r"tap 'x' has shape \(3, 2\), expected tokens \(4, 10, D\)"):
        made.describe(torch.zeros(4, 4), {"x": torch.zeros(3, 2)}, batch)


def test_an_encoder_has_no_classes_to_tell_of_a_grammar(tmp_path):
    with pytest.raises(
        KDBenchError, match=r"Encoder asks for classes, which grammar does not have: choose another pair"
    ):
        tiny.task(tmp_path).build(tiny.ENCODER)


def test_what_a_person_gives_is_read(made):
    batch = made.parse("The proud KINGS near the river.")
    assert " ".join(made.words[word] for word in batch.inputs.words[0, 1:8]) == "the proud kings near the river ."
    assert batch.inputs.words[0, 8:].tolist() == [PAD, PAD]
    assert made.parse("").inputs.mask.sum() == 1
    with pytest.raises(KDBenchError, match=r"'kong' is no word of topics: did you mean .*'king'"):
        made.parse("the kong")
    assert torch.equal(made.parse("the king " * 5).inputs.words, made.parse("the king " * 4 + "the").inputs.words)


def test_a_picture_of_all_models(made, model, batch):
    test = next(iter(made.data(0).test_dataloader()))
    other = made.build(tiny.ENCODER)
    image = made.picture(test, {"scratch": other, "student": model})
    assert image.width == 1500
    assert len(image.getcolors(2**24) or []) > 50
    assert made.show(made.parse("the king"), model, "x").size != image.size


def test_a_record_is_read_without_data(made, tmp_path):
    info = made.dataset()
    again = tiny.classification(tmp_path)
    again.restore(info)
    assert again.facts() == made.facts()
    assert again.parse("the king").inputs.words.shape == (1, 10)


@pytest.mark.slow
def test_a_run_classifies_a_sentence(tmp_path, monkeypatch, capsys):
    kdbench = CommandLine(tmp_path, monkeypatch, capsys, task="text")
    small = [f"data.topics.{key}={value}" for key, value in tiny.TOPICS.items()]
    done = kdbench("data=topics", "method=kd", "trainer.accelerator=cpu", "data.labels=24", *small)
    assert done.code == 0, done.err
    (run,) = find_records(kdbench.results)
    record = read_record(run)
    assert record.primary is not None
    assert (record.primary.name, record.primary.unit) == ("accuracy", "%")
    assert "proxy_kl" in record.scores["student"].test
    capsys.readouterr()
    assert predict([str(run), "the king", "--out", str(tmp_path / "p.png")]) == 0
    assert len(json.loads(capsys.readouterr().out)["classes"]) == 4
