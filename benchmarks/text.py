"""What a language model writes with its key-value cache, on one thread."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.report import Row
from benchmarks.turns import alternate
from kdbench.base import rng
from tasks.text.generate import generate
from tasks.text.models import Decoder

WORDS, LENGTH = 68, 64


def generation(rounds: int = 5, repeats: int = 2, batch: int = 64) -> Iterator[Row]:
    """The teacher of the default pair: 10,000 words a second are wished for."""
    model = Decoder(WORDS, LENGTH, width=96, layers=3).eval()
    prompts = torch.zeros(batch, 1, dtype=torch.long)
    threads = torch.get_num_threads()

    def write() -> None:
        generate(model, prompts, LENGTH + 1, rng.generator(0, "benchmark"))

    torch.set_num_threads(1)
    try:
        first, twin = alternate({"generation": write, "twin": write}, rounds, repeats).values()
    finally:
        torch.set_num_threads(threads)
    limit = 1000 * batch * LENGTH / 10_000
    detail = f"{batch} texts of {LENGTH} words, 355 K parameters, one thread"
    yield Row.of("generation of text", "ms", first.blocks, twin.over(first), limit=limit, detail=detail)
