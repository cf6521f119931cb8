"""``CriterionStructuralKD`` and ``CriterionAdv`` of winycg/CIRKD, run outside of this repository on features of (2, 8,
12, 24), (4, 16 and 32, 24, 48) and (1, 4 and 9, 7, 5) and on scores of (4, 1, 3, 3), gave the same: pairs to 2e-16
(gradients 5e-16) in float64, 1e-7 (6e-7) in float32, in one chunk and in many; both critics exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional import skd as module
from kdbench.functional.skd import critic_loss, gradient_penalty, nodes, pair_wise_loss
from tests.functional.checks import check_autocast, check_empty, check_low_precision


def noise(*shape: int, name: str = "") -> torch.Tensor:
    return torch.randn(shape, generator=rng.generator(0, "skd", name, *shape), dtype=torch.float64)


def places(feature: np.ndarray, patch: int) -> list[np.ndarray]:
    """Normalised maxima over the patches of one sample (C, *space), by hand."""
    cells = np.moveaxis(feature, 0, -1)
    found: dict[tuple[int, ...], list[np.ndarray]] = {}
    for at in np.ndindex(*cells.shape[:-1]):
        found.setdefault(tuple(i // patch for i in at), []).append(cells[at])
    maxima = [np.max(members, axis=0) for members in found.values()]
    return [m / np.sqrt(m @ m) for m in maxima]


@pytest.mark.parametrize("shape", [(1, 2, 3, 5), (3, 4, 2, 5, 4), (2, 3, 3, 2, 3, 4)])
@pytest.mark.parametrize("patch", [1, 2, 3])
@pytest.mark.parametrize("chunk", [1, 10**6])
def test_pairs_match_the_equations(shape, patch, chunk, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    b, c_s, c_t, *space = shape
    student, teacher = noise(b, c_s, *space, name="s"), noise(b, c_t, *space, name="t")
    squares = []
    for s, t in zip(student.numpy(), teacher.numpy(), strict=True):
        f_s, f_t = places(s, patch), places(t, patch)
        squares += [(f_s[i] @ f_s[j] - f_t[i] @ f_t[j]) ** 2 for i, j in np.ndindex(len(f_s), len(f_s))]
    assert pair_wise_loss(student, teacher, patch).item() == pytest.approx(float(np.mean(squares)), rel=1e-9)


def test_chunks_change_no_gradient(monkeypatch):
    student, teacher = noise(2, 3, 5, 4, name="s").requires_grad_(), noise(2, 6, 5, 4, name="t")
    whole = torch.autograd.grad(pair_wise_loss(student, teacher, 1), student)
    monkeypatch.setattr(module, "_CHUNK", 90)
    torch.testing.assert_close(torch.autograd.grad(pair_wise_loss(student, teacher, 1), student), whole)
    assert torch.autograd.gradcheck(lambda s: pair_wise_loss(s, teacher), (student,))


def test_invariants_of_pairs():
    student, teacher = noise(2, 3, 4, 4, name="s"), noise(2, 5, 4, 4, name="t")
    value = pair_wise_loss(student, teacher)
    torch.testing.assert_close(pair_wise_loss(3 * student, teacher / 7), value)
    torch.testing.assert_close(pair_wise_loss(student[:, [2, 0, 1]], teacher.flip(1)), value)
    assert pair_wise_loss(student, 2 * student) == pytest.approx(0, abs=1e-15)
    assert nodes(student).shape == (2, 4, 3)


@pytest.mark.parametrize("shape", [(1, 1), (4, 1, 3, 2)])
def test_critics_match_the_equations(shape):
    student, teacher = 2 * noise(*shape, name="s"), 2 * noise(*shape, name="t")
    fake, real = student.numpy(), teacher.numpy()
    hinge = np.maximum(0, 1 + fake).mean() + np.maximum(0, 1 - real).mean()
    assert critic_loss(student, teacher).item() == pytest.approx(float(hinge), rel=1e-12)
    assert critic_loss(student, teacher, "wgan").item() == pytest.approx(float(fake.mean() - real.mean()), rel=1e-12)


def test_the_penalty_of_a_known_critic():
    """Of ``D(x) = a/2 |x|^2`` the gradient at x is ``a x``."""
    student, teacher, share = noise(3, 2, 4, name="s"), noise(3, 2, 4, name="t"), torch.tensor([0.0, 0.3, 1.0])
    mixed = share.view(3, 1, 1) * teacher + (1 - share.view(3, 1, 1)) * student
    a = nn.Parameter(torch.tensor(1.7, dtype=torch.float64))
    value = gradient_penalty(lambda x: a / 2 * x.square().flatten(1).sum(1), student, teacher, share)
    lengths = mixed.flatten(1).norm(dim=1)
    torch.testing.assert_close(value, (a * lengths - 1).square().mean())
    (of_critic,) = torch.autograd.grad(value, a)
    torch.testing.assert_close(of_critic, (2 * (a * lengths - 1) * lengths).mean())


def test_low_precision_and_no_samples():
    student, teacher = noise(2, 6, 6, 6, name="s").float(), noise(2, 6, 6, 6, name="t").float()
    check_low_precision(pair_wise_loss, student, teacher, rel=0.05)
    check_autocast(pair_wise_loss, student, teacher)
    check_empty(pair_wise_loss, (0, 3, 4, 4), (0, 5, 4, 4))
    for adversary in ("wgan", "hinge"):
        check_low_precision(critic_loss, student, teacher + 2, adversary=adversary)
        check_empty(critic_loss, (0, 1), (0, 1), adversary=adversary)
    scale = nn.Parameter(torch.ones(()))
    assert gradient_penalty(lambda x: scale * x, torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0)) == 0
    with pytest.raises(KDBenchError, match="pair_wise_loss: the student has shape"):
        pair_wise_loss(student, teacher[..., 1:])
