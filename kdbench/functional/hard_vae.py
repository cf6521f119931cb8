"""The loss of a variational autoencoder."""

from __future__ import annotations

from torch import Tensor

from kdbench.functional.numerics import check_same_shape, safe_mean, upcast


def standard_normal_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL of diagonal Gaussians to the standard normal law, summed over the latents of each sample.

    ``1/2 sum (m^2 + v - 1 - log v)``; Kingma & Welling, Auto-Encoding Variational Bayes (ICLR 2014), appendix B.

    Args:
        mean: (B, *latents).
        log_variance: same shape.

    Returns:
        (B,), float32 for low-precision input.

    Raises:
        KDBenchError: shapes differ.

    Example:
        >>> import torch
        >>> standard_normal_kl(torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2))
        tensor([2.])
    """
    check_same_shape(mean, log_variance, "standard_normal_kl")
    mean, log_variance = upcast(mean), upcast(log_variance)
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)


def vae_losses(inputs: Tensor, reconstruction: Tensor, mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Both terms of the variational bound of Gaussian inputs of variance 1/2, a number of inputs each.

    Their sum is, but for a constant, the negative bound of Kingma & Welling (ICLR 2014), eq. 10, over the number of
    inputs of a sample, so that neither grows with the size of an image.

    Args:
        inputs: (B, C, *size).
        reconstruction: same shape.
        mean: (B, *latents).
        log_variance: same shape as ``mean``.

    Returns:
        Scalars, float32 for low-precision input: squared error a number, and KL over their count; zero for no samples.

    Raises:
        KDBenchError: shapes differ.

    Example:
        >>> import torch
        >>> mean = torch.tensor([[2.0]])
        >>> vae_losses(torch.zeros(1, 1, 4), torch.ones(1, 1, 4), mean, torch.zeros(1, 1))
        (tensor(1.), tensor(0.5000))
    """
    check_same_shape(inputs, reconstruction, "vae_losses")
    count = max(inputs[:1].numel(), 1)
    error = safe_mean((upcast(reconstruction) - upcast(inputs)).square())
    return error, safe_mean(standard_normal_kl(mean, log_variance)) / count
