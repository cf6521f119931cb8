"""The ready sweeps: each composes, and the command in its first comment starts it."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.configuration.resolved import resolve
from kdbench.errors import KDBenchError
from kdbench.matrix import cells

FILES = sorted((config.folder() / "experiment").glob("*.yaml"))


def arguments(path: Path) -> list[str]:
    """What follows ``python -m kdbench`` below the header of the file, with a folder for PATH."""
    header, command = path.read_text().splitlines()[:2]
    assert header == "# @package _global_"  # Hydra reads it in the first line alone
    assert command.startswith("# python -m kdbench -m "), command
    return shlex.split(command.replace("PATH", "/data"))[4:]


@cache
def jobs(path: Path) -> list[list[str]]:
    """The overrides of each job, as Hydra's own sweeper makes them from the command."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    given = arguments(path)[1:]
    with config._initialized():
        loader: ConfigLoader = GlobalHydra.instance().config_loader()
        composed = loader.load_configuration("config", given, run_mode=RunMode.MULTIRUN)
        params = OmegaConf.to_container(composed.hydra.sweeper.params)
        assert isinstance(params, dict)
        own = [o for o in given if not o.startswith("hydra")]
        parsed = OverridesParser.create(loader).parse_overrides([f"{k!s}={v}" for k, v in params.items()] + own)
        (batch,) = BasicSweeper.split_arguments(parsed, None)
    return batch


def test_there_are_experiments() -> None:
    assert {path.stem for path in FILES} >= {"pointcloud", "classification", "cifar100_same", "cifar100_cross", "smoke"}
    assert config.options("experiment") == [path.stem for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_command_of_an_experiment_starts_it(path: Path) -> None:
    given = arguments(path)
    assert given[:2] == ["-m", f"experiment={path.stem}"]
    config.choices(given[1:], sweep=True)
    composed = config.load([o for o in given[1:] if not o.startswith("hydra")])
    assert composed["method"]["name"]


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_kind_of_job_of_an_experiment_composes(path: Path, tmp_path: Path) -> None:
    batch = jobs(path)
    assert len({tuple(job) for job in batch}) == len(batch)
    said = re.search(r"(\d+) runs", path.read_text())
    assert said is None or int(said[1]) == len(batch)
    green = {(c.task, c.name) for c in cells() if c.axis == "method" and c.ok}
    recipes = {p.stem for p in (config.folder() / "recipe").rglob("*.yaml")}
    for job in batch:
        chosen = dict(o.split("=", 1) for o in job)
        if (chosen["task"], chosen["method"]) not in green:  # of data whose task is another one
            resolve(config.load(job), Store(tmp_path))
        others = set(job) - set(batch[0])
        # A method of which nothing is set, here or by a recipe, is composed with its task in tests/test_matrix.py.
        plain = not any(key.startswith("method.") for key in chosen)
        plain &= not any(recipe.startswith(f"{chosen['task']}_{chosen['method']}") for recipe in recipes)
        if len(others) <= 1 and not (plain and others == {f"method={chosen['method']}"}):  # each value of each choice
            composed = config.load(job)
            names = {group: composed[group]["name"] for group in ("task", "method", "preset", "data")}
            assert chosen.items() >= {k: v for k, v in names.items() if k in chosen}.items()
            assert composed["tuning"]["trials"] == int(chosen.get("tuning.trials", 0))


def test_the_smoke_experiment_is_forty_runs_of_two_tasks() -> None:
    batch = jobs(config.folder() / "experiment" / "smoke.yaml")
    assert len(batch) == 40
    assert len({o for job in batch for o in job if o.startswith("task=")}) == 2


@pytest.mark.parametrize("table", ["classification", "digits"])
def test_a_classification_table_has_every_method(table: str) -> None:
    batch = jobs(config.folder() / "experiment" / f"{table}.yaml")
    methods = {o.removeprefix("method=") for job in batch for o in job if o.startswith("method=")}
    green = {c.name for c in cells() if (c.axis, c.task, c.ok) == ("method", "classification", True)}
    # A released run in one word is a form of a method that the table has.
    released = {name for name in green if name.endswith("_released")}
    assert methods == green - released
    assert {name.removesuffix("_released") for name in released} <= methods


def test_the_command_line_narrows_an_experiment() -> None:
    narrowed = config.expanded(["experiment=cifar100_same", "pair=resnet56_resnet20", "method=none,kd", "seed=0"])
    assert narrowed[-4:] == ["experiment=cifar100_same", "pair=resnet56_resnet20", "method=none,kd", "seed=0"]
    assert {"task=classification", "data=cifar100", "preset=paper"} == set(narrowed[:-4])
    composed = config.load(config.first(narrowed))
    assert (composed["pair"]["name"], composed["method"]["name"]) == ("resnet56_resnet20", "none")
    assert config.expanded(["task=classification"]) == ["task=classification"]
    with pytest.raises(KDBenchError, match="one experiment"):
        config.expanded(["experiment=smoke,pointcloud"])


def test_what_a_search_sweeps_over_is_checked_by_its_first_value() -> None:
    overrides = ["method.temperature=interval(2,8)", "seed=range(3,5)", "method=glob(k*)", "task=classification"]
    assert config.first(overrides) == ["method.temperature=2.0", "seed=3", "method=kd", "task=classification"]
    with pytest.raises(KDBenchError, match="choice"):
        config.first(["student.init_from=choice(null,/nowhere)"])
