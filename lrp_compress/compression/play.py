"""The states distillation learns from: play without end, labelled by the teacher, emulated while the student learns."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.agents.inference import dense_values
from lrp_compress.agents.networks import PolicyNetwork
from lrp_compress.atari.acting import ActionRule, act
from lrp_compress.atari.groups import GROUPS, env_groups, reset_groups
from lrp_compress.atari.replay import FrameReplay
from lrp_compress.config import DistillConfig
from lrp_compress.seeding import stage_seed


@dataclass(frozen=True)
class Play:
    """What has been visited so far; the replay goes on filling.

    Attributes
    ----------
    steps : int
        Agent steps emulated.
    visited : FrameReplay
        Visited states, labelled with the teacher's outputs and then its units' values.
    """

    steps: int
    visited: FrameReplay


def play(
    teacher: Agent,
    actor: Callable[[], PolicyNetwork],
    kept: Mapping[str, Sequence[int]],
    config: DistillConfig,
    rule: ActionRule,
    protocol: str,
    seed: int,
    dtype: torch.dtype,
) -> Generator[Play, None, None]:
    """Play for ever, a step of one group of environments at a time; what is done between two items overlaps emulation.

    Parameters
    ----------
    teacher : Agent
        Labels every visited state.
    actor : callable
        Returns the network that acts now.
    kept : mapping of str to sequence of int
        Units of the teacher's dense layers whose values are stored with its outputs, layer by layer in this order.
    config : DistillConfig
        Number of environments and size of the replay.
    rule : ActionRule
        How actions are chosen; where that is greedily, ``config.epsilon`` of them are random.
    protocol : str
        Name of the protocol played under.
    seed : int
        Of environments and action choice.
    dtype : torch.dtype
        Precision of both networks' computations.

    Yields
    ------
    Play
        After each step. Close the iterator to free the emulators.
    """
    if rule.kind == "greedy":  # play that samples explores anyway, and would reach fewer late states
        rule = ActionRule("greedy", config.epsilon)
    rng = np.random.default_rng(stage_seed(seed, "actions"))
    labels = teacher.network.actions + sum(len(units) for units in kept.values())
    visited = FrameReplay(config.replay_states, config.envs, labels)
    played = 0
    with contextlib.ExitStack() as stack:
        made = env_groups(teacher, config.envs, protocol, stage_seed(seed, "envs"))
        groups = [stack.enter_context(envs) for envs in made]
        latest = reset_groups(groups)
        for turn in itertools.count():
            number = turn % GROUPS
            envs = groups[number]
            step = latest[number] if turn < GROUPS else envs.receive()
            with dense_values(teacher.network) as values:
                actions, outputs = act(teacher.network, step.observations, rule, rng, dtype)
            hints = [values[name][:, list(units)].float().cpu() for name, units in kept.items()]
            known = torch.cat([outputs, *hints], 1)
            if actor() is not teacher.network:
                actions, _ = act(actor(), step.observations, rule, rng, dtype)
            envs.send(actions)
            visited.add(step.observations, known, step.first, step.ended, number * groups[0].envs)
            played += envs.envs
            yield Play(played, visited)
