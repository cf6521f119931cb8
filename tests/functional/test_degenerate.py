"""Rows of zeros, constant rows and huge ones, through every loss: its value is finite and its gradient bounded.

A normalisation, a standardisation or a correlation has no direction there; divided by a small constant instead, one
dead channel, one constant row of logits or one black image gives a gradient of 1e5 to 1e12.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdbench import functional as K
from kdbench.base import rng
from kdbench.functional.numerics import Faithful, spread, unit
from kdbench.signals import total

N, C = 4, 6
LABELS = torch.arange(N)
HALF = LABELS % 2 == 1
Shape = tuple[int, ...]
LOGITS, VECTORS, OTHER_VECTORS, GRID, WIDER = (N, C), (N, 8), (N, 5), (N, 5, 4, 4), (N, 7, 4, 4)
SCORES = (N, 2, 3, 3)
#: Sources and targets of edges between the rows, and the graph of each row.
EDGES, GRAPHS = torch.tensor([[0, 1, 2, 3, 1, 0], [1, 0, 0, 2, 3, 0]]), torch.tensor([0, 0, 1, 1])
REGIONS = torch.arange(N * 16).view(N, 4, 4) % 4 - 1
#: Largest number of float16, about.
HUGE = 6e4
BOUND = 1e4


def with_labels(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda s, t: loss(s, t, LABELS)


def first_and_flipped(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss of two layers."""
    return lambda s, t: loss([s, s.flip(1)], [t, t.flip(1)])


def mlkd(faithful: Faithful) -> Callable[..., Tensor]:
    return lambda s, t: total(K.mlkd_losses((s, t), (s, t), faithful=faithful))


def nce(student: Tensor, teacher: Tensor) -> Tensor:
    index = torch.tensor([[0, 1, 2]]).expand(N, -1)
    logits = K.contrast_logits(unit(student.float()), unit(teacher.float()), index)
    return K.nce_loss(logits - K.log_normalizer(logits, N), N)


def valid(boxes: Tensor) -> Tensor:
    """Boxes of some area."""
    return torch.cat([boxes[:, :2], boxes[:, :2] + 1 + boxes[:, 2:4].abs()], 1)


#: By name, its variants behind a colon: a scalar of student and teacher, and both their shapes.
CASES: dict[str, tuple[Callable[..., Tensor], Shape, Shape]] = {
    "adaptive_kl_loss": (K.adaptive_kl_loss, LOGITS, LOGITS),
    "adaptive_kl_loss:code": (lambda s, t: K.adaptive_kl_loss(s, t, faithful="code"), LOGITS, LOGITS),
    "alpha_beta_loss": (K.alpha_beta_loss, LOGITS, LOGITS),
    "interpolated_loss": (lambda s, t: K.interpolated_loss(s, t, 0.5), LOGITS, LOGITS),
    "jsd_loss": (K.jsd_loss, LOGITS, LOGITS),
    "reverse_kl_loss": (K.reverse_kl_loss, LOGITS, LOGITS),
    "skew_kl_loss": (K.skew_kl_loss, LOGITS, LOGITS),
    "skew_reverse_kl_loss": (K.skew_reverse_kl_loss, LOGITS, LOGITS),
    "attention_score_loss": (K.attention_score_loss, SCORES, SCORES),
    "long_term_loss": (lambda s, t: K.long_term_loss(s, t, torch.ones(N, C) > 0), LOGITS, LOGITS),
    "private_loss": (lambda s, t: K.private_loss(s, t, torch.linspace(1, 16, N)), LOGITS, LOGITS),
    "relation_loss": (K.relation_loss, SCORES, SCORES),
    "relation_loss:causal": (lambda s, t: K.relation_loss(s, t, torch.ones(1, 1, 3, 3).tril() > 0), SCORES, SCORES),
    "patience_loss": (K.patience_loss, VECTORS, VECTORS),
    "hidden_cosine_loss": (K.hidden_cosine_loss, VECTORS, VECTORS),
    "feature_map_loss": (K.feature_map_loss, VECTORS, VECTORS),
    "feature_map_loss:code": (lambda s, t: K.feature_map_loss(s, t, faithful="code"), VECTORS, VECTORS),
    "mutual_information_loss": (K.mutual_information_loss, VECTORS, VECTORS),
    "activation_boundary_loss": (K.activation_boundary_loss, GRID, GRID),
    "angle_loss": (K.angle_loss, VECTORS, OTHER_VECTORS),
    "attention_transfer_loss": (K.attention_transfer_loss, GRID, WIDER),
    "attention_transfer_loss:paper": (lambda s, t: K.attention_transfer_loss(s, t, faithful="paper"), GRID, WIDER),
    "attention_transfer_loss:1": (lambda s, t: K.attention_transfer_loss(s, t, power=1.0), GRID, WIDER),
    "balanced_loss": (K.balanced_loss, LOGITS, LOGITS),
    "balanced_loss:bernoulli": (lambda s, t: K.balanced_loss(s, t, law="bernoulli"), LOGITS, LOGITS),
    "box_overlap_loss": (
        lambda s, t: K.box_overlap_loss(valid(s.float()), valid(t.float()), torch.ones(N), torch.tensor(N)),
        VECTORS,
        VECTORS,
    ),
    "channel_correlation_loss": (K.channel_correlation_loss, GRID, GRID),
    "category_similarity_loss": (K.category_similarity_loss, GRID, GRID),
    "channel_wise_loss": (K.channel_wise_loss, GRID, GRID),
    "class_attention_loss": (K.class_attention_loss, GRID, GRID),
    "class_attention_loss:raw": (lambda s, t: K.class_attention_loss(s, t, normalize=False), GRID, GRID),
    "class_variation_loss": (lambda s, t: K.class_variation_loss(s, t, REGIONS, 3), GRID, WIDER),
    "contrast_loss": (lambda s, t: K.contrast_loss(K.contrast_similarities(s, t), LABELS), VECTORS, VECTORS),
    "contrast_transfer_loss": (with_labels(K.contrast_transfer_loss), LOGITS, LOGITS),
    "correlation_congruence_loss": (K.correlation_congruence_loss, VECTORS, OTHER_VECTORS),
    "critic_loss": (K.critic_loss, VECTORS, VECTORS),
    "critic_loss:wgan": (lambda s, t: K.critic_loss(s, t, "wgan"), VECTORS, VECTORS),
    "cross_image_loss": (K.cross_image_loss, GRID, WIDER),
    "distance_loss": (K.distance_loss, VECTORS, OTHER_VECTORS),
    "edge_attention_loss": (
        lambda s, t: K.edge_attention_loss(s[:, 0].softmax(0), t[:, 0].softmax(0), torch.zeros(N, dtype=torch.long)),
        VECTORS,
        VECTORS,
    ),
    "factor_loss": (K.factor_loss, GRID, GRID),
    "factor_loss:paper": (lambda s, t: K.factor_loss(s, t, faithful="paper"), GRID, GRID),
    "focal_attention_loss": (K.focal_attention_loss, GRID, GRID),
    "focal_feature_losses": (
        lambda s, t: total(K.focal_feature_losses(s, t, torch.ones(N, 4, 4), torch.ones(N, 4, 4))),
        GRID,
        GRID,
    ),
    "fsp_loss": (first_and_flipped(K.fsp_loss), GRID, GRID),
    "fused_loss": (lambda s, t: K.fused_loss(s, t, LABELS, 0.5), LOGITS, LOGITS),
    "graph_logits_loss": (
        lambda s, t: K.graph_logits_loss(s, t, GRAPHS, GRAPHS, 2, top=3),
        LOGITS,
        VECTORS,
    ),
    "universal_loss": (K.universal_loss, LOGITS, VECTORS),
    "universal_loss:bernoulli": (lambda s, t: K.universal_loss(s, t, law="bernoulli"), LOGITS, VECTORS),
    "global_structure_loss": (K.global_structure_loss, VECTORS, OTHER_VECTORS),
    "gram_loss": (lambda s, t: K.gram_loss(s.softmax(1), t.softmax(1)), LOGITS, LOGITS),
    "hierarchical_context_loss": (K.hierarchical_context_loss, GRID, GRID),
    "hint_loss": (K.hint_loss, GRID, GRID),
    "imitation_loss": (
        lambda s, t: K.imitation_loss([s], [t], [torch.ones(N, 4, 4, dtype=torch.bool)]),
        GRID,
        GRID,
    ),
    "instance_losses": (
        lambda s, t: total(K.instance_losses(s[..., :5], t[..., :4].sigmoid(), s[..., 0] > 0, t[..., 0] > 0)),
        (N, 3, 8),
        (N, 3, 8),
    ),
    "instance_value_loss": (
        lambda s, t: K.instance_value_loss(s, t, torch.ones(N, 2, 3)),
        (N, 2, 3, 4),
        (N, 2, 3, 4),
    ),
    "inter_class_loss": (K.inter_class_loss, LOGITS, LOGITS),
    "inter_class_loss:1": (lambda s, t: K.inter_class_loss(s, t, 1.0), LOGITS, LOGITS),
    "intra_class_loss": (K.intra_class_loss, LOGITS, LOGITS),
    "intra_class_loss:1": (lambda s, t: K.intra_class_loss(s, t, 1.0), LOGITS, LOGITS),
    "kd_loss": (K.kd_loss, LOGITS, LOGITS),
    "kd_loss:bernoulli": (lambda s, t: K.kd_loss(s, t, law="bernoulli"), LOGITS, LOGITS),
    "kd_loss:standardize": (lambda s, t: K.kd_loss(s, t, standardize=True), LOGITS, LOGITS),
    "kdsvd_loss": (first_and_flipped(K.kdsvd_loss), GRID, GRID),
    "label_free_divergence": (lambda s, t: K.label_free_divergence(s, t).sum(), LOGITS, LOGITS),
    "label_free_divergence:symmetric": (
        lambda s, t: K.label_free_divergence(s, t, "symmetric_kl", "bernoulli").sum(),
        LOGITS,
        LOGITS,
    ),
    "unlearning_response_loss": (lambda s, t: K.unlearning_response_loss(s, t, -t, HALF), LOGITS, LOGITS),
    "unlearning_feature_loss": (lambda s, t: K.unlearning_feature_loss(s, t, -t, HALF) / HUGE, VECTORS, VECTORS),
    "high_order_loss": (lambda s, t: K.high_order_loss(s, t, EDGES[:, :4], LABELS < 3), LOGITS, LOGITS),
    "high_order_loss:code": (
        lambda s, t: K.high_order_loss(s, t, EDGES[:, :4], LABELS < 3, faithful="code"),
        LOGITS,
        LOGITS,
    ),
    "code_loss": (lambda s, t: K.code_loss(s, t, torch.eye(3, 8)), VECTORS, VECTORS),
    "quantisation_loss": (lambda s, t: K.quantisation_loss(s, t.float()), VECTORS, VECTORS),
    "edge_prediction_loss": (
        lambda s, t: K.edge_prediction_loss(s, torch.tensor([[0, 1], [1, 2]]), torch.tensor([[0, 2], [2, 0]])),
        VECTORS,
        VECTORS,
    ),
    "high_frequency_loss": (lambda s, t: K.high_frequency_loss(s, t, EDGES), LOGITS, LOGITS),
    "low_frequency_loss": (lambda s, t: K.low_frequency_loss(s, t, EDGES), LOGITS, LOGITS),
    "local_graph_loss": (K.local_graph_loss, (N, 3, 5), (N, 3, 5)),
    "local_structure_loss": (lambda s, t: K.local_structure_loss(s, t, EDGES), VECTORS, OTHER_VECTORS),
    "local_structure_loss:code": (
        lambda s, t: K.local_structure_loss(s, t, EDGES, faithful="code"),
        VECTORS,
        OTHER_VECTORS,
    ),
    "localisation_loss": (
        lambda s, t: K.localisation_loss(s.view(N, 1, 4, 2), t.view(N, 1, 4, 2), torch.ones(N, 1)),
        VECTORS,
        VECTORS,
    ),
    "memory_loss": (lambda s, t: K.memory_loss(unit(s.float()), unit(t.float()), torch.eye(8)), VECTORS, VECTORS),
    "mgd_loss": (K.mgd_loss, GRID, GRID),
    "mlkd_losses": (mlkd("code"), LOGITS, LOGITS),
    "mlkd_losses:paper": (mlkd("paper"), LOGITS, LOGITS),
    "nce_loss": (nce, VECTORS, VECTORS),
    "nckd_loss": (with_labels(K.nckd_loss), LOGITS, LOGITS),
    "neighbour_product_loss": (K.neighbour_product_loss, VECTORS, VECTORS),
    "nkd_non_target_loss": (with_labels(K.nkd_non_target_loss), LOGITS, LOGITS),
    "nkd_target_loss": (with_labels(K.nkd_target_loss), LOGITS, LOGITS),
    "node_contrast_loss": (K.node_contrast_loss, VECTORS, VECTORS),
    "node_energy_loss": (lambda s, t: K.node_energy_loss(s, t, GRAPHS), VECTORS, OTHER_VECTORS),
    "nst_loss": (K.nst_loss, GRID, WIDER),
    "ofa_loss": (with_labels(K.ofa_loss), LOGITS, LOGITS),
    "pair_wise_loss": (K.pair_wise_loss, GRID, WIDER),
    "partial_distance": (lambda s, t: K.partial_distance(s, t, -torch.ones(5)), GRID, GRID),
    "path_consistency_loss": (K.path_consistency_loss, GRID, GRID),
    "pearson_feature_loss": (K.pearson_feature_loss, GRID, GRID),
    "pivotal_logit_loss": (lambda s, t: K.pivotal_logit_loss(s, t, torch.ones(N)), LOGITS, LOGITS),
    "pivotal_logit_loss:categorical": (
        lambda s, t: K.pivotal_logit_loss(s, t, torch.ones(N), law="categorical"),
        LOGITS,
        LOGITS,
    ),
    "pixel_similarity_loss": (first_and_flipped(K.pixel_similarity_loss), GRID, WIDER),
    "pkt_loss": (K.pkt_loss, VECTORS, OTHER_VECTORS),
    "pkt_loss:paper": (lambda s, t: K.pkt_loss(s, t, faithful="paper"), VECTORS, OTHER_VECTORS),
    "pruned_loss": (lambda s, t: K.pruned_loss(torch.tensor(1.0), s, t, 0.5), LOGITS, LOGITS),
    "quality_focal_loss": (lambda s, t: K.quality_focal_loss(s, t, torch.tensor(2)), LOGITS, LOGITS),
    "self_guided_loss": (lambda s, t: K.self_guided_loss(s, LABELS, t), LOGITS, LOGITS),
    "self_training_loss": (K.self_training_loss, LOGITS, LOGITS),
    "similarity_preserving_loss": (K.similarity_preserving_loss, VECTORS, OTHER_VECTORS),
    "simkd_loss": (K.simkd_loss, GRID, GRID),
    "sinkhorn_loss": (K.sinkhorn_loss, LOGITS, LOGITS),
    "sinkhorn_loss:debiased": (lambda s, t: K.sinkhorn_loss(s, t, debiased=True), LOGITS, LOGITS),
    "srrl_losses": (lambda s, t: total(K.srrl_losses(s, t, lambda f: f[:, :3])), VECTORS, VECTORS),
    "tckd_loss": (with_labels(K.tckd_loss), LOGITS, LOGITS),
    "token_context_loss": (K.token_context_loss, (N, 3, 8), (N, 3, 5)),
    "token_global_loss": (K.token_global_loss, VECTORS, VECTORS),
    "token_local_loss": (lambda s, t: K.token_local_loss(s, t, 2), VECTORS, OTHER_VECTORS),
    "ttm_loss": (K.ttm_loss, LOGITS, LOGITS),
    "ttm_loss:weighted": (lambda s, t: K.ttm_loss(s, t, weighted=True), LOGITS, LOGITS),
    "vae_losses": (lambda s, t: total(K.vae_losses(t, s, s.flatten(1), torch.zeros(N, 80))), GRID, GRID),
    "vid_loss": (lambda s, t: K.vid_loss(s, t, torch.ones(5)), GRID, GRID),
    "virtual_teacher_loss": (lambda s, t: K.virtual_teacher_loss(s, LABELS), LOGITS, LOGITS),
    "wsld_loss": (with_labels(K.wsld_loss), LOGITS, LOGITS),
}
#: Grow with a power of the features, and so do their gradients.
GROWS = {"activation_boundary_loss", "class_attention_loss:raw", "fsp_loss", "hierarchical_context_loss", "hint_loss"}
GROWS |= {"graph_logits_loss", "attention_score_loss", "feature_map_loss", "feature_map_loss:code"}
GROWS |= {"edge_prediction_loss", "focal_feature_losses", "imitation_loss"}
GROWS |= {"local_graph_loss", "mgd_loss", "neighbour_product_loss", "partial_distance", "simkd_loss", "srrl_losses"}
GROWS |= {"vae_losses", "vid_loss"}


def inputs(shape: Shape, side: str) -> dict[str, Tensor]:
    ordinary = torch.randn(shape, generator=rng.generator(0, "degenerate", side, *shape))
    made = {"ordinary": ordinary, "same rows": ordinary[:1].expand(shape)}
    made |= {f"constant {x}": torch.full(shape, x) for x in (0.0, 0.1, -30.0, 1000.1)}
    for name, value in (("a row of zeros", 0.0), ("a constant row", 0.1), ("a huge row", HUGE)):
        made[name] = ordinary.index_fill(0, torch.tensor([1]), value)
    made["a channel of zeros"] = ordinary.index_fill(1, torch.tensor([1]), 0.0)
    return made | {"huge": ordinary * (HUGE / ordinary.abs().max()), "constant huge": torch.full(shape, -HUGE)}


def test_no_loss_is_left_out():
    losses = {name for name in K.__all__ if name.endswith(("_loss", "_losses", "_divergence", "_distance"))}
    assert losses == {name.partition(":")[0] for name in CASES}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_values_are_finite_and_gradients_bounded(name, dtype):
    loss, *shapes = CASES[name]
    students, teachers = (inputs(shape, side) for shape, side in zip(shapes, ("student", "teacher"), strict=True))
    for what, values in students.items():
        for other in {"ordinary", what}:
            student = values.to(dtype).requires_grad_()
            value = loss(student, teachers[other].to(dtype))
            assert value.isfinite(), (what, other)
            (gradient,) = torch.autograd.grad(value, student, allow_unused=True)
            if gradient is not None and not (name in GROWS and values.abs().max() >= 1000):
                assert gradient.abs().max() <= BOUND, (what, other)


def test_what_has_no_direction_has_the_value_zero_and_no_gradient():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-13, 0.0]], requires_grad=True)
    made = unit(rows)
    torch.testing.assert_close(made[:1], torch.nn.functional.normalize(rows[:1]), rtol=0, atol=0)
    assert not made[1:].any()
    made[:, 0].sum().backward()
    assert rows.grad is not None
    assert rows.grad[0].any()
    assert not rows.grad[1:].any()


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -1234.567, 6e4])
@pytest.mark.parametrize("width", [2, 10, 1000])
def test_a_row_that_is_constant_up_to_rounding_does_not_vary(value, width):
    constant = torch.full((1, width), value)
    assert not spread(constant)[2].any()
    varied = constant.clone()
    varied[0, 0] += 1e-3 * max(abs(value), 1.0)
    assert spread(varied)[2].all()
    assert not K.z_score(constant).any()
    assert not K.pearson_correlation(constant, varied).any()
