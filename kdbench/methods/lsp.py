"""Local structure of graphs.

Paper: Yang, Qiu, Song, Tao, Wang, "Distilling Knowledge from Graph Convolutional Networks", CVPR 2020, sections 3.2 and
3.3. Its text could not be read here, so the fidelity is approximate: the equations are those that the literature gives
for it, checked against the benchmark code of Joshi et al. (TNNLS 2022), which ``faithful=code`` follows.
Deviations: the neighbours of a node are those of the task's graph without itself; both networks have the same ones.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from kdbench import Context, KDBenchError, Method, Need, Nodes, Signals
from kdbench.functional.lsp import Kernel, local_structure_loss
from kdbench.functional.numerics import Faithful


class LSP(Method):
    """Compares how alike each node is to each of its neighbours; widths may differ.

    Args:
        kernel: Likeness of two nodes: ``rbf``, ``cosine``, ``linear`` or ``l2``.
        faithful: ``paper`` or ``code``.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("nodes", Nodes),)
    fidelity: ClassVar[Literal["equations", "approximate"]] = "approximate"

    def __init__(self, kernel: Kernel = "rbf", faithful: Faithful = "paper") -> None:
        super().__init__()
        self.kernel: Kernel = kernel
        self.faithful: Faithful = faithful

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``lsp``."""
        student, teacher = signals.pair("nodes")
        if teacher.edges is None:
            raise KDBenchError("lsp: the nodes of the teacher come without edges: choose others by method.bind.nodes")
        between = teacher.edges[:, teacher.edges[0] != teacher.edges[1]]
        return {"lsp": local_structure_loss(student.values, teacher.values, between, self.kernel, self.faithful)}
