"""Learning from what the teacher writes as if it were the truth.

Paper: Kim, Rush, "Sequence-Level Knowledge Distillation", EMNLP 2016. Equation: the negative log-likelihood of the
teacher's output, ``-log q(y)`` with ``y`` from the teacher, in place of that of the data set's texts.
Deviations: the paper takes the best output of a beam search; here texts are drawn at temperature 1, as the release of
DistiLLM does, or the most probable word is taken each time (``teacher.corpus.temperature=null``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from kdbench import Method
from kdbench.needs import STUDENT, Role


class SeqKD(Method):
    """The supervised loss on a corpus that the teacher has written (``teacher.corpus``); no score of it is read."""

    requires: ClassVar[frozenset[str]] = frozenset({"writes"})
    roles: ClassVar[Mapping[str, Role]] = {"student": STUDENT}
    corpus: ClassVar[bool] = True
