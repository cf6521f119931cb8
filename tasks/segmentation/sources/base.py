"""What every source delivers: images, masks, and what the numbers in the masks mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kdbench.errors import KDBenchError, nearest

#: Class of a pixel that counts neither in the loss nor in a score.
IGNORED = 255
#: Most classes, as a label is a byte.
MOST = 254
PARTS = ("train", "val", "test")


class Sample(NamedTuple):
    """An image and its mask; the name is its id, by whose hash every cut is made."""

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Labels:
    """What the numbers in masks mean.

    Attributes:
        classes: Names, in the order of the outputs.
        codes: Class of each number that may stand in a mask, :data:`IGNORED` for what is of no class.
        colours: Number of each RGB colour of masks that are pictures; empty where masks hold numbers.
    """

    classes: tuple[str, ...]
    codes: Mapping[int, int]
    colours: Mapping[tuple[int, int, int], int] = field(default_factory=dict)

    @classmethod
    def of(cls, classes: Sequence[str], first: int = 0, void: Sequence[int] = (IGNORED,)) -> Labels:
        """Makes labels whose numbers count on from ``first``."""
        codes = {number + first: number for number in range(len(classes))}
        return cls(tuple(classes), codes | dict.fromkeys(void, IGNORED))

    def chosen(self, names: Sequence[str] | None, void: Sequence[int] = ()) -> Labels:
        """Returns the labels of some of the classes alone, in their order; all other numbers are of no class.

        Args:
            names: Of the classes; None for all.
            void: Further numbers that are of no class.

        Raises:
            KDBenchError: There is no such class, or one is named twice.
        """
        kept = self.classes if names is None else tuple(names)
        for name in kept:
            if name not in self.classes:
                raise KDBenchError(f"data.classes: there is no class {name!r}: {nearest(name, self.classes)}")
        if len(set(kept)) < len(kept) or len(kept) < 2:
            raise KDBenchError(f"data.classes={list(kept)}: expected two classes at least, each once")
        index = {self.classes.index(name): place for place, name in enumerate(kept)}
        codes = {number: index.get(code, IGNORED) for number, code in self.codes.items()}
        return Labels(kept, codes | dict.fromkeys(void, IGNORED), self.colours)


@dataclass(frozen=True)
class Layout:
    """A data set as it lies on the disk.

    Attributes:
        name: Of the data set.
        labels: Of its masks.
        train: Training samples.
        test: Test samples; those of the published validation set where test labels are not published.
        val: Validation samples where three labelled splits are published.
        embedded: Whether it comes without files.
    """

    name: str
    labels: Labels
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    val: tuple[Sample, ...] | None = None
    embedded: bool = False

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All of them."""
        return (*self.train, *(self.val or ()), *self.test)
