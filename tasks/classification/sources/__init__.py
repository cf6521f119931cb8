"""Where images come from: each source reads a data set in its official layout, or brings one along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from kdbench.base.store import Store
from kdbench.errors import KDBenchError, nearest, reading
from tasks.classification.sources.base import ImageSet
from tasks.classification.sources.cifar import cifar10, cifar100
from tasks.classification.sources.embedded import digits, mnist1d
from tasks.classification.sources.folder import image_folder
from tasks.classification.sources.idx import fashion_mnist, mnist
from tasks.classification.sources.rendered import glyphs

EMBEDDED: dict[str, Callable[[], ImageSet]] = {"digits": digits, "mnist1d": mnist1d}
#: Rendered once into the store.
RENDERED: dict[str, Callable[..., ImageSet]] = {"glyphs": glyphs}
ARRAYS: dict[str, Callable[[Path], ImageSet]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
}
#: Sources of image files, which may be named by a table and are examined once.
FILES: dict[str, Callable[[Path, Store | None, str | None], ImageSet]] = {"imagefolder": image_folder}
REAL = (*ARRAYS, *FILES)

#: What ``data.root`` holds.
LAYOUTS = {
    "cifar10": "cifar-10-batches-bin/data_batch_1.bin … or cifar-10-batches-py/data_batch_1 …",
    "cifar100": "cifar-100-binary/train.bin, test.bin or cifar-100-python/train, test",
    "mnist": "train-images-idx3-ubyte[.gz], train-labels-idx1-ubyte[.gz] and the same of t10k",
    "fashion_mnist": "train-images-idx3-ubyte[.gz], train-labels-idx1-ubyte[.gz] and the same of t10k",
    "imagefolder": "CLASS/*.jpg …, or train/CLASS/*.jpg … and val/CLASS/*.jpg … (or test/)",
}


def open_source(
    name: str,
    root: str | None = None,
    store: Store | None = None,
    table: str | None = None,
    render: Mapping[str, Any] | None = None,
    test_fonts: Literal["seen", "unseen"] = "seen",
    progress: bool = True,
) -> ImageSet:
    """Opens a data set.

    Args:
        name: One of :data:`EMBEDDED`, :data:`RENDERED` or :data:`REAL`.
        root: Folder of a real data set; None for an embedded one.
        store: Where rendered images lie, and what was found out about image files; None keeps nothing of these.
        table: CSV file that names the images; for sources of image files.
        render: Options of a rendered data set.
        test_fonts: Of a rendered data set.
        progress: Whether to show one while images are rendered.

    Raises:
        KDBenchError: An unknown name, a root that is missing or not wanted, or files that are not as they should be.
    """
    if table is not None and name not in FILES:
        raise KDBenchError(f"data.table={table}: {name} reads no table; choose data={'|'.join(FILES)}")
    if name not in RENDERED and (render or test_fonts != "seen"):
        option = f"render={render}" if render else f"test_fonts={test_fonts}"
        raise KDBenchError(f"data.{option}: {name} is not rendered; choose data={'|'.join(RENDERED)}")
    made: dict[str, Callable[[], ImageSet]] = {
        **EMBEDDED,
        **{n: partial(make, store or Store(), render or {}, test_fonts, progress) for n, make in RENDERED.items()},
    }
    if name in made:
        if root is not None:
            raise KDBenchError(f"data.root={root}: {name} is embedded and reads no files; choose data={'|'.join(REAL)}")
        return made[name]()
    if name not in REAL:
        raise KDBenchError(f"data.source={name}: there is no such source: {nearest(name, [*made, *REAL])}")
    if root is None:
        raise KDBenchError(f"data.root: {name} is not embedded; set the folder that holds {LAYOUTS[name]}")
    folder = Path(root).expanduser()
    with reading(folder):
        if not folder.is_dir():
            raise KDBenchError(f"data.root={root}: there is no such folder; expected one that holds {LAYOUTS[name]}")
        return ARRAYS[name](folder) if name in ARRAYS else FILES[name](folder, store, table)
