"""Pickles in which data sets were released, read without running anything that they name.

Taken are plain values, arrays of numbers and SciPy's compressed rows. Every array is made here from the bytes in the
file, so that not even NumPy's constructors are called with what it says.
"""

from __future__ import annotations

import pickle
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from kdbench.errors import KDBenchError, printable, reading


def read_pickle(path: Path, what: str, *, encoding: str = "latin1") -> Any:
    """Reads a pickle of plain values, arrays of numbers and sparse matrices.

    Args:
        path: The file.
        what: What it should be, for the message: ``"a python batch of CIFAR"``.
        encoding: Of the strings of Python 2, or ``bytes``.

    Returns:
        The value; its arrays are read-only views of the bytes read, its matrices ``csr_matrix``.

    Raises:
        KDBenchError: The file cannot be read, is broken, or names something else, which is not run.
    """
    try:
        with reading(path), path.open("rb") as stream:
            return _settled(_Reader(stream, encoding=encoding).load(), {})
    except _Refused as error:
        raise KDBenchError(f"{printable(path)}: {error}, which is no part of {what}; it was not run") from None
    except KDBenchError:
        raise
    # A broken stream makes the unpickler raise nearly anything.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        size = path.stat().st_size
        raise KDBenchError(f"{printable(path)}: not a whole file, expected {what} ({size} bytes; {reason})") from None


class _Refused(Exception):
    """What the file asks for."""


class _Dtype:
    """Stands in for the type of an array."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name, self.order = _text(name), "<"

    def __setstate__(self, state: Any) -> None:
        self.order = _text(state[1])

    def numpy(self) -> np.dtype[Any]:
        """Returns the type, of numbers alone."""
        if not re.fullmatch(r"b1|[iuf][1248]", self.name) or self.order not in ("<", ">", "=", "|"):
            raise _Refused(f"holds an array of {self.name[:20]!r}")
        return np.dtype(f"{'=' if self.order == '|' else self.order}{self.name}")


class _Array:
    """Stands in for an array."""

    def __init__(self, *_: Any) -> None:
        self.array = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Dtype) or not isinstance(content, str | bytes):
            raise _Refused("holds an array of something else than numbers")
        self.array = np.frombuffer(_raw(content), dtype.numpy()).reshape(shape, order="F" if fortran else "C")


class _Rows:
    """Stands in for a sparse matrix of compressed rows."""

    def __setstate__(self, state: Any) -> None:
        self.state = dict(state)

    def csr(self) -> sp.csr_matrix:
        """Returns the matrix."""
        data, indices, starts = (self.state[key].array for key in ("data", "indices", "indptr"))
        found = sp.csr_matrix((data, indices, starts), tuple(map(int, self.state["_shape"])))
        found.check_format(full_check=True)
        return found


def _settled(value: Any, done: dict[int, Any]) -> Any:
    """Puts arrays where their stand-ins are; what stands in several places is settled once."""
    if id(value) in done:
        return done[id(value)][1]
    found = value
    if isinstance(value, _Array):
        found = value.array
    elif isinstance(value, _Rows):
        found = value.csr()
    elif isinstance(value, dict):
        found = {key: _settled(item, done) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        found = type(value)(_settled(item, done) for item in value)
    elif isinstance(value, type) or callable(value) or isinstance(value, _Dtype):
        raise _Refused("holds a class or a function")
    # The value too, as the number of one that is gone may be given to another.
    done[id(value)] = value, found
    return found


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _raw(content: str | bytes) -> bytes:
    return content.encode("latin1") if isinstance(content, str) else content


def _scalar(dtype: Any, content: Any) -> Any:
    """Stands in for ``numpy.core.multiarray.scalar``."""
    if not isinstance(dtype, _Dtype) or not isinstance(content, str | bytes):
        raise _Refused("holds a scalar of something else than a number")
    return np.frombuffer(_raw(content), dtype.numpy())[0]


def _rebuilt(kind: Any, *_: Any) -> Any:
    """Stands in for ``copyreg._reconstructor``, which makes an object of a class that the file names."""
    if kind is not _Rows:
        raise _Refused("asks for an object of some class")
    return _Rows()


def _no_bytes(*given: Any) -> bytes:
    """Stands in for ``bytes``, by which an array without any is written."""
    if given:
        raise _Refused("makes bytes of something")
    return b""


def _encode(text: str, encoding: Any) -> bytes:
    """Stands in for ``codecs.encode``, by which Python 3 writes bytes in the protocols of Python 2."""
    if _text(encoding) != "latin1":
        raise _Refused(f"encodes bytes as {_text(encoding)[:20]!r}")
    return text.encode("latin1")


class _Reader(pickle.Unpickler):
    """An unpickler that knows the stand-ins and refuses every other class and function."""

    _known: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
        **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
        **{(f"scipy.sparse.{module}", "csr_matrix"): _Rows for module in ("csr", "_csr")},
        **{(module, "_reconstructor"): _rebuilt for module in ("copy_reg", "copyreg")},
        **{(module, "object"): object for module in ("__builtin__", "builtins")},
        **{(module, "list"): list for module in ("__builtin__", "builtins")},
        **{(module, "bytes"): _no_bytes for module in ("__builtin__", "builtins")},
        ("collections", "defaultdict"): defaultdict,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            raise _Refused(f"asks for {module}.{name}")
        return self._known[module, name]
