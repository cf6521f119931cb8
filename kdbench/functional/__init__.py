"""Pure loss functions: tensors in, a scalar or one value per row out.

None holds state, a tensor is detached only where the equation does so, low precision is summed in float32, and empty
input gives a zero that is connected to the graph.
"""

from kdbench.functional.ab import activation_boundary_loss
from kdbench.functional.at import attention_map, attention_transfer_loss
from kdbench.functional.bdkd import balanced_loss, entropy
from kdbench.functional.cat_kd import class_activation_maps, class_attention_loss
from kdbench.functional.categorical import non_target
from kdbench.functional.cc import correlation_congruence_loss, correlation_matrix, neighbour_product_loss
from kdbench.functional.crd import contrast_logits, draw_negatives, log_normalizer, momentum_update, nce_loss
from kdbench.functional.dist import inter_class_loss, intra_class_loss, pearson_correlation
from kdbench.functional.divergence import bernoulli_kl, categorical_kl, divergence
from kdbench.functional.dkd import nckd_loss, tckd_loss
from kdbench.functional.fitnet import hint_loss
from kdbench.functional.fsp import fsp_loss, fsp_matrix
from kdbench.functional.ft import factor_loss
from kdbench.functional.graph import batch_norm_edges, edge_distances, gather_edges, knn, project_edges
from kdbench.functional.ickd import channel_correlation, channel_correlation_loss
from kdbench.functional.kd import adversarial_temperature, cosine_ramp, kd_loss, z_score
from kdbench.functional.kdsvd import align, kdsvd_loss, right_singular_vectors
from kdbench.functional.mgd import mgd_loss, random_mask
from kdbench.functional.mlkd import gram_loss, least_confident, mlkd_losses
from kdbench.functional.nkd import nkd_non_target_loss, nkd_target_loss
from kdbench.functional.nst import nst_loss
from kdbench.functional.ofa import ofa_loss
from kdbench.functional.ofd import gaussian_margin, partial_distance
from kdbench.functional.pkt import neighbour_probabilities, pkt_loss
from kdbench.functional.pointdistiller import importance, local_graph_loss, reweight, select, weigh_distances
from kdbench.functional.pool import average_pool, global_average, pool_to_smaller
from kdbench.functional.pruned import distillation_weight, pruned_loss
from kdbench.functional.reviewkd import hierarchical_context_loss
from kdbench.functional.rkd import angle_loss, distance_loss
from kdbench.functional.self_guided import self_guided_loss
from kdbench.functional.simkd import simkd_loss
from kdbench.functional.sinkd import sinkhorn_loss, transport_cost
from kdbench.functional.sp import similarity_matrix, similarity_preserving_loss
from kdbench.functional.srrl import srrl_losses
from kdbench.functional.sskd import contrast_loss, contrast_similarities, contrast_transfer_loss, select_transfer
from kdbench.functional.ssld import label_free_divergence, surest
from kdbench.functional.tf_kd import self_training_loss, virtual_teacher, virtual_teacher_loss
from kdbench.functional.tgeo import class_sums, fused_loss, trilateral_state
from kdbench.functional.trg import neighbour_mask, token_context_loss, token_global_loss, token_local_loss
from kdbench.functional.ttm import ttm_loss
from kdbench.functional.vid import softplus_inverse, vid_loss
from kdbench.functional.wsld import soft_label_weight, wsld_loss

__all__ = [
    "activation_boundary_loss",
    "adversarial_temperature",
    "align",
    "angle_loss",
    "attention_map",
    "attention_transfer_loss",
    "average_pool",
    "balanced_loss",
    "batch_norm_edges",
    "bernoulli_kl",
    "categorical_kl",
    "channel_correlation",
    "channel_correlation_loss",
    "class_activation_maps",
    "class_attention_loss",
    "class_sums",
    "contrast_logits",
    "contrast_loss",
    "contrast_similarities",
    "contrast_transfer_loss",
    "correlation_congruence_loss",
    "correlation_matrix",
    "cosine_ramp",
    "distance_loss",
    "distillation_weight",
    "divergence",
    "draw_negatives",
    "edge_distances",
    "entropy",
    "factor_loss",
    "fsp_loss",
    "fsp_matrix",
    "fused_loss",
    "gather_edges",
    "gaussian_margin",
    "global_average",
    "gram_loss",
    "hierarchical_context_loss",
    "hint_loss",
    "importance",
    "inter_class_loss",
    "intra_class_loss",
    "kd_loss",
    "kdsvd_loss",
    "knn",
    "label_free_divergence",
    "least_confident",
    "local_graph_loss",
    "log_normalizer",
    "mgd_loss",
    "mlkd_losses",
    "momentum_update",
    "nce_loss",
    "nckd_loss",
    "neighbour_mask",
    "neighbour_probabilities",
    "neighbour_product_loss",
    "nkd_non_target_loss",
    "nkd_target_loss",
    "non_target",
    "nst_loss",
    "ofa_loss",
    "partial_distance",
    "pearson_correlation",
    "pkt_loss",
    "pool_to_smaller",
    "project_edges",
    "pruned_loss",
    "random_mask",
    "reweight",
    "right_singular_vectors",
    "select",
    "select_transfer",
    "self_guided_loss",
    "self_training_loss",
    "similarity_matrix",
    "similarity_preserving_loss",
    "simkd_loss",
    "sinkhorn_loss",
    "soft_label_weight",
    "softplus_inverse",
    "srrl_losses",
    "surest",
    "tckd_loss",
    "token_context_loss",
    "token_global_loss",
    "token_local_loss",
    "transport_cost",
    "trilateral_state",
    "ttm_loss",
    "vid_loss",
    "virtual_teacher",
    "virtual_teacher_loss",
    "weigh_distances",
    "wsld_loss",
    "z_score",
]
