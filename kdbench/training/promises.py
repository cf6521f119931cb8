"""What is tried on one real batch before anything trains: what a task declares, and its metrics."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.features import Feature, Grid, Heads, Kind, Last, Layer, Levels, Logits, Nodes, Tokens, Values, Vector
from kdbench.signals import Signals
from kdbench.task import Batch, Carry, Task, Warp
from kdbench.training.fit import Training
from kdbench.training.models import in_one_line, make

#: What every run asks of a task at its end.
METHODS = ("dataset", "export", "picture")
SPLITS = {"train", "val", "test"}
#: Number of axes and meaning of kinds whose first axis is the batch.
SHAPES: dict[Kind, tuple[range, str]] = {
    Grid: (range(3, 6), "(B, C, *space)"),
    Last: (range(3, 6), "(B, C, *space)"),
    Tokens: (range(3, 4), "(B, L, D)"),
    Layer: (range(3, 4), "(B, L, D)"),
    Heads: (range(5, 6), "(B, 3, heads, L, D)"),
    Vector: (range(2, 3), "(B, D)"),
}


@dataclass(frozen=True)
class Seen:
    """What a check looks at.

    Attributes:
        training: The training that is rehearsed.
        batch: Its first batch.
        signals: Answers of its networks, in eval mode and without gradient.
    """

    training: Training
    batch: Batch
    signals: Signals

    @property
    def task(self) -> Task:
        """The task."""
        return self.training.task


def check_promises(training: Training, batch: Batch) -> None:
    """Checks what a task declares against what it gives for its first training batch; changes nothing that trains.

    Raises:
        KDBenchError: A method of the task is missing, a feature that is read is of another kind or shape than declared,
            a capability that a plugin requires is not kept, or a plugin reads a batch that the task does not offer.
    """
    task = training.task
    for complaint in _of_task(training, batch):
        raise _broken(task, complaint)
    views = {role: {"main": batch} for role in training.cast.roles}
    with training.distiller(training.stages[0]).at_rest(), torch.no_grad():
        seen = Seen(training, batch, Signals(training.cast, views))
        for complaint in (*_of_features(seen), *_of_loss(seen)):
            raise _broken(task, complaint)
        required = {capability for plugin in training.plugins.values() for capability in plugin.requires}
        for capability in sorted(CHECKS.keys() & required):
            found = CHECKS[capability](seen)
            if found is not None:
                raise _broken(task, f"it declares the capability {capability!r}, but {found}")
        _score_once(training, batch.ids.device)


def _of_task(training: Training, batch: Batch) -> Iterator[str]:
    """Yields what is wrong without asking a network."""
    task = training.task
    if not isinstance(batch.ids, Tensor) or batch.ids.dim() != 1:
        yield f"a training batch has the ids {_described(batch.ids)}, expected a tensor (B,)"
    for name in METHODS:
        if getattr(type(task), name) is getattr(Task, name):
            yield f"it does not implement {name}(), which every run asks for"
    sizes = task.dataset().sizes
    if sizes.keys() != SPLITS:
        yield f"dataset() gives the sizes of {', '.join(sizes) or 'nothing'}, expected those of train, val and test"
    for plugin in training.plugins.values():
        if "meta" not in task.capabilities and any(update.batch == "meta" for update in plugin.updates()):
            yield f"{type(plugin).__name__} reads a meta batch, a capability that this task does not declare"


def _broken(task: Task, what: str) -> KDBenchError:
    return KDBenchError(f"task {getattr(task, 'name', type(task).__name__)}: {what}")


def _described(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


# ---- features and losses ----------------------------------------------------------------------------------------


def _of_features(seen: Seen) -> Iterator[str]:
    """Yields what is wrong with the features that are read, and with predictions."""
    read = {("student", name) for name in seen.signals.answer("student").features if not seen.training.plugins}
    for owner, plugin in seen.training.plugins.items():
        for need in plugin.needs:
            bound = seen.training.bindings[owner].get(need.name, [])
            read |= {(role, n) for role in need.roles for n in ([bound] if isinstance(bound, str) else bound)}
    for role, name in sorted(read):
        feature = seen.signals.answer(role).features.get(name)
        kind = seen.task.kinds(seen.training.pair[seen.training.cast.roles[role].side])[name]
        where = f"{name!r} of the {role}"
        if not isinstance(feature, kind):
            found = "nothing" if feature is None else feature.signature()
            yield f"kinds() says that {where} is {kind.__name__}, but describe() gives {found}: tap another module"
        elif isinstance(feature, Logits | Values):
            yield from _of_rows(where, feature)
        else:
            yield from _of_shape(where, feature, len(seen.batch))


def _of_shape(where: str, feature: Feature, batch: int) -> Iterator[str]:
    for kind, (axes, meaning) in SHAPES.items():
        if isinstance(feature, kind) and (feature.values.dim() not in axes or len(feature.values) != batch):
            yield f"{where} is {feature.signature()}, expected {meaning} of a batch of {batch}"


def _of_rows(where: str, feature: Logits | Values) -> Iterator[str]:
    """Yields which of mask, weight and target is not of the shape of the rows."""
    shape = list(feature.values.shape)
    axis = feature.class_dim if isinstance(feature, Logits) else feature.value_dim
    width = shape.pop(axis)
    for part in ("mask", "weight", "target"):
        value = getattr(feature, part, None)
        if value is not None and list(value.shape) != shape:
            yield f"the {part} of {where} is {_described(value)}, expected the shape {tuple(shape)}"
            return
    if isinstance(feature, Logits) and feature.target is not None:
        classes = feature.target if feature.mask is None else feature.target[feature.mask]
        if classes.is_floating_point() or classes.dtype == torch.bool:
            yield f"the target of {where} is {classes.dtype}, expected integer classes"
        elif classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < width:
            yield f"the target of {where} holds {int(classes.min())} to {int(classes.max())}, expected 0 to {width - 1}"


def _of_loss(seen: Seen) -> Iterator[str]:
    """Yields which supervised term is no scalar."""
    for name, value in seen.signals.loss().items():
        if not isinstance(value, Tensor) or value.shape != ():
            yield f"loss() gives {name!r} as {_described(value)}, expected a scalar tensor"


def _score_once(training: Training, device: torch.device) -> None:
    """Scores the first validation batch, which stands for test data too: what is no number ends a run in time."""
    batch = next(iter(training.data.val_dataloader()), None)
    if batch is not None:
        task, model = training.task, training.cast.model("student")
        task.evaluate(model, [batch], "val", device)
        task.evaluate(model, [batch], "test", device, **dict.fromkeys(task.beside(training.data), [batch]))


# ---- capabilities -----------------------------------------------------------------------------------------------


def _sample_id(seen: Seen) -> str | None:
    ids, size = seen.batch.ids, seen.task.dataset().sizes["train"]
    if ids.is_floating_point():
        return f"the ids of a training batch are {ids.dtype}, expected integers"
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < size:
        return (
            f"a training batch holds the ids {int(ids.min())} to {int(ids.max())}, expected 0 to {size - 1} for the "
            f"{size} training samples that dataset() counts"
        )
    if len(ids.unique()) != len(ids):
        return "a training batch holds one id twice"
    return None


def _single_label(seen: Seen) -> str | None:
    for name, feature in seen.signals.answer("student").features.items():
        if isinstance(feature, Logits):
            if feature.law != "categorical":
                return f"{name!r} has the law {feature.law}, expected the softmax of categorical"
            if feature.target is None and seen.batch.supervised is None:
                return f"{name!r} comes without the target of each row"
    return None


def _differentiable_input(seen: Seen) -> str | None:
    inputs = seen.batch.inputs
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        return f"the inputs of a batch are {_described(inputs)}, expected a floating-point tensor"
    leaf = inputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        answer = seen.signals.cast.sources["student"].answer(seen.batch.with_inputs(leaf))
        reached = [f.values.sum() for f in answer.features.values() if f.values.requires_grad]
        grads = torch.autograd.grad(reached, [leaf], allow_unused=True) if reached else (None,)
    return None if grads[0] is not None else "no gradient of a feature reaches the inputs"


def _rotate(seen: Seen) -> str | None:
    rotate, inputs = seen.task.ops().get("rotate"), seen.batch.inputs
    if rotate is None:
        return "ops() has no 'rotate'"
    if isinstance(inputs, Tensor) and not torch.equal(rotate(rotate(inputs, 1), 3), inputs):
        return "ops()['rotate'] by one and by three quarters does not give the inputs back"
    return None


def _strong_view(seen: Seen) -> str | None:
    strong, inputs = seen.task.ops().get("strong"), seen.batch.inputs
    if strong is None:
        return "ops() has no 'strong'"
    first, again = (strong(inputs, rng.generator(0, "promises")) for _ in range(2))
    if isinstance(inputs, Tensor):
        if _described(first) != _described(inputs):
            return f"ops()['strong'] makes {_described(first)} of {_described(inputs)}"
        if not torch.equal(first, again):
            return "ops()['strong'] gives two views for one state of its generator"
    return None


def _meta(seen: Seen) -> str | None:
    data: Any = seen.training.data
    if not hasattr(data, "meta_dataloader"):
        return "its data module has no meta_dataloader()"
    if "without_meta" not in inspect.signature(data.train_dataloader).parameters:
        return "its train_dataloader() has no argument without_meta"
    for loader in (data.meta_dataloader(), data.train_dataloader(without_meta=True)):
        if not len(loader):
            return "one of meta_dataloader() and train_dataloader(without_meta=True) is empty"
    return None


def _dense_label(seen: Seen) -> str | None:
    dense = seen.task.ops().get("dense_label")
    if dense is None:
        return "ops() has no 'dense_label'"
    labels = dense(seen.batch)
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dim() < 2:
        return f"ops()['dense_label'] gives {_described(labels)}, expected integer classes (B, *size)"
    if len(labels) != len(seen.batch):
        return f"ops()['dense_label'] gives {_described(labels)} for a batch of {len(seen.batch)}"
    for name, feature in seen.signals.answer("student").features.items():
        if not isinstance(feature, Logits):
            continue
        if feature.law != "categorical":
            return f"{name!r} has the law {feature.law}, expected the softmax of categorical"
        if feature.class_dim != 1 or feature.values.dim() != labels.dim() + 1:
            return f"{name!r} is {feature.signature()} with class_dim={feature.class_dim}, expected maps (B, C, *space)"
        classes = feature.values.shape[1]
        if labels.numel() and not -1 <= int(labels.min()) <= int(labels.max()) < classes:
            return (
                f"ops()['dense_label'] gives {int(labels.min())} to {int(labels.max())}, expected -1 to {classes - 1} "
                f"for the {classes} classes of {name!r}"
            )
    return None


def _label_as_input(seen: Seen) -> str | None:
    extended, inputs = seen.task.ops().get("label_as_input"), seen.batch.inputs
    if extended is None:
        return "ops() has no 'label_as_input'"
    if not isinstance(inputs, Tensor) or inputs.dim() < 3:
        return f"the inputs of a batch are {_described(inputs)}, expected one tensor (B, C, *size)"
    architecture = extended(seen.training.pair["student"]["architecture"])
    if extended(architecture) != architecture:
        return "ops()['label_as_input'] changes an architecture that it has made"
    with rng.scope(0, "promises"):
        model = make(seen.task, architecture, "teacher").to(inputs.device).eval()
    padded = torch.cat([inputs, torch.zeros_like(inputs[:, :1])], 1)
    with in_one_line(f"the {type(model).__name__} of ops()['label_as_input'] fails without the channel, or with it"):
        bare, zeroed = (_first(seen.task.forward(model, x)) for x in (inputs, padded))
    if not torch.allclose(bare, zeroed, rtol=1e-4, atol=1e-5):
        return "the network of ops()['label_as_input'] does not read inputs without the channel as if it were zero"
    return None


def _mixable(seen: Seen) -> str | None:
    mix, batch = seen.task.ops().get("mix"), seen.batch
    if mix is None:
        return "ops() has no 'mix'"
    order = torch.arange(len(batch), device=batch.ids.device).flip(0)
    found = mix(batch, order, torch.ones(len(batch), device=batch.ids.device))
    if not isinstance(found, Batch) or len(found) != len(batch):
        return f"ops()['mix'] gives a {type(found).__name__} for a batch of {len(batch)}"
    if isinstance(batch.inputs, Tensor) and not torch.equal(found.inputs, batch.inputs):
        return "ops()['mix'] does not give the inputs back where all of each sample is its own"
    return None


def _sectors(seen: Seen) -> str | None:
    swap, batch = seen.task.ops().get("swap_sectors"), seen.batch
    if swap is None:
        return "ops() has no 'swap_sectors'"
    none = torch.zeros(len(batch), device=batch.ids.device)
    found = swap(batch, torch.arange(len(batch), device=batch.ids.device).flip(0), none, none)
    pairs = zip(tree_leaves((found.inputs, found.targets)), tree_leaves((batch.inputs, batch.targets)), strict=True)
    if not all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs):
        return "ops()['swap_sectors'] with sectors of no width does not give the samples back"
    return None


def _class_scores(seen: Seen) -> str | None:
    with_scores, answer = seen.task.ops().get("with_scores"), seen.signals.answer("student")
    if with_scores is None:
        return "ops() has no 'with_scores'"
    for name, feature in answer.features.items():
        if isinstance(feature, Logits):
            changed = seen.task.describe(with_scores(answer.outputs, feature.values + 1), {}, answer.batch)[name]
            if not torch.equal(changed.values, feature.values + 1):
                return f"ops()['with_scores'] does not change {name!r}"
    return None


def _warp(seen: Seen) -> str | None:
    warp = seen.task.ops().get("warp")
    if not isinstance(warp, Warp):
        return "ops() has no 'warp' of the class Warp"
    numbers = torch.zeros(len(seen.batch), len(warp.moves), device=seen.batch.ids.device)
    return _moves("warp", seen, numbers, warp)


def _deform(seen: Seen) -> str | None:
    deform = seen.task.ops().get("deform")
    if deform is None:
        return "ops() has no 'deform'"
    shifts = torch.zeros(len(seen.batch), 1, 2, device=seen.batch.ids.device)
    return _moves("deform", seen, shifts, lambda batch, by: deform(batch, lambda positions: positions + by))


def _moves(name: str, seen: Seen, numbers: Tensor, move: Callable[[Batch, Tensor], tuple[Batch, Carry]]) -> str | None:
    """Says what is wrong with a motion: numbers of zero move nothing, and gradients come to them."""
    with torch.enable_grad():
        moved, carry = move(seen.batch, numbers.requires_grad_())
        answer = seen.signals.cast.sources["student"].answer(moved)
        scores = next((f for f in answer.features.values() if isinstance(f, Logits)), None)
        if scores is None or not scores.values.requires_grad:
            return f"no gradient of class scores reaches what ops()['{name}'] is given"
        (grad,) = torch.autograd.grad(scores.values.sum(), [numbers], allow_unused=True)
        still = carry(scores)
    if grad is None:
        return f"no gradient of class scores reaches what ops()['{name}'] is given"
    pairs = zip(
        tree_leaves((moved.inputs, moved.targets)), tree_leaves((seen.batch.inputs, seen.batch.targets)), strict=True
    )
    for found, given in (*pairs, (still.values, scores.values)):
        if isinstance(given, Tensor) and not (found.shape == given.shape and torch.allclose(found, given, atol=1e-4)):
            return f"ops()['{name}'] with zeros changes {_described(given)}"
    return None


def _pixels(seen: Seen) -> str | None:
    ops, inputs = seen.task.ops(), seen.batch.inputs
    absent = next((name for name in ("to_pixels", "to_inputs") if name not in ops), None)
    if absent is not None:
        return f"ops() has no {absent!r}"
    if not isinstance(inputs, Tensor) or inputs.dim() != 4:
        return f"the inputs of a batch are {_described(inputs)}, expected one tensor (B, C, H, W)"
    pixels = ops["to_pixels"](inputs)
    if not 0 <= float(pixels.min()) <= float(pixels.max()) <= 1:
        return f"ops()['to_pixels'] gives {float(pixels.min()):.3g} to {float(pixels.max()):.3g}, expected 0 to 1"
    if not torch.allclose(ops["to_inputs"](pixels), inputs.to(pixels.dtype), rtol=1e-3, atol=1e-3):
        return "ops()['to_inputs'] of the pixels of inputs does not give these back"
    return None


def _boxes(seen: Seen) -> str | None:
    boxes = seen.task.ops().get("boxes")
    if boxes is None:
        return "ops() has no 'boxes'"
    found, labels = boxes(seen.batch)
    if found.dim() != 3 or found.shape[-1] != 4 or not found.is_floating_point() or len(found) != len(seen.batch):
        return f"ops()['boxes'] gives boxes {_described(found)}, expected floats ({len(seen.batch)}, M, 4)"
    if labels.is_floating_point() or labels.shape != found.shape[:2]:
        return f"ops()['boxes'] gives classes {_described(labels)}, expected integers {tuple(found.shape[:2])}"
    real = found[labels >= 0]
    if bool((real[:, 2:] <= real[:, :2]).any()):
        return "ops()['boxes'] gives a box whose right is not greater than its left, or its bottom than its top"
    return None


def _cross_head(seen: Seen) -> str | None:
    cross, answer = seen.task.ops().get("cross_head"), seen.signals.answer("student")
    if cross is None:
        return "ops() has no 'cross_head'"
    towers = [answer.features.get(name) for name in ("cls_tower", "reg_tower")]
    if not all(isinstance(tower, Levels) for tower in towers):
        return "describe() gives no Levels 'cls_tower' and 'reg_tower': tap what the last convolutions of the head read"
    found = cross(seen.signals.cast.model("student"), *(tower.maps() for tower in towers if isinstance(tower, Levels)))
    for name in ("logits", "boxes"):
        given, own = found[name].values, answer.features[name].values
        if given.shape != own.shape or not torch.allclose(given, own, rtol=1e-3, atol=1e-3):
            return f"ops()['cross_head'] of a network's own maps does not give its {name!r}"
    return None


def _assigned(seen: Seen) -> str | None:
    assigned, boxes = (seen.task.ops().get(name) for name in ("assigned", "boxes"))
    if assigned is None or boxes is None:
        return f"ops() has no {'assigned' if assigned is None else 'boxes'!r}"
    feature = seen.signals.answer("student").features["boxes"]
    found, labels = assigned(seen.signals.cast.model("student"), seen.batch, feature), boxes(seen.batch)[1]
    rows = feature.values.shape[:2]
    if found.is_floating_point() or found.shape != rows:
        return f"ops()['assigned'] gives {_described(found)}, expected integers {tuple(rows)}"
    if found.numel() and not -1 <= int(found.min()) <= int(found.max()) < max(labels.shape[1], 1):
        return f"ops()['assigned'] gives {int(found.min())} to {int(found.max())} for {labels.shape[1]} boxes"
    return None


def _node_scores(seen: Seen) -> str | None:
    answer = seen.signals.answer("student")
    nodes = {name: f for name, f in answer.features.items() if isinstance(f, Nodes)}
    for name, feature in answer.features.items():
        if not isinstance(feature, Logits):
            continue
        if feature.law != "categorical" or feature.values.dim() != 2:
            return f"{name!r} is {feature.signature()} of the law {feature.law}, expected (N, C) of a softmax"
        other = next((n for n, f in nodes.items() if len(f.values) != len(feature.values)), None)
        if other is not None:
            return f"{name!r} has {len(feature.values)} rows and {other!r} {len(nodes[other].values)}, expected as many"
    return None


def _generates(seen: Seen) -> str | None:
    write, batch, model = seen.task.ops().get("generate"), seen.batch, seen.signals.cast.model("student")
    if write is None:
        return "ops() has no 'generate'"
    first, again = (write(model, batch, rng.generator(0, "promises")) for _ in range(2))
    if not isinstance(first, Batch) or len(first) != len(batch):
        return f"ops()['generate'] gives a {type(first).__name__} for a batch of {len(batch)}"
    if first.supervised is None or bool(first.supervised.any()):
        return "ops()['generate'] gives a batch whose samples are supervised"
    if "tokens" not in first.memo:
        return "ops()['generate'] does not say in the batch's memo how many 'tokens' were written"
    pairs = zip(tree_leaves(first.inputs), tree_leaves(again.inputs), strict=True)
    if not all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs):
        return "ops()['generate'] writes two texts for one state of its generator"
    return None


def _writes(seen: Seen) -> str | None:
    write, model = seen.task.ops().get("write"), seen.signals.cast.model("student")
    if write is None:
        return "ops() has no 'write'"
    first, again = (write(model, 2, rng.generator(0, "promises"), 1.0) for _ in range(2))
    if not isinstance(first, dict) or "tokens" not in first or any(len(value) != 2 for value in first.values()):
        return "ops()['write'] does not give tensors of one row a sample, 'tokens' among them"
    if not all(torch.equal(first[name], again[name]) for name in first):
        return "ops()['write'] writes two samples for one state of its generator"
    return None


def _forgets(seen: Seen) -> str | None:
    forgotten, batch = seen.task.ops().get("forgotten"), seen.batch
    if forgotten is None:
        return "ops() has no 'forgotten'"
    found = forgotten(batch)
    if found.dtype != torch.bool or found.shape != (len(batch),):
        return f"ops()['forgotten'] gives {_described(found)}, expected bool ({len(batch)},)"
    if bool((found if batch.supervised is None else found & batch.supervised).any()):
        return "ops()['forgotten'] names samples that are supervised"
    return None


def _first(outputs: Any) -> Tensor:
    """Returns the first tensor of raw outputs."""
    found: Tensor = next(x for x in tree_leaves(outputs) if isinstance(x, Tensor))
    return found


#: By capability, what is wrong with it, or None. Other names are between a task and plugins of its own package.
CHECKS: dict[str, Callable[[Seen], str | None]] = {
    "sample_id": _sample_id,
    "single_label": _single_label,
    "differentiable_input": _differentiable_input,
    "rotate": _rotate,
    "strong_view": _strong_view,
    "meta": _meta,
    "dense_label": _dense_label,
    "label_as_input": _label_as_input,
    "mixable": _mixable,
    "class_scores": _class_scores,
    "warp": _warp,
    "deform": _deform,
    "pixels": _pixels,
    "sectors": _sectors,
    "boxes": _boxes,
    "cross_head": _cross_head,
    "assigned": _assigned,
    "node_scores": _node_scores,
    "generates": _generates,
    "writes": _writes,
    "forgets": _forgets,
}
