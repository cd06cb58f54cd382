"""Networks from what was read: the layers in an order and under names that depend on what they compute alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from lrp_compress.networks.graph import HEAD, INPUT, Layer, Network
from lrp_compress.networks.ops import ACTIVATIONS
from lrp_compress.networks.spaces import Decision, Observations
from lrp_compress.networks.values import GIVEN, PROBABILITIES, Unread, Value

NAMES = {"dense": "fc"}  # what layers are called by, where it is not their op


def build(make: Callable[[], Network], state: Mapping[str, Tensor]) -> Network:
    """Make a network with given weights.

    Parameters
    ----------
    make : callable
        Makes the network, with weights of any kind; called where tensors take no memory, as what a file declares need
        not be in it.
    state : mapping of str to Tensor
        The weights, which are copied.

    Returns
    -------
    Network
        In evaluation mode, float32.

    Raises
    ------
    ValueError
        If `make` raises it, weights are missing or too many, have other shapes, or are not finite.
    """
    if odd := next((key for key, value in state.items() if not value.is_floating_point()), None):
        raise ValueError(f"{odd} holds {state[odd].dtype}, no real numbers")
    with torch.device("meta"):
        network = make()
    declared, found = ({key: tuple(value.shape) for key, value in one.items()} for one in (network.state_dict(), state))
    for key in [*declared, *found]:
        if declared.get(key) != found.get(key):
            raise ValueError(f"{key} has the shape {found.get(key)}, not {declared.get(key)}")
    copies = {
        key: value.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        for key, value in state.items()
    }
    if odd := next((key for key, value in copies.items() if not value.isfinite().all()), None):
        raise ValueError(f"{odd} holds numbers that are not finite")
    network.load_state_dict(copies, assign=True)
    return network.requires_grad_().eval()


def network_of(outputs: Value, kind: str, observations: Observations) -> Network:
    """Make the network that computes a value.

    Parameters
    ----------
    outputs : Value
        A policy's probabilities are taken for its logits.
    kind : {"q", "policy"}
        What the outputs are.
    observations : Observations
        What they are computed from.

    Returns
    -------
    Network
        In evaluation mode. Its layers are called ``conv1 ... fc1 ... head``, ``add1 ...``, ``max_pool1 ...``,
        ``mean_pool1 ...``, ``flatten``, and activations after what they follow, ``conv1_relu``; they are in the order
        in which the head needs them, of a sum's inputs the least deep first.

    Raises
    ------
    Unread
        If the value is no dense layer's.
    ValueError
        If its layers make no network, or a weight is not finite.
    """
    if outputs.op == PROBABILITIES:
        if kind != "policy":
            raise Unread("softmax, which Q-values have not")
        (outputs,) = outputs.inputs
    if outputs.op != "dense":
        raise Unread(f"outputs by {outputs.op}, not by a dense layer")
    names: dict[bytes, str] = {}
    counts: Counter[str] = Counter()
    layers: list[Layer] = []
    state: dict[str, Tensor] = {}
    for value in _in_order(outputs):
        name = INPUT if value.op == GIVEN else HEAD if value is outputs else _name(value, names, counts)
        names[value.digest] = name
        if value.op != GIVEN:
            layers.append(Layer(name, value.op, tuple(names[one.digest] for one in value.inputs), value.options))
            state |= {f"{name}.{part}": one for part, one in zip(("weight", "bias"), value.weights, strict=False)}
    return build(lambda: Network(layers, observations, Decision(kind, outputs.shape[0])), state)


def _in_order(outputs: Value) -> Iterator[Value]:
    """Go through what a value is computed from, depth first; what is computed twice in the same way is one."""
    seen: set[bytes] = set()
    waiting = [(outputs, False)]
    while waiting:
        value, ready = waiting.pop()
        if value.digest in seen:
            continue
        if ready:
            seen.add(value.digest)
            yield value
        else:
            waiting += [(value, True), *((one, False) for one in reversed(value.inputs))]


def _name(value: Value, names: Mapping[bytes, str], counts: Counter[str]) -> str:
    kind = NAMES.get(value.op, value.op)
    if value.op in ACTIVATIONS:
        kind = f"{names[value.inputs[0].digest]}_{value.op}"
    counts[kind] += 1
    plain = value.op in ACTIVATIONS or value.op == "flatten"  # of which there is one in most networks
    return kind if plain and counts[kind] == 1 else f"{kind}{counts[kind]}"
