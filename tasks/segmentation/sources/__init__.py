"""Where images and masks come from: each source reads a data set in its official layout, or brings one along."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.base.digest import digest_json, source_digest
from kdbench.base.store import Store
from kdbench.errors import KDBenchError, nearest, printable, reading
from tasks.images import UnreadableImage
from tasks.pixels import Range, natural_range
from tasks.segmentation.sources.base import IGNORED, Layout, Sample
from tasks.segmentation.sources.layouts import HOLDS, LAYOUTS, cityscapes
from tasks.segmentation.sources.masks import UNKNOWN, Facts, MaskReader, examine
from tasks.segmentation.sources.rendered import streets
from tasks.segmentation.streets import CLASSES

RENDERED = "streets"
THREADS = 8
#: Files from which on it is said that they are read.
MANY = 5_000
#: Numbers that an error line names.
SHOWN = 4

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A data set whose files have been read once.

    Attributes:
        layout: Its samples and classes.
        reader: Of its masks.
        facts: What was found out about each sample, by its name.
    """

    layout: Layout
    reader: MaskReader
    facts: Mapping[str, Facts]

    @cached_property
    def digest(self) -> str:
        """Of the names, the classes and the content of all files."""
        return self.content(self.layout.samples)

    def content(self, samples: Sequence[Sample]) -> str:
        """Returns the digest of the names and the content of samples, and of what the numbers in masks mean."""
        labels = self.layout.labels
        contents = [[sample.name, self.facts[sample.name].digest] for sample in samples]
        codes = sorted(map(list, labels.codes.items()))
        return digest_json([contents, list(labels.classes), codes, sorted([*c, n] for c, n in labels.colours.items())])

    @property
    def range(self) -> Range | None:
        """What becomes black and white in images of more than 8 bits, by those of training; None without any."""
        extents = [e for sample in self.layout.train if (e := self.facts[sample.name].extent) is not None]
        if not extents:
            return None
        low, high, whole = zip(*extents, strict=True)
        return natural_range(min(low), max(high), all(whole))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a record has to say of how the images were read."""
        limits = self.range
        return () if limits is None else (f"values {limits[0]:g} to {limits[1]:g} scaled to 0 to 255",)

    def counted(self, samples: Sequence[Sample]) -> np.ndarray:
        """Returns how many pixels of samples are of each class, ``(C,)``."""
        total: Counter[int] = Counter()
        for sample in samples:
            total.update(self.facts[sample.name].numbers)
        numbers = np.array([*total], dtype=np.int64)
        classes = self.reader.classes(numbers)
        pixels = np.array([*total.values()], dtype=np.int64)
        return np.array([pixels[classes == c].sum() for c in range(len(self.layout.labels.classes))], dtype=np.int64)


def open_source(
    name: str,
    root: str | None,
    store: Store,
    *,
    classes: Sequence[str] | None = None,
    ignore: Sequence[int] = (),
    render: Mapping[str, Any] | None = None,
    train: int | None = None,
    test: int | None = None,
    progress: bool = True,
) -> Source:
    """Opens a data set and reads every file once, so that none ends a training.

    Args:
        name: ``streets`` or one of :data:`~tasks.segmentation.sources.layouts.LAYOUTS`.
        root: Folder of a real data set; None for the rendered one.
        store: Where rendered images lie, and what was found out about files.
        classes: Those that are learned; what is of another one is ignored. None for all.
        ignore: Numbers in masks that are of no class, beside those of the data set.
        render: Options of the rendered data set.
        train: How many images of it are rendered that train and validation are cut from.
        test: Likewise test images.
        progress: Whether to show one while images are rendered.

    Raises:
        KDBenchError: An unknown name, a root that is missing or not wanted, or files that are not as they should be.
    """
    if name not in (RENDERED, *LAYOUTS):
        raise KDBenchError(f"data.source={name}: there is no such source: {nearest(name, [RENDERED, *LAYOUTS])}")
    if name != RENDERED and render:
        raise KDBenchError(f"data.render={render}: {name} is not rendered; choose data={RENDERED}")
    if name == RENDERED:
        if root is not None:
            choices = "|".join(LAYOUTS)
            raise KDBenchError(f"data.root={root}: {name} is rendered and reads no files; choose data={choices}")
        made = cityscapes(streets(store, render or {}, train, test, progress))
        layout = replace(made, name=RENDERED, embedded=True, labels=made.labels.chosen(CLASSES))
    else:
        if root is None:
            raise KDBenchError(f"data.root: {name} is not embedded; set the folder that holds {HOLDS[name]}")
        folder = Path(root).expanduser()
        with reading(folder):
            if not folder.is_dir():
                raise KDBenchError(f"data.root={root}: there is no such folder; expected one that holds {HOLDS[name]}")
            layout = LAYOUTS[name](folder)
    layout = replace(layout, labels=layout.labels.chosen(classes, ignore))
    facts = _examined(layout, store)
    reader = MaskReader(layout.labels)
    _check_numbers(layout, reader, facts)
    return Source(layout, reader, facts)


def _examined(layout: Layout, store: Store) -> dict[str, Facts]:
    """Reads all files, in the threads of one pool, a folder at a time: one that is as it was is not read again."""
    samples = layout.samples
    if len(samples) > MANY:
        _log.warning("reading %d images and masks, once, to know their content and that each decodes", len(samples))
    code = source_digest(["tasks.segmentation.sources.masks"])
    pictures = bool(layout.labels.colours)
    order = sorted(samples, key=lambda sample: str(sample.image.parent))
    found: dict[str, Facts] = {}
    with ThreadPoolExecutor(THREADS) as pool:

        def examined(members: list[Sample]) -> dict[str, Any]:
            results = list(pool.map(partial(_examine, pictures), members))
            broken = [result for result in results if isinstance(result, KDBenchError)]
            if broken:
                others = f"; {len(broken) - 1} more in this folder" if len(broken) > 1 else ""
                raise KDBenchError(f"{broken[0]}{others}")
            return {"files": [asdict(result) for result in results if isinstance(result, Facts)]}

        for folder, group in groupby(order, key=lambda sample: sample.image.parent):
            members = list(group)
            files = [path for sample in members for path in (sample.image, sample.mask)]
            kept = store.of_files(
                "mask-files",
                files,
                partial(examined, members),
                code=f"{code} {pictures}",
                wait_message=f"the images of {folder}",
            )
            for sample, entry in zip(members, kept["files"], strict=True):
                numbers = {int(number): count for number, count in entry["numbers"].items()}
                extent = entry["extent"] and tuple(entry["extent"])
                found[sample.name] = Facts(entry["digest"], tuple(entry["size"]), numbers, extent)
    return found


def _examine(pictures: bool, sample: Sample) -> Facts | KDBenchError:
    try:
        return examine(sample.image, sample.mask, pictures)
    except OSError as error:
        return UnreadableImage(f"{printable(error.filename or sample.image)}: cannot be read ({error.strerror})")
    except KDBenchError as error:
        return error


def _check_numbers(layout: Layout, reader: MaskReader, facts: Mapping[str, Facts]) -> None:
    """Raises a line that says which numbers mean nothing, how often they occur, and where first."""
    pixels: Counter[int] = Counter()
    masks: dict[int, list[Sample]] = {}
    for sample in layout.samples:
        numbers = facts[sample.name].numbers
        known = reader.classes(np.array([*numbers], dtype=np.int64))
        for number, code in zip(numbers, known.tolist(), strict=True):
            if code == UNKNOWN:
                pixels[number] += numbers[number]
                masks.setdefault(number, []).append(sample)
    if not pixels:
        return
    colours = layout.labels.colours
    told = ", ".join(
        f"{_shown(number, bool(colours))} ({count} pixels in {len(masks[number])} masks, first "
        f"{printable(masks[number][0].mask)})"
        for number, count in pixels.most_common(SHOWN)
    )
    more = f" and {len(pixels) - SHOWN} more" if len(pixels) > SHOWN else ""
    if colours:
        raise KDBenchError(
            f"{layout.name}: masks hold colours that classes.txt does not name: {told}{more}; give each a line there"
        )
    codes = layout.labels.codes
    void = sorted(number for number, code in codes.items() if code == IGNORED)
    expected = f"{min(codes.keys() - {*void})} to {max(codes.keys() - {*void})}"
    listed = ",".join(str(number) for number in sorted(pixels)[:20])
    raise KDBenchError(
        f"{layout.name}: masks hold label ids outside the class list: {told}{more}; expected {expected} for the "
        f"{len(layout.labels.classes)} classes, or {', '.join(map(str, void)) or 'nothing'} for none; "
        f"data.ignore=[{listed}] ignores them"
    )


def _shown(number: int, colour: bool) -> str:
    return f"({number >> 16}, {number >> 8 & 255}, {number & 255})" if colour else str(number)
