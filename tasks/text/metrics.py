"""What a language model is worth: against the true law of the next word, against the words, and in what it writes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from kdbench.functional.numerics import upcast

BINS = 15


def divergence(first: Tensor, log_second: Tensor) -> Tensor:
    """Returns ``KL(first || second)`` of laws ``(…, words)``, in nats; ``0 log 0`` is 0."""
    return (torch.special.xlogy(first, first) - first * log_second).sum(-1)


class NextWord(Metric):
    """Scores of the next word at every place of the texts.

    ``compute`` returns ``golden_kl``, the mean of ``KL(truth || model)`` over places whose true law is known; ``nll``,
    the mean negative log-likelihood of the words, both in nats; ``perplexity``, ``exp(nll)`` of all words together;
    ``accuracy`` of the most probable word, and ``ece``, the expected calibration error of its probability in 15 equal
    bins, in percent.

    Args:
        kwargs: As for ``torchmetrics.Metric``.
    """

    is_differentiable = False
    full_state_update = False
    golden: Tensor
    lawful: Tensor
    log_loss: Tensor
    correct: Tensor
    words: Tensor
    binned: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("golden", "lawful", "log_loss", "correct", "words"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("binned", torch.zeros(BINS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, words: Tensor, law: Tensor | None) -> None:
        """Adds a batch.

        Args:
            logits: ``(B, L, words)``.
            words: ``(B, L)`` next words, negative where there is none.
            law: ``(B, L, words)`` their true law, or None.
        """
        there = words >= 0
        log_probs, words = F.log_softmax(upcast(logits[there]), 1), words[there]
        if law is not None:
            self.golden += divergence(law[there].to(log_probs.dtype), log_probs).double().sum()
            self.lawful += len(words)
        confidence, said = log_probs.max(1)
        hit = said == words
        self.log_loss += F.nll_loss(log_probs, words, reduction="sum").double()
        self.correct += hit.sum()
        self.words += len(words)
        edges = torch.linspace(0, 1, BINS + 1, device=logits.device)[1:-1]
        confidence = confidence.exp()
        self.binned.index_add_(0, torch.bucketize(confidence, edges), (confidence - hit.to(confidence.dtype)).double())

    def compute(self) -> dict[str, Tensor]:
        """Returns the scores of all words so far."""
        nll = self.log_loss / self.words
        return {
            "golden_kl": self.golden / self.lawful,
            "nll": nll,
            "perplexity": nll.exp(),
            "accuracy": 100 * self.correct / self.words,
            "ece": 100 * self.binned.abs().sum() / self.words,
        }


class Proxy:
    """How far models are from their teacher at every place of the texts.

    Args:
        names: Of the models.
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.apart = dict.fromkeys(names, 0.0)
        self.agreed = dict.fromkeys(names, 0)
        self.places = 0

    def add(self, teacher: Tensor, logits: dict[str, Tensor], there: Tensor) -> None:
        """Adds a batch: scores ``(B, L, words)`` of the teacher and of each model, and what places count ``(B, L)``."""
        law = upcast(teacher[there]).softmax(1)
        self.places += len(law)
        for name in self.names:
            log_probs = F.log_softmax(upcast(logits[name][there]), 1)
            self.apart[name] += float(divergence(law, log_probs).double().sum())
            self.agreed[name] += int((log_probs.argmax(1) == law.argmax(1)).sum())

    def result(self) -> dict[str, dict[str, float]]:
        """Returns for each model ``proxy_kl``, the mean of ``KL(teacher || model)``, and ``agreement`` in percent."""
        places = max(self.places, 1)
        return {
            name: {"proxy_kl": self.apart[name] / places, "agreement": 100 * self.agreed[name] / places}
            for name in self.names
        }
