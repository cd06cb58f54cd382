"""A short look at how an agent plays, to find out whether it makes use of what it sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.environments.acting import act, cores_shared_with_emulators
from lrp_compress.environments.atari import AtariEnvs, envs_for
from lrp_compress.environments.groups import Acting

ENVS = 16
STEPS = 400
STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Probe:
    """What an agent and random actions earned in the same number of steps.

    Attributes
    ----------
    game : str
        The game played.
    steps : int
        Steps per environment.
    reward, random : float
        Mean unclipped reward of an environment, of the agent's play and of uniformly random actions.
    better : bool
        The agent's is higher by more than two standard errors of the difference.
    fire_on_life_loss : bool
        Whether FIRE was pressed for the agent.
    """

    game: str
    steps: int
    reward: float
    random: float
    better: bool
    fire_on_life_loss: bool

    def __str__(self) -> str:
        other = "false" if self.fire_on_life_loss else "true"
        return (
            f"the teacher plays {self.game} no better than random actions (reward {self.reward:.1f} against "
            f"{self.random:.1f} in {self.steps} steps); usual causes: FIRE after a lost life (try "
            f"teacher.fire_on_life_loss={other}), another action set, another frame skip (teacher.frame_skip), "
            "observations scaled or stacked in another way"
        )


def probe(agent: Agent, acting: Acting) -> Probe:
    """Play some hundred steps with an agent, and as many at random.

    Parameters
    ----------
    agent : Agent
        Who plays.
    acting : Acting
        How.
    """
    with cores_shared_with_emulators(), envs_for(agent, ENVS, acting.protocol, acting.seed) as envs:
        rng = np.random.default_rng(acting.seed)
        own = _rewards(envs, lambda observations: act(agent.network, observations, acting.rule, rng)[0])
        random = _rewards(envs, lambda observations: rng.integers(0, envs.actions, ENVS))
    error = math.sqrt((own.var(ddof=1) + random.var(ddof=1)) / ENVS)
    means = float(own.mean()), float(random.mean())
    better = bool(means[0] - means[1] > STANDARD_ERRORS * error)
    return Probe(agent.info.game, STEPS, *means, better, agent.info.fire_on_life_loss)


def _rewards(envs: AtariEnvs, choose: Callable[[NDArray[np.uint8]], NDArray[np.int64]]) -> NDArray[np.float64]:
    total = np.zeros(ENVS)
    step = envs.reset()
    for _ in range(STEPS):
        step = envs.step(choose(step.observations))
        total += step.rewards
    return total
