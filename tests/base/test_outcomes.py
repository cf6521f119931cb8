from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from kdbench.base.outcomes import LAWS, LIMIT, Outcomes, named, of_files, pack, unpack
from kdbench.errors import KDBenchError

RNG = np.random.default_rng(0)
IDS = named(range(50))


def shares(count: int = 50, whole: int = 1) -> np.ndarray:
    return np.stack([RNG.integers(0, whole + 1, count), np.full(count, whole)], 1).astype(float)


def overlaps(count: int = 50, classes: int = 4) -> np.ndarray:
    true, said = RNG.integers(0, 300, (2, count, classes))
    return np.stack([np.minimum(true, said) // 2, said, true], -1).astype(float)


def test_hits_are_bits_and_come_back() -> None:
    found = Outcomes("percent", IDS, {"student": shares(), "teacher": shares()})
    content = pack(found)
    assert content is not None
    assert len(content) < 300
    again = unpack(content)
    assert (again.law, again.samples) == ("percent", IDS)
    for name, values in found.values.items():
        np.testing.assert_array_equal(again.values[name], values)
        assert again.score(name) == 100 * values[:, 0].mean()


def test_counts_share_the_truth_and_sums_are_of_single_precision() -> None:
    counts = overlaps()
    other = counts.copy()
    other[..., :2] //= 3
    again = unpack(pack(Outcomes("iou", IDS, {"student": counts, "scratch": other})) or b"")
    np.testing.assert_array_equal(again.values["student"], counts)
    np.testing.assert_array_equal(again.values["scratch"], other)
    losses = np.stack([RNG.normal(size=50), np.full(50, 7.0)], 1)
    again = unpack(pack(Outcomes("mean", IDS, {"student": losses})) or b"")
    np.testing.assert_allclose(again.values["student"], losses, rtol=1e-6)
    assert again.score("student") == pytest.approx(losses[:, 0].sum() / 350, rel=1e-5)


def test_laws_are_those_of_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    from torchmetrics.classification import MulticlassF1Score, MulticlassJaccardIndex

    true, said = torch.randint(4, (2, 60), generator=torch.Generator().manual_seed(0))
    hot = torch.nn.functional.one_hot
    sums = torch.stack([hot(true, 5) * hot(said, 5), hot(said, 5), hot(true, 5)], -1).sum(0).double().numpy()
    # The fifth class occurs nowhere.
    iou, f1 = (m(4, average="macro")(said, true) for m in (MulticlassJaccardIndex, MulticlassF1Score))
    assert float(LAWS["iou"](sums)) == pytest.approx(100 * float(iou))
    assert float(LAWS["f1"](sums)) == pytest.approx(100 * float(f1))
    many = LAWS["iou"](np.stack([sums, sums, 0 * sums]))
    assert many[:2] == pytest.approx(100 * float(iou))
    assert np.isnan(many[2])


def test_what_is_too_large_or_of_other_samples_is_left_out(tmp_path: Path) -> None:
    large = np.stack([RNG.normal(size=20_000), np.ones(20_000)], 1)
    assert pack(Outcomes("mean", IDS, {"student": large})) is None
    untrue = overlaps()
    assert pack(Outcomes("iou", IDS, {"student": untrue, "teacher": untrue + 1})) is None
    paths = {}
    for name, ids in (("student", IDS), ("scratch", IDS), ("teacher", "other")):
        paths[name] = tmp_path / name
        paths[name].write_bytes(pack(Outcomes("percent", ids, {"model": shares()})) or b"")
    joined = of_files({**paths, "peer": None}, "student")
    assert joined is not None
    assert unpack(joined).values.keys() == {"student", "scratch"}
    assert of_files(paths, "peer") is None


def meta(**changes: object) -> dict[str, str]:
    own = {"law": "percent", "samples": "x", "count": 8, "bits": ["student"]}
    return {"outcomes": json.dumps(own | changes)}


BITS = {"student": np.array([3], dtype=np.uint8)}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot be read"),
        (b"\x80\x04pickle", "cannot be read"),
        (save(BITS), "cannot be read"),
        (save(BITS, meta(law="sum")), "there is no law 'sum'"),
        (save(BITS, meta(law=["percent"])), "there is no law"),
        (save(BITS, meta(count=10**15)), "cannot be read"),
        (save(BITS, meta(count=-1)), "cannot be read"),
        (save(BITS, meta(count=900)), "1 bytes of 900 bits"),
        (save(BITS, meta(bits=[])), "cannot be read|is no percent"),
        (save(BITS, meta(law="iou")), "is no iou"),
        (save({"student": np.full((8, 1), np.nan, np.float32)}, meta(bits=[])), "is no percent of 8"),
        (save({}, meta()), "no outcomes"),
        (b"x" * (LIMIT + 1), "expected at most"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(content: bytes, says: str) -> None:
    assert unpack(save(BITS, meta())).score("student") == 25.0
    with pytest.raises(KDBenchError, match=says):
        unpack(content)
