"""Rendered streets: made once into the store in Cityscapes' layout, and read as Cityscapes is."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdbench.base.digest import digest, source_digest
from kdbench.base.instantiate import check
from kdbench.base.store import SCRATCH, Store
from tasks.parallel import mapped
from tasks.segmentation.sources.names import CITYSCAPES_IDS
from tasks.segmentation.streets import INSTANCES, Render, render

#: Images that training and validation are cut from, and those of the test set, where the configuration does not say.
TRAIN, TEST = 270, 120
CITY = "streets"
#: Modules that decide what is on the images; what the rest of this one does is not worth rendering anew.
DECIDES = ("tasks.segmentation.streets", "tasks.segmentation.sources.names")
#: So few images that other processes would start for longer than they help.
FEW = 100


def streets(store: Store, options: Mapping[str, Any], train: int | None, test: int | None, progress: bool) -> Path:
    """Renders a data set of streets (:mod:`tasks.segmentation.streets`).

    Instances are kept as Cityscapes keeps them: label id times 1000 plus a number within the image.

    Args:
        store: Where they are kept once rendered.
        options: Of :class:`~tasks.segmentation.streets.Render`.
        train: Images that train and validation are cut from.
        test: Test images.
        progress: Whether to show a bar.

    Returns:
        A folder in Cityscapes' layout.
    """
    given = Render(**check("data.render", Render, options))
    counts = {"train": train or TRAIN, "val": test or TEST}
    key = digest([asdict(given), counts, source_digest(DECIDES)])

    def make(work: Path) -> dict[str, Any]:
        made = work / "cityscapes"
        if not made.is_dir():  # else a maker was killed after it
            shutil.rmtree(work / SCRATCH, ignore_errors=True)
            aside = work / SCRATCH / "cityscapes"
            write(aside, given, counts, progress)
            aside.rename(made)
        return {"images": counts}

    return store.product("streets", key, make, wait_message="rendered streets").path / "cityscapes"


def write(root: Path, options: Render, counts: Mapping[str, int], progress: bool = False) -> None:
    """Writes images, label ids and instance ids of splits below ``root``; the result depends on no other process."""
    for part in counts:
        for folder in ("leftImg8bit", "gtFine"):
            (root / folder / part / CITY).mkdir(parents=True)
    rows = [(part, row) for part, count in counts.items() for row in range(count)]
    workers = 1 if len(rows) < FEW else None
    for _ in mapped(
        partial(_write, root, options), rows, "Rendering streets", workers=workers, chunk=8, progress=progress
    ):
        pass


def _write(root: Path, options: Render, place: tuple[str, int]) -> None:
    part, row = place
    made = render(options, part, row)
    stem = f"{CITY}_{row:06d}_000000"
    ids = np.array([CITYSCAPES_IDS.index(name) for name in made.names])
    labels = ids[made.labels]
    apart = np.isin(labels, [CITYSCAPES_IDS.index(name) for name in INSTANCES])
    instances = np.where(apart, 1000 * labels + made.instances, labels)
    masks = {"labelIds": labels.astype(np.uint8), "instanceIds": instances.astype(np.uint16)}
    Image.fromarray(made.image).save(root / "leftImg8bit" / part / CITY / f"{stem}_leftImg8bit.png", compress_level=1)
    for kind, values in masks.items():
        Image.fromarray(values).save(root / "gtFine" / part / CITY / f"{stem}_gtFine_{kind}.png", compress_level=1)
