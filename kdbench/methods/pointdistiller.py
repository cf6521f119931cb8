"""Local graphs over the most important points.

Paper: Zhang, Dong, Tai, Ma, "PointDistiller: Structured Knowledge Distillation Towards Efficient and Compact 3D
Detection", CVPR 2023, section 3.
Deviations: the paper divides a loss whose weights already sum to one by N, which leaves nothing of it; both forms here
are the weighted mean of the released code. Counts end at 32, as they do there. ``faithful=paper`` works within each
sample, takes counts for voxels and pillars, and otherwise the teacher's channel maximum to select and the graph's
maximum to weigh, at a temperature of its own. ``faithful=code`` does what the released code does:

* voxels and pillars: positions, neighbours and weights over the whole batch at once; their temperature of
  0.01 puts all weight on the fullest;
* grids: by sample; its softmax runs over an axis of length one, so that all weights are one, times the batch size;
* points: by sample, the maximum of each graph over its neighbours, no weights.

``where=published`` reads what the authors distil: the encoder of pillars, both 2-D stages of a voxel detector.
``where=neck+stages`` is ours: there an untrained student explains least of the teacher. It reads all 2-D stages and the
neck, with a pair of maps for each, and keeps the teacher's maps at their random start: two maps that learn can agree
without the student. Losses of several features are summed, as the released code does for its two stages.

In both forms the teacher is in eval mode, where the released code leaves it in train mode, and N and K are clamped to
what a batch has: where graphs stay within a sample, samples of fewer than K positions have none, unless all are so
poor; then K is what the poorest has.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from kdbench import Context, Feature, Grid, KDBenchError, Method, Need, Points, Signals
from kdbench.functional.graph import batch_norm_edges, edge_distances, gather_edges, knn, project_edges
from kdbench.functional.numerics import Faithful
from kdbench.functional.pointdistiller import (
    Mode,
    importance,
    local_graph_loss,
    reweight,
    select,
    weigh_distances,
)
from kdbench.signals import total

#: Points that a voxel or pillar of the paper's detectors holds at most. Our pillars hold all of theirs, several hundred
#: near the sensor, and a softmax over such counts would leave one graph a scan.
CAP = 32

#: Of the weights by ``paper``, in the unit of the score. Counts at 10 leave half of the graphs, by the effective number
#: 1 / sum(phi^2): 53 % in simulated scans, 49 % in real ones. Maxima of random graphs after BatchNorm and ReLU lie
#: between 2 and 5; 0.7 leaves 48 % to 67 % of them, 10 all.
COUNT_TEMPERATURE, MAXIMUM_TEMPERATURE = 10.0, 0.7
CODE_TEMPERATURE = 0.01


class EdgeMap(nn.Module):
    """One side's gamma: a linear map of [centre; neighbour], batch normalisation over the edges; ReLU follows.

    Args:
        channels: Width of the feature.
        width: Width of the graph feature.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * channels, width, bias=False)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, centres: Tensor, neighbours: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the normalised centre ``(N, D)`` and neighbour ``(M, D)`` terms of the edges."""
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
        if self.training and neighbours.numel():
            norm.num_batches_tracked.add_(1)
        terms = project_edges(centres, feature, self.linear.weight)
        return batch_norm_edges(
            *terms, neighbours, norm.running_mean, norm.running_var, norm.weight, norm.bias, self.training
        )


class PointDistiller(Method):
    """Distils local graphs around the positions that matter most, each weighted by its importance.

    Args:
        faithful: ``paper`` or ``code``, see the head of this file.
        where: ``published`` or ``neck+stages``, see the head of this file; the pair says which features these are.
        points: N, positions of a batch; split evenly over its samples where they are chosen by sample.
        per_sample: True makes N that of each sample, where they are chosen by sample.
        neighbours: K, positions of a graph, its centre included.
        temperature: Of the weights, in the unit of the score. None for 10 (counts, in points) and 0.7 (maxima) by
            ``paper``, and 0.01 by ``code``, which has weights for voxels and pillars alone.
        sampling: Which positions: ``top``, ``bottom``, ``random`` or ``mixed``.
        width: Of the graph feature.
        local: False leaves a graph its centre alone: the ablation of reweighting without local graphs.
        reweight: False weighs all graphs the same: the ablation of local graphs without reweighting.
        freeze_teacher_gamma: True keeps the teacher's maps at their random start, so that they cannot learn to forget;
            None does so for ``where=neck+stages``.

    Raises:
        KDBenchError: ``neck+stages`` of a pair that does not name them.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("points", (Points, Grid), pyramid=True),)
    over_batch: ClassVar[bool] = True

    def __init__(
        self,
        faithful: Faithful = "paper",
        where: Literal["published", "neck+stages"] = "published",
        points: PositiveInt = 6000,
        per_sample: bool = False,
        neighbours: PositiveInt = 128,
        temperature: PositiveFloat | None = None,
        sampling: Mode = "top",
        width: PositiveInt = 32,
        local: bool = True,
        reweight: bool = True,
        freeze_teacher_gamma: bool | None = None,
    ) -> None:
        super().__init__()
        self.code = faithful == "code"
        self.deep = where == "neck+stages"
        self.count = points
        self.per_sample = per_sample
        self.neighbours = neighbours if local else 1
        self.temperature = temperature
        self.sampling: Mode = sampling
        self.width = width
        self.reweight = reweight
        self.freeze_teacher_gamma = self.deep if freeze_teacher_gamma is None else freeze_teacher_gamma

    def build(self, probe: Signals) -> None:
        """Makes both maps of each feature."""
        found = {role: probe.features("points", role) for role in ("student", "teacher")}
        if self.deep and not all(isinstance(feature, Grid) for feature in found["teacher"]):
            raise KDBenchError(
                "PointDistiller: method.where=neck+stages, but the pair does not say which features these are: name "
                "grids by method.bind.points=[…]"
            )
        widths = {role: [feature.values.shape[1] for feature in features] for role, features in found.items()}
        self.gamma_s = nn.ModuleList(EdgeMap(channels, self.width) for channels in widths["student"])
        self.gamma_t = nn.ModuleList(EdgeMap(channels, self.width) for channels in widths["teacher"])
        self.gamma_t.requires_grad_(not self.freeze_teacher_gamma)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``local_graph``."""
        pairs = zip(signals.features("points", "student"), signals.features("points", "teacher"), strict=True)
        maps = zip(self.gamma_s, self.gamma_t, strict=True)
        losses = [self._distance(*pair, *both, ctx) for pair, both in zip(pairs, maps, strict=True)]
        return {"local_graph": total(losses)}

    def _distance(
        self, taught: Feature, given: Feature, gamma_s: nn.Module, gamma_t: nn.Module, ctx: Context
    ) -> Tensor:
        """Returns the loss of one feature, of the student and of the teacher."""
        student, teacher = as_points(taught), as_points(given)
        if len(student.values) != len(teacher.values):
            raise KDBenchError(
                f"PointDistiller: the student has {len(student.values)} positions and the teacher "
                f"{len(teacher.values)}, expected the same ones: give both the same point_range and pillar"
            )
        counts = None if teacher.counts is None else teacher.counts.clamp(max=CAP)
        score = importance("channel_max" if counts is None else "count", counts=counts, feature=teacher.values)
        batch = None if self.code and counts is not None else teacher.batch
        centres, neighbours = self._graphs(score, teacher.values, batch, ctx)
        of_teacher: tuple[Tensor, Tensor] = gamma_t(centres, neighbours, teacher.values)
        of_student: tuple[Tensor, Tensor] = gamma_s(centres, neighbours, student.values)
        if self.code and counts is None and isinstance(given, Points):
            pooled = [gather_edges(*terms, neighbours).relu().amax(1) for terms in (of_student, of_teacher)]
            return local_graph_loss(pooled[0], pooled[1])
        if not self.reweight or (self.code and counts is None):
            phi = None
        elif counts is None:
            with torch.no_grad():
                graph = gather_edges(*of_teacher, neighbours).relu()
                maximum = importance("channel_max", feature=graph)
                phi = reweight(maximum, self.temperature or MAXIMUM_TEMPERATURE, teacher.batch[centres])
        else:
            temperature = self.temperature or (CODE_TEMPERATURE if self.code else COUNT_TEMPERATURE)
            phi = reweight(score[centres], temperature, None if batch is None else batch[centres])
        loss = weigh_distances(edge_distances(*of_student, *of_teacher, neighbours), phi)
        return len(given.values) * loss if self.code and self.reweight and counts is None else loss

    @torch.no_grad()
    def _graphs(self, score: Tensor, teacher: Tensor, batch: Tensor | None, ctx: Context) -> tuple[Tensor, Tensor]:
        """Chooses centres ``(N,)`` and their neighbours ``(N, K)`` in the teacher's feature space."""
        if len(score) == 0:
            return score.new_zeros(0, dtype=torch.long), score.new_zeros(0, 1, dtype=torch.long)
        sizes = torch.tensor([len(score)]) if batch is None else torch.bincount(batch)
        rich = sizes >= self.neighbours  # a nearly empty scan must not shrink the graphs of the others
        if not rich.any():
            rich = sizes > 0
        k = min(self.neighbours, int(sizes[rich].min()))
        generator = ctx.generator("pointdistiller") if self.sampling == "random" else None
        each = self.count if self.per_sample else max(1, self.count // int(rich.sum()))
        centres = select(score, each, self.sampling, batch=batch, generator=generator)
        if batch is not None:
            centres = centres[rich[batch[centres]]]
        if k == 1:
            return centres, centres[:, None]
        queries = teacher[centres]
        return centres, knn(queries, teacher, k, None if batch is None else batch[centres], batch)


def as_points(feature: Feature) -> Points:
    """Returns points as they are and the cells of a grid as points."""
    if isinstance(feature, Grid):
        return feature.as_points()
    assert isinstance(feature, Points)
    return feature
