"""A replay buffer for Stable-Baselines3's off-policy algorithms that keeps every frame once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from lrp_compress.environments.replay import FrameReplay

ACTION, REWARD, DONE = range(3)


class FrameReplayBuffer(ReplayBuffer):
    """Transitions of `AtariVecEnv` at one frame each, an eighth of what the base class takes.

    A transition's next state is the state stored after it. Where an episode is done there is none, and since nothing
    is bootstrapped from it the state itself stands in; games cut at the frame cap count as done.

    Parameters
    ----------
    buffer_size : int
        Transitions over all environments.
    observation_space, action_space : spaces.Space
        Of `AtariVecEnv`.
    device : torch.device or str
        Where samples go.
    n_envs : int
        Number of environments.
    optimize_memory_usage : bool
        Ignored: this is what the class is for.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
    ) -> None:
        super().__init__(1, observation_space, action_space, device, n_envs)  # its own arrays stay unused
        self.frames = FrameReplay(buffer_size, n_envs, labels=3)
        self._first = np.ones(n_envs, dtype=bool)
        self._rng = np.random.default_rng(np.random.randint(2**31))  # follows Stable-Baselines3's seed

    def add(
        self,
        obs: NDArray[np.uint8],
        next_obs: NDArray[np.uint8],
        action: NDArray[np.integer],
        reward: NDArray[np.float32],
        done: NDArray[np.bool_],
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one step of all environments."""
        labels = np.stack([action.reshape(-1), reward, done], axis=1).astype(np.float32)
        self.frames.add(obs, torch.from_numpy(labels), self._first, np.zeros(self.n_envs, dtype=bool))
        self._first = np.array(["episode" in info for info in infos])  # a lost life does not end the game

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Draw transitions uniformly, with replacement."""
        candidates = self.frames.followed(DONE)
        chosen = candidates[torch.from_numpy(self._rng.integers(len(candidates), size=batch_size))]
        observations, labels = self.frames.gather(chosen)
        done = labels[:, DONE]
        next_observations, _ = self.frames.gather(torch.where(done > 0, chosen, chosen + 1))
        action, reward, done = (column.unsqueeze(1) for column in labels.unbind(1))
        parts = (observations, action.long(), next_observations, done, reward)
        return ReplayBufferSamples(*(part.to(self.device) for part in parts))

    def state_dict(self) -> dict[str, Tensor]:
        """Everything stored, for a checkpoint."""
        return self.frames.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what was stored; the environments are expected to begin new games."""
        self.frames.load_state_dict(state)
        self._first[:] = True
