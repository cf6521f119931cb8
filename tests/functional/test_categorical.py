from __future__ import annotations

import pytest
import torch

from kdbench.errors import KDBenchError
from kdbench.functional.categorical import check_categorical, non_target


def test_the_true_class_is_left_out_of_every_row():
    logits, target = torch.arange(12.0).reshape(3, 4), torch.tensor([0, 2, 3])
    expected = [
        [v for c, v in enumerate(row) if c != y] for row, y in zip(logits.tolist(), target.tolist(), strict=True)
    ]
    assert non_target(logits, target).tolist() == expected
    assert non_target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)).shape == (0, 3)


def test_errors():
    check_categorical("categorical", "DKD")
    with pytest.raises(KDBenchError, match="^DKD compares softmax distributions: found law='bernoulli'"):
        check_categorical("bernoulli", "DKD")
    with pytest.raises(KDBenchError, match="1 class, expected at least 2"):
        non_target(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))
