"""The step plan: what the plugins of a run ask for, merged and checked once, before training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TypeAlias

from kdbench.errors import KDBenchError, nearest
from kdbench.needs import STUDENT, Role, Stage, State, Update
from kdbench.plugin import Plugin

Weight: TypeAlias = float | Mapping[str, float]

#: What reaches a fixed network's answers, from nothing to everything.
_GRADS = ("none", "input", "params")


@dataclass(frozen=True)
class Schedule:
    """Weight of a term over training: ``value``, reached linearly after a share ``ramp`` of the steps."""

    value: float
    ramp: float = 0.0

    @classmethod
    def of(cls, name: str, weight: Weight) -> Schedule:
        """Reads ``0.5`` or ``{value: 0.5, ramp: 0.1}`` from the configuration."""
        given = weight if isinstance(weight, Mapping) else {"value": weight}
        try:
            return cls(**{key: float(number) for key, number in given.items()})
        except (TypeError, ValueError):
            raise KDBenchError(f"weight of term {name!r} is {weight!r}: expected a number or {{value, ramp}}") from None

    def at(self, progress: float) -> float:
        """Returns the weight at a share of training done."""
        return self.value * min(1.0, progress / self.ramp) if self.ramp > 0 else self.value


@dataclass(frozen=True)
class StepPlan:
    """Updates of a training step with every term and parameter resolved.

    Attributes:
        updates: In order; ``terms`` and ``params`` are never None here.
        schedules: Weight of each term.
    """

    updates: tuple[Update, ...]
    schedules: Mapping[str, Schedule]

    def groups(self, state: State) -> list[list[int]]:
        """Returns the indices of the updates that are due, by group, in order."""
        groups: dict[int, list[int]] = {}
        for index, update in enumerate(self.updates):
            if update.due(state):
                groups.setdefault(update.group, []).append(index)
        return [groups[g] for g in sorted(groups)]

    def weights(self, index: int, progress: float) -> dict[str, float]:
        """Returns the weight of each term of an update at a share of training done; terms that weigh 0 are left out."""
        terms = self.updates[index].terms or {}
        weights = {term: coefficient * self.schedules[term].at(progress) for term, coefficient in terms.items()}
        return {term: weight for term, weight in weights.items() if weight != 0.0}

    def steps(self, members: Iterable[int], batches: int) -> int:
        """Returns how often parameters step in ``batches`` training steps; ``when`` counts as always."""
        periods: dict[int, int] = {}
        for update in (self.updates[i] for i in members):
            period = 1 if update.when is not None else update.every
            periods[update.group] = min(period, periods.get(update.group, period))
        return max(1, sum(-(-batches // period) for period in periods.values()))

    @property
    def single(self) -> bool:
        """Whether one unconditional update on the training batch is all there is."""
        first = self.updates[0]
        return len(self.updates) == 1 and first.every == 1 and first.when is None and first.batch == "train"


def covers(globs: Iterable[str], name: str) -> bool:
    """Says whether a parameter ``owner.path`` is meant by one of the globs; a bare owner means all of its own."""
    return any(fnmatchcase(name, g) or name.startswith(g + ".") for g in globs)


def of_owner(owner: str, glob: str) -> str:
    """Returns a glob of a plugin, in which ``own`` is the plugin itself, by the name of its owner."""
    return owner + glob.removeprefix("own") if glob.split(".")[0] == "own" else glob


def _of_owner(owner: str, globs: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return globs and tuple(of_owner(owner, glob) for glob in globs)


def merge_roles(asked: Mapping[str, Mapping[str, Role]]) -> dict[str, Role]:
    """Returns the union of the roles that plugins ask for, by owner, and the student that every run has.

    Fixed networks keep the graph if anybody asks for it.
    """
    roles: dict[str, Role] = {}
    for owner, own in asked.items():
        for name, role in own.items():
            held = roles.setdefault(name, role)
            if role.mode != "train" and replace(held, grad=role.grad) == role:
                roles[name] = max(held, role, key=lambda r: _GRADS.index(r.grad))
            elif held != role:
                raise KDBenchError(
                    f"{owner} wants role {name!r} as {role}, another plugin of this run as {held}: "
                    "these two do not compose"
                )
    roles.setdefault("student", STUDENT)
    return roles


def merge_stages(plugins: Mapping[str, Plugin]) -> tuple[Stage, ...]:
    """Returns the fits of a run.

    Of several plugins with stages of their own, all but one have the default ``Stage()`` among theirs, which stands for
    the stages of the others: a quantisation with ``Stage(), Stage("quantised", 0.2)`` follows any method. One whose
    stages are all ``alone`` has no others beside it.
    """
    merged: tuple[Stage, ...] = (Stage(),)
    for owner, plugin in reversed([*plugins.items()]):
        own = tuple(
            stage if stage == Stage() else replace(stage, owner=owner, trains=_of_owner(owner, stage.trains))
            for stage in plugin.stages()
        )
        if all(stage.alone for stage in own):
            merged = own
        elif all(stage.alone for stage in merged):
            continue
        elif Stage() in own:
            merged = _put(merged, own)
        elif Stage() in merged:
            merged = _put(own, merged)
        else:
            others = " and ".join(sorted({stage.owner for stage in merged}))
            raise KDBenchError(
                f"{owner} and {others} each bring their own stages: these do not compose, as none of the two has the "
                "default one, in which the other would train"
            )
    return merged


def _put(inner: tuple[Stage, ...], outer: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Puts stages in the place of the default one."""
    place = outer.index(Stage())
    return (*outer[:place], *inner, *outer[place + 1 :])


def make_plan(
    plugins: Mapping[str, Plugin],
    term_names: Mapping[str, Iterable[str]],
    weights: Mapping[str, Mapping[str, Weight]],
    parameters: Iterable[str],
    stage: Stage,
) -> StepPlan:
    """Merges the updates of all plugins and resolves their terms and parameters.

    Args:
        plugins: By owner (``method``, ``augment``, ``quant``).
        term_names: Terms that each owner gave on the probe; those of the owner ``task`` are the supervised ones.
        weights: Configured weight of each term, by owner.
        parameters: ``owner.path`` of every trainable parameter.
        stage: Restricts terms and parameters.

    Raises:
        KDBenchError: A weight for a term that does not exist, a term without weight, an update that names an unknown
            term or no parameter, a trainable parameter that no update covers.
    """
    everything = [t for names in term_names.values() for t in names]
    twice = {t for t in everything if everything.count(t) > 1}
    if twice:
        raise KDBenchError(f"two owners give a term of the same name: {', '.join(sorted(twice))}")
    schedules: dict[str, Schedule] = {name: Schedule(1.0) for name in term_names.get("task", ())}
    for owner, table in weights.items():
        for term, weight in table.items():
            if term == "task" and not term_names.get("task"):
                continue  # a run without labels has no supervised term to weigh
            meant = named_by(term, everything)
            if not meant:
                raise KDBenchError(f"{owner}.weights.{term}: there is no such term: {nearest(term, everything)}")
            own = [t for t in meant if t == term or t not in table]
            schedules |= dict.fromkeys(own, Schedule.of(term, weight))
    missing = [t for t in everything if t not in schedules]
    if missing:
        raise KDBenchError(f"term {missing[0]!r} has no weight: set method.weights.{missing[0]} in its YAML file")
    # A stage knows the terms and parameters of its own plugin and of the task; those of other plugins go on.
    others = set(plugins) - {stage.owner} if stage.owner else set()
    foreign = {t for owner in others for t in term_names.get(owner, ())}
    asked = set(everything) if stage.terms is None else {t for n in stage.terms for t in named_by(n, everything)}
    active = [t for t in everything if (t in asked or t in foreign) and not (stage.alone and t in foreign)]
    parameters = [
        p
        for p in parameters
        if (not stage.alone if p.partition(".")[0] in others else stage.trains is None or covers(stage.trains, p))
    ]
    stepping = {stage.owner: plugins[stage.owner]} if stage.alone else plugins

    updates = [
        u if u.terms is None else replace(u, terms=_expanded(u.terms, everything))
        for u in _merge_updates(stepping, parameters)
    ]
    named = {t for u in updates for t in (u.terms or ())}
    rest = {t: 1.0 for t in active if t not in named}
    resolved: list[Update] = []
    for update in updates:
        terms = rest if update.terms is None else {t: c for t, c in update.terms.items() if t in active}
        params = tuple(p for p in parameters if update.params is None or covers(update.params, p))
        same = Update(terms, params, update.every, update.when, update.group, update.batch, update.modes)
        if not terms or same in resolved:
            continue
        if not params:
            globs = update.params or stage.trains
            raise KDBenchError(f"an update over {', '.join(terms)} reaches no trainable parameter ({globs})")
        resolved.append(same)
    orphans = [p for p in parameters if not any(p in (u.params or ()) for u in resolved)]
    if orphans:
        raise KDBenchError(f"no update trains {orphans[0]} ({len(orphans)} such parameters): give it an owner's update")
    _check_groups(resolved)
    return StepPlan(tuple(resolved), schedules)


def named_by(name: str, terms: Iterable[str]) -> list[str]:
    """Returns the terms that a name stands for: the one of that name, else those of its features (``kd.verb``)."""
    terms = list(terms)
    return [name] if name in terms else [t for t in terms if t.rpartition(".")[0] == name]


def _expanded(terms: Mapping[str, float], everything: Iterable[str]) -> dict[str, float]:
    """Returns the coefficients of an update with every name replaced by the terms that it stands for."""
    found: dict[str, float] = {}
    for name, coefficient in terms.items():
        meant = named_by(name, everything)
        if not meant:
            raise KDBenchError(f"an update names term {name!r}: {nearest(name, everything)}")
        found |= dict.fromkeys(meant, coefficient)
    return found


def _merge_updates(plugins: Mapping[str, Plugin], parameters: list[str]) -> list[Update]:
    """Returns the updates of all plugins, their groups told apart.

    The default update of all that have no other is one. It leaves the parameters of plugins with updates of their own
    to those, and where one of these takes "every term that no other update names", it joins that one's forward for
    what nobody trains.
    """
    own = {
        owner: tuple(replace(u, params=_of_owner(owner, u.params)) for u in plugin.updates())
        for owner, plugin in plugins.items()
        if plugin.updates() != (Update(),)
    }
    updates: list[Update] = []
    for asked in own.values():
        first = max((u.group for u in updates), default=-1) + 1 - min(u.group for u in asked)
        updates += [replace(u, group=u.group + first) for u in asked] if len(own) > 1 else asked
    if len(own) == len(plugins) and plugins:
        return updates
    if not own:
        return [Update()]
    rest = next((u for u in updates if u.terms is None), None)
    if rest is None:
        params = tuple(p for p in parameters if p.partition(".")[0] not in own)
        return [*updates, Update(params=params, group=max(u.group for u in updates) + 1)]
    params = tuple(p for p in parameters if not any(u.params is None or covers(u.params, p) for u in updates))
    return [*updates, replace(rest, params=params)] if params else updates


def _check_groups(updates: Iterable[Update]) -> None:
    firsts: dict[int, Update] = {}
    for update in updates:
        first = firsts.setdefault(update.group, update)
        if (update.batch, update.modes) != (first.batch, first.modes):
            raise KDBenchError(
                f"updates over {', '.join(first.terms or ())} and over {', '.join(update.terms or ())} share group "
                f"{update.group}, so one forward, but not batch and modes: give them different groups"
            )
