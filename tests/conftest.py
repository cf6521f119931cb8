"""Fixtures shared by all tests, and the options that choose the tests of one method or one task."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from kdbench.configuration import config as configuration
from kdbench.errors import nearest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CHOICES = ("method", "task")
# What collection imports and makes lives as long as the process: the collector of cycles would walk through it in vain.
gc.disable()


def pytest_collection_finish() -> None:
    """Sets apart what is there by now, and collects what tests leave."""
    gc.enable()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--method NAME`` and ``--task NAME``: only what tests that method or task."""
    group = parser.getgroup("kdbench")
    for choice in CHOICES:
        group.addoption(f"--{choice}", metavar="NAME", help=f"only the tests of one {choice}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what tests neither the file of the chosen method or task nor a case of that name."""
    for choice in CHOICES:
        name = config.getoption(f"--{choice}")
        if name is None:
            continue
        chosen = [item for item in items if _is_about(item, name)]
        if not any(name in _cases(item) for item in chosen):
            known = {case for item in items for case in _cases(item)} & {*configuration.options(choice)}
            raise pytest.UsageError(f"--{choice}={name}: no test is of it: {nearest(name, known)}")
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


def _cases(item: pytest.Item) -> list[str]:
    """The names that a parametrised test is about."""
    case = getattr(item, "callspec", None)
    return [value for value in case.params.values() if isinstance(value, str)] if case else []


def _is_about(item: pytest.Item, name: str) -> bool:
    folders = item.path.relative_to(Path(__file__).parent).parts
    return item.path.stem == f"test_{name}" or folders[:2] == ("tasks", name) or name in _cases(item)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real data beside the checkout; a test that needs it skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data (small real data that is never committed)")
    return SHARED


@pytest.fixture(scope="session")
def together(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder that the processes of a test run share: what one has made in a store below it, the others find."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if hasattr(request.config, "workerinput") else own
