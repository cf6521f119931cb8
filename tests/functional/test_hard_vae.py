from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.hard_vae import standard_normal_kl, vae_losses
from tests.functional.checks import check_empty, check_low_precision


def noise(*shape: int, name: str = "") -> torch.Tensor:
    return torch.randn(shape, generator=rng.generator(0, "hard_vae", name, *shape), dtype=torch.float64)


def test_the_divergence_is_that_of_normal_laws():
    mean, log_variance = noise(3, 2, 4, 4), noise(3, 2, 4, 4, name="v")
    law = Normal(mean, (0.5 * log_variance).exp())
    expected = kl_divergence(law, Normal(torch.zeros(()).double(), torch.ones(()).double())).sum((1, 2, 3))
    torch.testing.assert_close(standard_normal_kl(mean, log_variance), expected)


def test_the_sum_is_the_negative_bound_but_for_a_constant():
    inputs, made, mean, log_variance = noise(3, 2, 4), noise(3, 2, 4, name="x"), noise(3, 5), noise(3, 5, name="v")
    error, divergence = vae_losses(inputs, made, mean, log_variance)
    law = Normal(made, np.sqrt(0.5))
    constant = Normal(0.0, np.sqrt(0.5)).log_prob(torch.tensor(0.0)).item()
    bound = law.log_prob(inputs).sum((1, 2)) - standard_normal_kl(mean, log_variance)
    assert (error + divergence).item() == pytest.approx(constant - bound.mean().item() / 8)


def test_what_holds_of_every_loss():
    latents = noise(4, 3).float()
    check_low_precision(lambda m, v: vae_losses(noise(4, 2), noise(4, 2, name="o"), m, v)[1], latents, latents)
    check_empty(lambda m, v: vae_losses(torch.zeros(0, 2), torch.zeros(0, 2), m, v)[1], (0, 3), (0, 3))
    with pytest.raises(KDBenchError, match="expected equal shapes"):
        standard_normal_kl(latents, latents[:1])
