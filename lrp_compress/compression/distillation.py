"""Policy distillation (Rusu et al. 2015): the pruned student learns the teacher's outputs on states of real play.

The student soon acts itself, so that it learns what the teacher would do in the states *it* gets into (DAgger, Ross et
al. 2011). One thread plays while the other takes gradient steps: both need about a core.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.compression.learner import Learner, Progress, Terms
from lrp_compress.compression.losses import default_temperature
from lrp_compress.compression.visited_states import Player, label
from lrp_compress.config.schema import DistillConfig
from lrp_compress.environments.acting import ActionRule, cores_shared_with_emulators
from lrp_compress.environments.groups import Acting
from lrp_compress.environments.replay import FrameReplay
from lrp_compress.environments.rollouts import Rollouts, stacks
from lrp_compress.networks.fast import faster_precision
from lrp_compress.networks.graph import Network
from lrp_compress.support.processes import keep_freed_memory
from lrp_compress.support.seeding import stage_seed

CHECKS = 20  # comparisons of the student with its best so far over the whole distillation, and more in long ones:
CHECK_AT_LEAST_EVERY = 25_000  # samples
HELD_OUT = 2048  # states at most that the student is judged by
LABELLED = 256  # states of earlier play that the teacher is asked about at once
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Distillation:
    """A distilled student and how it got there.

    Attributes
    ----------
    network : Network
        The best student by its loss on held-out states, or by its agreement where actions are greedy; on the device it
        learned on.
    curve : list of Progress
        One entry per check.
    temperature : float
        The temperature used.
    policy_temperature : float
        What the logits were divided by in the end (`losses.match_likelihood`); 1 if nothing was.
    precision : str
        ``"float32"`` or ``"bfloat16"``.
    samples : int
        States learned from, repetitions counted; fewer than allowed where learning stalled.
    env_steps : int
        Agent steps emulated; since the last checkpoint, where it went on from one.
    samples_per_s : float
        Learned states per second of wall clock, emulation included but not the making of the emulators.
    """

    network: Network
    curve: list[Progress]
    temperature: float
    policy_temperature: float
    precision: str
    samples: int
    env_steps: int
    samples_per_s: float


@dataclass(frozen=True)
class Beside:
    """What goes on beside a distillation.

    Attributes
    ----------
    on_check : callable
        Receives each `Progress`.
    checkpoint : Path or None
        Where the state of learning is kept every ``config.checkpoint_minutes``, and gone on from with other games.
    """

    on_check: Callable[[Progress], None] = lambda progress: None
    checkpoint: Path | None = None


def distill(
    student: Agent,
    teacher: Agent,
    rollouts: Rollouts,
    config: DistillConfig,
    acting: Acting,
    beside: Beside | None = None,
) -> Distillation:
    """Teach the student what the teacher does, until it has learned enough or hardly gets nearer.

    Parameters
    ----------
    student : Agent
        Where to start from, on the device to learn on; left as it is. Its dense units are given the values of the
        teacher's that they stem from as hints, by ``info.kept``; a layer left out there gets none.
    teacher : Agent
        Labels every visited state.
    rollouts : Rollouts
        The teacher's play. The student is judged by the games that are held out, and the temperature of a Q-teacher
        follows from its outputs there; the other states are learned from as those are that it visits.
    config : DistillConfig
        Loss, data, replay and optimiser; ``config.samples`` states are learned from at most, repetitions counted, and 0
        returns a copy of the student.
    acting : Acting
        How the acting network plays; where its actions are greedy, ``config.epsilon`` of them are random. Its seed is
        that of the batches too.
    beside : Beside, optional
        Who hears of the progress, and where it is kept.

    Returns
    -------
    Distillation

    Raises
    ------
    UserError
        If the checkpoint is damaged.
    """
    beside, kept, samples, seed = beside or Beside(), student.info.kept, config.samples, acting.seed
    if not samples:
        return Distillation(copy.deepcopy(student.network), [], 1.0, 1.0, "float32", 0, 0, 0.0)
    keep_freed_memory()
    held_out = rollouts.part(rollouts.held_out(), HELD_OUT)
    network = copy.deepcopy(student.network).train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with cores_shared_with_emulators():
        dtype = PRECISIONS.get(config.precision) or faster_precision(network, config.batch_size)
    temperature = config.temperature or default_temperature(teacher.network.head_kind, held_out.outputs)
    precision = next(name for name, kind in PRECISIONS.items() if kind == dtype)
    hinted = {name: kept[name] for name in network.dense_layers if config.hint and name in kept}
    greedy = acting.rule.kind == "greedy"
    unit = 1.0 if not greedy else temperature  # what is sampled from has to keep its scale
    terms = Terms(temperature, unit, greedy, dtype, stage_seed(seed, "batches"))
    learner = Learner(network, list(hinted), held_out, config, terms)
    if beside.checkpoint:
        learner.restore(beside.checkpoint)
    begun, steps = learner.samples, 0
    seed = stage_seed(seed, "from", begun) if begun else seed  # goes on with other games than those already played
    block = max(1, config.batch_size // config.envs)
    replay = _remembered(rollouts, teacher.network, hinted, config, dtype)

    def actor() -> Network | None:
        # a copy, since it plays while the learner goes on
        return None if _teacher_acts(config, learner.progress) else copy.deepcopy(learner.actor)

    lent = acting.emulators.groups(teacher, config.envs, acting.protocol, stage_seed(seed, "envs"))
    with (
        cores_shared_with_emulators(),
        lent as groups,
        ThreadPoolExecutor(1) as other,
        tqdm(total=samples, desc="distill", unit="sample", unit_scale=True, leave=False, disable=None) as bar,
    ):
        # play that samples explores anyway, and would reach fewer late states
        rule = ActionRule("greedy", config.epsilon) if greedy else acting.rule
        player = Player(teacher, hinted, groups, rule, stage_seed(seed, "actions"), dtype)
        start = saved = time.monotonic()
        played = other.submit(player.play, actor(), block)
        every = min(samples / CHECKS, CHECK_AT_LEAST_EVERY)
        while learner.samples < samples and not learner.stalls():
            for visited in played.result():
                replay.add(visited.observations, visited.labels, visited.first, visited.ended)
            played = other.submit(player.play, actor(), block)
            steps += block * config.envs
            learner.learn(replay, steps)
            bar.update(learner.samples - bar.n)
            if learner.samples >= min((learner.samples_checked + every), samples):
                progress = learner.check()
                bar.set_postfix(loss=f"{progress.held_out_loss:.4f}", agreement=f"{progress.agreement:.3f}")
                beside.on_check(progress)
            if beside.checkpoint and time.monotonic() - saved > 60 * config.checkpoint_minutes:
                learner.save(beside.checkpoint)
                saved = time.monotonic()
    matched = config.match_likelihood and network.head_kind == "policy"
    best, policy_temperature = learner.finished(matched)
    speed = (learner.samples - begun) / (time.monotonic() - start)
    return Distillation(best, learner.curve, temperature, policy_temperature, precision, learner.samples, steps, speed)


def _remembered(
    rollouts: Rollouts,
    teacher: Network,
    hinted: Mapping[str, Sequence[int]],
    config: DistillConfig,
    dtype: torch.dtype,
) -> FrameReplay:
    """Begin the replay memory with the teacher's play, but for the games that are held out."""
    starts = rollouts.starts[~rollouts.held_out()][-config.replay_states :]
    labels = torch.cat(
        [
            label(teacher, hinted, stacks(rollouts.frames, batch).numpy(), dtype)
            for batch in torch.split(starts, LABELLED)
        ]
    )
    replay = FrameReplay(config.replay_states, config.envs, labels.shape[1])
    replay.fill(rollouts.frames, starts, labels)
    return replay


def _teacher_acts(config: DistillConfig, progress: float) -> bool:
    return config.data == "teacher" or (config.data == "mixed" and progress < config.teacher_fraction)
