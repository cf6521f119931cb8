"""Scores by which a training set is pruned, of small proxy networks.

* EL2N (Paul, Ganguli and Dziugaite, "Deep learning on a data diet", NeurIPS 2021, section 2.2): the norm of the error
  vector ``|| softmax(f(x)) - onehot(y) ||_2`` early in training, averaged over several initialisations.
* Forgetting (Toneva et al., "An empirical study of example forgetting during deep neural network learning", ICLR 2019):
  how often a sample that was classified correctly when it was last seen is not when it is seen again; what is never
  classified correctly counts as forgotten most. Averaged over networks, to break ties.

Deviation: the papers score with the network that is studied, over 10 networks at epoch 20 of 200; the proxies here are
three small convolutional networks, trained for as many epochs as :data:`EPOCHS` says and without augmentation.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.base import rng

Score = Literal["el2n", "forgetting"]
#: Epochs of a proxy; EL2N is taken early, forgetting over a whole training.
EPOCHS: dict[Score, int] = {"el2n": 10, "forgetting": 40}
NETWORKS = 3
BATCH = 64
RATE = 0.1
#: Side to which image files are reduced for the proxies.
SIDE = 32


def importance(images: Tensor, labels: Tensor, classes: int, by: Score, seed: int = 0) -> np.ndarray:
    """Scores each training sample; the highest are the hardest.

    Args:
        images: ``(N, C, H, W)`` float, normalised.
        labels: ``(N,)`` the labels that are trained on.
        classes: How many.
        by: Which score.
        seed: Of weights and order.

    Returns:
        ``(N,)`` float64.
    """
    scores = [_one(images, labels, classes, by, rng.derive(seed, by, i)) for i in range(NETWORKS)]
    return np.asarray(np.mean(scores, axis=0))


def proxy(channels: int, side: int, classes: int) -> nn.Module:
    """Makes a network of three convolutions, which halve the image until it is small."""
    layers: list[nn.Module] = []
    width = channels
    for out in (16, 32, 64):
        stride = 2 if side > 4 else 1
        side = -(-side // stride)
        layers += [nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        width = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def _one(images: Tensor, labels: Tensor, classes: int, by: Score, seed: int) -> np.ndarray:
    with rng.scope(seed, "init"):
        model = proxy(images.shape[1], max(images.shape[2:]), classes)
    batches = max(1, len(images) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS["forgetting"] * batches)
    forgetting = Forgetting(len(images))
    for epoch in range(EPOCHS[by]):
        order = torch.randperm(len(images), generator=rng.generator(seed, "order", epoch))
        for rows in order.tensor_split(batches):
            logits = model(images[rows])
            forgetting.see(rows, logits.argmax(1) == labels[rows])
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
            schedule.step()
    if by == "forgetting":
        return forgetting.scores(EPOCHS[by]).numpy()
    return error_norms(model.eval(), images, labels)


@torch.no_grad()
def error_norms(model: nn.Module, images: Tensor, labels: Tensor) -> np.ndarray:
    """Returns ``|| softmax(f(x)) - onehot(y) ||_2`` of each sample."""
    norms = []
    for part, target in zip(images.split(512), labels.split(512), strict=True):
        error = model(part).double().softmax(1)
        error[torch.arange(len(part)), target] -= 1
        norms.append(error.norm(dim=1))
    return torch.cat(norms).numpy()


class Forgetting:
    """Counts how often samples are forgotten between two times that they are seen.

    Args:
        samples: How many there are.
    """

    def __init__(self, samples: int) -> None:
        self.correct = torch.zeros(samples, dtype=torch.bool)
        self.learnt = torch.zeros(samples, dtype=torch.bool)
        self.count = torch.zeros(samples, dtype=torch.float64)

    def see(self, rows: Tensor, correct: Tensor) -> None:
        """Takes in whether the samples at ``rows`` are classified correctly now."""
        self.count[rows] += self.correct[rows] & ~correct
        self.correct[rows] = correct
        self.learnt[rows] |= correct

    def scores(self, most: int) -> Tensor:
        """Returns the counts, ``most`` for what was never learnt."""
        return torch.where(self.learnt, self.count, float(most))
