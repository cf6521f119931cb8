"""The authors' released loss gave the same values (relative difference at most 1.1e-7) in float32 on the same maps, at
resolutions 2 and 4, with and without normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.cat_kd import class_activation_maps, class_attention_loss
from tests.functional.checks import check_empty, check_low_precision
from tests.functional.test_reviewkd import pooled

Side = tuple[torch.Tensor, torch.Tensor]


def sides(b: int, k: int, c_s: int, c_t: int, *space: int) -> tuple[Side, Side]:
    """Grid and classifier weight of student and teacher."""
    g = rng.generator(0, "cat_kd", b, k, c_s, c_t, *space)
    student, teacher = (
        (
            torch.randn(b, c, *space, generator=g, dtype=torch.float64),
            torch.randn(k, c, generator=g, dtype=torch.float64),
        )
        for c in (c_s, c_t)
    )
    return student, teacher


def reference_maps(feature: np.ndarray, weight: np.ndarray, resolution: int) -> np.ndarray:
    """Weights every cell of every channel first and pools then, as the paper does."""
    maps = np.zeros((feature.shape[0], weight.shape[0], *feature.shape[2:]))
    for b, k, c in np.ndindex(feature.shape[0], *weight.shape):
        maps[b, k] += weight[k, c] * feature[b, c]
    return pooled(maps, [resolution] * (feature.ndim - 2))


def reference(student: np.ndarray, teacher: np.ndarray, normalize: bool) -> float:
    """One sample and one class at a time."""
    squares = []
    for at in np.ndindex(*student.shape[:2]):
        s, t = student[at].ravel(), teacher[at].ravel()
        if normalize:
            s, t = s / (s**2).sum() ** 0.5, t / (t**2).sum() ** 0.5
        squares += list((s - t) ** 2)
    return float(sum(squares) / len(squares))


@pytest.mark.parametrize("shape", [(1, 3, 2, 4, 4, 4), (3, 5, 4, 6, 5, 7), (2, 3, 4, 3, 6), (2, 2, 3, 3, 4, 2, 3)])
@pytest.mark.parametrize("resolution", [2, 3])
@pytest.mark.parametrize("normalize", [True, False])
def test_matches_the_equations(shape, resolution, normalize):
    maps, expected = [], []
    for feature, weight in sides(*shape):
        maps.append(class_activation_maps(feature, weight, resolution))
        expected.append(reference_maps(feature.numpy(), weight.numpy(), resolution))
        np.testing.assert_allclose(maps[-1].numpy(), expected[-1], rtol=1e-6, atol=1e-12)
    value = class_attention_loss(*maps, normalize=normalize)
    assert value.item() == pytest.approx(reference(expected[0], expected[1], normalize), rel=1e-6)


def test_logits_are_the_average_of_the_maps():
    (feature, weight), _ = sides(3, 5, 4, 4, 6, 6)
    torch.testing.assert_close(class_activation_maps(feature, weight, 1).flatten(1), feature.mean((2, 3)) @ weight.T)
    kernel = weight[..., None, None]
    torch.testing.assert_close(class_activation_maps(feature, kernel, 6), torch.nn.functional.conv2d(feature, kernel))


def test_minimum_and_gradients():
    (feature, weight), (other, head) = sides(2, 3, 4, 5, 4, 4)
    teacher = class_activation_maps(other, head, 2)
    assert class_attention_loss(teacher, teacher) == 0
    # The scale of a map does not matter, only where the class is seen.
    assert class_attention_loss(3 * teacher, teacher) == pytest.approx(0, abs=1e-12)
    assert class_attention_loss(3 * teacher, teacher, normalize=False) > 0.1
    for leaf in (feature, weight):
        leaf.requires_grad_()
    for normalize in (True, False):
        assert torch.autograd.gradcheck(
            lambda f, w, n=normalize: class_attention_loss(class_activation_maps(f, w, 2), teacher, normalize=n),
            (feature, weight),
        )


def test_a_class_without_activation_gives_no_nan():
    student = torch.zeros(2, 3, 2, 2, requires_grad=True)
    value = class_attention_loss(student, torch.ones(2, 3, 2, 2))
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_low_precision():
    def loss(feature_s, weight_s, feature_t, weight_t):
        sides = (feature_s, weight_s), (feature_t, weight_t)
        return class_attention_loss(*(class_activation_maps(feature, weight, 2) for feature, weight in sides))

    student, teacher = sides(8, 20, 32, 64, 8, 8)
    check_low_precision(loss, *student, *teacher)
    (feature, weight), _ = sides(2, 3, 4, 4, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert class_activation_maps(feature.float(), weight.float(), 2).dtype == torch.float32


@pytest.mark.parametrize("normalize", [True, False])
def test_empty(normalize):
    def loss(feature, teacher):
        return class_attention_loss(class_activation_maps(feature, torch.ones(5, 3), 2), teacher, normalize=normalize)

    check_empty(loss, (0, 3, 8, 8), (0, 5, 2, 2))


def test_errors():
    with pytest.raises(KDBenchError, match=r"reads 4 channels and the grid has 3.*method\.bind\.feature"):
        class_activation_maps(torch.zeros(1, 3, 4, 4), torch.zeros(5, 4), 2)
    with pytest.raises(KDBenchError, match=r"\(1, 3, 2\).*\(1, 4, 2\)"):
        class_attention_loss(torch.zeros(1, 3, 2), torch.zeros(1, 4, 2))
