"""Weights that a forward sees quantised, by parametrisations: the float ones stay what trains, under their names."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdbench.base.weights import plain
from kdbench.errors import KDBenchError
from kdbench.functional.quantize import (
    Scaling,
    bucket_ranges,
    from_points,
    nearest_points,
    quantile_points,
    random_points,
    scale_to_unit,
    straight_through,
    uniform_points,
)
from kdbench.needs import Artifact
from kdbench.plugin import Plugin
from kdbench.quant.packing import Entry, pack

#: Of an index.
Bits: TypeAlias = Annotated[int, Field(ge=1, le=8)]
#: Weights of a bucket; None makes one of each tensor.
Bucket: TypeAlias = Annotated[int, Field(ge=1)] | None
#: Every parameter, biases and normalisation too, as in the authors' code; or those of two axes and more.
Which: TypeAlias = Literal["all", "weights"]


class Code(NamedTuple):
    """A quantised tensor: indices (N,) of points (S,), and the range of each bucket (B,)."""

    codes: Tensor
    points: Tensor
    ranges: tuple[Tensor, Tensor]


class Quantizer(nn.Module):
    """What a parametrised tensor is seen as: each weight at one of few points of its bucket's range.

    Everything is computed in float32, whatever the precision of the training.

    Args:
        bucket: Weights of a bucket; None for one of all.
        scaling: Range of a bucket.

    Attributes:
        active: Off, the tensor is seen as it is.
    """

    uniform = False

    def __init__(self, bucket: int | None, scaling: Scaling) -> None:
        super().__init__()
        self.bucket, self.scaling, self.active = bucket, scaling, True

    def points_of(self, unit: Tensor) -> Tensor:
        """Returns the points (S,), from the scaled weights (N,)."""
        raise NotImplementedError

    def choose(self, unit: Tensor, points: Tensor) -> Tensor:
        """Returns the index of the point of each scaled weight (N,)."""
        return nearest_points(unit, points)

    def encode(self, weight: Tensor) -> Code:
        """Quantises a tensor of any shape."""
        held = weight.detach().float()
        ranges = bucket_ranges(held, self.bucket, self.scaling)
        unit = scale_to_unit(held, ranges, self.bucket)
        points = self.points_of(unit)
        return Code(self.choose(unit, points), points, ranges)

    def decode(self, code: Code, like: Tensor) -> Tensor:
        """Returns the values of a code, in the shape, type and layout of a tensor."""
        values = from_points(code.codes, code.points, code.ranges, self.bucket).view(like.shape).to(like.dtype)
        if like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last):
            return values.contiguous(memory_format=torch.channels_last)
        return values


class Fixed(Quantizer):
    """Points that the bits give, evenly spaced or at the quantiles of the tensor; the gradient passes straight through.

    Args:
        bits: Of an index.
        bucket: As above.
        scaling: As above.
        points: ``uniform`` or ``quantiles``.
        stochastic: Whether a weight goes to one of the two points around it at random while its gradient is wanted,
            which is drawn from the random stream of the forward, as dropout is.
    """

    def __init__(
        self,
        bits: int,
        bucket: int | None,
        scaling: Scaling,
        points: Literal["uniform", "quantiles"] = "uniform",
        stochastic: bool = False,
    ) -> None:
        super().__init__(bucket, scaling)
        self.levels, self.uniform, self.stochastic = 2**bits, points == "uniform", stochastic

    def points_of(self, unit: Tensor) -> Tensor:
        return uniform_points(self.levels).to(unit) if self.uniform else quantile_points(unit, self.levels)

    def choose(self, unit: Tensor, points: Tensor) -> Tensor:
        drawn = self.stochastic and self.training and torch.is_grad_enabled()
        return random_points(unit, points) if drawn else nearest_points(unit, points)

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the quantised tensor, with the gradient of the float one."""
        if not self.active:
            return weight
        return straight_through(weight, self.decode(self.encode(weight), weight))


class Learned(Quantizer):
    """Points that are learned through the assignment; the float weights stay as they are.

    Args:
        levels: How many points.
        weight: The tensor, at whose quantiles they begin.
        bucket: As above.
        scaling: As above.
    """

    def __init__(self, levels: int, weight: Tensor, bucket: int | None, scaling: Scaling) -> None:
        super().__init__(bucket, scaling)
        held = weight.detach().float()
        unit = scale_to_unit(held, bucket_ranges(held, bucket, scaling), bucket)
        self.points = nn.Parameter(quantile_points(unit, levels))

    def points_of(self, unit: Tensor) -> Tensor:
        return self.points.float()

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the quantised tensor, on the graph of the points alone."""
        return self.decode(self.encode(weight), weight) if self.active else weight

    @torch.no_grad()
    def sort(self) -> None:
        """Puts the points into order again, after a step."""
        self.points.copy_(self.points.sort().values)


@dataclass(frozen=True)
class Scheme:
    """How the tensors of a network are quantised.

    Attributes:
        bits: Of an index.
        bucket: Weights of a bucket; None makes one of each tensor.
        scaling: Range of a bucket.
        tensors: Which parameters.
        skip_ends: Whether the first and the last of them stay in floating point.
    """

    bits: int
    bucket: int | None
    scaling: Scaling
    tensors: Which
    skip_ends: bool

    def meant(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter, bool]]:
        """Yields what the options mean, with whether it can be quantised: it is of one place, real, not empty."""
        places = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
        # A recurrent layer computes with a list of its weights that is made once, so it would not see others.
        recurrent = (m for m in model.modules() if isinstance(m, nn.RNNBase))
        places.update(id(parameter) for module in recurrent for parameter in module.parameters())
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or self.tensors == "all":
                real = parameter.is_floating_point() and parameter.numel() > 0
                yield name, parameter, real and places[id(parameter)] == 1

    def unfit(self, model: nn.Module) -> tuple[str, ...]:
        """Returns what is meant and cannot be quantised: it stays in floating point."""
        return tuple(name for name, _, fit in self.meant(model) if not fit)

    def names(self, model: nn.Module) -> list[str]:
        """Returns the parameters to be quantised, in their order.

        Raises:
            KDBenchError: There is none, or a weight is not finite.
        """
        found = []
        for name, parameter, fit in self.meant(model):
            if not fit:
                continue
            bad = int((~parameter.detach().isfinite()).sum())
            if bad:
                raise KDBenchError(
                    f"{name} holds {bad} values that are no numbers (NaN or infinite), which cannot be quantised: the "
                    "training that left them diverged"
                )
            found.append(name)
        found = found[1:-1] if self.skip_ends else found
        if not found:
            raise KDBenchError(f"the {type(model).__name__} has no parameter that quant.tensors={self.tensors} means")
        return found

    def put_on(self, model: nn.Module, make: Callable[[str, nn.Parameter], Quantizer]) -> None:
        """Has every chosen parameter seen quantised, unless that is so already."""
        if next(quantizers(model), None) is not None:
            return
        for name in self.names(model):
            module, _, own = name.rpartition(".")
            place = model.get_submodule(module)
            parametrize.register_parametrization(place, own, make(name, getattr(place, own)), unsafe=True)


class WeightQuantization(Plugin):
    """Base of quantisations of single weights.

    Args:
        scheme: How tensors are quantised.
    """

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.scheme, self.unfit = scheme, tuple[str, ...]()

    def notes(self) -> tuple[str, ...]:
        """Names the parameters that were meant and stay in floating point."""
        return (f"in float: {', '.join(self.unfit)}",) if self.unfit else ()


def quantizers(model: nn.Module) -> Iterator[tuple[str, Quantizer, Tensor]]:
    """Yields the plain name, the quantiser and the float tensor of every quantised parameter."""
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for name, steps in module.parametrizations.items():
                if isinstance(steps[0], Quantizer):
                    yield f"{path}.{name}" if path else name, steps[0], steps.original


def left(
    student: nn.Module, names: Collection[str] | None = None, floats: nn.Module | None = None
) -> dict[str, Artifact]:
    """Returns what a quantised training leaves: the student, which can be packed, and beside it the ``float`` one.

    Args:
        student: As the method leaves it.
        names: Of its tensors, where the quantisation has no more than the student alone.
        floats: Beside it; by default the student with the float weights that trained.

    Raises:
        KDBenchError: The method deploys something else.
    """
    if next(quantizers(student), None) is None or not (names is None or student.state_dict().keys() == {*names}):
        raise KDBenchError(
            f"the method deploys a {type(student).__name__} and not the plain student, which this quantisation takes: "
            "quant=quantized_distillation trains what is around a student along"
        )
    held = copy.deepcopy(student).eval()
    quantised = plain(held)
    if floats is None:
        for _, quantizer, _ in quantizers(held):
            quantizer.active = False
        floats = plain(held)

    def entries() -> dict[str, Entry]:
        return {name: _entry(quantizer, weight) for name, quantizer, weight in quantizers(held)}

    packed = Artifact(quantised, pack=lambda: pack(quantised, entries()))
    return {"student": packed, "float": Artifact(floats)}


def _entry(quantizer: Quantizer, weight: Tensor) -> Entry:
    code = quantizer.encode(weight)
    points = None if quantizer.uniform else code.points.detach()
    ranges = torch.stack(code.ranges, 1)
    return Entry(tuple(weight.shape), quantizer.bucket, len(code.points), code.codes, ranges, points)
