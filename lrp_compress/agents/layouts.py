"""Where other libraries keep a network among their tensors, and how it is taken from there.

To add a library, add a `Layout`. Sources: files saved by Stable-Baselines3 and sb3-contrib 2.9; CleanRL's
``dqn_atari.py``, ``ppo_atari.py``, ``sac_atari.py`` and their JAX versions, ``ppo_procgen.py``,
``qdagger_dqn_atari_impalacnn.py``, ``ppo.py`` and ``dqn.py``; PFRL's ``LargeAtariCNN`` and
``DuelingDQN``; RADIAL-RL's ``CnnDQN``; floringogianu/atari-agents' published checkpoints.

Every tensor is read, or known to belong to no policy (`Layout.aside`), or the agent is refused: a tensor that is
overlooked is a network that computes something else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from lrp_compress.agents.architectures import IMPALA, NATURE, RELU_MLP, TANH_MLP, Architecture, State
from lrp_compress.agents.zip_settings import check_actions, check_pictures, check_settings, input_scale, stated_actions
from lrp_compress.networks.graph import Network
from lrp_compress.networks.spaces import Spaces
from lrp_compress.networks.values import Unread
from lrp_compress.support.errors import UserError

KINDS = ("weight", "bias")
SB3_CNN = ("cnn.0", "cnn.2", "cnn.4", "linear.0")
CLEANRL = ("network.0", "network.2", "network.4", "network.7")
SEQUENCE = ("conv", *(f"res_block{block}.conv{number}" for block in (0, 1) for number in (0, 1)))
CLEANRL_IMPALA = (*(f"network.{place}.{name}" for place in (0, 1, 2) for name in SEQUENCE), "network.5")
QUANTILES = 200  # of an action, by QR-DQN's default
PREFIXES = ("_orig_mod.", "module.", "model.", "policy.", "agent.")  # of wrappers around the network
UNFIT = {  # parts of names that tell an agent which is no plain network
    r"(^|[._])(lstm|gru|rnn)": "a recurrent agent (LSTM)",
    r"(^|[._])(atoms|support|z_values)$": "a distributional agent (C51)",
    r"^(critic_ext|critic_int|extra_layer|predictor)\b": "an agent with random network distillation (RND)",
}


@dataclass(frozen=True)
class Layout:
    """Where a library keeps a network in its ``state_dict``.

    Attributes
    ----------
    name : str
        Library and algorithm.
    head : {"q", "policy", "dueling"}
        Kind of the network's head.
    layers : tuple of str
        Modules from the first to the output; a ``*`` at the end of one stands for all numbered modules of a sequence.
        With a dueling head value stream before advantage stream.
    aside : tuple of str
        Starts of the keys of critics and target networks, which say nothing of the policy.
    fires : bool
        Whether agents of this library are trained under a wrapper that presses FIRE after a lost life.
    frame_skip : int
        Emulator frames of a decision.
    architecture : Architecture
        What they are the layers of.
    """

    name: str
    head: str
    layers: tuple[str, ...]
    aside: tuple[str, ...] = ()
    fires: bool = True
    frame_skip: int = 4
    architecture: Architecture = NATURE


def _below(prefix: str, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}" for name in names)


SB3_DQN, SB3_PPO = "Stable-Baselines3 DQN", "Stable-Baselines3 PPO or A2C"
CRITICS = ("vf_features_extractor.", "mlp_extractor.value_net.", "value_net.")
LAYOUTS = (
    Layout(SB3_DQN, "q", (*_below("q_net.features_extractor", SB3_CNN), "q_net.q_net.*"), ("q_net_target.",)),
    Layout(SB3_DQN, "q", (*_below("features_extractor", SB3_CNN), "q_net.*")),  # its q_net alone
    Layout(
        "sb3-contrib QR-DQN",
        "q",
        (*_below("quantile_net.features_extractor", SB3_CNN), "quantile_net.quantile_net.*"),
        ("quantile_net_target.",),
    ),
    Layout(SB3_PPO, "policy", (*_below("pi_features_extractor", SB3_CNN), "action_net"), CRITICS),
    Layout(SB3_PPO, "policy", (*_below("features_extractor", SB3_CNN), "action_net"), CRITICS),  # before version 1.8
    Layout("CleanRL PPO", "policy", (*CLEANRL, "actor"), ("critic.",)),
    Layout("CleanRL DQN", "q", (*CLEANRL, "network.9")),
    Layout("CleanRL IMPALA PPO", "policy", (*CLEANRL_IMPALA, "actor"), ("critic.",), architecture=IMPALA),
    Layout("CleanRL IMPALA DQN", "q", (*CLEANRL_IMPALA, "network.7"), architecture=IMPALA),
    Layout("CleanRL SAC", "policy", ("conv.0", "conv.2", "conv.4", "fc1", "fc_logits")),
    Layout("PFRL DQN", "q", (*_below("0.layers", ("0", "1", "2")), "0.output", "1"), fires=False),
    Layout(
        "PFRL dueling DQN",
        "dueling",
        (
            *_below("conv_layers", ("0", "1", "2")),
            *(f"{s}_stream.{name}" for s in ("v", "a") for name in ("hidden_layers.0", "output")),
        ),
        fires=False,
    ),
    Layout(
        "RADIAL-RL dueling DQN",
        "dueling",
        ("cnn.0", "cnn.2", "cnn.4", "value.0", "value.2", "advantage.0", "advantage.2"),
        fires=False,
    ),
    Layout(
        "atari-agents",
        "q",
        (*_below("_AtariNet__features", ("0", "2", "4")), "_AtariNet__head.0", "_AtariNet__head.2"),
        fires=False,
    ),
    Layout(SB3_PPO, "policy", ("mlp_extractor.policy_net.*", "action_net"), CRITICS, False, architecture=TANH_MLP),
    Layout(SB3_DQN, "q", ("q_net.q_net.*",), ("q_net_target.",), False, architecture=RELU_MLP),
    Layout("CleanRL PPO", "policy", ("actor.*",), ("critic.",), False, architecture=TANH_MLP),
    Layout("CleanRL DQN", "q", ("network.*",), (), False, architecture=RELU_MLP),
)


def network_from_state(
    state: State, spaces: Spaces, settings: Mapping[str, Any] = MappingProxyType({}), source: str = "the agent"
) -> tuple[Network, Layout]:
    """Build the network that another library's ``state_dict`` holds.

    Parameters
    ----------
    state : mapping of str to Tensor
        The ``state_dict``.
    spaces : Spaces
        What the environment gives and takes; the action sets tell how many quantiles a QR-DQN has where its file does
        not.
    settings : mapping
        What a Stable-Baselines3 zip says in plain JSON.
    source : str
        What errors call the agent.

    Returns
    -------
    network : Network
        In evaluation mode, float32. A QR-DQN's quantiles are averaged into the weights of the last layer, which gives
        its Q-values exactly.
    layout : Layout
        Which library's tensors they were.

    Raises
    ------
    UserError
        If they belong to no library that is known here, or not all of them to the network.
    """
    state = _unwrapped(state)
    layout = _find(state, source)
    modules, made = _modules(layout, state), layout.architecture
    check_settings(settings, made, len(modules) - made.convolutions - 1, source)
    names = made.names(len(modules), layout.head == "dueling")
    tensors = {
        f"{own}.{kind}": _plain(state, f"{module}.{kind}", source)
        for own, module in zip(names, modules, strict=True)
        for kind in KINDS
    }
    if "quantile_net" in modules[0]:
        tensors |= _mean_quantiles(source, tensors, settings, spaces)
    first = f"{names[0]}.weight"
    if made.convolutions:
        check_pictures(settings, spaces.observations, source)
        tensors[first] = tensors[first] * input_scale(settings, source)
    try:
        network = made.make(tensors, layout.head, spaces.observations)
    except (Unread, ValueError) as error:
        raise UserError(f"{source} is no {made.name}: {error}") from error
    check_actions(settings, network.actions, source)
    return network, layout


def fill_state(state: State, network: Network, source: str = "the agent") -> None:
    """Write a network into another library's ``state_dict``, in place: the reverse of `network_from_state`.

    Parameters
    ----------
    state : mapping of str to Tensor
        Of a library that is known here. Each of a QR-DQN's quantiles becomes the Q-value.
    network : Network
        A Nature CNN.
    source : str
        What errors call the agent.

    Raises
    ------
    UserError
        If the two differ in the kind of their head, their layers or a width.
    """
    layout = _find(state, "the learner")
    if layout.head != network.head_kind:
        raise UserError(f"{source} has a {network.head_kind} head, but {layout.name} learns a {layout.head} head")
    modules, own = _modules(layout, state), network.state_dict()
    names = layout.architecture.names(len(modules), layout.head == "dueling")
    if names != [*network.widths, "head"]:
        raise UserError(f"{source} has the layers {', '.join(network.widths)}; {layout.name} learns a Nature CNN")
    for name, module in zip(names, modules, strict=True):
        for kind in KINDS:
            target, values = state[f"{module}.{kind}"], own[f"{name}.{kind}"]
            if name == "head":  # once for each quantile
                values = torch.cat([values] * max(1, len(target) // len(values)))
            if values.shape != target.shape:
                raise UserError(f"{source} has {len(values)} outputs in {name}, but {layout.name} learns {len(target)}")
            target.copy_(values)


def _unwrapped(state: State) -> State:
    """Take off what wrappers put before every name."""
    while state and (prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None)):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _find(state: State, source: str) -> Layout:
    """Find the layout all of whose tensors are there, and refuse an agent that has further ones."""
    for pattern, kind in UNFIT.items():
        if key := next((key for key in state if re.search(pattern, key)), None):
            raise UserError(f"{source} is {kind}: it has {key[:80]}; only plain feed-forward networks are read")
    fitting = [layout for layout in LAYOUTS if _fits(layout, state)]
    unread = {layout: _unread(layout, state) for layout in fitting}
    if whole := next((layout for layout in fitting if not unread[layout]), None):
        return whole
    if fitting:
        layout = min(fitting, key=lambda layout: len(unread[layout]))
        raise UserError(
            f"{source} is taken for {layout.name}, but {unread[layout][0][:80]} is no part of a plain "
            f"{layout.architecture.name}; agents with further or other layers are not read"
        )
    known = ", ".join(dict.fromkeys(layout.name for layout in LAYOUTS))
    raise UserError(f"{source}: its tensors ({_some(state)}) belong to no known library ({known})")


def _some(state: State) -> str:
    return ", ".join(key[:80] for key in list(state)[:3]) + (", ..." if len(state) > 3 else "")


def _modules(layout: Layout, state: State) -> list[str]:
    """Name the modules of a layout with ``*`` written out."""
    modules = []
    for module in layout.layers:
        if module.endswith("*"):
            pattern = re.compile(re.escape(module[:-1]) + r"(\d{1,3})\.weight")
            found = sorted(int(match[1]) for key in state if (match := pattern.fullmatch(key)))
            modules += [f"{module[:-1]}{number}" for number in found]
        else:
            modules.append(module)
    return modules


def _fits(layout: Layout, state: State) -> bool:
    modules = _modules(layout, state)
    whole = len(modules) >= len(layout.layers) and all(f"{m}.{kind}" in state for m in modules for kind in KINDS)
    return whole and (layout.architecture.convolutions > 0 or state[f"{modules[0]}.weight"].dim() == 2)


def _unread(layout: Layout, state: State) -> list[str]:
    """List the keys of a state that a layout neither reads nor knows as no part of the policy."""
    read = {f"{module}.{kind}" for module in _modules(layout, state) for kind in KINDS}
    left = [key for key in state if key not in read and not key.startswith(layout.aside or ("\0",))]
    return [key for key in left if not any(_same(state, key, other) for other in read)]


def _same(state: State, key: str, other: str) -> bool:
    """Tell whether a tensor is another one under a second name, as Stable-Baselines3 saves shared extractors."""
    return key.split(".")[-3:] == other.split(".")[-3:] and torch.equal(state[key], state[other])


def _plain(state: State, key: str, source: str) -> Tensor:
    """Give a tensor as float32 if it is an ordinary one."""
    tensor = state[key]
    ordinary = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
    if not ordinary or not tensor.is_floating_point() or not tensor.dim() or not tensor.numel():
        raise UserError(f"{source}: {key} is no ordinary tensor of numbers")
    if not tensor.isfinite().all():
        raise UserError(f"{source}: {key} holds numbers that are not finite")
    return tensor.float()


def _mean_quantiles(source: str, tensors: State, settings: Mapping[str, Any], spaces: Spaces) -> dict[str, Tensor]:
    """Average a QR-DQN's outputs, ordered quantile by quantile, into one Q-value per action."""
    outputs = len(tensors["head.bias"])
    stated = [stated_actions(settings, source)] if settings else list(spaces.action_sets)
    counts = [count for count in stated if outputs % count == 0]
    if not counts:
        raise UserError(f"{source}: {outputs} quantiles in all are not the same number for every action")
    if len(counts) > 1 or (not settings and outputs != QUANTILES * counts[0]):
        raise UserError(
            f"{source}: {outputs} outputs may be the quantiles of {' or of '.join(map(str, counts))} actions or "
            "others; give the zip that Stable-Baselines3 saved, which says which"
        )
    layer = {key: tensors[key] for key in ("head.weight", "head.bias")}
    return {key: tensor.view(-1, counts[0], *tensor.shape[1:]).mean(0) for key, tensor in layer.items()}
