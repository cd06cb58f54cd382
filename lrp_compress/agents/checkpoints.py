"""Agent files: safetensors with JSON metadata, loaded in one line and never unpickled."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lrp_compress.networks.building import build
from lrp_compress.networks.graph import Layer, Network
from lrp_compress.networks.nature import STREAMS, fold_dueling, nature_cnn
from lrp_compress.networks.spaces import Decision, Observations
from lrp_compress.support.errors import UserError
from lrp_compress.support.files import atomic_path

FORMATS = ("lrp_compress/1", "lrp_compress/2")  # the first says the widths of a Nature CNN, the second every layer
ACTION_SETS = ("minimal", "full")
MOST_FRAMES = 60  # of a decision: a second
MOST_CHANNELS, MOST_SCORE = 2**31, 1e12
ROM_ID = re.compile("[a-z0-9_]{1,40}")
SCORE = "score"  # in an agent's lineage, the mean return that its file said it has
MOST_HEADER = 2**22  # bytes of JSON
HEADER_START = 4096  # bytes of a file in which our metadata begins


@dataclass(frozen=True)
class AgentInfo:
    """What an agent file says beside the weights.

    Attributes
    ----------
    game : str
        The ROM id of the game the agent plays, e.g. ``"breakout"``.
    action_set : {"minimal", "full"}
        Whether the actions are the game's minimal set or ALE's 18.
    fire_on_life_loss : bool
        Whether FIRE is pressed for the agent after a life is lost, as the wrapper it was trained under did.
    lineage : dict
        Where the agent comes from: the teacher's digest, criterion, ratio and so on; free JSON.
    kept : dict of str to list of int
        Per hidden layer the channels' indices in the original teacher's numbering.
    frame_skip : int
        Emulator frames of a decision.
    """

    game: str
    action_set: str
    fire_on_life_loss: bool
    lineage: dict[str, Any]
    kept: dict[str, list[int]]
    frame_skip: int = 4

    def __post_init__(self) -> None:
        if self.action_set not in ACTION_SETS:
            raise ValueError(f"action_set {self.action_set!r} is not one of {', '.join(ACTION_SETS)}")
        if not ROM_ID.fullmatch(self.game):
            raise ValueError(f"game {self.game!r} is not the id of a ROM, such as 'space_invaders'")
        if type(self.frame_skip) is not int or not 1 <= self.frame_skip <= MOST_FRAMES:
            raise ValueError(f"frame_skip {self.frame_skip!r} is not between 1 and {MOST_FRAMES}")
        if type(self.fire_on_life_loss) is not bool or not isinstance(self.lineage, dict):
            raise ValueError("fire_on_life_loss is not true or false, or lineage no object")
        if not all(type(channel) is int for channels in self.kept.values() for channel in channels):
            raise ValueError("kept is not a list of channel numbers per layer")


@dataclass(frozen=True)
class Agent:
    """A network and what is known about it."""

    network: Network
    info: AgentInfo


def all_channels(widths: Mapping[str, int]) -> dict[str, list[int]]:
    """List every channel of every hidden layer: the numbering of an unpruned network."""
    return {name: list(range(width)) for name, width in widths.items()}


def stated_frame_skip(metadata: Mapping[str, str], source: str) -> int:
    """Read how many emulator frames a decision lasts from an ONNX file's metadata, 4 where they do not say.

    Raises
    ------
    UserError
        If it is no number from 1 to `MOST_FRAMES`.
    """
    stated = metadata.get("frame_skip", "4")
    if stated not in map(str, range(1, MOST_FRAMES + 1)):
        raise UserError(f"{source}: frame_skip {stated[:20]!r} is not between 1 and {MOST_FRAMES}")
    return int(stated)


def save_agent(path: Path, agent: Agent, dtype: torch.dtype = torch.float32) -> None:
    """Write an agent file, atomically.

    Parameters
    ----------
    path : Path
        Usually ending in ``.safetensors``.
    agent : Agent
        What to store.
    dtype : torch.dtype
        Storage type of the weights; ``torch.float16`` halves the file.
    """
    network = agent.network
    header = {
        "format": FORMATS[-1],
        "layers": [dataclasses.asdict(layer) for layer in network.layers],
        "observations": dataclasses.asdict(network.observations),
        "decision": dataclasses.asdict(network.decision),
        **dataclasses.asdict(agent.info),
    }
    tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in network.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"lrp_compress": json.dumps(header)})


def load_agent(path: str | Path) -> Agent:
    """Load an agent from its file: ``load_agent("student.safetensors").network``.

    Parameters
    ----------
    path : str or Path
        A file written by `save_agent`.

    Returns
    -------
    Agent
        The network in evaluation mode with float32 weights, and its metadata.

    Raises
    ------
    UserError
        If the file is missing, truncated, of another kind, or its tensors do not fit its own metadata.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"agent file {path} does not exist")
    with open(path, "rb") as file:
        if (size := int.from_bytes(file.read(8), "little")) > MOST_HEADER and is_own(path):
            raise UserError(f"agent file {path} cannot be read: its header has {size} bytes, more than {MOST_HEADER}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"agent file {path} cannot be read: {_why(path, error)}") from error
    if "lrp_compress" not in metadata:
        raise UserError(f"agent file {path} holds tensors but no lrp_compress metadata; convert the agent first")
    try:
        return _build(json.loads(metadata["lrp_compress"]), tensors)
    except (AttributeError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"agent file {path} does not fit its own metadata: {reason}") from error


def is_own(path: Path) -> bool:
    """Tell by its header whether a file is this project's, whole or not: safetensors with our metadata in front."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{" and b'"lrp_compress"' in file.read(HEADER_START)


def _build(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Agent:
    version = header.pop("format")
    if version not in FORMATS:
        raise ValueError(f"its format is not {' or '.join(FORMATS)}")
    if version == FORMATS[0] and header["head"] == "dueling":
        header, tensors = _plain(header, tensors)
    make = _nature if version == FORMATS[0] else _network
    network = build(lambda: make(header), tensors)
    info = AgentInfo(**header)
    for layer, kept in info.kept.items():
        once = len(kept) == len(set(kept)) == network.widths.get(layer)
        if not once or min(kept) < 0 or max(kept) >= MOST_CHANNELS:
            raise ValueError(f"kept does not list the channels of {layer[:40]}, each once")
    if not isinstance(score := info.lineage.get(SCORE, 0.0), int | float) or not abs(score) < MOST_SCORE:
        raise ValueError(f"{SCORE} in its lineage is no number")
    # what lists no channels has all it ever had
    return Agent(network, dataclasses.replace(info, kept=all_channels(network.widths) | info.kept))


def _nature(header: dict[str, Any]) -> Network:
    return nature_cnn(header.pop("widths"), header.pop("head"), header.pop("actions"))


def _network(header: dict[str, Any]) -> Network:
    layers = [Layer(**{**fields, "inputs": _listed(fields["inputs"])}) for fields in header.pop("layers")]
    if odd := next((layer.name for layer in layers if layer.op == "round"), None):
        raise ValueError(f"{odd} rounds, which a network does only while it learns")
    observations = header.pop("observations")
    observations["shape"] = tuple(observations["shape"])
    return Network(layers, Observations(**observations), Decision(**header.pop("decision")))


def _listed(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list):
        raise ValueError(f"the inputs of a layer are no list, but {str(names)[:40]}")
    return tuple(names)


def _plain(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Fold a dueling network of the first format; its advantage units are numbered behind the value units."""
    parts: dict[str, dict[str, Any]] = {}
    for name in ("widths", "kept"):
        plain = {layer: value for layer, value in header[name].items() if layer.startswith("conv")}
        for layer in (layer for layer in header[name] if layer.startswith(f"{STREAMS[0]}fc")):
            value, advantage = (header[name][f"{stream}{layer.removeprefix(STREAMS[0])}"] for stream in STREAMS)
            behind = [unit + max(value) + 1 for unit in advantage] if name == "kept" else advantage
            plain[layer.removeprefix(STREAMS[0])] = value + behind
        parts[name] = plain
    return header | parts | {"head": "q"}, fold_dueling({key: value.float() for key, value in tensors.items()})


def _why(path: Path, error: Exception) -> str:
    with open(path, "rb") as file:
        start = file.read(9)
    if not start:
        return "it is empty"
    if start[8:] != b"{" and start.startswith((b"\x80", b"PK")):
        return "it is a pickle or zip archive, which is never unpickled; give a safetensors file of this project"
    return f"it is not a whole safetensors file ({error})"
