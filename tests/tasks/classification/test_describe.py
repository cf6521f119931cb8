"""Features: their kinds in the configuration of a pair, and what models give."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.errors import KDBenchError
from kdbench.features import Activated, Grid, Last, Logits, Tokens, Vector
from kdbench.roles.sources import Network
from tasks.classification.task import Classification, Outputs
from tests.tasks.classification import tiny


def test_kinds_are_read_from_the_configuration_alone():
    taps = {"a": "x", "a.pre": "x:input", "b": "y", "pooled": "fc:input"}
    kinds = Classification.kinds({"taps": taps, "kinds": {"b": "tokens"}})
    assert [*kinds.items()] == [("a", Activated), ("b", Tokens), ("pooled", Vector), ("logits", Logits)]
    assert Classification.kinds({}) == {"logits": Logits}
    # What is pooled is no grid, or it would be the deepest one of methods over grids.
    kinds = Classification.kinds({"taps": {"a": "x", "last": "y", "last.pre": "y:input"}})
    assert kinds == {"a": Grid, "last": Last, "logits": Logits}
    assert not issubclass(Last, Grid)


@pytest.mark.parametrize(
    ("side", "line"),
    [
        ({"taps": {"a": "x"}, "kinds": {"a": "token"}}, r"kinds.a=token: there is no such kind: did you mean 'tokens'"),
        ({"taps": {"a": "x"}, "kinds": {"a": "last"}}, r"kinds.a=last: the tap named 'last', and no other, is of kind"),
        ({"taps": {"last": "x"}, "kinds": {"last": "grid"}}, r"kinds.last=grid: the tap named 'last', and no other"),
        ({"taps": {"stage1": "x"}, "kinds": {"stage2": "grid"}}, r"there is no tap 'stage2': did you mean 'stage1'"),
        ({"taps": {"stage1": "x", "stage2.pre": "x"}}, r"there is no tap 'stage2': did you mean"),
    ],
)
def test_wrong_kinds_are_one_line(side, line):
    with pytest.raises(KDBenchError, match=line):
        Classification.kinds(side)


def described(task: Classification, **taps: torch.Tensor) -> dict[str, Any]:
    batch = tiny.batch(task)
    outputs = Outputs(torch.zeros(2, len(task.preprocess.classes)), prefix=1, grid=(4, 4))
    return task.describe(outputs, taps, batch)


def test_describe_goes_by_the_axes():
    task = tiny.shaped((8, 16), 1, 10)
    found = described(task, a=torch.zeros(2, 3, 4, 4), b=torch.zeros(2, 17, 6), c=torch.zeros(2, 9, 6))
    assert found["a"].stride == (2, 4)
    assert (found["b"].prefix, found["b"].grid) == (1, (4, 4))
    assert (found["c"].prefix, found["c"].grid) == (1, None)  # merged tokens: the grid is another
    assert isinstance(described(task, proj=torch.zeros(2, 5))["proj"], Vector)
    last = described(task, last=torch.zeros(2, 3, 4, 4))["last"]
    assert isinstance(last, Last)
    assert last.values.shape == (2, 3, 4, 4)
    assert [*task.describe(torch.zeros(2, 10), {}, tiny.batch(task))] == ["logits"]


@pytest.mark.parametrize(
    ("name", "shape"),
    [("pooled", (2, 3, 1, 1)), ("pooled", (2, 4, 3)), ("last", (2, 3)), ("last", (2, 4, 3)), ("a", (2, 3, 4, 4, 4))],
)
def test_a_tap_of_other_axes_is_one_line(name, shape):
    with pytest.raises(KDBenchError, match=rf"tap '{name}' has shape \(2, .*, expected a .*: tap another module"):
        described(tiny.shaped((8, 8)), **{name: torch.zeros(shape)})


def test_a_map_and_what_its_activation_reads_are_of_one_shape():
    task = tiny.shaped((8, 8))
    fitting = {"a": torch.zeros(2, 3, 4, 4), "a.pre": torch.ones(2, 3, 4, 4)}
    found = described(task, **fitting)["a"]
    assert isinstance(found, Activated)
    assert found.pre is fitting["a.pre"]
    with pytest.raises(KDBenchError, match=r"taps 'a' and 'a.pre' have shapes .*, expected equal ones"):
        described(task, **fitting | {"a.pre": torch.zeros(2, 3, 8, 8)})
    with pytest.raises(KDBenchError, match=r"tap 'a' has shape \(2, 3\), expected a grid \(B, C, H, W\): tap another"):
        described(task, **fitting | {"a": torch.zeros(2, 3)})


def test_tokens_and_channels_last_maps_of_timm():
    task = tiny.shaped((32, 32))
    swin = {
        "_target_": tiny.NET["_target_"],
        "model_name": "swin_tiny_patch4_window7_224",
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 1],
        "window_size": 4,
    }
    network = Network(
        task, task.build(swin), {"stage1": "layers[0]", "stage2": "layers[1]", "last": "layers[1]"}
    ).eval()
    features = network.answer(tiny.batch(task)).features
    assert features["stage1"].values.shape == (2, 8, 8, 8)
    deep = features["stage2"]
    assert isinstance(deep, Grid)
    assert (deep.values.shape, deep.stride) == ((2, 16, 4, 4), (8, 8))
    assert torch.equal(features["last"].values, deep.values)
    deit = {**tiny.VIT, "model_name": "vit_small_patch14_reg4_dinov2", "patch_size": 4}
    network = Network(task, task.build(deit), {"stage1": "blocks[0]"}).eval()
    tokens = network.answer(tiny.batch(task)).features["stage1"]
    assert isinstance(tokens, Tokens)
    assert (tokens.prefix, tokens.grid) == (5, (8, 8))
    assert tokens.values.shape[1] == 5 + 64
