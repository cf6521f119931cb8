"""Class attention transfer.

Paper: Guo, Yan, Li, Lin, "Class Attention Transfer Based Knowledge Distillation", CVPR 2023: class activation maps,
average-pooled and normalised to unit l2 norm, are compared over all classes.
Constants of the released code: mean over elements; weight (0.7 to 600), resolution (2 or 4) and ``normalize`` (false
where both nets are of one family) are those of the pair, under ``published.cat_kd``; a pair without has the defaults.
The networks stay as they are: the code moves the classifier in front of the pooling, which gives the same maps.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveInt
from torch import Tensor

from kdbench import Context, Grid, Last, Logits, Method, Need, Part, Signals
from kdbench.functional.cat_kd import class_activation_maps, class_attention_loss
from kdbench.methods.blocks import check_pooled


class CATKD(Method):
    """Compares where student and teacher see each class.

    Args:
        resolution: Cells of a pooled map along each axis.
        normalize: Compares maps of unit l2 norm.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("feature", (Last, Grid)), Need("logits", Logits))
    parts: ClassVar[tuple[Part, ...]] = (Part("classifier", roles=("student", "teacher")),)

    def __init__(self, resolution: PositiveInt = 2, normalize: bool = True) -> None:
        super().__init__()
        self.resolution = resolution
        self.normalize = normalize

    def build(self, probe: Signals) -> None:
        """Checks that the maps are those of the classes."""
        for role in ("student", "teacher"):
            check_pooled(probe, "feature", role)

    def maps(self, signals: Signals, role: str) -> Tensor:
        """Returns the class activation maps of a role, (B, classes, *bins)."""
        weight = signals.part("classifier", role).get_parameter("weight")
        return class_activation_maps(signals.feature("feature", role).values, weight, self.resolution)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``cat``."""
        student, teacher = self.maps(signals, "student"), self.maps(signals, "teacher")
        return {"cat": class_attention_loss(student, teacher, normalize=self.normalize)}
