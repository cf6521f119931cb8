from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.functional.gld import coactivation, graph_logits_loss
from tests.functional.checks import check_autocast, check_empty, check_low_precision

OWNERS = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 1, 1])


def logits(n: int, c: int, name: str = "x") -> torch.Tensor:
    return 2 * torch.randn(n, c, generator=rng.generator(0, "gld", name, n, c), dtype=torch.float64)


def nodes(z: np.ndarray, owner: np.ndarray, samples: int, top: int) -> np.ndarray:
    """The mean of each row of the whole graph, formed."""
    found = np.zeros((samples, z.shape[1]))
    for sample in range(samples):
        graph = np.zeros((z.shape[1], z.shape[1]))
        for row in z[owner == sample]:
            centred = row - row.mean()
            kept = np.zeros_like(centred)
            order = np.argsort(-centred)[:top]
            kept[order] = centred[order]
            graph += np.outer(kept, kept)
        count = max((owner == sample).sum(), 1)
        found[sample] = graph.sum(1) / (count * min(top, z.shape[1]))
    return found


@pytest.mark.parametrize("top", [1, 3, 20])
def test_matches_the_graph_as_it_is_formed(top):
    student, teacher = logits(5, 6, "s"), logits(4, 9, "t")
    found = [coactivation(z, owner, 3, top) for z, owner in zip((student, teacher), OWNERS, strict=True)]
    for z, owner, value in zip((student, teacher), OWNERS, found, strict=True):
        expected = nodes(z.numpy(), owner.numpy(), 3, top)
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-10, atol=1e-12)
    assert not found[0][2].any()  # no row is of the third sample
    padded = np.zeros((3, 9))
    padded[:, :6] = found[0].numpy()
    apart = (np.sort(padded, 1) - np.sort(found[1].numpy(), 1))[:2]
    loss = graph_logits_loss(student, teacher, *OWNERS, samples=3, top=top)
    assert loss.item() == pytest.approx((apart**2).mean(), rel=1e-9)


def test_what_it_does_not_see():
    student, owner = logits(5, 6), OWNERS[0]
    for same in (student + 3, student[:, torch.tensor([3, 0, 5, 1, 4, 2])]):
        assert graph_logits_loss(student, same, owner, owner, 2).item() == pytest.approx(0, abs=1e-12)
    assert graph_logits_loss(student, logits(5, 6, "other"), owner, owner, 2) > 0


def test_gradients_precision_and_edges():
    student, teacher = logits(5, 4, "s").requires_grad_(), logits(4, 6, "t")
    assert torch.autograd.gradcheck(lambda s: graph_logits_loss(s, teacher, *OWNERS, 2, 3), (student,))
    owners = torch.arange(64) // 8, torch.arange(64) // 8
    check_low_precision(graph_logits_loss, logits(64, 50, "s"), logits(64, 30, "t"), *owners, samples=8, rel=0.05)
    few = torch.arange(8) // 4
    check_autocast(lambda s, t: graph_logits_loss(s, t, few, few, 2), logits(8, 5, "s"), logits(8, 4, "t"))
    none = torch.zeros(0, dtype=torch.long)
    check_empty(lambda s, t: graph_logits_loss(s, t, none, none, 0), (0, 5), (0, 4))
    check_empty(lambda s, t: graph_logits_loss(s, t, none, none, 3), (0, 5), (0, 4))
    one = torch.zeros(1, dtype=torch.long)
    assert graph_logits_loss(logits(1, 3), logits(1, 5), one, one, 1).shape == ()
