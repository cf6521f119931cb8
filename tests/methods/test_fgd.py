from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Grid
from kdbench.functional.fgd import focal_attention_loss, focal_feature_losses, focal_masks
from kdbench.methods.fgd import FGD, GlobalContext
from tests.methods.boxes import LEVELS, PAIR, SIZES, STRIDES, BoxBench, Boxed, BoxInvariants, truth
from tests.methods.harness import normal, yaml
from tests.toy import Toy


class TestFGD(BoxInvariants):
    name = "fgd"
    other = {"temperature": 2.0}
    autocast = True

    def bench(self, *args: Any, **options: Any) -> BoxBench:
        """With context blocks as they are after some steps: at first their last layers are zero."""
        made = super().bench(*args, **options)
        for name, parameter in made.trainable().items():
            if "transform.3" in name:
                parameter.data.copy_(0.1 * normal(*parameter.shape, name=name))
        return made

    def test_terms_are_the_losses_of_the_projected_levels(self):
        made = self.bench()
        terms, expected = made.checked(), dict.fromkeys(("foreground", "background", "attention", "relation"), 0.0)
        for i, (size, stride) in enumerate(zip(SIZES, STRIDES, strict=True)):
            student, teacher = made.method.projectors[i](made.student[i]), made.teacher[i]
            masks = focal_masks(*truth(3), size, (stride, stride))
            near, far = focal_feature_losses(student, teacher, *masks, 0.5)
            expected["foreground"] += near.item()
            expected["background"] += far.item()
            expected["attention"] += focal_attention_loss(student, teacher, 0.5).item()
            related = made.method.context_s[i](student) - made.method.context_t[i](teacher)
            expected["relation"] += related.square().sum().item() / 3
        assert {n: t.item() for n, t in terms.items()} == pytest.approx(expected, rel=1e-5)

    def test_a_context_block_adds_the_same_to_every_cell(self):
        block: Any = GlobalContext(4)
        feature = normal(2, 4, 3, 5)
        assert torch.equal(block(feature), feature)  # its last layer starts at zero
        block.transform[-1].weight.data.normal_(generator=torch.Generator().manual_seed(0))
        added = block(feature) - feature
        torch.testing.assert_close(added, added[..., :1, :1].expand_as(added))
        weight = (block.attention(feature).flatten(1)).softmax(1)
        context = torch.einsum("bcn,bn->bc", feature.flatten(2), weight)
        torch.testing.assert_close(added[..., 0, 0], block.transform(context))

    def test_grids_of_two_sizes_lie_where_they_did(self):
        """The stride of the smaller grid follows."""
        student: dict[str, Any] = {"p3": Grid(normal(2, 3, 4, 6), stride=(8.0, 8.0))}
        teacher: dict[str, Any] = {"p3": Grid(normal(2, 3, 2, 3), stride=(16.0, 16.0))}
        made = BoxBench("fgd", student, teacher, truth(2), bindings={"stages": ["p3"]})
        pooled = torch.nn.functional.avg_pool2d(made.student[0], 2)
        masks = focal_masks(*truth(2), (2, 3), (16.0, 16.0))
        expected = focal_feature_losses(pooled, made.teacher[0], *masks)[0]
        assert made.checked()["foreground"].item() == pytest.approx(expected.item(), rel=1e-6)

    def test_a_grid_without_a_stride_is_one_line(self):
        grid: dict[str, Any] = {"p3": Grid(normal(2, 3, 4, 6))}
        made = BoxBench("fgd", grid, {"p3": Grid(normal(2, 3, 4, 6))}, truth(2), bindings={"stages": ["p3"]})
        with pytest.raises(KDBenchError, match=r"a Grid\(2, 3, 4, 6\) float32 comes without a stride"):
            made.terms()


def test_binds_to_the_pyramid_of_a_task_with_boxes():
    assert bind(FGD, Boxed, PAIR) == {"stages": ["stem", "body"]}
    with pytest.raises(KDBenchError, match="^FGD requires boxes, which task toy lacks$"):
        bind(FGD, Toy, PAIR)
    assert sorted(LEVELS) == LEVELS


def test_published_weights():
    published = {"foreground": 1e-3, "background": 5e-4, "attention": 5e-4, "relation": 5e-6}
    assert yaml("fgd")["weights"] == {"task": 1.0, **published}
    with pytest.raises(KDBenchError, match=r"method.temperature: found 0.0; input should be greater than 0"):
        TestFGD().bench(temperature=0.0)
