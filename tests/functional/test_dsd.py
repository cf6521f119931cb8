"""Losses and gradients agree with ``CriterionPSD`` and ``CriterionCSD`` of winycg/CIRKD, run outside of this repository
on the same three layers and class scores of (2, 5, 12, 24), (4, 19, 24, 48) and (1, 3, 7, 5): in float64 PSD to 5e-8
(theirs is summed in float32), CSD to 2e-15 (gradients 3e-14), in float32 to 2e-7 (5e-7) and 4e-6 (2e-5)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.dsd import (
    category_correlation,
    category_similarity_loss,
    pixel_similarity_loss,
    residual_attention,
)
from tests.functional.checks import check_autocast, check_empty, check_low_precision, check_zero


def noise(*shape: int, name: str = "") -> torch.Tensor:
    return torch.randn(shape, generator=rng.generator(0, "dsd", name, *shape), dtype=torch.float64)


def layers(side: str, b: int, *space: int) -> list[torch.Tensor]:
    return [noise(b, c, *space, name=f"{side}{c}") for c in ((2, 5, 3) if side == "s" else (4, 3, 6))]


def normalised(values: list[float]) -> list[float]:
    length = sum(v * v for v in values) ** 0.5
    return [v / length for v in values]


def residuals(features: list[np.ndarray]) -> list[list[float]]:
    """Of one sample: attention of each layer, and the normalised difference of each pair."""
    squares = [np.moveaxis(f**2, 0, -1).mean(-1) for f in features]
    maps = [normalised([float(q[at]) for at in np.ndindex(*q.shape)]) for q in squares]
    return [normalised([d - s for s, d in zip(*pair, strict=True)]) for pair in itertools.combinations(maps, 2)]


@pytest.mark.parametrize("space", [(5,), (4, 3), (2, 3, 2)])
def test_pixel_similarity_matches_the_equations(space):
    student, teacher = layers("s", 2, *space), layers("t", 2, *space)
    squares = []
    for b in range(2):
        both = [residuals([f[b].numpy() for f in side]) for side in (student, teacher)]
        for r_s, r_t in zip(*both, strict=True):
            squares += [(s - t) ** 2 for s, t in zip(r_s, r_t, strict=True)]
    assert pixel_similarity_loss(student, teacher).item() == pytest.approx(float(np.mean(squares)), rel=1e-9)


def test_layers_of_several_sizes_are_compared_at_the_largest():
    small, large = noise(2, 3, 2, 3), noise(2, 4, 4, 6)
    squares = small.square().mean(1, keepdim=True)
    grown = torch.nn.functional.interpolate(squares, (4, 6), mode="bilinear").sqrt()
    found = residual_attention([small, large], (4, 6))
    torch.testing.assert_close(found, residual_attention([grown, large], (4, 6)))
    assert found.shape == (2, 1, 24)
    torch.testing.assert_close(found.norm(dim=2), torch.ones(2, 1, dtype=torch.float64))


def correlation(scores: np.ndarray, temperature: float, mask: np.ndarray | None) -> np.ndarray:
    """Of one sample (C, *space): windows of two by hand, then one pair of classes at a time."""
    space = scores.shape[1:]
    windows: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for at in np.ndindex(*space):
        if mask is None or mask[at]:
            windows.setdefault(tuple(i // 2 for i in at), []).append(at)
    pooled = np.array([[np.mean([row[at] for at in cells]) for cells in windows.values()] for row in scores])
    p = np.exp(pooled / temperature)
    p /= p.sum(1, keepdims=True)
    return np.array([[float(a @ b) for b in p] for a in p])


@pytest.mark.parametrize("shape", [(1, 2, 5), (3, 4, 4, 3), (2, 3, 2, 3, 4), (2, 3, 1, 1)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("masked", [False, True])
def test_category_similarity_matches_the_equations(shape, temperature, masked):
    student, teacher = (3 * noise(*shape, name=n) for n in ("s", "t"))
    mask = None
    if masked:
        mask = torch.rand(shape[0], *shape[2:], generator=rng.generator(0, "dsd", "mask", *shape)) < 0.5
        mask.flatten(1)[:, 0] = True
    masks = [None] * shape[0] if mask is None else [m.numpy() for m in mask]
    matrices = [
        np.array([correlation(x.numpy(), temperature, m) for x, m in zip(z, masks, strict=True)])
        for z in (student, teacher)
    ]
    np.testing.assert_allclose(category_correlation(student, temperature, mask).numpy(), matrices[0], rtol=1e-9)
    value = category_similarity_loss(student, teacher, temperature, mask)
    assert value.item() == pytest.approx(float(((matrices[0] - matrices[1]) ** 2).mean()), rel=1e-9, abs=1e-20)


def test_invariants():
    student, teacher = layers("s", 2, 4, 4), layers("t", 2, 4, 4)
    value = pixel_similarity_loss(student, teacher)
    scaled = [f * x for f, x in zip(student, (2.0, 0.3, 5.0), strict=True)]
    torch.testing.assert_close(pixel_similarity_loss(scaled, teacher), value)
    assert pixel_similarity_loss(student, student) == 0
    leaves = tuple(f.requires_grad_() for f in student)
    assert torch.autograd.gradcheck(lambda *s: pixel_similarity_loss(s, teacher), leaves)

    scores, taught = (noise(2, 3, 4, 4, name=n) for n in ("s", "t"))
    shift = torch.tensor([1.0, 5.0, -3.0]).view(1, 3, 1, 1)
    value = category_similarity_loss(scores, taught)
    torch.testing.assert_close(category_similarity_loss(scores + shift, taught - shift), value)
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    torch.testing.assert_close(category_similarity_loss(scores, taught, mask=mask), value)
    mask[:, :1] = False
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: category_similarity_loss(z, taught, mask=mask), (scores,))
    (gradient,) = torch.autograd.grad(category_similarity_loss(scores, taught, mask=mask), scores)
    assert not gradient[:, :, :1].any()


def test_low_precision_and_nothing_to_compare():
    scores, taught = (2 * noise(2, 3, 6, 6, name=n).float() for n in ("s", "t"))
    check_low_precision(category_similarity_loss, scores, taught, rel=0.05)
    check_autocast(category_similarity_loss, scores, taught)
    check_empty(category_similarity_loss, (0, 3, 4, 4), (0, 3, 4, 4))
    check_zero(category_similarity_loss, scores, taught, mask=torch.zeros(2, 6, 6, dtype=torch.bool))

    def psd(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return pixel_similarity_loss([student, student.flip(1) ** 2], [teacher, teacher.flip(1) ** 2])

    check_low_precision(psd, scores, taught, rel=0.05)
    check_empty(psd, (0, 3, 4, 4), (0, 5, 2, 2))
    with pytest.raises(KDBenchError, match="found 1 features of the student and 2 of the teacher"):
        pixel_similarity_loss([scores], [taught, taught])
    with pytest.raises(KDBenchError, match="expected .* with equal B and C"):
        category_similarity_loss(scores, taught[:, :2])
