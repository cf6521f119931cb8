"""Own images with masks: ``images/``, ``masks/`` and ``classes.txt``."""

from __future__ import annotations

import re
from pathlib import Path

from kdbench.base.files import listed, read_text, reason
from kdbench.errors import KDBenchError, nearest, printable
from kdbench.splits import cut
from tasks.segmentation.sources.base import IGNORED, MOST, PARTS, Labels, Layout, Sample
from tasks.segmentation.sources.pairs import files, paired

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
MASKS = (".png", ".bmp", ".tif", ".tiff", ".gif")
#: Share of a folder without splits that becomes its test set.
TEST_SHARE = 0.2
#: What a line of ``classes.txt`` is called whose pixels are of no class.
VOID = ("void", "ignore", "ignored", "unlabeled", "unlabelled")
_COLOUR = re.compile(r"(?P<name>.*?)[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})")


def mask_folder(root: Path) -> Layout:
    """Images in ``images/``, masks of the same names in ``masks/``, and a class a line in ``classes.txt``.

    The number of a class is that of its line, from 0; 255 is of no class, nor is what a line called ``void`` says. A
    line may end in a colour (``road 128 64 128``): masks are then pictures in these colours. The splits are folders
    (``images/train``, ``masks/train``, …) or lists of names (``train.txt``, ``val.txt``, ``test.txt``); without any a
    fifth is test by the hash of the names. ``val`` alone is our test; with ``test`` beside it all three are used.
    """
    labels = read_classes(root / "classes.txt")
    folders = [part for part in PARTS if (root / "images" / part).is_dir()]
    lists = [part for part in PARTS if (root / f"{part}.txt").is_file()]
    if folders:
        parts = {part: _folder(part, root / "images" / part, root / "masks" / part) for part in folders}
    else:
        every = _folder("", root / "images", root / "masks")
        parts = _listed(root, lists, every) if lists else _cut(root, every)
    if "train" not in parts or len(parts) < 2:
        raise KDBenchError(
            f"data.root={root}: its splits are {', '.join(parts)}; expected train and val (or test), or none of them"
        )
    three = len(parts) == 3
    test = parts["test"] if "test" in parts else parts["val"]
    return Layout("maskfolder", labels, parts["train"], test, parts["val"] if three else None)


def read_classes(path: Path) -> Labels:
    """Reads the names, and the colours where there are some, of ``classes.txt``.

    Raises:
        KDBenchError: It cannot be read, names fewer than two classes, one twice, or colours for some of them alone.
    """
    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise KDBenchError(f"{path}: cannot be read ({reason(error)}); expected the name of a class a line") from None
    lines = [line for line in lines if line and not line.startswith("#")]
    found = [_COLOUR.fullmatch(line) for line in lines]
    with_colour = [match for match in found if match]
    if with_colour and len(with_colour) < len(lines):
        plain = next(line for line, match in zip(lines, found, strict=True) if not match)
        raise KDBenchError(f"{path}: {plain!r} has no colour; expected one for each class (road 128 64 128) or none")
    names = [match["name"].strip() for match in with_colour] or lines
    classes = [name for name in names if name.lower() not in VOID]
    if len(classes) < 2 or len(classes) > MOST or len(set(names)) < len(names):
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        what = f"names {twice!r} twice" if twice else f"names {len(classes)} classes"
        raise KDBenchError(f"{path}: {what}; expected 2 to {MOST} classes, each once")
    codes = {n: IGNORED if name.lower() in VOID else classes.index(name) for n, name in enumerate(names)}
    colours = {}
    for number, match in enumerate(with_colour):
        red, green, blue = (int(value) for value in match.groups()[1:])
        if max(red, green, blue) > IGNORED or (red, green, blue) in colours:
            raise KDBenchError(f"{path}: {match[0]!r}: expected three numbers from 0 to 255 that no other line has")
        colours[red, green, blue] = number
    return Labels(tuple(classes), {IGNORED: IGNORED} | codes, colours)


def _folder(part: str, images: Path, masks: Path) -> tuple[Sample, ...]:
    for folder in (images, masks):
        if not folder.is_dir():
            raise KDBenchError(f"{folder}: there is no such folder; expected images/ and masks/ with files of one name")
    return paired(part or "all", images, files(images, *IMAGES), files(masks, *MASKS))


def _listed(root: Path, lists: list[str], every: tuple[Sample, ...]) -> dict[str, tuple[Sample, ...]]:
    """Takes the samples that lists name, with or without an ending."""
    known = {sample.name.removeprefix("all/"): sample for sample in every}
    seen: dict[str, str] = {}
    parts = {}
    for part in lists:
        path = root / f"{part}.txt"
        try:
            names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise KDBenchError(f"{path}: cannot be read ({reason(error)}); expected a name a line") from None
        chosen = []
        for name in names:
            stem = name if name in known else name.rpartition(".")[0]
            if stem not in known:
                raise KDBenchError(f"{path}: there is no image {name!r} in {root / 'images'}: {nearest(name, known)}")
            if stem in seen:
                where = "twice in it" if seen[stem] == part else f"in {seen[stem]}.txt too"
                raise KDBenchError(f"{path}: {name!r} is {where}; keep one of them")
            seen[stem] = part
            chosen.append(known[stem])
        if not chosen:
            raise KDBenchError(f"{path}: names no image; expected a name a line")
        parts[part] = tuple(chosen)
    return parts


def _cut(root: Path, every: tuple[Sample, ...]) -> dict[str, tuple[Sample, ...]]:
    if len(every) < 3:
        held = ", ".join(printable(name) for name in sorted(listed(root / "images"))[:3])
        raise KDBenchError(f"{root / 'images'}: holds {held} alone; expected three images at least, as test is cut too")
    chosen = {*cut([sample.name for sample in every], TEST_SHARE, "test")}
    return {
        "train": tuple(sample for i, sample in enumerate(every) if i not in chosen),
        "test": tuple(every[i] for i in sorted(chosen)),
    }
