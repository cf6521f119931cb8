from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.base import rng
from kdbench.configuration import config
from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Grid, Points
from kdbench.functional.pointdistiller import reweight
from kdbench.methods import pointdistiller as module
from kdbench.methods.pointdistiller import CAP, EdgeMap, PointDistiller
from tasks.pointcloud.task import PointCloud
from tests.methods.harness import Bench, check_deterministic, check_gradients, differ, knobs, normal

SMALL: dict[str, Any] = {"points": 12, "neighbours": 4, "width": 6}
OTHER: dict[str, Any] = {
    "faithful": "code",
    "where": "neck+stages",
    "per_sample": True,
    "points": 6,
    "neighbours": 3,
    "temperature": 2.0,
    "sampling": "bottom",
    "width": 5,
    "local": False,
    "reweight": False,
    "freeze_teacher_gamma": True,
}
CASES = [(faithful, kind) for faithful in ("paper", "code") for kind in ("pillars", "points", "grid")]


def pillars(batch: list[int], counted: bool = True, dtype: torch.dtype = torch.float32) -> tuple[Points, Points]:
    """Student (4 channels) and teacher (8) features of samples with so many pillars each."""
    total = sum(batch)
    sample = torch.arange(len(batch)).repeat_interleave(torch.tensor(batch))
    counts = torch.randint(1, 40, (total,), generator=rng.generator(0, "counts", total)) if counted else None
    student, teacher = normal(total, 4, name="s", dtype=dtype), normal(total, 8, name="t", dtype=dtype)
    coords = torch.zeros(total, 3)
    return Points(student, coords, sample, counts), Points(teacher, coords, sample, counts)


def bench(kind: str = "pillars", batch: tuple[int, ...] = (20, 15, 9), /, **options: Any) -> Bench:
    if kind == "grid":
        student, teacher = Grid(normal(3, 4, 4, 5, name="s")), Grid(normal(3, 8, 4, 5, name="t"))
        return Bench("pointdistiller", {"points": student}, {"points": teacher}, **{**SMALL, **options})
    found = pillars(list(batch), kind == "pillars")
    return Bench("pointdistiller", {"points": found[0]}, {"points": found[1]}, **{**SMALL, **options})


def double(made: Bench) -> Bench:
    made.method.double()
    for leaf in (*made.student, *made.teacher):
        leaf.data = leaf.data.double()
    return made


# ---- the equations, one graph at a time ---------------------------------------------------------------------------


def gamma(x: Tensor, centres: list[int], neighbours: list[list[int]], edge_map: EdgeMap) -> Tensor:
    """ReLU(BatchNorm(W [centre; neighbour])) of every edge, (N, K, D)."""
    rows = [torch.cat([x[i], x[j]]) for i, own in zip(centres, neighbours, strict=True) for j in own]
    edges = torch.stack(rows) @ edge_map.linear.weight.T
    centred = edges - edges.mean(0)
    edges = centred / (centred.square().mean(0) + 1e-5).sqrt() * edge_map.norm.weight + edge_map.norm.bias
    return edges.clamp_min(0).view(len(centres), len(neighbours[0]), -1)


def reference(made: Bench, faithful: str, kind: str) -> Tensor:
    given_s, given_t = (made.given[role]["points"] for role in ("student", "teacher"))
    if not isinstance(given_t, Points):
        student, teacher = (
            torch.stack([f.values[b, :, y, x] for b in range(3) for y in range(4) for x in range(5)])
            for f in (given_s, given_t)
        )
        sample = [b for b in range(3) for _ in range(20)]
    else:
        student, teacher, sample = given_s.values, given_t.values, given_t.batch.tolist()
    teacher = teacher.detach()
    if isinstance(given_t, Points) and given_t.counts is not None:
        score = given_t.counts.double()
        score = score.clamp(max=32)
    else:
        score = teacher.max(1).values

    whole = faithful == "code" and kind == "pillars"
    groups = (
        [list(range(len(sample)))] if whole else [[i for i in range(len(sample)) if sample[i] == b] for b in (0, 1, 2)]
    )
    n = SMALL["points"] // len(groups)
    centres, neighbours, owners = [], [], []
    for group in groups:
        for i in sorted(group, key=lambda i: (-score[i].item(), i))[:n]:
            near = sorted(group, key=lambda j: ((teacher[i] - teacher[j]).square().sum().item(), j))
            centres.append(i)
            neighbours.append(near[: SMALL["neighbours"]])
            owners.append(sample[i])
    graph_s = gamma(student, centres, neighbours, made.method.gamma_s[0])
    graph_t = gamma(teacher, centres, neighbours, made.method.gamma_t[0])
    if faithful == "code" and kind == "points":
        return 2 * (graph_s.max(1).values - graph_t.max(1).values).square().mean()
    distance = (graph_s - graph_t).square().mean((1, 2))
    if faithful == "code" and kind == "grid":
        return 2 * (distance * 3).mean()  # three samples
    if faithful == "code":
        phi = torch.softmax(score[centres] / 0.01, 0) * len(centres)
        return 2 * (distance * phi).mean()
    weigh = score[centres] / 10 if kind == "pillars" else graph_t.detach().amax((1, 2)) / 0.7
    loss = torch.zeros((), dtype=torch.float64)
    for b in (0, 1, 2):
        own = [i for i, owner in enumerate(owners) if owner == b]
        loss = loss + 2 * (torch.softmax(weigh[own], 0) * distance[own]).sum() / 3
    return loss


@pytest.mark.parametrize(("faithful", "kind"), CASES)
def test_composition_equals_the_equations(faithful, kind):
    made = double(bench(kind, faithful=faithful))
    expected = reference(made, faithful, kind)
    inputs = [*made.student, *made.trainable().values()]
    grads = torch.autograd.grad(expected, inputs)
    torch.testing.assert_close(made.loss(), expected, rtol=1e-7, atol=0)
    for (name, got), want in zip(made.gradients().items(), grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7, msg=name)


# ---- the contract -------------------------------------------------------------------------------------------------


def test_binds_to_the_pillars_of_the_point_cloud_task():
    composed = config.load(["task=pointcloud", "method=pointdistiller"])
    assert bind(PointDistiller, PointCloud, composed["pair"]) == {"points": "pillars"}
    assert bind(PointDistiller, PointCloud, composed["pair"], {"points": "neck"}) == {"points": "neck"}


@pytest.mark.parametrize(("faithful", "kind"), CASES)
def test_gradients_and_determinism(faithful, kind):
    check_gradients(bench(kind, faithful=faithful))
    check_deterministic(bench(kind, faithful=faithful))


@pytest.mark.parametrize("knob", knobs("pointdistiller"))
def test_every_knob_counts(knob):
    kind = "grid" if knob == "where" else "pillars"
    assert differ(bench(kind).outcome(), bench(kind, **{knob: OTHER[knob]}).outcome())


# ---- several features ---------------------------------------------------------------------------------------------


def levels(**options: Any) -> Bench:
    """Two grids of different widths and sizes, three samples."""
    shapes = {"stage1": (4, 5), "stage2": (2, 3)}
    student, teacher = (
        {name: Grid(normal(3, width, *space, name=f"{role}{name}")) for name, space in shapes.items()}
        for role, width in (("s", 4), ("t", 8))
    )
    return Bench("pointdistiller", student, teacher, {"points": [*shapes]}, **{**SMALL, **options})


@pytest.mark.parametrize("options", [{}, {"faithful": "code"}, {"where": "neck+stages"}])
def test_losses_of_several_features_are_summed(options):
    made = levels(**options)
    check_gradients(levels(**options))
    alone = []
    for i, name in enumerate(("stage1", "stage2")):
        student, teacher = ({name: made.given[role][name]} for role in ("student", "teacher"))
        one = Bench("pointdistiller", student, teacher, {"points": [name]}, **{**SMALL, **options})
        for side in ("gamma_s", "gamma_t"):
            getattr(one.method, side)[0].load_state_dict(getattr(made.method, side)[i].state_dict())
        alone.append(one.loss())
    torch.testing.assert_close(made.loss(), alone[0] + alone[1])


def test_neck_and_stages_keep_the_maps_of_the_teacher_unless_told():
    def learned(**options: Any) -> set[str]:
        return {name.split(".")[0] for name in levels(**options).trainable()}

    assert learned(where="neck+stages") == {"gamma_s"}
    assert learned(where="neck+stages", freeze_teacher_gamma=False) == learned() == {"gamma_s", "gamma_t"}
    with pytest.raises(KDBenchError, match=r"where=neck\+stages, but the pair does not say which"):
        bench(where="neck+stages")


def test_positions_of_each_sample():
    _, teacher = pillars([20, 15, 9])
    centres, _, _ = choice(bench(points=5, per_sample=True))
    assert torch.bincount(teacher.batch[centres]).tolist() == [5, 5, 5]


@pytest.mark.parametrize(
    ("pair", "published", "deep"),
    [
        ("pointpillars_16x", "pillars", ["bev", "neck"]),
        ("second_4x", ["stage1", "stage2"], ["stage1", "stage2", "neck"]),
    ],
)
def test_pairs_say_where(pair, published, deep):
    for where, expected in (("published", published), ("neck+stages", deep)):
        found = config.load(["task=pointcloud", "method=pointdistiller", f"pair={pair}", f"method.where={where}"])
        assert bind(PointDistiller, PointCloud, found["pair"], found["method"]["bind"]) == {"points": expected}


def test_the_released_run_is_one_word():
    found = config.load(["task=pointcloud", "method=pointdistiller_released", "preset=paper"])
    assert (found["method"]["faithful"], found["method"]["width"], found["method"]["points"]) == ("code", 16, 6000)
    for side, width in (("teacher", 1.0), ("student", 0.25)):
        own = found["pair"][side]["architecture"]
        assert (own["width"], found["task"]["max_points"]) == (width, 32)
    wide = config.load(["task=pointcloud", "method=pointdistiller_released", "pair=pointpillars_4x"])
    assert wide["method"]["width"] == 32
    voxels = config.load(["task=pointcloud", "method=pointdistiller_released", "pair=second_4x"])
    assert (voxels["method"]["points"], voxels["method"]["per_sample"]) == (256, True)
    assert voxels["task"]["max_points"] == 5
    points = config.load(["task=pointcloud", "method=pointdistiller_released", "pair=pointrcnn_8x"])
    assert points["method"]["bind"]["points"] == "points"
    assert [points["method"][name] for name in ("points", "per_sample", "width")] == [6000, True, 45]


@pytest.mark.parametrize("faithful", ["paper", "code"])
def test_zero_where_both_sides_see_the_same(faithful):
    values, (_, teacher) = normal(44, 8, name="t"), pillars([20, 15, 9])
    both = [Points(values.clone(), teacher.coords, teacher.batch, teacher.counts) for _ in range(2)]
    made = Bench("pointdistiller", {"points": both[0]}, {"points": both[1]}, **SMALL, faithful=faithful)
    assert made.loss() > 0
    made.method.gamma_s.load_state_dict(made.method.gamma_t.state_dict())
    assert made.loss() == 0
    assert not made.gradients()["student.0"].any()


@pytest.mark.parametrize(("faithful", "kind"), CASES)
def test_low_precision(faithful, kind):
    full, low = bench(kind, faithful=faithful), bench(kind, faithful=faithful)
    for leaf in (*full.student, *full.teacher, *low.student, *low.teacher):
        leaf.data = leaf.data.bfloat16().float()  # the same graphs are chosen
    for leaf in (*low.student, *low.teacher):
        leaf.data = leaf.data.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert low.loss().item() == pytest.approx(full.loss().item(), rel=0.05)
        assert all(g.isfinite().all() for g in low.gradients().values())


@pytest.mark.parametrize("faithful", ["paper", "code"])
@pytest.mark.parametrize("kind", ["pillars", "points"])
@pytest.mark.parametrize("batch", [(1,), (7,), (2, 40), (0, 9), (9, 0, 3)])
def test_small_batches_clamp_n_and_k(faithful, kind, batch):
    made = bench(kind, batch, faithful=faithful, points=6000, neighbours=128)
    loss = made.loss()
    loss.backward()
    assert made.student[0].grad is not None
    assert made.student[0].grad.isfinite().all()
    assert sum(batch) == 1 or loss > 0


@pytest.mark.parametrize("faithful", ["paper", "code"])
@pytest.mark.parametrize("kind", ["pillars", "points"])
def test_no_pillars_at_all(faithful, kind):
    made = bench(kind, (0, 0), faithful=faithful)
    before = {n: b.clone() for n, b in made.method.named_buffers()}
    loss = made.loss()
    assert loss == 0
    loss.backward()
    assert all(torch.equal(b, before[n]) for n, b in made.method.named_buffers())


def test_fewer_positions_than_samples_still_leave_one_each():
    _, teacher = pillars([20, 15, 9])
    made = bench(points=2)
    made.loss().backward()
    assert made.student[0].grad is not None
    assert teacher.batch[made.student[0].grad.any(1)].unique().tolist() == [0, 1, 2]


# ---- what the two forms choose ------------------------------------------------------------------------------------


def choice(made: Bench) -> tuple[Tensor, Tensor, Points]:
    """Centres, neighbours and the teacher's points."""
    found: dict[str, Tensor] = {}
    made.method.gamma_t[0].register_forward_pre_hook(lambda _, args: found.update(centres=args[0], neighbours=args[1]))
    made.loss()
    teacher = made.given["teacher"]["points"]
    assert isinstance(teacher, Points)
    return found["centres"], found["neighbours"], teacher


def squared(made: Bench, centres: Tensor, neighbours: Tensor) -> Tensor:
    """Squared differences of the graphs, (N, K, D)."""
    student, teacher = made.student[0], made.teacher[0].detach()
    chosen = centres.tolist(), neighbours.tolist()
    return (gamma(student, *chosen, made.method.gamma_s[0]) - gamma(teacher, *chosen, made.method.gamma_t[0])).square()


def test_paper_stays_within_the_sample_and_code_mixes_samples():
    centres, neighbours, teacher = choice(bench())
    assert torch.bincount(teacher.batch[centres]).tolist() == [4, 4, 4]
    assert (teacher.batch[neighbours] == teacher.batch[centres, None]).all()
    centres, neighbours, teacher = choice(bench(faithful="code"))
    assert (teacher.batch[neighbours] != teacher.batch[centres, None]).any()
    assert teacher.counts is not None
    # Whole batch: the fullest twelve pillars after the cap, the first of those that tie.
    assert centres.tolist() == teacher.counts.clamp(max=CAP).argsort(descending=True, stable=True)[:12].tolist()


def test_code_weighs_the_full_pillars_alone_and_all_of_them_the_same():
    made = double(bench(faithful="code"))
    centres, neighbours, teacher = choice(made)
    assert teacher.counts is not None
    full = centres[teacher.counts[centres] >= CAP]
    assert 1 < len(full) < len(centres)
    distance = squared(made, centres, neighbours).mean((1, 2))
    torch.testing.assert_close(
        made.loss(), 2 * distance[torch.isin(centres, full)].mean(), rtol=1e-9, atol=0, check_dtype=False
    )


@pytest.mark.parametrize("faithful", ["paper", "code"])
def test_counts_above_the_cap_count_as_the_cap(faithful):
    losses = []
    for cap in (10**6, CAP):
        student, teacher = pillars([20, 15, 9])
        assert teacher.counts is not None
        assert (teacher.counts > CAP).sum() > 1
        teacher = replace(teacher, counts=teacher.counts.clamp(max=cap))
        losses.append(
            Bench("pointdistiller", {"points": student}, {"points": teacher}, **SMALL, faithful=faithful).loss()
        )
    assert torch.equal(*losses)


def weighing(made: Bench, monkeypatch: pytest.MonkeyPatch) -> tuple[float, Tensor]:
    """The temperature and the weights of one step."""
    found = []

    def spied(score: Tensor, temperature: float, batch: Tensor | None) -> Tensor:
        found.append((temperature, reweight(score, temperature, batch)))
        return found[-1][1]

    monkeypatch.setattr(module, "reweight", spied)
    made.loss()
    ((temperature, phi),) = found
    return temperature, phi


@pytest.mark.parametrize(("kind", "given", "used"), [("pillars", None, 10.0), ("grid", None, 0.7), ("grid", 3.0, 3.0)])
def test_temperature_is_in_the_unit_of_the_score(kind, given, used, monkeypatch):
    assert weighing(bench(kind, temperature=given), monkeypatch)[0] == used


def test_reweighting_of_maxima_tells_graphs_apart(monkeypatch):
    """Half of the graphs count, as with the counts of pillars; at 10, the temperature of counts, all do."""

    def effective(temperature: float | None) -> float:
        student, teacher = (Grid(normal(1, c, 20, 20, name=n).relu()) for c, n in ((32, "s"), (64, "t")))
        options: dict[str, Any] = {"points": 300, "neighbours": 32, "width": 32, "temperature": temperature}
        made = Bench("pointdistiller", {"points": student}, {"points": teacher}, **options)
        phi = weighing(made, monkeypatch)[1]
        return (1 / phi.square().sum() / len(phi)).item()

    assert 0.35 < effective(None) < 0.75
    assert effective(10.0) > 0.99


def test_a_nearly_empty_scan_leaves_the_graphs_of_the_others_alone():
    alone, _, _ = choice(bench("pillars", (20, 15)))
    centres, neighbours, teacher = choice(bench("pillars", (20, 15, 2)))
    assert neighbours.shape == (len(alone), SMALL["neighbours"])
    assert torch.bincount(teacher.batch[centres]).tolist() == [6, 6]
    _, neighbours, teacher = choice(bench("pillars", (3, 2)))
    assert neighbours.shape == (5, 2)  # none has four
    made = double(bench("pillars", (20, 15, 2)))
    student = made.student[0]
    made.loss().backward()
    assert student.grad is not None
    assert not student.grad[35:].any()


def test_sampling_modes():
    counts = pillars([20, 15, 9])[1].counts
    assert counts is not None
    counts = counts.clamp(max=CAP)
    picked = {mode: choice(bench("pillars", (44,), sampling=mode))[0] for mode in ("top", "bottom", "mixed", "random")}
    order = counts.argsort(descending=True, stable=True).tolist()
    assert picked["top"].tolist() == order[:12]
    assert picked["bottom"].tolist() == order[-12:]
    assert picked["mixed"].tolist() == order[:6] + order[-6:]
    assert picked["random"].unique().numel() == 12
    made = bench(sampling="random")
    assert not differ(made.outcome(step=3), made.outcome(step=3))
    assert differ(made.outcome(step=3), made.outcome(step=4))


def test_ablations():
    """Without local graphs an edge is [centre; centre]; without reweighting all graphs weigh the same."""
    centres, neighbours, _ = choice(bench(local=False))
    assert torch.equal(neighbours, centres[:, None])
    made = double(bench(reweight=False))
    centres, neighbours, _ = choice(made)
    torch.testing.assert_close(made.loss(), 2 * squared(made, centres, neighbours).mean(), rtol=1e-9, atol=0)
    check_gradients(bench(local=False))
    check_gradients(bench(reweight=False))


# ---- state --------------------------------------------------------------------------------------------------------


def test_frozen_gamma_of_the_teacher_stays_as_it_is():
    made = bench(freeze_teacher_gamma=True)
    assert not [n for n in made.trainable() if n.startswith("gamma_t")]
    check_gradients(made)
    assert all(p.grad is None for p in made.method.gamma_t.parameters())
    assert {n.split(".")[0] for n in bench().trainable()} == {"gamma_s", "gamma_t"}


def test_statistics_of_the_edges_are_those_of_batch_norm():
    made = double(bench())
    centres, neighbours, teacher = choice(made)
    made.loss()
    rows = torch.stack(
        [
            torch.cat([teacher.values[i], teacher.values[j]])
            for i, own in zip(centres, neighbours, strict=True)
            for j in own
        ]
    )
    norm = torch.nn.BatchNorm1d(6).double()
    for _ in range(2):
        norm(F.linear(rows, made.method.gamma_t[0].linear.weight))
    for name, buffer in made.method.gamma_t[0].norm.named_buffers():
        torch.testing.assert_close(buffer, dict(norm.named_buffers())[name])
    assert made.method.gamma_t[0].norm.num_batches_tracked == 2
    made.method.eval()
    before = {n: b.clone() for n, b in made.method.named_buffers()}
    made.loss()
    assert all(torch.equal(b, before[n]) for n, b in made.method.named_buffers())


def test_errors_are_one_line():
    (student, _), (_, teacher) = pillars([9]), pillars([8])
    with pytest.raises(KDBenchError, match="student has 9 positions and the teacher 8, expected the same"):
        Bench("pointdistiller", {"points": student}, {"points": teacher}, **SMALL).loss()
    for knob in ("points", "neighbours", "temperature", "width"):
        with pytest.raises(KDBenchError, match=f"method.{knob}: found 0; input should be greater than 0"):
            bench(**{knob: 0})
    with pytest.raises(KDBenchError, match=r"method.sampling: found 'tpo'; input should be 'top'"):
        bench(sampling="tpo")
