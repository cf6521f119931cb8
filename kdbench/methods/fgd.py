"""Focal and global distillation.

Paper: Yang, Li, Jiang, Gong, Yuan, Zhao, Yuan, "Focal and Global Knowledge Distillation for Detectors", CVPR 2022: at
every level of the pyramid four terms, foreground and background each weighed by the boxes and by the teacher's
attention, both attentions, and what a global context block (GcBlock, one a side, trained with the student) makes of
the feature.
Read: the authors' code, yzd-v/FGD (``mmdet/distillation/losses/fgd.py`` and its configurations). Weights are those of
RetinaNet; other detectors have others there: FCOS 0.0016, 0.0008, 0.0008, 0.000008 at temperature 0.8, two-stage ones
0.00005, 0.000025, 0.00005, 0.0000005. The paper leaves open which cells a box covers; as in the code they reach from
the floor of its first edge to the ceiling of its last one, both included. (Its first versions exchange rows and
columns there.) The code starts the student from the teacher's neck and head where these are alike, which is not done
here.
Deviations: boxes are scaled by the stride of a level, in the code by the share of the image without its padding, so
that they are off where images are padded. Widths that differ are brought together by a 1x1 convolution, as in the
code; sizes that differ, which it refuses, by averages.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveFloat
from torch import Tensor, nn

from kdbench import Context, Grid, Method, Need, Signals
from kdbench.functional.fgd import focal_attention_loss, focal_feature_losses, focal_masks
from kdbench.functional.mgd import mgd_loss
from kdbench.functional.pool import pool_to_smaller
from kdbench.methods.blocks import levels, projectors, strides, true_boxes
from kdbench.signals import total


class GlobalContext(nn.Module):
    """GcBlock: adds to every cell what two layers make of the feature's context, its mean under a learned attention.

    Args:
        channels: Width of the feature.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 2)
        self.attention = nn.Conv2d(channels, 1, 1, bias=False)  # a softmax does not see a shift
        self.transform = nn.Sequential(
            nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )
        nn.init.kaiming_normal_(self.attention.weight)
        for zero in self.transform[-1].parameters():
            nn.init.zeros_(zero)

    def forward(self, feature: Tensor) -> Tensor:
        """Returns (B, C, H, W) of the same shape."""
        weight = self.attention(feature).flatten(1).softmax(1)
        context = (feature.flatten(2) * weight[:, None]).sum(2)
        changed: Tensor = feature + self.transform(context)[..., None, None]
        return changed


class FGD(Method):
    """Weighs cells by objects and the teacher's attention, and compares the relation to a global context.

    Args:
        temperature: Of both attentions.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("stages", Grid, many=True),)
    requires: ClassVar[frozenset[str]] = frozenset({"boxes"})

    def __init__(self, temperature: PositiveFloat = 0.5) -> None:
        super().__init__()
        self.temperature = temperature

    def build(self, probe: Signals) -> None:
        """Makes a projector where widths differ, and both context blocks, for each level."""
        pairs = levels(probe, "stages")
        self.projectors = projectors(pairs, project=True)
        self.context_s, self.context_t = (
            nn.ModuleList(GlobalContext(teacher.values.shape[1]) for _, teacher in pairs) for _ in range(2)
        )

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``foreground``, ``background``, ``attention`` and ``relation``, sums over levels."""
        found: dict[str, list[Tensor]] = {name: [] for name in ("foreground", "background", "attention", "relation")}
        boxes, labels = true_boxes(signals)
        blocks = zip(levels(signals, "stages"), self.projectors, self.context_s, self.context_t, strict=True)
        for (ours, theirs), project, context_s, context_t in blocks:
            student, teacher = pool_to_smaller(project(ours.values), theirs.values, "fgd")
            masks = focal_masks(boxes, labels, student.shape[2:], strides(ours, student.shape[2:]))
            near, far = focal_feature_losses(student, teacher, *masks, self.temperature)
            found["foreground"].append(near)
            found["background"].append(far)
            found["attention"].append(focal_attention_loss(student, teacher, self.temperature))
            if ctx.wants("relation"):
                found["relation"].append(mgd_loss(context_s(student), context_t(teacher)))
        return {name: total(losses) for name, losses in found.items() if losses}
