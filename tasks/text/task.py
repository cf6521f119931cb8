"""Language models of texts whose law is known, so that a model can be held against the truth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.base import rng
from kdbench.functional.numerics import upcast
from kdbench.task import Batch, DatasetInfo
from tasks.text.base import spelled
from tasks.text.data import Texts, named, open_texts
from tasks.text.grammar import Grammar, chain
from tasks.text.hmm import Chain
from tasks.text.language import AT_ONCE, LanguageModel
from tasks.text.metrics import divergence
from tasks.text.sequences import Targets

#: Texts that a model writes for ``own_kl``.
WRITTEN = 1000


class Text(LanguageModel):
    """Predicts the next word; the options of ``data`` are those of :class:`~tasks.text.data.DataOptions`."""

    primary: ClassVar[str] = "golden_kl"
    unit: ClassVar[str | None] = "nats"
    metric_law: ClassVar[str] = "mean"
    ends: ClassVar[bool] = False
    coloured: ClassVar[str] = "how far the law of each word is from the true one, in nats"

    @cached_property
    def texts(self) -> Texts:
        """The data set."""
        return open_texts(self.options, self.store)

    @cached_property
    def truth(self) -> Chain:
        """The law of the texts."""
        if self.restored is None:
            return self.texts.law
        return named(chain(Grammar(**self.restored.inputs["grammar"])), self.words)

    def dataset(self) -> DatasetInfo:
        """Returns what a record says of the data set, the options of its law among it."""
        info = super().dataset()
        if self.restored is not None:
            return info
        return replace(info, inputs={**info.inputs, "grammar": vars(self.texts.grammar)})

    def restore(self, info: DatasetInfo) -> None:
        """Takes words, length and law of a record."""
        super().restore(info)
        self.__dict__.pop("truth", None)

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

    def apart(self, log_probs: Tensor, targets: Targets) -> Tensor:
        """Returns ``KL(truth || model)`` of each word, ``(B, L)`` nats."""
        assert targets.law is not None
        return divergence(targets.law, log_probs)

    def judged(self, targets: Targets) -> Targets:
        """Gives a user's text its true law."""
        law = self.truth.law(targets.words.numpy()).astype(np.float32)
        return targets._replace(law=torch.from_numpy(law))

    def parse(self, text: str) -> Batch:
        """Reads words of the vocabulary, which a model continues; no word at all is the beginning of a text.

        Raises:
            KDBenchError: A word is not in the vocabulary, or there are more than the model reads.
        """
        return self.prompt(self.numbers(spelled(text), self.words))
