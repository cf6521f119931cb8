"""What a run was made with: commit, packages, machine."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdbench.base.machine import cores
from kdbench.configuration.config import GROUPS, folder
from kdbench.records.schema import Hardware, Provenance

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
OPTIONAL = ("open3d", "onedl-mmdetection", "onnx", "onnxruntime", "torchao", "openvino")
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


def provenance(config_digest: str, started: datetime, files: Iterable[Path] = ()) -> Provenance:
    """Says what the run that ends now was made with.

    Args:
        config_digest: Digest of the whole resolved config.
        started: When the run began, with its time zone.
        files: What the run read beside the modules that are loaded: its YAML.
    """
    packages = {name: found for name in ("kdbench", *PACKAGES, *OPTIONAL) if (found := version(name))}
    commit = _git("rev-parse", "HEAD")
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
    return Provenance(
        commit=commit,
        dirty=None if commit is None else _dirty(files),
        config_digest=config_digest,
        packages=packages,
        hardware=Hardware(cpu=_cpu_model(), cores=cores(), gpu=gpu, system=platform.platform()),
        threads=cores() if torch is None else torch.get_num_threads(),
        started=started,
        finished=datetime.now(UTC),
    )


def files_of(config: Mapping[str, Any]) -> list[Path]:
    """Lists the YAML files of the package that a resolved configuration was composed of."""
    root, found = folder(), []
    task, data = config["task"]["name"], config["data"].get("name")
    common = {task, *(f"{name}_{config['preset']['name']}" for name in (task, data))}
    named = {group: {part["name"], *common} for group in GROUPS if "name" in (part := config.get(group, {}))}
    for path in sorted(root.rglob("*.yaml")):
        parts = path.relative_to(root).parts
        shared = parts[0] not in named or any(part[0] == "_" for part in parts)  # may be a part of an option
        if parts[0] == "experiment" or not (shared or {path.stem, _name_in(path)} & named[parts[0]]):
            continue
        found.append(path)
    return found


def _name_in(path: Path) -> str | None:
    found = re.search(r"^name: *([^ #\n]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found and found[1]


def _dirty(files: Iterable[Path]) -> bool:
    """Tells whether something else ran than the commit has: a tracked file differs, or an untracked one was loaded."""
    if _git("status", "--porcelain", "--untracked-files=no"):
        return True
    root, tracked = _root(), set((_git("ls-files", "-z") or "").split("\0"))
    modules = [Path(name) for module in [*sys.modules.values()] if (name := getattr(module, "__file__", None))]
    folders = {folder: folder.resolve() for folder in {file.parent for file in modules}}  # of thousands of modules
    near = (file for file in modules if folders[file.parent].is_relative_to(root))
    # torch.ops and torch.classes name files that are not there.
    loaded = (file.resolve() for file in (*near, *files) if file.is_file())
    own = (file.relative_to(root) for file in loaded if file.is_relative_to(root))
    installed = {"site-packages", "dist-packages"}  # of an environment within the checkout
    return any(file.as_posix() not in tracked for file in own if installed.isdisjoint(file.parts))


def _root() -> Path:
    return Path(__file__).resolve().parents[2]


def _git(*arguments: str) -> str | None:
    # The checkout that holds this package, not one that merely contains the environment it is installed in.
    root = _root()
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
