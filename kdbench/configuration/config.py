"""Configuration: found, composed and checked before anything heavy is imported."""

from __future__ import annotations

import copy
import functools
import operator
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from kdbench.base.instantiate import locate
from kdbench.configuration.keys import (
    ChoiceConfig,
    Config,
    CorpusConfig,
    OwnerConfig,
    SideConfig,
    StudentConfig,
    TaskConfig,
    TeacherConfig,
    TrainerConfig,
    TwinConfig,
)
from kdbench.configuration.network import SIDES, as_given, own_networks, own_options, resolve
from kdbench.configuration.overrides import WHOLE, at_home, by_key, in_place, one_by_one, without_old_options, written
from kdbench.configuration.packages import entries, file_of, folder, without_yaml
from kdbench.errors import KDBenchError, nearest

#: Config groups of which an option is chosen.
GROUPS = ("task", "data", "pair", "method", "augment", "quant", "preset", "trainer", "logger", "experiment")

#: Mappings whose keys the YAML does not list; whoever reads them checks the names.
_OPEN = (
    *WHOLE,
    "student",  # may become a network of the user's own
    "teacher",
    "trainer.optimizers",
    "data.transforms",
    "data.simulator",
    "data.names",
    "task.thresholds",
    "*.bind",
)


# Pydantic alone would take true for 1, '1' for 1 and nan for a number, which a record or its check refuses at the end.
#: What stands beside a ``_target_`` without being an option of what it names.
_BESIDE_TARGETS = {
    "task": TaskConfig.model_fields,
    **dict.fromkeys(("method", "augment", "quant"), OwnerConfig.model_fields),
}


class _ThirdPartyConf(SearchPathPlugin):
    """Appends the YAML of other packages (entry-point group ``kdbench.conf``)."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for entry in entries():
            search_path.append(provider=f"kdbench:{entry.name}", path=f"pkg://{entry.value}")


def register() -> None:
    """Registers the search path of other packages and the resolver of unique names with Hydra; idempotent."""
    if _ThirdPartyConf not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(_ThirdPartyConf)
    OmegaConf.register_new_resolver("kdbench_unique", lambda: uuid.uuid4().hex[:6], use_cache=True, replace=True)


def options(group: str) -> list[str]:
    """Lists the options of a config group, those of other packages included."""
    register()
    with _initialized():
        loader = GlobalHydra.instance().config_loader()
        return sorted(o for o in loader.get_group_options(group) if not o.startswith("_"))


def option(group: str, name: str) -> dict[str, Any]:
    """Composes one option of a config group alone, its interpolations left as they are."""
    path = file_of(group, name)
    text = path.read_text(encoding="utf-8") if path else ""
    if text and not re.search(r"^(defaults:|# *@package)", text, re.MULTILINE):  # all that Hydra would read
        return dict(OmegaConf.to_container(OmegaConf.create(text)))  # type: ignore[arg-type]
    with _initialized():
        composed = OmegaConf.to_container(compose(f"{group}/{name}"))
    assert isinstance(composed, dict)
    found: dict[str, Any] = composed[group]
    return found


def load(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Composes and checks a configuration as the command line does.

    Raises:
        KDBenchError: An override is wrong; the line names the nearest fix.
    """
    register()
    return check(_composed(in_place(at_home(overrides))))


def composed(overrides: Sequence[str]) -> tuple[DictConfig, DictConfig]:
    """Composes a configuration as the command line does, once.

    Returns:
        The keys of the run, and what Hydra itself goes by.

    Raises:
        KDBenchError: An override is wrong; the line names the nearest fix.
    """
    found = _composed(overrides, hydra=True)
    own = found.hydra
    with open_dict(found):
        del found["hydra"]
    return found, own


def calls_only(own: DictConfig) -> bool:
    """Says whether Hydra, by what it goes by, would do nothing for a job but call it."""
    job, sets_up = own.job, (own.output_subdir, own.job_logging.root, own.hydra_logging.root)
    here = own.run.dir == "." and not job.chdir and not any(sets_up)
    quiet = not own.verbose and not job.env_set and list(own.callbacks) == ["kdbench"]
    return bool(own.mode in (None, RunMode.RUN) and here and quiet)


def _composed(overrides: Sequence[str], hydra: bool = False) -> DictConfig:
    try:
        _opened.cache_clear()  # files may have changed since
        _chosen.cache_clear()
        with_open = opened(overrides)
        found = _changed(with_open)
        if found is None:
            with _initialized():
                found = compose("config", overrides=with_open, return_hydra_config=True)
        if not hydra:
            with open_dict(found):
                del found["hydra"]
        return found
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise explain(error, overrides) from None


def opened(overrides: Sequence[str]) -> list[str]:
    """Lets overrides add keys where the YAML does not list them all, so that nobody has to write ``++``.

    These are mappings with a ``_target_`` (a signature knows its keys) and those of :data:`_OPEN`. Another ``_target_``
    comes without the options of the one before.
    """
    return list(_opened(tuple(overrides)))


@functools.lru_cache(maxsize=1)  # the command line is opened when it is checked, and when it goes to Hydra
def _opened(given: tuple[str, ...]) -> list[str]:
    overrides = own_networks(one_by_one(given))
    nested = [o for o in overrides if "." in o.partition("=")[0] and o[0].isalpha()]
    if not nested:
        return list(overrides)
    composed = _chosen(tuple(first([o for o in overrides if o not in nested and o[0].isalpha()])))
    found = []
    for override in without_old_options(overrides, composed, _BESIDE_TARGETS):
        key, _, value = override.partition("=")
        if override not in nested:
            found.append(override)
        elif value.startswith("{") and any(fnmatchcase(key, pattern) for pattern in WHOLE):
            found += [f"++{key}=null", f"++{override}"]  # Hydra alone would merge
        else:
            is_open = not key.startswith("hydra.") and _is_open(composed, key.split("."))
            found.append(f"++{override}" if is_open else override)
    return found


@functools.lru_cache(maxsize=1)  # a sweep's first job and the whole of it choose the same
def _chosen(overrides: tuple[str, ...]) -> DictConfig:
    """Composes the chosen options as they are, before any key of theirs is changed, with what Hydra itself goes by."""
    with _initialized():
        return compose("config", overrides=list(overrides), return_hydra_config=True)


def _changed(overrides: Sequence[str]) -> DictConfig | None:
    """Changes keys of the chosen options, which :func:`opened` has composed; None where Hydra is to compose anew."""
    parsed = _parsed(overrides)
    keys = [o for o in parsed if "." in o.key_or_group]
    choices = [str(o.input_line) for o in parsed if o not in keys]
    owners = {o.key_or_group.partition(".")[0] for o in keys} - {*GROUPS}
    if (
        not keys
        or any(o.is_sweep_override() for o in parsed)
        or any(o.is_add() or o.is_delete() or o.package or o.key_or_group.startswith("hydra") for o in keys)
        or not all(choice[0].isalpha() for choice in choices)
        or any(choice.partition("=")[0] in owners for choice in choices)  # the last of the two counts
    ):
        return None
    found = copy.deepcopy(_chosen(tuple(choices)))
    try:
        for override in keys:
            value = override.value()
            if type(value) is int and isinstance(OmegaConf.select(found, override.key_or_group), float):
                value = float(value)  # 4 and 4.0 are one specification
            OmegaConf.update(found, override.key_or_group, value, force_add=override.is_force_add())
    except OmegaConfBaseException:  # in Hydra's words
        return None
    # Where jobs have folders of their own, named by their overrides, Hydra composes each of them itself.
    found.hydra.overrides.task = [o.input_line for o in parsed if not o.is_hydra_override()]
    return found


def _is_open(composed: DictConfig, path: Sequence[str]) -> bool:
    node: Any = composed
    for key in path:
        if not isinstance(node, DictConfig):
            return False
        if key not in node:
            above = [".".join(path[:depth]) for depth in range(1, len(path) + 1)]
            return "_target_" in node or any(fnmatchcase(a, pattern) for a in above for pattern in _OPEN)
        node = node[key]
    return False


def first(overrides: Sequence[str]) -> list[str]:
    """Returns the overrides of the first job of a sweep.

    Raises:
        KDBenchError: One cannot be read.
    """
    return [
        f"{o.get_key_element()}={_sample(o)}" if o.is_sweep_override() else str(o.input_line)
        for o in _parsed(overrides)
    ]


def each_choice(overrides: Sequence[str]) -> None:
    """Composes a sweep with each further choice on which the keys given depend, before its first job starts.

    Raises:
        KDBenchError: One of them has no such key.
    """
    parsed, start = _parsed(overrides), first(overrides)
    given = {o.key_or_group.partition(".")[0] for o in parsed if "." in o.key_or_group}
    for place, override in enumerate(parsed):
        group = override.key_or_group
        if override.is_sweep_override() and group in GROUPS and (group in given or (group == "task" and given)):
            for choice in [*override.sweep_string_iterator()][1:]:  # with the first the sweep was composed
                _composed([*start[:place], f"{group}={choice}", *start[place + 1 :]])


def _parsed(overrides: Sequence[str]) -> list[Override]:
    try:
        with _initialized():
            parser = OverridesParser.create(GlobalHydra.instance().config_loader())
            return parser.parse_overrides(list(overrides))
    except HydraException as error:
        raise explain(error) from None


def _sample(override: Override) -> Any:
    value = override.value()
    return value.start if isinstance(value, IntervalSweep) else next(override.sweep_string_iterator())


def expanded(overrides: Sequence[str]) -> list[str]:
    """Puts what an experiment sweeps over (its ``hydra.sweeper.params``) before the overrides, which win.

    Raises:
        KDBenchError: Several experiments, which would each have parameters of their own.
    """
    chosen = [o for o in overrides if o.startswith("experiment=")]
    if not chosen:
        return list(overrides)
    if any(set(o) & set(",(*") for o in chosen):
        raise KDBenchError(f"{' '.join(chosen)}: a sweep follows one experiment; start one after the other")
    with _initialized():
        swept = compose("config", overrides=chosen, return_hydra_config=True).hydra.sweeper.params or {}
    own = {o.partition("=")[0].lstrip("+~") for o in overrides}
    return [*(f"{key}={value}" for key, value in swept.items() if key not in own), *overrides]


def check(composed: DictConfig) -> dict[str, Any]:
    """Resolves a composed configuration, checks its types and applies networks of the user's own.

    Raises:
        KDBenchError: A value has the wrong type, or a data option or pair belongs to another task.
    """
    keys = _keys(composed)
    _check_targets(keys, "")
    config = _validated(Config, keys)
    _validated(TaskConfig, config["task"], "task.")
    for choice in ("pair", "preset", "logger"):
        _validated(ChoiceConfig, config[choice], f"{choice}.")
    for group in ("data", "pair"):
        owner = config[group].get("task")
        if owner not in (None, config["task"]["name"]):
            raise KDBenchError(
                f"{group}={config[group].get('name')} belongs to task {owner}, not to {config['task']['name']}: "
                f"leave {group}= out for this task's own"
            )
    for owner in ("method", "augment", "quant"):
        _validated(OwnerConfig, config[owner], f"{owner}.")
    _validated(OwnerConfig, config["teacher"]["augment"], "teacher.augment.")
    _check_taught(config["teacher"])
    for side in SIDES:
        _validated(SideConfig, config["pair"].get(side) or {}, f"pair.{side}.")
        config[side]["trainer"] = _own_trainer(f"{side}.trainer", config["trainer"], config[side]["trainer"])
    if config["pair"].get("twin"):
        twin = _validated(TwinConfig, config["pair"]["twin"], "pair.twin.")["trainer"]
        of_student = {**config["trainer"], **config["student"]["trainer"]}
        config["pair"]["twin"] = {"trainer": _own_trainer("pair.twin.trainer", of_student, twin)}
    config["teacher"]["corpus"] = _corpus(config["teacher"]["corpus"])
    if config["teacher"]["data"]:
        config["teacher"]["data"] = _merged(config["data"], config["teacher"]["data"])
    own: dict[str, dict[str, Any]] = {}
    for side, fields in (("teacher", TeacherConfig.model_fields), ("student", StudentConfig.model_fields)):
        own[side] = own_options(side, config[side], fields)
        config[side] = {key: value for key, value in config[side].items() if key in fields}
    config["pair"] = resolve(
        config["pair"], {k: v for k, v in own.items() if v}, lambda: locate(config["task"]["_target_"])
    )
    for side in SIDES:
        _validated(SideConfig, config["pair"].get(side) or {}, f"pair.{side}.")
    if config["role"] is not None and "_target_" in config["method"]:
        raise KDBenchError(f"role={config['role']} trains one role alone and goes with method=none")
    trials, factors = config["tuning"]["trials"], config["tuning"]["factors"]
    if trials > len(factors):
        raise KDBenchError(f"tuning.trials={trials}: there are {len(factors)} in tuning.factors: give it more")
    return config


def _keys(composed: DictConfig) -> dict[str, Any]:
    """Returns the keys of a run with their interpolations resolved."""
    try:
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise explain(error) from None
    assert isinstance(plain, dict)
    keys = {str(k): v for k, v in plain.items() if k not in ("hydra", "experiment", "recipe")}
    if "pair" not in keys:
        name = (keys.get("data") or {}).get("name")
        raise KDBenchError(f"data={name} names no pair: its YAML says '- /pair@_global_.pair: NAME' under defaults")
    return keys


def _check_targets(values: Mapping[str, Any], prefix: str) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping):
            _check_targets(value, f"{prefix}{key}.")
        elif key == "_target_" and "." not in str(value).strip("."):
            raise KDBenchError(f"{prefix}_target_={value}: expected package.module.Name, e.g. torch.optim.SGD")


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    nested = {k for k in over if isinstance(over[k], Mapping) and isinstance(base.get(k), Mapping)}
    return {**base, **over, **{k: _merged(base[k], over[k]) for k in nested}}


def _validated(model: type[BaseModel], values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    try:
        return model.model_validate(values).model_dump()
    except ValidationError as error:
        found = error.errors()[0]
        where, message = prefix + ".".join(map(str, found["loc"])), found["msg"][0].lower() + found["msg"][1:]
        if found["type"] == "extra_forbidden":
            raise KDBenchError(f"{where}: unknown key: {nearest(str(found['loc'][-1]), model.model_fields)}") from None
        raise KDBenchError(f"{where}={found['input']}: {message}") from None


def _corpus(given: Mapping[str, Any]) -> dict[str, Any]:
    """Completes what the teacher is to write; nothing stays nothing."""
    return _validated(CorpusConfig, given, "teacher.corpus.") if given else {}


def _check_taught(teacher: Mapping[str, Any]) -> None:
    """Checks that what the teacher's training is under can be chosen, and that there is one."""
    own = teacher["augment"]
    if "_target_" not in own:
        if own.keys() > {"name"} or own["name"] != "none":
            raise KDBenchError(
                f"teacher.augment={own}: it names no augmentation: teacher.augment=mixup, then its options"
            )
        return
    given = next((key for key in ("init_from", "answers") if teacher[key]), None)
    if given:
        raise KDBenchError(
            f"teacher.augment={own['name']} is of the training of a teacher, and teacher.{given} gives one: leave one "
            "of them out"
        )


def _own_trainer(where: str, common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Completes a role's own overrides of the trainer: an optimizer without ``_target_`` is the common one, changed."""
    merged = {
        k: {**common.get(k, {}), **v} if isinstance(v, Mapping) and "_target_" not in v else v for k, v in own.items()
    }
    checked = _validated(TrainerConfig, {**common, **merged}, f"{where}.")
    return {k: checked[k] for k in own}


def one_device(config: Mapping[str, Any]) -> None:
    """Checks a job of a sweep whose jobs run side by side on one machine.

    Raises:
        KDBenchError: It asks for several devices.
    """
    for where in (("trainer",), ("teacher", "trainer"), ("student", "trainer")):
        found = functools.reduce(operator.getitem, where, config).get("devices", 1)
        if found > 1:
            raise KDBenchError(
                f"{'.'.join(where)}.devices={found}: a local sweep gives each job one device: run this without -m, or "
                "with hydra/launcher=submitit_slurm"
            )


def choices(overrides: Iterable[str], sweep: bool) -> None:
    """Checks the chosen option of every group before Hydra composes, so that the error names the nearest.

    Raises:
        KDBenchError: A group has no such option.
    """
    for override in overrides:
        group, found, value = override.partition("=")
        group = group.partition("@")[0]
        if not found or group not in GROUPS or value[:1] in "[{$" or "(" in value:
            continue
        known = options(group)
        if "," in value and not sweep:
            raise KDBenchError(f"{override}: several take a sweep: python -m kdbench -m {override} …")
        for name in value.split(","):
            if name not in (*known, "null"):
                raise no_such(group, name, known)


def no_such(group: str, name: str, known: Iterable[str]) -> KDBenchError:
    """Says what there is in place of an option, and which other package brought no YAML that might hold it."""
    return KDBenchError(f"{group}={name}: there is no such {group}: {nearest(name, known)}{without_yaml()}")


def explain(error: Exception, overrides: Sequence[str] = ()) -> KDBenchError:
    """Turns an error of Hydra or OmegaConf about ``overrides`` into one line with the nearest fix."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        lines = [line for line in text.splitlines() if not line.startswith("See ")]
        if lines[-1].strip() == "^":  # it points at the line above
            lines.append(f"{lines[-2][len(lines[-1]) - 1 :][:1]!r} cannot stand there")
        return KDBenchError(f"{error.override}: {lines[-1]}; expected {written(str(error.override))}")
    ambiguous = re.match(r"Ambiguous value for argument '(.*)'\n", text)
    if ambiguous:
        return KDBenchError(
            f"{ambiguous[1]}: commas part the jobs of a sweep: python -m kdbench -m …; expected {written(ambiguous[1])}"
        )
    cause = error.__cause__
    if cause is not None and "not in struct" in str(cause):
        text = str(cause)
    missing = re.search(r"Could not find '([^']+)'", text)
    if isinstance(error, MissingConfigException) and missing:
        group, _, name = missing[1].rpartition("/")
        return no_such(group, name, options(group))
    unknown = re.search(r"Key '([^']+)' is not in struct\s+full_key: (\S+)", text)
    if unknown:
        return KDBenchError(f"{unknown[2]}: unknown key: {_siblings(unknown[2], unknown[1], overrides)}")
    return KDBenchError(" ".join(line.strip() for line in text.splitlines() if line.strip())[:400])


def _siblings(full_key: str, key: str, overrides: Sequence[str]) -> str:
    """Says what stands beside an unknown key under the options that were chosen."""
    top, parent = full_key.partition(".")[0], full_key.rpartition(".")[0]
    chosen = [o for o in one_by_one(overrides) if o.partition("=")[0] in GROUPS]
    with _initialized():
        composed = compose("config", overrides=chosen, return_hydra_config=True)
    node = OmegaConf.select(composed, parent) if parent else composed
    names = [str(k) for k in node if k != "hydra"] if isinstance(node, DictConfig) else []
    option = composed.hydra.runtime.choices.get(top)
    where = f" ({top}={option})" if parent and option else ""
    return nearest(key, names) + where if names else "python -m kdbench --cfg job lists every key"


def _initialized() -> Any:
    GlobalHydra.instance().clear()
    return initialize_config_dir(str(folder()), version_base="1.3", job_name="kdbench")


def command_line(overrides: Sequence[str]) -> str:
    """Returns the command that makes this run again; where results and products lie is left to whoever runs it."""
    import shlex

    given = [o for o in by_key(as_given(overrides)) if not o.startswith(("results=", "cache="))]
    return " ".join(["python -m kdbench", *(shlex.quote(o) for o in given)])
