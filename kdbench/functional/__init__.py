"""Pure loss functions: tensors in, a scalar or one value per row out.

None holds state, a tensor is detached only where the equation does so, low precision is summed in float32, and empty
input gives a zero that is connected to the graph.
"""

from kdbench.functional.ab import activation_boundary_loss
from kdbench.functional.abkd import alpha_beta_loss
from kdbench.functional.akl import adaptive_kl_loss, head_share
from kdbench.functional.at import attention_map, attention_transfer_loss
from kdbench.functional.bdkd import balanced_loss, entropy
from kdbench.functional.cat_kd import class_activation_maps, class_attention_loss
from kdbench.functional.categorical import non_target
from kdbench.functional.cc import correlation_congruence_loss, correlation_matrix, neighbour_product_loss
from kdbench.functional.cirkd import cross_image_loss, draw_places, memory_loss, ring_places
from kdbench.functional.crd import contrast_logits, draw_negatives, log_normalizer, momentum_update, nce_loss
from kdbench.functional.crosskd import align_scale, box_overlap_loss, quality_focal_loss
from kdbench.functional.cwd import channel_wise_loss, spatial_log_softmax
from kdbench.functional.d2dgn import unlearning_feature_loss, unlearning_response_loss
from kdbench.functional.dist import inter_class_loss, intra_class_loss, pearson_correlation
from kdbench.functional.distilbert import hidden_cosine_loss
from kdbench.functional.divergence import bernoulli_kl, categorical_kl, divergence
from kdbench.functional.dkd import nckd_loss, tckd_loss
from kdbench.functional.dsd import (
    category_correlation,
    category_similarity_loss,
    pixel_similarity_loss,
    residual_attention,
)
from kdbench.functional.ffg2m import high_frequency_loss, low_frequency_loss
from kdbench.functional.fgd import focal_attention, focal_attention_loss, focal_feature_losses, focal_masks
from kdbench.functional.fgfi import imitated_anchors, imitation_loss
from kdbench.functional.fitnet import hint_loss
from kdbench.functional.fsp import fsp_loss, fsp_matrix
from kdbench.functional.ft import factor_loss
from kdbench.functional.gcrd import node_contrast_loss
from kdbench.functional.gld import coactivation, graph_logits_loss
from kdbench.functional.glidn import relative_error
from kdbench.functional.graph import batch_norm_edges, edge_distances, gather_edges, knn, project_edges
from kdbench.functional.hard import next_turn
from kdbench.functional.hard_affine import affine_positions, grid_positions, sample_images
from kdbench.functional.hard_color import color_affine, sliced_wasserstein
from kdbench.functional.hard_free import root_mean_square, within_norm
from kdbench.functional.hard_mix import mix_by_weights
from kdbench.functional.hard_thinplate import control_points, thin_plate_basis
from kdbench.functional.hard_vae import standard_normal_kl, vae_losses
from kdbench.functional.icd import describe_instances, instance_losses, instance_value_loss, sine_embedding
from kdbench.functional.ickd import channel_correlation, channel_correlation_loss
from kdbench.functional.ifvd import class_centres, class_similarity, class_variation_loss
from kdbench.functional.jsd import jsd_loss
from kdbench.functional.kd import adversarial_temperature, cosine_ramp, kd_loss, std_rescale, z_score
from kdbench.functional.kdsvd import align, kdsvd_loss, right_singular_vectors
from kdbench.functional.label_kd import confident, join_labels
from kdbench.functional.lad import class_codes, label_channel, path_consistency_loss
from kdbench.functional.ld import localisation_loss, valuable_region
from kdbench.functional.lighthgnn import high_order_loss, hyperedge_mean, reliability
from kdbench.functional.lsp import global_structure_loss, local_structure, local_structure_loss
from kdbench.functional.mgd import mgd_loss, random_mask
from kdbench.functional.mi_alpha import mutual_information_loss
from kdbench.functional.minillm import later_rewards, long_term_loss
from kdbench.functional.minilm import relation_heads, relation_loss
from kdbench.functional.mlkd import gram_loss, least_confident, mlkd_losses
from kdbench.functional.mobilebert import feature_map_loss
from kdbench.functional.nkd import nkd_non_target_loss, nkd_target_loss
from kdbench.functional.node_at import edge_attention_loss, node_energy, node_energy_loss
from kdbench.functional.nst import nst_loss
from kdbench.functional.ofa import ofa_loss
from kdbench.functional.ofd import gaussian_margin, partial_distance
from kdbench.functional.patient_kd import patience_loss
from kdbench.functional.pivotal_kd import pivotal_logit_loss, pivotal_positions
from kdbench.functional.pkd import pearson_feature_loss
from kdbench.functional.pkt import neighbour_probabilities, pkt_loss
from kdbench.functional.pointdistiller import importance, local_graph_loss, reweight, select, weigh_distances
from kdbench.functional.pool import average_pool, global_average, pool_to_smaller, resize
from kdbench.functional.pruned import distillation_weight, pruned_loss
from kdbench.functional.quantize import (
    bucket_ranges,
    from_points,
    huffman_lengths,
    mean_code_length,
    nearest_points,
    pack_bits,
    quantile_points,
    quantized_bytes,
    random_points,
    scale_to_unit,
    share_points,
    straight_through,
    uniform_points,
    unpack_bits,
)
from kdbench.functional.reviewkd import hierarchical_context_loss
from kdbench.functional.rkd import angle_loss, distance_loss
from kdbench.functional.rkl import reverse_kl_loss
from kdbench.functional.self_guided import self_guided_loss
from kdbench.functional.simkd import simkd_loss
from kdbench.functional.sinkd import sinkhorn_loss, transport_cost
from kdbench.functional.skd import critic_loss, gradient_penalty, nodes, pair_wise_loss
from kdbench.functional.skl import skew_kl_loss, skew_reverse_kl_loss
from kdbench.functional.sp import similarity_matrix, similarity_preserving_loss
from kdbench.functional.srrl import srrl_losses
from kdbench.functional.sskd import contrast_loss, contrast_similarities, contrast_transfer_loss, select_transfer
from kdbench.functional.ssld import label_free_divergence, surest
from kdbench.functional.swing import private_loss
from kdbench.functional.symbolic import accepted
from kdbench.functional.taid import interpolated_loss, next_share
from kdbench.functional.tf_kd import self_training_loss, virtual_teacher, virtual_teacher_loss
from kdbench.functional.tgeo import class_sums, fused_loss, trilateral_state
from kdbench.functional.tinybert import attention_score_loss, attention_scores
from kdbench.functional.trg import neighbour_mask, token_context_loss, token_global_loss, token_local_loss
from kdbench.functional.ttm import ttm_loss
from kdbench.functional.uld import universal_loss
from kdbench.functional.vid import softplus_inverse, vid_loss
from kdbench.functional.vqgraph import (
    code_distances,
    code_loss,
    code_perplexity,
    edge_prediction_loss,
    quantisation_loss,
)
from kdbench.functional.wsld import soft_label_weight, wsld_loss

__all__ = [
    "accepted",
    "activation_boundary_loss",
    "adaptive_kl_loss",
    "adversarial_temperature",
    "affine_positions",
    "align",
    "align_scale",
    "alpha_beta_loss",
    "angle_loss",
    "attention_map",
    "attention_score_loss",
    "attention_scores",
    "attention_transfer_loss",
    "average_pool",
    "balanced_loss",
    "batch_norm_edges",
    "bernoulli_kl",
    "box_overlap_loss",
    "bucket_ranges",
    "categorical_kl",
    "category_correlation",
    "category_similarity_loss",
    "channel_correlation",
    "channel_correlation_loss",
    "channel_wise_loss",
    "class_activation_maps",
    "class_attention_loss",
    "class_centres",
    "class_codes",
    "class_similarity",
    "class_sums",
    "class_variation_loss",
    "coactivation",
    "code_distances",
    "code_loss",
    "code_perplexity",
    "color_affine",
    "confident",
    "contrast_logits",
    "contrast_loss",
    "contrast_similarities",
    "contrast_transfer_loss",
    "control_points",
    "correlation_congruence_loss",
    "correlation_matrix",
    "cosine_ramp",
    "critic_loss",
    "cross_image_loss",
    "describe_instances",
    "distance_loss",
    "distillation_weight",
    "divergence",
    "draw_negatives",
    "draw_places",
    "edge_attention_loss",
    "edge_distances",
    "edge_prediction_loss",
    "entropy",
    "factor_loss",
    "feature_map_loss",
    "focal_attention",
    "focal_attention_loss",
    "focal_feature_losses",
    "focal_masks",
    "from_points",
    "fsp_loss",
    "fsp_matrix",
    "fused_loss",
    "gather_edges",
    "gaussian_margin",
    "global_average",
    "global_structure_loss",
    "gradient_penalty",
    "gram_loss",
    "graph_logits_loss",
    "grid_positions",
    "head_share",
    "hidden_cosine_loss",
    "hierarchical_context_loss",
    "high_frequency_loss",
    "high_order_loss",
    "hint_loss",
    "huffman_lengths",
    "hyperedge_mean",
    "imitated_anchors",
    "imitation_loss",
    "importance",
    "instance_losses",
    "instance_value_loss",
    "inter_class_loss",
    "interpolated_loss",
    "intra_class_loss",
    "join_labels",
    "jsd_loss",
    "kd_loss",
    "kdsvd_loss",
    "knn",
    "label_channel",
    "label_free_divergence",
    "later_rewards",
    "least_confident",
    "local_graph_loss",
    "local_structure",
    "local_structure_loss",
    "localisation_loss",
    "log_normalizer",
    "long_term_loss",
    "low_frequency_loss",
    "mean_code_length",
    "memory_loss",
    "mgd_loss",
    "mix_by_weights",
    "mlkd_losses",
    "momentum_update",
    "mutual_information_loss",
    "nce_loss",
    "nckd_loss",
    "nearest_points",
    "neighbour_mask",
    "neighbour_probabilities",
    "neighbour_product_loss",
    "next_share",
    "next_turn",
    "nkd_non_target_loss",
    "nkd_target_loss",
    "node_contrast_loss",
    "node_energy",
    "node_energy_loss",
    "nodes",
    "non_target",
    "nst_loss",
    "ofa_loss",
    "pack_bits",
    "pair_wise_loss",
    "partial_distance",
    "path_consistency_loss",
    "patience_loss",
    "pearson_correlation",
    "pearson_feature_loss",
    "pivotal_logit_loss",
    "pivotal_positions",
    "pixel_similarity_loss",
    "pkt_loss",
    "pool_to_smaller",
    "private_loss",
    "project_edges",
    "pruned_loss",
    "quality_focal_loss",
    "quantile_points",
    "quantisation_loss",
    "quantized_bytes",
    "random_mask",
    "random_points",
    "relation_heads",
    "relation_loss",
    "relative_error",
    "reliability",
    "residual_attention",
    "resize",
    "reverse_kl_loss",
    "reweight",
    "right_singular_vectors",
    "ring_places",
    "root_mean_square",
    "sample_images",
    "scale_to_unit",
    "select",
    "select_transfer",
    "self_guided_loss",
    "self_training_loss",
    "share_points",
    "similarity_matrix",
    "similarity_preserving_loss",
    "simkd_loss",
    "sine_embedding",
    "sinkhorn_loss",
    "skew_kl_loss",
    "skew_reverse_kl_loss",
    "sliced_wasserstein",
    "soft_label_weight",
    "softplus_inverse",
    "spatial_log_softmax",
    "srrl_losses",
    "standard_normal_kl",
    "std_rescale",
    "straight_through",
    "surest",
    "tckd_loss",
    "thin_plate_basis",
    "token_context_loss",
    "token_global_loss",
    "token_local_loss",
    "transport_cost",
    "trilateral_state",
    "ttm_loss",
    "uniform_points",
    "universal_loss",
    "unlearning_feature_loss",
    "unlearning_response_loss",
    "unpack_bits",
    "vae_losses",
    "valuable_region",
    "vid_loss",
    "virtual_teacher",
    "virtual_teacher_loss",
    "weigh_distances",
    "within_norm",
    "wsld_loss",
    "z_score",
]
