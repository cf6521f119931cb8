"""Language models: what all data sets of running text share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kdbench.base import rng
from kdbench.base.collectives import normalizer
from kdbench.errors import KDBenchError, nearest
from kdbench.features import Feature, Logits
from kdbench.functional.numerics import upcast
from kdbench.task import Batch, Counts, DatasetInfo, ExportPlan
from tasks.text.base import TextTask
from tasks.text.generate import generate
from tasks.text.metrics import NextWord, Proxy
from tasks.text.picture import Read, render
from tasks.text.sequences import NONE, Inputs, Targets, behind, collate, given_words

#: Texts that a model writes at a time.
AT_ONCE = 250
#: Test texts that are drawn; sentences that a prediction draws, and words whose probability it says.
SHOWN, DRAWN, NAMED = 3, 3, 5


class LanguageModel(TextTask):
    """Predicts the next word.

    Attributes:
        embedded: Whether the data set needs no files.
        ends: Whether the word in front of every text also ends it.
        coloured: What the colours of a picture mean.
    """

    capabilities: ClassVar[frozenset[str]] = frozenset(
        {"single_label", "sample_id", "meta", "class_scores", "generates", "writes", "translates"}
    )
    higher_is_better: ClassVar[bool] = False
    causal: ClassVar[bool] = True
    embedded: ClassVar[bool] = True
    ends: ClassVar[bool] = True
    coloured: ClassVar[str] = "how surprised each model is by the word that stands there, in nats"

    # ---- data -------------------------------------------------------------------------------------------------

    @property
    def words(self) -> tuple[str, ...]:
        """The vocabulary."""
        return self.texts.words if self.restored is None else tuple(self.restored.classes)

    @property
    def length(self) -> int:
        """Most words of a text."""
        return self.texts.length if self.restored is None else int(self.restored.inputs["length"])

    def dataset(self) -> DatasetInfo:
        """Returns what a record says of the data set."""
        if self.restored is not None:
            return self.restored
        texts = self.texts
        return DatasetInfo(
            texts.name,
            self.embedded,
            texts.digest,
            {"train": len(texts.train), "val": len(texts.val), "test": len(texts.test)},
            learned=texts.learned,
            classes=texts.words,
            inputs={"length": texts.length},
            notes=texts.notes,
        )

    @property
    def front(self) -> int:
        """The word in front of every text."""
        return 0

    def example(self) -> Batch:
        """Returns a text of nothing but the word in front."""
        batch = collate(torch.full((1, self.length), self.front), torch.tensor([0]), mark=self.front)
        return replace(batch, targets=Targets(torch.full_like(batch.targets.words, NONE)))

    def counts(self) -> Mapping[str, Counts]:
        """Returns the words by split that a model learns from."""
        found = {}
        for name in ("train", "val", "test"):
            split = getattr(self.texts, name)
            texts = split.texts if split.supervised is None else split.texts[split.supervised]
            known = int((texts >= 0).sum())
            if split.given is not None:
                own = split.given if split.supervised is None else split.given[split.supervised]
                known -= int(own.sum())
            found[name] = Counts(len(split), {"next word": known}, unit="words")
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
        """Against the words, and against their true law where it is known."""
        return MetricCollection([NextWord()], compute_groups=False)

    def score(self, metrics: MetricCollection, model: nn.Module, outputs: Tensor, batch: Batch) -> None:
        """Feeds what is said of one batch to the metrics."""
        metrics.update(outputs, batch.targets.words, batch.targets.law)

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

    # ---- writing ----------------------------------------------------------------------------------------------

    def written(
        self,
        model: nn.Module,
        prompts: Tensor,
        generator: torch.Generator | None,
        temperature: float = 1.0,
        known: Tensor | None = None,
    ) -> Batch:
        """Returns what a model writes behind prompts as a batch without labels.

        Args:
            model: In eval mode.
            prompts: ``(B, P)`` words, the one in front of every text first.
            generator: Where words are drawn from; None takes the most probable one.
            temperature: Above 0.
            known: ``(B,)`` words of each prompt, where they differ.
        """
        end = self.front if self.ends else None
        texts = generate(
            model, prompts, self.length + 1, generator, temperature, known=known, window=self.length, end=end
        )[:, 1:]
        if end is not None:
            first = prompts.shape[1] - 1 if known is None else known[:, None] - 1
            places = torch.arange(texts.shape[1], device=texts.device)
            ended = ((texts == end) & (places >= first)).long().cumsum(1)
            over = (ended > 1) | ((ended == 1) & (texts != end))  # all behind the first end
            texts = torch.where(over, NONE, texts)
        ids = torch.full((len(texts),), NONE, device=texts.device)
        none = torch.zeros(len(texts), dtype=torch.bool, device=texts.device)
        return collate(texts, ids, supervised=none, mark=self.front)

    def _behind(self, model: nn.Module, batch: Batch, generator: Any, temperature: float) -> Batch:
        """Returns texts of a model's own behind what is given of each of a batch, which is not to be predicted."""
        given = given_words(batch, self.texts.options.prompt)
        longest = int(given.max()) if len(given) else 0
        alike = bool((given == longest).all())
        prompts = batch.inputs.words[:, : longest + 1]
        made = self.written(model, prompts, generator, temperature, None if alike else given + 1)
        return behind(made, given)

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """``with_scores``: scores are the raw outputs; ``generate`` and ``write``: a model writes texts."""
        scores = {"with_scores": lambda outputs, values: values}
        return {**scores, "generate": self._generated, "write": self._write, "translate": self._translated}

    def _translated(self, batch: Batch, other: LanguageModel) -> Batch:
        """Returns a batch in the words of another task, one for one.

        Raises:
            KDBenchError: A word is not among those.
        """
        places = {word: number for number, word in enumerate(other.words)}
        absent = next((word for word in self.words if word not in places), None)
        if absent is not None:
            raise KDBenchError(f"{absent!r} is no word of the teacher: {nearest(absent, places)}")
        table = torch.tensor([places[word] for word in self.words], device=batch.inputs.words.device)
        words = batch.targets.words
        told = torch.where(words >= 0, table[words.clamp(min=0)], NONE)
        targets = Targets(told, None, batch.targets.size)
        return batch.with_inputs(Inputs(table[batch.inputs.words], batch.inputs.mask), targets=targets)

    def _generated(self, model: nn.Module, batch: Batch, generator: torch.Generator, temperature: float = 1.0) -> Batch:
        """Returns a batch with texts of the model's own; words of the prompt are not to be predicted."""
        made = self._behind(model, batch, generator, temperature)
        memo = {"tokens": int((made.targets.words != NONE).sum())}
        return batch.with_inputs(made.inputs, targets=made.targets, supervised=made.supervised, memo=memo)

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
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        learn = self.texts.train
        draw = None if temperature is None else generator
        parts = []
        for rows in np.array_split(np.arange(count) % len(learn), -(-count // AT_ONCE)):
            batch = learn.batch(rows)
            inputs = Inputs(*(part.to(device) for part in batch.inputs))
            targets = batch.targets._replace(words=batch.targets.words.to(device), law=None)
            made = self._behind(model, replace(batch, inputs=inputs, targets=targets), draw, temperature or 1.0)
            words = made.targets.words
            log_probs = F.log_softmax(upcast(self.forward(model, made.inputs)), 2)
            said = log_probs.gather(2, words.clamp(min=0)[..., None])[..., 0]
            texts = torch.cat([made.inputs.words[:, 1:], words[:, -1:]], 1)
            texts[:, :-1][~made.inputs.mask[:, 1:]] = NONE
            there = words != NONE
            found = (texts, given_words(made), there.sum(1), torch.where(there, said, 0.0).sum(1).float())
            parts.append([value.cpu() for value in found])
        return dict(
            zip(("texts", "given", "tokens", "log_probs"), map(torch.cat, zip(*parts, strict=True)), strict=True)
        )

    # ---- what people ask for ----------------------------------------------------------------------------------

    def export(self, model: nn.Module) -> ExportPlan:
        """The whole model, for any number of texts; a shorter one is filled up behind its end, at which none looks."""
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        words = self.example().inputs.words.to(device)
        facts = {"words": list(self.words), "length": self.length, "begins_with": self.words[self.front]}
        return ExportPlan(model, (words,), ("words",), ("scores",), {"words": {0: "batch"}}, facts=facts)

    def apart(self, log_probs: Tensor, targets: Targets) -> Tensor:
        """Returns how badly a model foresees each word, ``(B, L)`` nats: what a picture colours.

        Args:
            log_probs: ``(B, L, words)``.
            targets: The words.
        """
        return -log_probs.gather(2, targets.words.clamp(min=0)[..., None])[..., 0]

    def spelled(self, numbers: list[int]) -> list[str]:
        """Returns the words of a text, as they are drawn."""
        return [self.words[number] for number in numbers]

    def joined(self, numbers: list[int]) -> str:
        """Returns a text in one line."""
        return " ".join(self.spelled(numbers))

    @torch.no_grad()
    def picture(self, batch: Batch, models: Mapping[str, nn.Module]) -> Image:
        """The test texts on which the last two models differ most, each word coloured by :meth:`apart`."""
        found = {}
        there = (batch.targets.words != NONE).cpu()
        for name, model in models.items():
            log_probs = F.log_softmax(upcast(self.forward(model.eval(), batch.inputs)), -1)
            found[name] = torch.where(there, self.apart(log_probs, batch.targets).cpu(), 0.0)
        *_, last = found.values()
        other = [*found.values()][-2] if len(found) > 1 else torch.zeros_like(last)
        order = (other - last).abs().mean(1).argsort(descending=True)[:SHOWN].tolist()
        titles, names = self.captions(batch, models)
        texts = []
        for row in order:
            words = batch.targets.words[row][there[row]].tolist()
            apart = {names[name][row]: values[row][there[row]].numpy() for name, values in found.items()}
            texts.append(Read(titles[row], self.spelled(words), apart))
        return render(texts, self.coloured)

    def captions(self, batch: Batch, models: Mapping[str, nn.Module]) -> tuple[list[str], dict[str, list[str]]]:
        """Returns what a picture calls the texts of a batch, and each model beside each of them."""
        return [f"text {number}" for number in batch.ids.tolist()], {name: [name] * len(batch) for name in models}

    def prompt(self, numbers: list[int]) -> Batch:
        """Returns words that a model continues as a batch of one.

        Raises:
            KDBenchError: There are more than the model reads.
        """
        if len(numbers) >= self.length:
            raise KDBenchError(f"found a text of {len(numbers)} words, expected at most {self.length - 1}: shorten it")
        words = torch.tensor([[self.front, *numbers]])
        inputs = Inputs(words, torch.ones_like(words, dtype=torch.bool))
        return Batch(inputs, Targets(torch.full_like(words, NONE)), torch.tensor([0]))

    @torch.no_grad()
    def predictions(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Returns of each text the most probable next words, and how the model goes on, at best and drawn."""
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

    def _until(self, text: list[int]) -> list[int]:
        """Returns a text up to its end: of the grammar, to the end of the sentence."""
        if self.front not in text:
            return text
        return text[: text.index(self.front) + (0 if self.ends else 1)]

    def _ended(self, texts: Tensor, given: int) -> list[str]:
        """Returns what stands behind the ``given`` words of texts."""
        return [self.joined(self._until(text)) for text in texts[:, given:].tolist()]

    @torch.no_grad()
    def show(self, batch: Batch, model: nn.Module, name: str) -> Image:
        """A text and how the model goes on, each word coloured by :meth:`apart`."""
        given = batch.inputs.words.shape[1]
        text = generate(model.eval(), batch.inputs.words.cpu(), self.length, window=self.length)[0, 1:].tolist()
        text = text[: given - 1] + self._until(text[given - 1 :])
        read = collate(torch.tensor([text], dtype=torch.long), torch.tensor([0]), mark=self.front)
        log_probs = F.log_softmax(self._scores(model, read.inputs.words), -1)
        apart = self.apart(log_probs, self.judged(read.targets))[0].numpy()
        return render([Read(name, self.spelled(text), {"model": apart}, given - 1)], self.coloured)

    def judged(self, targets: Targets) -> Targets:
        """Gives a user's text what :meth:`apart` reads of it."""
        return targets
