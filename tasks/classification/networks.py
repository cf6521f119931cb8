"""Sides of a pair made from the name of a network: what timm itself says can be read inside of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tasks.classification.models import create

#: What a name may begin with, as in ``student=timm/resnet18``.
PREFIX = "timm/"
#: Most stages that are tapped, the deepest ones: at strides 4, 8, 16 and 32 in most networks.
STAGES = 4
#: Kinds of a tapped tensor by its number of axes; a grid is the default of a tap.
TOKENS = {3: "tokens"}


def side(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a side of a pair with what can be tapped of a network.

    ``stage1`` to ``stage4`` are the deepest entries of timm's ``feature_info`` (spread evenly over blocks of one
    stride), ``pooled`` is what the classifier reads, and ``last`` the map whose mean that is. A network that does not
    say what it holds gives its logits alone.

    Args:
        name: timm's name, with or without ``timm/``.
        options: Further options of the model.
    """
    name = name.removeprefix(PREFIX)
    made: dict[str, Any] = {"architecture": {"_target_": f"{create.__module__}.{create.__name__}", "model_name": name}}
    made["architecture"] |= options
    with torch.random.fork_rng(devices=[]):
        model = create(name, **{**options, "pretrained": False} if "pretrained" in options else options).eval()
    modules = {path: module for path, module in model.named_modules() if path}
    stages = _stages(getattr(model, "feature_info", None), modules)
    classifier = _classifier(model, modules)
    inputs, outputs = _run(model, modules, {*stages, *filter(None, [classifier])})
    taps = {f"stage{number}": path for number, path in enumerate((p for p in stages if p in outputs), 1)}
    made["kinds"] = {tap: TOKENS[outputs[path].dim()] for tap, path in taps.items() if outputs[path].dim() in TOKENS}
    if classifier is not None:
        made["parts"] = {"classifier": classifier}
        pooled = inputs.get(classifier)
        if pooled is not None and pooled.dim() == 2:
            deepest = stages[-1] if stages else None
            if deepest in outputs and _is_mean(outputs[deepest], pooled):
                taps["last"] = deepest
            taps["pooled"] = f"{classifier}:input"
    return made | {"taps": taps}


def aligned(sides: Mapping[str, dict[str, Any]], other: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Numbers the stages of ``sides`` so that the deepest of both networks of a pair meet.

    Args:
        sides: Made by :func:`side`.
        other: A side that is as its pair has it.
    """
    found = {name: _numbered(made) for name, made in sides.items()}
    counts = [len(stages) for stages in found.values()]
    if other is not None:
        counts.append(len(_numbered(other)))
    kept = min(filter(None, counts), default=0)
    return {name: _renumbered(made, found[name][-kept:]) for name, made in sides.items()}


def _numbered(made: Mapping[str, Any]) -> list[str]:
    return [tap for tap in made.get("taps") or {} if re.fullmatch(r"stage\d+", tap)]


def _renumbered(made: Mapping[str, Any], kept: Sequence[str]) -> dict[str, Any]:
    names = {old: f"stage{number}" for number, old in enumerate(kept, 1)}
    others = {tap: path for tap, path in made["taps"].items() if tap not in _numbered(made)}
    taps = {new: made["taps"][old] for old, new in names.items()} | others
    return {**made, "taps": taps, "kinds": {names[old]: kind for old, kind in made["kinds"].items() if old in names}}


def _stages(info: Any, modules: Mapping[str, nn.Module]) -> list[str]:
    """Returns the paths of at most :data:`STAGES` modules, shallow to deep."""
    entries = [entry for entry in getattr(info, "info", info) or () if entry.get("module") in modules]
    paths = list(dict.fromkeys(entry["module"] for entry in entries))
    one_stride = len({entry.get("reduction", entry["module"]) for entry in entries}) == 1
    if one_stride and len(paths) > STAGES:
        return [paths[len(paths) * share // STAGES - 1] for share in range(1, STAGES + 1)]
    return paths[-STAGES:]


def _classifier(model: nn.Module, modules: Mapping[str, nn.Module]) -> str | None:
    classifier: Any = getattr(model, "get_classifier", lambda: None)
    found = classifier()
    return next((path for path, module in modules.items() if module is found and isinstance(module, nn.Linear)), None)


@torch.no_grad()
def _run(
    model: nn.Module, modules: Mapping[str, nn.Module], paths: set[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns what the modules read and what they give on one image, where these are tensors."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(_: nn.Module, read: tuple[Any, ...], given: Any) -> None:
            for kept, value in ((inputs, read[0] if read else None), (outputs, given)):
                if isinstance(value, Tensor):
                    kept[path] = value

        return hook

    handles = [modules[path].register_forward_hook(keep(path)) for path in paths]
    config = getattr(model, "default_cfg", None) or {}
    model(torch.randn(1, *config.get("input_size", (3, 32, 32)), generator=torch.Generator().manual_seed(0)))
    for handle in handles:
        handle.remove()
    return inputs, outputs


def _is_mean(values: Tensor, pooled: Tensor) -> bool:
    """Whether ``pooled`` is the mean of a map ``(B, C, H, W)`` over its positions."""
    return (
        values.dim() == 4
        and values.shape[1] == pooled.shape[1]
        and torch.allclose(values.mean((2, 3)), pooled, atol=1e-5)
    )
