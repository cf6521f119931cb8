from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Logits
from kdbench.functional.bdkd import balanced_loss
from kdbench.functional.divergence import categorical_kl
from kdbench.methods.bdkd import BDKD
from tests.methods.harness import knobs, normal, yaml
from tests.methods.real import Cut, online_by_hand, training
from tests.toy import Toy, weights

OTHER: dict[str, Any] = {"temperature": 2.0, "major": 2.0, "minor": 0.1, "peer": "forward"}
TERM = {"peer": "balanced.peer"}


def cut(batch: int = 6, dtype: torch.dtype = torch.float32, **options: Any) -> Cut:
    return Cut("bdkd", {r: Logits((3 * normal(batch, 5, name=r)).to(dtype)) for r in ("student", "peer")}, **options)


def test_binds_to_the_logits_of_both_sides():
    side = {"taps": {"body": "body"}}
    assert bind(BDKD, Toy, {"name": "toy", "student": side, "teacher": side}) == {"logits": "logits"}


def test_terms_are_the_losses():
    made = cut()
    s, p = made.leaves["student"], made.leaves["peer"]
    assert made.term("balanced").item() == pytest.approx(balanced_loss(s, p).item())
    assert made.term("balanced.peer").item() == pytest.approx(categorical_kl(p, s).mean().item())
    forward = cut(peer="forward", temperature=2.0).term("balanced.peer").item()
    assert forward == pytest.approx(4 * categorical_kl(s, p, 2.0).mean().item())


@pytest.mark.parametrize("peer", ["reverse", "forward"])
@pytest.mark.parametrize("batch", [1, 6])
def test_each_network_holds_the_other_fixed(batch, peer):
    made = cut(batch, peer=peer)
    for term, role in (("balanced", "student"), ("balanced.peer", "peer")):
        grads = made.gradients(term)
        assert set(grads) == {role}
        assert grads[role].isfinite().all()
        assert grads[role].any()


@pytest.mark.parametrize("knob", knobs("bdkd"))
def test_every_knob_counts(knob):
    term = TERM.get(knob, "balanced")
    first, second = cut().term(term).item(), cut(**{knob: OTHER[knob]}).term(term).item()
    assert first != pytest.approx(second, rel=1e-3)


def test_low_precision_and_no_rows():
    for term in ("balanced", "balanced.peer"):
        assert cut(dtype=torch.bfloat16).term(term).item() == pytest.approx(cut().term(term).item(), rel=0.05)
        assert cut(0).term(term) == 0
        assert cut(0).term(term).requires_grad


def test_a_sigmoid_head_gets_its_own_divergence():
    values = {r: normal(4, 3, name=r) for r in ("student", "peer")}
    made = Cut("bdkd", {r: Logits(v, law="bernoulli") for r, v in values.items()})
    expected = balanced_loss(values["student"], values["peer"], law="bernoulli").item()
    assert made.term("balanced").item() == pytest.approx(expected)


def test_bad_options_are_one_line():
    with pytest.raises(KDBenchError, match=r"method.minor: found -1; input should be greater than or equal to 0"):
        cut(minor=-1)
    with pytest.raises(KDBenchError, match=r"method.peer: found 'both'; input should be 'reverse' or 'forward'"):
        cut(peer="both")


def test_training_steps_both_networks_on_one_forward(tmp_path):
    def losses(s, p):
        p_s, p_t = s.softmax(1), p.detach().softmax(1)
        forward, reverse = ((a * (a / b).log()).sum(1) for a, b in ((p_t, p_s), (p_s, p_t)))
        over = -(p_s * p_s.log()).sum(1) < -(p_t * p_t.log()).sum(1)
        balanced = torch.where(over, 1.5 * forward + 0.5 * reverse, 0.5 * forward + 1.5 * reverse).mean()
        return balanced, F.kl_div(p.log_softmax(1), s.detach().softmax(1), reduction="batchmean")

    trained = training(tmp_path / "engine", "bdkd")
    manifest = trained.run(tmp_path / "engine")
    nets = online_by_hand(training(tmp_path / "loop", "bdkd"), losses, shared=True)
    for role, net in zip(("student", "peer"), nets, strict=True):
        for name, tensor in weights(trained.cast.model(role)).items():
            torch.testing.assert_close(tensor, weights(net)[name], rtol=1e-4, atol=1e-6)
    assert set(manifest["terms"]) == set(yaml("bdkd")["weights"])
    assert manifest["cost"]["student_passes"] == manifest["cost"]["teacher_passes"] == 1
