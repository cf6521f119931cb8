"""Whether models take test images for the same class; what a model takes them for is found out once."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdbench.base.digest import digest
from kdbench.base.store import Product, Store
from kdbench.task import Batch

CLASSES = "classes.safetensors"


class Classes:
    """The classes that models take the test images for.

    A teacher and a scratch student are compared in run after run, and whoever is scored has been asked: what a model
    says is a product.

    Args:
        store: Keeps it.
        images: Digest of the test images, and of how they are read and shown to a model.
    """

    def __init__(self, store: Store, images: str) -> None:
        self.store = store
        self.images = images

    def keep(self, model: nn.Module, classes: Tensor) -> Tensor:
        """Keeps the classes ``(N,)`` of a model, in the order of the test set, and returns those that are kept."""

        def make(folder: Path) -> dict[str, Any]:
            save_file({"classes": classes.cpu()}, folder / CLASSES)
            return {"images": len(classes)}

        return _read(self.store.product("classes", _key(model, self.images), make))

    def agreement(
        self,
        models: Mapping[str, nn.Module],
        loader: Iterable[Batch],
        predict: Callable[[nn.Module, Any], Tensor],
    ) -> dict[str, float]:
        """Returns the share of images that a model and ``teacher`` take for the same class, in percent.

        Args:
            models: By role, ``teacher`` among them.
            loader: The test images; read where a model is new.
            predict: ``(model, inputs) -> classes (B,)``.
        """
        products = {name: self.store.find("classes", _key(model, self.images)) for name, model in models.items()}
        classes = {name: _read(product) for name, product in products.items() if product is not None}
        found: dict[str, list[Tensor]] = {name: [] for name in models if name not in classes}
        for batch in loader if found else ():
            for name, parts in found.items():
                parts.append(predict(models[name].eval(), batch.inputs))
        classes |= {name: self.keep(models[name], torch.cat(parts)) for name, parts in found.items()}
        teacher = classes.pop("teacher")
        return {name: 100 * (own == teacher).float().mean().item() for name, own in classes.items()}


def _read(product: Product) -> Tensor:
    return load_file(product.path / CLASSES)["classes"]


def _key(model: nn.Module, images: str) -> str:
    """Digests what a model is: weights, modules with their options, and the files of their classes, torch's aside."""
    weights = hashlib.sha256()
    for name, value in model.state_dict().items():
        weights.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        weights.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    homes = {type(module).__module__ for module in model.modules()}
    files = {home: getattr(sys.modules.get(home), "__file__", None) for home in sorted(homes) if home[:6] != "torch."}
    code = {home: hashlib.sha256(Path(file).read_bytes()).hexdigest() for home, file in files.items() if file}
    return digest({"images": images, "weights": weights.hexdigest(), "model": repr(model), "code": code})
