"""Where the teacher comes from: a shipped agent or a file, checked against the game it is to play."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lrp_compress.agents.checkpoints import Agent, load_agent
from lrp_compress.config import GameConfig, TeacherConfig
from lrp_compress.errors import UserError

SHIPPED = "auto"


def teachers_dir() -> Path:
    """Folder of the shipped agents: inside an installed package, else at the top of the repository."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "teachers"
    return inside if inside.is_dir() else package.parent / "teachers"


def teacher_path(config: TeacherConfig, game: GameConfig) -> Path:
    """Find the teacher's file.

    Raises
    ------
    UserError
        If the shipped agent is asked for and the game has none.
    """
    if config.source != SHIPPED:
        return Path(config.source)
    path = teachers_dir() / f"{game.name}.safetensors"
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in teachers_dir().glob("*.safetensors")))
        raise UserError(
            f"no agent is shipped for game {game.name} (only: {shipped}); give one with teacher.source=FILE"
        )
    return path


def load_teacher(config: TeacherConfig, game: GameConfig) -> Agent:
    """Load the teacher and apply the settings that override what its file says.

    Parameters
    ----------
    config : TeacherConfig
        ``source`` is a path or ``"auto"``.
    game : GameConfig
        The game the teacher is to play.

    Returns
    -------
    Agent
        The network in evaluation mode.

    Raises
    ------
    UserError
        If there is no such file, it cannot be read, or its agent plays another game.
    """
    path = teacher_path(config, game)
    agent = load_agent(path)
    if agent.info.game != game.name:
        raise UserError(f"teacher {path} plays {agent.info.game}, not {game.name}; choose game={agent.info.game}")
    if config.fire_on_life_loss is None:
        return agent
    return Agent(agent.network, dataclasses.replace(agent.info, fire_on_life_loss=config.fire_on_life_loss))
