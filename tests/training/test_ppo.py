"""What is recorded on a GPU is what Stable-Baselines3 does; without a GPU the same code runs as it is."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger

from lrp_compress.config.schema import LearnerConfig
from lrp_compress.environments.atari import AtariEnvs
from lrp_compress.support.states import load_state
from lrp_compress.training.algorithms import make_learner
from lrp_compress.training.checkpoint import restore, save_checkpoint
from lrp_compress.training.ppo import AnnealedPPO
from lrp_compress.training.vec_env import AtariVecEnv

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
TOLERANCE = {"cpu": 1e-4, "cuda": 0.01}  # of what the weights moved
ENVS, STEPS = 4, 64

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")]


def learner_of(env: AtariVecEnv, device: str) -> AnnealedPPO:
    hyperparameters = {
        **{"learning_rate": "lin_1e-3", "n_steps": STEPS, "batch_size": 51, "n_epochs": 2},  # its last has one state
        **{"clip_range": "lin_0.1", "ent_coef": "lin_0.05", "gae_lambda": 0.95, "gamma": 0.99},
    }
    config = LearnerConfig("ppo", None, 1000, ENVS, hyperparameters, 1e-5, False, "float32", 100, 5, 1000, 2)
    made = make_learner(config, env, device, seed=1)
    assert isinstance(made, AnnealedPPO)
    made.set_logger(Logger(folder=None, output_formats=[]))
    return made


@pytest.fixture(scope="module")
def env() -> Iterator[AtariVecEnv]:
    with contextlib.closing(AtariVecEnv(AtariEnvs("breakout", ENVS, "noop", 3))) as made:
        yield made


def play(learner: AnnealedPPO, env: AtariVecEnv) -> None:
    """Fill the buffer with one rollout."""
    _, callback = learner._setup_learn(STEPS)
    learner.collect_rollouts(env, callback, learner.rollout_buffer, STEPS)


def take_buffer(learner: AnnealedPPO, other: AnnealedPPO) -> None:
    for name, value in vars(other.rollout_buffer).items():
        if isinstance(value, np.ndarray | torch.Tensor | bool | int):
            setattr(learner.rollout_buffer, name, copy.deepcopy(value))


@pytest.mark.parametrize("device", DEVICES)
def test_updates_are_those_of_stable_baselines(env: AtariVecEnv, device: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # its 10 bits make noise that hides mistakes
    ours, theirs = learner_of(env, device), learner_of(env, device)
    before = {name: value.clone() for name, value in theirs.policy.state_dict().items()}
    for left in (0.8, 0.3):  # of the training: the coefficients fall
        play(theirs, env)
        take_buffer(ours, theirs)
        for learner in (ours, theirs):
            learner._current_progress_remaining = left
            learner.ent_coef = learner._entropy_schedule(left)
            np.random.seed(2)
        ours.train_replayed()
        np.random.seed(2)
        PPO.train(theirs)
        assert ours._n_updates == theirs._n_updates
        logged = dict(theirs.logger.name_to_value)
        for name, value in ours.logger.name_to_value.items():
            if name not in ("train/loss", "train/approx_kl"):  # of the last step and epoch there, means here
                assert value == pytest.approx(logged[name], rel=0.02, abs=TOLERANCE[device]), name
        for name, value in theirs.policy.state_dict().items():
            moved = (value - before[name]).norm()
            assert (ours.policy.state_dict()[name] - value).norm() < TOLERANCE[device] * moved, name


def test_a_checkpoint_of_recorded_steps_goes_on_anywhere(env: AtariVecEnv, tmp_path: Path):
    before, after = learner_of(env, DEVICES[-1]), learner_of(env, "cpu")
    play(before, env)
    before.train_replayed()
    save_checkpoint(tmp_path / "checkpoint.pt", before, [])
    state = load_state(tmp_path / "checkpoint.pt")
    assert state is not None
    restore(after, state)
    for name, value in before.policy.state_dict().items():
        torch.testing.assert_close(after.policy.state_dict()[name], value.cpu(), rtol=0, atol=0)
    play(after, env)
    after._current_progress_remaining = 0.5
    PPO.train(after)
    assert after.policy.optimizer.param_groups[0]["lr"] == 0.5e-3
    assert not torch.equal(after.policy.action_net.weight.cpu(), before.policy.action_net.weight.cpu())


@pytest.mark.parametrize("device", DEVICES)
def test_drawn_actions_follow_the_policy(env: AtariVecEnv, device: str):
    learner = learner_of(env, device)
    with torch.no_grad():
        learner.policy.action_net.bias.copy_(torch.tensor([0.0, 1.0, -1.0, 0.5]))
        observations = torch.from_numpy(env.reset()).to(device)
        counts = torch.zeros(4)
        for _ in range(400):
            actions, values, log_probs = learner.policy._drawn(observations)
            counts += torch.bincount(actions.cpu(), minlength=4)
        same_values, same_log_probs, _ = learner.policy.evaluate_actions(observations, actions)
        torch.testing.assert_close(values, same_values)
        torch.testing.assert_close(log_probs, same_log_probs)
        expected = learner.policy.outputs(observations)[0].exp().mean(0).cpu()
    assert torch.allclose(counts / counts.sum(), expected, atol=0.05)  # four standard errors of the commonest


@pytest.mark.parametrize("device", DEVICES)
def test_a_whole_training_on_the_device_moves_the_policy(env: AtariVecEnv, device: str):
    learner = learner_of(env, device)
    before = learner.policy.action_net.weight.detach().clone()
    learner.learn(2 * ENVS * STEPS)
    assert torch.isfinite(learner.policy.action_net.weight).all()
    assert (learner.policy.action_net.weight - before).abs().max() > 1e-4
