"""Where interaction data come from: each source makes or is a folder of :mod:`tasks.hoi.layout`, read by one reader."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kdbench.base.digest import digest, hash_files, source_digest
from kdbench.base.instantiate import check
from kdbench.base.store import SCRATCH, Store
from kdbench.errors import KDBenchError, nearest, reading
from tasks.hoi import bimanual, cad120, cad120_text, charades_ag
from tasks.hoi.kitchen import Kitchen, make
from tasks.hoi.layout import Fold, Layout, Meta, Video, read, write

#: What is in the folder of a source; the embedded one has none.
HOLDS = {
    "kitchen": "",
    "cad120": f"{cad120.FILE}, the segment features of CAD-120, or {cad120_text.ARCHIVE}, its text files",
    "bimanual": f"{bimanual.DERIVED} and {bimanual.TRUTH}, the Bimanual Actions Dataset",
    "charades_ag": "the tables of Charades and the two pickles of Action Genome",
    "graphs": "meta.json, splits.json and videos/, the layout of tasks.hoi.layout",
}
#: Modules that decide what a converted data set holds.
DECIDES = {
    "kitchen": ("tasks.hoi.kitchen", "tasks.hoi.layout"),
    "cad120": (
        *("tasks.hoi.cad120", "tasks.hoi.cad120_arrays", "tasks.hoi.cad120_text", "tasks.hoi.cad120_people"),
        *("tasks.hoi.kitchen.script", "tasks.hoi.layout"),
    ),
    "bimanual": ("tasks.hoi.bimanual", "tasks.hoi.layout"),
    "charades_ag": ("tasks.hoi.charades_ag", "tasks.hoi.boxes", "tasks.hoi.layout"),
}

Made = tuple[Meta, list[Fold], dict[str, Video]]
#: Of each data set that is converted: the files that decide what it holds, and what reads them.
CONVERTERS: Mapping[str, tuple[Callable[[Path], list[Path]], Callable[[Path], Made]]] = {
    "cad120": (cad120.files, cad120.convert),
    "bimanual": (bimanual.files, bimanual.convert),
    "charades_ag": (charades_ag.files, charades_ag.convert),
}


def open_source(name: str, root: str | None, store: Store, kitchen: Mapping[str, Any]) -> Layout:
    """Reads a data set, which is made or converted into the store first where it is not in the layout yet.

    Args:
        name: Key of :data:`HOLDS`.
        root: Folder of a real data set; nothing is written there.
        store: Where what was converted lies.
        kitchen: Options of the made-up one, :class:`~tasks.hoi.kitchen.Kitchen`.

    Raises:
        KDBenchError: An unknown name, a root that is missing or not wanted, or files that are not as they should be.
    """
    if name not in HOLDS:
        raise KDBenchError(f"data.source={name}: there is no such source: {nearest(name, HOLDS)}")
    if name == "kitchen":
        if root is not None:
            raise KDBenchError(
                f"data.root={root}: {name} is made up and reads no files; choose data=cad120 or another of files"
            )
        options = Kitchen(**check("data.kitchen", Kitchen, kitchen))
        return replace(_converted(store, name, asdict(options), lambda: make(options)), embedded=True)
    if kitchen:
        raise KDBenchError(f"data.kitchen={dict(kitchen)}: {name} is not made up; choose data=kitchen")
    if root is None:
        raise KDBenchError(f"data.root: {name} is not embedded; set the folder that holds {HOLDS[name]}")
    folder = Path(root).expanduser()
    with reading(folder):
        if not folder.is_dir():
            raise KDBenchError(f"data.root={root}: there is no such folder; expected one that holds {HOLDS[name]}")
    if name == "graphs":
        return read(folder)
    files, convert = CONVERTERS[name]
    return _converted(store, name, hash_files(files(folder), folder), lambda: convert(folder))


def _converted(store: Store, name: str, made_of: Any, convert: Callable[[], Made]) -> Layout:
    """Returns a data set in the layout, which is written once."""

    def fill(work: Path) -> dict[str, Any]:
        final = work / "data"
        if not final.is_dir():  # else a maker was killed after it
            shutil.rmtree(work / SCRATCH, ignore_errors=True)
            aside = work / SCRATCH / "data"
            write(aside, *convert())
            aside.rename(final)
        return {"source": name}

    key = digest([made_of, source_digest(DECIDES[name])])
    return read(store.product(f"hoi-{name}", key, fill, wait_message=f"the data {name}").path / "data")
