"""Rendered characters: made once into the store in MNIST's layout, and read as MNIST is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kdbench.base.digest import digest, source_digest
from kdbench.base.instantiate import check
from kdbench.base.store import Store
from tasks.classification.glyphs import CLASSES, FACES, MONOSPACED, Render, made_with, render
from tasks.classification.sources.base import ImageSet, Split, split_digest, statistics
from tasks.classification.sources.idx import read_split, write_split
from tasks.parallel import mapped

#: Images of each class that training and validation are cut from, and those of a test set.
POOL, TEST = 250, 200
#: Images that a process renders at a time, and so few that other processes would start for longer than they help.
CHUNK, FEW = 470, 4000


def glyphs(
    store: Store,
    options: Mapping[str, Any],
    test_fonts: Literal["seen", "unseen"] = "seen",
    progress: bool = True,
    pool: int = POOL,
    test: int = TEST,
) -> ImageSet:
    """Characters of 47 classes in clutter (:mod:`tasks.classification.glyphs`).

    The content digest covers images, labels, font files and FreeType's version.

    Args:
        store: Where they are kept once rendered.
        options: Of :class:`~tasks.classification.glyphs.Render`.
        test_fonts: ``unseen`` keeps the monospaced faces out of training and test and makes a second test set of them.
        progress: Whether to show a bar.
        pool: Images of a class that train and validation are cut from.
        test: Images of a class in a test set.
    """
    given = Render(**check("data.render", Render, options))
    chosen = [face for face in FACES if given.fonts is None or face in given.fonts]
    faces = {"train": chosen, "t10k": chosen}
    if test_fonts == "unseen":
        known = [face for face in chosen if face not in MONOSPACED] or chosen
        faces = {"train": known, "t10k": known, "unseen": list(MONOSPACED)}
    counts = {part: (pool if part == "train" else test) * len(CLASSES) for part in faces}
    fonts = made_with(sorted({face for own in faces.values() for face in own}))
    code = source_digest(["tasks.classification.glyphs"])
    key = digest([asdict(given), faces, counts, fonts, code])

    def make(work: Path) -> dict[str, Any]:
        chunks = [(part, rows) for part, count in counts.items() for rows in _chunks(count)]
        made: dict[str, list[np.ndarray]] = {part: [] for part in faces}
        workers = 1 if sum(counts.values()) < FEW else None
        images = mapped(
            partial(_render, given, faces), chunks, "Rendering characters", workers=workers, progress=progress
        )
        for (part, _), rendered in zip(chunks, images, strict=True):
            made[part].append(rendered)
        for part, count in counts.items():
            write_split(work, part, np.concatenate(made[part]), np.arange(count) % len(CLASSES))
        return {"images": counts}

    root = store.product("glyphs", key, make, wait_message="rendered characters").path
    read: Callable[[str], Split] = partial(read_split, root, classes=len(CLASSES), channels=given.channels)
    splits = {part: read(part) for part in faces}
    mean, std = statistics(splits["train"])
    return ImageSet(
        "glyphs",
        True,
        digest([split_digest(*splits.values()), fonts]),
        tuple(CLASSES),
        splits["train"],
        splits["t10k"],
        mean,
        std,
        shifted=splits.get("unseen"),
    )


def _chunks(count: int) -> list[range]:
    return [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]


def _render(options: Render, faces: Mapping[str, list[str]], chunk: tuple[str, range]) -> np.ndarray:
    part, rows = chunk
    return render(options, faces[part], part, rows)
