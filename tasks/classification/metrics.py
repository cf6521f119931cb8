"""Accuracy and calibration of classifiers, with sums as the only state, and temperature scaling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from torch import Tensor
from torchmetrics import Metric

from kdbench.functional.numerics import upcast

BINS = 15
#: Temperatures that are tried: a model that makes no mistake on validation would ask for an infinitely sharp one.
TEMPERATURES = (0.05, 20.0)


class Scores(Metric):
    """What a classifier is worth on a set of samples.

    ``compute`` returns ``top1`` and, where there are more than five classes, ``top5`` accuracy; ``worst_class``, the
    lowest accuracy of a class; ``ece``, the expected calibration error of the largest probability in 15 equal bins
    (Guo et al.: On Calibration of Modern Neural Networks, ICML 2017), all in percent; and ``nll``, the mean negative
    log-likelihood, in nats. nan where there is no sample.

    Args:
        classes: How many there are.
        kwargs: As for ``torchmetrics.Metric``.
    """

    is_differentiable = False
    full_state_update = False
    seen: Tensor
    correct: Tensor
    in_top5: Tensor
    log_loss: Tensor
    binned: Tensor

    def __init__(self, classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classes = classes
        for name, zero in (
            ("seen", torch.zeros(classes, dtype=torch.long)),
            ("correct", torch.zeros(classes, dtype=torch.long)),
            ("in_top5", torch.tensor(0)),
            ("log_loss", torch.tensor(0.0)),
            ("binned", torch.zeros(BINS)),  # confidence minus accuracy, summed
        ):
            self.add_state(name, zero, dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Adds samples: logits ``(N, classes)`` and true classes ``(N,)``."""
        log_probs = F.log_softmax(upcast(logits), dim=1)
        confidence, predicted = log_probs.max(1)
        hit = predicted == targets
        self.seen += targets.bincount(minlength=self.classes)
        self.correct += targets[hit].bincount(minlength=self.classes)
        if self.classes > 5:
            self.in_top5 += (log_probs.topk(5).indices == targets[:, None]).sum()
        self.log_loss += F.nll_loss(log_probs, targets, reduction="sum")
        edges = torch.linspace(0, 1, BINS + 1, device=logits.device)[1:-1]
        confidence = confidence.exp().to(self.binned.dtype)
        self.binned.index_add_(0, torch.bucketize(confidence, edges), confidence - hit.to(confidence.dtype))

    def compute(self) -> dict[str, Tensor]:
        """Returns the scores of all samples so far."""
        count = self.seen.sum()
        scores = {"top1": 100 * self.correct.sum() / count}
        if self.classes > 5:
            scores["top5"] = 100 * self.in_top5 / count
        by_class = (self.correct / self.seen)[self.seen > 0]
        scores["worst_class"] = 100 * (by_class.min() if len(by_class) else count / count)
        return scores | {"nll": self.log_loss / count, "ece": 100 * self.binned.abs().sum() / count}


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Finds the temperature under which the negative log-likelihood is lowest.

    Args:
        logits: ``(N, C)`` of samples that the model was not trained on.
        targets: ``(N,)`` their true classes.

    Returns:
        The temperature, within :data:`TEMPERATURES`; 1 where there is no sample.
    """
    if len(targets) == 0:
        return 1.0
    values = logits.double().cpu().numpy()
    true = values[np.arange(len(values)), targets.cpu().numpy()]

    def loss(log_temperature: float) -> float:
        sharp = math.exp(-log_temperature)
        return float((logsumexp(sharp * values, axis=1) - sharp * true).mean())

    # The loss is convex in 1 / T, so it has one minimum.
    low, high = map(math.log, TEMPERATURES)
    return math.exp(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x)
