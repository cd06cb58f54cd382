"""Evaluation: full games under a named protocol, by an agent or by a file of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from threading import Event

import numpy as np
import torch
from tqdm import tqdm

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.config.schema import EvaluateConfig, GameConfig
from lrp_compress.environments.acting import ActionRule, Outputs, choose_actions, cores_shared_with_emulators
from lrp_compress.environments.atari import AtariEnvs, Step
from lrp_compress.environments.groups import Acting, in_threads, reset_groups
from lrp_compress.environments.returns import (
    Episode,
    Evaluation,
    bootstrap_interval,
    human_normalised,
    interquartile_mean,
)
from lrp_compress.networks.fast import batched_outputs


def evaluate(
    agent: Agent,
    config: EvaluateConfig,
    game: GameConfig,
    acting: Acting,
    label: str,
    outputs: Outputs | None = None,
) -> Evaluation:
    """Play episodes and report their returns.

    Every environment plays the same number of episodes: taking the first ones to finish, whoever plays them, would
    favour short games. Two threads have half of them each, so that one emulates while the agent decides for the other.

    Parameters
    ----------
    agent : Agent
        Whom to evaluate.
    config : EvaluateConfig
        Number of episodes and environments, stall limit, frame cap, confidence.
    game : GameConfig
        Random and human scores for the normalised score.
    acting : Acting
        How it plays.
    label : str
        What the progress bar says.
    outputs : callable, optional
        What computes the agent's outputs in its network's place, such as a file of it in another runtime.

    Returns
    -------
    Evaluation
        ``ceil(episodes / envs) * envs`` episodes or, if there are fewer episodes than environments, one each.
    """
    count = min(config.envs, config.episodes)
    quota = math.ceil(config.episodes / count)
    seed, how = acting.seed, {"max_frames": config.max_frames, "count": count}
    lent = acting.emulators.groups(agent, count, acting.protocol, seed, **how)
    with cores_shared_with_emulators(), lent as envs:
        players = [
            _Player(number, one, step, quota, config.stall_limit)
            for number, (one, step) in enumerate(zip(envs, reset_groups(envs), strict=True))
        ]
        _play(outputs or _network_outputs(agent), players, acting.rule, seed, label)
    episodes = [episode for player in players for episode in player.played]
    returns = np.array([episode.score for episode in episodes])
    low, high = bootstrap_interval(returns, config.confidence, seed)
    return Evaluation(
        episodes,
        acting.protocol,
        str(acting.rule),
        seed,
        float(returns.mean()),
        low,
        high,
        float(interquartile_mean(returns)),
        human_normalised(float(returns.mean()), game),
    )


def _network_outputs(agent: Agent) -> Outputs:
    network = copy.deepcopy(agent.network)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a quarter less time for few states
    return lambda observations: batched_outputs(network, torch.from_numpy(observations))


def _play(outputs: Outputs, players: Sequence[_Player], rule: ActionRule, seed: int, label: str) -> None:
    """Play all games, half of the players in a thread of their own."""
    half = (len(players) + 1) // 2
    parts = [part for part in (players[:half], players[half:]) if part]

    def play(number: int, ended: Event) -> None:
        rng = np.random.default_rng([seed, number])
        playing = list(parts[number])
        while playing and not ended.is_set():
            observations = np.concatenate([player.step.observations for player in playing])
            actions = choose_actions(outputs(observations), rule, rng)
            for row, player in enumerate(playing):
                player.envs.send(actions[row : row + 1])
            progress.update(sum(player.receive() for player in playing))
            playing = [player for player in playing if len(player.played) < player.quota]

    count = sum(player.quota for player in players)
    with tqdm(total=count, desc=label, unit="episode", leave=False, disable=None) as progress:
        in_threads(play, range(len(parts)))


class _Player:
    """One emulator: the game in progress, and the results of those that are over."""

    def __init__(self, number: int, envs: AtariEnvs, first: Step, quota: int, stall_limit: int) -> None:
        self.envs = envs
        self.quota = quota
        self.step = first
        self.played: list[Episode] = []
        self._number = number
        self._stall_limit = stall_limit
        self._begin()

    def _begin(self) -> None:
        self._score, self._length, self._idle = 0.0, 0, 0

    def receive(self) -> bool:
        """Take the step in flight, and tell whether it ended a game; a stalled one is abandoned."""
        before, self.step = self.step, self.envs.receive()
        if self.step.first[0]:
            self._begin()
            return False
        eventful = self.step.rewards[0] != 0 or self.step.lives[0] != before.lives[0]
        self._score += float(self.step.rewards[0])
        self._length += 1
        self._idle = 0 if eventful else self._idle + 1
        over, stalled = bool(self.step.ended[0]), self._idle >= self._stall_limit
        if not over and not stalled:
            return False
        end = "capped" if self.step.capped[0] else "over" if over else "stalled"
        self.played.append(Episode(self._number, len(self.played), self._score, self._length, end))
        if not over:
            self.step = self.envs.restart(np.ones(1, dtype=bool))
            self._begin()
        return True
