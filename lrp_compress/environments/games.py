"""One game at a time, decided by anything that gives outputs: a network here, a file, a board that is far away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrp_compress.environments.acting import ActionRule, Outputs, choose_actions
from lrp_compress.environments.atari import AtariEnvs, Step


@dataclass(frozen=True)
class Turn:
    """One step of a game.

    Attributes
    ----------
    observation : ndarray of uint8, shape (4, 84, 84)
        What was decided on.
    outputs : ndarray of float32, shape (actions,)
        What decided.
    action : int
        What was done.
    after : Step
        What came of it, in an environment of one game.
    """

    observation: NDArray[np.uint8]
    outputs: NDArray[np.float32]
    action: int
    after: Step


@dataclass(frozen=True)
class Game:
    """A game that is over.

    Attributes
    ----------
    score : float
        Episodic return: the sum of unclipped rewards.
    frames : ndarray of uint8, shape (T, 84, 84)
        The newest frame of every observation.
    actions : ndarray of int64, shape (T,)
    outputs : ndarray of float32, shape (T, actions)
    """

    score: float
    frames: NDArray[np.uint8]
    actions: NDArray[np.int64]
    outputs: NDArray[np.float32]

    def same_as(self, other: Game) -> bool:
        """Tell whether both went the same way: every frame, every output bit for bit, every action, the return."""
        return (
            self.score == other.score
            and np.array_equal(self.frames, other.frames)
            and np.array_equal(self.actions, other.actions)
            and self.outputs.tobytes() == other.outputs.tobytes()
        )


def turns(envs: AtariEnvs, outputs_of: Outputs, rule: ActionRule, seed: int, stall_limit: int) -> Iterator[Turn]:
    """Play a game from its start to its end.

    Parameters
    ----------
    envs : AtariEnvs
        One environment; it is reset.
    outputs_of : callable
        What gives the outputs.
    rule : ActionRule
        How an action is chosen from them.
    seed : int
        Seed of the action choice.
    stall_limit : int
        Steps without reward or lost life after which the game is ended.

    Yields
    ------
    Turn
        In order of play.
    """
    rng = np.random.default_rng(seed)
    step, idle = envs.reset(), 0
    while not step.ended[0] and idle < stall_limit:
        outputs = outputs_of(step.observations)
        actions = choose_actions(outputs, rule, rng)
        after = envs.step(actions)
        yield Turn(step.observations[0], outputs[0].numpy(), int(actions[0]), after)
        idle = 0 if after.rewards[0] or after.lives[0] != step.lives[0] else idle + 1
        step = after


def play_game(envs: AtariEnvs, outputs_of: Outputs, rule: ActionRule, seed: int, stall_limit: int) -> Game:
    """Play a game as `turns` does and keep what went on."""
    score, frames, actions, outputs = 0.0, [], [], []
    for turn in turns(envs, outputs_of, rule, seed, stall_limit):
        score += float(turn.after.rewards[0])
        frames.append(turn.observation[-1].copy())  # without the other three
        actions.append(turn.action)
        outputs.append(turn.outputs)
    return Game(score, np.stack(frames), np.array(actions), np.stack(outputs))
