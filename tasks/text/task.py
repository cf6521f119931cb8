"""Language models: the next word of texts whose law is known, so that a model can be held against the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kdbench.base import rng
from kdbench.base.collectives import normalizer
from kdbench.errors import KDBenchError
from kdbench.features import Feature, Logits
from kdbench.functional.numerics import upcast
from kdbench.task import Batch, Counts, DatasetInfo, ExportPlan
from tasks.text.base import TextTask, spelled
from tasks.text.data import NONE, Inputs, Targets, Texts, behind, collate, open_texts
from tasks.text.generate import generate
from tasks.text.grammar import Grammar, chain
from tasks.text.hmm import Chain
from tasks.text.metrics import NextWord, Proxy, divergence
from tasks.text.picture import Read, render

#: Texts that a model writes for ``own_kl``, and how many at a time.
WRITTEN, AT_ONCE = 1000, 250
#: Test texts that are drawn; sentences that a prediction draws, and words whose probability it says.
SHOWN, DRAWN, NAMED = 3, 3, 5


class Text(TextTask):
    """Predicts the next word; the options of ``data`` are those of :class:`~tasks.text.data.DataOptions`."""

    capabilities: ClassVar[frozenset[str]] = frozenset(
        {"single_label", "sample_id", "meta", "class_scores", "generates", "writes"}
    )
    primary: ClassVar[str] = "golden_kl"
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str | None] = "nats"
    metric_law: ClassVar[str] = "mean"

    # ---- data -------------------------------------------------------------------------------------------------

    @cached_property
    def texts(self) -> Texts:
        """The data set."""
        return open_texts(self.options, self.store)

    @property
    def words(self) -> tuple[str, ...]:
        """The vocabulary, the full stop first."""
        return self.texts.words if self.restored is None else tuple(self.restored.classes)

    @property
    def length(self) -> int:
        """Most words of a text."""
        return self.texts.length if self.restored is None else int(self.restored.inputs["length"])

    @cached_property
    def truth(self) -> Chain:
        """The law of the texts."""
        return self.texts.law if self.restored is None else chain(Grammar(**self.restored.inputs["grammar"]))

    def dataset(self) -> DatasetInfo:
        """Returns what a record says of the data set."""
        if self.restored is not None:
            return self.restored
        texts = self.texts
        return DatasetInfo(
            "grammar",
            True,
            texts.digest,
            {"train": len(texts.train), "val": len(texts.val), "test": len(texts.test)},
            learned=texts.learned,
            classes=texts.words,
            inputs={"length": texts.length, "grammar": vars(texts.grammar)},
            notes=texts.notes,
        )

    def restore(self, info: DatasetInfo) -> None:
        """Takes words, length and law of a record."""
        super().restore(info)
        self.__dict__.pop("truth", None)

    def example(self) -> Batch:
        """Returns a text of full stops."""
        batch = collate(torch.zeros(1, self.length, dtype=torch.long), torch.tensor([0]))
        return replace(batch, targets=Targets(torch.full_like(batch.targets.words, NONE), None))

    def counts(self) -> Mapping[str, Counts]:
        """Returns the words by split that a model learns from."""
        found = {}
        for name in ("train", "val", "test"):
            split = getattr(self.texts, name)
            known = len(split) if split.supervised is None else int(split.supervised.sum())
            found[name] = Counts(len(split), {"next word": known * self.texts.length}, unit="words")
        return found

    # ---- models -----------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, int]:
        """How many words there are, and of a text."""
        return {"words": len(self.words), "length": self.length}

    def forward(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Runs a model on texts."""
        words = inputs.words
        found = model(words)
        expected = (*words.shape, len(self.words))
        if not isinstance(found, Tensor) or found.shape != expected:
            shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise KDBenchError(
                f"{type(model).__name__} gives {shown}, expected scores {expected} of the next of the "
                f"{expected[-1]} words"
            )
        return found

    def describe(self, outputs: Tensor, taps: Mapping[str, Tensor], batch: Batch) -> dict[str, Feature]:
        """Tapped tensors are tokens; scores at a place are of the word that follows, so that no method shifts any."""
        features = self.tapped(taps, batch.inputs.mask)
        features["logits"] = self.mark(Logits(outputs, -1), batch)
        return features

    def mark(self, feature: Feature, batch: Batch) -> Feature:
        """Gives scores the mask of places that have a next word, and that word."""
        if not isinstance(feature, Logits):
            return feature
        words = batch.targets.words
        mask = words != NONE
        if batch.distilled is not None:
            mask = mask & batch.distilled[:, None]
        return replace(feature, mask=mask, target=words if batch.supervised is None else None)

    def loss(self, model: nn.Module, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the next word, mean over words; zero where nothing counts."""
        words = batch.targets.words
        if batch.supervised is not None:
            words = torch.where(batch.supervised[:, None], words, NONE)
        total = F.cross_entropy(upcast(outputs).flatten(0, 1), words.flatten(), ignore_index=NONE, reduction="sum")
        return {"next_word": total / normalizer((words != NONE).sum())}

    # ---- scores -----------------------------------------------------------------------------------------------

    def metrics(self, split: str) -> MetricCollection:
        """Against the true law of the next word, and against the words."""
        return MetricCollection([NextWord()], compute_groups=False)

    def score(self, metrics: MetricCollection, model: nn.Module, outputs: Tensor, batch: Batch) -> None:
        """Feeds what is said of one batch to the metrics."""
        metrics.update(outputs, batch.targets.words, batch.targets.law)

    def contributions(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Returns for each text the sum of ``KL(truth || model)`` over its places, and how many these are."""
        there = batch.targets.words >= 0
        law = batch.targets.law
        apart = divergence(law, F.log_softmax(upcast(outputs), -1).to(law.dtype))
        return torch.stack([torch.where(there, apart, 0.0).sum(1), there.sum(1)], 1)

    @torch.no_grad()
    def evaluate(
        self, artifact: nn.Module, loader: Iterable[Batch], split: str, device: torch.device
    ) -> dict[str, float]:
        """Scores a model; on the test set also ``own_kl``, that of what it writes itself."""
        scores = super().evaluate(artifact, loader, split, device)
        return scores | ({"own_kl": self._own(artifact, device)} if split == "test" else {})

    def _own(self, model: nn.Module, device: torch.device) -> float:
        """Returns the mean of ``KL(model || truth)`` over the places of texts that the model writes.

        Its law has a heavy tail, as a word that cannot be costs most; over 1,000 texts of 64 words that is a few per
        cent of it.
        """
        total, places = 0.0, 0
        for first in range(0, WRITTEN, AT_ONCE):
            prompts = torch.zeros(AT_ONCE, 1, dtype=torch.long, device=device)
            batch = self.written(model, prompts, rng.generator(0, "own", first))
            log_truth = torch.from_numpy(np.log(self.truth.law(batch.targets.words.cpu().numpy())))
            law = upcast(self.forward(model, batch.inputs)).softmax(-1).double().cpu()
            total += float(divergence(law, log_truth).sum())
            places += law.shape[0] * law.shape[1]
        return total / places

    def written(
        self, model: nn.Module, prompts: Tensor, generator: torch.Generator | None, temperature: float = 1.0
    ) -> Batch:
        """Returns what a model writes behind prompts as a batch without labels.

        Args:
            model: In eval mode.
            prompts: ``(B, P)`` words, the full stop first.
            generator: Where words are drawn from; None takes the most probable one.
            temperature: Above 0.
        """
        texts = generate(model, prompts, self.length + 1, generator, temperature, window=self.length)[:, 1:]
        ids = torch.full((len(texts),), NONE, device=texts.device)
        return collate(texts, ids, supervised=torch.zeros(len(texts), dtype=torch.bool, device=texts.device))

    @torch.no_grad()
    def compare(self, models: Mapping[str, nn.Module], loader: Iterable[Batch]) -> Mapping[str, Mapping[str, float]]:
        """Returns for each model but ``teacher`` its ``proxy_kl``, how far the teacher's law is from its own."""
        if "teacher" not in models:
            return {}
        found = Proxy([name for name in models if name != "teacher"])
        for batch in loader:
            logits = {name: self.forward(model.eval(), batch.inputs) for name, model in models.items()}
            found.add(logits["teacher"], logits, batch.targets.words != NONE)
        return found.result()

    # ---- what people ask for ----------------------------------------------------------------------------------

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """``with_scores``: scores are the raw outputs; ``generate`` and ``write``: a model writes texts."""
        scores = {"with_scores": lambda outputs, values: values}
        return {**scores, "generate": self._generated, "write": self._write}

    def _generated(self, model: nn.Module, batch: Batch, generator: torch.Generator, temperature: float = 1.0) -> Batch:
        """Returns a batch with texts of the model's own; words of the prompt are not to be predicted."""
        given = self.texts.options.prompt
        made = self.written(model, batch.inputs.words[:, : given + 1], generator, temperature)
        told = behind(made, torch.full((len(batch),), given, device=made.ids.device))
        memo = {"tokens": len(batch) * (self.length - given)}
        return batch.with_inputs(made.inputs, targets=told.targets, supervised=made.supervised, memo=memo)

    @torch.no_grad()
    def _write(
        self, model: nn.Module, count: int, generator: torch.Generator, temperature: float | None
    ) -> dict[str, Tensor]:
        """Returns texts that a model writes behind the first words of training texts, and what it says of each.

        Args:
            model: In eval mode.
            count: N texts.
            generator: Where words are drawn from.
            temperature: At which; None takes the most probable word.

        Returns:
            ``texts`` ``(N, L)``; ``given`` ``(N,)``, how many words of each were given; ``tokens`` ``(N,)``, how many
            were written; ``log_probs`` ``(N,)`` float32, their log-probability under the model, in nats.
        """
        device = next(model.parameters()).device
        given, learn = self.texts.options.prompt, self.texts.train
        order = np.arange(count) % len(learn)
        parts = []
        for rows in np.array_split(order, -(-count // AT_ONCE)):
            prompts = learn.batch(rows).inputs.words[:, : given + 1].to(device)
            draw = None if temperature is None else generator
            texts = generate(model, prompts, self.length + 1, draw, temperature or 1.0, window=self.length)[:, 1:]
            batch = collate(texts, texts.new_zeros(len(texts)))
            log_probs = F.log_softmax(upcast(self.forward(model, batch.inputs)), 2)
            said = log_probs.gather(2, texts[..., None])[..., 0][:, given:].sum(1)
            parts.append((texts.cpu(), said.float().cpu()))
        texts, log_probs = (torch.cat(part) for part in zip(*parts, strict=True))
        told = {"given": given, "tokens": self.length - given}
        return {name: torch.full((count,), n) for name, n in told.items()} | {"texts": texts, "log_probs": log_probs}

    def export(self, model: nn.Module) -> ExportPlan:
        """The whole model, for any number of texts; a shorter one is filled up behind its end, at which none looks."""
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        words = self.example().inputs.words.to(device)
        facts = {"words": list(self.words), "length": self.length, "begins_with": self.words[0]}
        return ExportPlan(model, (words,), ("words",), ("scores",), {"words": {0: "batch"}}, facts=facts)

    @torch.no_grad()
    def picture(self, batch: Batch, models: Mapping[str, nn.Module]) -> Image:
        """The test texts on which the last two models differ most, each word coloured by its KL to the truth."""
        law = batch.targets.law
        found = {}
        for name, model in models.items():
            log_probs = F.log_softmax(upcast(self.forward(model.eval(), batch.inputs)), -1)
            found[name] = divergence(law, log_probs).cpu()
        *_, last = found.values()
        other = [*found.values()][-2] if len(found) > 1 else torch.zeros_like(last)
        order = (other - last).abs().mean(1).argsort(descending=True)[:SHOWN].tolist()
        words = batch.targets.words.tolist()
        return render(
            [
                Read(
                    f"text {int(batch.ids[row])}",
                    [self.words[word] for word in words[row]],
                    {name: apart[row].numpy() for name, apart in found.items()},
                )
                for row in order
            ]
        )

    def parse(self, text: str) -> Batch:
        """Reads words of the vocabulary, which a model continues; no word at all is the beginning of a text.

        Raises:
            KDBenchError: A word is not in the vocabulary, or there are more than the model reads.
        """
        said = spelled(text)
        numbers = self.numbers(said, self.words)
        if len(said) >= self.length:
            raise KDBenchError(f"found a text of {len(said)} words, expected at most {self.length - 1}: shorten it")
        words = torch.tensor([[0, *numbers]])
        inputs = Inputs(words, torch.ones_like(words, dtype=torch.bool))
        return Batch(inputs, Targets(torch.full_like(words, NONE), None), torch.tensor([0]))

    @torch.no_grad()
    def predictions(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Returns of each text the most probable next words, and how the model ends the sentence, at best and drawn."""
        model.eval()
        words = batch.inputs.words
        found = self._scores(model, words)[:, -1].softmax(-1).cpu()
        best = self._ended(generate(model, words, self.length, window=self.length), words.shape[1])
        drawn = [
            self._ended(
                generate(model, words, self.length, rng.generator(0, "predict", number), window=self.length),
                words.shape[1],
            )
            for number in range(DRAWN)
        ]
        told = []
        for row, law in enumerate(found):
            top = law.topk(min(NAMED, len(law)))
            named = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            next_word = {self.words[word]: round(share, 4) for word, share in named}
            told.append({"next": next_word, "continuation": best[row], "drawn": [one[row] for one in drawn]})
        return told

    def _scores(self, model: nn.Module, words: Tensor) -> Tensor:
        """Returns scores ``(B, L, words)`` of L words, filled up, as a fixed graph reads whole texts alone."""
        whole = F.pad(words, (0, self.length - words.shape[1]))
        return upcast(self.forward(model, Inputs(whole, whole >= 0)))[:, : words.shape[1]]

    def _ended(self, texts: Tensor, given: int) -> list[str]:
        """Returns what stands behind the ``given`` words of texts, up to the end of the sentence."""
        ends = []
        for text in texts[:, given:].tolist():
            stop = text.index(0) + 1 if 0 in text else len(text)
            ends.append(" ".join(self.words[word] for word in text[:stop]))
        return ends

    @torch.no_grad()
    def show(self, batch: Batch, model: nn.Module, name: str) -> Image:
        """A text and how the model ends its sentence, each word coloured by its KL to the truth."""
        given = batch.inputs.words.shape[1]
        text = generate(model.eval(), batch.inputs.words.cpu(), self.length, window=self.length)[0, 1:]
        rest = text[given - 1 :].tolist()
        text = text[: given - 1 + (rest.index(0) + 1 if 0 in rest else len(rest))][None]
        law = torch.from_numpy(self.truth.law(text.numpy()).astype(np.float32))
        log_probs = F.log_softmax(self._scores(model, collate(text, torch.tensor([0])).inputs.words), -1)
        words = [self.words[word] for word in text[0].tolist()]
        return render([Read(name, words, {"model": divergence(law, log_probs)[0].numpy()}, given - 1)])
