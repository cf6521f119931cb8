"""Networks that a user names or brings in place of a pair's: ``student=NAME``, ``teacher._target_=package.Class``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kdbench.base.digest import digest
from kdbench.errors import KDBenchError, nearest

SIDES = ("teacher", "student")
#: Option of an architecture that names a network among those that the task can make.
NAME = "model_name"
#: What a pair says of one network, which is not true of another.
_OF_NETWORK = ("architecture", "taps", "kinds", "parts")
#: Of these, what is read inside of it.
_READ = ("taps", "kinds", "parts")
#: What it says of its two networks together.
_OF_PAIR = ("published", "protocol")


def named_taps(side: Mapping[str, Any]) -> dict[str, str]:
    """Returns the taps of a pair's side, those with a star one by one.

    ``layer*: blocks[*]`` is ``layer1: blocks[0]`` and so on, as many as ``architecture.layers`` (or ``depth``) says.

    Raises:
        KDBenchError: There is a star, and neither option.
    """
    taps: dict[str, str] = {}
    architecture = side.get("architecture") or {}
    for name, path in (side.get("taps") or {}).items():
        if "*" not in name:
            taps[name] = path
            continue
        layers = architecture.get("layers", architecture.get("depth"))
        if not isinstance(layers, int):
            raise KDBenchError(
                f"pair: taps.{name}={path}: a star is each layer, and the architecture does not say how many there are "
                "(layers or depth): name each tap"
            )
        taps |= {name.replace("*", str(n + 1)): path.replace("*", str(n)) for n in range(layers)}
    return taps


def _key(key: str) -> tuple[str, str] | None:
    """Returns the side whose network an override changes, and the key that says it best."""
    for side in SIDES:
        if key in (side, f"{side}.{NAME}", f"pair.{side}.architecture.{NAME}"):
            return side, f"{side}.{NAME}"
        if key in (f"{side}._target_", f"pair.{side}.architecture._target_"):
            return side, f"{side}._target_"
    return None


def _cleared(side: str) -> list[str]:
    """Returns the overrides that take away what the pair says of the network of a side."""
    of_side = [f"++pair.{side}.{key}=null" for key in _OF_NETWORK]
    return [*of_side, *(f"++pair.{key}=null" for key in _OF_PAIR)]


def own_networks(overrides: Sequence[str]) -> list[str]:
    """Puts before overrides that name another network the ones that take away what the pair says of its own."""
    cleared: dict[str, None] = {}
    sides = set()
    found = []
    for override in overrides:
        key, sign, value = override.partition("=")
        changed = None if value.startswith("{") else _key(key.lstrip("+"))
        if changed:
            sides.add(changed[0])
            cleared |= dict.fromkeys(_cleared(changed[0]))
            override = f"++{changed[1]}{sign}{value}"
        found.append(override)
    emptied = tuple(f"pair.{side}.{key}." for side in sides for key in _OF_NETWORK)
    found = [f"++{each}" if each.startswith(emptied) else each for each in found]
    # In a sweep Hydra keeps one override of a key, so that what is cleared is given under another one.
    whole = tuple(f"pair.{side}.{key}={{" for side in sides for key in _READ)
    return [*cleared, *("++" + each.removeprefix("pair.") if each.startswith(whole) else each for each in found)]


def as_given(overrides: Iterable[str]) -> list[str]:
    """Turns the result of :func:`own_networks` into what a user would write."""
    cleared = {each for side in SIDES for each in _cleared(side)}
    names = {f"++{side}.{NAME}": side for side in SIDES}
    names |= {f"++{side}.{key}": f"pair.{side}.{key}" for side in SIDES for key in _READ}
    split = [override.partition("=") for override in overrides if override not in cleared]
    return [names.get(key, key) + sign + value for key, sign, value in split]


def resolve(pair: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]], task: Any) -> dict[str, Any]:
    """Gives a pair the user's own options and networks.

    Args:
        pair: As it is composed.
        own: Options of the user's, by side.
        task: Returns the class of the task, which knows what can be tapped of a network by its name.
    """
    found = {**pair, **{side: {**pair[side]} for side in SIDES if pair.get(side)}}
    named = {}
    for side, values in own.items():
        found[side] |= {key: values[key] for key in _READ if key in values}
        options = {key: value for key, value in values.items() if key not in _READ}
        architecture = found[side]["architecture"] = {**(found[side]["architecture"] or {}), **options}
        if NAME in architecture and "_target_" not in architecture:
            named[side] = architecture
    if named:
        other = next((found[side] for side in SIDES if side not in named), None)
        for side, made in task().networks(named, other).items():
            given = {key: found[side].get(key) or {} for key in _READ}
            found[side] = made | {key: {**made.get(key, {}), **value} for key, value in given.items()}
    if named or any("_target_" in options for options in own.values()):
        found = {key: value for key, value in found.items() if key not in _OF_PAIR}
        found["name"] = "_".join(_label(found[side]["architecture"]) for side in SIDES)
    return found


def own_options(side: str, values: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Returns what a user says of a network beside the keys of its role.

    Raises:
        KDBenchError: One is a mistyped key of the role.
    """
    known = tuple(known)
    own = {key: value for key, value in values.items() if key not in known}
    for key in own:
        if difflib.get_close_matches(key, known, 1, 0.75):
            raise KDBenchError(f"{side}.{key}: unknown key: {nearest(key, known)}")
    return own


def architectures(pair: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns what makes the networks of a pair, by side."""
    return {side: dict(pair[side]["architecture"]) for side in SIDES}


def identity(networks: Mapping[str, Mapping[str, Any]]) -> str:
    """Names networks for a reader, with a digest that tells all that differ apart."""
    said = " → ".join(_described(networks[side])[:60] for side in SIDES if side in networks)
    return f"{said} #{digest(networks, 6)}"


def names_networks(override: str) -> bool:
    """Whether a word of a command names a network, of which the pair then says nothing."""
    return _key(override.partition("=")[0].lstrip("+")) is not None


def _described(architecture: Mapping[str, Any]) -> str:
    options = (f"{k}={v}" for k, v in architecture.items() if k not in ("_target_", NAME))
    return " ".join([_label(architecture), *options])


def _label(architecture: Mapping[str, Any]) -> str:
    return str(architecture.get(NAME) or architecture["_target_"].rpartition(".")[2])
