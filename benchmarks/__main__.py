"""``python -m benchmarks [name ...] [--json FILE]``: measures, prints a table, and fails where a limit is missed."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks import (
    augment,
    augmentor,
    detection,
    engine,
    hoi,
    integers,
    methods,
    pointcloud,
    segmentation,
    startup,
    text,
)
from benchmarks.report import MISSED, Row, as_json, machine, table
from kdbench.base.terminal import terminal

BENCHMARKS: dict[str, Callable[[], Iterable[Row]]] = {
    "overhead": engine.overhead,
    "throughput": engine.throughput,
    "replay": engine.replay,
    "accuracy": engine.accuracy,
    "segmentation": segmentation.segmentation,
    "detection": detection.detection,
    "hoi": hoi.attention,
    "generation": text.generation,
    "pillars": pointcloud.pillars,
    "detectors": pointcloud.detectors,
    "nms": pointcloud.nms,
    "evaluation": pointcloud.evaluation,
    "pointdistiller": pointcloud.pointdistiller,
    "methods": methods.methods,
    "augment": augment.augmentations,
    "int8": integers.latency,
    "augmentor": augmentor.augmentor,
    "startup": startup.startup,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the named benchmarks, all by default.

    Returns:
        1 where a limit is missed by more than the null pair differs, else 0.
    """
    parser = argparse.ArgumentParser("python -m benchmarks", description="Speed and memory against their limits.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the figures there too")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}: there are {', '.join(BENCHMARKS)}")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    console = terminal()
    host = machine()
    cores = "{cpu}, {cores} cores, {threads} threads, load {load}, Python {python}, torch {torch}"
    console.print(cores.format(**host))
    rows: list[Row] = []
    start = time.perf_counter()
    for name in options.names or BENCHMARKS:
        began = time.perf_counter()
        rows += BENCHMARKS[name]()
        console.print(f"{name}: done after {time.perf_counter() - began:.0f} s")
    total = time.perf_counter() - start
    console.print(table(rows))
    missed = [row.name for row in rows if row.verdict == MISSED]
    console.print(f"{len(missed)} limits missed; {total:.0f} s in all")
    if options.json:
        text = json.dumps({"machine": host, "seconds": round(total), "rows": as_json(rows)}, indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
