"""Weights of four bits by torchao's ``quantize_``: linear and embedding layers, trained through the rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveFloat
from torch import nn

from kdbench.errors import KDBenchError
from kdbench.needs import Artifact, Stage
from kdbench.quant.deployed import Deployed, silent
from kdbench.quant.packing import Entry, pack
from kdbench.signals import Signals

#: Lowest and highest integer of a weight, of four bits.
LOW, HIGH = -8, 7


class QATInt4Weight(Deployed):
    """Trains as the rest of the run says, then on with the weights of linear and embedding layers in four bits.

    A weight is an integer from -8 to 7 times the scale of its group. Activations, biases, convolutions and what else
    there is stay in floating point, so that no speed is claimed: ``packed.safetensors`` is what the weights take.

    Args:
        group: Consecutive weights of a row that share a scale; a row that they do not divide has one scale.
        epochs: Length of the stage that trains through the rounding, as a share of the configured epochs, on top of
            them.
        lr: Scales its learning rate.
    """

    def __init__(
        self, group: Annotated[int, Field(ge=1)] = 32, epochs: PositiveFloat = 0.3, lr: PositiveFloat = 0.1
    ) -> None:
        super().__init__()
        self.group, self.epochs, self.lr = group, epochs, lr
        self._layers: list[str] = []
        self._student: tuple[nn.Module, ...] = ()

    def own(self) -> tuple[Stage, ...]:
        """Returns the stage that trains through the rounding."""
        return (Stage("quantised", self.epochs, lr=self.lr),)

    def enter(self, stage: Stage, probe: Signals) -> None:
        """Has the student's layers see their weights rounded.

        Raises:
            KDBenchError: It has no such layer, or a weight that is not finite.
        """
        if stage.name != "quantised" or self._float:
            return
        student = probe.cast.model("student")
        # Attention of torch reads the weights of its parts itself: those are of a class of their own.
        layers = [name for name, module in student.named_modules() if type(module) in (nn.Linear, nn.Embedding)]
        if not layers:
            raise KDBenchError(
                f"quant=qat_int4_weight: the student {type(student).__name__} has no linear or embedding layer"
            )
        self.keep(student)
        self._layers, self._student = layers, (student,)
        self._step(student, "prepare")
        self.count(4, layers)

    def _step(self, model: nn.Module, step: str) -> None:
        """Puts the rounding on the layers of a student (``prepare``), or makes their weights integers (``convert``)."""
        with silent():
            from torchao.quantization import quantize_
            from torchao.quantization.qat import QATConfig
        for name in self._layers:
            base = self._base(model.get_submodule(name))
            quantize_(model, QATConfig(base, step=step), filter_fn=_only(name))

    def _base(self, layer: Any) -> Any:
        from torchao.quantization import IntxWeightOnlyConfig
        from torchao.quantization.granularity import PerAxis, PerGroup

        grouped = layer.weight.shape[1] % self.group == 0
        granularity = PerGroup(self.group) if grouped else PerAxis(0)
        return IntxWeightOnlyConfig(torch.int4, granularity)  # type: ignore[attr-defined]

    def artifacts(self, models: Mapping[str, nn.Module]) -> dict[str, Artifact]:
        """Returns the student with its rounded weights as plain ones, and once there are such the ``float`` student."""
        student = models["student"]
        if not self._float:
            return {"student": Artifact(student)}
        inner, entries = self._converted()
        # What the method has around the student stays around it.
        made = copy.deepcopy(student, {id(self._student[0]): inner})
        before = copy.deepcopy(student, {id(self._student[0]): self._float[0]})
        (path,) = (name for name, module in made.named_modules() if module is inner)
        named = {f"{path}.{name}".lstrip("."): entry for name, entry in entries.items()}
        return {
            "student": Artifact(made, engine=None, pack=lambda: pack(made, named)),
            "float": Artifact(before, engine=None),
        }

    @torch.no_grad()
    def _converted(self) -> tuple[nn.Module, dict[str, Entry]]:
        """Returns a plain student whose weights are what the integers stand for, and those integers by name."""
        model = copy.deepcopy(self._student[0])
        self._step(model, "convert")
        entries: dict[str, Entry] = {}
        for name in self._layers:
            layer: Any = model.get_submodule(name)
            weight = layer.weight
            codes, scale = weight.qdata.flatten().int() - LOW, weight.scale.detach().flatten().float()
            ranges = torch.stack([LOW * scale, HIGH * scale], 1)
            entries[f"{name}.weight"] = Entry(
                tuple(weight.shape), weight.block_size[-1], HIGH - LOW + 1, codes.to(torch.uint8), ranges, None
            )
            layer.weight = nn.Parameter(weight.dequantize().detach().clone())
        return model, entries


def _only(name: str) -> Callable[[nn.Module, str], bool]:
    return lambda _, path: path == name
