"""What a further student costs beyond its training: imports, composition, rehearsal, scores, picture, record."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.report import Row

#: One after another, teacher and scratch twin of all of them are in the cache.
METHODS = ("dkd", "nkd", "ttm", "lskd", "dist", "pkt")
#: Trainings as short as they can be: what is measured does not depend on their length.
SHORT = ("trainer.epochs=1", "trainer.val_every=1", "teacher.trainer.epochs=1", "trainer.threads=1")
#: Seconds that a student may cost beyond its training.
LIMIT = 4.0


def cpu(arguments: Sequence[str]) -> tuple[float, float]:
    """Runs Python in a process of its own.

    Returns:
        Seconds of processors that it and its children took, and those that passed.

    Raises:
        RuntimeError: It failed.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    after, passed = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(arguments)} ends with {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}"
        )
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, passed


def beyond(arguments: Sequence[str], results: Path) -> float:
    """Returns the seconds of processors that a run or a sweep takes beyond the trainings of its students."""
    known = set(results.rglob("run.json"))
    taken, passed = cpu(["-m", "kdbench", *arguments])
    records = [json.loads(path.read_text(encoding="utf-8")) for path in set(results.rglob("run.json")) - known]
    # A record says how long a training took; on a busy machine that is more than what it took of the processors.
    return taken - sum(record["cost"]["wall_s"] for record in records) * min(1.0, taken / passed)


def startup(data: Sequence[str] = ("digits", "glyphs"), rounds: int = 3) -> Iterator[Row]:
    """A further student of each data set, as a run of its own and as a further job of a worker of joblib's."""
    torch, _ = cpu(["-c", "import torch"])
    for name in data:
        with tempfile.TemporaryDirectory(prefix="kdbench-bench-") as folder:
            results = Path(folder, "results")
            common = ["task=classification", f"data={name}", *SHORT, f"results={results}", f"cache={folder}/cache"]
            cpu(["-m", "kdbench", *common, "method=kd"])
            alone = [beyond([*common, f"method={method}"], results) for method in METHODS[:rounds]]
            sweep = ["-m", *common, "hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]
            short = beyond([*sweep, f"method={METHODS[0]}"], results)  # which has its record
            long = beyond([*sweep, f"method={','.join([METHODS[0], *METHODS[rounds:]])}"], results)
        further = (long - short) / len(METHODS[rounds:])
        yield Row.of(
            f"a further student of {name}, beyond its training",
            "s",
            alone,
            [value / statistics.median(alone) for value in alone],
            limit=LIMIT,
            detail=f"of the processors, {torch:.1f} s of them to import torch; a further job of a sweep takes "
            f"{further:.1f} s more",
        )
