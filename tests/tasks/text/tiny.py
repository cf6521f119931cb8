"""A grammar of a few short texts, and a decoder for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdbench.base.store import Store
from tasks.text.task import Text

GRAMMAR = {"texts": 60, "test": 8, "length": 12}
NET: dict[str, Any] = {"_target_": "tasks.text.models.Decoder", "width": 8, "layers": 2, "heads": 2}
TAPS = {"first": "blocks[0]", "last": "norm", "pooled": "norm"}


def task(folder: Path, **options: Any) -> Text:
    """The task on it."""
    given = {"name": "grammar", "task": "text", "source": "grammar", "grammar": GRAMMAR, "batch_size": 4}
    return Text({**given, **options}, Store(folder))
