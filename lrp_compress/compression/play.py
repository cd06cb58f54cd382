"""The states distillation learns from: play without end, labelled by the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.agents.inference import dense_values, fast_outputs
from lrp_compress.agents.networks import PolicyNetwork
from lrp_compress.atari.acting import ActionRule, act, choose_actions
from lrp_compress.atari.envs import AtariEnvs
from lrp_compress.atari.groups import reset_groups


@dataclass(frozen=True)
class Visited:
    """The states of all environments at one step, as `FrameReplay.add` takes them.

    Attributes
    ----------
    observations : ndarray of uint8, shape (envs, 4, 84, 84)
    labels : Tensor of float32, shape (envs, labels)
        The teacher's outputs and then its units' values.
    first, ended : ndarray of bool, shape (envs,)
        The state begins, or ends, a game.
    """

    observations: NDArray[np.uint8]
    labels: Tensor
    first: NDArray[np.bool_]
    ended: NDArray[np.bool_]


class Player:
    """Plays on and on, a block of steps at a time.

    Parameters
    ----------
    teacher : Agent
        Labels every visited state, and acts where nobody else does.
    hinted : mapping of str to sequence of int
        Units of the teacher's dense layers whose values are labels too, layer by layer in this order.
    groups : sequence of AtariEnvs
        Where it plays.
    rule : ActionRule
        How actions are chosen; where that is greedily, `epsilon` of them are random.
    epsilon : float
        Probability of a random action in greedy play.
    seed : int
        Of the action choice.
    dtype : torch.dtype
        Precision of both networks' computations.
    """

    def __init__(
        self,
        teacher: Agent,
        hinted: Mapping[str, Sequence[int]],
        groups: Sequence[AtariEnvs],
        rule: ActionRule,
        epsilon: float,
        seed: int,
        dtype: torch.dtype,
    ) -> None:
        self._teacher = teacher.network
        self._hinted = hinted
        self._groups = groups
        # play that samples explores anyway, and would reach fewer late states
        self._rule = ActionRule("greedy", epsilon) if rule.kind == "greedy" else rule
        self._rng = np.random.default_rng(seed)
        self._dtype = dtype
        self._steps = reset_groups(groups)

    def play(self, actor: PolicyNetwork | None, steps: int) -> list[Visited]:
        """Play some steps of all environments; without an actor the teacher acts."""
        return [self._step(actor) for _ in range(steps)]

    def _step(self, actor: PolicyNetwork | None) -> Visited:
        observations = np.concatenate([step.observations for step in self._steps])
        first, ended = (np.concatenate([getattr(step, name) for step in self._steps]) for name in ("first", "ended"))
        labels = label(self._teacher, self._hinted, observations, self._dtype)
        if actor is None:
            actions = choose_actions(labels[:, : self._teacher.actions], self._rule, self._rng)
        else:
            actions, _ = act(actor, observations, self._rule, self._rng, self._dtype)
        ends = np.cumsum([envs.envs for envs in self._groups])
        for envs, own in zip(self._groups, np.split(actions, ends[:-1]), strict=True):
            envs.send(own)
        self._steps = [envs.receive() for envs in self._groups]
        return Visited(observations, labels, first, ended)


@torch.inference_mode()
def label(
    teacher: PolicyNetwork, hinted: Mapping[str, Sequence[int]], observations: NDArray[np.uint8], dtype: torch.dtype
) -> Tensor:
    """Ask the teacher about states, uint8 of shape (N, 4, 84, 84).

    Returns
    -------
    Tensor of float32, shape (N, labels)
        Its outputs and then the values of its units, on the CPU.
    """
    with dense_values(teacher) as values:
        outputs = fast_outputs(teacher, torch.from_numpy(observations).to(teacher.device), dtype)
    hints = [values[name][:, list(units)].float() for name, units in hinted.items()]
    return torch.cat([outputs, *hints], 1).cpu()
