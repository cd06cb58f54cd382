"""An agent at play, with its relevance map beside it, as a video and in a window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.agents.teachers import load_teacher, teacher_path
from lrp_compress.compression.attribution import heat_maps
from lrp_compress.compression.composites import find_composite
from lrp_compress.config.schema import CriterionConfig, PlayConfig
from lrp_compress.environments.acting import action_rule
from lrp_compress.environments.atari import game_spaces
from lrp_compress.environments.groups import Acting
from lrp_compress.environments.recording import record_play
from lrp_compress.pictures.videos import relevance_pictures, write_video
from lrp_compress.pictures.window import has_screen, show
from lrp_compress.support.errors import UserError
from lrp_compress.support.seeding import stage_seed

STEPS_PER_SECOND = 15  # four of sixty frames each
VIDEO = "play.gif"


def preflight(config: PlayConfig) -> None:
    """Check what a play needs from outside, before anything is written.

    Raises
    ------
    UserError
        If the composite is unknown, a window is asked for where none can be, or the agent cannot be loaded or does not
        fit the game.
    """
    if config.window and not has_screen():
        raise UserError(f"window=true, but there is no screen here; window=false leaves the play in {VIDEO}")
    find_composite(config.criterion.composite)
    _load(config)


def run(config: PlayConfig, run_dir: Path, sweep: str | None) -> dict[str, float]:
    """Let the agent play, write the video, say where it is, and show it.

    Parameters
    ----------
    config : PlayConfig
        The checked configuration.
    run_dir : Path
        The folder for the video.
    sweep : str or None
        Name of the sweep it belongs to; not used.

    Returns
    -------
    dict of str to float
        ``play/steps``: how many agent steps the video shows.
    """
    agent = _load(config)
    rule = action_rule(config.evaluate.action, agent.network.head_kind, config.evaluate.epsilon)
    acting = Acting(rule, config.protocol, stage_seed(config.seed, "video"))
    pictures = watched(agent, config.criterion, acting, config.seconds)
    video = write_video(run_dir / VIDEO, pictures)
    Console(markup=False).print(f"{len(pictures) / STEPS_PER_SECOND:.0f} s of play   {video}", soft_wrap=True)
    if config.window or (config.window is None and has_screen()):
        show(pictures, f"{config.game.title}, and what the agent looks at")
    return {"play/steps": float(len(pictures))}


def watched(agent: Agent, criterion: CriterionConfig, acting: Acting, seconds: float) -> NDArray[np.uint8]:
    """Draw the start of a game with what the agent looks at beside it.

    Parameters
    ----------
    agent : Agent
        The player.
    criterion : CriterionConfig
        Composite and start of the relevance.
    acting : Acting
        How the agent plays.
    seconds : float
        How long at most; less if the game ends before.

    Returns
    -------
    ndarray of uint8, shape (T, height, width, 3)
        A picture for each agent step.
    """
    play = record_play(agent, acting, max(1, round(seconds * STEPS_PER_SECOND)))
    batches = torch.split(torch.from_numpy(play), criterion.batch_size)
    composite, start = criterion.composite, criterion.relevance_seed
    maps = torch.cat([heat_maps(agent.network, batch, composite, start) for batch in batches])
    return relevance_pictures(play[:, -1], maps)


def _load(config: PlayConfig) -> Agent:
    path = teacher_path(config.teacher, config.game, Path(config.cache_dir), config.tracking)
    return load_teacher(path, config.teacher, config.game, game_spaces(config.game.name))
