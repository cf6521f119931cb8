"""References are the authors' joining of boxes in words (CVMI-Lab/SparseKD, ``kd_head.py``), one sample at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.label_kd import confident, join_labels

THRESHOLDS = [0.6, 0.2, 0.9]


def objects(name: str, samples: list[int]) -> dict[str, Tensor]:
    g, n = rng.generator(0, "label_kd", name), len(samples)
    return {
        "boxes": torch.rand(n, 7, generator=g, dtype=torch.float64),
        "labels": torch.randint(0, 3, (n,), generator=g),
        "scores": torch.rand(n, generator=g, dtype=torch.float64),
        "batch": torch.tensor(samples, dtype=torch.long),
    }


def test_only_the_sure_ones_join_by_sample_before_the_true_ones():
    found, truth = objects("found", [0, 0, 0, 1, 2, 2, 2, 2]), objects("true", [0, 2, 2, 3])
    truth.pop("scores")
    kept = confident(found["scores"], found["labels"], torch.tensor(THRESHOLDS))
    expected: dict[str, list[list[float]]] = {name: [] for name in truth}
    for sample in range(4):
        for rows, sure in ((found, True), (truth, False)):
            for i in range(len(rows["batch"])):
                if rows["batch"][i] == sample and (
                    not sure or rows["scores"][i].item() > THRESHOLDS[int(rows["labels"][i])]
                ):
                    for name in truth:
                        expected[name].append(rows[name][i].tolist())
    assert 0 < int(kept.sum()) < len(kept)
    joined = join_labels({name: rows[kept] for name, rows in found.items()}, truth)
    assert {name: rows.tolist() for name, rows in joined.items()} == expected
    assert {name: rows.dtype for name, rows in joined.items()} == {name: rows.dtype for name, rows in truth.items()}


def test_nothing_found_and_nothing_true():
    none, some = objects("none", []), objects("some", [0, 1])
    assert all(torch.equal(rows, some[name]) for name, rows in join_labels(none, some).items())
    assert all(torch.equal(rows, some[name]) for name, rows in join_labels(some, none).items())
    assert not len(confident(none["scores"], none["labels"], torch.tensor(THRESHOLDS)))
    assert len(join_labels(none, none)["boxes"]) == 0


def test_low_precision():
    """A box of low precision becomes one as true ones are; scores are compared as they come."""
    found, truth = objects("found", [0]), objects("true", [0])
    low = {**found, "boxes": found["boxes"].bfloat16()}
    assert join_labels(low, truth)["boxes"].dtype == torch.float64
    assert confident(torch.tensor([0.7]).bfloat16(), torch.tensor([0]), torch.tensor(THRESHOLDS)).tolist() == [True]


def test_what_does_not_fit_is_one_line():
    with pytest.raises(KDBenchError, match=r"^confident: scores of shape \(2,\) and labels of shape \(3,\), expected"):
        confident(torch.zeros(2), torch.zeros(3, dtype=torch.long), torch.tensor(THRESHOLDS))
    found = {name: rows for name, rows in objects("found", [0]).items() if name != "boxes"}
    with pytest.raises(KDBenchError, match=r"^join_labels: what was found has no 'boxes', which what is true has$"):
        join_labels(found, objects("true", [0]))
