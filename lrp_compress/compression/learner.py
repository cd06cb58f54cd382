"""The student of a distillation while it learns: its gradient steps, their average, and the best so far."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import fmean
from typing import cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from lrp_compress.compression.losses import LOSSES, action_agreement, hint_loss, match_likelihood
from lrp_compress.config.schema import DistillConfig
from lrp_compress.environments.replay import FrameReplay
from lrp_compress.environments.rollouts import LabelledStates
from lrp_compress.networks.fast import batched_outputs, dense_values, fast_outputs
from lrp_compress.networks.graph import HEAD, Network, twin
from lrp_compress.support.states import load_state, save_state

# A Q-network's softmax is sharp: small steps of its hidden layers move its outputs by many temperatures.
LEARNING_RATES = {"policy": 2e-3, "q": 3e-4}
# Gradient steps in which the learning rate rises, in short runs a share of all: Adam's first ones undo a repair.
WARM_UP = 100
WARM_UP_SHARE = 0.05
GAMMA = 6.94  # of the average over the last tenth or so of all steps (Karras et al. 2024, section 3.1)


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
        Mean loss on the held-out states.
    agreement : float
        Share of the held-out states where student and teacher prefer the same action.
    """

    samples: int
    loss: float
    held_out_loss: float
    agreement: float


def _power_average(average: Tensor, newest: Tensor, count: Tensor | int) -> Tensor:
    """Weight the newest step by what it is of all: the average covers the same share of the steps at any time."""
    return average + (newest - average) * min(1.0, (GAMMA + 1) / (int(count) + 1))


@dataclass(frozen=True)
class Terms:
    """On what terms a student learns, beyond its settings.

    Attributes
    ----------
    temperature, unit : float
        Of the loss, and of the outputs that are learned.
    greedy : bool
        Whether the student is judged by how often it disagrees, as suits greedy play, or by its loss: that of sharp
        Q-values falls for long where two actions are worth about the same, and the choices stay as they are.
    dtype : torch.dtype
        Precision of the gradient steps.
    seed : int
        Of the batches.
    """

    temperature: float
    unit: float
    greedy: bool
    dtype: torch.dtype
    seed: int


class Learner:
    """The student, its optimiser, the average of its weights, and that average when it was best.

    All compute the outputs in multiples of ``terms.unit`` until `finished`. The optimiser's steps do not depend on the
    scale of what is learned, so Q-values close together would be lost in them.

    Parameters
    ----------
    student : Network
        Where to start from, on the device to learn on; it is learned on.
    hinted : sequence of str
        Dense layers whose units are given the teacher's values.
    held_out : LabelledStates
        What the student is judged by.
    config : DistillConfig
        Loss, optimiser, and from how many states it learns at most.
    terms : Terms
        The rest.
    """

    def __init__(
        self,
        student: Network,
        hinted: Sequence[str],
        held_out: LabelledStates,
        config: DistillConfig,
        terms: Terms,
    ) -> None:
        _scale_outputs(student, 1 / terms.unit)
        self.samples = 0
        self.curve: list[Progress] = []
        self._student = student
        self._average = AveragedModel(student, avg_fn=_power_average, use_buffers=True).eval()
        self._best = copy.deepcopy(self.actor)
        self._held_out = held_out
        self._dtype = terms.dtype
        self._total = config.samples
        self._resumed_at = 0
        self._config = config
        self._learning_rate = config.learning_rate or LEARNING_RATES[student.head_kind]
        self._unit = terms.unit
        self._temperature = terms.temperature / terms.unit
        self._greedy = terms.greedy
        self._hinted = hinted
        self._loss = LOSSES[config.loss]
        self._losses: list[Tensor] = []
        self._networks = [student, *(twin(student) for _ in range(_workers(student) - 1))]
        self._threads = ThreadPoolExecutor(len(self._networks))
        self._optimiser = torch.optim.AdamW(
            student.parameters(), lr=self._learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self._rng = torch.Generator().manual_seed(terms.seed)
        self._least = self._distance(*self._judge(self._best))

    @property
    def actor(self) -> Network:
        """The average, which is what the student will be."""
        return cast(Network, self._average.module)

    @property
    def samples_checked(self) -> int:
        """Samples learned when the average was last judged."""
        return self.curve[-1].samples if self.curve else 0

    @property
    def progress(self) -> float:
        """Share of the samples learned, in [0, 1]."""
        return self.samples / max(self._total, 1)

    def learn(self, replay: FrameReplay, env_steps: int) -> None:
        """Take the gradient steps that `env_steps` environment steps allow."""
        size = self._config.batch_size
        due = min(self._resumed_at + env_steps * self._config.passes, self._total)
        stored = replay.stored()
        while self.samples + size <= due or self.samples < due == self._total:
            chosen = stored[torch.randint(len(stored), (size,), generator=self._rng)]
            self._step(*(part.to(self._student.device) for part in replay.gather(chosen)))
            self.samples += size

    def _step(self, observations: Tensor, labels: Tensor) -> None:
        size = self._config.batch_size
        rising = min(WARM_UP * size, WARM_UP_SHARE * self._total)
        for group in self._optimiser.param_groups:
            group["lr"] = self._learning_rate * min(1.0, (self.samples + size) / rising)
        batches = list(zip(observations.chunk(len(self._networks)), labels.chunk(len(self._networks)), strict=True))
        jobs = [self._threads.submit(self._differentiate, *job) for job in zip(self._networks, batches, strict=False)]
        self._losses.append(torch.stack([job.result() for job in jobs]).mean())
        for shared in zip(*(network.parameters() for network in self._networks[: len(batches)]), strict=True):
            gradient, *others = (cast(Tensor, parameter.grad) for parameter in shared)
            for other in others:
                gradient.add_(other)  # in place: the fused optimiser takes it to be laid out as the weights are
            gradient.div_(len(shared))
        torch.nn.utils.clip_grad_norm_(self._student.parameters(), self._config.max_grad_norm)
        self._optimiser.step()
        self._average.update_parameters(self._student)

    def _differentiate(self, network: Network, batch: tuple[Tensor, Tensor]) -> Tensor:
        observations, labels = batch
        outputs, hints = labels.tensor_split([network.actions], dim=1)
        network.zero_grad()
        with dense_values(network) as values:
            own_outputs = fast_outputs(network, observations, self._dtype)
        fit = self._loss(own_outputs, outputs / self._unit, self._temperature)
        loss = fit
        if self._hinted:
            own = torch.cat([values[name].float() for name in self._hinted], 1)
            loss = fit + self._config.hint * hint_loss(own, hints)
        loss.backward()  # type: ignore[no-untyped-call]
        return fit.detach()

    def check(self) -> Progress:
        """Judge the average on the held-out states, and keep it if it is the best so far."""
        held_out_loss, agreement = self._judge(self.actor)
        if self._distance(held_out_loss, agreement) <= self._least:
            self._least = self._distance(held_out_loss, agreement)
            self._best.load_state_dict(self.actor.state_dict())
        loss = float(torch.stack(self._losses).mean())
        self._losses.clear()
        self.curve.append(Progress(self.samples, loss, held_out_loss, agreement))
        return self.curve[-1]

    def stalls(self) -> bool:
        """Tell whether the distance is small enough, or its mean over ``config.patience`` samples hardly falls."""
        distances = [self._distance(progress.held_out_loss, progress.agreement) for progress in self.curve]
        if distances and distances[-1] < self._config.enough:
            return True
        windows: tuple[list[float], list[float]] = [], []
        for progress, distance in zip(self.curve, distances, strict=True):
            age = (self.samples_checked - progress.samples) // self._config.patience
            if age < len(windows):
                windows[age].append(distance)
        if self.samples_checked < 2 * self._config.patience or not all(windows):
            return False
        newer, older = map(fmean, windows)
        return newer > (1 - self._config.min_gain) * older

    def _judge(self, network: Network) -> tuple[float, float]:
        outputs = batched_outputs(network, self._held_out.observations)
        wanted = self._held_out.outputs / self._unit
        return float(self._loss(outputs, wanted, self._temperature)), action_agreement(outputs, wanted)

    def _distance(self, loss: float, agreement: float) -> float:
        return 1 - agreement if self._greedy else loss

    def finished(self, matched: bool) -> tuple[Network, float]:
        """Give the best student, and what its logits were divided by.

        Parameters
        ----------
        matched : bool
            Let its actions in the held-out states be as likely to the teacher as the teacher's own.
        """
        network, temperature = copy.deepcopy(self._best).eval(), 1.0
        _scale_outputs(network, self._unit)
        if matched:
            outputs = batched_outputs(network, self._held_out.observations)
            temperature = match_likelihood(outputs, self._held_out.outputs)
            _scale_outputs(network, 1 / temperature)
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return network, temperature

    def save(self, path: Path) -> None:
        """Write all that is needed to go on, but what was played."""
        state = {
            "student": self._student.state_dict(),
            "average": self._average.state_dict(),
            "best": self._best.state_dict(),
            "least": self._least,
            "optimiser": self._optimiser.state_dict(),
            "samples": self.samples,
            "losses": self._losses,
            "curve": [astuple(progress) for progress in self.curve],
        }
        save_state(path, state)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint, if there is one.

        Raises
        ------
        UserError
            If it is damaged.
        """
        state = load_state(path)
        if state is None:
            return
        self._student.load_state_dict(state["student"])
        self._average.load_state_dict(state["average"])
        self._best.load_state_dict(state["best"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._least, self.samples, self._losses = state["least"], state["samples"], state["losses"]
        self._resumed_at = self.samples
        self.curve = [Progress(*values) for values in state["curve"]]


def _workers(network: Network) -> int:
    """Say in how many parts of a batch, each in a thread, gradients are computed: small layers leave threads idle."""
    return 2 if network.device.type == "cpu" and (os.cpu_count() or 1) > 1 else 1


@torch.no_grad()
def _scale_outputs(network: Network, factor: float) -> None:
    for parameter in network.get_submodule(HEAD).parameters():
        parameter.mul_(factor)
