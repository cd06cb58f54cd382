"""Which of what a file or a module computes is the policy, and whether what was read is what it computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lrp_compress.networks.building import network_of
from lrp_compress.networks.graph import Network
from lrp_compress.networks.spaces import Observations, Spaces
from lrp_compress.networks.values import Unread, Value
from lrp_compress.support.errors import UserError

TOLERANCE = 1e-3  # of what an output differs in between observations
ROUNDING = 1e-5  # of an output, which may be large and the same for all, as that of a masked action
MOST_NUMBERS = 2**26  # that layers compute when a network is compared
MOST_AT_ONCE = 1024  # observations that a file may be fixed to


def settled_head(head: str, stated: str | None, source: str) -> str:
    """Settle what the outputs are: what the settings say, else what the file does.

    Raises
    ------
    UserError
        If neither does.
    """
    head = str(stated) if head == "auto" and stated in ("q", "policy") else head
    if head == "auto":
        raise UserError(f"{source} does not say what its outputs are; add teacher.head=q or teacher.head=policy")
    return head


def check_shape(shape: Sequence[int | str], observations: Observations, source: str) -> None:
    """Refuse an agent that is given something else than the environment's observations, whatever the order of channels.

    Raises
    ------
    UserError
        If its shape is another.
    """
    given = observations.shape
    if not all(isinstance(side, int) and side > 0 for side in shape):
        raise UserError(
            f"{source} takes observations whose size is not fixed; export it for those of the game, {given}"
        )
    if tuple(shape) not in (given, (*given[1:], given[0])):
        told = ", ".join(map(str, shape))[:200]
        raise UserError(
            f"{source} takes observations of shape ({told}), but the game gives {given}; it was trained in another "
            "environment"
        )


def policy_of(outputs: Mapping[str, Value | Unread], head: str, spaces: Spaces, source: str) -> tuple[str, Network]:
    """Find the output that is the policy's, and make its network.

    Parameters
    ----------
    outputs : mapping of str to Value or Unread
        What each output is computed by.
    head : {"q", "policy"}
        What the policy's outputs are.
    spaces : Spaces
        What the environment gives and takes; of several outputs the one as wide as an action set is the policy's.
    source : str
        What errors call the agent.

    Returns
    -------
    name : str
        Of the output.
    network : Network

    Raises
    ------
    UserError
        If none or several may be, saying why the others are not.
    """
    networks: dict[str, Network] = {}
    reasons = []
    for name, value in outputs.items():
        try:
            if isinstance(value, Unread):
                raise value
            network = network_of(value, head, spaces.observations)
            if len(outputs) > 1 and network.actions not in spaces.action_sets:
                raise ValueError(f"it has {network.actions} values, none for each action")
            networks[name] = network
        except (Unread, ValueError) as error:
            why = f"it computes {error}, which is no layer here" if isinstance(error, Unread) else str(error)
            reasons.append(f"output {name[:80]}: {why}" if len(outputs) > 1 else why)
    if len(networks) != 1:
        several = f"its outputs {', '.join(networks)[:200]} may all be the policy's"
        raise UserError(f"{source} is not read: {several if networks else '; '.join(reasons)[:400]}")
    ((name, network),) = networks.items()
    return name, network


@torch.inference_mode()
def check_same(network: Network, original: Callable[[Tensor], Tensor], source: str, count: int = 4) -> None:
    """Compare what was read with what it was read from, on random observations.

    Parameters
    ----------
    network : Network
    original : callable
        From observations to outputs; a policy's may be probabilities or their logarithms, which draw the same actions.
    source : str
        What errors call it.
    count : int
        Observations.

    Raises
    ------
    UserError
        If they compute something else, or to compare them takes too much memory.
    """
    values = count * sum(math.prod(shape) for shape in network.shapes.values())
    if values > MOST_NUMBERS or count > MOST_AT_ONCE:
        raise UserError(
            f"{source} computes {values:,} numbers for {count} observations at once; at most {MOST_NUMBERS:,} for "
            f"{MOST_AT_ONCE} are read"
        )
    observations = network.observations.random(count, 0)
    expected, ours = original(observations), network(observations)
    spread = expected.amax(0) - expected.amin(0)
    allowed = TOLERANCE * spread + ROUNDING * expected.abs().amax(0) + 1e-9
    likely = (ours, ours.softmax(-1), ours.log_softmax(-1)) if network.head_kind == "policy" else (ours,)
    if not any(one.shape == expected.shape and bool(((one - expected).abs() <= allowed).all()) for one in likely):
        raise UserError(f"{source} computes something else than the layers that were read from it; it is not used")
