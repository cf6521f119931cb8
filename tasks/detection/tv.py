"""Detectors of torchvision, for which no further package is needed: RetinaNet, FCOS and Faster R-CNN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_iou
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from kdbench.errors import KDBenchError
from kdbench.features import Boxes, Feature
from tasks.detection.outputs import Found, Inputs, Outputs, Rules, Target
from tasks.segmentation.models import make_backbone

DETECTORS = ("retinanet", "fcos", "faster_rcnn")
#: What mmdet calls octaves of anchors: three scales a level.
SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
RATIOS = (0.5, 1.0, 2.0)
STRIDES = (8, 16, 32, 64, 128)
#: Of the normalisation in torchvision's FCOS.
GROUPS = 32
#: Sides of padded images are multiples of it.
DIVISOR = 32


class Pyramid(nn.Module):
    """A backbone of timm from stride 8 on under a feature pyramid of five levels.

    Args:
        backbone: Gives maps, with ``feature_info``.
        width: Channels of every level.
    """

    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__()
        info: Any = backbone.feature_info
        self.first = next(i for i, stride in enumerate(info.reduction()) if stride >= STRIDES[0])
        channels = info.channels()[self.first :]
        self.body = backbone
        self.fpn = FeaturePyramidNetwork(channels, width, LastLevelP6P7(channels[-1], width))
        self.levels = nn.ModuleList(nn.Identity() for _ in range(len(channels) + 2))
        self.out_channels = width

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the levels, finest first."""
        maps = self.body(images)[self.first :]
        found = self.fpn({str(i): m for i, m in enumerate(maps)})
        return {name: level(m) for level, (name, m) in zip(self.levels, found.items(), strict=True)}


def create(
    num_classes: int,
    detector: Literal["retinanet", "fcos", "faster_rcnn"],
    model_name: str = "resnet18",
    width: PositiveInt = 64,
    base: PositiveInt = 2,
    pretrained: bool = False,
    options: Mapping[str, Any] | None = None,
    **backbone: Any,
) -> nn.Module:
    """Creates a detector of torchvision over a backbone of timm.

    Images are normalised as ImageNet's and padded, not resized.

    Args:
        num_classes: Classes of the data.
        detector: Which one.
        model_name: Backbone of timm.
        width: Channels of the pyramid.
        base: Side of the smallest anchor of a level, in its strides.
        pretrained: Fetches weights of ImageNet.
        options: Of torchvision's class (``score_thresh``, …).
        backbone: Options of the backbone.
    """
    if detector not in DETECTORS:
        raise KDBenchError(f"detector={detector}: expected one of {', '.join(DETECTORS)}")
    if detector == "fcos" and width % GROUPS:
        raise KDBenchError(f"width={width}: the head of torchvision's FCOS expects a multiple of {GROUPS}")
    body = Pyramid(make_backbone(model_name, 3, {"pretrained": pretrained, **backbone}), width)
    given = dict(options or {})
    if detector == "fcos":
        anchors = AnchorGenerator(tuple((s,) for s in STRIDES), ((1.0,),) * len(STRIDES))
        return FCOS(body, num_classes, anchor_generator=anchors, **given)
    sizes = tuple(tuple(base * stride * scale for scale in SCALES) for stride in STRIDES)
    if detector == "retinanet":
        return RetinaNet(body, num_classes, anchor_generator=AnchorGenerator(sizes, (RATIOS,) * len(STRIDES)), **given)
    anchors = AnchorGenerator(tuple((base * stride,) for stride in STRIDES), (RATIOS,) * len(STRIDES))
    pool = MultiScaleRoIAlign(["0", "1", "2"], output_size=7, sampling_ratio=2)
    head = TwoMLPHead(width * 7**2, 4 * width)
    return FasterRCNN(
        body,
        None,
        rpn_anchor_generator=anchors,
        box_roi_pool=pool,
        box_head=head,
        box_predictor=FastRCNNPredictor(4 * width, num_classes + 1),  # the last one is background
        **given,
    )


def serves(model: nn.Module) -> bool:
    """Says whether a model is a detector of torchvision."""
    return isinstance(model, RetinaNet | FCOS | GeneralizedRCNN)


# ---- what the task asks -----------------------------------------------------------------------------------------


def forward(model: Any, inputs: Inputs) -> Outputs:
    """Runs torchvision's transform, backbone and dense head."""
    images = [
        image[:, :tall, :wide].float() / 255 for image, (tall, wide) in zip(inputs.images, inputs.shapes(), strict=True)
    ]
    normal = [model.transform.normalize(image) for image in images]  # and not its resizing
    return _headed(model, ImageList(model.transform.batch_images(normal, DIVISOR), inputs.shapes()))


def raw(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns class scores and boxes of images ``(B, 3, H, W)`` whose sides are multiples of 32."""
    mean, std = (
        images.new_tensor(value)[:, None, None] for value in (model.transform.image_mean, model.transform.image_std)
    )
    sizes = [(images.shape[2], images.shape[3])] * len(images)
    outputs = _headed(model, ImageList((images / 255 - mean) / std, sizes))
    return outputs.logits.sigmoid(), outputs.boxes


def rules(model: Any, outputs: Outputs) -> Rules | None:
    """Returns how detections come out of class scores and boxes; RetinaNet alone has no others."""
    if not isinstance(model, RetinaNet):
        return None
    mean = tuple(255.0 * value for value in model.transform.image_mean)
    return Rules(model.score_thresh, model.topk_candidates, model.nms_thresh, model.detections_per_img, None, mean)


def _headed(model: Any, images: ImageList) -> Outputs:
    found = model.backbone(images.tensors)
    features = [*found.values()]
    generator = model.rpn.anchor_generator if isinstance(model, GeneralizedRCNN) else model.anchor_generator
    anchors = generator(images, features)[0]
    if isinstance(model, GeneralizedRCNN):
        objectness, deltas = model.rpn.head(features)
        scores, flat = concat_box_prediction_layers([*objectness], [*deltas])
        logits = scores.view(len(images.tensors), -1, 1)
        boxes = model.rpn.box_coder.decode_single(flat, anchors.repeat(len(logits), 1)).view(*logits.shape[:2], 4)
        return Outputs((tuple(objectness), tuple(deltas)), tuple(features), logits, boxes, anchors)
    predicted = model.head(features)
    logits, regressed = predicted["cls_logits"], predicted["bbox_regression"]
    if isinstance(model, FCOS):
        boxes = torch.stack([model.box_coder.decode(own, anchors) for own in regressed])
    else:
        repeated = anchors.repeat(len(logits), 1)
        boxes = model.box_coder.decode_single(regressed.flatten(0, 1), repeated).view(*logits.shape[:2], 4)
    return Outputs(tuple((value,) for value in predicted.values()), tuple(features), logits, boxes, anchors)


def _predicted(model: Any, outputs: Outputs) -> dict[str, Tensor]:
    names = ["cls_logits", "bbox_regression", *(["bbox_ctrness"] if isinstance(model, FCOS) else [])]
    return {name: value for name, (value,) in zip(names, outputs.raw, strict=True)}


def _per_level(outputs: Outputs) -> list[int]:
    counts: list[int] = outputs.level().bincount().tolist()
    return counts


def _truth(targets: Sequence[Target], first: int = 0) -> list[dict[str, Tensor]]:
    return [{"boxes": target.boxes, "labels": target.labels + first} for target in targets]


def loss(model: Any, outputs: Outputs, inputs: Inputs, targets: Sequence[Target]) -> dict[str, Tensor]:
    """Returns torchvision's own terms; crowds count as background, of which it knows no other."""
    anchors = [outputs.anchors] * len(targets)
    if isinstance(model, GeneralizedRCNN):
        return _two_stages(model, outputs, inputs, targets)
    predicted = _predicted(model, outputs)
    if isinstance(model, FCOS):
        losses: dict[str, Tensor] = model.compute_loss(_truth(targets), predicted, anchors, _per_level(outputs))
    else:
        losses = model.compute_loss(_truth(targets), predicted, anchors)
    return losses


def _proposals(model: Any, outputs: Outputs, inputs: Inputs) -> list[Tensor]:
    boxes = outputs.boxes.detach()
    found: list[Tensor] = model.rpn.filter_proposals(
        boxes, outputs.logits[..., 0].flatten(), inputs.shapes(), _per_level(outputs)
    )[0]
    return found


def _two_stages(model: Any, outputs: Outputs, inputs: Inputs, targets: Sequence[Target]) -> dict[str, Tensor]:
    anchors = [outputs.anchors] * len(targets)
    scores, deltas = concat_box_prediction_layers([*outputs.raw[0]], [*outputs.raw[1]])
    labels, matched = model.rpn.assign_targets_to_anchors(anchors, _truth(targets, 1))
    regression = model.rpn.box_coder.encode(matched, anchors)
    objectness, rpn_box = model.rpn.compute_loss(scores, deltas, labels, regression)
    training = model.roi_heads.training
    model.roi_heads.train()  # without which it gives detections; it has no layers that differ
    try:
        maps = {str(i): m for i, m in enumerate(outputs.features)}
        second = model.roi_heads(maps, _proposals(model, outputs, inputs), inputs.shapes(), _truth(targets, 1))[1]
    finally:
        model.roi_heads.train(training)
    return {"loss_objectness": objectness, "loss_rpn_box_reg": rpn_box, **second}


@torch.no_grad()
def predict(model: Any, outputs: Outputs, inputs: Inputs) -> list[Found]:
    """Returns torchvision's own detections."""
    if isinstance(model, GeneralizedRCNN):
        maps = {str(i): m for i, m in enumerate(outputs.features)}
        found, _ = model.roi_heads(maps, _proposals(model, outputs, inputs), inputs.shapes())
        return [Found(own["boxes"], own["labels"] - 1, own["scores"]) for own in found]
    counts = _per_level(outputs)
    split = {name: [*value.split(counts, 1)] for name, value in _predicted(model, outputs).items()}
    anchors = [[*outputs.anchors.split(counts)]] * len(inputs.images)
    found = model.postprocess_detections(split, anchors, inputs.shapes())
    return [Found(own["boxes"], own["labels"], own["scores"]) for own in found]


def cross_head(model: nn.Module, cls: Sequence[Tensor], reg: Sequence[Tensor]) -> dict[str, Feature]:
    """Refused: torchvision's heads cannot be entered half-way."""
    raise KDBenchError(f"{type(model).__name__} of torchvision has no cross_head; choose a detector of mmdet")


@torch.no_grad()
def assigned(model: Any, boxes: Boxes, targets: Sequence[Target]) -> Tensor:
    """Asks the matcher of RetinaNet or of the RPN."""
    matcher = model.rpn.proposal_matcher if isinstance(model, GeneralizedRCNN) else model.proposal_matcher
    overlap = model.rpn.box_similarity if isinstance(model, GeneralizedRCNN) else None
    if isinstance(model, FCOS):
        raise KDBenchError("FCOS of torchvision assigns by places, not by a matcher")
    if overlap is None:
        overlap = box_iou
    rows = []
    for target in targets:
        if len(target.boxes):
            rows.append(matcher(overlap(target.boxes, boxes.anchors)).clamp(min=-1))
        else:
            rows.append(torch.full((len(boxes.anchors),), -1, device=boxes.anchors.device))
    return torch.stack(rows)
