"""Pure loss functions: tensors in, a scalar or one value per row out.

None holds state or detaches a tensor, low precision is summed in float32, and empty input gives a zero that is
connected to the graph.
"""

from kdbench.functional.at import attention_map, attention_transfer_loss
from kdbench.functional.divergence import bernoulli_kl, categorical_kl, divergence
from kdbench.functional.fitnet import hint_loss
from kdbench.functional.graph import (
    batch_norm_edges,
    edge_distances,
    edge_features_factorised,
    gather_edges,
    knn,
    project_edges,
)
from kdbench.functional.kd import kd_loss, z_score
from kdbench.functional.pointdistiller import importance, local_graph_loss, reweight, select, weigh_distances
from kdbench.functional.sp import similarity_matrix, similarity_preserving_loss

__all__ = [
    "attention_map",
    "attention_transfer_loss",
    "batch_norm_edges",
    "bernoulli_kl",
    "categorical_kl",
    "divergence",
    "edge_distances",
    "edge_features_factorised",
    "gather_edges",
    "hint_loss",
    "importance",
    "kd_loss",
    "knn",
    "local_graph_loss",
    "project_edges",
    "reweight",
    "select",
    "similarity_matrix",
    "similarity_preserving_loss",
    "weigh_distances",
    "z_score",
]
