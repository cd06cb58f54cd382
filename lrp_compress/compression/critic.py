"""How good a state is: a linear function of the teacher's last hidden values, and advantages from it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

MEMORY = 0.95  # weight of everything before in each fit
RIDGE = 1e-6  # of the mean square of the hidden values: only units that are always 0 need it


class LinearCritic:
    """Ridge regression of returns on hidden values, with a memory that fades.

    In a teacher that learned to act and to tell the value of a state from the same hidden values, as with PPO, a linear
    function of them tells it again. It takes no gradient, and nothing of the small student is spent on it.

    Attributes
    ----------
    fits : int
        Calls of `fit` so far.
    """

    def __init__(self) -> None:
        self.fits = 0
        self._gram = torch.zeros(1, 1, dtype=torch.float64)
        self._moments = torch.zeros(1, dtype=torch.float64)
        self._weights = torch.zeros(1)

    def values(self, hidden: Tensor) -> Tensor:
        """Estimate values, shape (...), from hidden values, shape (..., units); 0 before the first fit."""
        if not self.fits:
            return torch.zeros(hidden.shape[:-1], device=hidden.device)
        return _with_one(hidden) @ self._weights.to(hidden.device)

    def fit(self, hidden: Tensor, returns: Tensor) -> None:
        """Learn from states, hidden values of shape (..., units), and the returns that followed, shape (...)."""
        features = _with_one(hidden).flatten(0, -2).double()
        device = hidden.device
        self._gram = MEMORY * self._gram.to(device) + features.T @ features
        self._moments = MEMORY * self._moments.to(device) + features.T @ returns.flatten().double()
        ridge = RIDGE * self._gram.diagonal().mean().clamp_min(1e-8)
        regular = self._gram + ridge * torch.eye(len(self._gram), dtype=torch.float64, device=device)
        self._weights = torch.linalg.solve(regular, self._moments).float()
        self.fits += 1

    def state_dict(self) -> dict[str, Tensor | int]:
        """Give all it knows."""
        return {"fits": self.fits, "gram": self._gram, "moments": self._moments, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Know what another knew."""
        self.fits = int(state["fits"])
        self._gram, self._moments, self._weights = (
            torch.as_tensor(state[name]) for name in ("gram", "moments", "weights")
        )


def estimate_advantages(rewards: Tensor, ends: Tensor, values: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Estimate how much better than expected each action was (Schulman et al. 2016, equation 16).

    Parameters
    ----------
    rewards : Tensor of float32, shape (steps, envs)
    ends : Tensor of bool, shape (steps, envs)
        Nothing that comes after counts for this step and those before.
    values : Tensor of float32, shape (steps + 1, envs)
        Of the states the steps began in, and of those after the last.
    gamma : float
        Discount per step.
    gae_lambda : float
        0 trusts the values, 1 the rewards.

    Returns
    -------
    Tensor of float32, shape (steps, envs)
    """
    goes_on = (~ends).float()
    errors = rewards + gamma * goes_on * values[1:] - values[:-1]
    advantages = torch.empty_like(errors)
    following = torch.zeros_like(errors[0])
    for time in reversed(range(len(errors))):
        following = errors[time] + gamma * gae_lambda * goes_on[time] * following
        advantages[time] = following
    return advantages


def _with_one(hidden: Tensor) -> Tensor:
    return functional.pad(hidden, (0, 1), value=1.0)
