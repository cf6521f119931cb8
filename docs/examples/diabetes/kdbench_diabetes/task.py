"""Regression on scikit-learn's diabetes data: Efron et al., "Least Angle Regression", Annals of Statistics 2004."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from lightning import LightningDataModule
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from pydantic import PositiveInt
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics import MeanAbsoluteError, MetricCollection, R2Score

from kdbench.base.digest import digest
from kdbench.base.instantiate import instantiate
from kdbench.base.store import Store
from kdbench.data import Key, SeededLoader
from kdbench.errors import KDBenchError
from kdbench.features import Feature, Kind, ValueLaw, Values, Vector
from kdbench.splits import cut
from kdbench.task import Batch, DatasetInfo, ExportPlan, Task


class Net(nn.Module):
    """Two hidden layers.

    Args:
        width: Hidden units of each.
        outputs: Numbers that the head gives; the task fills it in.
    """

    def __init__(self, width: PositiveInt, outputs: PositiveInt) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(10, width), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, outputs)

    def forward(self, measurements: Tensor) -> Tensor:
        """Maps (B, 10) to (B, outputs)."""
        predicted: Tensor = self.head(self.second(self.first(measurements)))
        return predicted


class Patients(Dataset[Batch]):
    """A split: ``patients[keys]`` is a batch. Ids are 0 to N - 1, as ``sample_id`` promises of training samples."""

    def __init__(self, measurements: Tensor, progression: Tensor) -> None:
        self.measurements, self.progression = measurements, progression

    def __len__(self) -> int:
        return len(self.progression)

    def __getitems__(self, keys: list[Key]) -> Batch:
        """Fetches a whole batch."""
        chosen = torch.tensor([key.sample for key in keys])
        return Batch(self.measurements[chosen], self.progression[chosen], chosen)


class Data(LightningDataModule):
    """Loaders; the order of training samples follows ``seed``."""

    def __init__(self, splits: Mapping[str, Patients], batch_size: int, seed: int) -> None:
        super().__init__()
        self.splits, self.batch_size, self.seed = splits, batch_size, seed

    def _loader(self, split: str) -> SeededLoader:
        return SeededLoader(self.splits[split], self.batch_size, self.seed, None, train=split == "train")

    def train_dataloader(self) -> SeededLoader:
        return self._loader("train")

    def val_dataloader(self) -> SeededLoader:
        return self._loader("val")

    def test_dataloader(self) -> SeededLoader:
        return self._loader("test")


class Diabetes(Task):
    """Predicts how far the disease has gone a year after ten measurements, as a number from 25 to 346.

    Args:
        data: ``batch_size``.
        store: Where prepared data would live.
        law: ``gaussian``: the head gives mean and log-variance and learns by likelihood; ``plain``: the mean alone.
        noise: Of the error, by which two runs differ through chance; the engine reads it.
    """

    name: ClassVar[str] = "diabetes"
    capabilities: ClassVar[frozenset[str]] = frozenset({"sample_id", "differentiable_input"})
    primary: ClassVar[str] = "mae"
    higher_is_better: ClassVar[bool] = False
    metric_law: ClassVar[str] = "mean"

    def __init__(self, data: Mapping[str, Any], store: Store, law: ValueLaw = "gaussian", noise: float = 0.0) -> None:
        self.batch_size = int(data["batch_size"])
        self.law: ValueLaw = law

    @classmethod
    def kinds(cls, side: Mapping[str, Any]) -> dict[str, Kind]:
        """Taps are hidden vectors; ``values`` is the prediction."""
        return {**dict.fromkeys(side.get("taps") or {}, Vector), "values": Values}

    @cached_property
    def splits(self) -> dict[str, Patients]:
        """The three sets: a fifth of the patients is test, a tenth of the others validation."""
        measurements, progression = load_diabetes(return_X_y=True)
        x, y = (torch.from_numpy(array).float() for array in (measurements, progression))
        known = np.arange(len(y))
        test = cut([str(i) for i in known], share=0.2, purpose="test")
        known = np.delete(known, test)
        val = cut([str(i) for i in known])
        rows = {"train": np.delete(known, val), "val": known[val], "test": np.array(test)}
        return {split: Patients(x[chosen], y[chosen]) for split, chosen in rows.items()}

    @cached_property
    def scale(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the training targets: networks predict in units of it."""
        return self.splits["train"].progression.mean(), self.splits["train"].progression.std()

    def dataset(self) -> DatasetInfo:
        """Identifies the data by its content."""
        content = {name: [s.measurements.tolist(), s.progression.tolist()] for name, s in self.splits.items()}
        learned = digest([content["train"], content["val"]])
        return DatasetInfo("diabetes", True, digest(content), {n: len(s) for n, s in self.splits.items()}, learned)

    def data(self, seed: int) -> Data:
        """Returns the loaders."""
        return Data(self.splits, self.batch_size, seed)

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """Creates a network."""
        model: nn.Module = instantiate("architecture", {**architecture, "outputs": 2 if self.law == "gaussian" else 1})
        return model

    def augmented(self) -> bool:
        return False

    def describe(self, outputs: Tensor, taps: Mapping[str, Tensor], batch: Batch) -> dict[str, Feature]:
        """Gives hidden layers and the prediction their kinds."""
        return {**{name: Vector(tap) for name, tap in taps.items()}, "values": Values(outputs, law=self.law)}

    def loss(self, model: nn.Module, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Returns the negative log-likelihood, or the squared error, in units of the deviation of the targets."""
        mean, deviation = self.scale
        target = ((batch.targets - mean) / deviation)[:, None]
        if self.law == "plain":
            return {"mse": F.mse_loss(outputs, target)}
        return {"nll": F.gaussian_nll_loss(outputs[:, :1], target, outputs[:, 1:].exp())}

    def _progression(self, outputs: Tensor) -> Tensor:
        mean, deviation = self.scale
        return outputs[:, 0] * deviation + mean

    def metrics(self, split: str) -> MetricCollection:
        """Returns the mean absolute error and the share of the variance that is explained."""
        return MetricCollection({"mae": MeanAbsoluteError(), "r2": R2Score()})

    def score(self, metrics: MetricCollection, model: nn.Module, outputs: Tensor, batch: Batch) -> None:
        """Adds one batch."""
        metrics.update(self._progression(outputs), batch.targets)

    def contributions(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Returns the absolute error of each patient, and one."""
        error = (self._progression(outputs) - batch.targets).abs()
        return torch.stack([error, torch.ones_like(error)], 1)

    def export(self, model: nn.Module) -> ExportPlan:
        """Returns the whole network and one patient."""
        example = torch.zeros(1, 10, device=next(model.parameters()).device)
        return ExportPlan(model.eval(), (example,), ("measurements",), dynamic={"measurements": {0: "batch"}})

    @torch.no_grad()
    def picture(self, batch: Batch, models: Mapping[str, nn.Module]) -> Image.Image:
        """Draws predicted over true progression, a panel for each model."""
        figure = Figure(figsize=(3 * len(models), 3.2), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(models), sharex=True, sharey=True, squeeze=False)[0]
        for panel, (name, model) in zip(panels, models.items(), strict=True):
            predicted = self._progression(self.forward(model, batch.inputs))
            true = torch.where(batch.targets.isnan(), predicted, batch.targets)  # of a patient of the user's: unknown
            panel.axline((25, 25), (346, 346), color="0.7", lw=1)
            panel.scatter(true.cpu(), predicted.cpu(), s=12)
            panel.set(title=f"{name}: error {float((predicted - true).abs().mean()):.1f}", xlabel="true progression")
        panels[0].set_ylabel("predicted")
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")

    def read(self, path: Path) -> Batch:
        """Reads the ten measurements of a patient, scaled as in scikit-learn, from a text file."""
        try:
            row = np.loadtxt(path, dtype=np.float32, ndmin=1)
        except (OSError, ValueError) as error:
            raise KDBenchError(f"{path}: cannot be read as numbers: {error}") from None
        if row.shape != (10,):
            raise KDBenchError(f"{path}: found numbers of shape {row.shape}, expected the 10 measurements of a patient")
        return Batch(torch.from_numpy(row)[None], torch.full((1,), torch.nan), torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def predictions(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Returns the progression of each patient, of a normal law with its deviation."""
        outputs = self.forward(model, batch.inputs)
        found = [{"progression": float(value)} for value in self._progression(outputs)]
        if self.law == "gaussian":
            for patient, log_variance in zip(found, outputs[:, 1], strict=True):
                patient["deviation"] = float((0.5 * log_variance).exp() * self.scale[1])
        return found
