"""Where the teacher comes from: a shipped agent, a file or a server, checked against the game it is to play."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

from lrp_compress.agents.checkpoints import SCORE, Agent, AgentInfo, all_channels, is_own, load_agent
from lrp_compress.agents.formats import agents_in, read_foreign, read_tensors
from lrp_compress.agents.layouts import Layout
from lrp_compress.agents.own_networks import own_network
from lrp_compress.agents.sources import local_file
from lrp_compress.config.schema import GameConfig, TeacherConfig, TrackingConfig
from lrp_compress.networks.graph import Network
from lrp_compress.networks.spaces import Spaces
from lrp_compress.support.errors import UserError
from lrp_compress.support.files import file_digest

SHIPPED = "auto"
SHOWN = 120  # characters of a name that may be too long for a file


def teachers_dir() -> Path:
    """Folder of the shipped agents: inside an installed package, else at the top of the repository."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "teachers"
    return inside if inside.is_dir() else package.parent / "teachers"


def teacher_path(config: TeacherConfig, game: GameConfig, cache_dir: Path, tracking: TrackingConfig) -> Path:
    """Find the teacher's file, and fetch it if it is on a server.

    Raises
    ------
    UserError
        If the shipped agent is asked for and the game has none, or a server does not give the file.
    """
    if config.source != SHIPPED:
        return local_file(config.source, cache_dir, tracking)
    path = teachers_dir() / f"{game.name}.safetensors"
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in teachers_dir().glob("*.safetensors")))
        raise UserError(
            f"no agent is shipped for game {game.name} (only: {shipped}); give one with teacher.source=FILE"
        )
    return path


def load_teacher(path: Path, config: TeacherConfig, game: GameConfig, spaces: Spaces) -> Agent:
    """Load the teacher and apply the settings that override what its file says.

    Parameters
    ----------
    path : Path
        From `teacher_path`; a file of this project or of a library that `lrp_compress.agents.formats` knows.
    config : TeacherConfig
        What the settings say of the teacher.
    game : GameConfig
        The game the teacher is to play.
    spaces : Spaces
        What the game's environment gives and takes.

    Returns
    -------
    Agent
        The network in evaluation mode.

    Raises
    ------
    UserError
        If there is no such file, it cannot be read, or its agent plays another game, sees other observations, has
        another number of actions, or is to press a FIRE that the game has not.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise UserError(f"agent file {path} does not exist") from error
    except OSError as error:
        raise UserError(f"agent file {str(path)[:SHOWN]} cannot be read: {error.strerror}") from error
    if S_ISDIR(mode):
        found = ", ".join(agents_in(path)) or "none that may be one"
        raise UserError(f"teacher {path} is a folder; give the agent's file (in it: {found})")
    if not S_ISREG(mode):  # a pipe or a device, which may never end
        raise UserError(f"agent file {path} is no regular file; give the agent's file itself")
    if not os.access(path, os.R_OK):
        raise UserError(f"agent file {path} may not be read; mend its mode")
    own = is_own(path) and config.network is None
    agent = load_agent(path) if own else _adopted(path, config, game, spaces)
    if agent.info.game != game.name:
        raise UserError(f"teacher {path} plays {agent.info.game}, not {game.name}; choose game={agent.info.game}")
    _check_observations(agent.network, path, game, spaces)
    if (size := len(spaces.actions[agent.info.action_set])) != agent.network.actions:
        raise UserError(
            f"teacher {path} chooses among {agent.network.actions} actions, but {game.name}'s {agent.info.action_set} "
            f"action set has {size}"
        )
    given = {"fire_on_life_loss": config.fire_on_life_loss, "frame_skip": config.frame_skip}
    wanted: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    info = dataclasses.replace(agent.info, **wanted)
    if info.fire_on_life_loss and "FIRE" not in spaces.actions[info.action_set]:
        raise UserError(
            f"{game.name} has no FIRE action to press after a life loss; set teacher.fire_on_life_loss=false"
        )
    return Agent(agent.network, info)


def _adopted(path: Path, config: TeacherConfig, game: GameConfig, spaces: Spaces) -> Agent:
    """Complete another library's network by what its file does not say."""
    sizes = spaces.action_sets
    if config.network is None:
        network, layout, score = read_foreign(path, spaces, config.head)
    else:
        network, score = own_network(config.network, read_tensors(path), config.head, spaces), None
        layout = Layout(config.network, network.head_kind, (), fires=False)
    _check_observations(network, path, game, spaces)
    if network.actions not in sizes:
        allowed = " or ".join(f"{size} ({name})" for size, name in sizes.items())
        raise UserError(
            f"teacher {path} chooses among {network.actions} actions, but {game.name} has {allowed}; it was trained "
            "for another game"
        )
    info = AgentInfo(
        game=game.name,
        action_set=sizes[network.actions],
        fire_on_life_loss=layout.fires and "FIRE" in spaces.actions["minimal"],
        lineage={"format": layout.name, "sha256": file_digest(path)} | ({} if score is None else {SCORE: score}),
        kept=all_channels(network.widths),
        frame_skip=layout.frame_skip,
    )
    return Agent(network, info)


def _check_observations(network: Network, path: Path, game: GameConfig, spaces: Spaces) -> None:
    taken, given = network.observations, spaces.observations
    if (taken.shape, taken.dtype) != (given.shape, given.dtype):
        raise UserError(
            f"teacher {path} takes observations of shape {taken.shape}, {taken.dtype}, but {game.name} gives "
            f"{given.shape}, {given.dtype}; it was trained in another environment"
        )
