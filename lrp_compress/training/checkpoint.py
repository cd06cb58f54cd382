"""Everything a learner needs to go on, in one file that appears whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from lrp_compress.support.states import save_state
from lrp_compress.training.replay import FrameReplayBuffer

# How far the learner is; each algorithm has some of them.
COUNTERS = ("num_timesteps", "_n_updates", "_episode_num", "_n_calls", "exploration_rate")


def save_checkpoint(path: Path, learner: BaseAlgorithm, returns: Iterable[float]) -> None:
    """Write network, optimiser, counters, the last games' returns and, where there is one, the replay."""
    state: dict[str, Any] = {
        "policy": learner.policy.state_dict(),
        "optimizer": learner.policy.optimizer.state_dict(),
        "counters": {name: getattr(learner, name) for name in COUNTERS if hasattr(learner, name)},
        "returns": list(returns),
    }
    if replay := _replay(learner):
        state["replay"] = replay.state_dict()
    save_state(path, state)


def restore(learner: BaseAlgorithm, state: dict[str, Any]) -> None:
    """Put a new learner of the same configuration where the saved one was; its environments begin new games."""
    learner.policy.load_state_dict(state["policy"])
    learner.policy.optimizer.load_state_dict(state["optimizer"])
    for name, value in state["counters"].items():
        setattr(learner, name, value)
    if replay := _replay(learner):
        replay.load_state_dict(state["replay"])


def _replay(learner: BaseAlgorithm) -> FrameReplayBuffer | None:
    replay: FrameReplayBuffer | None = getattr(learner, "replay_buffer", None)
    return replay
