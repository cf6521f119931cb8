"""A content-addressed store of what takes long to make: teachers, scratch students, prepared data.

A product is a folder ``<root>/<kind>/<key>`` that holds ``manifest.json``. It is whole or absent, it is made once
however many processes ask for it, and a maker that is killed leaves its work folder for the next one.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from kdbench import __version__
from kdbench.base.digest import digest, drop_nonfinite
from kdbench.errors import KDBenchError, reading

MANIFEST = "manifest.json"
SCRATCH = "scratch"

#: Files that changed in the last nanoseconds so many may change again within one tick of a file system's clock.
UNSETTLED = 2_000_000_000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_log = logging.getLogger(__name__)


def default_root() -> Path:
    """The cache folder: ``$KDBENCH_CACHE``, else the user's cache folder.

    Raises:
        KDBenchError: There is none.
    """
    root = os.environ.get("KDBENCH_CACHE")
    try:
        return Path(root).expanduser() if root else platformdirs.user_cache_path("kdbench", appauthor=False)
    except RuntimeError:  # neither $HOME nor an entry in the list of users
        raise KDBenchError("this user has no home folder for the cache: set cache=DIR or KDBENCH_CACHE") from None


@dataclass(frozen=True)
class Product:
    """A finished product.

    Attributes:
        path: Its folder; read only.
        manifest: What its maker returned, plus ``kind``, ``key``, ``created`` (UTC) and ``kdbench`` (version).
        fresh: Whether this call made it.
    """

    path: Path
    manifest: dict[str, Any]
    fresh: bool


class Store:
    """Products by kind and key under one folder, safe between threads, processes and killed processes.

    Args:
        root: The folder; it is created when the first product is made. Default: :func:`default_root`.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = (default_root() if root is None else Path(root)).absolute()

    def product(
        self,
        kind: str,
        key: str,
        make: Callable[[Path], dict[str, Any]],
        *,
        wait_message: str | None = None,
        since: datetime | None = None,
    ) -> Product:
        """Returns the product, making it first if it is absent.

        Args:
            kind: E.g. ``"teacher"``; letters, digits, ``_`` and ``-``.
            key: The digest of everything that the product depends on.
            make: Fills the folder that it is given and returns the manifest, as JSON. The folder may hold what an
                interrupted maker of this product left. What lies in its ``scratch/`` is not part of the product.
            wait_message: What another process is making, for the one line that is logged while this one waits.
            since: A product that was made earlier is made again; whoever reads it keeps it until the new one is whole.

        Raises:
            KDBenchError: The cache folder cannot be written, or its disk is full.
            Exception: Whatever ``make`` raises; its folder stays.
        """
        found = self.find(kind, key)
        if found is not None and not _older(found, since):
            return found
        final = self._folder(kind, key)
        work = final.with_name(f"{key}.work")
        with self._locked(kind, key, wait_message or f"{kind} {key}"), full_disk_is_one_line(self.root):
            found = self.find(kind, key)
            if found is not None and not _older(found, since):
                return found
            if found is None and final.exists():
                _log.warning("%s has no whole %s: it is removed and made again", final, MANIFEST)
                shutil.rmtree(final)
            work.mkdir(parents=True, exist_ok=True)
            # A maker may have been killed between its manifest, which it writes last, and the rename.
            manifest = _read_manifest(work, kind, key)
            fresh = manifest is None
            if manifest is None:
                manifest = _write_manifest(work, kind, key, make(work))
            shutil.rmtree(work / SCRATCH, ignore_errors=True)
            _sync(work)
            if found is not None:
                old = final.with_name(f"{key}.old")
                shutil.rmtree(old, ignore_errors=True)
                final.rename(old)
            work.rename(final)
            if found is not None:
                shutil.rmtree(old, ignore_errors=True)
            return Product(final, manifest, fresh)

    def find(self, kind: str, key: str) -> Product | None:
        """Returns the finished product, or None."""
        folder = self._folder(kind, key)
        manifest = _read_manifest(folder, kind, key)
        return None if manifest is None else Product(folder, manifest, fresh=False)

    def of_files(
        self,
        kind: str,
        files: Sequence[Path],
        read: Callable[[], dict[str, Any]],
        *,
        code: str = "",
        wait_message: str | None = None,
    ) -> dict[str, Any]:
        """Returns what ``read`` finds in files; it is asked once for as long as they stay as they are.

        They are as they were while path, size, inode, time of modification and time of change are: the last one moves
        with every write and no program can set it back. Files that changed in the last two seconds are read each time.
        Only a file system that keeps no time of change (FAT, some network shares) can hide a change, of equal size and
        with the time of modification put back.

        Args:
            kind: As for :meth:`product`.
            files: All that ``read`` reads.
            read: Returns its findings as JSON.
            code: Digest of the code of ``read``.
            wait_message: As for :meth:`product`.

        Raises:
            KDBenchError: A file is not there.
        """
        states = {}
        for path in files:
            with reading(path):
                found = path.stat()
            states[str(path.absolute())] = found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns
        if max((state[3] for state in states.values()), default=0) > time.time_ns() - UNSETTLED:
            return read()
        return self.product(kind, digest([code, states]), lambda _: read(), wait_message=wait_message).manifest

    def _folder(self, kind: str, key: str) -> Path:
        if not _NAME.fullmatch(kind) or not _NAME.fullmatch(key) or kind == "locks":
            raise KDBenchError(f"no product can be called {kind!r} / {key!r}: use letters, digits, '_' and '-'")
        return self.root / kind / key

    @contextmanager
    def _locked(self, kind: str, key: str, what: str) -> Iterator[None]:
        # A lock of the operating system is free once its holder is killed; with filelock >= 4 also where children that
        # the holder forked (data loading workers) live on. The file stays: removing it would let two processes lock
        # two files of one name.
        lock = FileLock(self.root / "locks" / f"{kind}-{key}.lock", poll_interval=0.1)
        holder = Path(lock.lock_file).with_suffix(".json")
        try:
            holder.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0.2)
            except Timeout:
                _log.warning("waiting for %s, held by %s", what, _read_holder(holder))
                lock.acquire()
        except OSError as error:
            raise KDBenchError(
                f"cannot write the cache folder {self.root} ({error.strerror}): set cache=DIR or KDBENCH_CACHE"
            ) from error
        try:
            since = datetime.now(UTC).isoformat(timespec="seconds")
            write_atomic(holder, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}))
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()


@contextmanager
def full_disk_is_one_line(folder: Path) -> Iterator[None]:
    """Turns the errors of a full disk, from Python or from a library, into one line that says which disk it is."""
    try:
        yield
    except KDBenchError:
        raise
    except Exception as error:
        # safetensors reports the system's text, torch's zip writer only where its own code gave up.
        free = shutil.disk_usage(_existing(folder)).free
        if not (
            (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT))
            or os.strerror(errno.ENOSPC) in str(error)
            or ("inline_container" in str(error) and free < 2**20)
        ):
            raise
        raise KDBenchError(
            f"no space left to write below {folder} ({free / 2**20:.1f} MiB free): free some or choose another folder"
        ) from error


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes a file whole or not at all: aside, synced, then renamed.

    Raises:
        KDBenchError: The disk is full; the file is as it was before.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with full_disk_is_one_line(path.parent), aside.open("wb") as stream:
            stream.write(data.encode() if isinstance(data, str) else data)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _older(product: Product, since: datetime | None) -> bool:
    return since is not None and datetime.fromisoformat(product.manifest["created"]) < since


def _write_manifest(folder: Path, kind: str, key: str, details: dict[str, Any]) -> dict[str, Any]:
    created = datetime.now(UTC).isoformat(timespec="microseconds")
    manifest, dropped = drop_nonfinite(
        {**details, "kind": kind, "key": key, "created": created, "kdbench": __version__}
    )
    if dropped:
        _log.warning("%s %s: not a finite number, kept as null: %s", kind, key, ", ".join(dropped))
    try:
        text = json.dumps(manifest, indent=1, allow_nan=False)
    except TypeError as error:
        raise KDBenchError(f"the manifest of {kind} {key} is not JSON: {error}") from None
    write_atomic(folder / MANIFEST, text)
    return dict(json.loads(text))


def _read_manifest(folder: Path, kind: str, key: str) -> dict[str, Any] | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:  # made by another user, or a disk that fails: nothing to remove and make again
        raise KDBenchError(
            f"cannot read {folder} of the cache ({error.strerror}): set cache=DIR or KDBENCH_CACHE"
        ) from error
    if isinstance(manifest, dict) and (manifest.get("kind"), manifest.get("key")) == (kind, key):
        return manifest
    return None


def _read_holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_bytes())
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"


def _sync(folder: Path) -> None:
    """Makes the files of a folder durable before its rename makes them visible."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())
