"""Learning with Stable-Baselines3, watched: progress, curves, evaluations and checkpoints."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from tqdm import tqdm

from lrp_compress.agents.checkpoints import Agent, AgentInfo, all_channels
from lrp_compress.agents.layouts import network_from_state
from lrp_compress.config.schema import TrainConfig
from lrp_compress.environments.atari import AtariEnvs, Interface, game_spaces
from lrp_compress.support.processes import keep_freed_memory
from lrp_compress.support.progress import Pace
from lrp_compress.support.seeding import stage_seed
from lrp_compress.support.states import load_state
from lrp_compress.tracking.tracker import Tracker
from lrp_compress.training.algorithms import begin_with, make_learner
from lrp_compress.training.checkpoint import restore, save_checkpoint
from lrp_compress.training.vec_env import AtariVecEnv

logger = logging.getLogger(__name__)

GAMES = 100  # finished games that a point of the return's curve is the mean of


def make_envs(config: TrainConfig, seed: int) -> AtariVecEnv:
    """Make the environments to learn in: no-op starts, no sticky actions, the minimal action set."""
    fire = config.train.fire_on_life_loss
    return AtariVecEnv(AtariEnvs(config.game.name, config.train.envs, "noop", seed, Interface(fire_on_life_loss=fire)))


def learn(
    config: TrainConfig,
    checkpoint: Path,
    tracker: Tracker,
    evaluate: Callable[[Agent, int], dict[str, float]],
    start: Agent | None = None,
) -> Agent:
    """Train an agent, or go on from the checkpoint.

    Parameters
    ----------
    config : TrainConfig
        The checked configuration.
    checkpoint : Path
        Where the state is kept; there is one after the call.
    tracker : Tracker
        Receives the curves. They are handed over with each checkpoint, so that a training that goes on from it repeats
        no point and leaves no gap.
    evaluate : callable
        Called now and then with the agent so far and its steps; its metrics join the curves.
    start : Agent or None
        Where a training without a checkpoint begins; None for a new network.

    Returns
    -------
    Agent
        After ``config.train.steps`` steps, rounded up to whole updates.
    """
    keep_freed_memory()
    saved = load_state(checkpoint)
    done = saved["counters"]["num_timesteps"] if saved else 0
    seed = stage_seed(config.seed, "train", done)  # goes on with other games than those already played
    with contextlib.closing(make_envs(config, seed)) as env:
        learner = make_learner(config.train, env, config.device, seed)
        if saved:
            restore(learner, saved)
        elif start:
            begin_with(learner, start, f"train.start={config.train.start}")
        if (left := config.train.steps - done) > 0:
            learner.set_logger(Logger(folder=None, output_formats=[]))
            returns = saved["returns"] if saved else []
            watch = _Watch(config, checkpoint, tracker, evaluate, returns)
            with watch.bar:
                learner.learn(left, [CoresInTurn(), watch], log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]
        agent = agent_of(learner, config)
    if start:
        agent.info.lineage["started_from"] = start.info.lineage
    return agent


def agent_of(learner: BaseAlgorithm, config: TrainConfig) -> Agent:
    """Take the network that acts out of a learner, as an agent in evaluation mode on the CPU."""
    state = {name: tensor.detach().cpu().clone() for name, tensor in learner.policy.state_dict().items()}
    spaces = game_spaces(config.game.name)
    settings = {"action_space": {":type:": "Discrete", "n": len(spaces.actions["minimal"])}}
    network, _ = network_from_state(state, spaces, settings)
    info = AgentInfo(
        game=config.game.name,
        action_set="minimal",
        fire_on_life_loss=config.train.fire_on_life_loss,
        lineage={
            "trained_by": f"Stable-Baselines3, {config.train.algorithm}",
            "steps": learner.num_timesteps,
            "seed": config.seed,
        },
        kept=all_channels(network.widths),
    )
    return Agent(network, info)


class CoresInTurn(BaseCallback):
    """Lets the network compute on half the cores while emulators share them, and on all cores while it learns.

    See `lrp_compress.environments.acting.cores_shared_with_emulators`.
    """

    def _on_training_start(self) -> None:
        self._cores = torch.get_num_threads()

    def _on_rollout_start(self) -> None:
        torch.set_num_threads(max(1, self._cores // 2))

    def _on_rollout_end(self) -> None:
        torch.set_num_threads(self._cores)

    def _on_training_end(self) -> None:
        torch.set_num_threads(self._cores)

    def _on_step(self) -> bool:
        return True


class _Watch(BaseCallback):
    """Stops between an update and the next steps, where the learner's state is whole, to note what is due."""

    def __init__(
        self,
        config: TrainConfig,
        checkpoint: Path,
        tracker: Tracker,
        evaluate: Callable[[Agent, int], dict[str, float]],
        returns: Sequence[float],
    ) -> None:
        super().__init__()
        self.bar = tqdm(total=config.train.steps, desc="train", unit="step", unit_scale=True, leave=False, disable=None)
        self._config = config
        self._checkpoint = checkpoint
        self._tracker = tracker
        self._evaluate = evaluate
        self._returns: deque[float] = deque(returns, maxlen=GAMES)
        self._points: list[tuple[int, dict[str, float]]] = []  # of the curves, since the last checkpoint
        self._pace = Pace()

    def _on_training_start(self) -> None:
        self.bar.n = self.bar.initial = self._seen = self._logged = self._saved = self.num_timesteps
        self._logged_at = self._saved_at = time.monotonic()

    def _on_step(self) -> bool:
        self._returns.extend(info["episode"]["r"] for info in self.locals["infos"] if "episode" in info)
        self.bar.update(self.num_timesteps - self.bar.n)
        return True

    def _on_rollout_start(self) -> None:
        self._note()
        late = time.monotonic() - self._saved_at > 60 * self._config.train.checkpoint_minutes
        if late and self.num_timesteps > self._saved:
            self._save()

    def _on_training_end(self) -> None:
        self._note()
        self._save()

    def _note(self) -> None:
        """Log and evaluate if it is time."""
        config, now = self._config.train, time.monotonic()
        if self._passed(config.log_every):
            self._log(now)
        if self._passed(config.evaluate_every):
            self._points.append(
                (self.num_timesteps, self._evaluate(agent_of(self.model, self._config), self.num_timesteps))
            )
        self._seen = self.num_timesteps

    def _passed(self, every: int) -> bool:
        """Whether a multiple of `every` steps lies between the last look and now."""
        return self.num_timesteps // every > self._seen // every

    def _log(self, now: float) -> None:
        values = {name: float(value) for name, value in self.logger.name_to_value.items()}
        values["time/steps_per_s"] = (self.num_timesteps - self._logged) / (now - self._logged_at)
        if self._returns:
            values["rollout/return_mean"] = float(np.mean(self._returns))
            self.bar.set_postfix({"return": f"{values['rollout/return_mean']:.1f}"}, refresh=False)
        self._points.append((self.num_timesteps, {k: v for k, v in values.items() if math.isfinite(v)}))
        self._logged, self._logged_at = self.num_timesteps, now
        speed = f"{values['time/steps_per_s']:,.0f} steps/s"
        self._pace.say("train: %s, %s", self._so_far(), speed)

    def _save(self) -> None:
        """Hand the curves over and write a checkpoint."""
        for step, values in self._points:
            self._tracker.metrics(values, step)
        self._points.clear()
        self._tracker.flush()
        save_checkpoint(self._checkpoint, self.model, self._returns)
        self._saved, self._saved_at = self.num_timesteps, time.monotonic()
        logger.info("train: checkpoint at %s", self._so_far())

    def _so_far(self) -> str:
        played = f", return {np.mean(self._returns):.1f}" if self._returns else ""
        return f"{self.num_timesteps:,} of {self._config.train.steps:,} steps{played}"
