"""Digests of values, files and sources: the keys under which products are kept and records are compared."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import math
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from kdbench.errors import KDBenchError


def digest(value: Any, length: int = 16) -> str:
    """Digests a JSON-like value by its canonical JSON: sorted keys, tuples as lists, exact floats.

    Args:
        value: Nested mappings, sequences, strings, numbers, booleans and None.
        length: Hex characters to return, at most 64.

    Raises:
        KDBenchError: The value holds NaN, infinity or something that JSON has no form for.
    """
    return digest_json(_plain(value, ""), length)


def digest_json(value: Any, length: int = 16) -> str:
    """Digests as :func:`digest` does what is JSON already: dicts with text as keys, lists, no NaN.

    Raises:
        ValueError: The value holds NaN or infinity.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def digest_files(paths: Iterable[Path], root: Path, length: int = 16) -> str:
    """Digests files by their contents and their names relative to ``root``, in any order and from any place.

    Raises:
        KDBenchError: A path is not a readable file below ``root``.
    """
    return digest(hash_files(paths, root), length)


def hash_files(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file by its name relative to ``root``, which :func:`digest_files` is the digest of.

    Raises:
        KDBenchError: A path is not a readable file below ``root``.
    """
    entries = {}
    for path in paths:
        try:
            with path.open("rb") as stream:
                entries[path.relative_to(root).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
        except (OSError, ValueError) as error:
            raise KDBenchError(f"cannot digest {path} as a file below {root}: {error}") from None
    return entries


@functools.cache
def _source_digest(modules: tuple[str, ...], length: int) -> str:
    # Line endings may differ between a checkout and a wheel.
    return digest(
        {
            name: hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
            for name, path in sources(modules).items()
        },
        length,
    )


def source_digest(modules: Iterable[str], length: int = 16) -> str:
    """Digests the sources of ``modules`` and of what they import; see :func:`sources`. Computed once per process."""
    return _source_digest(tuple(sorted(set(modules))), length)


def sources(modules: Iterable[str]) -> dict[str, Path]:
    """Finds the source files that dotted ``modules`` are made of, without running any of them.

    These are the modules, their parent packages and, transitively, everything that one of them imports anywhere in
    its text from the same top-level packages, from ``kdbench`` or, unless they are installed, from the folder that
    holds them. What is imported by a computed name (a registry, a Hydra ``_target_``) cannot be seen: name it in
    ``modules``.

    Returns:
        Paths by dotted name, sorted by name.

    Raises:
        KDBenchError: A named module does not exist or a source cannot be parsed.
    """
    queue = sorted(set(modules))
    for name in queue:
        if _find(name) is None:
            raise KDBenchError(
                f"there is no module {name!r}: expected one that can be imported (PYTHONPATH=. for code in this folder)"
            )
    tops = {name.partition(".")[0] for name in queue} | {"kdbench"}
    homes = {home for top in tops if (home := _home(top))}
    seen: set[str] = set()
    found: dict[str, Path] = {}
    while queue:
        name = queue.pop()
        top = name.partition(".")[0]
        if name in seen or (top not in tops and _home(top) not in homes):
            continue
        seen.add(name)
        spec = _find(name)
        if spec is None:  # an attribute in "from package import attribute", or a module that is not installed
            continue
        queue.append(name.rpartition(".")[0] or name)
        if spec.origin is None or not spec.has_location:  # a namespace package has no source
            continue
        found[name] = Path(spec.origin)
        if found[name].suffix == ".py":
            queue += _imports(name, spec.submodule_search_locations is not None, found[name])
    return dict(sorted(found.items()))


@functools.cache
def _home(top: str) -> Path | None:
    """Returns the folder that holds a top-level module, None for what is installed or built in."""
    spec = _find(top) if top else None
    places = spec and (spec.submodule_search_locations or ([spec.origin] if spec.has_location and spec.origin else []))
    if not places:
        return None
    home = Path(next(iter(places))).resolve().parent
    installed = {Path(path).resolve() for path in sysconfig.get_paths().values()}
    return None if home in installed or home.name in ("site-packages", "dist-packages") else home


@functools.cache
def _find(name: str) -> ModuleSpec | None:
    # importlib.util.find_spec would import the parent packages of a dotted name, and with them torch.
    parent, _, last = name.rpartition(".")
    if not parent:
        try:
            return importlib.util.find_spec(name)
        except (ImportError, ValueError):  # "__main__", or no name
            return None
    spec = _find(parent)
    if spec is None or spec.submodule_search_locations is None:
        return None
    places = list(spec.submodule_search_locations)
    try:
        return PathFinder.find_spec(name, places)
    except KeyError:  # a namespace package asks for its parent to be imported
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(Path(place, last)) for place in places]
        return spec


@functools.cache
def _imports(name: str, is_package: bool, path: Path) -> frozenset[str]:
    """Returns every dotted name that a module's source may import, names that turn out to be attributes included."""
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise KDBenchError(f"{path}: cannot be parsed ({error.msg}, line {error.lineno})") from None
    package = name if is_package else name.rpartition(".")[0]
    found = set[str]()
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: package.count(".") + 2 - node.level], *filter(None, [base])])
            found.update([base, *(f"{base}.{alias.name}" for alias in node.names)])
    return frozenset(found)


def _statements(node: ast.AST) -> Iterator[ast.stmt]:
    """Yields what stands below a node, without looking into expressions, which hold no statement."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _statements(child)
            if isinstance(child, ast.stmt):
                yield child


def drop_nonfinite(value: Any, path: str = "") -> tuple[Any, list[str]]:
    """Replaces NaN and infinities in a JSON-like value by None, because JSON has no form for them.

    Returns:
        The value and the dotted paths of what was replaced.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None, [path]
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        items = enumerate(value)
    else:
        return value, []
    kept: dict[Any, Any] = {}
    paths: list[str] = []
    for key, item in items:
        kept[key], below = drop_nonfinite(item, f"{path}.{key}" if path else str(key))
        paths += below
    return (kept if isinstance(value, Mapping) else list(kept.values())), paths


def without(tree: Mapping[str, Any], paths: tuple[str, ...]) -> dict[str, Any]:
    """Copies nested mappings without the dotted ``paths``."""
    below = _below(paths)
    kept = {}
    for key, value in tree.items():
        tails = below.get(str(key), ()) + below.get("*", ())
        if "" not in tails:
            kept[key] = without(value, tails) if tails and isinstance(value, Mapping) else value
    return kept


def without_nulls(tree: Mapping[str, Any], free: tuple[str, ...]) -> dict[str, Any]:
    """Copies nested mappings without nulls, but for what is below the dotted paths ``free``."""
    below = _below(free)
    kept = {}
    for key, value in tree.items():
        tails = below.get(str(key), ()) + below.get("*", ())
        if value is not None:
            kept[key] = without_nulls(value, tails) if "" not in tails and isinstance(value, Mapping) else value
    return kept


@functools.cache
def _below(paths: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Groups dotted paths by their first part: what is left of them, empty for one that ends there."""
    heads = dict.fromkeys(path.partition(".")[0] for path in paths)
    return {head: tuple(p.partition(".")[2] for p in paths if p.partition(".")[0] == head) for head in heads}


def _plain(value: Any, path: str) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise KDBenchError(f"cannot digest {path or 'the value'}: found {value}, expected a finite number")
        return float(value)
    if isinstance(value, Mapping):
        plain = {str(key): _plain(item, f"{path}.{key}" if path else str(key)) for key, item in value.items()}
        if len(plain) != len(value):
            raise KDBenchError(f"cannot digest {path or 'the value'}: two of its keys read the same as text")
        return plain
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
    raise KDBenchError(
        f"cannot digest {path or 'the value'}: found {type(value).__name__}, "
        "expected mappings, sequences, strings, numbers, booleans or None"
    )
