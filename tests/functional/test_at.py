from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.at import attention_map, attention_transfer_loss
from tests.functional.checks import check_empty, check_low_precision


def grids(b: int, c_s: int, c_t: int, *space: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "at", b, c_s, c_t, *space)
    return tuple(torch.randn(b, c, *space, generator=g, dtype=torch.float64) for c in (c_s, c_t))


def reference(student: np.ndarray, teacher: np.ndarray, power: float, norm: float, faithful: str) -> float:
    """Eq. 2 and the mean-of-squares form, one sample and one position at a time."""
    losses = []
    for b in range(len(student)):
        maps = []
        for feature in (student[b], teacher[b]):
            q = [
                sum(abs(feature[(c, *at)]) ** power for c in range(feature.shape[0]))
                for at in itertools.product(*map(range, feature.shape[1:]))
            ]
            length = sum(v * v for v in q) ** 0.5
            maps.append([v / length for v in q])
        difference = [abs(s - t) for s, t in zip(*maps, strict=True)]
        if faithful == "paper":
            losses.append(sum(d**norm for d in difference) ** (1 / norm))
        else:
            losses.append(sum(d**2 for d in difference) / len(difference))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("shape", [(1, 2, 3, 4), (3, 4, 4, 5, 3), (2, 3, 5, 2, 3, 2)])
@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(("faithful", "norm"), [("paper", 2.0), ("paper", 1.0), ("paper", 3.0), ("code", 2.0)])
def test_matches_the_equations(shape, power, faithful, norm):
    student, teacher = grids(*shape)
    value = attention_transfer_loss(student, teacher, power=power, norm=norm, faithful=faithful)
    expected = reference(student.numpy(), teacher.numpy(), power, norm, faithful)
    assert value.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("faithful", ["paper", "code"])
def test_minimum(faithful):
    _, teacher = grids(3, 4, 4, 5, 5)
    student = teacher.clone().requires_grad_()
    value = attention_transfer_loss(student, teacher, faithful=faithful)
    value.backward()
    assert value == 0
    assert student.grad is not None
    assert student.grad.isfinite().all()
    # The size of a feature does not matter, only where it is active.
    assert attention_transfer_loss(5 * teacher, teacher, faithful=faithful) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("faithful", ["paper", "code"])
def test_gradients(faithful):
    student, teacher = grids(2, 3, 2, 3, 2)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: attention_transfer_loss(s, teacher, faithful=faithful), (student,))
    attention_transfer_loss(student, teacher, faithful=faithful).backward()
    assert student.grad is not None
    assert student.grad.abs().min() > 0


def test_larger_map_is_pooled_per_axis():
    student, teacher = grids(2, 3, 3, 4, 6)
    small = teacher.unflatten(3, (2, 3)).mean(4)
    torch.testing.assert_close(
        attention_transfer_loss(student, small),
        attention_transfer_loss(student.unflatten(3, (2, 3)).mean(4), small),
    )
    tall, wide = student[:, :, :, :3], teacher[:, :, :2]
    torch.testing.assert_close(
        attention_transfer_loss(tall, wide),
        attention_transfer_loss(tall.unflatten(2, (2, 2)).mean(3), wide.unflatten(3, (3, 2)).mean(4)),
    )


def test_every_option_changes_the_value():
    student, teacher = grids(2, 3, 3, 4, 4)
    options: list[dict] = [{}, {"power": 1.0}, {"faithful": "paper"}, {"faithful": "paper", "norm": 1.0}]
    values = {round(attention_transfer_loss(student, teacher, **o).item(), 9) for o in options}
    assert len(values) == len(options)


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("faithful", ["paper", "code"])
def test_a_dead_feature_gives_no_nan(power, faithful):
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    value = attention_transfer_loss(student, torch.ones(2, 3, 4, 4), power=power, faithful=faithful)
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_low_precision():
    student, teacher = grids(4, 64, 32, 16, 16)
    check_low_precision(attention_transfer_loss, student, teacher)
    assert attention_map(1e4 * student.half()).isfinite().all()


@pytest.mark.parametrize("faithful", ["paper", "code"])
@pytest.mark.parametrize("space", [(4, 4), (2, 4)])
def test_empty(faithful, space):
    check_empty(attention_transfer_loss, (0, 3, 4, 4), (0, 5, *space), faithful=faithful)


def test_errors():
    with pytest.raises(KDBenchError, match=r"\(2, 3, 4\).*\(1, 3, 4\)"):
        attention_transfer_loss(torch.zeros(2, 3, 4), torch.zeros(1, 3, 4))
    with pytest.raises(KDBenchError, match="1 to 3 spatial axes"):
        attention_transfer_loss(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(KDBenchError, match="did you mean 'paper'"):
        attention_transfer_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), faithful="papr")  # type: ignore[arg-type]
