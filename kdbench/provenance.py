"""What a run was made with: commit, packages, machine."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from kdbench.schema import Hardware, Provenance

#: What every run needs.
PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "timm",
    "numpy",
    "scipy",
    "hydra-core",
    "wandb",
)
#: What some runs need.
OPTIONAL = ("open3d", "onedl-mmdetection", "onnx", "onnxruntime")
#: The distributions that bring a package under another name than its own.
_BUILDS = {"open3d": ("open3d", "open3d-cpu")}


def version(package: str) -> str | None:
    """Returns the installed version of a package, or None."""
    for name in _BUILDS.get(package, (package,)):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def provenance(config_digest: str, started: datetime) -> Provenance:
    """Says what the run that ends now was made with.

    Args:
        config_digest: Digest of the whole resolved config.
        started: When the run began, with its time zone.
    """
    packages = {name: found for name in ("kdbench", *PACKAGES, *OPTIONAL) if (found := version(name))}
    commit = _git("rev-parse", "HEAD")
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Provenance(
        commit=commit,
        dirty=None if commit is None else bool(_git("status", "--porcelain")),
        config_digest=config_digest,
        packages=packages,
        hardware=Hardware(cpu=_cpu_model(), cores=cores, gpu=gpu, system=platform.platform()),
        threads=cores if torch is None else torch.get_num_threads(),
        started=started,
        finished=datetime.now(UTC),
    )


def _git(*arguments: str) -> str | None:
    # The checkout that holds this package, not one that merely contains the environment it is installed in.
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


@functools.cache
def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
