"""The teacher at play: is it what its file says, and the states it visits."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.agents.teachers import SHIPPED
from lrp_compress.config.schema import RolloutsConfig
from lrp_compress.deployment.files.onnx_models import save_float
from lrp_compress.deployment.files.onnx_sessions import OnnxPolicy
from lrp_compress.environments.acting import Outputs
from lrp_compress.environments.probing import Probe, probe
from lrp_compress.environments.rollouts import Rollouts, collect_rollouts, load_rollouts, save_rollouts
from lrp_compress.stages.context import Run
from lrp_compress.support.files import is_whole, read_json, sign, stored, write_json

logger = logging.getLogger(__name__)


def probe_teacher(run: Run) -> None:
    """Warn if a teacher that is not one of the shipped plays no better than random actions."""
    config = run.config
    if config.teacher.source == SHIPPED:
        return
    seed = run.seed("probe")
    result = stored(
        run.folder / "probe.json",
        lambda: probe(run.teacher, run.acting(seed)),
        lambda path, result: write_json(path, dataclasses.asdict(result)),
        lambda path: Probe(**read_json(path)),
        "probe of the teacher",
        lambda result: f"reward {result.reward:.1f}, of random actions {result.random:.1f}",
    )
    run.tracker.metrics({"teacher/probe_reward": result.reward, "teacher/probe_random_reward": result.random})
    if not result.better:
        logger.warning("%s", result)


def rollouts(run: Run) -> Rollouts:
    """Let the teacher play; shared by all runs with the same teacher, protocol, seed and size."""
    config = run.config
    seed = run.seed("rollouts")
    return stored(
        run.shared("rollouts", dataclasses.asdict(config.rollouts), seed).with_suffix(".safetensors"),
        lambda: play(run, run.teacher, "teacher", config.rollouts, seed),
        save_rollouts,
        lambda path: load_rollouts(path, config.protocol, seed),
        "rollouts",
        lambda rollouts: f"{len(rollouts):,} states",
    )


def play(run: Run, agent: Agent, name: str, how: RolloutsConfig, seed: int) -> Rollouts:
    """Let an agent play, and keep states of it."""
    return collect_rollouts(agent, how, run.acting(seed), in_runtime(run, agent, name))


def in_runtime(run: Run, agent: Agent, name: str) -> Outputs:
    """Let ONNX Runtime compute an agent's outputs: for few states it takes a quarter to two thirds of the time."""
    return OnnxPolicy(float_file(run, agent, name)).outputs


def float_file(run: Run, agent: Agent, name: str) -> Path:
    """Write an agent as a float32 ONNX file."""
    path = run.folder / "onnx" / f"{name}.onnx"
    if not is_whole(path, OnnxPolicy):
        save_float(path, agent)
        sign(path)
    return path
