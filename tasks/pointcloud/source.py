"""What a reader of another layout than KITTI's has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.pointcloud.scans import ScanLayout


@dataclass(frozen=True)
class Source(ABC):
    """A folder in another layout; see :func:`~tasks.pointcloud.layouts.in_kitti_layout`.

    Attributes:
        root: The folder.
        scan: How a file of points is laid out.
        classes: That are detected.
        names: Classes by what the data calls them, where it has names of its own.
        sweeps: Earlier sweeps that each scan is given too, where the data has some.
    """

    root: Path
    scan: ScanLayout
    classes: tuple[str, ...]
    names: Mapping[str, str]
    sweeps: int = 0

    @abstractmethod
    def files(self) -> list[Path]:
        """Returns all that is read."""

    @abstractmethod
    def write(self, training: Path) -> tuple[Sequence[str], Sequence[str], Mapping[str, str]]:
        """Writes scans and labels as KITTI has them.

        Returns:
            Names of the frames for training and for test; where no split is known all for training, and what each
            belongs to that is not to be cut apart.
        """
