from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kdbench.configuration.compat import bind
from kdbench.features import Activated, Grid, Vector
from kdbench.functional.reviewkd import hierarchical_context_loss
from kdbench.methods.reviewkd import ReviewKD
from tests.methods.harness import Bench, check_deterministic, check_gradients, differ, knobs, normal, yaml
from tests.toy import Toy

OTHER: dict[str, Any] = {"width": 3}
STAGES = ["stage1", "stage2"]
SHAPES = {"student": ((4, 8, 6), (6, 4, 3)), "teacher": ((8, 8, 6), (12, 2, 3))}


def features(role: str, batch: int, shapes: Any, pooled: bool, dtype: torch.dtype) -> dict[str, Any]:
    grids = {n: Grid(normal(batch, *s, name=role).to(dtype)) for n, s in zip(STAGES, shapes, strict=True)}
    return {**grids, "pooled": Vector(normal(batch, shapes[-1][0], name=role).to(dtype))} if pooled else grids


def bench(
    batch: int = 3, dtype: torch.dtype = torch.float32, pooled: bool = True, shapes: Any = SHAPES, **options: Any
) -> Bench:
    """Two stages and the pooled vector; the teacher is wider and its deeper stage smaller."""
    student, teacher = (features(role, batch, shapes[role], pooled, dtype) for role in ("student", "teacher"))
    bindings: dict[str, Any] = {"stages": STAGES, "pooled": "pooled" if pooled else STAGES[-1]}
    return Bench("reviewkd", student, teacher, bindings, **options)


def test_binds_to_every_grid_and_to_the_pooled_vector():
    taps = {"stem": "stem", "body": "body", "pooled": "head:input"}
    pair = {"name": "toy", "student": {"taps": taps}, "teacher": {"taps": taps}}
    assert bind(ReviewKD, Toy, pair) == {"stages": ["stem", "body"], "pooled": "pooled"}
    del taps["pooled"]
    assert bind(ReviewKD, Toy, pair) == {"stages": ["stem", "body"], "pooled": "body"}


def test_gradients_and_determinism():
    check_gradients(bench())
    check_gradients(bench(batch=1))
    check_gradients(bench(pooled=False))
    check_deterministic(bench())


@pytest.mark.parametrize("knob", knobs("reviewkd"))
def test_every_knob_counts(knob):
    assert differ(bench().outcome(), bench(**{knob: OTHER[knob]}).outcome())


def test_weight_grows_over_20_of_240_epochs():
    ramp = yaml("reviewkd")["weights"]["review"]["ramp"]
    assert 240 * ramp == pytest.approx(20, abs=0.02)


def test_equations():
    """Fuses from deep to shallow in float64 from the parameters: the vector, the small and the large stage."""
    made = bench()
    deepest, middle, first = made.method.fusions
    assert deepest.attention is None
    assert {block.reduce[0].out_channels for block in made.method.fusions} == {6}

    def norm(x: torch.Tensor, layer: Any) -> torch.Tensor:
        dims = [0, *range(2, x.ndim)]
        x = (x - x.mean(dims, True)) / (x.var(dims, correction=0, keepdim=True) + 1e-5).sqrt()
        return x * layer.weight[:, None, None] + layer.bias[:, None, None]

    def gate(x: torch.Tensor, y: torch.Tensor, block: Any) -> torch.Tensor:
        both = torch.cat([x, y], 1)
        maps = torch.einsum("bchw,kc->bkhw", both, block.attention.weight.flatten(1))
        maps = 1 / (1 + torch.exp(-maps - block.attention.bias[:, None, None]))
        return x * maps[:, :1] + y * maps[:, 1:]

    def reduce(x: torch.Tensor, block: Any) -> torch.Tensor:
        return norm(torch.einsum("bchw,kc->bkhw", x, block.reduce[0].weight.flatten(1)), block.reduce[1])

    def expand(x: torch.Tensor, block: Any) -> torch.Tensor:
        return norm(F.conv2d(x, block.expand[0].weight, padding=1), block.expand[1])

    made.method.double()
    (s1, s2, vector), (t1, t2, guide) = ([leaf.double() for leaf in side] for side in (made.student, made.teacher))
    fused = reduce(vector[..., None, None], deepest)
    losses = [hierarchical_context_loss(expand(fused, deepest), guide[..., None, None])]
    fused = gate(reduce(s2, middle), fused.expand(-1, -1, 4, 3), middle)[:, :, ::2]
    losses.append(hierarchical_context_loss(expand(fused, middle), t2))
    wide = fused.repeat_interleave(4, 2).repeat_interleave(2, 3)
    losses.append(hierarchical_context_loss(expand(gate(reduce(s1, first), wide, first), first), t1))
    expected = sum(loss.item() for loss in losses)
    assert bench().loss().item() == pytest.approx(expected, rel=1e-5)


def test_narrow_students_fuse_at_the_width_of_their_deepest_level():
    def width(**options: Any) -> int:
        return bench(**options).method.fusions[0].reduce[0].out_channels

    assert (width(), width(width=3), width(width=100)) == (6, 3, 6)


def test_each_level_reviews_itself_and_the_deeper_ones():
    made = bench()
    signals, deeper = made.signals(), None
    levels = ReviewKD.levels(signals, "student"), ReviewKD.levels(signals, "teacher")
    for depth, (fusion, level, guide) in enumerate(zip(made.method.fusions, *levels, strict=True)):
        output, deeper = fusion(level, deeper, guide.shape[2:])
        assert output.shape == guide.shape
        grads = torch.autograd.grad(output.square().sum(), made.student, retain_graph=True, allow_unused=True)
        assert [grad is not None for grad in grads[::-1]] == [i <= depth for i in range(3)]


def test_the_teacher_is_read_before_its_activations_and_the_student_after_them():
    def made(role: str) -> dict[str, Any]:
        given = features(role, 3, SHAPES[role], True, torch.float32)
        grids = {n: Activated(given[n].values.relu(), pre=given[n].values) for n in STAGES}
        return {**grids, "pooled": given["pooled"]}

    plain = bench()
    active = Bench("reviewkd", made("student"), made("teacher"), {"stages": STAGES, "pooled": "pooled"})
    student, teacher = (ReviewKD.levels(active.signals(), role) for role in ("student", "teacher"))
    for level, raw in zip(student[1:], ReviewKD.levels(plain.signals(), "student")[1:], strict=True):
        assert torch.equal(level, raw.relu())
    for level, raw in zip(teacher, ReviewKD.levels(plain.signals(), "teacher"), strict=True):
        assert torch.equal(level, raw)


@pytest.mark.parametrize("space", [((8,), (4,)), ((4, 6, 2), (2, 3, 1))])
def test_other_numbers_of_axes(space):
    shapes = {
        role: [(w, *s) for w, s in zip(w, space, strict=True)]
        for role, w in (("student", (4, 6)), ("teacher", (8, 12)))
    }
    check_gradients(bench(shapes=shapes))


def test_empty_batch_and_low_precision():
    empty = bench(batch=0)
    assert empty.loss() == 0
    assert empty.loss().requires_grad
    assert all(buffer.isfinite().all() for buffer in empty.method.buffers())
    low = bench(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert low.loss().item() == pytest.approx(bench().loss().item(), rel=0.05)
