"""Rendered street scenes: images with a class and an instance for every pixel, without a download."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from pydantic import Field, NonNegativeInt

from kdbench.base import rng
from kdbench.errors import KDBenchError, nearest
from tasks.segmentation.streets import layout, paint

#: Classes that are seen, by Cityscapes' names, in its order; what else there is (a bonnet, bins) is of no class.
CLASSES = (
    *("road", "sidewalk", "building", "fence", "pole", "traffic sign", "vegetation", "terrain", "sky"),
    *("person", "car", "bus"),
)
#: Classes whose things are told apart.
INSTANCES = ("person", "car", "bus")
#: Share of the images with the bonnet of the camera's car, and how far up it reaches.
BONNET, RISE = 0.3, 0.12


@dataclass(frozen=True)
class Render:
    """Options of ``data.render``.

    Attributes:
        size: Height and width, pixels.
        seed: Of the data set.
        density: Mean number of things of a scene, merged into :data:`~tasks.segmentation.streets.layout.DENSITY`.
    """

    size: tuple[Annotated[int, Field(ge=32, le=2048)], Annotated[int, Field(ge=32, le=4096)]] = (96, 192)
    seed: NonNegativeInt = 1
    density: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, mean in self.density.items():
            if name not in layout.DENSITY:
                raise KDBenchError(f"data.render.density.{name}: no such thing: {nearest(name, layout.DENSITY)}")
            if not 0 <= mean <= 60:
                raise KDBenchError(f"data.render.density.{name}={mean}; expected a mean from 0 to 60")


@dataclass(frozen=True)
class Picture:
    """A rendered image.

    Attributes:
        image: ``(H, W, 3)`` uint8.
        labels: ``(H, W)`` index into ``names``.
        instances: ``(H, W)`` number of a thing among those of its class in the image; 0 where there are none.
        names: Cityscapes' name of each label.
    """

    image: np.ndarray
    labels: np.ndarray
    instances: np.ndarray
    names: tuple[str, ...]


def render(options: Render, split: str, row: int) -> Picture:
    """Renders an image of a split from a random stream of its own, (seed, split, row).

    A smaller split is therefore the beginning of a larger one.
    """
    g = rng.numpy(options.seed, "street", split, row)
    camera = paint.Camera.drawn(g, (paint.OVERSAMPLING * options.size[0], paint.OVERSAMPLING * options.size[1]))
    light, street = paint.Light.drawn(g), layout.street(g)
    stage = layout.furnish(g, street, {**layout.DENSITY, **options.density})
    colours, numbers = paint.paint(stage, camera, street, light, g)
    names = (*paint.GROUND, *stage.labels, "ego vehicle")
    if g.random() < BONNET:
        _bonnet(colours, numbers, len(names) - 1, g)
    numbers = paint.majority(numbers)
    kinds = tuple(dict.fromkeys(names))
    counted = np.zeros(len(names), dtype=np.int64)
    for kind in INSTANCES:
        own = [i for i, name in enumerate(names) if name == kind]
        counted[own] = np.arange(1, len(own) + 1)
    labels = np.array([kinds.index(name) for name in names])
    return Picture(paint.film(colours, g), labels[numbers], counted[numbers], kinds)


def _bonnet(colours: np.ndarray, numbers: np.ndarray, number: int, g: np.random.Generator) -> None:
    """Puts the bonnet of the own car along the lower edge."""
    tall, wide = numbers.shape
    across = np.linspace(-1, 1, wide)
    edge = tall * (1 - RISE * g.uniform(0.4, 1.0) * (1 - 0.5 * across**2))
    covered = np.arange(tall)[:, None] >= edge
    numbers[covered] = number
    sheen = 0.75 + 0.5 * (np.arange(tall)[:, None] - edge) / (tall * RISE)
    colours[covered] = (sheen[..., None] * g.uniform(0.05, 0.35) * np.ones(3))[covered]
