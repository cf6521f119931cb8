"""Distillation of activation boundaries: on which side of zero every neuron of the teacher is."""

from __future__ import annotations

from torch import Tensor

from kdbench.functional.numerics import check_same_shape, upcast


def activation_boundary_loss(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """Squared hinge that puts the student's neurons on the teacher's side of zero, by a margin.

    Heo et al., Knowledge Transfer via Distillation of Activation Boundaries (AAAI 2019), the alternative loss: where
    the teacher is active (``t > 0``) ``max(0, margin - s)^2``, elsewhere ``max(0, margin + s)^2``; summed over the
    neurons of a sample and averaged over samples.

    Args:
        student: (B, ...) before the activation, projected to the teacher's width.
        teacher: same shape, before the activation.
        margin: mu > 0.

    Returns:
        A scalar, float32 for low-precision input; zero for an empty batch.

    Example:
        >>> import torch
        >>> activation_boundary_loss(torch.tensor([[0.5, 0.5, 2.0]]), torch.tensor([[3.0, -3.0, 1.0]]))
        tensor(2.5000)
    """
    check_same_shape(student, teacher, "activation_boundary_loss")
    student = upcast(student)
    wrong_side = (margin - (teacher > 0).to(student.dtype).mul(2).sub(1) * student).clamp_min(0)
    return wrong_side.square().sum() / max(student.shape[0], 1)
