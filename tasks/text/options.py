"""Options that all data sets of texts have.

Annotations are objects here, not strings: a class derived from this one in another file is checked by them.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt


@dataclass(frozen=True)
class Options:
    """Options that all data sets of texts have.

    Attributes:
        train: Most texts to learn from, validation included.
        test: Most test texts.
        labels: Training texts whose labels the supervised loss reads; None for all.
        unlabelled: Further training texts that only distillation reads; ``rest`` for all that are left.
        batch_size: Texts a batch.
    """

    train: PositiveInt | None = None
    test: PositiveInt | None = None
    labels: PositiveInt | None = None
    unlabelled: NonNegativeInt | Literal["rest"] = 0
    batch_size: PositiveInt = 64
