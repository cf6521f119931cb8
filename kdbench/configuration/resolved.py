"""A configuration resolved once: the task and, of every plugin, class, options, bindings, weights and optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.base.instantiate import instantiate, locate
from kdbench.base.store import Store
from kdbench.configuration.network import named_taps
from kdbench.errors import KDBenchError

if TYPE_CHECKING:
    from kdbench.needs import Bindings
    from kdbench.plugin import Plugin
    from kdbench.task import Task

#: Who composes a run: whose configuration may name a plugin, in the order in which their views are made.
OWNERS = ("augment", "quant", "method")

#: Keys of a plugin's configuration that the engine reads; the others are the plugin's own options.
ENGINE_KEYS = frozenset({"name", "weights", "bind", "optimizer", "optimizers"})


@dataclass(frozen=True)
class PluginSpec:
    """A plugin as a configuration asks for it.

    Attributes:
        owner: Whose configuration names it: ``method``, ``augment`` or ``quant``.
        given: That configuration, which recipes are keyed by.
        plugin: Its class.
    """

    owner: str
    given: Mapping[str, Any]
    plugin: type[Plugin]

    @classmethod
    def of(cls, owner: str, given: Mapping[str, Any]) -> PluginSpec:
        """Finds the class of a configuration.

        Raises:
            KDBenchError: There is none, or it is no plugin.
        """
        from kdbench.plugin import Plugin

        plugin = locate(given["_target_"])
        if not (isinstance(plugin, type) and issubclass(plugin, Plugin)):
            raise KDBenchError(f"{owner}._target_={given['_target_']}: expected a subclass of kdbench.plugin.Plugin")
        return cls(owner, given, plugin)

    @property
    def weights(self) -> Mapping[str, Any]:
        """Configured weight of each term."""
        return self.given.get("weights") or {}

    @property
    def optimizers(self) -> dict[str, Mapping[str, Any]]:
        """Optimizers by the glob of parameters that they step, the plugin's own as ``own``."""
        own = self.given.get("optimizer")
        return {**(self.given.get("optimizers") or {}), **({"own": own} if own else {})}

    def make(self) -> Plugin:
        """Creates the plugin with its options; its initial values come from torch's global generator."""
        made: Plugin = instantiate(self.owner, {k: v for k, v in self.given.items() if k not in ENGINE_KEYS})
        return made

    def bind(
        self,
        task: Task | type[Task],
        pair: Mapping[str, Any],
        others: Mapping[str, PluginSpec] | None = None,
        absent: frozenset[str] = frozenset(),
    ) -> Bindings:
        """Binds the needs of the plugin to what a task gives with a pair.

        Args:
            task: The task.
            pair: Its pair.
            others: All plugins of the run, which may remove capabilities.
            absent: Roles of the plugin that a training does not have.

        Raises:
            KDBenchError: Something that it needs is not there: one line that says what.
        """
        from kdbench.configuration.compat import bind

        removed = {name: o for o, spec in (others or {}).items() if o != self.owner for name in spec.plugin.takes(task)}
        return bind(self.plugin, task, pair, self.given.get("bind"), removed, absent)


def plugin_specs(config: Mapping[str, Mapping[str, Any]]) -> dict[str, PluginSpec]:
    """Returns the plugins of a run by owner, in the order of their views."""
    named = {owner: config.get(owner) or {} for owner in OWNERS}
    return {owner: PluginSpec.of(owner, given) for owner, given in named.items() if given.get("_target_")}


@dataclass(frozen=True)
class Resolved:
    """What a run is made of.

    Attributes:
        config: The configuration, checked and without interpolations.
        task: The task, its data not opened yet.
        plugins: By owner.
        store: Where products live.
        taught: By owner, what the pair's teacher alone is trained under (``teacher.augment``).
    """

    config: Mapping[str, Any]
    task: Task
    plugins: Mapping[str, PluginSpec]
    store: Store
    taught: Mapping[str, PluginSpec] = field(default_factory=dict)


def resolve(config: Mapping[str, Any], store: Store | None = None) -> Resolved:
    """Makes the task of a configuration, finds its plugins and checks that they fit.

    Args:
        config: The configuration, checked.
        store: Where products live; by default where the configuration says.

    Raises:
        KDBenchError: A class cannot be found, or what a plugin needs is not there.
    """
    store = store or store_of(config)
    plugins = plugin_specs(config)
    task = make_task(config, store)
    config = {**config, "pair": _tapped(config["pair"])}
    for spec in plugins.values():
        spec.bind(task, config["pair"], plugins)
    taught = plugin_specs({"augment": config["teacher"]["augment"]})
    for spec in taught.values():
        spec.bind(task, config["pair"])
        trained = next((name for name, role in spec.plugin.roles.items() if role.init == "trained"), None)
        if trained is not None:
            raise KDBenchError(
                f"teacher.augment={spec.given['name']} takes a trained {trained}, which the training of the teacher "
                "has not: choose one that needs none"
            )
    return Resolved(config, task, plugins, store, taught)


def _tapped(pair: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a pair whose taps are all named."""
    sides = {name: side for name, side in pair.items() if isinstance(side, Mapping) and side.get("taps")}
    return {**pair, **{name: {**side, "taps": named_taps(side)} for name, side in sides.items()}}


def store_of(config: Mapping[str, Any]) -> Store:
    """Returns the store that a configuration names."""
    return Store(Path(config["cache"]) if config["cache"] else None)


def make_task(config: Mapping[str, Any], store: Store) -> Task:
    """Makes the task of a configuration."""
    options = {k: v for k, v in config["task"].items() if k != "name"}
    task: Task = instantiate("task", options, data=config["data"], store=store)
    return task
