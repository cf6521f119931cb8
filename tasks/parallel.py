"""Work over all cores, with progress."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from typing import TypeVar

from rich.progress import track

from kdbench.base.machine import cores
from kdbench.errors import KDBenchError

Item = TypeVar("Item")
Made = TypeVar("Made")


def mapped(
    function: Callable[[Item], Made],
    items: Sequence[Item],
    message: str,
    *,
    workers: int | None = None,
    chunk: int = 1,
    progress: bool = True,
) -> Iterator[Made]:
    """Applies a function to items in several processes.

    Args:
        function: Of a module's top level, or a ``partial`` of one.
        items: Its arguments.
        message: Beside the progress bar.
        workers: Processes, one a core by default; 1 works in this one.
        chunk: Items that a process takes at once.
        progress: Whether to show a bar.

    Yields:
        The results in the order of the items.

    Raises:
        KDBenchError: A process was killed.
    """
    workers = min(workers or cores(), len(items))
    with ExitStack() as stack:
        done: Iterator[Made] = map(function, items)
        # A worker of joblib has a start method of its own, which children that it starts do not know.
        known = (None, *multiprocessing.get_all_start_methods())
        if workers > 1 and multiprocessing.get_start_method(allow_none=True) in known:
            # Not fork: the parent may run threads (Lightning, BLAS) that a forked child would wait for.
            context = multiprocessing.get_context("forkserver")
            pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=context))
            done = pool.map(function, items, chunksize=chunk)
        try:
            yield from track(done, message, total=len(items), disable=not progress)
        except BrokenProcessPool:
            raise KDBenchError(f"{message}: a process was killed (out of memory?)") from None
