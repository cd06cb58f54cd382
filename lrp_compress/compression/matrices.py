"""Layers with weights as matrices: what their outputs are computed from, a row for each place of a map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def weight_matrix(layer: Any) -> Tensor:
    """Lay out a layer's weights and bias, (outputs, inputs + 1); a matrix for each group where there are several."""
    weight = torch.cat([layer.weight.flatten(1), layer.bias[:, None]], 1)
    return weight if getattr(layer, "groups", 1) == 1 else weight.view(layer.groups, -1, weight.shape[1])


@torch.no_grad()
def set_weights(layer: Any, weight: Tensor) -> None:
    """Give a layer the weights and bias of such a matrix, or of several."""
    layer.weight.copy_(weight[..., :-1].reshape(layer.weight.shape))
    layer.bias.copy_(weight[..., -1].flatten())


def at_places(values: Tensor, places: Tensor | None) -> Tensor:
    """Lay out a layer's values at some places of its map, a row each."""
    return values if places is None else values.flatten(2)[:, :, places].transpose(1, 2).flatten(0, 1)


def input_rows(layer: nn.Module, inputs: Tensor, places: Tensor | None) -> Tensor:
    """Lay out what a layer's outputs at some places are computed from, a row each, and a one for the bias."""
    if places is not None:
        assert isinstance(layer, nn.Conv2d)
        assert not isinstance(layer.padding, str)
        rows, columns = layer.padding
        inputs = functional.pad(inputs, (columns, columns, rows, rows))
        windows = inputs.unfold(2, layer.kernel_size[0], layer.stride[0])
        windows = windows.unfold(3, layer.kernel_size[1], layer.stride[1])
        columns = windows.shape[3]
        inputs = windows[:, :, places // columns, places % columns].transpose(1, 2)
        if layer.groups > 1:
            inputs = inputs.reshape(*inputs.shape[:2], layer.groups, -1).movedim(2, 0).flatten(1, 2)
        else:
            inputs = inputs.flatten(2).flatten(0, 1)
    return torch.cat([inputs, inputs.new_ones(*inputs.shape[:-1], 1)], -1)
