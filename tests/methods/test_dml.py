from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Logits, Values
from kdbench.methods.dml import DML
from tests.methods.harness import knobs, normal, yaml
from tests.methods.real import Cut, online_by_hand, training
from tests.toy import Toy, weights


def cut(batch: int = 6, dtype: torch.dtype = torch.float32, **options: Any) -> Cut:
    return Cut("dml", {r: Logits((3 * normal(batch, 5, name=r)).to(dtype)) for r in ("student", "peer")}, **options)


def reference(mine: torch.Tensor, other: torch.Tensor) -> float:
    """Mean of sum p_other log(p_other / p_mine), one class at a time."""
    total = 0.0
    for z, o in zip(mine.tolist(), other.tolist(), strict=True):
        p, q = ([math.exp(v) / sum(map(math.exp, row)) for v in row] for row in (z, o))
        total += sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    return total / len(mine)


def test_binds_to_the_logits_of_both_sides():
    side = {"taps": {"body": "body"}}
    assert bind(DML, Toy, {"name": "toy", "student": side, "teacher": side}) == {"logits": "logits"}


@pytest.mark.parametrize("batch", [1, 4, 9])
def test_matches_the_equations(batch):
    made = cut(batch, torch.float64)
    s, p = made.leaves["student"].detach(), made.leaves["peer"].detach()
    assert made.term("mutual").item() == pytest.approx(reference(s, p), rel=1e-6)
    assert made.term("mutual.peer").item() == pytest.approx(reference(p, s), rel=1e-6)


def test_each_network_holds_the_other_fixed():
    made = cut()
    for term, role in (("mutual", "student"), ("mutual.peer", "peer")):
        grads = made.gradients(term)
        assert set(grads) == {role}
        assert grads[role].any()


def test_predicted_values_are_matched_both_ways():
    made = Cut("dml", {r: Values(normal(5, 3, name=r)) for r in ("student", "peer")})
    s, p = made.leaves["student"].detach(), made.leaves["peer"].detach()
    for term, role in (("mutual", "student"), ("mutual.peer", "peer")):
        assert made.term(term).item() == pytest.approx(float((s - p).square().sum(1).mean()), rel=1e-6)
        assert set(made.gradients(term)) == {role}


def test_zero_where_both_agree_and_low_precision_and_no_rows():
    values = normal(4, 5)
    same = Cut("dml", {"student": Logits(values), "peer": Logits(values.clone())})
    assert same.term("mutual").item() == pytest.approx(0, abs=1e-6)
    assert cut(dtype=torch.bfloat16).term("mutual").item() == pytest.approx(cut().term("mutual").item(), rel=0.05)
    empty = cut(0).term("mutual")
    assert empty == 0
    assert empty.requires_grad


def test_rows_are_masked_and_weighted_and_a_sigmoid_head_gets_its_own_divergence():
    s, p = (normal(3, 5, name=n) for n in "sp")
    mask, weight = torch.tensor([True, True, False]), torch.tensor([1.0, 2.0, 5.0])
    made = Cut("dml", {r: Logits(v, mask=mask, weight=weight) for r, v in (("student", s), ("peer", p))})
    rows = [reference(s[i : i + 1], p[i : i + 1]) for i in range(2)]
    assert made.term("mutual").item() == pytest.approx((rows[0] + 2 * rows[1]) / 3, rel=1e-5)
    sigmoid = Cut("dml", {r: Logits(v.detach(), law="bernoulli") for r, v in (("student", s), ("peer", p))})
    expected = F.binary_cross_entropy_with_logits(s, p.sigmoid()) - F.binary_cross_entropy_with_logits(p, p.sigmoid())
    assert sigmoid.term("mutual").item() == pytest.approx(5 * expected.item(), rel=1e-5)


def test_every_knob_counts():
    assert knobs("dml") == ["temperature", "shared"]
    assert cut().term("mutual").item() != pytest.approx(cut(temperature=2.0).term("mutual").item(), rel=1e-3)
    assert [u.group for u in cut().method.updates()] == [0, 1]
    assert [u.group for u in cut(shared=True).method.updates()] == [0, 0]
    with pytest.raises(KDBenchError, match=r"method.temperature: found 0; input should be greater than 0"):
        cut(temperature=0)


@pytest.mark.parametrize("shared", [False, True])
def test_training_is_the_loop_of_the_paper(tmp_path, shared):
    """Algorithm 1: the peer steps, then the student on fresh predictions; or both on one forward."""

    def mutual(s, p):
        kl = [F.kl_div(a.log_softmax(1), b.detach().softmax(1), reduction="batchmean") for a, b in ((s, p), (p, s))]
        return kl[0], kl[1]

    trained = training(tmp_path / "engine", "dml", {"shared": shared})
    manifest = trained.run(tmp_path / "engine")
    nets = online_by_hand(training(tmp_path / "loop", "dml"), mutual, shared)
    for role, net in zip(("student", "peer"), nets, strict=True):
        for name, tensor in weights(trained.cast.model(role)).items():
            torch.testing.assert_close(tensor, weights(net)[name], rtol=1e-5, atol=1e-6)
    assert set(manifest["terms"]) == set(yaml("dml")["weights"])
    assert manifest["cost"]["student_passes"] == manifest["cost"]["teacher_passes"] == (1 if shared else 2)
    assert set(manifest["beside"]) == {"peer"}
