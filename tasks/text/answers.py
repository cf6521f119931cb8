"""Language models that answer questions of several hops, and what their answers are worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.task import Batch, move
from tasks.text.base import spelled
from tasks.text.kgqa import ASKED, HOPS, Graph, Questions, opened, said
from tasks.text.language import LanguageModel
from tasks.text.sequences import NONE, Said, given_words

#: Answers that are drawn to a question for ``pass_k``, and k.
DRAWN, OF = 8, 4


class Exact(Metric):
    """How many questions are answered, by their hops.

    ``compute`` returns ``exact_1`` and so on, the share of answers that are right, and ``trace_1`` and so on, that of
    texts which are the path, in percent.

    Args:
        kwargs: As for ``torchmetrics.Metric``.
    """

    is_differentiable = False
    full_state_update = False
    answered: Tensor
    traced: Tensor
    asked: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("answered", "traced", "asked"):
            self.add_state(name, torch.zeros(HOPS, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, right: Tensor, hops: Tensor) -> None:
        """Adds answers.

        Args:
            right: ``(B, 2)`` bool, whether the answer is right and whether the text is the path.
            hops: ``(B,)`` of the questions, 1 to 3.
        """
        self.asked += hops.bincount(minlength=HOPS + 1)[1:]
        for state, column in ((self.answered, right[:, 0]), (self.traced, right[:, 1])):
            state += hops[column].bincount(minlength=HOPS + 1)[1:]

    def compute(self) -> dict[str, Tensor]:
        """Returns the shares by hops; those of hops without a question are undefined."""
        return {
            f"{name}_{hops + 1}": 100 * state[hops] / self.asked[hops]
            for name, state in (("exact", self.answered), ("trace", self.traced))
            for hops in range(HOPS)
        }


def pass_at(right: Tensor, k: int) -> Tensor:
    """Returns how probable it is that one of k answers is right, of each question, without bias.

    Chen et al., Evaluating Large Language Models Trained on Code (2021), equation 1: ``1 - C(n - c, k) / C(n, k)``
    where c of n answers are right.

    Args:
        right: ``(N, n)`` bool.
        k: At most n.

    Returns:
        ``(N,)`` float64.
    """
    count = right.shape[1]
    if not 1 <= k <= count:
        raise KDBenchError(f"pass_at: found k={k} of {count} answers, expected 1 to {count}")
    missed = torch.tensor([math.comb(count - c, k) / math.comb(count, k) for c in range(count + 1)]).double()
    found: Tensor = 1 - missed[right.sum(1)]
    return found


class QuestionAnswering(LanguageModel):
    """Answers questions over a graph; the options of ``data`` are those of :class:`tasks.text.kgqa.QuestionOptions`."""

    capabilities: ClassVar[frozenset[str]] = LanguageModel.capabilities | {"judges", "traces"}
    primary: ClassVar[str] = f"exact_{HOPS}"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str | None] = "%"

    @cached_property
    def texts(self) -> Questions:
        """The data set."""
        return opened(self.options)

    @property
    def graph(self) -> Graph:
        """What the questions are about."""
        return self.texts.graph

    # ---- scores -----------------------------------------------------------------------------------------------

    def metrics(self, split: str) -> MetricCollection:
        """Of what is written behind the questions, the most probable word each time."""
        return MetricCollection([Exact()], compute_groups=False)

    def score(self, metrics: MetricCollection, model: nn.Module, outputs: Tensor, batch: Batch) -> None:
        """Has a model answer the questions of a batch."""
        right = self._right(self._answers(model, batch))
        metrics.update(right.to(outputs.device), self._hops(batch).to(outputs.device))

    def standard_error(self, first: float, second: float) -> float:
        """Returns that of the difference of two scores, in points, as of two independent samples of the questions."""
        asked = int((self.texts.test.given == HOPS + 2).sum()) if self.texts.test.given is not None else 0
        variance = sum(score / 100 * (1 - score / 100) for score in (first, second)) / max(asked, 1)
        return 100 * math.sqrt(variance)

    @torch.no_grad()
    def evaluate(
        self, artifact: nn.Module, loader: Iterable[Batch], split: str, device: torch.device
    ) -> dict[str, float]:
        """Scores a model; on the test set also the edges (``exact_1``), and ``pass_4`` of drawn answers to three hops.

        Edges are known to every student, so that is what it has learned by heart.
        """
        if split != "test":
            return super().evaluate(artifact, loader, split, device)
        batches = list(loader)
        graph = self.graph
        edges = [(start, (relation,)) for relation in range(graph.relations) for start in range(graph.people)]
        known = said(graph, edges, self.texts.options.traces, self.length)
        scores = super().evaluate(artifact, [*batches, _whole(known)], split, device)
        drawn = []
        for number, batch in enumerate(batches):
            batch = move(batch, device)
            answers = [
                self._right(self._answers(artifact, batch, rng.generator(0, "pass", number, time)))[:, 0]
                for time in range(DRAWN)
            ]
            drawn.append(torch.stack(answers, 1)[self._hops(batch) == HOPS])
        right = torch.cat(drawn)
        return scores | ({f"pass_{OF}": 100 * float(pass_at(right, OF).mean())} if len(right) else {})

    def _answers(self, model: nn.Module, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Returns the texts ``(B, L)`` that a model makes of the questions of a batch, on the CPU."""
        made = self._behind(model, batch, generator, 1.0)
        asked = torch.cat([made.inputs.words[:, 1:], made.targets.words[:, -1:]], 1).cpu()
        written = made.targets.words.cpu()
        return torch.where(written == NONE, asked, written)

    def _right(self, texts: Tensor) -> Tensor:
        """Says of each text whether its answer is right and whether it is the path, ``(B, 2)``."""
        found = [self.graph.right(text) for text in texts.tolist()]
        return torch.tensor(found, dtype=torch.bool).reshape(-1, 2)

    def _hops(self, batch: Batch) -> Tensor:
        """Returns how many relations each question of a batch names, ``(B,)``, on the CPU."""
        words = batch.inputs.words.cpu()
        return (words == self.words.index(ASKED)).long().argmax(1) - 2

    # ---- for methods ------------------------------------------------------------------------------------------

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """``judge``: which of texts that were written are right; ``trace``: the questions of a batch with their path.

        ``judge(corpus)`` takes what ``write`` gives and returns ``(N,)`` bool; ``trace(batch)`` a batch of the same
        samples whose answers are the paths in the graph.
        """
        return {**super().ops(), "judge": self._judged, "trace": self._traced}

    def _judged(self, corpus: Mapping[str, Tensor]) -> Tensor:
        return self._right(corpus["texts"])[:, 0]

    def _traced(self, batch: Batch) -> Batch:
        words = batch.inputs.words
        questions = [self.graph.question(text[1:]) for text in words.tolist()]
        if None in questions:
            raise KDBenchError("trace: found a text that begins with no question of this graph, expected questions")
        made = said(self.graph, [one for one in questions if one is not None], True, self.length)
        whole = move(_whole(made), words.device)
        return batch.with_inputs(whole.inputs, targets=whole.targets)

    # ---- what people ask for ----------------------------------------------------------------------------------

    def captions(self, batch: Batch, models: Mapping[str, nn.Module]) -> tuple[list[str], dict[str, list[str]]]:
        """Returns the questions of a batch, and what each model answers."""
        given = given_words(batch).tolist()

        def behind(texts: Tensor) -> list[str]:
            return [self.joined(self._until(text[start:])) for text, start in zip(texts.tolist(), given, strict=True)]

        asked = [
            self.joined(text[1 : start + 1]) for text, start in zip(batch.inputs.words.tolist(), given, strict=True)
        ]
        answers = {name: behind(self._answers(model.eval(), batch)) for name, model in models.items()}
        return asked, {name: [f"{name} says «{text}»" for text in told] for name, told in answers.items()}

    def parse(self, text: str) -> Batch:
        """Reads a question, which a model answers; the question mark behind it may be left out.

        Raises:
            KDBenchError: A word is not in the vocabulary, or there are more than the model reads.
        """
        words = spelled(text.replace(ASKED, f" {ASKED} "))
        if words and ASKED not in words:
            words.append(ASKED)
        return self.prompt(self.numbers(words, self.words))


def _whole(texts: Said) -> Batch:
    """Returns all texts as one batch."""
    return texts.batch(np.arange(len(texts)))
