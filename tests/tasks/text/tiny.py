"""A grammar of a few short texts and a decoder for it; texts about four topics and an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdbench.base.store import Store
from tasks.text.answers import QuestionAnswering
from tasks.text.canaries import CanaryText
from tasks.text.classes import TextClassification
from tasks.text.task import Text

GRAMMAR = {"texts": 60, "test": 8, "length": 12}
NET: dict[str, Any] = {"_target_": "tasks.text.models.Decoder", "width": 8, "layers": 2, "heads": 2}
TAPS = {"first": "blocks[0]", "last": "norm", "pooled": "norm"}


def task(folder: Path, **options: Any) -> Text:
    """The task on it."""
    given = {"name": "grammar", "task": "text", "source": "grammar", "grammar": GRAMMAR, "batch_size": 4}
    return Text({**given, **options}, Store(folder))


TOPICS = {"texts": 60, "test": 20, "length": 9, "topics": 4}
ENCODER: dict[str, Any] = {"_target_": "tasks.text.models.Encoder", "width": 8, "layers": 2, "heads": 2, "dropout": 0.0}
#: All layers of either network.
LAYER_TAPS = {"layer*": "blocks[*]", "heads*": "blocks[*].attention.split"}
ENCODER_TAPS = {"first": "blocks[0]", "last": "norm", "pooled": "head:input"}


def classification(folder: Path, **options: Any) -> TextClassification:
    """The task on texts about topics."""
    given = {"name": "topics", "task": "text", "source": "topics", "topics": TOPICS, "batch_size": 4}
    return TextClassification({**given, **options}, Store(folder), None)


def canaries(folder: Path, **options: Any) -> CanaryText:
    """The task on texts that hold secrets."""
    secrets = {"digits": 2, "times": [1, 5]}
    given = {"name": "canaries", "task": "text", "source": "canaries", "grammar": GRAMMAR, "canaries": secrets}
    return CanaryText({**given, "batch_size": 4, **options}, Store(folder))


KGQA: dict[str, Any] = {"people": 6, "relations": 2, "questions": [12, 24], "test": [10, 10]}


def questions(folder: Path, **options: Any) -> QuestionAnswering:
    """The task on questions over a graph."""
    given = {"name": "kgqa", "task": "text", "source": "kgqa", "kgqa": KGQA, "batch_size": 8}
    return QuestionAnswering({**given, **options}, Store(folder), None)
