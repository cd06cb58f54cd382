"""A rollout buffer for Stable-Baselines3's PPO that keeps the pixels where the network computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor


class PixelRolloutBuffer(RolloutBuffer):
    """The base class's samples of `AtariVecEnv`, with each observation handed to the device once.

    The base class copies all observations once more before each update and sends every minibatch to the device anew,
    in each epoch.

    Parameters
    ----------
    buffer_size : int
        Steps of each environment.
    observation_space, action_space : spaces.Space
        Of `AtariVecEnv`.
    device : torch.device or str
        Where the observations are kept and samples are given.
    **options : Any
        Of the base class.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Box,
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        **options: Any,
    ) -> None:
        nothing = spaces.Box(0, 0, (0,), np.uint8)  # the base class keeps observations that take no room
        super().__init__(buffer_size, nothing, action_space, device, **options)
        shape = (buffer_size * self.n_envs, *observation_space.shape)
        self._pixels = torch.empty(shape, dtype=torch.uint8, device=self.device)

    def add(
        self,
        obs: NDArray[np.uint8],
        action: NDArray[np.integer],
        reward: NDArray[np.float32],
        episode_start: NDArray[np.bool_],
        value: Tensor,
        log_prob: Tensor,
    ) -> None:
        """Store one step of all environments."""
        self._pixels[self.pos * self.n_envs :][: self.n_envs] = torch.from_numpy(obs)
        super().add(obs[:, :0, 0, 0], action, reward, episode_start, value, log_prob)

    def _get_samples(self, batch_inds: NDArray[np.int64], env: VecNormalize | None = None) -> RolloutBufferSamples:
        envs, steps = np.divmod(batch_inds, self.buffer_size)  # the order of the base class's other arrays
        rows = torch.from_numpy(steps * self.n_envs + envs).to(self.device)
        return super()._get_samples(batch_inds, env)._replace(observations=self._pixels[rows])
