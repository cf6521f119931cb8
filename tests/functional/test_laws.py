from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.functional.laws import mixture


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_a_mixture_of_logs_is_the_log_of_the_mixture(share):
    p, q = torch.tensor([0.7, 0.3, 1e-30]), torch.tensor([0.2, 0.5, 0.3])
    found = mixture(p.double().log(), q.double().log(), share)
    np.testing.assert_allclose(found.exp(), share * p.double() + (1 - share) * q.double(), rtol=1e-12)


def test_a_mixture_of_what_is_almost_impossible_has_a_gradient():
    log_p, log_q = torch.tensor([-200.0], requires_grad=True), torch.tensor([-150.0], requires_grad=True)
    value = mixture(log_p, log_q, 0.1)
    value.backward()
    assert value.item() == pytest.approx(-150 + np.log(0.9))
    assert log_q.grad is not None
    assert log_q.grad.item() == pytest.approx(1.0)
