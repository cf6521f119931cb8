"""Where images come from: each source reads a data set in its official layout, or brings one along."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kdbench.base.store import Store
from kdbench.errors import KDBenchError, nearest, reading
from tasks.classification.sources.base import Source
from tasks.classification.sources.cifar import cifar10, cifar100
from tasks.classification.sources.embedded import digits, mnist1d
from tasks.classification.sources.folder import image_folder
from tasks.classification.sources.idx import fashion_mnist, mnist

EMBEDDED: dict[str, Callable[[], Source]] = {"digits": digits, "mnist1d": mnist1d}
ARRAYS: dict[str, Callable[[Path], Source]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
}
#: Sources of image files, which may be named by a table and are examined once.
FILES: dict[str, Callable[[Path, Store | None, str | None], Source]] = {"imagefolder": image_folder}
REAL = (*ARRAYS, *FILES)

#: What ``data.root`` holds.
LAYOUTS = {
    "cifar10": "cifar-10-batches-bin/data_batch_1.bin … or cifar-10-batches-py/data_batch_1 …",
    "cifar100": "cifar-100-binary/train.bin, test.bin or cifar-100-python/train, test",
    "mnist": "train-images-idx3-ubyte[.gz], train-labels-idx1-ubyte[.gz] and the same of t10k",
    "fashion_mnist": "train-images-idx3-ubyte[.gz], train-labels-idx1-ubyte[.gz] and the same of t10k",
    "imagefolder": "CLASS/*.jpg …, or train/CLASS/*.jpg … and val/CLASS/*.jpg … (or test/)",
}


def open_source(name: str, root: str | None = None, store: Store | None = None, table: str | None = None) -> Source:
    """Opens a data set.

    Args:
        name: One of :data:`EMBEDDED` or :data:`REAL`.
        root: Folder of a real data set; None for an embedded one.
        store: Where it is kept what was found out about image files; None keeps nothing.
        table: CSV file that names the images; for sources of image files.

    Raises:
        KDBenchError: An unknown name, a root that is missing or not wanted, or files that are not as they should be.
    """
    if table is not None and name not in FILES:
        raise KDBenchError(f"data.table={table}: {name} reads no table; choose data={'|'.join(FILES)}")
    if name in EMBEDDED:
        if root is not None:
            raise KDBenchError(f"data.root={root}: {name} is embedded and reads no files; choose data={'|'.join(REAL)}")
        return EMBEDDED[name]()
    if name not in REAL:
        raise KDBenchError(f"data.source={name}: there is no such source: {nearest(name, [*EMBEDDED, *REAL])}")
    if root is None:
        raise KDBenchError(f"data.root: {name} is not embedded; set the folder that holds {LAYOUTS[name]}")
    folder = Path(root).expanduser()
    with reading(folder):
        if not folder.is_dir():
            raise KDBenchError(f"data.root={root}: there is no such folder; expected one that holds {LAYOUTS[name]}")
        return ARRAYS[name](folder) if name in ARRAYS else FILES[name](folder, store, table)
