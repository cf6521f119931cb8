"""ImageNet's layout: ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from kdbench.digest import digest
from kdbench.errors import KDBenchError
from tasks.classification.sources.base import Source, Split
from tasks.classification.sources.files import ImageFiles

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def image_folder(root: Path) -> Source:
    """An image folder. ``val`` is our test, as test labels are rarely published; with ``test`` beside it all are used.

    The digest covers the relative names and the sizes of the files, not their content, which would take long to read.
    """
    found = [part for part in ("train", "val", "test") if (root / part).is_dir()]
    if "train" not in found or len(found) < 2:
        holds = ", ".join(found) or "none of them"
        raise KDBenchError(
            f"data.root={root}: holds {holds}; expected train/CLASS/*.jpg and val/CLASS/*.jpg (or test/)"
        )
    classes = _classes(root / "train")
    splits: dict[str, Split] = {}
    sizes: dict[str, int] = {}
    for part in found:
        unknown = sorted({*_classes(root / part)} - {*classes})
        if unknown:
            raise KDBenchError(
                f"{root / part / unknown[0]}: class {unknown[0]!r} is not among those of {root / 'train'}"
            )
        splits[part], listed = _list(root, part, classes)
        sizes |= listed
    val = splits["val"] if len(found) == 3 else None
    return Source(
        "imagefolder",
        embedded=False,
        digest=digest(sizes),
        classes=classes,
        train=splits["train"],
        test=splits[found[-1]],
        mean=(0.485, 0.456, 0.406),  # ImageNet's
        std=(0.229, 0.224, 0.225),
        val=val,
    )


def _classes(folder: Path) -> tuple[str, ...]:
    classes = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."))
    if not classes:
        raise KDBenchError(f"{folder}: no class folder; expected {folder.name}/CLASS/*.jpg")
    return classes


def _list(root: Path, part: str, classes: tuple[str, ...]) -> tuple[Split, dict[str, int]]:
    """Lists the images of the classes that a split holds, and their sizes by relative name."""
    sizes: dict[str, int] = {}
    labels: list[int] = []
    for label, name in enumerate(classes):
        folder = root / part / name
        if not folder.is_dir():
            raise KDBenchError(f"{folder}: there is no such folder; {root / 'train'} has this class")
        files = sorted((e for e in os.scandir(folder) if e.name.lower().endswith(EXTENSIONS)), key=lambda e: e.name)
        if not files:
            raise KDBenchError(f"{folder}: no image in this class folder; expected *.jpg, *.png, …")
        sizes |= {f"{part}/{name}/{file.name}": file.stat().st_size for file in files}
        labels += [label] * len(files)
    paths = [root / relative for relative in sizes]
    return Split(ImageFiles(paths), np.array(labels, dtype=np.int64), list(sizes)), sizes
