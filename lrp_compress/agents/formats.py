"""Agent files of other libraries, told apart by their content and never unpickled beyond plain tensors.

To add a format, add a `Layout`. Sources of the layouts: files saved by Stable-Baselines3 and sb3-contrib 2.9; CleanRL's
``dqn_atari.py`` and ``ppo_atari.py``; floringogianu/atari-agents' published checkpoints.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from lrp_compress.agents.networks import CONV_GEOMETRY, STACK, PolicyNetwork
from lrp_compress.errors import UserError

State = Mapping[str, Tensor]
LARGEST = 2**30  # bytes of an unpacked file; a Nature CNN with its optimiser has 20 MB


@dataclass(frozen=True)
class Layout:
    """Where a library keeps a Nature CNN in its ``state_dict``.

    Attributes
    ----------
    name : str
        Library and algorithm.
    head : {"q", "policy"}
        Kind of the network's head.
    layers : tuple of str
        Modules from the first convolution to the output; a final ``*`` stands for all numbered modules of a sequence.
    fires : bool
        Whether agents of this library are trained under a wrapper that presses FIRE after a lost life.
    absent : str
        Start of keys that belong to a network which is no plain Nature CNN.
    """

    name: str
    head: str
    layers: tuple[str, ...]
    fires: bool = True
    absent: str = "-"


LAYOUTS = (
    Layout(
        "Stable-Baselines3 DQN",
        "q",
        (*(f"q_net.features_extractor.{name}" for name in ("cnn.0", "cnn.2", "cnn.4", "linear.0")), "q_net.q_net.*"),
    ),
    Layout(
        "sb3-contrib QR-DQN",
        "q",
        (
            *(f"quantile_net.features_extractor.{name}" for name in ("cnn.0", "cnn.2", "cnn.4", "linear.0")),
            "quantile_net.quantile_net.*",
        ),
    ),
    *(
        Layout(
            "Stable-Baselines3 PPO or A2C",
            "policy",
            (*(f"{extractor}.{name}" for name in ("cnn.0", "cnn.2", "cnn.4", "linear.0")), "action_net"),
            absent="mlp_extractor.policy_net.",
        )
        for extractor in ("pi_features_extractor", "features_extractor")  # before version 1.8 only the latter
    ),
    Layout("CleanRL PPO", "policy", ("network.0", "network.2", "network.4", "network.7", "actor")),
    Layout("CleanRL DQN", "q", ("network.0", "network.2", "network.4", "network.7", "network.9")),
    Layout(
        "atari-agents",
        "q",
        (*(f"_AtariNet__features.{i}" for i in (0, 2, 4)), "_AtariNet__head.0", "_AtariNet__head.2"),
        fires=False,
    ),
)


def read_foreign(path: Path, actions: Sequence[int]) -> tuple[PolicyNetwork, Layout]:
    """Read a network that another library saved.

    Parameters
    ----------
    path : Path
        A Stable-Baselines3 zip (of which only ``policy.pth`` and plain JSON are read), or a ``state_dict`` saved by
        ``torch.save``, gzipped or not.
    actions : sequence of int
        The numbers of actions that fit the game; they tell how many quantiles a QR-DQN has where its file does not.

    Returns
    -------
    network : PolicyNetwork
        In evaluation mode, float32. A QR-DQN's quantiles are averaged into the weights of the last layer, which gives
        its Q-values exactly.
    layout : Layout
        Which library's file it was.

    Raises
    ------
    UserError
        If the file is no such file, is cut off, holds pickled objects, or holds another architecture.
    """
    state, settings = _read_state(path)
    return network_from_state(state, actions, settings, f"agent file {path}")


def network_from_state(
    state: State, actions: Sequence[int], settings: Mapping[str, Any] = MappingProxyType({}), source: str = "the agent"
) -> tuple[PolicyNetwork, Layout]:
    """Build the network that another library's ``state_dict`` holds; `read_foreign` without the file.

    Parameters
    ----------
    state : mapping of str to Tensor
        The ``state_dict``.
    actions : sequence of int
        The numbers of actions that fit the game.
    settings : mapping
        What a Stable-Baselines3 zip says in plain JSON.
    source : str
        What errors call the agent.

    Returns
    -------
    network : PolicyNetwork
        As from `read_foreign`.
    layout : Layout
        Which library's tensors they were.

    Raises
    ------
    UserError
        If they belong to no library that is known here, or to another architecture.
    """
    layout = next((layout for layout in LAYOUTS if _fits(layout, state)), None)
    if layout is None:
        known = ", ".join(dict.fromkeys(layout.name for layout in LAYOUTS))
        raise UserError(
            f"{source}: its tensors ({', '.join(list(state)[:3])}, ...) belong to no known library ({known}); "
            "convert it with lrp_compress.agents.checkpoints.save_agent"
        )
    if odd := [key for key in state if key.startswith(layout.absent)]:
        raise UserError(f"{source}: {layout.name} with further layers ({odd[0]}); only plain CnnPolicy is read")
    modules = _modules(layout, state)
    tensors = {
        f"{own}.{kind}": state[f"{module}.{kind}"].float()
        for own, module in zip(_own_names(len(modules)), modules, strict=True)
        for kind in ("weight", "bias")
    }
    if "quantile_net" in modules[0]:
        tensors |= _mean_quantiles(source, tensors, settings, actions)
    return _build(source, layout, tensors), layout


def fill_state(state: State, network: PolicyNetwork, source: str = "the agent") -> None:
    """Write a network into another library's ``state_dict``, in place: the reverse of `network_from_state`.

    Parameters
    ----------
    state : mapping of str to Tensor
        Of a library that is known here. Each of a QR-DQN's quantiles becomes the Q-value.
    network : PolicyNetwork
        Without a dueling head.
    source : str
        What errors call the agent.

    Raises
    ------
    UserError
        If the two differ in the kind of their head, their layers or a width.
    """
    layout = next(layout for layout in LAYOUTS if _fits(layout, state))
    if layout.head != network.head_kind:
        raise UserError(f"{source} has a {network.head_kind} head, but {layout.name} learns a {layout.head} head")
    modules, own = _modules(layout, state), network.state_dict()
    names = _own_names(len(modules))
    if names != [*network.widths, "head"]:
        raise UserError(f"{source} has the layers {', '.join(network.widths)}; {layout.name} learns a Nature CNN")
    for name, module in zip(names, modules, strict=True):
        for kind in ("weight", "bias"):
            target, values = state[f"{module}.{kind}"], own[f"{name}.{kind}"]
            if name == "head":  # once for each quantile
                values = torch.cat([values] * max(1, len(target) // len(values)))
            if values.shape != target.shape:
                raise UserError(f"{source} has {len(values)} outputs in {name}, but {layout.name} learns {len(target)}")
            target.copy_(values)


def _read_state(path: Path) -> tuple[State, Mapping[str, Any]]:
    """Read the tensors, and what a Stable-Baselines3 zip says beside them in plain JSON."""
    settings: Mapping[str, Any] = {}
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(LARGEST)
        elif content[:2] == b"PK":
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if "policy.pth" in archive.namelist():
                    settings = json.loads(archive.open("data").read(LARGEST))
                    content = archive.open("policy.pth").read(LARGEST)
        with warnings.catch_warnings():  # of odd pickles; the error says it all
            warnings.simplefilter("ignore")
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"agent file {path} is no plain file of tensors: it is damaged or holds pickled objects, which are never "
            "loaded; save the state_dict alone"
        ) from error
    except (OSError, EOFError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"agent file {path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if isinstance(state, dict) and isinstance(state.get("estimator_state"), dict):
        state = state["estimator_state"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"agent file {path} holds no state_dict; save network.state_dict() alone")
    return {str(key): value for key, value in state.items()}, settings


def _modules(layout: Layout, state: State) -> list[str]:
    """Name the modules of a layout with ``*`` written out."""
    last = layout.layers[-1]
    if not last.endswith("*"):
        return list(layout.layers)
    found = {int(m[1]) for key in state if (m := re.fullmatch(re.escape(last[:-1]) + r"(\d+)\.weight", key))}
    return [*layout.layers[:-1], *(f"{last[:-1]}{i}" for i in sorted(found))]


def _fits(layout: Layout, state: State) -> bool:
    modules = _modules(layout, state)
    return len(modules) >= len(layout.layers) and all(
        f"{module}.{kind}" in state for module in modules for kind in ("weight", "bias")
    )


def _own_names(layers: int) -> list[str]:
    dense = [f"fc{i}" for i in range(1, layers - len(CONV_GEOMETRY))]
    return [*CONV_GEOMETRY, *dense, "head"]


def _mean_quantiles(
    source: str, tensors: State, settings: Mapping[str, Any], actions: Sequence[int]
) -> dict[str, Tensor]:
    """Average a QR-DQN's outputs, ordered quantile by quantile, into one Q-value per action."""
    outputs = len(tensors["head.bias"])
    try:
        stated = [int(settings["action_space"]["n"])]
    except (KeyError, TypeError, ValueError):
        stated = []
    count = next((n for n in [*stated, *actions] if outputs % n == 0), None)
    if count is None:
        raise UserError(f"{source}: {outputs} quantiles in all are not the same number for every action")
    layer = {key: tensors[key] for key in ("head.weight", "head.bias")}
    return {key: tensor.view(-1, count, *tensor.shape[1:]).mean(0) for key, tensor in layer.items()}


def _build(source: str, layout: Layout, tensors: State) -> PolicyNetwork:
    stack = tensors["conv1.weight"].shape[1:2]
    if stack != (STACK,):
        raise UserError(f"{source}: its observations have {stack[0]} channels, not the {STACK} frames expected")
    widths = {key.removesuffix(".weight"): len(t) for key, t in tensors.items() if key.endswith("weight")}
    actions = widths.pop("head")
    network = PolicyNetwork(widths, layout.head, actions)
    for key, own in network.state_dict().items():
        if own.shape != tensors[key].shape:
            found, expected = tuple(tensors[key].shape), tuple(own.shape)
            raise UserError(f"{source} is no Nature CNN: {key} has the shape {found}, not {expected}")
    network.load_state_dict(tensors)
    return network.eval()
