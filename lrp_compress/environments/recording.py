"""A few seconds of play, to be watched."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.environments.acting import act, cores_shared_with_emulators
from lrp_compress.environments.groups import Acting


def record_play(agent: Agent, acting: Acting, steps: int) -> NDArray[np.uint8]:
    """Play from the start of a game and keep what the agent saw.

    Parameters
    ----------
    agent : Agent
        The player.
    acting : Acting
        How.
    steps : int
        Agent steps (a fifteenth of a second each) to keep at most; fewer if the game ends before.

    Returns
    -------
    ndarray of uint8, shape (T, 4, 84, 84)
        The observations; the newest frame of each is the last.
    """
    rng = np.random.default_rng(acting.seed)
    observations: list[NDArray[np.uint8]] = []
    lent = acting.emulators.groups(agent, 1, acting.protocol, acting.seed, count=1)
    with cores_shared_with_emulators(), lent as (envs,):
        step = envs.reset()
        while len(observations) < steps and not step.ended[0]:
            observations.append(step.observations[0])
            actions, _ = act(agent.network, step.observations, acting.rule, rng)
            step = envs.step(actions)
    return np.stack(observations)
