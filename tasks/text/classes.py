"""Classification of texts: the one class of each, held against its true probability where that is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kdbench.base.collectives import normalizer
from kdbench.errors import KDBenchError
from kdbench.features import Feature, Logits
from kdbench.functional.numerics import upcast
from kdbench.task import Batch, Counts, DatasetInfo, ExportPlan
from tasks.text.base import TextTask, spelled
from tasks.text.confusion import Judged, render
from tasks.text.labelled import LabelledTexts, Labels, open_labelled, read
from tasks.text.metrics import OfTexts, Proxy
from tasks.text.sequences import Inputs
from tasks.text.vocabulary import NEVER_SEEN, PAD, Unit, numbers, pieces

#: Classes whose probability a prediction says; test texts that are drawn.
NAMED, SHOWN = 5, 8


class TextClassification(TextTask):
    """Tells the class of a text; the options of ``data`` are those of :class:`~tasks.text.labelled.LabelledOptions`.

    ``noise`` may be None: then it is :meth:`standard_error`.
    """

    capabilities: ClassVar[frozenset[str]] = frozenset({"single_label", "sample_id", "meta", "class_scores"})
    primary: ClassVar[str] = "accuracy"
    unit: ClassVar[str | None] = "%"
    metric_law: ClassVar[str] = "percent"
    prefix: ClassVar[int] = 1

    # ---- data -------------------------------------------------------------------------------------------------

    @cached_property
    def texts(self) -> LabelledTexts:
        """The data set."""
        return open_labelled(self.options, self.store)

    @property
    def words(self) -> tuple[str, ...]:
        """The vocabulary, marks first."""
        return self.texts.source.vocabulary if self.restored is None else tuple(self.restored.inputs["words"])

    @property
    def length(self) -> int:
        """Places of a text, the mark in front of it included."""
        return self.texts.length if self.restored is None else int(self.restored.inputs["length"])

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.texts.source.classes if self.restored is None else tuple(self.restored.classes)

    def dataset(self) -> DatasetInfo:
        """Returns what a record says of the data set; where the law of the classes is known, how often it is right."""
        if self.restored is not None:
            return self.restored
        texts = self.texts
        law, unit = texts.test.law, texts.options.unit
        notes = texts.source.notes if law is None else (f"bayes_accuracy:{100 * law.max(1).mean():.1f}",)
        return DatasetInfo(
            texts.source.name,
            texts.options.source == "topics",
            texts.digest,
            {"train": len(texts.train), "val": len(texts.val), "test": len(texts.test)},
            learned=texts.learned,
            classes=texts.source.classes,
            inputs={"length": texts.length, "words": list(texts.source.vocabulary), "unit": unit},
            notes=notes,
        )

    def example(self) -> Batch:
        """Returns an empty text."""
        words = torch.full((1, self.length - 1), PAD)
        return Batch(read(words), Labels(torch.tensor([-1]), None), torch.tensor([0]))

    def counts(self) -> Mapping[str, Counts]:
        """Returns the texts of each class by split."""
        found = {}
        for name in ("train", "val", "test"):
            split = getattr(self.texts, name)
            known = split.classes if split.supervised is None else split.classes[split.supervised]
            by_class = {of: int((known == number).sum()) for number, of in enumerate(self.classes)}
            found[name] = Counts(len(split), by_class, unit="texts")
        return found

    # ---- models -----------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, int]:
        """How many words and classes there are, and places of a text."""
        return {"words": len(self.words), "length": self.length, "classes": len(self.classes)}

    def forward(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Runs a model on texts."""
        found = model(inputs.words)
        expected = (len(inputs.words), len(self.classes))
        if not isinstance(found, Tensor) or found.shape != expected:
            shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise KDBenchError(f"{type(model).__name__} gives {shown}, expected scores {expected} of the classes")
        return found

    def describe(self, outputs: Tensor, taps: Mapping[str, Tensor], batch: Batch) -> dict[str, Feature]:
        """Tapped tensors are tokens or one vector a text; then the scores of its class."""
        features = self.tapped(taps, batch.inputs.mask)
        features["logits"] = self.mark(Logits(outputs, -1), batch)
        return features

    def mark(self, feature: Feature, batch: Batch) -> Feature:
        """Gives scores the texts that are distilled, and their classes."""
        if not isinstance(feature, Logits):
            return feature
        target = batch.targets.classes if batch.supervised is None else None
        return replace(feature, mask=batch.distilled, target=target)

    def loss(self, model: nn.Module, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the class, mean over texts that have one; zero where none has."""
        classes = batch.targets.classes
        if batch.supervised is not None:
            classes = torch.where(batch.supervised, classes, -1)
        total = F.cross_entropy(upcast(outputs), classes, ignore_index=-1, reduction="sum")
        return {"class": total / normalizer((classes >= 0).sum())}

    # ---- scores -----------------------------------------------------------------------------------------------

    def metrics(self, split: str) -> MetricCollection:
        """Against the classes, and against their true law where it is known."""
        return MetricCollection([OfTexts(len(self.classes))], compute_groups=False)

    def score(self, metrics: MetricCollection, model: nn.Module, outputs: Tensor, batch: Batch) -> None:
        """Feeds what is said of one batch to the metrics."""
        metrics.update(outputs, batch.targets.classes, batch.targets.law)

    def contributions(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Returns for each text that has a class whether it is found, and one."""
        known = batch.targets.classes >= 0
        hit = outputs.argmax(1)[known] == batch.targets.classes[known]
        return torch.stack([hit, torch.ones_like(hit)], 1)

    def standard_error(self, first: float, second: float) -> float:
        """Returns that of the difference of two accuracies, in points, as of two independent samples."""
        variance = sum(score / 100 * (1 - score / 100) for score in (first, second)) / len(self.texts.test)
        return 100 * math.sqrt(variance)

    @torch.no_grad()
    def compare(self, models: Mapping[str, nn.Module], loader: Iterable[Batch]) -> Mapping[str, Mapping[str, float]]:
        """Returns for each model but ``teacher`` how far the teacher's law is from its own, and their agreement."""
        if "teacher" not in models:
            return {}
        found = Proxy([name for name in models if name != "teacher"])
        for batch in loader:
            logits = {name: self.forward(model.eval(), batch.inputs) for name, model in models.items()}
            found.add(logits["teacher"], logits, batch.targets.classes >= 0)
        return found.result()

    # ---- what people ask for ----------------------------------------------------------------------------------

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """``with_scores``: scores are the raw outputs."""
        return {"with_scores": lambda outputs, values: values}

    def export(self, model: nn.Module) -> ExportPlan:
        """The whole model, for any number of texts, filled up behind their ends."""
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        words = self.example().inputs.words.to(device)
        facts = {"words": list(self.words), "length": self.length, "classes": list(self.classes)}
        return ExportPlan(model, (words,), ("words",), ("scores",), {"words": {0: "batch"}}, facts=facts)

    @torch.no_grad()
    def picture(self, batch: Batch, models: Mapping[str, nn.Module]) -> Image:
        """What models take the texts of each class for, over the test set, and texts that they tell otherwise."""
        test = self.texts.test
        found: dict[str, list[Tensor]] = {name: [] for name in models}
        for part in self.data(0).test_dataloader():
            for name, model in models.items():
                found[name].append(self.forward(model.cpu().eval(), part.inputs).softmax(1))
        laws = {name: torch.cat(parts) for name, parts in found.items()}
        classes = torch.from_numpy(test.classes)
        *_, last = laws.values()
        first = [*laws.values()][-2] if len(laws) > 1 else torch.zeros_like(last)
        order = (first - last).abs().sum(1).argsort(descending=True)[:SHOWN].tolist()
        texts = []
        for row in order:
            true = int(classes[row])
            share = None if test.law is None else float(test.law[row, true])
            told = {name: self._said(law[row]) for name, law in laws.items()}
            texts.append(Judged(self._written(test.texts[row].tolist()), told, self.classes[true], share))
        said = {name: law.argmax(1).numpy() for name, law in laws.items()}
        return render(said, test.classes, self.classes, texts)

    def _said(self, law: Tensor) -> tuple[str, float]:
        share, number = law.max(0)
        return self.classes[int(number)], float(share)

    @property
    def cut_into(self) -> Unit:
        """What a text is cut into."""
        found: Unit = self.texts.options.unit if self.restored is None else self.restored.inputs["unit"]
        return found

    def _written(self, numbers: list[int]) -> str:
        between = " " if self.cut_into == "words" else ""
        return between.join(self.words[number] for number in numbers if number != PAD)

    def parse(self, text: str) -> Batch:
        """Reads a text, of a long one its first words; where the vocabulary has a word for those not in it, any word.

        Raises:
            KDBenchError: A word is not in the vocabulary of made-up texts.
        """
        if NEVER_SEEN in self.words:
            places = {word: index for index, word in enumerate(self.words)}
            found = numbers(pieces(text, self.cut_into), places)
        else:
            found = self.numbers(spelled(text), self.words)
        found = found[: self.length - 1]
        words = torch.tensor([found + [PAD] * (self.length - 1 - len(found))], dtype=torch.long)
        return Batch(read(words), Labels(torch.tensor([-1]), None), torch.tensor([0]))

    @torch.no_grad()
    def predictions(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Returns of each text the most probable classes."""
        told = []
        for law in self.forward(model.eval(), batch.inputs).softmax(1).cpu():
            top = law.topk(min(NAMED, len(law)))
            named = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            told.append({"classes": {self.classes[number]: round(share, 4) for number, share in named}})
        return told

    @torch.no_grad()
    def show(self, batch: Batch, model: nn.Module, name: str) -> Image:
        """A text and what the model takes it for."""
        law = self.forward(model.eval(), batch.inputs).softmax(1)[0].cpu()
        judged = Judged(self._written(batch.inputs.words[0, 1:].tolist()), {"model": self._said(law)})
        return render({}, np.zeros(0, dtype=int), self.classes, [judged])
