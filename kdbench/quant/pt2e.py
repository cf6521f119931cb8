"""Eight-bit integers by torchao's PT2E: where values are rounded, training through that, and the converted graph.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018.
Weights are symmetric by output channel, activations have one scale and zero point; both follow what runs them fastest
(ONNX Runtime's integer convolutions and additions).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm
from torchao.quantization.pt2e import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

from kdbench.quant.traced import MODULE, Stand, Trained, aten

#: Share of a batch in the range of an activation.
MOMENTUM = 0.1

CONVOLUTIONS = {getattr(getattr(aten, f"conv{n}d"), how) for n in (1, 2, 3) for how in ("default", "padding")}
RELUS = {aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default}
SUMS = {aten.add.Tensor, aten.add_.Tensor}
POOLS = {getattr(aten, f"max_pool{n}d").default for n in (1, 2, 3)}
#: Ends of the names of what counts as a parameter of a converted graph: a scale does not.
COUNTED = ("_integers", "_bias")
#: Beginning of the names of integers that torchao makes.
FOLDED = "_frozen_param"
QUANTISED = torch.ops.quantized_decomposed


class Rounding(FakeQuantize):
    """Rounds in train and eval mode, and observes ranges in train mode alone: validation and test change nothing.

    torchao's fused module scales symmetric weights otherwise than the conversion does; this one gives the same numbers.

    Attributes:
        frozen: Whether ranges stay as they are in train mode too.
        passing: Whether it passes values on in train mode, to observe the network in floating point.
    """

    frozen = False
    passing = False

    def forward(self, values: Tensor) -> Tensor:
        """Returns the values that integers stand for."""
        if self.training and not self.frozen:
            self.observe(values.detach())
        if self.training and self.passing:
            return values
        limits = self.activation_post_process.quant_min, self.activation_post_process.quant_max
        if self.is_per_channel:
            return torch.fake_quantize_per_channel_affine(values, self.scale, self.zero_point, self.ch_axis, *limits)
        return torch.fake_quantize_per_tensor_affine(values, self.scale, self.zero_point, *limits)

    @torch.no_grad()
    def observe(self, values: Tensor) -> None:
        """Takes values into the range, and sets the scale that follows from it."""
        self.activation_post_process(values)
        for held, found in zip((self.scale, self.zero_point), self.calculate_qparams(), strict=True):
            held.resize_(found.shape)
            held.copy_(found)


ACTIVATION = QuantizationSpec(
    torch.uint8,
    Rounding.with_args(observer=MovingAverageMinMaxObserver, averaging_constant=MOMENTUM),
    0,
    255,
    torch.per_tensor_affine,
)
# A weight's range is known, so it has no memory.
WEIGHT = QuantizationSpec(
    torch.int8,
    Rounding.with_args(observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0),
    -127,
    127,
    torch.per_channel_symmetric,
    0,
)


class Integers(Quantizer):
    """Rounds what convolutions, linear layers and additions of two maps read, and what convolutions and sums give.

    A convolution's normalisation and ReLU belong to it, a sum's ReLU to that: what lies between them is not rounded.
    Every addition is there, so that no convolution of a residual network stays in floating point.

    Attributes:
        layers: Names of the layers that were annotated.
    """

    def __init__(self) -> None:
        self.layers: set[str] = set()

    def annotate(self, model: GraphModule) -> GraphModule:
        """Says for each node what it reads and gives as integers."""
        for node in model.graph.nodes:
            if node.target in CONVOLUTIONS or node.target is aten.linear.default:
                self.layers |= {_layer(node)}
                values, weight = node.args[:2]
                ends = _chain(model, node, node.target in CONVOLUTIONS)
                _note(node, {values: ACTIVATION, weight: WEIGHT}, ends if node.target in CONVOLUTIONS else None)
            elif node.target in SUMS and _two_maps(node):
                _note(node, {value: ACTIVATION for value in node.args[:2]}, _chain(model, node, False))
            elif node.target in POOLS:
                _note(node, {node.args[0]: ACTIVATION}, node)
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to check."""


def _note(node: Node, inputs: dict[Any, Any], end: Node | None) -> None:
    node.meta["quantization_annotation"] = QuantizationAnnotation(inputs, _annotated=True)
    if end is not None:
        own = node.meta["quantization_annotation"] if end is node else QuantizationAnnotation(_annotated=True)
        own.output_qspec = ACTIVATION
        end.meta["quantization_annotation"] = own


def _chain(model: GraphModule, node: Node, normalised: bool) -> Node:
    """Returns the last node of what is computed with a layer or a sum in one: normalisation, then ReLU."""
    for accepts in ([_is_norm] if normalised else []) + [lambda _, n: n.target in RELUS]:
        users = [user for user in node.users if user.op != "output"]
        if len(users) == 1 and accepts(model, users[0]):
            node = users[0]
    return node


def _is_norm(model: GraphModule, node: Node) -> bool:
    return node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), _BatchNorm)


def _two_maps(node: Node) -> bool:
    """Says whether a sum is of two tensors of one shape that the network computes."""
    operands = [value for value in node.args[:2] if isinstance(value, Node) and value.op != "get_attr"]
    found = [value.meta.get("val") for value in operands]
    maps = [value for value in found if isinstance(value, Tensor) and value.is_floating_point()]
    return len(maps) == 2 and maps[0].shape == maps[1].shape


def _layer(node: Node) -> str:
    """Names the layer of a node, by its weight where it has one, else by the module in which it is."""
    weight = node.args[1]
    if isinstance(weight, Node) and weight.op == "get_attr":
        return str(weight.target).removeprefix(f"{MODULE}.").rpartition(".")[0]
    stack = [*(node.meta.get("nn_module_stack") or {"": ("", "")}).values()]
    return str(stack[-1][0]).removeprefix(f"{MODULE}.")


def prepared(graph: GraphModule) -> tuple[GraphModule, set[str]]:
    """Returns a traced graph with a :class:`Rounding` wherever values become integers, and the names of its layers."""
    integers = Integers()
    return prepare_qat_pt2e(graph, integers), integers.layers


def roundings(model: nn.Module) -> list[Rounding]:
    """Returns all places of a model in which values are rounded."""
    return [module for module in model.modules() if isinstance(module, Rounding)]


class Converted(Stand):
    """A stand-in whose weights are integers of eight bits: what is deployed, as a graph that quantises explicitly.

    Its state is what a file needs: the integers, their scales, biases, and scale and zero point of each activation.

    Args:
        trained: What is converted; a copy of it is used up.
    """

    activations: Tensor

    def __init__(self, trained: Trained) -> None:
        trained.eval()
        graph = convert_pt2e(trained.graph)
        _fold(graph)
        for name, buffer in [*graph.named_buffers()]:
            if name.startswith(FOLDED) or name.endswith(COUNTED):
                delattr(graph, name)
                graph.register_parameter(name, nn.Parameter(buffer, requires_grad=False))
        graph.requires_grad_(False)
        super().__init__(trained.stands_for, GraphModule(graph, graph.graph), trained.calls)
        scales = [node.args[1:3] for node in self._rounded()]
        self.register_buffer("activations", torch.tensor(scales, dtype=torch.float64).reshape(-1, 2))
        self.register_load_state_dict_post_hook(_set_scales)

    def hold(self, module: nn.Module, graph: GraphModule) -> None:
        """Registers the graph with its integers."""
        self.add_module("converted", graph)

    def _rounded(self) -> list[Node]:
        """Returns the nodes that hold scale and zero point of an activation."""
        targets = (QUANTISED.quantize_per_tensor.default, QUANTISED.dequantize_per_tensor.default)
        return [node for node in self.graph.graph.nodes if node.target in targets]


def _set_scales(converted: Any, _: Any) -> None:
    """Writes loaded scales into the graph, in which they are constants."""
    for node, (scale, zero) in zip(converted._rounded(), converted.activations.tolist(), strict=True):
        node.args = (node.args[0], scale, int(zero), *node.args[3:])
    converted.graph.recompile()


@torch.no_grad()
def _fold(graph: GraphModule) -> None:
    """Takes normalisation into the convolution before it: a factor of each channel's scale, and a bias.

    The integers stay as they are but for their sign where the factor is negative. A scale is above zero, so a factor
    of zero makes the integers zero.
    """
    for node in list(graph.graph.nodes):
        if not _is_norm(graph, node):
            continue
        conv = node.args[0]
        weight = conv.args[1] if conv.target in CONVOLUTIONS and len(conv.users) == 1 else None
        if weight is None or weight.target is not QUANTISED.dequantize_per_channel.default:
            continue
        norm: Any = graph.get_submodule(str(node.target))
        integers, scale = (_tensor(graph, value) for value in weight.args[:2])
        factor = torch.rsqrt(norm.running_var + norm.eps) * (1.0 if norm.weight is None else norm.weight)
        bias = -norm.running_mean
        if len(conv.args) > 2 and conv.args[2] is not None:
            bias = bias + _tensor(graph, conv.args[2])
        bias = bias * factor + (0.0 if norm.bias is None else norm.bias)
        sign = factor.sign().to(integers.dtype).view(-1, *[1] * (integers.dim() - 1))
        made = {"integers": integers * sign, "scale": torch.where(factor == 0, 1.0, scale * factor.abs()), "bias": bias}
        nodes = {}
        for what, value in made.items():
            name = f"{conv.name}_{what}"
            graph.register_buffer(name, value.detach().contiguous())
            with graph.graph.inserting_before(weight):
                nodes[what] = graph.graph.get_attr(name)
        with graph.graph.inserting_before(conv):
            own = graph.graph.call_function(
                weight.target, (nodes["integers"], nodes["scale"], *weight.args[2:]), dict(weight.kwargs)
            )
        conv.args = (conv.args[0], own, nodes["bias"], *conv.args[3:])
        node.replace_all_uses_with(conv)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _tensor(graph: GraphModule, node: Any) -> Tensor:
    owner, _, name = str(node.target).rpartition(".")
    found: Tensor = getattr(graph.get_submodule(owner), name)
    return found
