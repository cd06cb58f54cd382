"""Policy distillation (Rusu et al. 2015): the pruned student learns the teacher's outputs on states of real play.

The student soon acts itself, so that it learns what the teacher would do in the states *it* gets into (DAgger, Ross et
al. 2011).
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.agents.inference import batched_outputs, dense_values, fast_outputs, faster_precision
from lrp_compress.agents.networks import PolicyNetwork
from lrp_compress.atari.acting import ActionRule, cores_shared_with_emulators
from lrp_compress.atari.replay import FrameReplay
from lrp_compress.compression.losses import LOSSES, default_temperature, hint_loss, match_entropy
from lrp_compress.compression.play import play
from lrp_compress.config import DistillConfig
from lrp_compress.seeding import stage_seed

CHECKS = 20  # comparisons of the student with its best so far, over the whole distillation
# Environment steps before the first gradient step, so that no batch is all opening moves; in short runs a share of all.
WARMUP_STEPS = 4096
WARMUP_SHARE = 0.05
# A Q-network's softmax is sharp: small steps of its hidden layers move its outputs by many temperatures.
LEARNING_RATES = {"policy": 3e-3, "q": 3e-4, "dueling": 3e-4}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Progress:
    """Where the student stood at one check.

    Attributes
    ----------
    samples : int
        States learned from so far, repetitions counted.
    loss : float
        Mean training loss since the last check.
    held_out_loss : float
        Mean loss on held-out states, visited by the acting network.
    agreement : float
        Share of the held-out states where student and teacher prefer the same action.
    """

    samples: int
    loss: float
    held_out_loss: float
    agreement: float


@dataclass(frozen=True)
class Distillation:
    """A distilled student and how it got there.

    Attributes
    ----------
    network : PolicyNetwork
        The best student by agreement on held-out states, on the device it learned on.
    curve : list of Progress
        One entry per check.
    temperature : float
        The temperature used.
    entropy_temperature : float
        What the logits were divided by in the end to match the teacher's entropy; 1 if nothing was.
    precision : str
        ``"float32"`` or ``"bfloat16"``.
    env_steps : int
        Agent steps emulated.
    samples_per_s : float
        Learned states per second of wall clock, emulation included but not the making of the emulators.
    """

    network: PolicyNetwork
    curve: list[Progress]
    temperature: float
    entropy_temperature: float
    precision: str
    env_steps: int
    samples_per_s: float


def distill(
    student: PolicyNetwork,
    kept: Mapping[str, Sequence[int]],
    teacher: Agent,
    teacher_outputs: Tensor,
    config: DistillConfig,
    samples: int,
    rule: ActionRule,
    protocol: str,
    seed: int,
    on_check: Callable[[Progress], None] = lambda progress: None,
) -> Distillation:
    """Teach the student what the teacher does.

    Parameters
    ----------
    student : PolicyNetwork
        Where to start from, on the device to learn on; left as it is.
    kept : mapping of str to sequence of int
        Per hidden layer the teacher's channels that the student's stem from; the dense ones are given the teacher's
        values as hints. A layer left out gets none.
    teacher : Agent
        Labels every visited state.
    teacher_outputs : Tensor of float32, shape (N, actions)
        The teacher's outputs on states of its play, from which the temperature of a Q-teacher follows.
    config : DistillConfig
        Loss, data, replay and optimiser.
    samples : int
        States to learn from, repetitions counted; 0 returns a copy of the student.
    rule : ActionRule
        How the acting network chooses actions; where they are greedy, ``config.epsilon`` of them are random.
    protocol : str
        Name of the protocol played under.
    seed : int
        Seed of environments, action choice and batches.
    on_check : callable
        Receives each `Progress`.

    Returns
    -------
    Distillation
    """
    if not samples:
        return Distillation(copy.deepcopy(student), [], 1.0, 1.0, "float32", 0, 0.0)
    student = copy.deepcopy(student).train()
    student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with cores_shared_with_emulators():
        dtype = PRECISIONS.get(config.precision) or faster_precision(student, config.batch_size)
    temperature = config.temperature or default_temperature(teacher.network.head_kind, teacher_outputs)
    precision = next(name for name, kind in PRECISIONS.items() if kind == dtype)
    hinted = {name: kept[name] for name in student.dense_layers if config.hint and name in kept}
    # what is sampled from has to keep its scale
    unit = temperature if rule.kind == "greedy" else 1.0
    learner = _Learner(student, list(hinted), config, samples, temperature, unit, dtype, stage_seed(seed, "batches"))
    curve: list[Progress] = []
    next_check = samples / CHECKS

    def actor() -> PolicyNetwork:
        return teacher.network if _teacher_acts(config, learner.progress) else learner.student

    with (
        cores_shared_with_emulators(),
        contextlib.closing(play(teacher, actor, hinted, config, rule, protocol, seed, dtype)) as plays,
        tqdm(total=samples, desc="distill", unit="sample", unit_scale=True, leave=False, disable=None) as bar,
    ):
        played = next(plays)  # once the emulators are made
        start = time.perf_counter()
        while learner.samples < samples:
            played = next(plays)
            learner.learn(played.training, played.steps)
            bar.update(learner.samples - bar.n)
            if learner.samples >= min(next_check, samples):
                next_check = learner.samples + samples / CHECKS
                curve.append(learner.check(played.held_out))
                bar.set_postfix(loss=f"{curve[-1].loss:.4f}", agreement=f"{curve[-1].agreement:.3f}")
                on_check(curve[-1])
    learner.restore_unit()
    entropy_temperature = 1.0
    if config.match_entropy and student.head_kind == "policy":
        entropy_temperature = learner.match_entropy(played.held_out)
    network = learner.best.eval()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    speed = learner.samples / (time.perf_counter() - start)
    return Distillation(network, curve, temperature, entropy_temperature, precision, played.steps, speed)


def _teacher_acts(config: DistillConfig, progress: float) -> bool:
    return config.data == "teacher" or (config.data == "mixed" and progress < config.teacher_fraction)


class _Learner:
    """The student, its optimiser, and its best version so far.

    They compute the outputs in multiples of `unit`, until `restore_unit`. The optimiser's steps do not depend on the
    scale of what is learned, so Q-values close together would be lost in them.
    """

    def __init__(
        self,
        student: PolicyNetwork,
        hinted: Sequence[str],
        config: DistillConfig,
        samples: int,
        temperature: float,
        unit: float,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        _scale_outputs(student, 1 / unit)
        self.student = student
        self.best = copy.deepcopy(student)
        self.dtype = dtype
        self.samples = 0
        self._total = samples
        self._config = config
        self._learning_rate = config.learning_rate or LEARNING_RATES[student.head_kind]
        self._unit = unit
        self._temperature = temperature / unit
        self._hinted = hinted
        self._loss = LOSSES[config.loss]
        self._losses: list[Tensor] = []
        self._optimiser = torch.optim.AdamW(
            student.parameters(), lr=self._learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self._rng = torch.Generator().manual_seed(seed)

    @property
    def progress(self) -> float:
        """Share of the samples learned, in [0, 1]."""
        return self.samples / max(self._total, 1)

    def learn(self, replay: FrameReplay, env_steps: int) -> None:
        """Take the gradient steps that `env_steps` environment steps allow."""
        if env_steps < min(WARMUP_STEPS, WARMUP_SHARE * self._total / self._config.passes):
            return
        size = self._config.batch_size
        due = min(env_steps * self._config.passes, self._total)
        stored = replay.stored()
        while self.samples + size <= due or self.samples < due == self._total:
            chosen = stored[torch.randint(len(stored), (size,), generator=self._rng)]
            self._step(*(part.to(self.student.device) for part in replay.gather(chosen)))
            self.samples += size

    def _step(self, observations: Tensor, labels: Tensor) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = self._learning_rate * (1 - self.progress)
        outputs, hints = labels.tensor_split([self.student.actions], dim=1)
        with dense_values(self.student) as values:
            own_outputs = fast_outputs(self.student, observations, self.dtype)
            loss = self._loss(own_outputs, outputs / self._unit, self._temperature)
        self._losses.append(loss.detach())
        if self._hinted:
            own = torch.cat([values[name].float() for name in self._hinted], 1)
            loss = loss + self._config.hint * hint_loss(own, hints)
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), self._config.max_grad_norm)
        self._optimiser.step()

    def check(self, held_out: FrameReplay) -> Progress:
        """Keep the student as the best if it agrees with the teacher at least as often, on the same states."""
        observations, labels = self._gather_all(held_out)
        outputs = batched_outputs(self.student, observations, self.dtype)
        agreement = action_agreement(outputs, labels)
        if agreement >= action_agreement(batched_outputs(self.best, observations, self.dtype), labels):
            self.best.load_state_dict(self.student.state_dict())
        loss = float(torch.stack(self._losses).mean())
        self._losses.clear()
        held_out_loss = float(self._loss(outputs, labels / self._unit, self._temperature))
        return Progress(self.samples, loss, held_out_loss, agreement)

    def restore_unit(self) -> None:
        """Let the best student compute the outputs themselves; it learns no more."""
        _scale_outputs(self.best, self._unit)

    def match_entropy(self, held_out: FrameReplay) -> float:
        """Make the best student as decisive as the teacher on held-out states; the temperature is returned."""
        observations, labels = self._gather_all(held_out)
        temperature = match_entropy(batched_outputs(self.best, observations), labels)
        _scale_outputs(self.best, 1 / temperature)
        return temperature

    def _gather_all(self, replay: FrameReplay) -> tuple[Tensor, Tensor]:
        observations, labels = replay.gather(replay.stored())
        return observations, labels[:, : self.student.actions]


@torch.no_grad()
def _scale_outputs(network: PolicyNetwork, factor: float) -> None:
    for head in network.heads:
        for parameter in head.parameters():
            parameter.mul_(factor)


def action_agreement(outputs: Tensor, wanted: Tensor) -> float:
    """Share of states where the outputs prefer the action that the teacher prefers.

    Parameters
    ----------
    outputs, wanted : Tensor of float32, shape (N, actions)
        Of a network and of its teacher.
    """
    return (outputs.argmax(1) == wanted.argmax(1)).float().mean().item()
