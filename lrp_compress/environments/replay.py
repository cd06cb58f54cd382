"""A replay of visited states, each with some numbers of its own, that keeps every frame once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrp_compress.environments.rollouts import STACK, stacks

SIDE = 84


class FrameReplay:
    """Ring buffers of frames, one per environment; a stored state costs one frame, a quarter of its stack.

    A stack of frames lies contiguous in its ring, so drawing a batch is one block copy per state.

    Parameters
    ----------
    states : int
        Capacity over all environments.
    envs : int
        Number of environments that write.
    labels : int
        How many numbers go with a state, e.g. the teacher's output for each action.
    """

    def __init__(self, states: int, envs: int, labels: int) -> None:
        self.slots = max(states // envs, 4 * STACK)
        self._frames = torch.zeros(envs * self.slots, SIDE, SIDE, dtype=torch.uint8)
        self._labels = torch.zeros(envs * self.slots, labels)
        self._valid = np.zeros((envs, self.slots), dtype=bool)  # slots that are the newest frame of a stored state
        self._next = np.zeros(envs, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._valid.sum())

    def add(
        self,
        observations: NDArray[np.uint8],
        labels: Tensor,
        first: NDArray[np.bool_],
        ended: NDArray[np.bool_],
        begin: int = 0,
    ) -> None:
        """Store one step of `n` neighbouring environments.

        Parameters
        ----------
        observations : ndarray of uint8, shape (n, 4, 84, 84)
            Consecutive within an environment from call to call.
        labels : Tensor of float32, shape (n, labels)
            What is known of these states.
        first : ndarray of bool, shape (n,)
            The observation begins an episode: its whole stack is stored.
        ended : ndarray of bool, shape (n,)
            The observation ends an episode: nothing is decided there, so it is never drawn.
        begin : int
            Number of the first of these environments.
        """
        rows = np.arange(begin, begin + len(observations))
        whole = first | (self._next[rows] == 0)
        slots = self._reserve(rows, whole)
        flat = torch.from_numpy(rows * self.slots + slots)
        self._frames[flat] = torch.from_numpy(observations[:, -1])
        for i in np.flatnonzero(whole):
            at = int(flat[i])
            self._frames[at - STACK + 1 : at + 1] = torch.from_numpy(observations[i])
        self._labels[flat] = labels
        self._valid[rows, slots] = ~ended

    def fill(self, frames: Tensor, starts: Tensor, labels: Tensor) -> None:
        """Store states of earlier play, as many in each ring; what is left over is not stored.

        Parameters
        ----------
        frames : Tensor of uint8, shape (F, 84, 84)
        starts : Tensor of int64, shape (n,)
            Where in `frames` each state begins; where one begins a frame after the last, they share the others.
        labels : Tensor of float32, shape (n, labels)
        """
        envs = len(self._next)
        each = len(starts) // envs
        apart = np.ones(len(starts), dtype=bool)
        apart[1:] = (starts.diff() != 1).numpy()
        ended = np.zeros(envs, dtype=bool)
        for place in range(each):
            rows = torch.arange(envs) * each + place
            whole = apart[rows.numpy()] if place else ~ended
            self.add(stacks(frames, starts[rows]).numpy(), labels[rows], whole, ended)

    def _reserve(self, rows: NDArray[np.int64], whole: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Choose each environment's slot for the newest frame and forget the states that lose a frame to it."""
        needed = np.where(whole, STACK, 1)
        for i in np.flatnonzero(self._next[rows] + needed > self.slots):
            row = rows[i]
            start = row * self.slots
            if not whole[i]:  # the stack goes on at the ring's beginning, so its last frames move there
                tail = self._frames[start + self._next[row] - STACK + 1 : start + self._next[row]].clone()
                self._frames[start : start + STACK - 1] = tail
                self._valid[row, : STACK - 1] = False
                self._next[row] = STACK - 1
            else:
                self._next[row] = 0
        for row, count in zip(rows, needed, strict=True):
            at = self._next[row]
            self._valid[row, at : at + count + STACK - 1] = False
        self._next[rows] += needed
        return self._next[rows] - 1

    def stored(self) -> Tensor:
        """List the indices of all stored states, for `gather`: int64, shape (len(self),)."""
        return torch.from_numpy(np.flatnonzero(self._valid))

    def followed(self, label: int) -> Tensor:
        """List the indices of the stored states that are followed by the next one of their environment, or marked.

        Parameters
        ----------
        label : int
            Column of the labels; states where it is positive need no successor.

        Returns
        -------
        Tensor of int64
            A state at index ``i`` that is not marked is followed by the one at ``i + 1``.
        """
        marked = (self._labels[:, label] > 0).numpy().reshape(self._valid.shape)
        successor = np.zeros_like(self._valid)
        successor[:, :-1] = self._valid[:, 1:]
        return torch.from_numpy(np.flatnonzero(self._valid & (marked | successor)))

    def state_dict(self) -> dict[str, Tensor]:
        """Everything stored; shares memory with this object."""
        arrays = {"valid": self._valid, "next": self._next}
        return {"frames": self._frames, "labels": self._labels} | {k: torch.from_numpy(v) for k, v in arrays.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what another replay of the same sizes had stored."""
        for name, own in self.state_dict().items():
            own.copy_(state[name])

    def gather(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return states and their labels.

        Parameters
        ----------
        indices : Tensor of int64, shape (n,)
            From `stored`.

        Returns
        -------
        observations : Tensor of uint8, shape (n, 4, 84, 84)
        labels : Tensor of float32, shape (n, labels)
        """
        return stacks(self._frames, indices - (STACK - 1)), self._labels[indices]
