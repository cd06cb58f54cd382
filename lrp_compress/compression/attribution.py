"""Layer-wise relevance propagation (LRP) through a `Network`; the rules themselves come from zennit.

Each convolution and dense layer has the rule that a composite gives it; activations pass relevance on, max-pooling
gives it to the largest value, and sums and mean-pooling share it out in proportion to what each value contributes
(zennit's ``Norm``): the gradient of a sum would give every summand all of it, which grows from block to block.


LRP: Bach et al. 2015, "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance
Propagation". Rules and where each suits: Montavon et al. 2019, "Layer-Wise Relevance Propagation: An Overview".

Zennit is imported when relevance is first computed, so that the other criteria do without it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lrp_compress.compression.composites import EPSILON, SEEDS, Composite, Rule, Seed, find_composite, pixel_box
from lrp_compress.networks.graph import HEAD, Network
from lrp_compress.networks.ops import ACTIVATIONS, WEIGHTED, Add


@dataclass(frozen=True)
class Relevance:
    """Relevance of N states: how much each part of the network contributed to the seeded output.

    Attributes
    ----------
    layers : dict of str to Tensor
        By layer that writes channels which can be removed, so never the head, the relevance of what it writes: float64,
        shape (N, channels, h, w) or (N, units). Before and after the activation it is the same.
    inputs : Tensor
        Relevance of the observations, float64, shape (N, *network.observations.shape).
    output : Tensor
        The relevance put in at the output, summed over the actions: float64, shape (N,).
    """

    layers: dict[str, Tensor]
    inputs: Tensor
    output: Tensor


def relevance(
    network: Network, observations: Tensor, composite: str, seed: str, outputs: Tensor | None = None
) -> Relevance:
    """Compute the relevance of all hidden layers and the input in one pass.

    The pass starts at each output with its own value times the weight that `seed` gives it. The value matters: from 1
    instead, the epsilon rules divide by outputs near zero, those states drown the others, and the ranking falls to
    random.

    What is explained is a private copy with a policy head's logits less their mean over the actions, because softmax
    ignores what all logits share and relevance should too. The network itself, its gradients and its hooks stay as they
    are. Works under ``torch.no_grad`` and with frozen parameters.

    Parameters
    ----------
    network : Network
        The network to explain.
    observations : Tensor
        N at least 1, as the network takes them.
    composite : str
        Which rule each layer has; see `find_composite`.
    seed : str
        Which outputs are explained; a name in `SEEDS`.
    outputs : Tensor, optional
        Shape (N, actions). The outputs that choose or weight the actions, such as the teacher's while a student is
        explained. The network's own if not given.

    Returns
    -------
    Relevance
        On the network's device.

    Raises
    ------
    UserError
        If `composite` or `seed` is unknown.
    """
    return next(relevance_batches(network, observations, composite, seed, len(observations), outputs))


def relevance_batches(
    network: Network,
    observations: Tensor,
    composite: str,
    seed: str,
    batch_size: int,
    outputs: Tensor | None = None,
) -> Iterator[Relevance]:
    """Compute `relevance` batch by batch, so that memory does not grow with the number of states.

    Parameters are those of `relevance`, with `batch_size` in states.

    Returns
    -------
    iterator of Relevance
        Of the next `batch_size` states, in order; the last batch may be smaller.

    Raises
    ------
    UserError
        If `composite` or `seed` is unknown.
    """
    return _batches(network, observations, SEEDS[seed], batch_size, outputs, find_composite(composite))


def gradient_batches(
    network: Network, observations: Tensor, seed: str, batch_size: int, outputs: Tensor | None = None
) -> Iterator[Relevance]:
    """Compute activation times gradient of the same seeded output, batch by batch.

    The epsilon rule gives the same to within its stabiliser; this is cheaper and needs no zennit. Parameters, result
    and errors are those of `relevance_batches`.
    """
    return _batches(network, observations, SEEDS[seed], batch_size, outputs, None)


def heat_maps(
    network: Network, observations: Tensor, composite: str, seed: str, outputs: Tensor | None = None
) -> Tensor:
    """Compute where in the picture the relevance lies.

    Like `relevance`, but the first layer always has the box rule: the rules of the hidden layers give all relevance to
    lit pixels, a trail one pixel wide where the ball went, while the box rule shows the region that was looked at.

    Parameters are those of `relevance`.

    Returns
    -------
    Tensor
        Relevance of each pixel, summed over the stacked frames: float64, shape (N, 84, 84).

    Raises
    ------
    UserError
        If `composite` or `seed` is unknown.
    """
    hidden, first = find_composite(composite), network.layers[0].name

    def boxed(rules: ModuleType, layer: str) -> Rule:
        return pixel_box(rules) if layer == first else hidden(rules, layer)

    return next(_batches(network, observations, SEEDS[seed], len(observations), outputs, boxed)).inputs.sum(1)


def to_differentiate(network: Network, observations: Tensor) -> Tensor:
    """Give observations as a leaf of the autograd graph, in double precision and as `Network.forward` takes floats."""
    unit = network.observations.unit if observations.dtype == torch.uint8 else 1.0
    return (observations.detach().double() / unit).requires_grad_()


@contextlib.contextmanager
def traced(network: Network) -> Iterator[dict[str, Tensor]]:
    """Record what the hidden layers write in the forward passes made inside the block.

    Parameters
    ----------
    network : Network
        The network to watch; its hooks are removed at the end of the block, also after an exception.

    Yields
    ------
    dict of str to Tensor
        Filled by each forward pass: by layer its values after the activation (`Channels.shown`), still part of the
        autograd graph.
    """
    activations: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def store(module: nn.Module, inputs: Any, output: Tensor) -> None:
            activations[name] = output

        return store

    pairs = [pair for group in network.channels.values() for pair in zip(group.writers, group.shown, strict=True)]
    handles = [network.get_submodule(shown).register_forward_hook(record(writer)) for writer, shown in pairs]
    try:
        yield activations
    finally:
        for handle in handles:
            handle.remove()


def _batches(
    network: Network,
    observations: Tensor,
    weigh: Seed,
    batch_size: int,
    outputs: Tensor | None,
    composite: Composite | None,
) -> Iterator[Relevance]:
    explained = _explained(network)
    for start in range(0, len(observations), batch_size):
        batch = slice(start, start + batch_size)
        chosen = None if outputs is None else outputs[batch].to(network.device)
        yield _propagate(explained, observations[batch].to(network.device), weigh, chosen, composite)


@torch.no_grad()
def _explained(network: Network) -> Network:
    """Copy the network into the form that is explained; see `relevance`."""
    copied = copy.deepcopy(network)
    if network.head_kind == "policy":
        head: Any = copied.get_submodule(HEAD)
        head.weight -= head.weight.mean(0)
        head.bias -= head.bias.mean()
    for layer in network.layers:
        if layer.op == "add":
            setattr(copied, layer.name, _StackedAdd())
    # The rules divide by sums near zero; in single precision that shows the batch size and the device in the scores.
    return copied.double().eval().requires_grad_(False)


class _Sum(nn.Module):
    def forward(self, stacked: Tensor) -> Tensor:
        return stacked.sum(-1)


class _StackedAdd(Add):
    """Adds in a module with one input, as zennit's hooks want them."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = _Sum()

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        summed: Tensor = self.sum(torch.stack([first, *others], -1))
        return summed


def _propagate(
    network: Network,
    observations: Tensor,
    weigh: Seed,
    chosen: Tensor | None,
    composite: Composite | None,
) -> Relevance:
    rules = contextlib.nullcontext() if composite is None else _rules_applied(network, composite)
    # Relevance travels as gradients that the rules rewrite, so they must be on whatever the caller's mode.
    with torch.enable_grad(), rules, traced(network) as hidden:
        pixels = to_differentiate(network, observations)
        outputs = network(pixels)
        own = outputs.detach()
        weights = weigh(own if chosen is None else chosen, own)
        parts = [*hidden.values(), pixels]
        found = torch.autograd.grad(outputs, parts, grad_outputs=weights if composite is None else weights * own)
    if composite is None:
        found = tuple(part.detach() * gradient for part, gradient in zip(parts, found, strict=True))
    return Relevance(dict(zip(hidden, found[:-1], strict=True)), found[-1], (weights * own).sum(1))


@contextlib.contextmanager
def _rules_applied(network: Network, composite: Composite) -> Iterator[None]:
    _mend_torchvision()
    from zennit import core, rules

    ops = {layer.name: layer.op for layer in network.layers}

    def hook(context: dict[str, Any], name: str, module: nn.Module) -> Rule | None:
        op = ops.get(name)
        if op in ACTIVATIONS:
            return rules.Pass()
        if op == "mean_pool" or isinstance(module, _Sum):
            return rules.Norm(EPSILON)
        return composite(rules, name) if op in WEIGHTED else None  # max-pooling's gradient is its rule

    with core.Composite(module_map=hook).context(network):
        yield


@functools.cache
def _mend_torchvision() -> torch.library.Library | None:
    """Make ``import torchvision``, which zennit needs for nothing used here, succeed beside any build of torch.

    Torchvision's wheel on PyPI is compiled for the CUDA build of torch. Beside the CPU build its compiled operators
    do not load, and its import fails when it describes two of them: ``RuntimeError: operator torchvision::nms does
    not exist``. Declaring those two, without an implementation, is enough. Where torchvision imports, nothing is done.

    Returns
    -------
    torch.library.Library or None
        The declarations, which live as long as this object: the cache keeps it.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for schema in (
            "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        ):
            if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
                library.define(schema)  # type: ignore[no-untyped-call]
        return library
    return None
