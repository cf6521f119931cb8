"""Operations on images that keep their class, several at random: RandAugment and TrivialAugment."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional


def _affine(
    images: Tensor, angle: float = 0.0, across: float = 0.0, down: float = 0.0, shear: tuple[float, float] = (0.0, 0.0)
) -> Tensor:
    center = [0.0, 0.0] if any(shear) else None
    moved = [round(across * images.shape[3]), round(down * images.shape[2])]
    return functional.affine(images, angle, moved, 1.0, [math.degrees(math.atan(v)) for v in shear], center=center)


#: An operation, its strength at full magnitude in RandAugment and in TrivialAugment (Wide), and whether it has a sign.
Operation = tuple[Callable[[Tensor, float], Tensor], tuple[float, float], bool]
_ALONG: dict[str, Operation] = {
    "identity": (lambda x, v: x, (0.0, 0.0), False),
    "translate_x": (lambda x, v: _affine(x, across=v), (150 / 331, 32 / 224), True),
    "brightness": (lambda x, v: functional.adjust_brightness(x, 1 + v), (0.9, 0.99), True),
    "contrast": (lambda x, v: functional.adjust_contrast(x, 1 + v), (0.9, 0.99), True),
    "posterize": (lambda x, v: functional.posterize(x, 8 - round(v)), (4.0, 6.0), False),
    "solarize": (lambda x, v: functional.solarize(x, 1 - v), (1.0, 1.0), False),
    "autocontrast": (lambda x, v: functional.autocontrast(x), (0.0, 0.0), False),
    "equalize": (lambda x, v: functional.equalize(x), (0.0, 0.0), False),
}
_ACROSS: dict[str, Operation] = {
    "shear_x": (lambda x, v: _affine(x, shear=(v, 0.0)), (0.3, 0.99), True),
    "shear_y": (lambda x, v: _affine(x, shear=(0.0, v)), (0.3, 0.99), True),
    "translate_y": (lambda x, v: _affine(x, down=v), (150 / 331, 32 / 224), True),
    "rotate": (lambda x, v: _affine(x, angle=v), (30.0, 135.0), True),
    "sharpness": (lambda x, v: functional.adjust_sharpness(x, 1 + v), (0.9, 0.99), True),
}
_COLOUR: dict[str, Operation] = {"color": (lambda x, v: functional.adjust_saturation(x, 1 + v), (0.9, 0.99), True)}
#: Those after which what is where it was is elsewhere.
MOVES = frozenset({"translate_x", "shear_x", "shear_y", "translate_y", "rotate"})
#: Strengths that TrivialAugment draws one of.
BINS = 31


def operations(channels: int, height: int, moves: bool = True) -> dict[str, Operation]:
    """Returns the operations that mean something: none across a single row, saturation of RGB alone.

    Args:
        channels: of the images.
        height: of the images, pixels.
        moves: also those that move what is in an image.

    Example:
        >>> sorted(operations(1, 1, moves=False))
        ['autocontrast', 'brightness', 'contrast', 'equalize', 'identity', 'posterize', 'solarize']
    """
    found = _ALONG | (_ACROSS if height > 1 else {}) | (_COLOUR if channels == 3 else {})
    return {name: operation for name, operation in found.items() if moves or name not in MOVES}


@torch.no_grad()
def rand_augment(
    images: Tensor, generator: torch.Generator, number: int = 2, magnitude: float = 0.3, moves: bool = True
) -> Tensor:
    """Applies RandAugment to each image, with operations of its own.

    Cubuk, Zoph, Shlens & Le, RandAugment (CVPR Workshops 2020). Operations and their strengths are torchvision's;
    samples that drew the same operation are done together.

    Args:
        images: (B, C, H, W) float in 0..1, on any device.
        generator: on the CPU; draws operations and signs.
        number: operations one after the other.
        magnitude: share of the full strength; 0.3 is torchvision's 9 of 31.
        moves: also operations that move what is in an image.

    Returns:
        (B, C, H, W) in 0..1.

    Example:
        >>> rand_augment(torch.zeros(2, 3, 8, 8), torch.Generator().manual_seed(0), moves=False).shape
        torch.Size([2, 3, 8, 8])
    """
    chosen = list(operations(images.shape[1], images.shape[2], moves).values())
    images = images.clone()
    drawn = torch.randint(2 * len(chosen), (number, len(images)), generator=generator)
    for row in drawn:
        _apply(images, row, chosen, lambda value: magnitude * chosen[value // 2][1][0])
    return images.clamp_(0, 1)


@torch.no_grad()
def trivial_augment(images: Tensor, generator: torch.Generator, moves: bool = True) -> Tensor:
    """Applies one operation to each image, of a strength that is drawn too.

    Müller & Hutter, TrivialAugment (ICCV 2021), the wide space of torchvision, its 32 pixels of translation taken as a
    share of 224. Each image draws its operation and sign, but the images of a batch that drew the same ones have one
    strength, so that they are done together; the paper draws one for each image.

    Args:
        images: (B, C, H, W) float in 0..1, on any device.
        generator: on the CPU; draws operations, signs and strengths.
        moves: also operations that move what is in an image.

    Returns:
        (B, C, H, W) in 0..1.

    Example:
        >>> trivial_augment(torch.zeros(2, 3, 8, 8), torch.Generator().manual_seed(0), moves=False).shape
        torch.Size([2, 3, 8, 8])
    """
    chosen = list(operations(images.shape[1], images.shape[2], moves).values())
    images = images.clone()
    drawn = torch.randint(2 * len(chosen), (len(images),), generator=generator)
    strengths = torch.randint(BINS, (2 * len(chosen),), generator=generator) / (BINS - 1)
    _apply(images, drawn, chosen, lambda value: float(strengths[value]) * chosen[value // 2][1][1])
    return images.clamp_(0, 1)


def _apply(images: Tensor, drawn: Tensor, chosen: Sequence[Operation], strength: Callable[[int], float]) -> None:
    """Changes images in place by what each drew: twice the place of its operation, and one more for the other sign."""
    for value in drawn.unique().tolist():
        apply, _, signed = chosen[value // 2]
        sign = -1 if signed and value % 2 else 1
        members = (drawn == value).nonzero()[:, 0].to(images.device)
        images[members] = apply(images[members], sign * strength(value))
