"""Sides of a pair made from the name of a backbone: what can be read inside of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from tasks.segmentation.models import FINEST, HEAD_OPTIONS, create, make_backbone

#: What a name may begin with, as in ``student=timm/resnet18``.
PREFIX = "timm/"


def sides(named: Mapping[str, Mapping[str, Any]], other: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Returns sides of a pair for backbones that a user names.

    The levels of stride 4 and more are ``stage1`` and on, numbered so that the deepest ones of both networks are of one
    name; ``neck`` is what the classifier reads.

    Args:
        named: By side, ``model_name`` and the options that the user gives beside it.
        other: The other side of the pair, where one alone is named; its head is that of the named one, too, unless the
            user says otherwise.
    """
    architecture = (other or {}).get("architecture") or {}
    head = {name: architecture[name] for name in HEAD_OPTIONS if name in architecture}
    levels = {role: _levels(own) for role, own in named.items()}
    stages = [
        int(tap.removeprefix("stage")) for tap in (other or {}).get("taps") or {} if re.fullmatch(r"stage\d+", tap)
    ]
    deepest = max(stages, default=0) or max(levels.values())
    made = {}
    for role, own in named.items():
        numbers = range(deepest - levels[role] + 1, deepest + 1)
        taps = {f"stage{number}": f"stages[{level}]" for level, number in enumerate(numbers) if number > 0}
        target = f"{create.__module__}.{create.__name__}"
        name = str(own["model_name"]).removeprefix(PREFIX)
        options = {**head, **own, "model_name": name}
        made[role] = {"architecture": {"_target_": target, **options}, "taps": {**taps, "neck": "decoder"}}
    return made


def _levels(own: Mapping[str, Any]) -> int:
    """Counts the levels that a head reads of a backbone."""
    left_out = ("model_name", "pretrained", "in_chans", *HEAD_OPTIONS)
    options = {name: value for name, value in own.items() if name not in left_out}
    with torch.random.fork_rng(devices=[]):
        info: Any = make_backbone(str(own["model_name"]).removeprefix(PREFIX), 3, options).feature_info
    return sum(stride >= FINEST for stride in info.reduction())
