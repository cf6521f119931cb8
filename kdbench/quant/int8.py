"""Students of eight-bit integers that ONNX Runtime runs as such, by torchao's PT2E.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from kdbench.errors import KDBenchError
from kdbench.needs import Artifact, Stage
from kdbench.quant.deployed import LAYERS, Deployed, silent
from kdbench.roles.sources import Network, Tap, find_module
from kdbench.signals import Signals
from kdbench.task import Task

#: Points between the scores of the student that rounds and of the converted one.
CLOSE = 0.5
#: Difference that roundings to the other side of a half make in the outputs, over the largest one.
STEPS = 0.1


class _Int8(Deployed):
    """What training through eight bits and calibrating to them have in common.

    ``student`` rounds in floating point, ``converted`` holds integers, ``float`` is the student before it was
    quantised.
    """

    def __init__(self) -> None:
        super().__init__()
        self._quantised: tuple[nn.Module, ...] = ()  # in a tuple, as it is the cast's

    def enter(self, stage: Stage, probe: Signals) -> None:
        """Puts a graph that rounds in the student's place, with the ranges of the first batch."""
        if stage.name not in {own.name for own in self.own()}:
            return
        with silent():
            from kdbench.quant.pt2e import roundings

        source = probe.cast.sources["student"]
        assert isinstance(source, Network)
        if not self._float:
            self.keep(source.model)
            model = self._traced(source, probe.cast.task)
            self._quantised = (model,)
            source = Network(probe.cast.task, model, source.expressions)
            probe.cast.sources = {**probe.cast.sources, "student": source}
            for rounding in roundings(model):
                rounding.training = True
            try:
                source(probe.batch("student").inputs)
            except Exception as error:  # whatever the graph of an example meets in other sizes
                line = " ".join(str(error).split())[:200]
                raise KDBenchError(
                    f"the student {type(self._float[0]).__name__} cannot be quantised: its graph, traced on the task's "
                    f"example, does not take a training batch: {line}"
                ) from None
            model.eval()
        self.prepare(stage, source.model)

    def prepare(self, stage: Stage, model: nn.Module) -> None:
        """Sets what the student does in a stage."""

    def _traced(self, source: Network, task: Task) -> nn.Module:
        """Returns the student with graphs in place of what its exported form calls: itself, or modules in it."""
        from kdbench.quant.pt2e import prepared
        from kdbench.quant.traced import Trained, called, recurrent, trace, traceable

        model = copy.deepcopy(source.model).eval()
        device = next(model.parameters()).device
        plan = task.measured(model)
        reached = called(model, lambda: plan.module(*plan.example))
        tapped = {id(m): m for m in (find_module(model, Tap.parse(text).path) for text in source.expressions.values())}
        # Recurrent layers are for sequences of any length, and so is what is around them.
        anyhow = recurrent(model)
        layers: set[str] = set()
        for name in traceable(model, reached):
            module, inputs = model.get_submodule(name), reached[name]
            if not any(isinstance(m, LAYERS) for m in module.modules()):
                continue
            inner = [m for m in module.modules() if m is not module and id(m) in tapped]
            given = plan.names if name == "" and len(inputs) == len(plan.names) else [""] * len(inputs)
            axes = [
                {0, *(_long(value) if anyhow else plan.dynamic.get(input, ()))}
                for value, input in zip(inputs, given, strict=True)
            ]
            try:
                graph, calls = trace(module, inputs, axes, inner)
            except KDBenchError as error:
                raise KDBenchError(f"the student {type(source.model).__name__} cannot be quantised: {error}") from None
            graph, found = prepared(graph)
            layers |= {f"{name}.{layer}".strip(".") for layer in found}
            stand = Trained(module, graph, calls)
            owner, _, last = name.rpartition(".")
            if name == "":
                model = stand
            else:
                setattr(model.get_submodule(owner), last, stand)
        if not layers:
            raise KDBenchError(
                f"the student {type(source.model).__name__} cannot be quantised: no convolution or linear layer is in "
                "what is exported of it"
            )
        self.count(8, layers)
        return model.to(device)

    def artifacts(self, models: Mapping[str, nn.Module]) -> dict[str, Artifact]:
        """Returns ``student``, and once it is quantised ``float`` and ``converted``."""
        student = models["student"]
        if not self._float:
            return {"student": Artifact(student)}
        from kdbench.quant.pt2e import Converted
        from kdbench.quant.traced import replaced

        converted = replaced(student, Converted).to("cpu")
        # What the method has around the student stays around it.
        before = copy.deepcopy(student, {id(self._quantised[0]): self._float[0]})
        return {
            "student": Artifact(student, engine=None),
            "float": Artifact(before, engine="onnxruntime"),
            "converted": Artifact(converted, device="cpu", engine="onnxruntime", tolerance=STEPS, close=CLOSE),
        }


def _long(value: Any) -> list[int]:
    """Returns the axes of a tensor that are longer than 1, which would be taken for a constant."""
    return [axis for axis, size in enumerate(value.shape) if size > 1] if isinstance(value, Tensor) else []


class QATInt8(_Int8):
    """Trains as the rest of the run says, then on with weights and activations rounded to eight bits.

    In the last part the ranges of activations and the statistics of normalisation stay as they are.

    Args:
        epochs: Length of the stage that trains through the rounding, as a share of the configured epochs, on top of
            them.
        frozen: Length of the stage after it, in which ranges and statistics are frozen.
        lr: Scales their learning rates.
    """

    def __init__(self, epochs: PositiveFloat = 0.2, frozen: NonNegativeFloat = 0.1, lr: PositiveFloat = 0.1) -> None:
        super().__init__()
        self.epochs, self.frozen, self.lr = epochs, frozen, lr

    def own(self) -> tuple[Stage, ...]:
        """Returns the stage that trains through the rounding, and the one with frozen ranges."""
        stages = Stage("quantised", self.epochs, lr=self.lr), Stage("frozen", self.frozen, lr=self.lr)
        return stages if self.frozen else stages[:1]

    def prepare(self, stage: Stage, model: nn.Module) -> None:
        """Freezes ranges and statistics in the last stage."""
        from kdbench.quant.pt2e import roundings
        from kdbench.quant.traced import stilled

        if stage.name == "frozen":
            for rounding in roundings(model):
                rounding.frozen = not rounding.is_per_channel  # a weight goes on, and its range with it
            stilled(model, (_BatchNorm,))


class PTQInt8(_Int8):
    """Trains as the rest of the run says, then finds the ranges of activations on the training set; no weight changes.

    That is a stage of one epoch with a learning rate of zero and without a teacher, in which values pass unrounded.
    """

    def own(self) -> tuple[Stage, ...]:
        """Returns the stage that calibrates."""
        return (Stage("calibrated", 1e-9, lr=0.0, alone=True),)

    def prepare(self, stage: Stage, model: nn.Module) -> None:
        """Lets values pass unrounded while ranges are observed."""
        from kdbench.quant.pt2e import roundings
        from kdbench.quant.traced import stilled

        for rounding in roundings(model):
            rounding.passing = True
        stilled(model, (_BatchNorm, _DropoutNd))
