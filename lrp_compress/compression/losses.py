"""Losses of policy distillation, by name.

Each takes the student's and the teacher's outputs, float32 (N, actions), and a temperature that divides both, and
returns the mean over the states. Dividing the student's outputs too keeps them in the teacher's units (Q-values stay
Q-values); with Rusu et al.'s untempered student only the scale of its last layer would differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from lrp_compress.support.registry import Registry

Loss = Callable[[Tensor, Tensor, float], Tensor]
LOSSES: Registry[Loss] = Registry("distill.loss")

Q_SHARPNESS = 0.1  # temperature of Q-teachers over their median gap between the best two actions


@LOSSES.register("kl")
def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence from the teacher's policy to the student's (Rusu et al. 2015, eq. 3)."""
    return _divergence(student / temperature, teacher / temperature)


@LOSSES.register("reverse_kl")
def reverse_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence from the student's policy to the teacher's: seeks a mode in place of covering all."""
    return _divergence(teacher / temperature, student / temperature)


@LOSSES.register("jeffreys")
def jeffreys(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean of the KL divergences in both directions (Jeffreys 1946), half his symmetric divergence.

    A student that cannot match the teacher everywhere ends up softer than the teacher under `kl`, which averages over
    what it cannot tell apart, and sharper under `reverse_kl`; the two effects counteract here.
    """
    return (kl(student, teacher, temperature) + reverse_kl(student, teacher, temperature)) / 2


@LOSSES.register("mse")
def mse(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean squared difference of the outputs (Rusu et al. 2015, eq. 2)."""
    return functional.mse_loss(student / temperature, teacher / temperature)


@LOSSES.register("nll")
def nll(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Negative log-likelihood of the teacher's best action (Rusu et al. 2015, eq. 1)."""
    return functional.cross_entropy(student / temperature, teacher.argmax(1))


def _divergence(approximation: Tensor, truth: Tensor) -> Tensor:
    return functional.kl_div(approximation.log_softmax(1), truth.log_softmax(1), reduction="batchmean", log_target=True)


def default_temperature(head: str, outputs: Tensor) -> float:
    """Temperature for a teacher: 1 for a policy, and for Q-values a tenth of the median gap between the best two.

    Rusu et al. 2015 sharpen the Q-values of their teachers by the fixed temperature 0.01; relative to the gap, the
    choice does not depend on the game's reward scale.

    Parameters
    ----------
    head : {"q", "policy"}
        The teacher's head.
    outputs : Tensor of float32, shape (N, actions)
        The teacher's outputs on states of play.
    """
    if head == "policy" or outputs.shape[1] < 2:
        return 1.0
    best = outputs.topk(2, dim=1).values
    gap = (best[:, 0] - best[:, 1]).median().item()
    return max(Q_SHARPNESS * gap, 1e-6)


def action_agreement(outputs: Tensor, wanted: Tensor) -> float:
    """Share of states where the outputs prefer the action that the teacher prefers.

    Parameters
    ----------
    outputs, wanted : Tensor of float32, shape (N, actions)
        Of a network and of its teacher.
    """
    return (outputs.argmax(1) == wanted.argmax(1)).float().mean().item()


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of hidden values relative to the teacher's mean square (Romero et al. 2015, "FitNets").

    Parameters
    ----------
    student, teacher : Tensor of float32, shape (N, units)
        Values of the units both have.
    """
    return functional.mse_loss(student, teacher) / teacher.square().mean().clamp_min(1e-6)


def match_likelihood(student: Tensor, teacher: Tensor) -> float:
    """Find the temperature at which a student's actions are as likely to its teacher as the teacher's own.

    A student that minimises a divergence hedges where it cannot tell states apart: its chances go to actions that the
    teacher hardly takes, even where the entropy of its policy is the teacher's. One factor on its outputs brings the
    mean log-likelihood of its actions under the teacher's policy to that of the teacher's actions, which is minus the
    teacher's entropy (a calibration as in Guo et al. 2017, to the teacher's policy in place of labels).

    Parameters
    ----------
    student, teacher : Tensor of float32, shape (N, actions)
        Action logits on the same states.

    Returns
    -------
    float
        To divide the student's logits by, in [0.8, 1.25], to 1 %: a student that is often wrong is not to be sure.
    """
    judged = teacher.double().log_softmax(1)

    def likelihood(logits: Tensor) -> Tensor:
        return (logits.double().softmax(1) * judged).sum(1).mean()

    wanted = likelihood(teacher)
    temperatures = [1.01**power for power in range(-22, 23)]  # not bisected: a poor student's likelihood has a maximum
    return min((abs(likelihood(student / t) - wanted).item(), abs(math.log(t)), t) for t in temperatures)[2]
