"""Images and masks that belong together by their names."""

from __future__ import annotations

from pathlib import Path

from kdbench.base.files import listed
from kdbench.errors import KDBenchError, printable
from tasks.segmentation.sources.base import Sample


def files(folder: Path, *suffixes: str) -> dict[str, Path]:
    """Returns the files of a folder that end so, in any case, by their names without it.

    Raises:
        KDBenchError: Two differ in their endings alone.
    """
    found: dict[str, Path] = {}
    for name in sorted(listed(folder)):
        ending = next((suffix for suffix in suffixes if name.lower().endswith(suffix.lower())), None)
        if ending is None:
            continue
        stem = name[: -len(ending)]
        if stem in found:
            raise KDBenchError(f"{printable(folder / name)}: {found[stem].name} has that name too; keep one of them")
        found[stem] = folder / name
    return found


def paired(part: str, folder: Path, images: dict[str, Path], masks: dict[str, Path]) -> tuple[Sample, ...]:
    """Joins images and masks by their names, which come behind ``part`` in those of the samples.

    Raises:
        KDBenchError: There is none, or one has no partner.
    """
    if not images:
        raise KDBenchError(f"{printable(folder)}: holds no image; expected some, each with a mask")
    for found, others, what in ((images, masks, "mask"), (masks, images, "image")):
        alone = sorted(found.keys() - others.keys())
        if alone:
            more = f" ({len(alone)} such)" if len(alone) > 1 else ""
            raise KDBenchError(
                f"{printable(found[alone[0]])}: there is no {what} for it{more}; expected one of the same name"
            )
    return tuple(Sample(f"{part}/{printable(name)}", images[name], masks[name]) for name in sorted(images))
