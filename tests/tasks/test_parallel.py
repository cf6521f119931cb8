from __future__ import annotations

import os
import signal

import pytest

from kdbench.errors import KDBenchError
from tasks import parallel
from tasks.parallel import mapped


def squared(value: int) -> tuple[int, int]:
    return value**2, os.getpid()


def killed(value: int) -> int:
    if value == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def test_results_come_in_order_from_several_processes():
    found, processes = zip(*mapped(squared, range(20), "squares", workers=2, chunk=3, progress=False), strict=True)
    assert found == tuple(value**2 for value in range(20))
    assert os.getpid() not in processes


def test_one_worker_is_this_process():
    found = dict(mapped(squared, range(3), "squares", workers=1, progress=False))
    assert found == dict.fromkeys((0, 1, 4), os.getpid())


def test_a_killed_process_is_one_line():
    with pytest.raises(KDBenchError, match="squares: a process was killed"):
        list(mapped(killed, range(4), "squares", workers=2, progress=False))


def test_a_worker_of_joblib_starts_no_processes(monkeypatch):
    """Its start method is its own; children that inherit it cannot start."""
    monkeypatch.setattr(parallel.multiprocessing, "get_start_method", lambda allow_none=False: "loky")
    monkeypatch.setattr(parallel, "ProcessPoolExecutor", lambda *_, **__: pytest.fail("a pool was started"))
    assert [value for value, _ in mapped(squared, range(3), "squares", workers=2, progress=False)] == [0, 1, 4]
