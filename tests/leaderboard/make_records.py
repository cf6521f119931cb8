"""Records that look like real ones, from a seed: for the tests of the board and to measure it at scale.

python -m tests.leaderboard.make_records /tmp/records --records 100000
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.base.digest import digest
from kdbench.base.outcomes import OUTCOMES, Outcomes, pack
from kdbench.records.record import CONFIG, RUN, content_hash, spec_hash, teacher_of
from kdbench.records.schema import Record

STARTED = datetime(2026, 5, 1, 12, tzinfo=UTC)
KITTI = [
    f"{name}_{view}_{level}"
    for view in ("3d", "bev", "2d")
    for level in ("moderate_r40", "easy_r40", "hard_r40", "moderate_r11", "moderate_all")
    for name in ("map", "pedestrian", "cyclist", "car")
]


@dataclass(frozen=True)
class Domain:
    """A task: its metrics (the first is primary), the scores of teacher and scratch student, noise, directions."""

    name: str
    pairs: tuple[str, ...]
    metrics: tuple[str, ...]
    teacher: float
    scratch: float
    noise: float
    higher: bool = True


DOMAINS = (
    Domain(
        "classification",
        ("resnet32x4_resnet8x4", "wrn40_2_wrn16_2"),
        ("top1", "top5", "worst_class", "nll", "ece", "agreement"),
        79.0,
        72.0,
        0.4,
    ),
    Domain("pointcloud", ("pointpillars_4x", "pointpillars_16x"), tuple(KITTI), 60.0, 53.0, 1.2),
    Domain(
        "segmentation",
        ("deeplab_r50_r18",),
        ("miou", *(f"iou_{i:02}" for i in range(19)), "pixel_accuracy", "boundary_f1"),
        76.0,
        69.0,
        0.6,
    ),
    Domain("hoi", ("agcn_full_agcn_half",), ("macro_f1", "map", "f1_25", "f1_50", "edit"), 82.0, 74.0, 0.8),
    Domain("depth", ("dpt_small",), ("abs_rel", "rmse", "delta1"), 0.1, 0.14, 0.004, higher=False),
)
METHODS = (
    "none",
    "kd",
    "fitnet",
    "at",
    "sp",
    "pkt",
    "rkd",
    "crd",
    "dkd",
    "dist",
    "reviewkd",
    "simkd",
    "vid",
    "nst",
    "ofd",
)


def records(
    count: int, *, seed: int = 0, tasks: int = len(DOMAINS), seeds: int | None = None, specs: int = 200
) -> Iterator[Record]:
    """Yields ``count`` records of ``tasks`` tasks and ``specs`` specifications each, seed by seed.

    Args:
        count: How many.
        seed: Of everything that is drawn.
        tasks: How many tasks.
        seeds: Seeds of one specification; None spreads ``count`` over all of them.
        specs: Specifications of one task.
    """
    rng = np.random.default_rng(seed)
    seeds = seeds or -(-count // (tasks * specs))
    made = 0
    for number in range(specs):
        for domain in DOMAINS[:tasks]:
            spec = _spec(domain, number, seed)
            for run in range(seeds):
                if made == count:
                    return
                yield _record(domain, spec, run, np.random.default_rng([seed, number, run, len(domain.name)]), rng)
                made += 1


def write(out: Path, found: Iterable[Record], outcomes: int = 0) -> int:
    """Writes records and their ``config.yaml`` as ``write_record`` does, but for a power cut.

    Args:
        out: Folder.
        found: The records.
        outcomes: Of every so many specifications with accuracies all records have outcomes; 0 for none.
    """
    made = 0
    for record in found:
        folder = out / record.task / record.method / record.run_id
        folder.mkdir(parents=True, exist_ok=True)
        if outcomes and record.scores and record.primary and record.primary.name == "top1":
            record = _with_outcomes(record, folder) if int(record.spec_hash[:6], 16) % outcomes == 0 else record
        own = config(record)
        done = record.model_copy(update={"teacher": teacher_of(own)})
        done = done.model_copy(update={"content_hash": content_hash(done)})
        (folder / CONFIG).write_text(json.dumps(own))
        (folder / RUN).write_text(done.model_dump_json(indent=1) + "\n")
        made += 1
    return made


def _with_outcomes(record: Record, folder: Path) -> Record:
    """Hits of 1,000 samples, some of which are harder, and the scores that they make."""
    hard = np.random.default_rng(0).random(1000)
    values, scores = {}, dict(record.scores)
    for role, part in record.scores.items():
        found = {name: v for name, v in part.test.items()}
        right = round(10 * (found["top1"] or 0.0))
        noise = np.random.default_rng([record.seed, len(role), int(10 * (found["top1"] or 0.0))]).random(1000)
        hit = np.zeros(1000)
        hit[np.argsort(hard + 0.5 * noise)[:right]] = 1
        values[role] = np.stack([hit, np.ones(1000)], 1)
        scores[role] = part.model_copy(update={"test": found | {"top1": right / 10}})
    content = pack(Outcomes("percent", "made up", values))
    assert content is not None
    (folder / OUTCOMES).write_bytes(content)
    return record.model_copy(update={"scores": scores, "files": {OUTCOMES: sha256(content).hexdigest()}})


def config(record: Record) -> dict[str, Any]:
    """What the record's ``config.yaml`` holds (JSON is YAML)."""
    words = dict(word.split("=") for word in record.command.split()[3:])
    names = {group: getattr(record, group) for group in ("task", "method", "pair", "preset")}
    return _config(names, record.options, int(words["trainer.clip"]), record.seed)


def _config(names: dict[str, str], options: Any, variant: int, seed: int = 0) -> dict[str, Any]:
    groups = {group: {"name": name} for group, name in (names | {"augment": "none", "quant": "none"}).items()}
    groups["method"] |= options
    return {**groups, "teacher": {"seed": 0}, "trainer": {"epochs": 12, "clip": variant}, "seed": seed}


def _spec(domain: Domain, number: int, seed: int) -> dict[str, Any]:
    method = METHODS[number % len(METHODS)]
    variant = number // len(METHODS)
    options: dict[str, Any] = {}
    if method != "none":
        options = {
            "temperature": [4.0, 2.0, 1.0][variant // 4 % 3],
            "faithful": "paper",
            "layers": [1.0, 0.5, 0.25],
            "weights": {"task": 1.0, method: 0.9},
        }
    names = {
        "task": domain.name,
        "method": method,
        "pair": domain.pairs[variant % len(domain.pairs)],
        "preset": "quick" if variant % 4 < 3 else "smoke",
    }
    effect = np.random.default_rng([seed, len(method), ord(method[0]), len(domain.metrics)]).normal(0.25, 0.25)
    return names | {
        "names": names,
        "options": options,
        "trials": 4 if variant % 2 == 0 and method != "none" else 0,
        "variant": variant,
        "effect": float(effect),
        "hash": spec_hash({**_config(names, options, variant), "dataset": digest(domain.name)}),
    }


def _record(
    domain: Domain, spec: dict[str, Any], seed: int, rng: np.random.Generator, luck: np.random.Generator
) -> Record:
    method = spec["method"]
    started = STARTED + timedelta(minutes=7 * seed, seconds=int(luck.integers(0, 10_000_000)))
    wall = float(luck.uniform(20, 200))
    words = {**spec["names"], "trainer.clip": spec["variant"], "seed": seed}
    words |= {"tuning.trials": spec["trials"]} if spec["trials"] else {}
    fields: dict[str, Any] = {
        "networks": {side: {"model_name": f"{spec['pair']}_{side}"} for side in ("teacher", "student")},
        "run_id": f"{spec['hash'][:10]}-s{seed}-{digest([spec['hash'], seed])[:8]}",
        "spec_hash": spec["hash"],
        "code_digest": "85e07c74797a1d84",
        "status": "ok",
        "task": domain.name,
        "method": method,
        "pair": spec["pair"],
        "preset": spec["preset"],
        "seed": seed,
        "options": spec["options"],
        "fidelity": "equations",
        "origin": "measured",
        "command": " ".join(["python -m kdbench", *(f"{key}={value}" for key, value in words.items())]),
        "provenance": {
            "commit": "1c8bf4f2ce0c9295fb53d8be73ac7f891a761711",
            "dirty": False,
            "config_digest": digest(_config(spec["names"], spec["options"], spec["variant"], seed)),
            "packages": {
                "torch": "2.12.1",
                "lightning": "2.6.6",
                "torchmetrics": "1.9.0",
                "timm": "1.0.31",
                "numpy": "2.2.6",
            },
            "hardware": {"cpu": "Intel(R) Xeon(R) Processor", "cores": 2, "system": "Linux-6.18-x86_64-with-glibc2.36"},
            "threads": 1,
            "started": started,
            "finished": started + timedelta(seconds=wall),
        },
    }
    fate = luck.random()
    if fate < 0.03:
        reason = "RuntimeError: no such tap" if fate < 0.02 else "the loss is not finite at step 120"
        return Record.model_validate(fields | {"status": "failed" if fate < 0.02 else "diverged", "reason": reason})
    return Record.model_validate(fields | _results(domain, spec, seed, rng, wall))


def _results(domain: Domain, spec: dict[str, Any], seed: int, rng: np.random.Generator, wall: float) -> dict[str, Any]:
    method, pair = spec["method"], domain.pairs.index(spec["pair"])
    sign = 1 if domain.higher else -1
    # The twin depends on task, pair, preset and seed alone, the teacher not even on the seed.
    twin = np.random.default_rng([seed, pair, len(spec["preset"]), len(domain.metrics)])
    fixed = np.random.default_rng([pair, len(domain.metrics)])
    room = (domain.teacher - domain.scratch) * (1.0 if pair == 0 or domain.name != "pointcloud" else 0.1)
    scratch = domain.scratch + domain.noise * twin.normal()
    student = scratch if method == "none" else scratch + spec["effect"] * room + domain.noise * rng.normal()
    if domain.metrics[0] == "top1":  # of 500 samples
        scratch, student = round(scratch * 5) / 5, round(student * 5) / 5
    gap = sign * (domain.scratch + room - scratch)
    headroom = gap > domain.noise

    def values(primary: float, spread: np.random.Generator) -> dict[str, float]:
        others = primary * spread.uniform(0.5, 1.0, len(domain.metrics) - 1)
        found = dict(zip(domain.metrics, [primary, *others.tolist()], strict=True))
        return found | ({"top5": round(found["top5"] * 5) / 5} if "top5" in found else {})

    twin_scores = values(scratch, twin)
    student_scores = twin_scores if method == "none" else values(student, rng)
    return {
        "flags": [] if headroom else ["no_headroom"],
        "tuning": {
            "trials": 4,
            "factor": 0.3 if domain.higher else 3.0,
            "seed": 1000,
            "scores": {"1": 50.0, "0.3": 51.0, "3": 49.5, "0.1": 50.5},
        }
        if spec["trials"]
        else None,
        "dataset": {
            "name": f"{domain.name}-simulated",
            "embedded": True,
            "digest": digest(domain.name),
            "sizes": {"train": 900, "val": 100, "test": 500},
        },
        "primary": {"name": domain.metrics[0], "higher_is_better": domain.higher},
        "scores": {
            "teacher": {
                "test": values(domain.scratch + room, fixed),
                "best_on_val": values(domain.scratch + room, fixed),
            },
            "scratch": {"test": twin_scores, "best_on_val": twin_scores},
            "student": {"test": student_scores, "best_on_val": student_scores},
        },
        "gap_closed": sign * (student - scratch) / gap if headroom else None,
        "gap_reason": None if headroom else f"teacher - scratch is {gap:.2f}, not above the noise of {domain.noise:g}",
        "cost": {
            "epochs": 12,
            "samples_seen": 10_800,
            "teacher_passes": 0.0 if method == "none" else 1.0,
            "student_passes": 1.0,
            "wall_s": wall,
            "peak_rss_mb": 1000 + 100 * float(rng.random()),
            "added_params": 0 if method in ("none", "kd") else 5248,
        },
        "models": {
            "teacher": {"params": 4_834_888 // (pair + 1), "macs": 2_000_617_472, "bytes": 19_374_864},
            "student": {
                "params": 308_680 // (pair + 1),
                "macs": 141_295_616 // (pair + 1),
                "bytes": 1_251_640 // (pair + 1),
                "latency_ms": 4.8 + float(rng.random()) / 10,
            },
        },
        "terms": {
            "task": {"weight": 1.0, "first": 2.5, "last": 1.25},
            **({} if method == "none" else {method: {"weight": 0.9, "first": 0.5, "last": 0.1}}),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", type=int, default=len(DOMAINS))
    parser.add_argument("--specs", type=int, default=200)
    parser.add_argument("--outcomes", type=int, default=0, metavar="N", help="with outcomes: every Nth specification")
    options = parser.parse_args()
    found = records(options.records, seed=options.seed, tasks=options.tasks, specs=options.specs)
    made = write(options.out, found, options.outcomes)
    print(f"{made} records in {options.out}")


if __name__ == "__main__":
    main()
