"""Detectors of mmdet, by the config of one or by settings of one's own: its preprocessor, losses and predictions.

Of mmengine's runner there is nothing; ``mmdet.datasets`` and ``mmdet.evaluation`` are not imported. Detectors whose
head tells classes and boxes densely over a pyramid serve: RetinaNet, FCOS, GFL, ATSS, RTMDet, …, and those with a
second stage over such a one, Faster R-CNN.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import KDBenchError, nearest
from kdbench.features import Boxes, Edges, Feature, Logits
from tasks.detection import operators
from tasks.detection.outputs import Found, Inputs, Outputs, Rules, Target

#: What :func:`create` needs beside it.
MISSING = "detectors of mmdet need its package: pip install 'kdbench[detection]'"
#: Where mmdet's wheel has its configs.
CONFIGS = ".mim/configs"


@functools.cache
def package() -> Path:
    """Imports mmdet's models, on torchvision's operators where mmcv has none, and returns its folder.

    Raises:
        KDBenchError: It is not installed.
    """
    if importlib.util.find_spec("mmdet") is None:
        raise KDBenchError(MISSING)
    operators.stand_in()
    threads = torch.get_num_threads()
    with warnings.catch_warnings(action="ignore"):
        import cv2

        importlib.import_module("mmdet.models")
        cv2.setNumThreads(0)  # it starts threads of its own
    operators.redirect()
    torch.set_num_threads(threads)
    found = sys.modules["mmdet"].__file__
    assert found is not None
    return Path(found).parent


def create(
    num_classes: int, config: str, override: Mapping[str, Any] | None = None, pretrained: bool = False
) -> nn.Module:
    """Creates a detector of mmdet.

    Args:
        num_classes: Classes of the data.
        config: A Python config: a path, or the name of one that mmdet ships (``retinanet_r50_fpn_1x_coco``). It is
            code that runs, so it has to be trusted.
        override: Merged into its ``model``; a mapping with ``_delete_: true`` replaces.
        pretrained: Keeps the backbone's weights of ImageNet, which are fetched, with what the config freezes of them.

    Raises:
        KDBenchError: The config is not there, is not mmdet's, or its detector is of another kind.
    """
    settings = _settings(config, override or {})
    _count(settings, num_classes)
    if settings.get("data_preprocessor") is not None:
        settings["data_preprocessor"].pop("batch_augments", None)  # of a training with its runner
    if not pretrained:
        _from_scratch(settings)
    _on_torchvision(settings)
    model = _build(settings, config)
    head = getattr(model, "rpn_head", None) or getattr(model, "bbox_head", None)
    if not hasattr(head, "predict_by_feat") or not hasattr(head, "prior_generator"):
        raise KDBenchError(
            f"{config}: {type(model).__name__} has no head that tells classes and boxes over a pyramid; expected one "
            "like RetinaNet, FCOS, GFL, RTMDet or Faster R-CNN"
        )
    if not getattr(head, "use_sigmoid_cls", True):
        raise KDBenchError(f"{config}: the head of {type(model).__name__} has a softmax; expected independent sigmoids")
    for module in model.modules():
        if getattr(module, "inplace", False) is True:  # what it overwrites may be tapped
            module.inplace = False  # type: ignore[assignment]
    return model


def _settings(config: str, override: Mapping[str, Any]) -> Any:
    """Reads the ``model`` of a config, with what overrides it."""
    from_wheel = package() / CONFIGS
    path = Path(config).expanduser()
    if not path.is_file():
        name = path.name.removesuffix(".py")
        shipped = {p.stem: p for p in from_wheel.rglob("*.py")}
        if name not in shipped:
            raise KDBenchError(f"config={config}: neither a file nor a config of mmdet: {nearest(name, shipped)}")
        path = shipped[name]
    from mmengine.config import Config

    try:
        read = Config.fromfile(path)
    except Exception as error:  # a config is code: nearly anything
        said = " ".join(str(error).split()) or type(error).__name__
        raise KDBenchError(f"{path}: not a config of mmdet ({said})") from None
    model = read.get("model")
    if not isinstance(model, Mapping) or "type" not in model:
        held = ", ".join(sorted(read)[:6]) or "nothing"
        raise KDBenchError(f"{path}: not a config of a detector: expected 'model' with its 'type', found {held}")
    try:
        read.merge_from_dict({"model": dict(override)})
    except Exception as error:
        raise KDBenchError(f"architecture.override does not fit {path}: {' '.join(str(error).split())}") from None
    return read["model"]


def _count(settings: Any, classes: int) -> None:
    """Sets every ``num_classes``."""
    for name, value in settings.items() if isinstance(settings, Mapping) else enumerate(settings):
        if name == "num_classes":
            settings[name] = classes
        elif isinstance(value, Mapping | list):
            _count(value, classes)


def _from_scratch(settings: Any) -> None:
    """Lets all of the backbone train: what a config freezes of it are weights of ImageNet."""
    backbone = settings["backbone"]
    backbone["init_cfg"] = None
    for name, value in (("frozen_stages", -1), ("norm_eval", False)):
        if name in backbone:
            backbone[name] = value
    if "norm_cfg" in backbone:
        backbone["norm_cfg"]["requires_grad"] = True


def _on_torchvision(settings: Any) -> None:
    """Has the second stage pool with torchvision where mmcv has no operators."""
    if operators.compiled() or "roi_head" not in settings:
        return
    for extractor in [value for name, value in settings["roi_head"].items() if name.endswith("roi_extractor")]:
        if extractor["roi_layer"]["type"] == "RoIAlign":
            extractor["roi_layer"]["use_torchvision"] = True


def _build(settings: Any, config: str) -> nn.Module:
    from mmdet.registry import MODELS
    from mmengine.registry import DefaultScope

    kind = settings["type"]
    with DefaultScope.overwrite_default_scope("mmdet"), _silent():
        if isinstance(kind, str) and MODELS.get(kind) is None:
            raise KDBenchError(f"{config}: mmdet has no detector {kind!r}: {nearest(kind, MODELS.module_dict)}")
        try:
            model: nn.Module = MODELS.build(settings)
            model.init_weights()  # type: ignore[operator]  # building does not, and its first loss would be hundreds
        except KDBenchError:
            raise
        except Exception as error:
            said = " ".join(str(error).split()) or type(error).__name__
            raise KDBenchError(f"{config}: mmdet cannot build {kind} ({said})") from None
    return model


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps mmengine from telling how each of some 150 parameters was initialised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


# ---- what the task asks -----------------------------------------------------------------------------------------


def forward(model: Any, inputs: Inputs) -> Outputs:
    """Runs mmdet's preprocessor, backbone, neck and dense head."""
    images = [
        image[:, :tall, :wide].flip(0) for image, (tall, wide) in zip(inputs.images, inputs.shapes(), strict=True)
    ]
    given = model.data_preprocessor({"inputs": images, "data_samples": None}, False)["inputs"]
    return _headed(model, given)


def raw(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns class scores and boxes of images ``(B, 3, H, W)``, without the preprocessor's loop."""
    reads = model.data_preprocessor
    images = images if reads._channel_conversion else images.flip(1)
    outputs = _headed(model, (images - reads.mean) / reads.std if reads._enable_normalize else images)
    return outputs.logits.sigmoid(), outputs.boxes


def rules(model: Any, outputs: Outputs) -> Rules | None:
    """Returns how detections come out of class scores and boxes; None of two stages or of scores beside those."""
    test, reads = model.test_cfg, model.data_preprocessor
    if hasattr(model, "rpn_head") or len(outputs.raw) > 2 or test.nms.type != "nms":
        return None
    mean = reads.mean.flatten().tolist() if reads._enable_normalize else [0.0] * 3
    least, candidates = test.get("min_bbox_size", -1), test.get("nms_pre", -1)
    return Rules(
        test.score_thr,
        None if candidates < 0 else candidates,
        test.nms.iou_threshold,
        test.max_per_img,
        None if least < 0 else float(least),
        tuple(mean if reads._channel_conversion else mean[::-1]),
    )


def _head(model: Any) -> Any:
    return model.rpn_head if hasattr(model, "rpn_head") else model.bbox_head


def _headed(model: Any, images: Tensor) -> Outputs:
    features = tuple(model.extract_feat(images))
    head = _head(model)
    predicted = tuple(tuple(kind) for kind in head(features))
    anchors, points = _anchors(head, predicted[0])
    logits = _joined(predicted[0], head.cls_out_channels)
    return Outputs(predicted, features, logits, _decoded(head, predicted[1], anchors, points), anchors)


def _joined(maps: Sequence[Tensor], width: int) -> Tensor:
    """Makes maps ``(B, k * width, h, w)`` rows ``(B, A, width)``: level after level, cell after cell."""
    return torch.cat([m.permute(0, 2, 3, 1).reshape(len(m), -1, width) for m in maps], 1)


def _anchors(head: Any, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Returns the box that each row starts from, and for distances the point and the stride of its cell."""
    sizes = [(m.shape[2], m.shape[3]) for m in maps]
    priors = head.prior_generator.grid_priors(sizes, dtype=torch.float32, device=maps[0].device)
    flat = torch.cat(priors)
    strides = torch.cat(
        [flat.new_full((len(p),), float(s[0])) for p, s in zip(priors, head.prior_generator.strides, strict=True)]
    )
    if flat.shape[1] == 4:
        centres = (flat[:, :2] + flat[:, 2:]) / 2
        anchors = flat
    else:
        centres, half = flat[:, :2], 4 * strides[:, None]
        anchors = torch.cat([centres - half, centres + half], 1)
    by_distance = "Distance" in type(head.bbox_coder).__name__
    return anchors, torch.cat([centres, strides[:, None]], 1) if by_distance else None


def _decoded(head: Any, maps: Sequence[Tensor], anchors: Tensor, points: Tensor | None) -> Tensor:
    """Returns predicted boxes ``(B, A, 4)`` in pixels."""
    if points is None:
        deltas = _joined(maps, head.bbox_coder.encode_size)
        boxes: Tensor = head.bbox_coder.decode(anchors.repeat(len(deltas), 1), deltas.flatten(0, 1))
        return boxes.view(*deltas.shape[:2], 4)
    centres, strides = points[:, :2], points[:, 2:]
    if hasattr(head, "reg_max"):
        law = _joined(maps, 4 * (head.reg_max + 1))
        # The mean of each edge's law. mmdet's own Integral casts its buffer, which the ONNX exporter cannot follow.
        distances = (law.unflatten(2, (4, -1)).softmax(3) * head.integral.project).sum(3) * strides
    else:
        distances = _joined(maps, 4)
        if getattr(head, "norm_on_bbox", False) and head.training:
            distances = distances * strides
    return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], -1)


def _metas(model: Any, outputs: Outputs, inputs: Inputs) -> list[dict[str, Any]]:
    """Returns what mmdet is told of each image."""
    divisor = model.data_preprocessor.pad_size_divisor
    shapes = inputs.shapes()
    whole = tuple(-(-max(lengths) // divisor) * divisor for lengths in zip(*shapes, strict=True))
    return [
        {
            "img_shape": shape,
            "ori_shape": shape,
            "pad_shape": tuple(-(-side // divisor) * divisor for side in shape),
            "batch_input_shape": whole,
            "scale_factor": (1.0, 1.0),
        }
        for shape in shapes
    ]


def _instances(**fields: Tensor) -> Any:
    from mmengine.structures import InstanceData

    return InstanceData(**fields)


def loss(model: Any, outputs: Outputs, inputs: Inputs, targets: Sequence[Target]) -> dict[str, Tensor]:
    """Returns mmdet's own terms, those of several levels summed; crowds are ignored instances."""
    metas = _metas(model, outputs, inputs)
    truth = [_instances(bboxes=target.boxes, labels=target.labels) for target in targets]
    crowd = [_instances(bboxes=t.crowd, labels=t.labels.new_zeros(len(t.crowd))) for t in targets]
    if not hasattr(model, "rpn_head"):
        return _summed(model.bbox_head.loss_by_feat(*_lists(outputs), truth, metas, crowd))
    return _two_stages(model, outputs, truth, crowd, metas)


def _lists(outputs: Outputs) -> list[list[Tensor]]:
    return [[*kind] for kind in outputs.raw]


def _two_stages(
    model: Any, outputs: Outputs, truth: list[Any], crowd: list[Any], metas: list[Any]
) -> dict[str, Tensor]:
    from mmdet.structures import DetDataSample

    anything = [_instances(bboxes=t.bboxes, labels=torch.zeros_like(t.labels)) for t in truth]
    first = model.rpn_head.loss_by_feat(*_lists(outputs), anything, metas, crowd)
    proposed = model.train_cfg.get("rpn_proposal", model.test_cfg.rpn)
    proposals = model.rpn_head.predict_by_feat(*_lists(outputs), batch_img_metas=metas, cfg=proposed)
    samples = []
    for own, ignored, meta in zip(truth, crowd, metas, strict=True):
        sample = DetDataSample(metainfo=meta)
        sample.gt_instances, sample.ignored_instances = own, ignored
        samples.append(sample)
    second = model.roi_head.loss(outputs.features, proposals, samples)
    return {f"rpn_{name}": value for name, value in _summed(first).items()} | _summed(second)


def _summed(losses: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the terms that mmdet would sum, those of several levels as one; its accuracy is none."""
    return {
        name: torch.stack([v.mean() for v in value]).sum() if isinstance(value, list) else value.mean()
        for name, value in losses.items()
        if "loss" in name
    }


@torch.no_grad()
def predict(model: Any, outputs: Outputs, inputs: Inputs) -> list[Found]:
    """Returns mmdet's own detections."""
    metas = _metas(model, outputs, inputs)
    if hasattr(model, "rpn_head"):
        from mmdet.structures import DetDataSample

        proposals = model.rpn_head.predict_by_feat(*_lists(outputs), batch_img_metas=metas)
        samples = [DetDataSample(metainfo=meta) for meta in metas]
        found = model.roi_head.predict(outputs.features, proposals, samples, rescale=False)
    else:
        found = model.bbox_head.predict_by_feat(*_lists(outputs), batch_img_metas=metas, rescale=False)
    return [Found(own.bboxes, own.labels, own.scores) for own in found]


def cross_head(model: Any, cls: Sequence[Tensor], reg: Sequence[Tensor]) -> dict[str, Feature]:
    """Runs the last stacked convolutions and the predictors of a head on maps of one's own."""
    head = _head(model)
    convs = getattr(head, "cls_convs", None), getattr(head, "reg_convs", None)
    if not all(isinstance(c, nn.ModuleList) and len(c) and isinstance(c[-1], nn.Module) for c in convs) or not hasattr(
        head, "forward_single"
    ):
        raise KDBenchError(f"{type(head).__name__} has no stacked convolutions that its levels share (cross_head)")
    whole = head.cls_convs, head.reg_convs
    head.cls_convs, head.reg_convs = (stack[-1:] for stack in whole)
    try:
        # One call reads one map for both branches, of which one half is left out each time.
        of_cls, of_reg = head([*cls]), head([*reg])
    finally:
        head.cls_convs, head.reg_convs = whole
    anchors, points = _anchors(head, of_cls[0])
    level = Outputs((), tuple(cls), _joined(of_cls[0], head.cls_out_channels), of_cls[0][0], anchors).level()
    found: dict[str, Feature] = {
        "logits": Logits(_joined(of_cls[0], head.cls_out_channels), law="bernoulli"),
        "boxes": Boxes(_decoded(head, of_reg[1], anchors, points), anchors, level),
    }
    return found | ({"edges": edges(of_reg[1])} if hasattr(head, "reg_max") else {})


def edges(maps: Sequence[Tensor]) -> Edges:
    """Returns the laws of edges out of maps ``(B, 4 * bins, h, w)`` of a head with one row a cell."""
    bins = maps[0].shape[1] // 4
    return Edges(_joined(maps, 4 * bins).unflatten(2, (4, bins)))


@torch.no_grad()
def assigned(model: Any, boxes: Boxes, targets: Sequence[Target]) -> Tensor:
    """Asks the head's own assigner, as its loss does, but over anchors beyond the image too."""
    head = _head(model)
    assigner: Any = getattr(head, "assigner", None)
    kind = type(assigner).__name__
    if kind not in ("MaxIoUAssigner", "ATSSAssigner"):
        raise KDBenchError(f"{type(head).__name__} assigns by {kind}; expected MaxIoUAssigner or ATSSAssigner")
    counts = boxes.level.bincount().tolist()
    rows = []
    for target in targets:
        truth = _instances(bboxes=target.boxes, labels=target.labels)
        crowd = _instances(bboxes=target.crowd, labels=target.labels.new_zeros(len(target.crowd)))
        between = [counts] if kind == "ATSSAssigner" else []
        result = assigner.assign(_instances(priors=boxes.anchors), *between, truth, crowd)
        rows.append(result.gt_inds.clamp(min=0) - 1)
    return torch.stack(rows)
