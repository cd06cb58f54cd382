"""The states distillation learns from: play without end, labelled by the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Event

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.environments.acting import ActionRule, act, choose_actions
from lrp_compress.environments.atari import AtariEnvs, Step
from lrp_compress.environments.groups import in_threads, reset_groups
from lrp_compress.networks.fast import dense_values, fast_outputs
from lrp_compress.networks.graph import Network, twin


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
        How actions are chosen.
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
        seed: int,
        dtype: torch.dtype,
    ) -> None:
        self._hinted = hinted
        self._rule = rule
        self._dtype = dtype
        self._seats = [
            _Seat(_own(teacher.network), envs, step, np.random.default_rng([seed, number]))
            for number, (envs, step) in enumerate(zip(groups, reset_groups(groups), strict=True))
        ]

    def play(self, actor: Network | None, steps: int) -> list[Visited]:
        """Play some steps of all environments, each group in a thread; without an actor the teacher acts."""
        visited: dict[_Seat, list[Visited]] = {}

        def sit(seat: _Seat, ended: Event) -> None:
            visited[seat] = [self._step(seat, actor) for _ in range(steps) if not ended.is_set()]

        in_threads(sit, self._seats)
        return [_together(at_once) for at_once in zip(*(visited[seat] for seat in self._seats), strict=True)]

    def _step(self, seat: _Seat, actor: Network | None) -> Visited:
        step = seat.step
        labels = label(seat.teacher, self._hinted, step.observations, self._dtype)
        if actor is None:
            actions = choose_actions(labels[:, : seat.teacher.actions], self._rule, seat.rng)
        else:
            actions, _ = act(actor, step.observations, self._rule, seat.rng, self._dtype)
        seat.step = seat.envs.step(actions)
        return Visited(step.observations, labels, step.first, step.ended)


@dataclass(eq=False)
class _Seat:
    """A group of environments, where its games stand, and what its actions are drawn with."""

    teacher: Network
    envs: AtariEnvs
    step: Step
    rng: np.random.Generator


def _own(teacher: Network) -> Network:
    network = twin(teacher)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def _together(groups: Sequence[Visited]) -> Visited:
    observations, first, ended = (
        np.concatenate([getattr(visited, name) for visited in groups]) for name in ("observations", "first", "ended")
    )
    return Visited(observations, torch.cat([visited.labels for visited in groups]), first, ended)


@torch.inference_mode()
def label(
    teacher: Network, hinted: Mapping[str, Sequence[int]], observations: NDArray[np.uint8], dtype: torch.dtype
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
