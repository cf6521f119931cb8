"""What a command would run that neither this repository nor a package it trusts has: records are from strangers."""

from __future__ import annotations

import ast
import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yaml import YAMLError, safe_load

#: Patterns of what may be named, see the head of the file.
TRUSTED = Path(__file__).resolve().parent / "trusted.txt"
#: The packages of this repository, and where they are.
OWN = ("kdbench", "tasks")
_ROOT = Path(__file__).resolve().parents[1]
_TARGET = "_target_"
_DOTTED = re.compile(r"[A-Za-z]\w*(?:\.[A-Za-z]\w*)+", re.ASCII)
#: What makes a shell do more than split at spaces.
_QUOTED = re.compile(r"['\"\\#]")
#: Without any of these nothing that :func:`_in_word` looks for can be there.
_SUSPECT = re.compile(r"['\"\\#]|_target_|hydra\.searchpath|\$\{oc\.|\s-")
#: Options of the command line that change nothing but how many runs there are.
_PLAIN = ("-m", "--multirun")


def words(command: str) -> list[str]:
    """Splits a command as a shell does; one without quotes, as nearly all are, in a hundredth of the time.

    Raises:
        ValueError: A quote has no end.
    """
    return shlex.split(command) if _QUOTED.search(command) else command.split()


def foreign(command: str) -> tuple[str, ...]:
    """Returns what a command would run or read that is not trusted, in its own words; empty is fit to be copied."""
    if not _SUSPECT.search(command):  # as nearly all
        return ()
    try:
        found = words(command)[3:]
    except ValueError:
        return (command,)
    return tuple(dict.fromkeys(said for word in found for said in _in_word(word)))


def foreign_targets(node: Any) -> Iterator[str]:
    """Yields every ``_target_`` of a configuration, plain containers, that is not trusted."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == _TARGET:
                if value is not None and not (isinstance(value, str) and trusted(value)):
                    yield str(value)
            else:
                yield from foreign_targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from foreign_targets(value)


def _in_word(word: str) -> Iterator[str]:
    key, _, text = word.lstrip("+~").partition("=")
    # Where configuration is read from, and resolvers that make some of text.
    if (word.startswith("-") and word not in _PLAIN) or key.startswith("hydra.searchpath") or "${oc." in word:
        yield word
    elif _TARGET in key:
        for target in text.split(","):  # a sweep
            if not trusted(target.strip("'\" ")):
                yield target
    elif _TARGET in text:
        try:
            # A list of a sweep is one of YAML as well; what has another form is not known.
            yield from foreign_targets(_whole(safe_load(f"[{text}]"), text))
        except YAMLError:
            yield word


def _whole(node: Any, text: str) -> Any:
    """Returns the value, or what says that not every target in its text was found."""
    return node if _count(node) == text.count(_TARGET) else {_TARGET: text}


def _count(node: Any) -> int:
    if isinstance(node, dict):
        return sum((key == _TARGET) + _count(value) for key, value in node.items())
    return sum(map(_count, node)) if isinstance(node, list) else 0


def trusted(target: str) -> bool:
    """Tells whether a dotted name is of this repository or of a package that it trusts.

    Example:
        >>> trusted("torch.optim.AdamW"), trusted("os.system")
        (True, False)
    """
    if not _DOTTED.fullmatch(target):
        return False
    package, _, name = target.rpartition(".")
    for pattern in _patterns():
        if pattern.endswith("."):
            if target.startswith(pattern) and (name in _defined(package) if _own(target) else name[0].isupper()):
                return True
        elif target == pattern or (pattern.endswith(".*") and package == pattern[:-2]):
            return True
    return False


def _own(target: str) -> bool:
    return target.partition(".")[0] in OWN


@functools.cache
def _patterns() -> tuple[str, ...]:
    lines = (line.strip() for line in TRUSTED.read_text(encoding="utf-8").splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


@functools.cache
def _defined(module: str) -> frozenset[str]:
    """Returns the classes and functions that a module's file has, and what a package takes over from its own files."""
    path = _ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.is_file():
        return frozenset()
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom) and path.name == "__init__.py" and node.module and _own(node.module):
            names |= {alias.name for alias in node.names if alias.asname is None}
    return frozenset(name for name in names if not name.startswith("_"))
