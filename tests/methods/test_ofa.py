from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.base import rng
from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Feature, Grid, Logits, Tokens
from kdbench.functional.ofa import ofa_loss
from kdbench.methods.blocks import BatchNorm
from kdbench.methods.ofa import OFA, Merge
from tests.methods.harness import Bench, knobs, normal, yaml
from tests.toy import Toy

OTHER: dict[str, Any] = {"gamma": 1.0, "gamma_branch": 1.0}
GRIDS = {"stage1": (4, 8, 8), "stage2": (6, 4, 4), "stage3": (8, 2, 2)}
KINDS = ["grids", "tokens", "class token", "hierarchy", "line"]


def stages(kind: str, batch: int) -> dict[str, Feature]:
    if kind == "grids":
        return {n: Grid(normal(batch, *shape, name=n)) for n, shape in GRIDS.items()}
    if kind == "line":
        return {n: Grid(normal(batch, 4, length, name=n)) for n, length in (("stage1", 8), ("stage2", 3))}
    if kind == "hierarchy":
        shapes = {"stage1": (28, 4), "stage2": (14, 8), "stage3": (7, 12)}
        return {n: Tokens(normal(batch, s * s, d, name=n), 0, (s, s)) for n, (s, d) in shapes.items()}
    prefix = 1 if kind == "class token" else 0
    return {f"stage{i}": Tokens(normal(batch, 196 + prefix, 8, name=str(i)), prefix, (14, 14)) for i in (1, 2, 3)}


def bench(kind: str = "grids", batch: int = 3, dtype: torch.dtype = torch.float32, **options: Any) -> Bench:
    target = torch.randint(5, (batch,), generator=rng.generator(0, "target"))
    student, teacher = (Logits((3 * normal(batch, 5, name=n)).to(dtype), target=target) for n in ("s", "t"))
    features = stages(kind, batch)
    return Bench("ofa", {"logits": student, **features}, {"logits": teacher}, {"stages": list(features)}, **options)


def total(made: Bench) -> Tensor:
    terms = made.terms()
    assert set(terms) == set(yaml("ofa")["weights"]) - {"task"}
    return terms["ofa"] + terms["ofa_branches"]


def test_binds_to_the_stages_of_the_student_alone():
    student = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}}
    bindings = bind(OFA, Toy, {"name": "toy", "student": student, "teacher": {"taps": {"pooled": "head:input"}}})
    assert bindings == {"stages": ["stem", "body"], "logits": "logits"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 3])
def test_gradients_reach_features_and_branches_and_no_teacher(kind, batch):
    made = bench(kind, batch)
    total(made).backward()
    for name, leaf in {**made.trainable(), **{str(i): leaf for i, leaf in enumerate(made.student)}}.items():
        assert leaf.grad is not None, name
        assert leaf.grad.isfinite().all(), name
        assert leaf.grad.any(), name
    assert all(leaf.grad is None for leaf in made.teacher)


@pytest.mark.parametrize("space", [(2,), (2, 2), (2, 2, 2)])
def test_one_value_a_channel_is_enough(space):
    """A batch of one whose map a branch halves to one cell: it has no variance to normalise by."""
    deep = [1] * len(space)
    grids = {"stage1": Grid(normal(1, 4, *space)), "stage2": Grid(normal(1, 6, *deep))}
    student, teacher = (Logits(normal(1, 5, name=n), target=torch.tensor([1])) for n in ("s", "t"))
    made = Bench("ofa", {"logits": student, **grids}, {"logits": teacher}, {"stages": list(grids)})
    assert made.method.training
    before = {name: buffer.clone() for name, buffer in made.method.named_buffers()}
    total(made).backward()
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in made.method.named_buffers() if "mean" in name)
    for name, parameter in made.trainable().items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_branches_term_is_the_sum_over_exits(kind):
    made = bench(kind)
    made.method.eval()
    logits: Any = made.given["student"]["logits"]
    target = logits.target
    exits = [branch(s) for branch, s in zip(made.method.branches, made.student[1:], strict=True)]
    assert all(scores.shape == (3, 5) for scores in exits)
    expected = sum(ofa_loss(scores, made.teacher[0], target, 1.5).item() for scores in exits)
    terms = made.terms()
    assert terms["ofa_branches"].item() == pytest.approx(expected, rel=1e-5)
    assert terms["ofa"].item() == pytest.approx(ofa_loss(made.student[0], made.teacher[0], target, 1.5).item())


def test_earlier_stages_get_deeper_branches():
    grids = bench("grids").method.branches
    assert [sum(isinstance(m, BatchNorm) for m in branch.modules()) for branch in grids] == [4, 2, 0]
    tokens = bench("tokens").method.branches
    assert [len(branch.blocks) for branch in tokens] == [2, 1, 1]
    assert [len(branch.merges) for branch in tokens] == [1, 1, 1]
    assert [len(branch.merges) for branch in bench("hierarchy").method.branches] == [2, 1, 0]


def test_merge_joins_neighbours():
    """Each new token reads the 2x2 patch at its place and nothing else."""
    values = normal(1, 4, 6, 3, name="merge").requires_grad_()
    Merge(3, 2)(values)[0, 1, 2].sum().backward()
    assert values.grad is not None
    touched = values.grad.abs().sum(-1)[0] > 0
    assert touched[2:4, 4:6].all()
    assert touched.sum() == 4


@pytest.mark.parametrize("knob", knobs("ofa"))
def test_every_knob_counts(knob):
    assert total(bench()).item() != pytest.approx(total(bench(**{knob: OTHER[knob]})).item(), rel=1e-5)


def test_masked_rows_do_not_count():
    mask, target = torch.tensor([True, False, True]), torch.tensor([1, 2, 3])
    given = {name: Logits(normal(3, 5, name=name), mask=mask, target=target) for name in ("s", "t")}
    features = stages("grids", 3)
    made = Bench("ofa", {"logits": given["s"], **features}, {"logits": given["t"]}, {"stages": list(features)})
    made.terms()["ofa"].backward()
    assert made.student[0].grad is not None
    assert not made.student[0].grad[1].any()
    made.terms()["ofa_branches"].backward()


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_and_low_precision(kind):
    empty = bench(kind, batch=0)
    value = total(empty)
    assert value == 0
    assert value.requires_grad
    assert all(b.isfinite().all() for b in empty.method.buffers())
    full, low = total(bench(kind)).item(), bench(kind, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert total(low).item() == pytest.approx(full, rel=0.05)


def test_a_head_without_labels_is_one_line():
    features = stages("grids", 2)
    teacher = {"logits": Logits(normal(2, 5, name="t"))}
    made = Bench("ofa", {"logits": Logits(normal(2, 5)), **features}, teacher, {"stages": list(features)})
    with pytest.raises(KDBenchError, match="true class"):
        made.terms()
    with pytest.raises(KDBenchError, match=r"method.gamma: found 0.0; input should be greater than 0"):
        bench(gamma=0.0)


def test_of_a_map_of_scores_the_exits_are_maps_of_its_size():
    space, features = (8, 6), {n: Grid(normal(2, *shape, name=n)) for n, shape in GRIDS.items()}
    mask = torch.rand(2, *space, generator=rng.generator(0, "mask")) < 0.7
    target = torch.randint(5, (2, *space), generator=rng.generator(0, "target"))
    heads = [Logits(normal(2, 5, *space, name=n), class_dim=1, mask=mask, target=target) for n in ("s", "t")]
    made = Bench("ofa", {"logits": heads[0], **features}, {"logits": heads[1]}, {"stages": list(features)})
    made.method.eval()
    expected = 0.0
    for branch, stage in zip(made.method.branches, made.student[1:], strict=True):
        scores = torch.nn.functional.interpolate(branch(stage), space, mode="bilinear")
        mine, taught = (x.movedim(1, -1)[mask] for x in (scores, made.teacher[0]))
        expected += ofa_loss(mine, taught, target[mask], 1.5).item()
    assert made.terms()["ofa_branches"].item() == pytest.approx(expected, rel=1e-5)
    tokens = stages("tokens", 2)
    with pytest.raises(KDBenchError, match="an exit of tokens gives a class a sample, not a map"):
        Bench("ofa", {"logits": heads[0], **tokens}, {"logits": heads[1]}, {"stages": list(tokens)})


def test_of_scores_of_each_token_an_exit_looks_at_that_token_alone():
    features = {n: Tokens(normal(2, 6, 8, name=n)) for n in ("stage1", "stage2")}
    mask, target = torch.arange(6)[None] < torch.tensor([[6], [4]]), torch.arange(12).view(2, 6) % 5
    heads = [Logits(normal(2, 6, 5, name=n), mask=mask, target=target) for n in ("s", "t")]
    made = Bench("ofa", {"logits": heads[0], **features}, {"logits": heads[1]}, {"stages": list(features)})
    expected = 0.0
    for branch, stage in zip(made.method.branches, made.student[1:], strict=True):
        expected += ofa_loss(branch(stage)[mask], made.teacher[0][mask], target[mask], 1.5).item()
        later = stage.detach().clone()
        later[:, 3:] += 1
        torch.testing.assert_close(branch(later)[:, :3], branch(stage)[:, :3], rtol=0, atol=0)
    assert made.terms()["ofa_branches"].item() == pytest.approx(expected, rel=1e-5)
