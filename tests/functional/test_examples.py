from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

from kdbench import functional


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(functional.__path__)])
def test_every_module_has_examples_that_hold(name):
    found = doctest.testmod(importlib.import_module(f"kdbench.functional.{name}"))
    assert found.attempted > 0
    assert found.failed == 0
