"""How a process ends: by a signal, with one line and no record, or with the process that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: What is said of a run that a signal ended.
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

#: Seconds in which a signal that comes again is the same one: a terminal or ``timeout`` may send it twice.
_AGAIN = 2.0

#: Seconds in which a signal to the whole group reaches this process after it ended a loader worker.
LATE = 0.2

#: ``PR_SET_PDEATHSIG`` of Linux's prctl.
_PDEATHSIG = 1

#: The handlers of this process, which Lightning's training would cover with its own.
_handlers: dict[signal.Signals, Callable[[int, FrameType | None], None] | signal.Handlers] = {}


class Ended(SystemExit):
    """A signal ends this process."""


class _Signals:
    """What this process received."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.first: int | None = None
        self.since = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.owner:  # a child that was forked and has no handler of its own yet
            os._exit(128 + number)
        if self.first is not None:
            if time.monotonic() - self.since > _AGAIN:
                os._exit(128 + number)
            return
        self.first, self.since = number, time.monotonic()
        # That loader workers ended too is no error now.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        raise Ended(128 + number)


_received: _Signals | None = None


@contextmanager
def signals() -> Iterator[None]:
    """Lets SIGINT and SIGTERM raise :class:`Ended` during a block, at once also where Lightning would wait."""
    global _received
    _received = _Signals()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in (*WORDS, signal.SIGCHLD)}
    for number in WORDS:
        if before[number] in (signal.SIG_DFL, signal.default_int_handler):  # else nohup's or a launcher's
            _handlers[number] = _received
    claim()
    try:
        yield
    finally:
        _handlers.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def claim() -> None:
    """Sets the handlers of this process again, after another one took their place."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in _handlers.items():
            signal.signal(number, handler)


def received() -> int | None:
    """Returns the signal that ended the last block of :func:`signals`."""
    return _received.first if _received else None


def check(patience: float = 0.0) -> None:
    """Raises :class:`Ended` if a signal came: whatever error was met since is its consequence.

    Args:
        patience: Seconds to wait for one.
    """
    time.sleep(patience)
    if (number := received()) is not None:
        raise Ended(128 + number) from None


def follow(parent: int, terminates: bool = True) -> None:
    """Makes this process end with the one that started it; Ctrl-C is for that one alone.

    Args:
        parent: Its process id.
        terminates: Whether SIGTERM ends this process at once; else what is set stays.
    """
    _handlers[signal.SIGINT] = signal.SIG_IGN
    if terminates:
        _handlers[signal.SIGTERM] = _leave
    claim()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _leave(number: int, frame: Any) -> None:
    os._exit(128 + number)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
