"""What a model of texts is worth: against the true law of what it tells, against what was there, and its teacher."""

from __future__ import annotations

import math
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


class Told(Metric):
    """Scores of one class a row: what is said of it against its true law, and against what it was.

    ``compute`` returns ``golden_kl``, the mean of ``KL(truth || model)`` over rows whose true law is known; ``nll``,
    the mean negative log-likelihood, both in nats; ``accuracy`` of the most probable class, and ``ece``, the expected
    calibration error of its probability in 15 equal bins, in percent.

    Args:
        kwargs: As for ``torchmetrics.Metric``.
    """

    is_differentiable = False
    full_state_update = False
    golden: Tensor
    lawful: Tensor
    log_loss: Tensor
    correct: Tensor
    rows: Tensor
    binned: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("golden", "lawful", "log_loss", "correct", "rows"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("binned", torch.zeros(BINS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, classes: Tensor, law: Tensor | None) -> None:
        """Adds a batch.

        Args:
            logits: ``(…, C)``.
            classes: ``(…)``, negative where there is none.
            law: ``(…, C)`` their true law, or None.
        """
        there = classes >= 0
        logits, classes = logits[there], classes[there]
        log_probs = F.log_softmax(upcast(logits), 1)
        if law is not None:
            self.golden += divergence(law[there].to(log_probs.dtype), log_probs).double().sum()
            self.lawful += len(classes)
        # Logits that differ may have the same logarithm of a probability.
        hit = logits.argmax(1) == classes
        confidence = log_probs.amax(1).exp()
        self.log_loss += F.nll_loss(log_probs, classes, reduction="sum").double()
        self.correct += hit.sum()
        self.rows += len(classes)
        edges = torch.linspace(0, 1, BINS + 1, device=logits.device)[1:-1]
        self.binned.index_add_(0, torch.bucketize(confidence, edges), (confidence - hit.to(confidence.dtype)).double())

    def compute(self) -> dict[str, Tensor]:
        """Returns the scores of all rows so far."""
        return {
            "golden_kl": self.golden / self.lawful,
            "nll": self.log_loss / self.rows,
            "accuracy": 100 * self.correct / self.rows,
            "ece": 100 * self.binned.abs().sum() / self.rows,
        }


class NextWord(Told):
    """Scores of the next word at every place of the texts.

    Beside those of :class:`Told`, ``compute`` returns ``perplexity``, ``exp(nll)`` of all words together.
    """

    def compute(self) -> dict[str, Tensor]:
        """Returns the scores of all words so far."""
        scores = super().compute()
        return scores | {"perplexity": scores["nll"].exp()}


class PerByte(NextWord):
    """Scores of the next word where texts are known to be of so many bytes.

    Beside those of :class:`NextWord`, ``compute`` returns ``bits_per_byte``: the negative log-likelihood of all words
    together, in bits, over the bytes of the texts. Vocabularies differ, bytes do not.

    Args:
        kwargs: As for ``torchmetrics.Metric``.
    """

    bytes: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("bytes", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, classes: Tensor, law: Tensor | None, size: Tensor | None = None) -> None:
        """Adds a batch, as :class:`Told` does; ``size`` ``(B,)`` are the bytes of its texts."""
        super().update(logits, classes, law)
        if size is not None:
            self.bytes += size.sum()

    def compute(self) -> dict[str, Tensor]:
        """Returns the scores of all words so far."""
        return super().compute() | {"bits_per_byte": self.log_loss / math.log(2) / self.bytes}


class OfTexts(Told):
    """Scores of the class of each text.

    Beside those of :class:`Told`, ``compute`` returns ``worst_class``, the lowest accuracy of a class that has texts.

    Args:
        classes: How many there are.
        kwargs: As for ``torchmetrics.Metric``.
    """

    seen: Tensor
    hits: Tensor

    def __init__(self, classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classes = classes
        for name in ("seen", "hits"):
            self.add_state(name, torch.zeros(classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, classes: Tensor, law: Tensor | None) -> None:
        """Adds a batch, as :class:`Told` does, of logits ``(B, C)``."""
        super().update(logits, classes, law)
        known = classes >= 0
        self.seen += classes[known].bincount(minlength=self.classes)
        self.hits += classes[known & (logits.argmax(1) == classes)].bincount(minlength=self.classes)

    def compute(self) -> dict[str, Tensor]:
        """Returns the scores of all texts so far."""
        by_class = (self.hits / self.seen)[self.seen > 0]
        worst = by_class.min() if len(by_class) else self.golden * torch.nan
        return super().compute() | {"worst_class": 100 * worst}


class Proxy:
    """How far models are from their teacher, at every place of texts or in the class of each.

    Args:
        names: Of the models.
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.apart = dict.fromkeys(names, 0.0)
        self.agreed = dict.fromkeys(names, 0)
        self.places = 0

    def add(self, teacher: Tensor, logits: dict[str, Tensor], there: Tensor) -> None:
        """Adds a batch: scores ``(…, C)`` of the teacher and of each model, and what rows count ``(…)``."""
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
