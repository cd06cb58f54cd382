"""PPO with an entropy coefficient that falls, and with its gradient steps and decisions recorded on a GPU."""

from __future__ import annotations

import functools
from typing import Any, ClassVar, cast

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticCnnPolicy
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, explained_variance
from torch import Tensor, nn
from torch.nn import functional

from lrp_compress.training.graphs import Replayed

LOGGED = ("policy_gradient_loss", "value_loss", "entropy_loss", "loss", "approx_kl", "clip_fraction")


class PixelPolicy(ActorCriticCnnPolicy):
    """`ActorCriticCnnPolicy` that learns from the pixels as they are, without making floats of them first."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._drawn = Replayed(self._draw)

    def extract_features(  # type: ignore[override]
        self, obs: Tensor, features_extractor: nn.Module | None = None
    ) -> Tensor:
        """Compute features, float32 (N, 512), of uint8 observations, shape (N, 4, 84, 84)."""
        features: Tensor = self.features_extractor(obs)
        return features

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Choose actions, shape (N,), with their values (N, 1) and log probabilities (N,)."""
        if obs.device.type != "cuda" or deterministic:
            return super().forward(obs, deterministic)
        return self._drawn(obs)

    def outputs(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Compute log probabilities, shape (N, actions), and values, shape (N,)."""
        policy, value = self.mlp_extractor(self.extract_features(obs))
        return torch.log_softmax(self.action_net(policy), dim=1), self.value_net(value).flatten()

    def _draw(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_probs, values = self.outputs(obs)
        # the Gumbel-max trick, since a recording must not wait for the GPU
        actions = (log_probs - torch.empty_like(log_probs).exponential_().log()).argmax(dim=1)
        return actions, values[:, None], log_probs.gather(1, actions[:, None]).squeeze(1)


class AnnealedPPO(PPO):
    """PPO (Schulman et al. 2017) whose entropy coefficient can be a schedule, as its learning rate can.

    On a GPU the gradient steps are the base class's, done by `Replayed`.
    """

    policy_aliases: ClassVar = {"CnnPolicy": PixelPolicy}

    @functools.wraps(PPO.__init__)  # type: ignore[misc]  # its signature tells which hyperparameters there are
    def __init__(self, *args: Any, ent_coef: float | Schedule = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._entropy_schedule = FloatSchedule(ent_coef)
        self._rate = torch.zeros((), device=self.device)  # the learning rate, where a recording reads it
        self._replayed_step = Replayed(self._gradient_step)

    def train(self) -> None:
        """Update the policy, with the entropy coefficient of this time of the training."""
        self.ent_coef = self._entropy_schedule(self._current_progress_remaining)
        self.logger.record("train/ent_coef", self.ent_coef)
        # a recording cannot stop early, nor does it clip values
        if self.device.type == "cuda" and self.target_kl is None and self.clip_range_vf is None:
            self.train_replayed()
        else:
            super().train()

    def train_replayed(self) -> None:
        """Do what the base class's ``train`` does, with gradient steps that are recorded once."""
        self.policy.set_training_mode(True)
        self._rate.fill_(self.lr_schedule(self._current_progress_remaining))
        for group in self.policy.optimizer.param_groups:
            group.update(lr=self._rate, capturable=True)
        clip_range = cast(Schedule, self.clip_range)(self._current_progress_remaining)
        coefficients = torch.tensor([clip_range, self.ent_coef], device=self.device)
        logged = [
            self._replayed_step(*batch, coefficients).clone()
            for _ in range(self.n_epochs)
            for batch in self.rollout_buffer.get(self.batch_size)
        ]
        self._n_updates += self.n_epochs
        for name, value in zip(LOGGED, torch.stack(logged).mean(0).tolist(), strict=True):
            self.logger.record(f"train/{name}", value)
        buffer = self.rollout_buffer
        self.logger.record(
            "train/explained_variance", explained_variance(buffer.values.ravel(), buffer.returns.ravel())
        )
        self.logger.record("train/learning_rate", self._rate.item())
        self.logger.record("train/clip_range", clip_range)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _gradient_step(
        self,
        observations: Tensor,
        actions: Tensor,
        old_values: Tensor,
        old_log_prob: Tensor,
        advantages: Tensor,
        returns: Tensor,
        coefficients: Tensor,
    ) -> Tensor:
        """Do one step on the clipped objective (Schulman et al. 2017, equations 7 and 9).

        Parameters
        ----------
        observations : Tensor of uint8, shape (N, 4, 84, 84)
        actions : Tensor, shape (N, 1)
        old_values, old_log_prob, advantages, returns : Tensor of float32, shape (N,)
            From the buffer; the old values are not needed.
        coefficients : Tensor of float32, shape (2,)
            Clip range and weight of the entropy.

        Returns
        -------
        Tensor of float32, shape (6,)
            The values that `LOGGED` names.
        """
        clip, entropy_weight = coefficients
        policy = cast(PixelPolicy, self.policy)
        log_probs, values = policy.outputs(observations)
        if self.normalize_advantage and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        log_ratio = log_probs.gather(1, actions.long()).squeeze(1) - old_log_prob
        ratio = log_ratio.exp()
        clipped = torch.clamp(ratio, 1 - clip, 1 + clip)
        policy_loss = -torch.minimum(advantages * ratio, advantages * clipped).mean()
        value_loss = functional.mse_loss(values, returns)
        entropy_loss = (log_probs.exp() * log_probs).sum(dim=1).mean()
        loss = policy_loss + entropy_weight * entropy_loss + self.vf_coef * value_loss
        policy.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), self.max_grad_norm)
        policy.optimizer.step()
        kl = (ratio - 1 - log_ratio).mean()
        outside = ((ratio - 1).abs() > clip).float().mean()
        return torch.stack([policy_loss, value_loss, entropy_loss, loss, kl, outside]).detach()
