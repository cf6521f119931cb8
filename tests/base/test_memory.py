from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from kdbench.base.memory import _glibc

SCRIPT = """
import json, resource
import psutil, torch
from kdbench.base.memory import give_back, keep_freed

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    return sum(float(t[0]) for t in [torch.ones(2**20) for _ in range(32)])

kept = keep_freed()
for _ in range(3):
    step()
before = faults()
for _ in range(5):
    step()
each = (faults() - before) / 5
held = psutil.Process().memory_info().rss
give_back()
print(json.dumps({"kept": kept, "faults": each, "released": held - psutil.Process().memory_info().rss}))
"""


def run(**environment: str) -> dict[str, float]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | environment
    found = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True)
    return json.loads(found.stdout)


@pytest.mark.skipif(_glibc() is None, reason="the C library is not glibc")
def test_freed_memory_is_kept_for_the_next_step_unless_the_environment_says_otherwise():
    """32 tensors of 4 MiB are 32,768 pages of 4 KiB."""
    kept = run()
    assert kept["kept"]
    assert kept["faults"] < 1000
    assert kept["released"] > 100 * 2**20, "give_back() returns it"
    own = run(MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")
    assert not own["kept"]
    assert own["faults"] > 30_000
