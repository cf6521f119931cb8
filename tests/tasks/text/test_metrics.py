"""Scores against sums written out, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from kdbench.base import rng
from tasks.text.metrics import NextWord, OfTexts, Proxy


def drawn(name: str, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=rng.generator(0, name), dtype=torch.float64)


def test_scores_of_the_next_word():
    logits, law = drawn("logits", 6, 5, 4), drawn("law", 6, 5, 4).softmax(-1)
    words = torch.randint(4, (6, 5), generator=rng.generator(0, "words"))
    words[0, 3:], words[4] = -1, -1
    metric = NextWord()
    for part in (slice(0, 2), slice(2, 6)):
        metric.update(logits[part], words[part], law[part])
    golden, surprise, right, count = 0.0, 0.0, 0, 0
    for b, t in (words >= 0).nonzero().tolist():
        q, p = logits[b, t].softmax(0).tolist(), law[b, t].tolist()
        golden += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
        surprise -= math.log(q[words[b, t]])
        right += int(logits[b, t].argmax() == words[b, t])
        count += 1
    found = {name: value.item() for name, value in metric.compute().items()}
    there = words >= 0
    ece = multiclass_calibration_error(logits[there].softmax(1), words[there], 4, n_bins=15)
    assert found == pytest.approx(
        {
            "golden_kl": golden / count,
            "nll": surprise / count,
            "perplexity": math.exp(surprise / count),
            "accuracy": 100 * right / count,
            "ece": 100 * ece.item(),
        },
        rel=1e-6,
    )


def test_a_law_with_zeros_is_no_number_that_is_none():
    metric, law = NextWord(), torch.tensor([[[1.0, 0.0]]])
    metric.update(torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.long), law)
    assert metric.compute()["golden_kl"].item() == pytest.approx(math.log(2))


def test_without_a_law_there_is_no_golden_divergence():
    metric = NextWord()
    metric.update(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long), None)
    found = metric.compute()
    assert found["golden_kl"].isnan()
    assert found["perplexity"].item() == pytest.approx(4)


def test_scores_of_texts():
    logits, classes = drawn("of texts", 30, 4), torch.arange(30) % 3
    classes[:2] = -1
    metric = OfTexts(4)
    for part in (slice(0, 13), slice(13, 30)):
        metric.update(logits[part], classes[part], logits[part].softmax(1))
    found = metric.compute()
    right = (logits.argmax(1) == classes)[2:]
    by_class = [float(right[classes[2:] == number].double().mean()) for number in range(3)]  # none is of the fourth
    assert found["accuracy"].item() == pytest.approx(100 * right.double().mean().item())
    assert found["worst_class"].item() == pytest.approx(100 * min(by_class), rel=1e-6)
    assert found["golden_kl"].item() == pytest.approx(0, abs=1e-9)
    assert "perplexity" not in found
    assert OfTexts(4).compute()["worst_class"].isnan()


def test_how_far_from_the_teacher():
    teacher, student = drawn("teacher", 3, 2, 5), drawn("student", 3, 2, 5)
    there = torch.tensor([[True, True], [True, False], [False, False]])
    found = Proxy(["a", "b"])
    for row in range(3):
        at = slice(row, row + 1)
        found.add(teacher[at], {"a": teacher[at], "b": student[at]}, there[at])
    p, q = teacher[there].softmax(1), student[there].softmax(1)
    apart = (p * (p / q).log()).sum(1).mean().item()
    agreed = 100 * (p.argmax(1) == q.argmax(1)).double().mean().item()
    assert found.result()["a"] == pytest.approx({"proxy_kl": 0.0, "agreement": 100.0}, abs=1e-9)
    assert found.result()["b"] == pytest.approx({"proxy_kl": apart, "agreement": agreed})
