"""Agents of CleanRL's JAX scripts: flax's msgpack, in which arrays are an extension type, and nothing is executed.

The format is that of ``flax.serialization.msgpack_serialize``: an array is extension 1 and holds its shape, the name of
its dtype and its bytes. A dense kernel has its inputs first; images have their channels last.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
import torch
from torch import Tensor

ARRAY = 1
MOST_OBJECTS = 2**16  # an empty list takes one byte in the file and sixty in memory
MOST_ENTRIES = 2**8  # of a list or a map
TYPES = ("float32", "float16", "float64")
CONVS = {"Conv_0": "network.0", "Conv_1": "network.2", "Conv_2": "network.4"}


def is_flax(content: bytes) -> bool:
    """Tell by its first byte whether a file is a msgpack map that is not empty, which no pickle is."""
    return 0x81 <= content[0] <= 0x8F or content[0] in (0xDE, 0xDF)


def read_flax(content: bytes) -> dict[str, Tensor]:
    """Read the parameters of a Nature CNN under the names of CleanRL's PyTorch scripts.

    Parameters
    ----------
    content : bytes
        What ``dqn_atari_jax.py``, ``ppo_atari_envpool_xla_jax.py`` and their kin save.

    Returns
    -------
    dict of str to Tensor
        Float tensors, the critic's left out; a layer that is not of these networks keeps its own name.

    Raises
    ------
    ValueError
        If the content is no such file.
    """
    left = iter(range(MOST_OBJECTS))

    def counted(made: Any) -> Any:
        if next(left, None) is None:
            raise ValueError(f"it holds more than {MOST_OBJECTS} lists and objects")
        return made

    tree = msgpack.unpackb(
        content,
        ext_hook=lambda kind, data: counted(_array(kind, data)),
        list_hook=counted,
        object_hook=counted,
        strict_map_key=False,
        max_ext_len=len(content),
        max_array_len=MOST_ENTRIES,
        max_map_len=MOST_ENTRIES,
    )
    tree = tree.get("model_weights", tree) if isinstance(tree, dict) else tree
    parts = _parts(tree)
    flat = {f"{part}{name}": array for part, params in parts.items() for name, array in _flat(params)}
    tensors: dict[str, Tensor] = {}
    for name, array in flat.items():
        layer, _, kind = name.rpartition(".")
        tensor = torch.from_numpy(array)
        if kind == "kernel" and tensor.dim() == 4:
            tensor = tensor.permute(3, 2, 0, 1)
        elif kind == "kernel" and tensor.dim() == 2:
            tensor = _channels_first(tensor, flat) if layer == "Dense_0" else tensor.T
        tensors[f"{_module(layer, parts)}.{'weight' if kind == 'kernel' else kind}"] = tensor.contiguous()
    return tensors


def _parts(tree: Any) -> dict[str, Any]:
    """Tell the networks of a file apart: PPO's has a list of settings, trunk, actor and critic."""
    if isinstance(tree, dict) and isinstance(tree.get("1"), dict) and set(tree["1"]) == {"0", "1", "2"}:
        trunk, actor, _ = (tree["1"][place] for place in ("0", "1", "2"))
        return {"": _params(trunk), "actor.": _params(actor)}
    return {"": _params(tree)}


def _params(tree: Any) -> Mapping[str, Any]:
    if not isinstance(tree, dict) or not isinstance(params := tree.get("params", tree), dict):
        raise ValueError("it holds no parameters of a flax network")
    if odd := next((name for name in tree if params is not tree and name != "params"), None):
        raise ValueError(f"{odd} beside its parameters is not known")  # such as the statistics of a BatchNorm
    return params


def _flat(params: Mapping[str, Any], prefix: str = "") -> list[tuple[str, np.ndarray[Any, Any]]]:
    found = []
    for name, value in params.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, np.ndarray):
            found.append((f"{prefix}{name}", value))
        else:
            raise ValueError(f"{prefix}{name} is no array")
    return found


def _module(layer: str, parts: Mapping[str, Any]) -> str:
    """Give a layer the name it has in CleanRL's PyTorch scripts."""
    names = CONVS | {"Dense_0": "network.7", "actor.Dense_0": "actor"}
    if "actor." not in parts:
        names["Dense_1"] = "network.9"
    return names.get(layer, layer)


def _channels_first(kernel: Tensor, flat: Mapping[str, np.ndarray[Any, Any]]) -> Tensor:
    """Reorder the inputs of the first dense layer, a flattened map of (row, column, channel)."""
    channels = flat["Conv_2.bias"].shape[0] if "Conv_2.bias" in flat else 0
    side = math.isqrt(len(kernel) // channels) if channels else 0
    if side * side * channels != len(kernel):
        raise ValueError(f"its first dense layer has {len(kernel)} inputs, which are no square map")
    return kernel.view(side, side, channels, -1).permute(3, 2, 0, 1).flatten(1)


def _array(kind: int, content: bytes) -> np.ndarray[Any, Any]:
    if kind != ARRAY:
        raise ValueError(f"msgpack extension {kind} is no array")
    shape, name, data = msgpack.unpackb(content, max_bin_len=len(content))
    if name not in TYPES or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(f"an array of {re.sub(r'[^ -~]', '?', str(name))[:40]} is no weight")
    return np.frombuffer(data, name).reshape(shape).astype(np.float32)
