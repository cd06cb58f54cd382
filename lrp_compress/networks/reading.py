"""A network of one's own, read as a list of layers from what PyTorch says it computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from lrp_compress.networks.graph import Layer, LayerList
from lrp_compress.networks.nature import STACK
from lrp_compress.support.errors import UserError

ATEN = torch.ops.aten


@dataclass
class _Reading:
    """What has been read so far."""

    tensors: Mapping[str, Tensor]  # by the names that their nodes have in the program
    layers: list[Layer] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)
    scale: float = 1.0
    at: str = ""  # the node that has computed the last layer's value

    def tensor(self, node: Any) -> Tensor | None:
        return None if node is None else self.tensors[node.name].detach().float()

    def add(self, node: fx.Node, op: str, options: dict[str, Any] | None = None) -> None:
        self.layers.append(Layer(node.name, op, options or {}))

    def weigh(self, node: fx.Node, op: str, options: dict[str, Any]) -> None:
        weight = self.tensor(node.args[1])
        bias = self.tensor(node.args[2]) if len(node.args) > 2 else None
        assert weight is not None
        self.add(node, op, options | ({"kernel": list(weight.shape[2:])} if op == "conv" else {}))
        self.state |= {
            f"{node.name}.weight": weight,
            f"{node.name}.bias": torch.zeros(len(weight)) if bias is None else bias,
        }


def read_module(module: nn.Module, source: str) -> LayerList:
    """Read what a module computes, by `torch.export`; nothing of it is run but its own ``forward``.

    Parameters
    ----------
    module : nn.Module
        From observations, uint8 of shape (N, 4, 84, 84), to outputs of shape (N, actions). A batch normalisation after
        a convolution or a dense layer is folded into it.
    source : str
        What errors call the module.

    Returns
    -------
    LayerList

    Raises
    ------
    UserError
        If it cannot be exported, computes something that is no layer which is known, or is no chain of layers.
    """
    observations = torch.randint(0, 256, (2, STACK, 84, 84), dtype=torch.uint8)
    module = module.eval()
    try:
        program = torch.export.export(module, (observations,), dynamic_shapes=({0: torch.export.Dim("n")},))
    except Exception as error:  # of the module's own code too
        raise UserError(
            f"{source} cannot be exported by PyTorch: {' '.join(str(error).split())[:300]}; it must take observations, "
            f"uint8 of shape (N, {STACK}, 84, 84), and give a tensor of shape (N, actions)"
        ) from error
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names |= signature.inputs_to_lifted_tensor_constants
    values = {**program.state_dict, **program.constants}
    reading = _Reading({node: values[name] for node, name in names.items()})
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name not in names:
            reading.at = node.name
        elif node.op == "call_function" and node.target is not ATEN._assert_tensor_metadata.default:
            _read(node, reading, source)
        elif node.op == "output" and [arg.name for arg in node.args[0]] != [reading.at]:
            raise UserError(f"{source} gives several values; it must give the outputs of the policy alone")
    return LayerList(reading.layers, reading.state, reading.scale)


def _read(node: fx.Node, reading: _Reading, source: str) -> None:
    values = [arg.name for arg in node.args if isinstance(arg, fx.Node) and arg.name not in reading.tensors]
    reader = READERS.get(node.target)
    if reader is None:
        raise UserError(f"{source} computes {node.target}, which is no layer that is read")
    if values != [reading.at]:
        raise UserError(f"{source} is no chain of layers: {node.target} is computed from {', '.join(values)}")
    if not reader(node, reading):
        raise UserError(f"{source} computes {node.target} in a way that is not read")
    reading.at = node.name


def _same(node: fx.Node, reading: _Reading) -> bool:
    return True


def _scale(node: fx.Node, reading: _Reading) -> bool:
    factor = node.args[1]
    if isinstance(factor, fx.Node):
        value = reading.tensor(factor) if factor.name in reading.tensors else None
        factor = None if value is None or value.numel() != 1 else value.item()
    if reading.layers or not isinstance(factor, int | float):
        return False
    reading.scale = reading.scale / factor if node.target is ATEN.div.Tensor else reading.scale * factor
    return True


def _conv(node: fx.Node, reading: _Reading) -> bool:
    given = [*node.args[3:], *([1, 1], [0, 0], [1, 1], 1)[len(node.args[3:]) :]]
    stride, padding, dilation, groups = given
    if isinstance(padding, str):
        if padding != "valid":
            return False
        padding = [0, 0]
    pairs = {"stride": stride, "padding": padding, "dilation": dilation}
    options = {name: list(pair) * (2 // len(pair)) for name, pair in pairs.items()}  # type: ignore[arg-type]
    reading.weigh(node, "conv", options | {"groups": groups})
    return True


def _dense(node: fx.Node, reading: _Reading) -> bool:
    reading.weigh(node, "dense", {})
    return True


def _batch_norm(node: fx.Node, reading: _Reading) -> bool:
    weight, bias, mean, variance = (reading.tensor(arg) for arg in node.args[1:5])
    if not reading.layers or reading.layers[-1].op not in ("conv", "dense") or mean is None or variance is None:
        return False
    name = reading.layers[-1].name
    factor = (variance + float(node.args[7])).rsqrt()  # type: ignore[arg-type]
    factor = factor if weight is None else factor * weight
    own = reading.state[f"{name}.weight"]
    reading.state[f"{name}.weight"] = own * factor.view(-1, *[1] * (own.dim() - 1))
    shifted = (reading.state[f"{name}.bias"] - mean) * factor
    reading.state[f"{name}.bias"] = shifted if bias is None else shifted + bias
    return True


def _relu(node: fx.Node, reading: _Reading) -> bool:
    reading.add(node, "relu")
    return True


def _flatten(node: fx.Node, reading: _Reading) -> bool:
    value: Tensor = node.meta["val"]
    if value.dim() != 2:
        return False
    if not reading.layers or reading.layers[-1].op not in ("flatten", "dense"):
        reading.add(node, "flatten", {"channels_last": False})
    return True


READERS: dict[Any, Callable[[fx.Node, _Reading], bool]] = {
    **dict.fromkeys(
        (ATEN.to.dtype, ATEN._to_copy.default, ATEN.dropout.default, ATEN.contiguous.default, ATEN.detach.default),
        _same,
    ),
    **dict.fromkeys((ATEN.div.Tensor, ATEN.mul.Tensor), _scale),
    **dict.fromkeys((ATEN.conv2d.default, ATEN.conv2d.padding), _conv),
    ATEN.linear.default: _dense,
    ATEN.batch_norm.default: _batch_norm,
    **dict.fromkeys((ATEN.relu.default, ATEN.relu_.default), _relu),
    **dict.fromkeys(
        (ATEN.flatten.using_ints, ATEN.view.default, ATEN.reshape.default, ATEN._unsafe_view.default), _flatten
    ),
}
