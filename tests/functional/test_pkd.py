from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.pkd import pearson_feature_loss
from tests.functional.checks import check_autocast, check_empty, check_low_precision


def pair(*shape: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "pkd", *shape)
    return tuple(2 + 3 * torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))


def reference(student: np.ndarray, teacher: np.ndarray, ddof: int) -> float:
    """Half the mean squared difference of standardised channels, one channel at a time."""
    distances = []
    for c in range(student.shape[1]):
        z = [(x[:, c] - x[:, c].mean()) / x[:, c].std(ddof=ddof) for x in (student, teacher)]
        distances.append(np.mean((z[0] - z[1]) ** 2) / 2)
    return float(np.mean(distances))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 2, 6), (3, 1, 2, 3, 2)])
@pytest.mark.parametrize(("faithful", "ddof"), [("paper", 0), ("code", 1)])
def test_matches_the_equation(shape, faithful, ddof):
    student, teacher = pair(*shape)
    value = pearson_feature_loss(student, teacher, faithful)
    assert value.item() == pytest.approx(reference(student.numpy(), teacher.numpy(), ddof), rel=1e-9)


def test_is_one_minus_the_correlation_of_numpy():
    student, teacher = pair(3, 4, 5, 2)
    rows = [x.transpose(0, 1).flatten(1).numpy() for x in (student, teacher)]
    r = [np.corrcoef(s, t)[0, 1] for s, t in zip(*rows, strict=True)]
    assert pearson_feature_loss(student, teacher).item() == pytest.approx(1 - np.mean(r), rel=1e-9)


def test_the_size_and_the_level_of_a_channel_do_not_count():
    student, teacher = pair(2, 3, 4, 4)
    value = pearson_feature_loss(student, teacher)
    scale, shift = torch.tensor([0.1, 7.0, 3.0]).view(3, 1, 1), torch.tensor([5.0, -9.0, 0.0]).view(3, 1, 1)
    torch.testing.assert_close(pearson_feature_loss(scale * student + shift, teacher), value)
    torch.testing.assert_close(pearson_feature_loss(student, scale * teacher + shift), value)
    assert pearson_feature_loss(scale * teacher + shift, teacher).item() == pytest.approx(0, abs=1e-12)
    assert pearson_feature_loss(-teacher, teacher).item() == pytest.approx(2)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: pearson_feature_loss(s, teacher, "code"), (student,))


def test_statistics_are_those_of_the_whole_batch():
    student, teacher = pair(2, 3, 4, 4)
    apart = sum(pearson_feature_loss(student[i : i + 1], teacher[i : i + 1]) for i in range(2)) / 2
    assert pearson_feature_loss(student, teacher).item() != pytest.approx(float(apart))


def test_a_channel_that_does_not_vary_has_no_direction():
    student, teacher = (x.float() for x in pair(2, 2, 3, 3))
    student[:, 0] = 0.1
    student.requires_grad_()
    value = pearson_feature_loss(student, teacher)
    other = pearson_feature_loss(student[:, 1:].detach(), teacher[:, 1:])
    assert value.item() == pytest.approx((0.5 + other.item()) / 2, rel=1e-5)
    (gradient,) = torch.autograd.grad(value, student)
    assert not gradient[:, 0].any()
    assert gradient[:, 1].any()
    flat = torch.full((2, 2, 3, 3), 3.0)
    assert pearson_feature_loss(flat, flat - 1) == 0


def test_low_precision_and_no_rows():
    student, teacher = (x.float() for x in pair(2, 3, 6, 6))
    check_low_precision(pearson_feature_loss, student, teacher)
    check_autocast(pearson_feature_loss, student, teacher)
    check_empty(pearson_feature_loss, (0, 3, 4, 4), (0, 3, 4, 4))
    check_empty(pearson_feature_loss, (2, 0, 4, 4), (2, 0, 4, 4))
    with pytest.raises(KDBenchError, match="pearson_feature_loss: the student has shape"):
        pearson_feature_loss(student, teacher[:, :2])
    with pytest.raises(KDBenchError, match="faithful='both' is unknown"):
        pearson_feature_loss(student, teacher, "both")  # type: ignore[arg-type]
