"""Double similarity distillation.

Paper: Feng, Sun, Diao, Li, Gao, "Double Similarity Distillation for Semantic Image Segmentation", IEEE TIP 2021:
residual attention maps between layers (PSD), and the correlation of classes (CSD).
The paper's equations could not be read; these are those of Yang et al. (CIRKD, CVPR 2022), whose weights and layers are
used: the last features and the class scores. So the fidelity is approximate.
Deviations: layers of several sizes, which their dilated networks do not have, are compared at the largest. Positions of
class scores that are not distilled (the ignored label) have no part in CSD; in PSD all have.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from kdbench import Context, Grid, Logits, Method, Need, Signals
from kdbench.functional.dsd import category_similarity_loss, pixel_similarity_loss
from kdbench.methods.blocks import levels


class DSD(Method):
    """Compares how attention changes from layer to layer, and which classes are found in the same places.

    Args:
        layers: Features that are compared beside the class scores: the deepest ones.
        temperature: Divides class scores before the softmax over positions.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("stages", Grid, many=True), Need("logits", Logits))
    requires: ClassVar[frozenset[str]] = frozenset({"dense_label"})
    fidelity: ClassVar[Literal["equations", "approximate"]] = "approximate"

    def __init__(self, layers: PositiveInt = 2, temperature: PositiveFloat = 4.0) -> None:
        super().__init__()
        self.layers = layers
        self.temperature = temperature

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``psd`` and ``csd``."""
        scores, taught = signals.pair("logits")
        pairs = [(s.values, t.values) for s, t in levels(signals, "stages")[-self.layers :]]
        students, teachers = zip(*pairs, (scores.values, taught.values), strict=True)
        csd = category_similarity_loss(scores.values, taught.values, self.temperature, scores.mask)
        return {"psd": pixel_similarity_loss(students, teachers), "csd": csd}
