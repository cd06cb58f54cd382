"""What the student did in the games and what came of it, block by block."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.environments.acting import ActionRule, act, cores_shared_with_emulators
from lrp_compress.environments.atari import AtariEnvs, Step
from lrp_compress.environments.groups import env_groups, reset_groups
from lrp_compress.networks.fast import fast_hidden
from lrp_compress.networks.graph import Network
from lrp_compress.support.seeding import stage_seed

SAMPLE = ActionRule("sample", 0.0)


@dataclass(frozen=True)
class Trajectories:
    """Some steps of all environments, in order, on one device.

    Attributes
    ----------
    observations : Tensor of uint8, shape (steps, envs, 4, 84, 84)
    actions : Tensor of int64, shape (steps, envs)
        Drawn from the student's policy.
    log_probs : Tensor of float32, shape (steps, envs)
        Of those actions, under the policy they were drawn from.
    teacher_log_probs : Tensor of float32, shape (steps, envs, actions)
        Of all actions, under the teacher's policy.
    hidden : Tensor of float32, shape (steps + 1, envs, units)
        Values of the teacher's last dense layer; the last row is of the states after the last step.
    rewards : Tensor of float32, shape (steps, envs)
        Signs of the game's rewards (Mnih et al. 2015, Methods).
    ends : Tensor of bool, shape (steps, envs)
        A life was lost or the game was over.
    returns : list of float
        Unclipped, of the games that were over.
    """

    observations: Tensor
    actions: Tensor
    log_probs: Tensor
    teacher_log_probs: Tensor
    hidden: Tensor
    rewards: Tensor
    ends: Tensor
    returns: list[float]

    @classmethod
    def empty(cls, steps: int, envs: int, teacher: Network) -> Trajectories:
        """Make room for a block, on the teacher's device."""
        with teacher.device:
            return cls(
                observations=torch.empty(steps, envs, 4, 84, 84, dtype=torch.uint8),
                actions=torch.empty(steps, envs, dtype=torch.int64),
                log_probs=torch.empty(steps, envs),
                teacher_log_probs=torch.empty(steps, envs, teacher.actions),
                hidden=torch.empty(steps + 1, envs, teacher.hidden_units),
                rewards=torch.empty(steps, envs),
                ends=torch.empty(steps, envs, dtype=torch.bool),
                returns=[],
            )


def trajectories(
    student: Network, teacher: Agent, shape: tuple[int, int], protocol: str, seed: int, dtype: torch.dtype
) -> Generator[Trajectories, None, None]:
    """Let a student play for ever, and the teacher say what it would do.

    Parameters
    ----------
    student : Network
        With a policy head; plays as it is at each step, so it may learn between two blocks.
    teacher : Agent
        Of the same game, with a policy head; on the student's device.
    shape : (int, int)
        Of a block: steps, and environments.
    protocol : str
        Name of the protocol played under.
    seed : int
        Of environments and action choice.
    dtype : torch.dtype
        Precision of both networks' computations.

    Yields
    ------
    Trajectories
        A new block each time. Close the iterator to free the emulators.
    """
    rng = np.random.default_rng(stage_seed(seed, "actions"))
    steps, envs = shape
    with contextlib.ExitStack() as stack:
        groups = [stack.enter_context(made) for made in env_groups(teacher, envs, protocol, stage_seed(seed, "envs"))]
        lanes = _lanes(groups, reset_groups(groups))
        while True:
            block = Trajectories.empty(steps, envs, teacher.network)
            with cores_shared_with_emulators():
                for time in range(steps):
                    for lane in lanes:
                        if time:
                            lane.arrive(block, time - 1)
                        lane.set_off(block, time, student, rng, dtype)
                        lane.ask_teacher(block, time, teacher.network, dtype)  # while the emulators work
                for lane in lanes:
                    lane.arrive(block, steps - 1)
                    lane.ask_teacher(block, steps, teacher.network, dtype)
            yield block


class _Lane:
    """One group of environments and its place among all of them."""

    def __init__(self, envs: AtariEnvs, place: slice, step: Step) -> None:
        self._envs = envs
        self._place = place
        self._observations = step.observations
        self._lives = step.lives
        self._returns = np.zeros(envs.envs)

    def ask_teacher(self, block: Trajectories, time: int, teacher: Network, dtype: torch.dtype) -> None:
        """Note what the teacher makes of the current states."""
        with torch.inference_mode():
            hidden = fast_hidden(teacher, torch.from_numpy(self._observations).to(teacher.device), dtype).float()
            block.hidden[time, self._place] = hidden
            if time < len(block.actions):
                block.teacher_log_probs[time, self._place] = teacher.decide(hidden).log_softmax(1)

    def set_off(
        self, block: Trajectories, time: int, student: Network, rng: np.random.Generator, dtype: torch.dtype
    ) -> None:
        """Let the student choose, and the emulators begin a step."""
        chosen, outputs = act(student, self._observations, SAMPLE, rng, dtype)
        self._envs.send(chosen)
        actions = torch.from_numpy(chosen)
        block.observations[time, self._place] = torch.from_numpy(self._observations)
        block.actions[time, self._place] = actions
        block.log_probs[time, self._place] = outputs.log_softmax(1).gather(1, actions[:, None]).squeeze(1)

    def arrive(self, block: Trajectories, time: int) -> None:
        """Note what came of the step; games that are over begin anew."""
        step = self._envs.receive()
        self._returns += step.rewards
        block.rewards[time, self._place] = torch.from_numpy(np.sign(step.rewards)).float()
        block.ends[time, self._place] = torch.from_numpy(step.ended | (step.lives < self._lives))
        if step.ended.any():
            block.returns.extend(self._returns[step.ended].tolist())
            self._returns[step.ended] = 0
            step = self._envs.restart(step.ended)
        self._observations, self._lives = step.observations, step.lives


def _lanes(groups: Sequence[AtariEnvs], steps: Sequence[Step]) -> list[_Lane]:
    lanes, begin = [], 0
    for envs, step in zip(groups, steps, strict=True):
        lanes.append(_Lane(envs, slice(begin, begin + envs.envs), step))
        begin += envs.envs
    return lanes
