from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Feature, Grid, Nodes, Points, Tokens, Vector
from kdbench.functional.pool import average_pool
from kdbench.methods.fitnet import FitNet
from tests.methods.harness import Bench, check_deterministic, check_gradients, differ, knobs, normal, yaml
from tests.toy import Toy

KINDS = ("conv_bn_relu", "conv1x1")
#: Sizes of student and teacher, then kernel, stride and padding by axis; a negative stride is that of a transposed one.
SIZES = [
    ((7,), (7,), [(1, 1, 0)]),
    ((6, 5), (6, 5), [(1, 1, 0)] * 2),
    ((8, 6), (4, 3), [(3, 2, 1)] * 2),
    ((4, 3), (8, 6), [(4, -2, 1)] * 2),
    ((7, 6), (4, 4), [(4, 1, 0), (3, 1, 0)]),
    ((8, 5), (4, 5), [(3, 2, 1), (1, 1, 0)]),
    ((4, 5), (8, 5), [(4, -2, 1), (1, -1, 0)]),
    ((2, 4, 6), (2, 2, 3), [(1, 1, 0), (3, 2, 1), (3, 2, 1)]),
]


def bench(student: tuple[int, ...] = (3, 4, 6, 5), teacher: tuple[int, ...] = (3, 8, 6, 5), **options: Any) -> Bench:
    grids = [Grid(normal(*shape, name=n)) for shape, n in ((student, "s"), (teacher, "t"))]
    return Bench("fitnet", {"feature": grids[0]}, {"feature": grids[1]}, **options)


def test_binds_to_the_deepest_grid():
    side = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}}
    assert bind(FitNet, Toy, {"name": "toy", "student": side, "teacher": side}) == {"feature": "body"}


def test_a_vector_is_a_grid_of_one_cell():
    side = {"taps": {"pooled": "head:input"}}
    assert bind(FitNet, Toy, {"name": "toy", "student": side, "teacher": side}) == {"feature": "pooled"}
    for regressor in KINDS:
        student, teacher = normal(5, 4, name="s"), normal(5, 8, name="t")
        made = Bench("fitnet", {"feature": Vector(student)}, {"feature": Vector(teacher)}, regressor=regressor)
        s, t = ({"feature": Grid(x.detach()[:, :, None])} for x in (student, teacher))
        assert made.loss() == Bench("fitnet", s, t, regressor=regressor).loss()
        check_gradients(made)


def test_a_binding_to_nothing_is_that_to_the_deepest_grid():
    assert yaml("fitnet")["bind"] == {"feature": None}
    side = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}}
    pair = {"name": "toy", "student": side, "teacher": side}
    assert bind(FitNet, Toy, pair, {"feature": None}) == {"feature": "body"}
    assert bind(FitNet, Toy, pair, {"feature": "stem"}) == {"feature": "stem"}


def at(cell: Iterable[int]) -> tuple[Any, ...]:
    """Indexes a cell over batches and channels."""
    return (slice(None), slice(None), *cell)


def convolved(x: Tensor, weight: Tensor, bias: Tensor, axes: list[tuple[int, int, int]], out: Sequence[int]) -> Tensor:
    """A convolution cell by cell: of each cell of the grid, what it adds to each cell of the result."""
    made = bias.view(1, -1, *[1] * len(out)).repeat(len(x), 1, *out)
    transposed = any(stride < 0 for _, stride, _ in axes)
    small, large = (x.shape[2:], out) if transposed else (out, x.shape[2:])
    for offset in itertools.product(*(range(k) for k, _, _ in axes)):
        tap = weight[at(offset)] if transposed else weight[at(offset)].T
        for cell in itertools.product(*(range(n) for n in small)):
            other = [c * abs(s) + o - p for c, o, (_, s, p) in zip(cell, offset, axes, strict=True)]
            if all(0 <= o < n for o, n in zip(other, large, strict=True)):
                here, there = (other, cell) if transposed else (cell, other)
                made[at(here)] += x[at(there)] @ tap
    return made


@pytest.mark.parametrize(("space", "wanted", "axes"), SIZES)
def test_equation(space, wanted, axes):
    """Mean squared difference between the teacher and ReLU(BatchNorm(convolution(student)))."""
    made = bench((3, 4, *space), (3, 5, *wanted))
    kernel, norm, _ = made.method.regressor
    assert list(kernel.kernel_size) == [k for k, _, _ in axes]
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * normal(5, name="scale"))
        norm.bias.copy_(0.3 * normal(5, name="shift"))
    weight, bias, scale, shift = (p.detach().double() for p in (kernel.weight, kernel.bias, norm.weight, norm.bias))
    x = convolved(made.student[0].detach().double(), weight, bias, axes, wanted).transpose(0, 1).flatten(1)
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    hint = (scale[:, None] * x + shift[:, None]).clamp_min(0)
    expected = (hint - made.teacher[0].detach().double().transpose(0, 1).flatten(1)).square().mean()
    assert made.loss().item() == pytest.approx(expected.item(), rel=1e-5)
    check_gradients(made)
    check_gradients(bench((1, 4, *space), (1, 5, *wanted)))


@pytest.mark.parametrize(
    ("space", "wanted"), [((4, 4), (5, 5)), ((2, 3), (7, 9)), ((6, 4), (3, 8)), ((40, 4), (6, 4)), ((3,), (5,))]
)
def test_sizes_without_a_regressor_are_pooled_to_the_smaller(space, wanted):
    made = bench((2, 4, *space), (2, 5, *wanted))
    assert made.method.regressor[0].kernel_size == (3,) * len(space)
    size = tuple(map(min, space, wanted))
    hint, teacher = (average_pool(x, size) for x in (made.method.regressor(made.student[0]), made.teacher[0]))
    assert made.loss().item() == pytest.approx((hint - teacher).square().mean().item(), rel=1e-5)
    check_gradients(made)


@pytest.mark.parametrize("space", [(7,), (6, 5), (3, 4, 5)])
def test_equation_of_the_bare_convolution(space):
    """Mean squared difference between teacher and regressor(student), one position at a time."""
    made = bench((2, 4, *space), (2, 8, *space), regressor="conv1x1")
    weight, bias = made.method.regressor.weight.flatten(1).double(), made.method.regressor.bias.double()
    hint = made.student[0].double().flatten(2).transpose(1, 2) @ weight.T + bias
    expected = (hint - made.teacher[0].double().flatten(2).transpose(1, 2)).square().mean()
    assert made.loss().item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("regressor", KINDS)
def test_gradients_and_determinism(regressor):
    check_gradients(bench(regressor=regressor))
    check_gradients(bench((1, 4, 6, 5), (1, 8, 6, 5), regressor=regressor))
    check_deterministic(bench(regressor=regressor))


def test_a_single_cell_of_a_single_sample():
    loss = bench((1, 4, 1, 1), (1, 8, 1, 1)).loss()
    assert loss.isfinite()
    assert loss.requires_grad


def test_its_knob_is_the_regressor():
    assert knobs("fitnet") == ["regressor"]
    assert yaml("fitnet")["regressor"] == "conv_bn_relu"
    first, second = (bench(regressor=regressor).outcome() for regressor in KINDS)
    assert differ(first, second)
    with pytest.raises(KDBenchError, match=r"method.regressor: found 'linear'"):
        bench(regressor="linear")


def test_zero_where_the_regressor_gives_the_teacher():
    made = bench((2, 4, 6, 5), (2, 4, 6, 5), regressor="conv1x1")
    with torch.no_grad():
        made.method.regressor.weight.copy_(torch.eye(4)[:, :, None, None])
        made.method.regressor.bias.zero_()
        made.teacher[0].copy_(made.student[0])
    assert made.loss().item() == pytest.approx(0, abs=1e-12)
    assert not made.gradients()["student.0"].abs().gt(1e-6).any()


def test_the_bare_convolution_pools_to_the_smaller():
    made = bench((2, 4, 6, 4), (2, 8, 3, 8), regressor="conv1x1")
    hint = F.adaptive_avg_pool2d(made.method.regressor(made.student[0]), (3, 4))
    expected = (hint - F.adaptive_avg_pool2d(made.teacher[0], (3, 4))).square().mean()
    assert made.loss().item() == pytest.approx(expected.item(), rel=1e-5)
    check_gradients(made)


@pytest.mark.parametrize("regressor", KINDS)
def test_empty_batch_and_low_precision(regressor):
    empty = bench((0, 4, 6, 5), (0, 8, 6, 5), regressor=regressor)
    assert empty.loss() == 0
    assert empty.loss().requires_grad
    full = bench(regressor=regressor).loss().item()
    low = bench(regressor=regressor)
    for leaf in (*low.student, *low.teacher):
        leaf.data = leaf.data.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert low.loss().item() == pytest.approx(full, rel=0.02)


def rows_of(kind: str, width: int, name: str) -> Feature:
    values, batch = normal(6, width, name=name), torch.tensor([0, 0, 1, 1, 1, 2])
    made: dict[str, Feature] = {
        "vector": Vector(values),
        "points": Points(values, torch.zeros(6, 3), batch),
        "nodes": Nodes(values, None, batch, mask=batch > 0),
        "tokens": Tokens(values.view(2, 3, width), mask=torch.tensor([[True, True, False], [True, True, True]])),
    }
    return made[kind]


@pytest.mark.parametrize("kind", ["vector", "points", "nodes", "tokens"])
def test_other_kinds_are_compared_row_by_row(kind):
    student, teacher = rows_of(kind, 3, "s"), rows_of(kind, 8, "t")
    made = Bench("fitnet", {"feature": student}, {"feature": teacher}, regressor="conv1x1")
    weight, bias = (p.detach() for p in made.method.regressor.parameters())
    expected = sum(
        float((weight[:, :, 0] @ s.detach() + bias - t).square().sum())
        for s, t in zip(student.rows(), teacher.rows(), strict=True)
    )
    assert made.terms()["hint"].item() == pytest.approx(expected / (8 * len(teacher.rows())), rel=1e-5)


def test_tokens_with_a_grid_meet_a_grid():
    grid = Grid(normal(2, 8, 4, 3, name="t"))
    student = Tokens(normal(2, 13, 5, name="s"), prefix=1, grid=(4, 3))
    made = Bench("fitnet", {"feature": student}, {"feature": grid})
    assert made.terms()["hint"].item() > 0
    with pytest.raises(
        KDBenchError, match=r"student's feature is a Tokens\(2, 13, 5\).*expected the same kind of both"
    ):
        Bench("fitnet", {"feature": Tokens(student.values)}, {"feature": grid})
