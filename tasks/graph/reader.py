"""A reader as a teacher: what is said of every node by its text alone, as a table for ``teacher.answers``.

    python -m tasks.graph.reader FILE.safetensors [--knows SHARE] [data.labels=1 …]
    python -m tasks.graph.reader FILE.safetensors --guesses cora_llm.npz data=cora data.root=DIR

Of the made-up papers the reader knows the laws by which words were drawn, of a share of the words where it is told so.
Of others it is a language model whose guesses were written down: ``ranks`` ``(N, K)``, classes best first, -1 for none,
in an ``.npz``; the guess at place r has the weight 0.02 + 1 / r², a class that was not guessed 0.02. LinguGKD ("Large
Language Model Meets Graph Neural Network in Knowledge Distillation", 2024) distils the hidden states of a tuned
language model too, which are not published.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from kdbench.configuration import config
from kdbench.configuration.resolved import make_task, store_of
from kdbench.errors import KDBenchError, printable, reading
from tasks.graph.citations import WORDS, Citations, law
from tasks.graph.data import Opened
from tasks.graph.task import GraphTask

#: Weight of a class that was not guessed.
REST = 0.02


def made_up(opened: Opened, knows: float = 1.0) -> np.ndarray:
    """Returns the law ``(N, K)`` of a reader of the made-up papers.

    Args:
        opened: The papers.
        knows: Share of the words that it knows; others it does not see.

    Raises:
        KDBenchError: The papers are not made up.
    """
    if opened.graph.law is None:
        raise KDBenchError(f"{opened.graph.name} is not made up: give the guesses of a reader by --guesses FILE.npz")
    options = Citations(**opened.options.citations)
    order = np.random.default_rng([options.seed, 3]).random(WORDS)
    words = opened.graph.words.copy()
    words.data = words.data * (order[words.indices] < knows)
    words.eliminate_zeros()
    return law(options, words)


def guessed(opened: Opened, path: Path) -> np.ndarray:
    """Returns the law ``(N, K)`` of guesses in their order.

    Raises:
        KDBenchError: The file does not hold them, or is of other nodes.
    """
    with reading(path):
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {key: file[key] for key in ("ranks", "y") if key in file.files}
        except (ValueError, EOFError) as error:
            raise KDBenchError(f"{printable(path)}: no .npz of plain arrays ({error})") from None
    ranks, graph = found.get("ranks"), opened.graph
    count, classes = len(graph), len(graph.classes)
    if ranks is None or ranks.ndim != 2 or len(ranks) != count or not -1 <= ranks.min() <= ranks.max() < classes:
        shown = "nothing" if ranks is None else str(ranks.shape)
        raise KDBenchError(f"{printable(path)}: ranks are {shown}, expected ({count}, K) of -1 to {classes - 1}")
    if "y" in found and not np.array_equal(found["y"], graph.labels):
        raise KDBenchError(
            f"{printable(path)}: its labels are not those of {graph.name}: the nodes are in another order"
        )
    weights = np.full((count, classes), REST)
    node, place = np.nonzero(ranks >= 0)
    np.add.at(weights, (node, ranks[node, place]), 1 / (place + 1.0) ** 2)
    return weights / weights.sum(1, keepdims=True)


def main(arguments: list[str] | None = None) -> int:
    """Writes the table and prints how often the reader is right."""
    parser = argparse.ArgumentParser("python -m tasks.graph.reader", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="what is written")
    parser.add_argument("--guesses", type=Path, help="an .npz of ranked guesses")
    parser.add_argument("--knows", type=float, default=1.0, help="share of the words that the made-up reader knows")
    parser.add_argument("overrides", nargs="*", help="data=… and its options")
    given = parser.parse_intermixed_args(arguments)
    try:
        composed = config.load(["task=graph", *given.overrides])
        task = make_task(composed, store_of(composed))
        assert isinstance(task, GraphTask)
        opened = task.opened
        found = guessed(opened, given.guesses) if given.guesses else made_up(opened, given.knows)
        ids = opened.ids(np.arange(len(opened.graph)))
        with reading(given.file):
            save_file(
                {"ids": torch.from_numpy(ids), "outputs": torch.from_numpy(np.log(found).astype(np.float32))},
                given.file,
            )
    except KDBenchError as error:
        print(error, file=sys.stderr)
        return 1
    right = found.argmax(1) == opened.graph.labels
    said = {"tran": right[opened.tran], "cold": right[opened.cold]}
    print(f"{given.file}: {', '.join(f'{name} {100 * x.mean():.2f} %' for name, x in said.items() if len(x))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
