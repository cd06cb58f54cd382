"""Training throughput: this project's learner against plain Stable-Baselines3, in turns in one process.

    python benchmarks/training.py

The plain side is what one writes first: ``make_atari_env``, ``VecFrameStack`` and ``CnnPolicy``. Both sides learn the
same game with the same algorithm, hyperparameters and number of environments; they take turns, so a slow minute of the
machine slows both. Making the environments is not timed. Prints agent steps per second and the ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack

from lrp_compress.config.checks import check_config, conf_dir, register_schemas
from lrp_compress.config.schema import TrainConfig
from lrp_compress.training.algorithms import ALGORITHMS, hyperparameters, make_learner
from lrp_compress.training.learning import CoresInTurn, make_envs


def settings(algorithm: str, overrides: list[str]) -> TrainConfig:
    register_schemas()
    OmegaConf.register_new_resolver("run_folder", str)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return check_config(compose("train", ["+game=breakout", f"train={algorithm}", *overrides]), TrainConfig)


def plain_steps_per_s(config: TrainConfig, steps: int) -> float:
    # ALE's own frame skip and sticky actions are off: the wrapper skips
    kwargs = {"frameskip": 1, "repeat_action_probability": 0.0}
    with contextlib.closing(
        VecFrameStack(make_atari_env("ALE/Breakout-v5", config.train.envs, env_kwargs=kwargs), 4)
    ) as env:
        learner = ALGORITHMS[config.train.algorithm](
            "CnnPolicy", env, device=config.device, **hyperparameters(config.train)
        )
        start = time.perf_counter()
        learner.learn(steps)
        return learner.num_timesteps / (time.perf_counter() - start)


def our_steps_per_s(config: TrainConfig, steps: int) -> float:
    with contextlib.closing(make_envs(config, 0)) as env:
        learner = make_learner(config.train, env, config.device, 0)
        start = time.perf_counter()
        learner.learn(steps, CoresInTurn())
        return learner.num_timesteps / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", default="ppo", choices=ALGORITHMS.names())
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16_384, help="agent steps per turn")
    parser.add_argument("overrides", nargs="*", help="settings of the training, e.g. train.envs=8")
    options = parser.parse_args()
    config = settings(options.algorithm, options.overrides)
    ratios = []
    for turn in range(options.turns):
        ours = our_steps_per_s(config, options.steps)
        plain = plain_steps_per_s(config, options.steps)
        ratios.append(ours / plain)
        print(f"turn {turn}: ours {ours:,.0f} steps/s, plain {plain:,.0f} steps/s, ratio {ratios[-1]:.2f}", flush=True)
    print(f"ratio: median {statistics.median(ratios):.2f}, range {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
