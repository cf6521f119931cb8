"""What tasks of texts share: options, words, models, taps, and how a user's text is read."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from lightning import LightningDataModule
from torch import Tensor, nn

from kdbench.base.instantiate import instantiate, locate
from kdbench.base.store import Store
from kdbench.configuration.network import named_taps
from kdbench.errors import KDBenchError, nearest
from kdbench.features import Feature, Heads, Kind, Layer, Logits, Tokens, Vector
from kdbench.task import Batch, DatasetInfo, Task

#: Keys of ``data`` that the engine and the presets read.
ENGINE = ("name", "task", "protocol")
#: What the names of taps that become one vector a text begin with.
POOLED = "pooled"
#: Likewise of those that are layers of a transformer, its embedding ``layer0``, and heads of their attention.
LAYER, HEADS = "layer", "heads"


class TextTask(Task):
    """Reads texts as integers.

    Args:
        data: Options of the data set.
        store: Where made-up texts lie.
        noise: Difference of the primary metric that two runs have through chance; the engine reads it.
    """

    name: ClassVar[str] = "text"
    suffixes: ClassVar[tuple[str, ...]] = (".txt",)
    #: Places in front of a text that stand for all of it, and whether models look at the words so far alone.
    prefix: ClassVar[int] = 0
    causal: ClassVar[bool] = False

    def __init__(self, data: Mapping[str, Any], store: Store, noise: float | None = 0.0) -> None:
        self.options = {name: value for name, value in data.items() if name not in ENGINE}
        self.store = store
        self.restored: DatasetInfo | None = None

    @classmethod
    def kinds(cls, side: Mapping[str, Any]) -> dict[str, Kind]:
        """Taps are tokens; ``pooled…`` is one vector a text, ``layer…`` and ``heads…`` are those of a transformer."""
        return {name: _kind(name) for name in named_taps(side)} | {"logits": Logits}

    @cached_property
    def texts(self) -> Any:
        """The data set."""
        raise self._lacks("texts")

    def prepare(self, progress: bool = True) -> None:
        """Makes the texts, once."""
        _ = self.texts

    def data(self, seed: int) -> LightningDataModule:
        """Returns the loaders."""
        found: LightningDataModule = self.texts.module(seed)
        return found

    def augmented(self) -> bool:
        """Texts are read as they are."""
        return False

    def restore(self, info: DatasetInfo) -> None:
        """Takes words, length and what else is known of the data from a record."""
        self.restored = info

    # ---- models -----------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, int]:
        """Returns what a model may ask for of the data, by the name of its argument."""
        raise self._lacks("facts")

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """Creates a model; what it asks for of :meth:`facts` comes from the data.

        Raises:
            KDBenchError: It asks for what these data do not have.
        """
        asked = inspect.signature(locate(architecture["_target_"])).parameters
        facts = self.facts()
        for name in ("classes", "length"):
            if name in asked and asked[name].default is inspect.Parameter.empty and name not in {*facts, *architecture}:
                raise KDBenchError(
                    f"{architecture['_target_']} asks for {name}, which {self.dataset().name} does not have: choose "
                    "another pair"
                )
        given = {name: value for name, value in facts.items() if name in asked}
        model: nn.Module = instantiate("architecture", {**given, **architecture})
        return model

    def tapped(self, taps: Mapping[str, Tensor], mask: Tensor) -> dict[str, Feature]:
        """Gives tapped tensors their kind.

        Args:
            taps: ``(B, L, D)``, those called ``pooled…`` also ``(B, D)``, ``heads…`` ``(B, 3, heads, L, D)``.
            mask: ``(B, L)`` places that are there.

        Raises:
            KDBenchError: One has another shape.
        """
        features: dict[str, Feature] = {}
        batch, length = mask.shape
        for name, value in taps.items():
            kind = _kind(name)
            if kind is Vector and value.dim() == 2 and len(value) == batch:
                features[name] = Vector(value)
                continue
            shape = tuple(value.shape)
            places = shape[:2] + shape[3:4] if kind is Heads and len(shape) == 5 else shape[:-1]
            if places != ((batch, 3, length) if kind is Heads else (batch, length)):
                what = f"heads ({batch}, 3, H, {length}, D)" if kind is Heads else f"tokens ({batch}, {length}, D)"
                raise KDBenchError(f"tap {name!r} has shape {shape}, expected {what}: tap another module")
            if kind is Heads:
                features[name] = Heads(value, mask, self.causal)
            elif kind is Layer:
                features[name] = Layer(value, self.prefix, mask)
            elif kind is Tokens:
                features[name] = Tokens(value, mask=mask)
            else:
                there = mask[..., None].to(value.dtype)
                features[name] = Vector((value * there).sum(1) / there.sum(1).clamp(min=1))
        return features

    # ---- what people give -------------------------------------------------------------------------------------

    def numbers(self, said: list[str], words: tuple[str, ...]) -> list[int]:
        """Returns the numbers of words.

        Raises:
            KDBenchError: One is not in the vocabulary.
        """
        place = {word: index for index, word in enumerate(words)}
        for word in said:
            if word not in place:
                raise KDBenchError(f"{word!r} is no word of {self.dataset().name}: {nearest(word, place)}")
        return [place[word] for word in said]

    def read(self, path: Path) -> Batch:
        """Reads a file of one text, in UTF-8."""
        try:
            return self.parse(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise KDBenchError(f"{path}: cannot be read as text: {' '.join(str(error).split())}") from None
        except KDBenchError as error:
            raise KDBenchError(f"{path}: {error}") from None


def _kind(name: str) -> Kind:
    """Returns the kind that the name of a tap says."""
    named: dict[str, Kind] = {POOLED: Vector, LAYER: Layer, HEADS: Heads}
    return next((kind for start, kind in named.items() if name.startswith(start)), Tokens)


def spelled(text: str) -> list[str]:
    """Returns the words of a text, a full stop one of its own."""
    return text.lower().replace(".", " . ").split()
