"""Proximal policy distillation: the student learns from the game's rewards and is held near its teacher.

PPO (Schulman et al. 2017) with the divergence from the teacher's policy as a further term (Spigler 2024, "Proximal
Policy Distillation"). A network too small to match the teacher in every state so spends what it has on the states in
which a mistake costs reward.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.compression.critic import LinearCritic, estimate_advantages
from lrp_compress.compression.trajectories import Trajectories, trajectories
from lrp_compress.config.schema import FinetuneConfig
from lrp_compress.environments.acting import cores_shared_with_emulators
from lrp_compress.environments.groups import Acting
from lrp_compress.networks.fast import fast_outputs, faster_precision
from lrp_compress.networks.graph import Network
from lrp_compress.support.processes import keep_freed_memory
from lrp_compress.support.seeding import stage_seed
from lrp_compress.support.states import load_state, save_state

GAMES = 100  # finished games that the return is the mean of
ADAM_EPSILON = 1e-5  # as PPO is usually run (Huang et al. 2022, "The 37 Implementation Details of PPO", detail 3)
WARM_UP = 16  # blocks that only the critic learns from, about a game: it has to know late states too


@dataclass(frozen=True)
class Update:
    """What was seen in one block of play and the updates after it.

    Attributes
    ----------
    steps : int
        Agent steps so far.
    return_mean : float
        Mean unclipped return of the last 100 games; NaN before the first is over.
    divergence : float
        Mean KL divergence from the teacher's policy to the student's, in nats; like the next two NaN while only the
        critic learns.
    entropy : float
        Mean entropy of the student's policy, in nats.
    clip_fraction : float
        Share of the probability ratios that were clipped.
    explained_variance : float
        Share of the returns' variance that the critic had foreseen.
    """

    steps: int
    return_mean: float
    divergence: float
    entropy: float
    clip_fraction: float
    explained_variance: float


def finetune(
    student: Network,
    teacher: Agent,
    config: FinetuneConfig,
    acting: Acting,
    checkpoint: Path,
    report: Callable[[list[Update]], None] = lambda updates: None,
) -> Network:
    """Let a student go on learning, from the rewards of its own play and from its teacher.

    Parameters
    ----------
    student : Network
        Where to start from, with a policy head, on the device to learn on; left as it is.
    teacher : Agent
        With a policy head, on the same device.
    config : FinetuneConfig
        Steps and hyperparameters.
    acting : Acting
        How the student plays; it samples from its policy whatever the rule. The seed is that of the batches too.
    checkpoint : Path
        Where the state is kept now and then, and taken up from if it is there.
    report : callable
        Receives all updates since the checkpoint before, just before each checkpoint and at the end.

    Returns
    -------
    Network
        After ``config.steps`` steps, rounded up to whole blocks; on the device it learned on.

    Raises
    ------
    UserError
        If the checkpoint is damaged.
    """
    keep_freed_memory()
    with cores_shared_with_emulators():
        dtype = faster_precision(copy.deepcopy(student), config.batch_size)
    learner = ProximalLearner(student, config, dtype)
    learner.restore(checkpoint)
    seed = stage_seed(acting.seed, "from", learner.steps)  # goes on with other games than those already played
    play = trajectories(learner.student, teacher, (config.n_steps, config.envs), acting.protocol, seed, dtype)
    batches = torch.Generator().manual_seed(stage_seed(seed, "batches"))
    updates: list[Update] = []
    saved = time.monotonic()
    with (
        contextlib.closing(play) as blocks,
        tqdm(total=config.steps, desc="finetune", unit="step", unit_scale=True, leave=False, disable=None) as bar,
    ):
        bar.initial = bar.n = learner.steps
        while learner.steps < config.steps:
            updates.append(learner.learn(next(blocks), batches))
            bar.set_postfix({"return": f"{updates[-1].return_mean:.1f}"}, refresh=False)
            bar.update(learner.steps - bar.n)
            if time.monotonic() - saved > 60 * config.checkpoint_minutes:
                report(updates)
                updates = []
                learner.save(checkpoint)
                saved = time.monotonic()
    report(updates)
    network = learner.student.eval()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return network


class ProximalLearner:
    """The student, its optimiser and the critic.

    Parameters
    ----------
    student : Network
        Where to start from; left as it is.
    config : FinetuneConfig
        Steps and hyperparameters.
    dtype : torch.dtype
        Precision of the gradient steps.

    Attributes
    ----------
    student : Network
        The one that learns.
    steps : int
        Agent steps learned from so far.
    """

    def __init__(self, student: Network, config: FinetuneConfig, dtype: torch.dtype) -> None:
        self.student = copy.deepcopy(student).train()
        self.student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.steps = 0
        self._config = config
        self._dtype = dtype
        self._critic = LinearCritic()
        self._returns: deque[float] = deque(maxlen=GAMES)
        self._optimiser = torch.optim.Adam(
            self.student.parameters(), lr=config.learning_rate, eps=ADAM_EPSILON, fused=True
        )

    def learn(self, block: Trajectories, batches: torch.Generator) -> Update:
        """Learn from a block of play, the critic after the student."""
        config = self._config
        values = self._critic.values(block.hidden)
        advantages = estimate_advantages(block.rewards, block.ends, values, config.gamma, config.gae_lambda)
        targets = advantages + values[:-1]
        foreseen = 1 - (advantages.var() / targets.var().clamp_min(1e-8)).item()
        divergence, entropy, clipped = (
            self._improve(block, advantages, batches) if self._critic.fits >= WARM_UP else (math.nan,) * 3
        )
        self._critic.fit(block.hidden[:-1], targets)
        self._returns.extend(block.returns)
        self.steps += advantages.numel()
        played = float(np.mean(self._returns)) if self._returns else math.nan
        return Update(self.steps, played, divergence, entropy, clipped, foreseen)

    def _improve(self, block: Trajectories, advantages: Tensor, batches: torch.Generator) -> list[float]:
        """Do all gradient steps that a block allows; mean divergence, entropy and share of clipped ratios."""
        config = self._config
        left = 1 - self.steps / config.steps
        for group in self._optimiser.param_groups:
            group["lr"] = left * config.learning_rate
        parts = (block.observations, block.actions, block.log_probs, block.teacher_log_probs, advantages)
        whole = [part.flatten(0, 1) for part in parts]
        seen = []
        for _ in range(config.n_epochs):
            order = torch.randperm(len(whole[0]), generator=batches).to(advantages.device)
            for chosen in torch.split(order, config.batch_size):
                seen.append(self._step([part[chosen] for part in whole], left))
        means: list[float] = torch.stack(seen).mean(0).tolist()
        return means

    def _step(self, batch: Sequence[Tensor], left: float) -> Tensor:
        """Do one gradient step; entropy and divergence count as much as is left of the steps."""
        observations, actions, old_log_probs, teacher_log_probs, advantages = batch
        config = self._config
        log_probs = fast_outputs(self.student, observations, self._dtype).log_softmax(1)
        ratio = (log_probs.gather(1, actions[:, None]).squeeze(1) - old_log_probs).exp()
        low, high = 1 - config.clip_range, 1 + config.clip_range
        advantages = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
        gain = torch.minimum(advantages * ratio, advantages * ratio.clamp(low, high)).mean()
        entropy = -(log_probs.exp() * log_probs).sum(1).mean()
        divergence = (teacher_log_probs.exp() * (teacher_log_probs - log_probs)).sum(1).mean()
        loss = left * (config.divergence * divergence - config.ent_coef * entropy) - gain
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), config.max_grad_norm)
        self._optimiser.step()
        outside = ((ratio < low) | (ratio > high)).float().mean()
        return torch.stack([divergence, entropy, outside]).detach()

    def save(self, path: Path) -> None:
        """Write all that is needed to go on."""
        state = {
            "student": self.student.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "critic": self._critic.state_dict(),
            "steps": self.steps,
            "returns": list(self._returns),
        }
        save_state(path, state)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint, if there is one."""
        state = load_state(path)
        if state is None:
            return
        self.student.load_state_dict(state["student"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._critic.load_state_dict(state["critic"])
        self.steps = state["steps"]
        self._returns.extend(state["returns"])
