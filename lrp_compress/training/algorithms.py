"""Learning algorithms by name: Stable-Baselines3's classes around the fast Nature CNN.

To add one, register its class and write ``conf/train/name.yaml``.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from sb3_contrib import QRDQN
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.agents.layouts import fill_state
from lrp_compress.config.ranges import Range
from lrp_compress.config.schema import MOST_STATES, LearnerConfig
from lrp_compress.networks.fast import faster_precision
from lrp_compress.networks.nature import NATURE_WIDTHS, nature_cnn
from lrp_compress.support.errors import UserError, unknown_name
from lrp_compress.support.registry import Registry
from lrp_compress.training.policies import FastNatureCNN
from lrp_compress.training.ppo import AnnealedPPO
from lrp_compress.training.replay import FrameReplayBuffer
from lrp_compress.training.rollout import PixelRolloutBuffer
from lrp_compress.training.vec_env import AtariVecEnv

FALLING = "lin_"  # a value written lin_X falls linearly from X to 0, as in RL Baselines3 Zoo

# Arguments of the classes that are not the user's to set here.
TAKEN = {
    *("policy", "env", "device", "seed", "policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs"),
    *("rollout_buffer_class", "rollout_buffer_kwargs"),
    *("optimize_memory_usage", "tensorboard_log", "verbose", "_init_setup_model"),
}
# What the hyperparameters may be, by the names of Stable-Baselines3.
SHARE, POSITIVE = Range(0, 1), Range(0, open_low=True)
WHOLE = {
    **dict.fromkeys(("n_epochs", "train_freq", "target_update_interval", "n_quantiles", "stats_window_size"), Range(1)),
    **{"n_steps": Range(1, 2**16), "batch_size": Range(1, 2**20), "buffer_size": Range(1, MOST_STATES)},
    **{"learning_starts": Range(0), "gradient_steps": Range(-1)},  # -1: as many as steps were played
}
REAL = {
    **dict.fromkeys(("learning_rate", "clip_range", "clip_range_vf", "max_grad_norm", "target_kl"), POSITIVE),
    **dict.fromkeys(("gamma", "gae_lambda", "tau", "exploration_fraction", "exploration_initial_eps"), SHARE),
    **{"exploration_final_eps": SHARE, "ent_coef": Range(0), "vf_coef": Range(0)},
}
ANNEALED = ("learning_rate", "clip_range", "clip_range_vf", "ent_coef")
OPTIONAL = ("clip_range_vf", "target_kl")  # null: none
QUANTILES = "n_quantiles"  # of QR-DQN, which takes it as an argument of its policy
ALGORITHMS: Registry[type[BaseAlgorithm]] = Registry("algorithm")
ALGORITHMS.register("dqn")(DQN)  # Mnih et al. 2015
ALGORITHMS.register("qrdqn")(QRDQN)  # Dabney et al. 2018
ALGORITHMS.register("ppo")(AnnealedPPO)  # Schulman et al. 2017


def make_learner(config: LearnerConfig, env: AtariVecEnv, device: str, seed: int) -> BaseAlgorithm:
    """Make a Stable-Baselines3 learner with a new network.

    Parameters
    ----------
    config : LearnerConfig
        Algorithm and hyperparameters.
    env : AtariVecEnv
        Where it learns.
    device : str
        ``"cpu"`` or ``"cuda"``.
    seed : int
        Of the network, the exploration and the batches.

    Returns
    -------
    BaseAlgorithm
        The network has the Nature CNN's keys, whatever the algorithm.

    Raises
    ------
    UserError
        If the algorithm or a hyperparameter is unknown, or its class refuses a value.
    """
    algorithm = ALGORITHMS[config.algorithm]
    arguments = hyperparameters(config)
    if issubclass(algorithm, OffPolicyAlgorithm):
        arguments["replay_buffer_class"] = FrameReplayBuffer
    else:
        arguments["rollout_buffer_class"] = PixelRolloutBuffer
    network = {
        "features_extractor_class": FastNatureCNN,
        "features_extractor_kwargs": {"dtype": _dtype(config, env, device)},
        "net_arch": [],
        "normalize_images": False,
        "optimizer_kwargs": {"eps": config.adam_epsilon, "fused": True},
    }
    if QUANTILES in arguments:
        network[QUANTILES] = arguments.pop(QUANTILES)
    try:
        learner = algorithm("CnnPolicy", env, policy_kwargs=network, device=device, seed=seed, **arguments)
    except (AssertionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"train.hyperparameters: {config.algorithm} refuses them: {reason}") from error
    # only now: the orthogonal initialisation of the policies fails on weights that lie channels last
    learner.policy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return learner


def begin_with(learner: BaseAlgorithm, agent: Agent, source: str) -> None:
    """Let a new learner's network be an agent's; what else it learns, such as PPO's value function, begins anew.

    Parameters
    ----------
    learner : BaseAlgorithm
        From `make_learner`.
    agent : Agent
        Of the learner's game, with the minimal action set.
    source : str
        What errors call it.

    Raises
    ------
    UserError
        If the algorithm cannot learn a network of its kind.
    """
    if agent.info.action_set != "minimal":
        raise UserError(f"{source} chooses among all actions; trainings use the game's minimal action set")
    policy: Any = learner.policy
    fill_state(policy.state_dict(), agent.network, source)
    for name in ("q_net", "quantile_net"):
        if hasattr(policy, name):
            getattr(policy, f"{name}_target").load_state_dict(getattr(policy, name).state_dict())


def hyperparameters(config: LearnerConfig) -> dict[str, Any]:
    """Read the configured hyperparameters as arguments of the algorithm's class.

    Raises
    ------
    UserError
        If the class has no such argument, or a value is no number or one that nothing is learned with.
    """
    algorithm = ALGORITHMS[config.algorithm]
    known = set(inspect.signature(algorithm).parameters) - TAKEN
    if issubclass(algorithm, QRDQN):
        known.add(QUANTILES)
    for name in config.hyperparameters:
        if name not in known:
            raise unknown_name("train.hyperparameters", name, known)
    return {name: _value(name, value) for name, value in config.hyperparameters.items()}


def _value(name: str, value: Any) -> Any:
    """Check a value, since the classes take most of what is given and fail, or learn nothing, hours later."""
    key, falls = f"train.hyperparameters.{name}", isinstance(value, str)
    if value is None and name in OPTIONAL:
        return None
    number = value
    if falls:
        try:
            number = float(value.removeprefix(FALLING))
        except ValueError as error:
            raise UserError(f"{key}: {value} is neither a number nor {FALLING}NUMBER") from error
        if name not in ANNEALED:
            raise UserError(f"{key}={value}: {name} does not fall; give a number")
    kind, allowed = (int, WHOLE[name]) if name in WHOLE else (float, REAL.get(name))
    if allowed is not None:
        if isinstance(number, bool) or not isinstance(number, int | kind):
            raise UserError(f"{key}={value} is no {'whole ' * (kind is int)}number")
        if number not in allowed:
            raise UserError(f"{key}={value} is not allowed; it must be {allowed}")
    return LinearSchedule(number, 0.0, 1.0) if falls else value


def _dtype(config: LearnerConfig, env: AtariVecEnv, device: str) -> torch.dtype:
    if config.precision != "auto":
        dtype: torch.dtype = getattr(torch, config.precision)
        return dtype
    network = nature_cnn(NATURE_WIDTHS, "q", env.actions).to(device)
    return faster_precision(network, int(config.hyperparameters.get("batch_size", 256)))
