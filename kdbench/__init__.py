"""Knowledge distillation in any domain, on one protocol: teacher, student alone, student with the teacher.

What an author of a method, an augmentation, a quantised student or a task writes against is imported from here::

    from kdbench import Batch, Context, Logits, Method, Need, Signals, Task

``kdbench.run("task=classification", "method=dkd")`` does a run, ``kdbench.load(run)`` returns what it trained.

Names are looked up when they are first used, so that ``import kdbench`` and ``--help`` load no torch.
"""

import importlib

__version__ = "0.1.0"

# By text and not by import statements, also because what decides a product is found by following those.
_HOMES = {
    "kdbench.api": ("load", "run"),
    "kdbench.errors": ("KDBenchError",),
    "kdbench.features": (
        "Activated",
        "Boxes",
        "Edges",
        "Feature",
        "Grid",
        "Heads",
        "Kind",
        "Last",
        "Layer",
        "Levels",
        "Logits",
        "Nodes",
        "Points",
        "Tokens",
        "Values",
        "Vector",
    ),
    "kdbench.needs": (
        "PEER",
        "STUDENT",
        "TEACHER",
        "Artifact",
        "Asked",
        "Bindings",
        "Need",
        "Part",
        "Role",
        "Stage",
        "State",
        "Update",
        "Views",
    ),
    "kdbench.plugin": ("Method", "Plugin"),
    "kdbench.optim": ("Optimization",),
    "kdbench.records.record": ("read_record",),
    "kdbench.roles.cast": ("Cast",),
    "kdbench.roles.sources": ("Network",),
    "kdbench.signals": ("Context", "Signals"),
    "kdbench.task": ("Batch", "Counts", "DatasetInfo", "ExportPlan", "Task"),
    "kdbench.training.distiller": ("Distiller",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
