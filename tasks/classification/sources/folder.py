"""Image folders: ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg`` as ImageNet has it, or classes alone, or a table."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.base.digest import digest_json, source_digest
from kdbench.base.store import Store
from kdbench.errors import KDBenchError, nearest, printable, reading
from kdbench.splits import cut
from tasks.classification.sources.base import ImageSet, Split
from tasks.classification.sources.files import ImageFiles
from tasks.images import Reader, UnreadableImage, examine
from tasks.pixels import Facts, Range, natural_range

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".tga"),
)
PARTS = ("train", "val", "test")
#: Share of a data set without splits that becomes its test set.
TEST_SHARE = 0.2
#: What else splits are called; a class by such a name is a mistake.
ALIASES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
#: What systems leave in folders, beside hidden files.
LITTER = ("thumbs.db", "desktop.ini", "icon\r", "__macosx")
THREADS = 8
#: Files from which on it is said that they are read.
MANY = 20_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """A labelled image file; its name is its id."""

    name: str
    label: str
    path: Path


Parts = dict[str, list[Sample]]


def image_folder(root: Path, store: Store | None = None, table: str | None = None) -> ImageSet:
    """An image folder, or the images of a table.

    ``val`` is our test, as test labels are rarely published; with ``test`` beside it all are used. Without splits a
    fifth is test, by the hash of the names. Class folders are read with all below them.

    Every file of every split is decoded once, so that none ends a training. The digest covers names, classes and
    content.

    Args:
        root: Holds ``train/CLASS`` and ``val/CLASS`` (or ``test/CLASS``), or ``CLASS`` alone, or what ``table`` names.
        store: Keeps what was found out about the files (``Store.of_files``); None keeps nothing.
        table: CSV file of the columns ``path``, ``label`` and, where the splits are given, ``split``.

    Raises:
        KDBenchError: The layout is another one, there are fewer than two classes, or a file is not a whole image.
    """
    left_out: Counter[str] = Counter()
    parts = _of_folders(root, left_out) if table is None else _of_table(root, Path(table).expanduser())
    classes = _classes(parts, numbers=table is not None)
    everything = [sample for samples in parts.values() for sample in samples]
    found = _examined(everything, store)
    facts = {sample.name: Facts(*entry[1:]) for sample, entry in zip(everything, found, strict=True)}
    reader = Reader(range=_range([facts[sample.name] for sample in parts["train"]]))
    splits = {part: _split(samples, classes, reader) for part, samples in parts.items()}
    contents = {s: [s.name, s.label, entry[0]] for s, entry in zip(everything, found, strict=True)}
    tested = "test" if "test" in splits else "val"
    learned = [[contents[s] for s in samples] for part, samples in parts.items() if part != tested]
    return ImageSet(
        "imagefolder",
        embedded=False,
        digest=digest_json([[*contents.values()], {part: len(samples) for part, samples in parts.items()}]),
        classes=classes,
        train=splits["train"],
        test=splits[tested],
        mean=(0.485, 0.456, 0.406),  # ImageNet's
        std=(0.229, 0.224, 0.225),
        val=splits["val"] if len(splits) == 3 else None,
        notes=tuple(_notes([*facts.values()], reader.range, left_out)),
        learned=digest_json(learned),
    )


def _classes(parts: Parts, numbers: bool) -> tuple[str, ...]:
    """Returns the classes of the training images in order; ``numbers`` are sorted by value.

    Raises:
        KDBenchError: There is one alone, or another split has one more.
    """
    labels = {sample.label for sample in parts["train"]}
    by_value = numbers and all(label.isdecimal() for label in labels)
    classes = sorted(labels, key=int if by_value else None)
    if len(classes) < 2:
        raise KDBenchError(
            f"{parts['train'][0].path.parent}: {classes[0]!r} is the one class there is, which any model gets right; "
            "expected two classes or more"
        )
    for samples in parts.values():
        unknown = next((sample for sample in samples if sample.label not in labels), None)
        if unknown is not None:
            raise KDBenchError(
                f"{printable(unknown.path)}: class {unknown.label!r} is not among those of the training images: "
                f"{nearest(unknown.label, classes)}"
            )
    return tuple(classes)


def _split(samples: Sequence[Sample], classes: Sequence[str], reader: Reader) -> Split:
    index = {label: i for i, label in enumerate(classes)}
    labels = np.array([index[sample.label] for sample in samples], dtype=np.int64)
    files = ImageFiles([sample.path for sample in samples], reader=reader)
    return Split(files, labels, [sample.name for sample in samples])


def _cut_test(samples: list[Sample]) -> Parts:
    """Cuts a test set by the hash of the names; validation is cut from the rest as everywhere."""
    chosen = set(cut([s.name for s in samples], TEST_SHARE, "test", [s.label for s in samples]))
    return {
        "train": [s for i, s in enumerate(samples) if i not in chosen],
        "test": [samples[i] for i in sorted(chosen)],
    }


# ---- folders --------------------------------------------------------------------------------------------------------


def _of_folders(root: Path, left_out: Counter[str]) -> Parts:
    """Lists the images below ``root`` by split; counts files that are no images by their suffix."""
    names = _folders(root)
    given = [part for part in PARTS if part in names]
    if not given:
        splits = [name for name in names if name.lower() in (*PARTS, *ALIASES)]
        if splits or not names:
            holds = ", ".join(splits) or "no folder"
            raise KDBenchError(
                f"data.root={root}: holds {holds}; expected CLASS/*.jpg, or train/CLASS/*.jpg and val/CLASS/*.jpg "
                "(or test/)"
            )
        samples = [s for name in names for s in _of_class(root, name, printable(name), left_out)]
        _say(root, left_out)
        return _cut_test(samples)
    if "train" not in given or len(given) < 2:
        raise KDBenchError(
            f"data.root={root}: holds {', '.join(given)}; expected train/CLASS/*.jpg and val/CLASS/*.jpg (or test/); "
            f"data.root={root / given[0]} cuts the splits by hash"
        )
    parts: Parts = {}
    classes = _folders(root / "train")
    for part in given:
        folder = root / part
        found = _folders(folder)
        if not found:
            raise KDBenchError(f"{folder}: no class folder; expected {part}/CLASS/*.jpg")
        unknown, missing = sorted({*found} - {*classes}), sorted({*classes} - {*found})
        if unknown:
            raise KDBenchError(
                f"{printable(folder / unknown[0])}: class {unknown[0]!r} is not among those of {root / 'train'}"
            )
        if missing:
            raise KDBenchError(
                f"{printable(folder / missing[0])}: there is no such folder; {root / 'train'} has this class"
            )
        parts[part] = [
            sample for name in found for sample in _of_class(folder, name, f"{part}/{printable(name)}", left_out)
        ]
    _say(root, left_out)
    return parts


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if not _litter(entry.name) and entry.is_dir())


def _litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in LITTER


def _of_class(parent: Path, name: str, prefix: str, left_out: Counter[str]) -> list[Sample]:
    folder, others = parent / name, Counter[str]()
    samples = [
        Sample(f"{prefix}/{printable(path.relative_to(folder))}", printable(name), path)
        for path in _below(folder, others)
    ]
    if not samples:
        found = f"found {', '.join(others)}; " if others else ""
        raise KDBenchError(f"{printable(folder)}: no image in this class folder; {found}expected *.jpg, *.png, …")
    left_out.update(others)
    return samples


def _below(folder: Path, others: Counter[str], above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """Yields the images of a folder and of those below it, by name; counts the suffixes of other files."""
    state = folder.stat()
    place = state.st_dev, state.st_ino
    if place in above:  # a link to where it lies
        return
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        path = Path(entry.path)
        if _litter(entry.name):
            continue
        if entry.is_dir():
            yield from _below(path, others, (*above, place))
        elif path.suffix.lower() not in EXTENSIONS:
            others[printable(path.suffix.lower() or entry.name)] += 1
        elif not entry.is_file():
            raise KDBenchError(f"{printable(path)}: not a file, or a link to one that is not there")
        else:
            yield path


def _say(root: Path, left_out: Counter[str]) -> None:
    if left_out:
        found = ", ".join(f"{number} {suffix}" for suffix, number in left_out.most_common(5))
        _log.warning("%s: left out, no images by their suffix: %s", root, found)


# ---- a table --------------------------------------------------------------------------------------------------------


def _of_table(root: Path, table: Path) -> Parts:
    """Reads a CSV file, whose paths start from ``root``; so may its own."""
    table = table if table.is_file() else root / table
    with reading(table):
        content = table.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise KDBenchError(f"{table}: byte {error.start} is not UTF-8: save the table as UTF-8") from None
    header = text.partition("\n")[0]
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), skipinitialspace=True)
    columns = [name.strip() for name in rows.fieldnames or ()]
    if not {"path", "label"} <= {*columns}:
        raise KDBenchError(f"{table}: columns {', '.join(columns) or 'none'}; expected path,label or path,label,split")
    rows.fieldnames = columns
    parts: Parts = {}
    seen: set[Path] = set()
    try:
        for row in rows:
            part, sample = _of_row(root, f"{table}, line {rows.line_num}", row)
            if sample.path in seen:
                raise KDBenchError(f"{table}, line {rows.line_num}: {sample.name} stands there twice")
            seen.add(sample.path)
            parts.setdefault(part, []).append(sample)
    except csv.Error as error:
        raise KDBenchError(f"{table}, line {rows.line_num}: not a table ({error})") from None
    if not parts:
        raise KDBenchError(f"{table}: no image; expected a line for each")
    if "" in parts:
        return _cut_test(parts[""])
    if "train" not in parts or len(parts) < 2:
        raise KDBenchError(f"{table}: its splits are {', '.join(parts)}; expected train and val (or test)")
    return {part: parts[part] for part in PARTS if part in parts}


def _of_row(root: Path, where: str, row: dict[str, Any]) -> tuple[str, Sample]:
    """Returns the split (empty where none is given) and the image of a row."""
    values = {name: (row.get(name) or "").strip() for name in ("path", "label")}
    for name, value in values.items():
        if not value:
            raise KDBenchError(f"{where}: no {name}")
    part = ""
    if "split" in row:
        given = (row["split"] or "").strip().lower()
        part = ALIASES.get(given, given)
        if part not in PARTS:
            raise KDBenchError(f"{where}: split {given!r}: expected train, val or test")
    path = root / values["path"]
    if not path.is_file():
        raise KDBenchError(f"{where}: there is no file {path}; paths start from data.root")
    return part, Sample(values["path"], values["label"], path)


# ---- what is in the files -------------------------------------------------------------------------------------------


def _examined(samples: Sequence[Sample], store: Store | None) -> list[list[Any]]:
    """Reads all files, in the threads of one pool, a folder at a time: one that is as it was is not read again.

    Returns:
        For each sample the digest of the content, then the fields of ``Facts``.
    """
    if len(samples) > MANY:
        _log.warning("reading %d images, once, to know their content and that each decodes", len(samples))
    code = source_digest(["tasks.classification.sources.folder"])
    order = sorted(range(len(samples)), key=lambda i: str(samples[i].path.parent))
    found: dict[int, list[Any]] = {}
    with ThreadPoolExecutor(THREADS) as pool:

        def examined(files: list[Path]) -> dict[str, Any]:
            results = list(pool.map(_examine, files))
            broken = [result for result in results if isinstance(result, UnreadableImage)]
            if broken:
                others = f"; {len(broken) - 1} more in this folder" if len(broken) > 1 else ""
                raise UnreadableImage(f"{broken[0]}{others}")
            return {"files": results}

        for folder, members in groupby(order, key=lambda i: samples[i].path.parent):
            rows = list(members)
            files = [samples[i].path for i in rows]
            read = partial(examined, files)
            message = f"the images of {folder}"
            kept = store.of_files("image-files", files, read, code=code, wait_message=message) if store else read()
            found |= dict(zip(rows, kept["files"], strict=True))
    return [found[i] for i in range(len(samples))]


def _examine(path: Path) -> list[Any] | UnreadableImage:
    try:
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()[:32]
        return [content, *astuple(examine(path))]
    except OSError as error:
        return UnreadableImage(f"{printable(path)}: cannot be read ({error.strerror})")
    except UnreadableImage as error:
        return error


def _range(facts: Sequence[Facts]) -> Range | None:
    """Returns what is black and white in all images of more than 8 bits, None where there is none."""
    extents = [fact.extent for fact in facts if fact.extent is not None]
    if not extents:
        return None
    low, high, whole = zip(*extents, strict=True)
    return natural_range(min(low), max(high), all(whole))


def _notes(facts: Sequence[Facts], limits: Range | None, left_out: Counter[str]) -> Iterator[str]:
    """Says for the record what was made of files that are not plain images of 8 bits."""
    if limits is not None:
        yield f"values {limits[0]:g} to {limits[1]:g} scaled to 0 to 255"
    for text, count in (
        ("transparent, on data.background", sum(fact.alpha for fact in facts)),
        ("turned upright", sum(fact.turned for fact in facts)),
        ("of several frames, first one read", sum(fact.frames for fact in facts)),
    ):
        if count:
            yield f"{count} images {text}"
    if left_out:
        yield f"{left_out.total()} files left out, no images by their suffix"
