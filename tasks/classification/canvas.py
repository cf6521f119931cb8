"""Images in the middle of a larger canvas, and a second test set in which they are away from it.

So it is seen whether a student takes over what its teacher knows of shifts: the toy of Nix et al., "Can Functional
Transfer Methods Capture Simple Inductive Biases?", AISTATS 2022, on canvases as affNIST has them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from scipy.special import ndtri
from torch import Tensor

from kdbench.base import rng
from kdbench.base.digest import digest
from kdbench.errors import KDBenchError
from tasks.classification.choice import keys_of
from tasks.classification.sources.base import ImageSet, Split, statistics


@dataclass(frozen=True)
class Canvas:
    """Options of ``data.canvas``.

    Attributes:
        side: Of the canvas, pixels.
        content: Side to which an image is brought before it is put on it.
        deviation: Of the shifts across and down in the second test set, which are normal numbers, pixels.
        limit: Largest shift.
    """

    side: PositiveInt = 40
    content: PositiveInt = 28
    deviation: NonNegativeFloat = 5.0
    limit: NonNegativeInt = 6

    def __post_init__(self) -> None:
        if (self.side - self.content) % 2 or self.side < self.content + 2 * self.limit:
            raise KDBenchError(
                f"data.canvas: side={self.side}, content={self.content}, limit={self.limit}: expected a border of "
                f"(side - content) / 2 pixels, a whole number and at least limit: side={self.content + 2 * self.limit}"
            )


def on_canvas(source: ImageSet, options: Canvas) -> ImageSet:
    """Puts all images of a data set on a canvas, and adds the second test set.

    Raises:
        KDBenchError: The images are files, signals, or have a second test set of their own.
    """
    if not isinstance(source.train.images, Tensor) or source.train.images.shape[2] == 1 or source.shifted is not None:
        raise KDBenchError(f"data.canvas: {source.name} has no images in memory with one test set: data.source=digits")
    placed = source.resized(options.content)
    made = placed.each(lambda split: replace(split, images=_placed(split, options, np.zeros((len(split.labels), 2)))))
    mean, std = statistics(made.train)
    uniform = rng.uniform(0, "canvas", index=keys_of(placed.test.names), count=2)
    shifts = np.rint(options.deviation * ndtri(uniform)).clip(-options.limit, options.limit)
    return replace(
        made,
        name=f"shifted_{source.name}",
        digest=digest([source.digest, asdict(options)]),
        learned=digest([source.learned or source.digest, options.side, options.content]),
        mean=mean,
        std=std,
        shifted=replace(placed.test, images=_placed(placed.test, options, shifts)),
    )


def _placed(split: Split, options: Canvas, shifts: np.ndarray) -> Tensor:
    """Returns images on a black canvas, moved from its middle by ``(N, 2)`` whole pixels across and down."""
    images = split.images
    assert isinstance(images, Tensor)
    border = (options.side - options.content) // 2
    across, down = torch.from_numpy(shifts.astype(np.int64)).unbind(1)
    padded = torch.nn.functional.pad(images, [border] * 4)
    places = torch.arange(options.side)
    rows, columns = ((places - by[:, None]) % options.side for by in (down, across))
    samples = torch.arange(len(images))[:, None, None]
    return padded.movedim(1, -1)[samples, rows[:, :, None], columns[:, None]].movedim(-1, 1).contiguous()
