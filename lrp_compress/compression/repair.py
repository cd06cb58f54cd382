"""Closed-form repair of a pruned network: what its layers lost with the removed channels is made up for by the others.

Layers are taken from the input to the outputs. Each is solved again so that, from inputs X out of the already repaired
network, it says what the teacher's layer says in the same states, Z (pre-activations of the channels it kept). It is a
ridge regression towards the weights W it has, not towards 0:

    W + (X'X + k I)^-1 X'(Z - X W),    k = strength * mean(diag(X'X)),

after GRAIL (arXiv 2602.23795). ThiNet (Luo et al. 2017, section 3.2.3) solves for one factor a channel. A layer whose
outputs are only added to others is solved for the teacher's sum, so that it makes up for what came in with the others.
Of Q-values the order alone counts, so their head is then fitted to the teacher's choice of actions: the KL divergence
of the two softmaxes is convex in the last weights, as in multinomial logistic regression. The groups of a grouped
convolution are solved each on its own, with one strength for all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrp_compress.compression.losses import default_temperature, kl
from lrp_compress.compression.matrices import at_places, input_rows, set_weights, weight_matrix
from lrp_compress.compression.ridge import gains, solve, solve_few, sums
from lrp_compress.config.schema import RepairConfig
from lrp_compress.environments.rollouts import Rollouts
from lrp_compress.networks.fast import fast_outputs
from lrp_compress.networks.graph import HEAD, Network
from lrp_compress.networks.stepwise import Stepwise

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # tried where none is set, and no change at all
PATCHES = 12  # places of a convolution's map that are looked at in a state
BATCH = 256  # states computed at a time
HEAD_RIDGE = 1e-4  # nats for a mean squared change of the outputs, in temperatures, by one
HEAD_STEPS = 60  # of L-BFGS at most
JUDGED = 4  # times as many states a network is solved on as choose the strength
KEPT = 3 * 2**29  # bytes of values at most that are kept from layer to layer: IMPALA's of 10240 states are 1.2e9


@dataclass(frozen=True)
class Lesson:
    """What a teacher's layers say of a batch of states.

    Attributes
    ----------
    observations : Tensor, shape (N, *network.observations.shape)
    places : dict of str to Tensor
        By convolution: the places of its map that are looked at, int64 of shape (P,), counted row by row.
    wanted : dict of str to Tensor
        By layer, the head included: its outputs before any activation, or the sum that they are part of, float32 of
        shape (N * P, channels) or (N, units).
    outputs : Tensor of float32, shape (N, actions)
        The teacher's outputs.
    """

    observations: Tensor
    places: dict[str, Tensor]
    wanted: dict[str, Tensor]
    outputs: Tensor


@dataclass(frozen=True)
class Repair:
    """A repaired network and how it was solved.

    Attributes
    ----------
    network : Network
    strengths : dict of str to float
        By layer that was changed, the strength of the ridge. A layer whose error on held-out states no strength
        lowers is not in it.
    """

    network: Network
    strengths: dict[str, float]


def layers_to_solve(network: Network) -> list[str]:
    """Name the layers after the first, which sees the observations and loses no input, in the order of computation."""
    return list(network.weighted[1:])


@torch.no_grad()
def lessons(teacher: Network, observations: Tensor, seed: int) -> list[Lesson]:
    """Let a teacher say what its layers say of some states.

    Parameters
    ----------
    teacher : Network
        On the CPU.
    observations : Tensor, shape (N, *network.observations.shape)
        States of play.
    seed : int
        Of the places that are looked at, drawn anew for each batch.

    Returns
    -------
    list of Lesson
        Some kilobytes a state beside the observations themselves.
    """
    generator = torch.Generator().manual_seed(seed)
    names = layers_to_solve(teacher)
    said: dict[str, Tensor] = {}

    def listen(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: said.update({name: output})

    handles = [teacher.get_submodule(_aim(teacher, name)).register_forward_hook(listen(name)) for name in names]
    try:
        return [_lesson(teacher, batch, said, generator) for batch in torch.split(observations, BATCH)]
    finally:
        for handle in handles:
            handle.remove()


def _lesson(teacher: Network, batch: Tensor, said: dict[str, Tensor], generator: torch.Generator) -> Lesson:
    outputs = fast_outputs(teacher, batch)  # fills what is said
    places = {
        name: torch.randperm(output[0, 0].numel(), generator=generator)[:PATCHES]
        for name, output in said.items()
        if output.dim() == 4
    }
    wanted = {name: at_places(output, places.get(name)).clone() for name, output in said.items()}
    return Lesson(batch, places, wanted, outputs)


@torch.no_grad()
def repair(
    network: Network,
    kept: Mapping[str, Sequence[int]],
    training: Sequence[Lesson],
    held_out: Sequence[Lesson],
    strength: float | None = None,
) -> Repair:
    """Solve the layers of a pruned network again.

    The values that the next layers read are kept, up to `KEPT` bytes, so that all layers take as long as the network
    takes once; with more states, or larger maps, values are computed more than once.

    Parameters
    ----------
    network : Network
        The pruned network, on the CPU, with any head; left as it is.
    kept : mapping of str to sequence of int
        By ``network.channels`` the teacher's channels that the network's own stem from.
    training, held_out : sequence of Lesson
        Of the teacher, in states of different games: to solve from, and to judge by.
    strength : float, optional
        Of the ridge, above 0, in shares of the inputs' mean square. By default each layer takes the one of `STRENGTHS`
        with which its squared error on the held-out states is least.

    Returns
    -------
    Repair
    """
    repaired = copy.deepcopy(network).eval()
    most = KEPT // max(1, sum(len(lesson.observations) for lesson in (*training, *held_out)))
    seen, unseen = (Stepwise(repaired, [one.observations for one in part], most) for part in (training, held_out))
    strengths: dict[str, float] = {}
    for name in layers_to_solve(repaired):
        layer: Any = repaired.get_submodule(name)
        weight, value = weight_matrix(layer), repaired.value(name)
        channels = None if value.channels is None else value.spread(kept[value.channels])
        if strength is None:
            gram, cross = sums(_examples(seen, name, channels, weight, training))
            changes = {value: solve(gram, cross, value) for value in STRENGTHS}
            gained = gains(changes, *sums(_examples(unseen, name, channels, weight, held_out)))
            changes = {value: changes[value] for value in changes if gained[value] == max(0.0, *gained.values())}
        else:
            examples = _examples(seen, name, channels, weight, training)
            few = weight.dim() == 2 and sum(len(lesson.wanted[name]) for lesson in training) < weight.shape[1]
            changes = {strength: solve_few(examples, strength) if few else solve(*sums(examples), strength)}
        for chosen, change in changes.items():  # one, or none
            weight += change.mT.float()
            strengths[name] = chosen
        set_weights(layer, weight)
    if repaired.head_kind != "policy":  # a policy that is sampled from would get softer wherever it cannot tell
        decisions = _Decisions.of(seen, training)
        _fit_head(repaired, decisions, _Decisions.of(unseen, held_out) if held_out else decisions)
    return Repair(repaired, strengths)


def repair_from_play(
    network: Network,
    kept: Mapping[str, Sequence[int]],
    teacher: Network,
    rollouts: Rollouts,
    config: RepairConfig,
    seed: int,
) -> Repair:
    """Repair a pruned network from its teacher's play, judged by the games of it that are held out.

    Parameters
    ----------
    network, kept
        As `repair` takes them.
    teacher : Network
        The network that was pruned, on the CPU.
    rollouts : Rollouts
        Its play.
    config : RepairConfig
        How many states to solve from, and the strength if it is set.
    seed : int
        Of the places of a convolution's map that are looked at.

    Returns
    -------
    Repair
    """
    held_out = rollouts.held_out()
    training, judging = (
        lessons(teacher, rollouts.part(chosen, count).observations, seed)
        for chosen, count in ((~held_out, config.states), (held_out, config.states // JUDGED))
    )
    return repair(network, kept, training, judging, config.strength)


@dataclass(frozen=True)
class _Decisions:
    """What the head sees in some states, and the teacher's outputs there."""

    hidden: Tensor
    wanted: Tensor

    @classmethod
    def of(cls, steps: Stepwise, lessons: Sequence[Lesson]) -> _Decisions:
        hidden = [values for (values,) in steps.read(HEAD, steps.network.layers[-1].inputs[0])]
        return cls(torch.cat(hidden), torch.cat([lesson.outputs for lesson in lessons]))


@torch.no_grad()
def _fit_head(network: Network, seen: _Decisions, unseen: _Decisions) -> None:
    """Bring the softmax as near to the teacher's as the head can, unless it is no nearer on the held-out states."""
    temperature = default_temperature(network.head_kind, seen.wanted)
    start = network.decide(seen.hidden)
    fitted = copy.deepcopy(network)
    weights = [parameter.requires_grad_() for parameter in fitted.get_submodule(HEAD).parameters()]
    optimiser = torch.optim.LBFGS(weights, max_iter=HEAD_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        outputs = fitted.decide(seen.hidden)
        change = ((outputs - start) / temperature).square().mean()
        value = kl(outputs, seen.wanted, temperature) + HEAD_RIDGE * change
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimiser.step(loss)  # type: ignore[no-untyped-call]
    now, then = (kl(one.decide(unseen.hidden), unseen.wanted, temperature) for one in (fitted, network))
    if now < then:
        network.load_state_dict(fitted.state_dict())


def _examples(
    steps: Stepwise, name: str, kept: Sequence[int] | None, weight: Tensor, lessons: Sequence[Lesson]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give X and Z - X W of a layer for batches of states, in float64; X ends in ones for the bias.

    Of a convolution in groups there is one of each for every group, along a first axis.
    """
    layer, aim = steps.network.get_submodule(name), _aim(steps.network, name)
    (given,) = steps.network.layer(name).inputs
    values = steps.read(name, given, *([] if aim == name else [aim]))
    for lesson, (inputs, *added) in zip(lessons, values, strict=True):
        places = lesson.places.get(name)
        rows = input_rows(layer, inputs, places)
        wanted = lesson.wanted[name] if kept is None else lesson.wanted[name][:, list(kept)]
        wanted, *added = (_parted(one, weight) for one in (wanted, *(at_places(one, places) for one in added)))
        said = added[0] if added else rows @ weight.mT
        yield rows.double(), (wanted - said).double()  # single: X'X need not be positive definite


def _parted(outputs: Tensor, weight: Tensor) -> Tensor:
    """Part outputs, a row each, by the groups whose weights are given."""
    return outputs if weight.dim() == 2 else outputs.reshape(len(outputs), *weight.shape[:2]).movedim(1, 0)


def _aim(network: Network, name: str) -> str:
    """Say whose value a layer is solved for: its own, or that of the sum which alone reads it."""
    readers = network.readers(name)
    return readers[0] if len(readers) == 1 and network.layer(readers[0]).op == "add" else name
