"""A fault of oneDNN that the engine keeps every network away from.

The weight gradient of a strided 1x1 convolution whose images are laid out channel last writes past its workspace where
the images have fewer channels than a vector register holds: 8 on AVX2, 16 on AVX-512
(https://github.com/uxlfoundation/oneDNN/issues/6035). Small maps stay within the slack of the allocation; from 56
pixels on it is a crash, with several threads at times a wrong gradient. It is that kernel alone: float32, no groups, no
padding, a size that the stride divides; a transposed convolution reaches it by its output's channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

#: Channels from which the kernel is sound, whatever the instruction set.
SOUND = 16

_libraries: list[torch.library.Library] = []  # a registration lasts as long as its object


def faulty(images: Tensor, weight: Tensor, stride: Sequence[int], groups: int) -> bool:
    """Tells whether the weight gradient of a convolution would be that kernel's, if channels lay last.

    Args:
        images: (B, C, *space).
        weight: (Out, C / groups, *kernel), for a transposed convolution (C, Out / groups, *kernel).
        stride: Of each dimension.
        groups: Of channels.
    """
    return _few(weight.shape) and groups == 1 and max(stride) > 1 and images.dtype == torch.float32


def _few(shape: Sequence[int]) -> bool:
    return len(shape) > 1 and 1 < shape[1] < SOUND and math.prod(shape[2:]) == 1


def keep_sound(parameters: Iterable[Tensor]) -> None:
    """Lays the tensors of such a gradient out plainly, in this process from now on.

    It is done where every convolution of a CPU comes by, whatever module, function or method made it; all others stay
    in the layout that they have. Coming by here costs each some 20 us, so nothing is done where none of the parameters
    has the shape of such a weight, or would with axes of one element added. The stride is not known before it runs.
    """
    if any(is_lazy(p) or _few(p.shape) for p in parameters):
        _intervene()


@functools.cache
def _intervene() -> None:
    kernel = torch.library.get_kernel("aten::convolution_backward", "CPU")

    def backward(
        keys: torch.DispatchKeySet,
        gradient: Tensor,
        images: Tensor,
        weight: Tensor,
        bias: list[int] | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        transposed: bool,
        output_padding: list[int],
        groups: int,
        mask: list[bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if mask[1] and faulty(images, weight, stride, groups):
            gradient, images = gradient.contiguous(), images.contiguous()
            weight = weight.clone(memory_format=torch.contiguous_format)  # a 1x1 kernel is contiguous in both layouts
        geometry = stride, padding, dilation, transposed, output_padding, groups
        return kernel.call_boxed(keys, gradient, images, weight, bias, *geometry, mask)

    library = torch.library.Library("aten", "IMPL")
    library.impl("convolution_backward", backward, "CPU", with_keyset=True)
    _libraries.append(library)


class Watch(TorchDispatchMode):
    """Notes, while it is on, whose weight gradients are kept from that kernel.

    Attributes:
        layers: What they are, as text, each once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers: dict[str, None] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs an operation, and looks at it if it is the backward of a convolution."""
        if func is torch.ops.aten.convolution_backward.default:
            _, images, weight, _, stride, _, _, transposed, _, groups, mask = args
            if mask[1] and images.device.type == "cpu" and faulty(images, weight, stride, groups):
                ends = weight.shape[:2] if transposed else weight.shape[1::-1]
                self.layers["{} -> {} channels, stride {}".format(*ends, max(stride))] = None
        return func(*args, **(kwargs or {}))
