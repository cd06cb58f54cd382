"""Distillation throughput: this project's loop against what its parts allow and two plain loops, in turns in a process.

    python benchmarks/distillation.py

The plain loop is what one writes first: step the emulators, keep whole stacks in a list, draw a batch, run the network
in float32 as it is, step Adam. The tuned loop is the same with both networks channels-last, and under bfloat16 autocast
where a learning step is faster so.
All play the same game with the same networks, number of environments, batch size and passes over the data; they take
turns, so a slow minute of the machine slows all. Prints samples per second, emulation included but not the making of
the emulators, and the ratios.

The parts are measured alone, each on one core: emulation, the teacher's labels, the student's choice of actions and the
gradient steps. What they allow is all the cores' time over the sum of what they take for a sample.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from lrp_compress.agents.checkpoints import Agent, load_agent
from lrp_compress.agents.teachers import teachers_dir
from lrp_compress.compression.distillation import distill
from lrp_compress.compression.losses import kl
from lrp_compress.config.schema import DistillConfig
from lrp_compress.environments.acting import action_rule, choose_actions
from lrp_compress.environments.atari import envs_for
from lrp_compress.environments.groups import Acting
from lrp_compress.environments.rollouts import Rollouts
from lrp_compress.networks.fast import fast_outputs, faster_precision
from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import nature_cnn

CONFIG = DistillConfig(
    loss="kl",
    temperature=1.0,
    hint=0.0,
    match_likelihood=False,
    samples=0,
    step_samples=0,
    patience=10**9,
    min_gain=0.0,
    enough=0.0,
    data="student",
    teacher_fraction=0.0,
    epsilon=0.05,
    envs=24,
    replay_states=32_768,
    passes=4,
    batch_size=256,
    learning_rate=2e-3,
    weight_decay=0.0,
    max_grad_norm=1.0,
    checkpoint_minutes=1.0,
    precision="auto",
)


def half_width(teacher: Agent) -> Network:
    network = teacher.network
    return nature_cnn({name: w // 2 for name, w in network.widths.items()}, network.head_kind, network.actions)


def plain_samples_per_s(teacher: Agent, samples: int, seed: int, tuned: bool) -> float:
    network, student = copy.deepcopy(teacher.network), half_width(teacher)
    if tuned:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.Adam(student.parameters(), lr=CONFIG.learning_rate)
    rng = np.random.default_rng(seed)
    stacks: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    learned, steps = 0, 0
    rule = action_rule("sample", "policy", 0.0)
    bfloat16 = tuned and faster_precision(student, CONFIG.batch_size) == torch.bfloat16
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bfloat16)
    with autocast, envs_for(teacher, CONFIG.envs, "noop", seed) as envs:
        start = time.perf_counter()
        step = envs.reset()
        while learned < samples:
            observations = torch.from_numpy(step.observations)
            with torch.no_grad():
                wanted, own = network(observations).float(), student(observations).float()
            stacks += list(step.observations)
            labels += list(wanted.numpy())
            del stacks[: -CONFIG.replay_states], labels[: -CONFIG.replay_states]
            step = envs.step(choose_actions(own, rule, rng))
            steps += CONFIG.envs
            while learned + CONFIG.batch_size <= steps * CONFIG.passes:
                chosen = rng.integers(len(stacks), size=CONFIG.batch_size)
                outputs = student(torch.from_numpy(np.stack([stacks[i] for i in chosen])))
                loss = kl(outputs.float(), torch.from_numpy(np.stack([labels[i] for i in chosen])), 1.0)
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(student.parameters(), CONFIG.max_grad_norm)
                optimiser.step()
                learned += CONFIG.batch_size
        return learned / (time.perf_counter() - start)


def our_samples_per_s(teacher: Agent, samples: int, seed: int) -> float:
    nothing = torch.zeros(CONFIG.envs + 2, dtype=torch.int64)
    outputs = torch.zeros(len(nothing), teacher.network.actions)
    frames = torch.zeros(4, 84, 84, dtype=torch.uint8)
    rollouts = Rollouts(frames, nothing, outputs, torch.arange(len(nothing)), "noop", 0)
    rule = action_rule("sample", "policy", 0.0)
    student = Agent(half_width(teacher), dataclasses.replace(teacher.info, kept={}))
    config = dataclasses.replace(CONFIG, samples=samples)
    return distill(student, teacher, rollouts, config, Acting(rule, "noop", seed)).samples_per_s


def allowed_samples_per_s(teacher: Agent, samples: int, seed: int) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    network, student = copy.deepcopy(teacher.network), half_width(teacher)
    for one in (network, student):
        one.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(student.parameters(), lr=CONFIG.learning_rate, fused=True)
    states = torch.randint(256, (CONFIG.batch_size, 4, 84, 84), dtype=torch.uint8)
    rng = np.random.default_rng(seed)

    def learn() -> None:
        loss = kl(fast_outputs(student, states), torch.zeros(len(states), teacher.network.actions), 1.0)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), CONFIG.max_grad_norm)
        optimiser.step()

    @torch.inference_mode()
    def decide(one: Network) -> None:
        fast_outputs(one, states[: CONFIG.envs])

    with envs_for(teacher, CONFIG.envs, "noop", seed, threads=1) as envs:
        envs.reset()
        visited = CONFIG.passes * CONFIG.envs  # samples that a step of all environments gives
        parts: list[tuple[Callable[[], object], int]] = [
            (lambda: envs.step(rng.integers(teacher.network.actions, size=CONFIG.envs)), visited),
            (lambda: decide(network), visited),
            (lambda: decide(student), visited),
            (learn, CONFIG.batch_size),
        ]
        seconds = 0.0
        for part, each in parts:
            part()  # to warm up
            start = time.perf_counter()
            turns = max(5, samples // (4 * each))
            for _ in range(turns):
                part()
            seconds += (time.perf_counter() - start) / (turns * each)
    torch.set_num_threads(threads)
    return (os.cpu_count() or 1) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--samples", type=int, default=60_000, help="learned states per turn")
    options = parser.parse_args()
    teacher = load_agent(teachers_dir() / "breakout.safetensors")
    loops: dict[str, Callable[[Agent, int, int], float]] = {
        "ours": our_samples_per_s,
        "allowed": allowed_samples_per_s,
        "plain": partial(plain_samples_per_s, tuned=False),
        "tuned": partial(plain_samples_per_s, tuned=True),
    }
    turns: list[dict[str, float]] = []
    for turn in range(options.turns):
        turns.append({name: loop(teacher, options.samples, turn) for name, loop in loops.items()})
        print(
            f"turn {turn}:",
            ", ".join(f"{name} {speed:,.0f} samples/s" for name, speed in turns[-1].items()),
            flush=True,
        )
    for name in ("allowed", "plain", "tuned"):
        ratios = [speeds["ours"] / speeds[name] for speeds in turns]
        median = statistics.median(ratios)
        print(f"ours / {name}: median {median:.2f}, range {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
