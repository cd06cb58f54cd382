"""Decisions a second of evaluations against those of the emulators alone, in turns in one process.

    python benchmarks/evaluation.py

Alone, the emulators are stepped with random actions, as many at once as an evaluation has, in two groups. The bare loop
has the teacher act in them and notes nothing. Evaluations are of the shipped agent, of one of half its
channels (random ones: only its speed counts) and of that one's int8 file, all on emulators made before the first turn;
the seeded start of the games is part of every turn, and decisions of games beyond the share are not counted. They take
turns, so a slow minute of the machine slows all. Prints decisions a second and the ratios to the emulators alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from lrp_compress.agents.checkpoints import Agent, AgentInfo, all_channels, load_agent
from lrp_compress.agents.teachers import teachers_dir
from lrp_compress.compression.pruning import PruningPlan, apply_pruning
from lrp_compress.compression.quantization import quantize_static
from lrp_compress.config.schema import EvaluateConfig, GameConfig, RolloutsConfig
from lrp_compress.deployment.files.onnx_sessions import OnnxPolicy
from lrp_compress.environments.acting import Outputs, act, action_rule, cores_shared_with_emulators
from lrp_compress.environments.evaluation import evaluate
from lrp_compress.environments.groups import Acting, Emulators, reset_groups
from lrp_compress.environments.rollouts import collect_rollouts

PROTOCOL = "noop"
STATES = 256  # for the ranges of the int8 file
Turn = Callable[[int], float]  # from a seed to decisions a second


def half_of(teacher: Agent) -> Agent:
    rng = np.random.default_rng(0)
    widths = teacher.network.widths
    keep = {name: sorted(rng.choice(width, width // 2, replace=False).tolist()) for name, width in widths.items()}
    network = apply_pruning(teacher.network, PruningPlan(keep, keep, 0.5, 0.5))
    info = teacher.info
    made = AgentInfo(info.game, info.action_set, info.fire_on_life_loss, {}, all_channels(network.widths))
    return Agent(network, made)


def stepping(teacher: Agent, config: EvaluateConfig, steps: int, emulators: Emulators, acting: bool) -> Turn:
    rule = action_rule("auto", teacher.network.head_kind, 0.001)

    def run(seed: int) -> float:
        rng = np.random.default_rng(seed)
        lent = emulators.groups(teacher, config.envs, PROTOCOL, seed, max_frames=config.max_frames)
        with cores_shared_with_emulators(), lent as groups:
            latest = reset_groups(groups)
            start = time.perf_counter()
            for turn in range(steps):
                for number, group in enumerate(groups):
                    step = group.receive() if turn else latest[number]
                    if acting:
                        actions, _ = act(teacher.network, step.observations, rule, rng)
                    else:
                        actions = rng.integers(teacher.network.actions, size=group.envs)
                    group.send(actions)
            for group in groups:
                group.receive()
            return steps * config.envs / (time.perf_counter() - start)

    return run


def evaluating(agent: Agent, config: EvaluateConfig, emulators: Emulators, outputs: Outputs | None = None) -> Turn:
    game = GameConfig(agent.info.game, "", None, None)
    rule = action_rule(config.action, agent.network.head_kind, config.epsilon)

    def run(seed: int) -> float:
        start = time.perf_counter()
        played = evaluate(agent, config, game, Acting(rule, PROTOCOL, seed, emulators), "evaluate", outputs)
        return sum(episode.length for episode in played.episodes) / (time.perf_counter() - start)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="pong")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--envs", type=int, default=30, help="games at once")
    parser.add_argument("--episodes", type=int, default=30, help="games of an evaluation")
    parser.add_argument("--max-frames", type=int, default=4000, help="emulator frames after which a game is cut")
    parser.add_argument("--steps", type=int, default=400, help="of every emulator, without evaluation")
    options = parser.parse_args()
    teacher = load_agent(teachers_dir() / f"{options.game}.safetensors")
    student = half_of(teacher)
    rule = action_rule("auto", teacher.network.head_kind, 0.001)
    config = EvaluateConfig(
        episodes=options.episodes, pruned_episodes=options.episodes, envs=options.envs, action="auto", epsilon=0.001,
        stall_limit=3000, max_frames=options.max_frames, confidence=0.95,
    )  # fmt: skip
    emulators = Emulators()
    with tempfile.TemporaryDirectory() as folder:
        how = RolloutsConfig(states=2 * STATES, envs=4, block=1, every=2)
        played = collect_rollouts(student, how, Acting(rule, PROTOCOL, 0))
        states = played.observations(torch.arange(len(played))).numpy()
        path = Path(folder) / "int8.onnx"
        quantize_static(path, student, states[:STATES], states[STATES:])
        loops = {
            "emulators alone": stepping(teacher, config, options.steps, emulators, acting=False),
            "bare loop, teacher": stepping(teacher, config, options.steps, emulators, acting=True),
            "evaluate, teacher": evaluating(teacher, config, emulators),
            "evaluate, student": evaluating(student, config, emulators),
            "evaluate, int8": evaluating(student, config, emulators, OnnxPolicy(path).outputs),
        }
        stepping(teacher, config, 1, emulators, acting=False)(0)  # makes the emulators, and those of evaluations:
        with emulators.groups(teacher, config.envs, PROTOCOL, 0, max_frames=config.max_frames, count=config.envs):
            pass
        turns: list[dict[str, float]] = []
        for turn in range(options.turns):
            turns.append({name: loop(turn) for name, loop in loops.items()})
            print(f"turn {turn}:", ", ".join(f"{name} {pace:,.0f}" for name, pace in turns[-1].items()), flush=True)
    for name in loops:
        paces = [turn[name] for turn in turns]
        ratios = [turn[name] / turn["emulators alone"] for turn in turns]
        print(
            f"{name}: {statistics.median(paces):,.0f} decisions/s ({min(paces):,.0f} to {max(paces):,.0f}), "
            f"{statistics.median(ratios):.2f} of the emulators alone ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
