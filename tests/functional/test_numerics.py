from __future__ import annotations

import pytest
import torch

from kdbench.errors import KDBenchError
from kdbench.functional.numerics import check_faithful, full_precision, upcast, weighted_mean


def test_weighted_mean():
    rows = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    assert weighted_mean(rows) == 3
    assert weighted_mean(rows, torch.tensor([1, 1, 0])) == 1.5
    for value in (weighted_mean(rows, torch.zeros(3)), weighted_mean(rows[:0]), weighted_mean(rows[:0], torch.ones(0))):
        assert value == 0
        assert torch.autograd.grad(value, rows)[0].isfinite().all()
    with pytest.raises(KDBenchError, match=r"row weights.*\(3,\).*\(2,\)"):
        weighted_mean(rows, torch.ones(2))


@pytest.mark.parametrize(
    ("given", "wanted"), [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64,) * 2]
)
def test_upcast_only_widens(given, wanted):
    assert upcast(torch.ones(2, dtype=given)).dtype == wanted


def test_products_stay_in_full_precision_under_autocast():
    x = torch.full((2, 2), 1.001)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with full_precision(x):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16


def test_faithful_is_to_paper_or_code():
    check_faithful("paper")
    check_faithful("code")
    with pytest.raises(KDBenchError, match="faithful='release' is unknown; available: code, paper"):
        check_faithful("release")
