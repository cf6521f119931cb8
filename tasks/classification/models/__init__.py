"""Models by name: everything in timm, and the small networks for 32 x 32 images of the distillation literature.

The latter are registered with timm under ``cifar_<name>``: ``timm.create_model("cifar_resnet8x4", num_classes=100)``.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from torch import nn

from kdbench.base.startup import stand_ins

with stand_ins({"wandb": None}):  # of which its training scripts make use
    import timm

from kdbench.errors import KDBenchError, nearest
from tasks.classification.models import mobilenet, resnet, shufflenet, vgg, wrn  # noqa: F401  (they register models)
from tasks.hub import fetched


def create(
    model_name: str,
    num_classes: int | None = None,
    in_chans: int | None = None,
    img_size: tuple[int, int] | None = None,
    **options: Any,
) -> nn.Module:
    """Creates a model by its timm name.

    Args:
        model_name: E.g. ``cifar_resnet8`` or ``vit_tiny_patch16_224``.
        num_classes: Of the classifier; the model's own default where None.
        in_chans: Channels of the images.
        img_size: Height and width of the images; left out for models that take images of any size.
        options: Further options of the model, e.g. ``width`` or ``embed_dim``.

    Raises:
        KDBenchError: There is no such model, it has no such option, or its pretrained weights cannot be had.
    """
    if not timm.is_model(model_name):
        raise KDBenchError(
            f"model_name={model_name}: there is no such model: {nearest(model_name, timm.list_models())}"
        )
    given = {"num_classes": num_classes, "in_chans": in_chans, "img_size": img_size, **options}
    try:
        with fetched(model_name) if options.get("pretrained") else nullcontext():
            model: nn.Module = timm.create_model(model_name, **given)
    except TypeError as error:
        if img_size is not None and "'img_size'" in str(error):
            return create(model_name, num_classes, in_chans, **options)
        listed = ", ".join(f"{name}={value!r}" for name, value in options.items()) or "no options"
        raise KDBenchError(f"model_name={model_name} with {listed}: {error}") from None
    return model
