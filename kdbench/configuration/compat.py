"""Compatibility: what a plugin needs against what a task and a pair can give, from class facts and configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdbench.errors import KDBenchError, nearest
from kdbench.needs import Bindings, Need, kind_names, serves
from kdbench.plugin import Method, Plugin
from kdbench.task import Task


def bind(
    plugin: type[Plugin],
    task: Task | type[Task],
    pair: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    without: Mapping[str, str] | None = None,
    absent: frozenset[str] = frozenset(),
) -> Bindings:
    """Binds every need of a plugin to features that all of its roles give.

    A need binds to the feature of its own name where the kind fits, else to the last (deepest) feature of its kind, or
    of the first of its kinds that is there; with ``many``, ``each`` or a ``pyramid`` to all of them. ``overrides``
    (``method.bind`` in the configuration) come first. ``without`` are the capabilities that another plugin of the run
    removes, with its owner; ``absent`` roles that this training does not have, and with them the needs that ask for
    them.

    Raises:
        KDBenchError: The task lacks a capability or the pair a feature or part: one line that says which.
    """
    lacking = plugin.requires - task.capabilities
    if lacking:
        raise KDBenchError(f"{plugin.__name__} requires {', '.join(sorted(lacking))}, which task {task.name} lacks")
    taken = sorted(plugin.requires & (without or {}).keys())
    if taken:
        owner = (without or {})[taken[0]]
        raise KDBenchError(
            f"{plugin.__name__} requires {taken[0]}, which {owner}= takes from the batches: leave one of them out"
        )
    overrides = dict(overrides or {})
    unknown = set(overrides) - {need.name for need in plugin.needs}
    if unknown:
        options = [need.name for need in plugin.needs]
        raise KDBenchError(f"method.bind.{min(unknown)}: unknown need: {nearest(min(unknown), options)}")
    for part in plugin.parts:
        for role in [r for r in part.roles if r not in absent]:
            if part.name not in (_side(plugin, role, pair).get("parts") or {}):
                raise KDBenchError(f"{plugin.__name__} calls the part {part.name!r}, which {_pair(pair)} does not name")
    needs = [need for need in plugin.needs if not absent.intersection(need.roles)]
    return {need.name: _bind(need, plugin, task, pair, overrides.get(need.name)) for need in needs}


def _bind(
    need: Need, plugin: type[Plugin], task: Task | type[Task], pair: Mapping[str, Any], override: str | list[str] | None
) -> str | list[str]:
    sides = {plugin.roles[role].side: _side(plugin, role, pair) for role in need.roles}
    kinds, *others = (task.kinds(sides[name]) for name in sorted(sides))
    able = task.capabilities
    fitting = [n for n, k in kinds.items() if all(n in g and serves(g[n], need, able) for g in (kinds, *others))]
    if override is not None:
        names = [override] if isinstance(override, str) else list(override)
        for name in names:
            if name not in fitting:
                expected = f"a {kind_names(need)} of {_pair(pair)}"
                raise KDBenchError(f"method.bind.{need.name}={name}: expected {expected}: {nearest(name, fitting)}")
        if not names or (len(names) > 1 and not (need.many or need.each or need.pyramid)):
            raise KDBenchError(
                f"method.bind.{need.name}={override}: found {len(names)} features, {plugin.__name__} reads one: "
                f"take one of {', '.join(fitting)}"
            )
        return names if need.many else names[0] if len(names) == 1 else names
    if not fitting:
        raise KDBenchError(
            f"{plugin.__name__} needs {kind_names(need)} ({need.name!r}), which task {task.name} with {_pair(pair)} "
            f"does not give: it gives {', '.join(f'{n} ({k.__name__})' for n, k in kinds.items()) or 'nothing'}"
        )
    if need.many or (need.each and len(fitting) > 1) or (need.pyramid and "pyramid" in able):
        return fitting
    if need.name in fitting:
        return need.name
    for kind in need.kind if isinstance(need.kind, tuple) else (need.kind,):
        of_kind = [name for name in fitting if issubclass(kinds[name], kind)]
        if of_kind:
            return of_kind[-1]
    raise AssertionError("a fitting feature is of one of the kinds")


def _side(plugin: type[Plugin], role: str, pair: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the entry of the pair whose network a role has."""
    side = pair.get(plugin.roles[role].side)
    if not isinstance(side, Mapping):
        raise KDBenchError(
            f"{plugin.__name__} needs a {plugin.roles[role].side!r} beside teacher and student, which "
            f"{_pair(pair)} does not name"
        )
    return side


def _pair(pair: Mapping[str, Any]) -> str:
    return f"pair {pair['name']}"


def no_replay(plugin: type[Plugin]) -> str:
    """Says why a plugin cannot do with stored answers of its frozen networks; empty where it can."""
    frozen = {name: role for name, role in plugin.roles.items() if role.mode == "frozen" and role.init == "trained"}
    for name, role in frozen.items():
        if role.grad != "none":
            return f"it takes gradients through the {name}"
        if plugin.raw:
            return f"it reads what the {name} says itself, of which features alone are stored"
        called = next((part.name for part in plugin.parts if name in part.roles), None)
        if called is not None:
            return f"it calls the {called} of the {name}"
    if plugin.views is not Plugin.views and (frozen or not issubclass(plugin, Method)):
        return "it changes what is read, and answers are stored for the views of training samples alone"
    return ""
