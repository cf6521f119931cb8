"""Street scenes with boxes: those of the segmentation task seen through a longer lens, in COCO's layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveInt

from kdbench.base import rng
from kdbench.base.digest import digest, source_digest
from kdbench.base.instantiate import check
from kdbench.base.store import SCRATCH, Store
from kdbench.errors import KDBenchError, nearest
from tasks.parallel import mapped
from tasks.segmentation.streets import layout, paint

#: Classes and their category ids, which have holes as those of COCO have.
CATEGORIES = {"person": 1, "car": 3, "bus": 6}
#: Sides of less than so many pixels make a crowd region: it counts neither as an object nor as background.
SMALLEST = 8.0
#: So few visible pixels are left out.
VISIBLE = 16
#: Modules that decide what is on the images.
DECIDES = ("tasks.detection.scenes", "tasks.segmentation.streets")
FEW = 100


@dataclass(frozen=True)
class Render:
    """Options of ``data.render``.

    Attributes:
        size: Height and width, pixels.
        seed: Of the data set.
        zoom: Factor of the focal length, against that of the segmentation task.
        density: Mean number of things of a scene, merged into :data:`~tasks.segmentation.streets.layout.DENSITY`.
        train: Scenes that training and validation are cut from.
        test: Test scenes.
    """

    size: tuple[Annotated[int, Field(ge=32, le=1024)], Annotated[int, Field(ge=32, le=1024)]] = (128, 160)
    seed: NonNegativeInt = 1
    zoom: Annotated[float, Field(gt=0.2, le=10)] = 3.2
    density: Mapping[str, float] = field(default_factory=dict)
    train: PositiveInt = 270
    test: PositiveInt = 120

    def __post_init__(self) -> None:
        for name, mean in self.density.items():
            if name not in layout.DENSITY:
                raise KDBenchError(f"data.render.density.{name}: no such thing: {nearest(name, layout.DENSITY)}")
            if not 0 <= mean <= 60:
                raise KDBenchError(f"data.render.density.{name}={mean}; expected a mean from 0 to 60")


class Thing(NamedTuple):
    """A thing of an image: its class, its box (left, top, width, height), its visible pixels, whether it is a crowd."""

    kind: str
    box: tuple[int, int, int, int]
    area: int
    crowd: bool


def render(options: Render, split: str, row: int) -> tuple[np.ndarray, list[Thing]]:
    """Renders a scene from a random stream of its own, (seed, split, row): ``(H, W, 3)`` uint8, and what is on it.

    A smaller split is therefore the beginning of a larger one.
    """
    g = rng.numpy(options.seed, "detection street", split, row)
    camera = paint.Camera.drawn(g, (paint.OVERSAMPLING * options.size[0], paint.OVERSAMPLING * options.size[1]))
    camera = replace(camera, focal=camera.focal * options.zoom)
    light, street = paint.Light.drawn(g), layout.street(g)
    stage = layout.furnish(g, street, {**layout.DENSITY, **options.density})
    colours, numbers = paint.paint(stage, camera, street, light, g)
    names = (*paint.GROUND, *stage.labels)
    return paint.film(colours, g), things(paint.majority(numbers), names)


def things(numbers: np.ndarray, names: tuple[str, ...]) -> list[Thing]:
    """Returns what is seen of things in an instance mask.

    Args:
        numbers: ``(H, W)`` index into ``names``, one for each thing.
        names: Class of each.
    """
    found = []
    for number in np.unique(numbers).tolist():
        if names[number] not in CATEGORIES:
            continue
        rows, columns = np.nonzero(numbers == number)
        if len(rows) < VISIBLE:
            continue
        left, top = int(columns.min()), int(rows.min())
        wide, tall = int(columns.max()) + 1 - left, int(rows.max()) + 1 - top
        found.append(Thing(names[number], (left, top, wide, tall), len(rows), (wide * tall) ** 0.5 < SMALLEST))
    return found


def scenes(store: Store, options: Mapping[str, Any], progress: bool) -> Path:
    """Renders a data set, once.

    Returns:
        A folder in COCO's layout.
    """
    given = Render(**check("data.render", Render, options))
    key = digest([asdict(given), source_digest(DECIDES)])

    def make(work: Path) -> dict[str, Any]:
        made = work / "coco"
        if not made.is_dir():  # else a maker was killed after it
            shutil.rmtree(work / SCRATCH, ignore_errors=True)
            aside = work / SCRATCH / "coco"
            write(aside, given, progress)
            aside.rename(made)
        return {"images": given.train + given.test}

    return store.product("detection-scenes", key, make, wait_message="rendered scenes").path / "coco"


def write(root: Path, options: Render, progress: bool = False) -> None:
    """Writes images and annotations of both splits below ``root``; the result depends on no other process."""
    (root / "annotations").mkdir(parents=True)
    parts = {"train": options.train, "val": options.test}
    for part in parts:
        (root / f"{part}2017").mkdir()
    places = [(part, row) for part, count in parts.items() for row in range(count)]
    workers = 1 if len(places) < FEW else None
    made = mapped(
        partial(_write, root, options), places, "Rendering scenes", workers=workers, chunk=8, progress=progress
    )
    found = dict(zip(places, made, strict=True))
    for part in parts:
        own = {row: kept for (where, row), kept in found.items() if where == part}
        content = _annotations(own, options)
        (root / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(content), encoding="utf-8")


def _name(row: int) -> str:
    return f"{row + 1:012d}.png"


def _write(root: Path, options: Render, place: tuple[str, int]) -> list[Thing]:
    part, row = place
    image, found = render(options, part, row)
    Image.fromarray(image).save(root / f"{part}2017" / _name(row), compress_level=1)
    return found


def _annotations(found: Mapping[int, list[Thing]], options: Render) -> dict[str, Any]:
    tall, wide = options.size
    rows = [(row, thing) for row, own in found.items() for thing in own]
    return {
        "images": [{"id": row + 1, "file_name": _name(row), "height": tall, "width": wide} for row in found],
        "categories": [{"id": number, "name": name} for name, number in CATEGORIES.items()],
        "annotations": [
            {
                "id": number + 1,
                "image_id": row + 1,
                "category_id": CATEGORIES[thing.kind],
                "bbox": [*thing.box],
                "area": thing.area,
                "iscrowd": int(thing.crowd),
            }
            for number, (row, thing) in enumerate(rows)
        ],
    }
