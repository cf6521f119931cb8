"""Overrides as text, ``key=value`` in Hydra's grammar, and what they mean here beyond what Hydra makes of them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

#: Mappings of names of the user's own that ``{…}`` on the command line replaces instead of adding to them.
WHOLE = ("pair.*.taps", "pair.*.kinds", "pair.*.parts")


def at_home(overrides: Sequence[str]) -> list[str]:
    """Expands a ``~`` that begins a value: the shell leaves it there, and Hydra's grammar refuses it."""
    split = [override.partition("=") for override in overrides]
    return [
        key + sign + (os.path.expanduser(value) if value == "~" or value.startswith("~/") else value)
        for key, sign, value in split
    ]


#: Keys at which an option of a group of another name stands, by the name that Hydra has for them.
_PLACES = {"teacher.augment": "augment@teacher.augment"}


def in_place(overrides: Iterable[str]) -> list[str]:
    """Writes ``teacher.augment=NAME`` as Hydra writes that an option of ``augment`` stands there."""
    split = [override.partition("=") for override in overrides]
    return [(key if value.startswith("{") else _PLACES.get(key, key)) + sign + value for key, sign, value in split]


def by_key(overrides: Iterable[str]) -> list[str]:
    """Turns the result of :func:`in_place` into what a user would write."""
    keys = {place: key for key, place in _PLACES.items()}
    split = [override.partition("=") for override in overrides]
    return [keys.get(key, key) + sign + value for key, sign, value in split]


def one_by_one(overrides: Sequence[str]) -> list[str]:
    """Writes ``key={a: 1, b: 2}`` as ``key.a=1 key.b=2``, which changes those and leaves what stands beside them.

    Raises:
        HydraException: Such a value cannot be read.
    """
    found: list[str] = []
    for override in overrides:
        key, _, value = override.partition("=")
        if value.startswith("{") and key[:1].isalpha() and not key.startswith("hydra"):
            (parsed,) = OverridesParser.create().parse_overrides([override])
            found += [override] if parsed.is_sweep_override() else _leaves(key, parsed.value())
        else:
            found.append(override)
    return found


def _leaves(key: str, value: Any) -> Iterator[str]:
    own_names = any(fnmatchcase(key, pattern) for pattern in WHOLE)
    if isinstance(value, Mapping) and value and not own_names and not any("." in str(k) for k in value):
        for name, below in value.items():
            yield from _leaves(f"{key}.{name}", below)
    else:
        yield f"{key}={Override._get_value_element_as_str(value)}"


def without_old_options(
    overrides: Sequence[str], composed: DictConfig, kept: Mapping[str, Collection[str]]
) -> list[str]:
    """Takes the options of what a ``_target_`` of the command line replaces away before those that are given.

    Args:
        overrides: One by one.
        composed: What they change.
        kept: By key, what stands beside a ``_target_`` without being an option of it.
    """
    found = list(overrides)
    for override in overrides:
        key, _, value = override.partition("=")
        owner, _, last = key.rpartition(".")
        ours = owner[:1].isalpha() and not owner.startswith("hydra.")
        node = OmegaConf.select(composed, owner) if last == "_target_" and ours else None
        if not isinstance(node, DictConfig) or node.get("_target_") == value:
            continue
        given = {o.partition("=")[0].removeprefix(f"{owner}.").partition(".")[0]: o for o in found if _below(o, owner)}
        old = [name for name in map(str, node) if name in given or name not in kept.get(owner, ())]
        # Null also where another job of a sweep has other options there.
        removed = [f"~{owner}.{name}" for name in old] if owner in kept else [f"++{owner}=null"]
        place = found.index(next(o for o in found if _below(o, owner)))
        found = [f"++{o}" if _below(o, owner) else o for o in found]
        found[place:place] = removed
    return found


def _below(override: str, owner: str) -> bool:
    return override.startswith(f"{owner}.")


def written(override: str) -> str:
    """Returns how an override that Hydra's grammar refuses is to be written in a shell, as far as that can be told."""
    key, sign, value = override.partition("=")
    if value.startswith(("{", "[")):  # most often the shell has split it at its blanks
        return f"'{key}={'{name: value, …}' if value[0] == '{' else '[value, …]'}', in single quotes"
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    quoted = f"{key}='{escaped}'"
    try:
        OverridesParser.create().parse_overrides([quoted])
    except HydraException:
        return "key=value"
    if not sign:
        return "key=value"
    return shlex.quote(quoted) if set('"$`!\\') & set(quoted) else f'"{quoted}"'
