"""What a user takes next: items ranked for users, taught by what others with like interactions took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from lightning import LightningDataModule
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from kdbench.base.instantiate import instantiate
from kdbench.base.store import Store
from kdbench.errors import KDBenchError
from kdbench.features import Feature, Kind, Logits
from kdbench.functional.numerics import safe_mean, upcast
from kdbench.task import Batch, Counts, DatasetInfo, ExportPlan, Task
from tasks.graph.interactions import InteractionData, Interactions, Triples, Wanted, open_interactions
from tasks.graph.operators import Sparse, product
from tasks.graph.task import ENGINE

#: How many items are recommended.
TOP = 20


class LightGCN(nn.Module):
    """He, Deng, Wang, Li, Zhang, Wang: LightGCN, SIGIR 2020, eqs. 7-8; without layers, a factorisation.

    The interactions along which it spreads are part of it, and of its file.

    Args:
        users: How many.
        items: How many.
        interactions: How many it spreads along.
        width: Of an embedding.
        layers: How often it spreads; the mean over all steps counts.
    """

    pairs: Tensor

    def __init__(
        self,
        users: PositiveInt,
        items: PositiveInt,
        interactions: PositiveInt,
        width: PositiveInt = 64,
        layers: Annotated[NonNegativeInt, Field(le=8)] = 3,
    ) -> None:
        super().__init__()
        self.users, self.items, self.layers = users, items, layers
        self.embedding = nn.Embedding(users + items, width)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.register_buffer("pairs", torch.zeros(2, interactions if layers else 0, dtype=torch.int32))
        self._held: Sparse | None = None

    def place(self, pairs: Tensor) -> None:
        """Takes the interactions ``(2, K)``, users and items."""
        if self.layers:
            self.pairs.copy_(pairs)
            self._held = None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._held = None

    def _matrix(self) -> Sparse:
        """Returns ``D^-1/2 A D^-1/2`` of users and items."""
        device = self.pairs.device
        if self._held is None or self._held.crow.device != device:
            user, item = (row.cpu().numpy().astype(np.int64) for row in self.pairs)
            count = self.users + self.items
            forth = sp.csr_matrix((np.ones(len(user)), (user, item + self.users)), (count, count))
            forth.data[:] = 1
            both = forth + forth.T
            scale = sp.diags(np.maximum(both.sum(1).A1, 1) ** -0.5)
            self._held = Sparse(*(part.to(device) for part in Sparse.of(scale @ both @ scale)))
        return self._held

    def forward(self) -> Tensor:
        """Returns what stands for users and then items, ``(users + items, width)``."""
        nodes = self.embedding.weight
        total = nodes
        for _ in range(self.layers):
            nodes = product(self._matrix(), nodes)
            total = total + nodes
        return total / (self.layers + 1)


class Ranked(Metric):
    """Mean over users of how many of their next items are among the first :data:`TOP`, of those not known; percent.

    ``recall_20`` divides by how many there are, ``ndcg_20`` weighs them by their places. Users without a next item do
    not count.
    """

    is_differentiable = False
    full_state_update = False
    recall: Tensor
    ndcg: Tensor
    users: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("recall", "ndcg", "users"):
            self.add_state(name, torch.zeros((), dtype=torch.double), dist_reduce_fx="sum")

    def update(self, scores: Tensor, wanted: Wanted) -> None:
        """Adds users.

        Args:
            scores: ``(users, items)``.
            wanted: What is known and what is asked for.
        """
        scores = scores.float().clone()
        scores[wanted.seen[0], wanted.seen[1]] = -torch.inf
        asked = torch.zeros_like(scores, dtype=torch.bool)
        asked[wanted.next[0], wanted.next[1]] = True
        there: Tensor = asked.sum(1)
        first = scores.topk(min(TOP, scores.shape[1]), 1).indices
        hits = asked.gather(1, first).double()
        gain = 1 / torch.arange(2, hits.shape[1] + 2, device=hits.device, dtype=torch.double).log2()
        best = torch.cat([gain.new_zeros(1), gain.cumsum(0)])[there.clamp_max(hits.shape[1])]
        counts = there > 0
        self.recall += (hits.sum(1) / there.clamp_min(1))[counts].sum()
        self.ndcg += ((hits * gain).sum(1)[counts] / best[counts]).sum()
        self.users += counts.sum()

    def compute(self) -> dict[str, Tensor]:
        """Returns the means over users so far."""
        return {f"{name}_20": 100 * getattr(self, name) / self.users for name in ("recall", "ndcg")}


class Recommendation(Task):
    """Ranks items for users.

    Raw outputs are what stands for users and items; the score of both is their product, and what is distilled is how
    much a user prefers one item to another.

    Args:
        data: Options of :class:`~tasks.graph.interactions.Options`.
        store: Where made data lie.
        noise: Points of recall that two runs differ by through chance; the engine reads it.
    """

    name: ClassVar[str] = "graph"
    primary: ClassVar[str] = "recall_20"
    unit: ClassVar[str | None] = "%"
    suffixes: ClassVar[tuple[str, ...]] = (".txt",)

    def __init__(self, data: Mapping[str, Any], store: Store, noise: float | None = None) -> None:
        self.options = {name: value for name, value in data.items() if name not in ENGINE}
        self.restored: DatasetInfo | None = None

    @classmethod
    def kinds(cls, side: Mapping[str, Any]) -> dict[str, Kind]:
        """Preferences of triples."""
        return {"logits": Logits}

    # ---- data -------------------------------------------------------------------------------------------------

    @cached_property
    def opened(self) -> Interactions:
        """The interactions."""
        return open_interactions(self.options)

    def prepare(self, progress: bool = True) -> None:
        """Makes or reads the interactions."""
        _ = self.opened

    @cached_property
    def facts(self) -> dict[str, int]:
        """How many users, items and training interactions there are."""
        if self.restored is not None:
            return {name: int(self.restored.inputs[name]) for name in ("users", "items", "interactions")}
        opened = self.opened
        return {"users": opened.users, "items": opened.items, "interactions": len(opened.train)}

    def dataset(self) -> DatasetInfo:
        """Returns what a record says of the interactions; how well their popularity alone ranks items, too."""
        if self.restored is not None:
            return self.restored
        opened = self.opened
        popular, metric = np.bincount(opened.train[:, 1], minlength=opened.items).astype(np.float32), Ranked()
        metric.update(torch.from_numpy(popular).expand(opened.users, -1), opened.asked("test").targets)
        known = round(float(metric.compute()["recall_20"]), 2)
        sizes = {name: int(getattr(opened, name).shape[0]) for name in ("train", "val", "test")}
        return DatasetInfo(
            opened.name,
            opened.options.root is None,
            opened.digest,
            sizes,
            learned=opened.learned,
            inputs={**self.facts, "popularity": known},
        )

    def restore(self, info: DatasetInfo) -> None:
        """Takes the numbers of a record."""
        self.restored = info

    def counts(self) -> Mapping[str, Counts]:
        """Returns the interactions of each split."""
        sizes = self.dataset().sizes
        return {name: Counts(size, {"interactions": size}, unit="interactions") for name, size in sizes.items()}

    def example(self) -> Batch:
        """Returns one user and two items."""
        zero = torch.zeros(1, dtype=torch.long)
        none = torch.empty(2, 0, dtype=torch.long)
        return Batch(Triples(zero, zero, zero + self.facts["items"] - 1), Wanted(none, none), zero)

    def data(self, seed: int) -> LightningDataModule:
        """Returns the loaders."""
        return InteractionData(self.opened, seed)

    # ---- models -----------------------------------------------------------------------------------------------

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """Creates a model, whose users, items and interactions come from the data."""
        model: nn.Module = instantiate("architecture", {**self.facts, **architecture})
        if isinstance(model, LightGCN) and self.restored is None:
            model.place(torch.from_numpy(self.opened.train.T.copy()))
        return model

    def forward(self, model: nn.Module, inputs: Triples) -> Tensor:
        """Returns what stands for users and items."""
        found = model()
        count = self.facts["users"] + self.facts["items"]
        if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != count:
            shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise KDBenchError(f"{type(model).__name__} gives {shown}, expected ({count}, D) of users, then items")
        return found

    def preferences(self, outputs: Tensor, inputs: Triples) -> Tensor:
        """Returns by how much the score of the first item of each triple is above that of the second, ``(P,)``."""
        users, items = outputs.split([self.facts["users"], self.facts["items"]])
        apart = items.index_select(0, inputs.liked) - items.index_select(0, inputs.other)  # backward adds rows: fast
        return (users.index_select(0, inputs.user) * apart).sum(1)

    def describe(self, outputs: Tensor, taps: Mapping[str, Tensor], batch: Batch) -> dict[str, Feature]:
        """A preference is a sigmoid's score: the probability that the first item of a triple is preferred."""
        return {"logits": self.mark(Logits(self.preferences(outputs, batch.inputs)[:, None], law="bernoulli"), batch)}

    def mark(self, feature: Feature, batch: Batch) -> Feature:
        """Gives preferences the mask of triples that are distilled."""
        return replace(feature, mask=batch.distilled) if isinstance(feature, Logits) else feature

    def loss(self, model: nn.Module, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Mean of ``-log sigmoid`` of supervised preferences (Rendle et al.: BPR, UAI 2009, without its penalty)."""
        rows = F.softplus(-upcast(self.preferences(outputs, batch.inputs)))
        return {"bpr": safe_mean(rows if batch.supervised is None else rows[batch.supervised])}

    # ---- scores -----------------------------------------------------------------------------------------------

    def metrics(self, split: str) -> MetricCollection:
        """Of the items that come next."""
        return MetricCollection([Ranked()], compute_groups=False)

    def score(self, metrics: MetricCollection, model: nn.Module, outputs: Tensor, batch: Batch) -> None:
        """Feeds all users to the metrics."""
        users, items = outputs.split([self.facts["users"], self.facts["items"]])
        metrics.update(users @ items.T, batch.targets)

    # ---- what people ask for ----------------------------------------------------------------------------------

    def export(self, model: nn.Module) -> ExportPlan:
        """What serves: the scores of all items for some users, by what the model leaves of both."""
        with torch.no_grad():
            module = Served(model().detach(), self.facts["users"]).eval()
        user = torch.zeros(1, dtype=torch.long, device=module.users.device)
        return ExportPlan(module, (user,), ("user",), ("scores",), {"user": {0: "batch"}})

    @torch.no_grad()
    def picture(self, batch: Batch, models: Mapping[str, nn.Module]) -> Image.Image:
        """Draws recall at 1 to 50 items by model."""
        figure = Figure(figsize=(5.4, 3.6), dpi=90)
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        wanted: Wanted = batch.targets
        for name, model in models.items():
            users, items = self.forward(model.eval(), batch.inputs).split([self.facts["users"], self.facts["items"]])
            scores = users @ items.T
            scores[wanted.seen[0], wanted.seen[1]] = -torch.inf
            asked = torch.zeros_like(scores)
            asked[wanted.next[0], wanted.next[1]] = 1
            hits = asked.gather(1, scores.topk(min(50, scores.shape[1]), 1).indices).cumsum(1)
            there = asked.sum(1)
            recall = (hits[there > 0] / there[there > 0, None]).mean(0)
            axes.plot(np.arange(1, len(recall) + 1), 100 * recall.numpy(), label=name)
        axes.set_xlabel("items that are recommended", fontsize=9)
        axes.set_ylabel("recall, %", fontsize=9)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
        figure.tight_layout()
        stream = BytesIO()
        figure.savefig(stream, format="png")
        return Image.open(stream).convert("RGB")

    def read(self, path: Path) -> Batch:
        """Reads numbers of users, one a line."""
        try:
            users = torch.tensor([int(line) for line in path.read_text(encoding="utf-8").split()])
        except ValueError as error:
            raise KDBenchError(f"{path}: expected numbers of users, one a line: {error}") from None
        if not len(users) or int(users.min()) < 0 or int(users.max()) >= self.facts["users"]:
            raise KDBenchError(f"{path}: expected numbers of users from 0 to {self.facts['users'] - 1}")
        none = torch.empty(2, 0, dtype=torch.long)
        return Batch(Triples(users, users * 0, users * 0), Wanted(none, none), torch.arange(len(users)))

    @torch.no_grad()
    def predictions(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Returns of each user the items that score highest, those that it had among them."""
        users, items = self.forward(model.eval(), batch.inputs).split([self.facts["users"], self.facts["items"]])
        best = (users[batch.inputs.user] @ items.T).topk(min(TOP, len(items)), 1).indices.tolist()
        return [{"user": user, "items": own} for user, own in zip(batch.inputs.user.tolist(), best, strict=True)]


class Served(nn.Module):
    """What is exported: scores of all items for users.

    Args:
        nodes: What stands for users, then items.
        users: How many of these there are.
    """

    users: Tensor
    items: Tensor

    def __init__(self, nodes: Tensor, users: int) -> None:
        super().__init__()
        self.register_buffer("users", nodes[:users].clone())
        self.register_buffer("items", nodes[users:].clone())

    def forward(self, user: Tensor) -> Tensor:
        """Returns scores ``(B, items)`` of users ``(B,)``."""
        return self.users[user] @ self.items.T
