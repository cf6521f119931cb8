"""Planetoid's files, ``ind.NAME.x`` and its siblings, read without executing a pickle.

Yang, Cohen, Salakhutdinov: Revisiting Semi-Supervised Learning with Graph Embeddings, ICML 2016. Of the pickles plain
values, arrays of numbers and SciPy's sparse matrices are taken, whose bytes are read here; what else they name is
refused and not run.
"""

from __future__ import annotations

import pickle
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from kdbench.errors import KDBenchError, absent, printable, reading
from tasks.graph.layout import UNKNOWN, Graph, checked

PARTS = ("x", "y", "tx", "ty", "allx", "ally", "graph")
#: Nodes of the published validation cut, which follow those of training.
HELD = 500


def names(root: Path) -> list[str]:
    """Returns the data sets whose files lie in a folder."""
    return sorted(path.name.split(".")[1] for path in root.glob("ind.*.allx"))


def files(root: Path, name: str) -> list[Path]:
    """Returns the files of a data set.

    Raises:
        KDBenchError: One is missing.
    """
    found = [root / f"ind.{name}.{part}" for part in (*PARTS, "test.index")]
    for path in found:
        if not path.is_file():
            raise KDBenchError(f"{absent(path)}; expected {', '.join(PARTS)} and test.index of ind.{name}")
    return found


def read(root: Path, name: str) -> Graph:
    """Reads a data set with its public split.

    Nodes whose numbers are missing in ``test.index`` have neither words nor label, and stay so that no row shifts.

    Raises:
        KDBenchError: A file is missing, is not what the release holds, or asks for something that would be executed.
    """
    *pickles, index = files(root, name)
    parts: dict[str, Any] = {part: _load(path) for part, path in zip(PARTS, pickles, strict=True)}
    where = printable(root / f"ind.{name}.*")
    with reading(index):
        text = index.read_text(encoding="utf-8", errors="replace").split()
    if not text or not all(re.fullmatch(r"\d{1,9}", line) for line in text):
        raise KDBenchError(f"{printable(index)}: expected a node number a line")
    order = np.array([int(line) for line in text])
    first = parts["allx"].shape[0]
    if len(order) != parts["tx"].shape[0] or int(order.min()) < first or len(np.unique(order)) != len(order):
        raise KDBenchError(f"{printable(index)}: {len(order)} numbers for the {parts['tx'].shape[0]} rows of tx")
    count = int(order.max()) + 1
    moved = sp.csr_matrix((np.ones(len(order)), (order - first, np.arange(len(order)))), (count - first, len(order)))
    words = sp.vstack([parts["allx"], moved @ parts["tx"]]).tocsr()
    shown = np.zeros((count, parts["ally"].shape[1]))
    shown[:first], shown[order] = parts["ally"], parts["ty"]
    labels = np.where(shown.any(1), shown.argmax(1), UNKNOWN)
    edges = [(a, b) for a, others in parts["graph"].items() for b in others]
    few = parts["y"].shape[0]
    splits = {"train": np.arange(few), "val": np.arange(few, min(few + HELD, first)), "test": np.sort(order)}
    classes = tuple(map(str, range(shown.shape[1])))
    pairs = np.array(edges, np.int64).reshape(-1, 2)
    # Every citation stands at both of its ends there, which is one edge.
    graph = Graph(name, words.astype(np.float32), labels, np.unique(np.sort(pairs, 1), axis=0), classes, splits)
    return checked(graph, where)


class _Array:
    """Stands in for a pickled array, whose bytes are read here."""

    def __init__(self, *_: Any) -> None:
        self.array = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Dtype) or not isinstance(content, str | bytes):
            raise KDBenchError("holds an array of something else than numbers")
        raw = content.encode("latin1") if isinstance(content, str) else content
        self.array = np.frombuffer(raw, dtype=dtype.numpy()).reshape(shape, order="F" if fortran else "C")


class _Dtype:
    """Stands in for the type of a pickled array."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name, self.order = name, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype[Any]:
        """Returns the type, of numbers alone."""
        name = self.name.decode("latin1") if isinstance(self.name, bytes) else str(self.name)
        order = self.order.decode("latin1") if isinstance(self.order, bytes) else str(self.order)
        if not re.fullmatch(r"[iuf][1248]", name) or order not in ("<", ">", "=", "|"):
            raise KDBenchError(f"holds an array of {name[:20]!r}, expected numbers")
        return np.dtype(f"{'=' if order == '|' else order}{name}")


class _Matrix:
    """Stands in for a pickled sparse matrix: ``data``, ``indices``, ``indptr`` and ``_shape``."""

    def __setstate__(self, state: Any) -> None:
        self.state = dict(state)

    def csr(self) -> sp.csr_matrix:
        """Returns the matrix."""
        parts = [self.state[key].array for key in ("data", "indices", "indptr")]
        return sp.csr_matrix(tuple(parts), tuple(map(int, self.state["_shape"])))


def _rebuilt(kind: Any, *_: Any) -> Any:
    """Stands in for ``copyreg._reconstructor``, which makes an object of a class that the file names."""
    if kind is not _Matrix:
        raise KDBenchError("asks for an object of a class that no release has; it was not made")
    return _Matrix()


def _no_bytes(*given: Any) -> bytes:
    """Stands in for ``bytes``, by which an array without any is written."""
    if given:
        raise KDBenchError("makes bytes of something, expected the content of arrays; it was not run")
    return b""


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise KDBenchError(f"encodes bytes as {encoding!r}, expected latin1")
    return text.encode("latin1")


class _Reader(pickle.Unpickler):
    """An unpickler that knows arrays, sparse matrices and dictionaries, and refuses everything else."""

    _known: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("scipy.sparse.csr", "csr_matrix"): _Matrix,
        ("scipy.sparse._csr", "csr_matrix"): _Matrix,
        ("copy_reg", "_reconstructor"): _rebuilt,
        ("copyreg", "_reconstructor"): _rebuilt,
        ("__builtin__", "object"): object,
        ("builtins", "object"): object,
        ("collections", "defaultdict"): defaultdict,
        ("__builtin__", "list"): list,
        ("builtins", "list"): list,
        ("__builtin__", "bytes"): _no_bytes,
        ("builtins", "bytes"): _no_bytes,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            raise KDBenchError(f"asks for {module}.{name}, which no release does; it was not run")
        return self._known[module, name]


def _load(path: Path) -> Any:
    where = printable(path)
    try:
        with reading(path), path.open("rb") as stream:
            found = _Reader(stream, encoding="latin1").load()
        if isinstance(found, _Matrix):
            return found.csr()
        if isinstance(found, _Array):
            return found.array
        if isinstance(found, dict):
            return {int(a): [int(b) for b in others] for a, others in found.items()}
    except KDBenchError as error:
        text = str(error)
        raise KDBenchError(text if text.startswith(where) else f"{where}: {text}") from None
    # A broken stream makes the unpickler raise nearly anything.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise KDBenchError(f"{where}: not a whole file of Planetoid ({reason[:200]})") from None
    raise KDBenchError(f"{where}: holds {type(found).__name__}, expected an array, a sparse matrix or a dict")
