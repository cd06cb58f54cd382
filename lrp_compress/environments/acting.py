"""How an agent picks its actions: part of the evaluation protocol, and always reported."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrp_compress.networks.fast import fast_outputs
from lrp_compress.networks.graph import Network

# What computes an agent's outputs: from uint8 observations (N, 4, 84, 84) to float32 (N, actions).
Outputs = Callable[[NDArray[np.uint8]], Tensor]


@dataclass(frozen=True)
class ActionRule:
    """How one action is chosen from the outputs.

    Attributes
    ----------
    kind : {"sample", "greedy"}
        Draw from the softmax of the outputs, or take the largest.
    epsilon : float
        Probability of a uniformly random action in its place.
    """

    kind: str
    epsilon: float

    def __str__(self) -> str:
        return f"{self.kind}, epsilon {self.epsilon:g}" if self.epsilon else self.kind


def action_rule(action: str, head: str, epsilon: float) -> ActionRule:
    """Resolve a configured action choice for a head.

    Parameters
    ----------
    action : {"auto", "sample", "epsilon", "greedy"}
        ``auto`` samples from policy heads and is epsilon-greedy on Q-heads: a purely greedy agent can freeze a game.
    head : {"q", "policy"}
        The network's head.
    epsilon : float
        Probability of a random action under ``epsilon``.
    """
    if action == "auto":
        action = "sample" if head == "policy" else "epsilon"
    kind = "sample" if action == "sample" else "greedy"
    return ActionRule(kind, epsilon if action == "epsilon" else 0.0)


def choose_actions(outputs: Tensor, rule: ActionRule, rng: np.random.Generator) -> NDArray[np.int64]:
    """Pick one action per row of `outputs`, shape (N, actions)."""
    count, actions = outputs.shape
    # the Gumbel-max trick: with noise one exact draw from softmax(outputs) per row
    noise = rng.gumbel(size=(count, actions)) if rule.kind == "sample" else 0.0
    best = np.argmax(outputs.numpy() + noise, axis=1)
    return np.where(rng.random(count) < rule.epsilon, rng.integers(actions, size=count), best)


@contextlib.contextmanager
def cores_shared_with_emulators() -> Iterator[None]:
    """Let the network compute on half the cores inside the block and leave the others to the emulators' threads.

    The threads of one network operation wait for each other busily. Where one of them has to share its core with an
    emulator, every operation takes a time slice of the scheduler in place of some microseconds.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, min(threads, (os.cpu_count() or 1) // 2)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def act(
    network: Network,
    observations: NDArray[np.uint8],
    rule: ActionRule,
    rng: np.random.Generator,
    dtype: torch.dtype = torch.float32,
) -> tuple[NDArray[np.int64], Tensor]:
    """Compute outputs, on the network's device, and choose actions.

    Parameters
    ----------
    network : Network
        The agent's network.
    observations : ndarray of uint8, shape (N, 4, 84, 84)
    rule : ActionRule
        How to choose.
    rng : numpy.random.Generator
        Source of the randomness.
    dtype : torch.dtype
        Precision of the computation; evaluation always uses float32.

    Returns
    -------
    actions : ndarray of int64, shape (N,)
    outputs : Tensor of float32, shape (N, actions)
        On the CPU.
    """
    outputs = fast_outputs(network, torch.from_numpy(observations).to(network.device), dtype).cpu()
    return choose_actions(outputs, rule, rng), outputs
