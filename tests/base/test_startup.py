from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest

from kdbench.base.startup import stand_ins
from tests.cli import ROOT

ONCE = """
import gc, sys
from kdbench.base.startup import uncollected

try:
    with uncollected():
        assert not gc.isenabled()
        sys.modules["torch"] = gc  # stands for what a job imports
        1 / 0
except ZeroDivisionError:
    pass
assert gc.isenabled()
frozen = gc.get_freeze_count()
assert frozen > 1000
with uncollected():
    assert gc.isenabled()
assert gc.get_freeze_count() == frozen
"""

IMPORTS = """
import sys
import kdbench.task
import tasks.classification.models, tasks.segmentation.models
assert not {"scipy.signal", "wandb"} & set(sys.modules)
import scipy.signal, wandb
assert len(scipy.signal.windows.hamming(3)) == 3 and wandb.init
"""


@pytest.mark.parametrize("code", [ONCE, IMPORTS])
def test_in_a_process_of_its_own(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_a_stand_in_is_there_for_a_block_and_for_what_is_not_loaded():
    with stand_ins({"mailcap": None, "json": None}):
        assert import_module("json") is json
        with pytest.raises(ModuleNotFoundError):
            import_module("mailcap")
    given: Any = SimpleNamespace()
    with stand_ins({"mailcap": given}):
        assert import_module("mailcap") is given
    assert "mailcap" not in sys.modules
