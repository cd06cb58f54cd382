"""ALE's vector environment in the shape that Stable-Baselines3 learns from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from lrp_compress.environments.atari import AtariEnvs


class AtariVecEnv(VecEnv):
    """Atari games for a learner: clipped rewards and episodes that end with a life (Mnih et al. 2015, Methods).

    A lost life is only reported as the end of an episode; the game and its frame stack go on. When a game is over,
    ``info["episode"]`` holds its unclipped return ``r`` and its length ``l`` in agent steps, as Stable-Baselines3's
    ``Monitor`` gives them.

    Parameters
    ----------
    envs : AtariEnvs
        The emulators; closed with this environment.
    """

    def __init__(self, envs: AtariEnvs) -> None:
        self._envs = envs
        self.render_mode = None
        observation = spaces.Box(0, 255, (4, 84, 84), np.uint8)
        self.actions = envs.actions
        super().__init__(envs.envs, observation, spaces.Discrete(envs.actions))

    def reset(self) -> NDArray[np.uint8]:
        """Start new games everywhere."""
        step = self._envs.reset()
        self._lives = step.lives
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return step.observations

    def step_async(self, actions: NDArray[np.integer]) -> None:
        """Hand actions, shape (envs,), to the emulators."""
        self._envs.send(actions)

    def step_wait(self) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Collect the step begun by `step_async`.

        Returns
        -------
        observations : ndarray of uint8, shape (envs, 4, 84, 84)
            Where a game is over, the first of the next game.
        rewards : ndarray of float32, shape (envs,)
            Signs of the game's rewards.
        dones : ndarray of bool, shape (envs,)
            A life was lost or the game is over.
        infos : list of dict
            Where done ``terminal_observation`` and ``TimeLimit.truncated``, where the game is over also ``episode``.
        """
        step = self._envs.receive()
        self._returns += step.rewards
        self._lengths += 1
        dones = step.ended | (step.lives < self._lives)
        self._lives = step.lives
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row in np.flatnonzero(dones):
            truncated = bool(step.capped[row])
            infos[row] = {"terminal_observation": step.observations[row], "TimeLimit.truncated": truncated}
            if step.ended[row]:
                infos[row]["episode"] = {"r": float(self._returns[row]), "l": int(self._lengths[row])}
        observations = step.observations
        if step.ended.any():
            restarted = self._envs.restart(step.ended)
            observations, self._lives = restarted.observations, restarted.lives
            self._returns[step.ended] = 0
            self._lengths[step.ended] = 0
        return observations, np.sign(step.rewards).astype(np.float32), dones, infos

    def close(self) -> None:
        """Free the emulators."""
        self._envs.close()

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """Read an attribute of this object, once per environment asked for."""
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        """Refuse: the emulators share their settings."""
        raise AttributeError(f"{attr_name} cannot be set: the emulators share their settings")

    def env_method(
        self, method_name: str, *args: Any, indices: int | Iterable[int] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Refuse: the emulators have no methods of their own."""
        raise AttributeError(f"{method_name} cannot be called: the emulators have no methods of their own")

    def env_is_wrapped(self, wrapper_class: type, indices: int | Iterable[int] | None = None) -> list[bool]:
        """Say that no environment is wrapped."""
        return [False] * len(list(self._get_indices(indices)))
