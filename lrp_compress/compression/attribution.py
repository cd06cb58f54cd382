"""Layer-wise relevance propagation (LRP) through a `Network`; the rules themselves come from zennit.

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

from lrp_compress.compression.composites import SEEDS, Composite, Rule, Seed, find_composite, pixel_box
from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import fold_dueling


@dataclass(frozen=True)
class Relevance:
    """Relevance of N states: how much each part of the network contributed to the seeded output.

    Attributes
    ----------
    layers : dict of str to Tensor
        Per hidden layer, in the order of ``network.widths``, the relevance at its output: float64, shape
        (N, channels, h, w) or (N, units). Before and after the ReLU it is the same.
    inputs : Tensor
        Relevance of the pixels, float64, shape (N, 4, 84, 84), oldest frame first.
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

    What is explained is a private copy that computes the same policy in a form that suits the rules: a dueling head
    folded into one linear layer (`fold_dueling`), because no rule sees its arithmetic, and a policy head's logits less
    their mean over the actions, because softmax ignores what all logits share and relevance should too. The network
    itself, its gradients and its hooks stay as they are. Works under ``torch.no_grad`` and with frozen parameters.

    Parameters
    ----------
    network : Network
        The network to explain, with any head.
    observations : Tensor
        Shape (N, 4, 84, 84), N at least 1, uint8 in [0, 255] or floating in [0, 1].
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
        On the network's device. Layers of a dueling network have their own names (``value_fc1``, ...).

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
    hidden = find_composite(composite)

    def boxed(rules: ModuleType, layer: str) -> Rule:
        return pixel_box(rules) if layer == "conv1" else hidden(rules, layer)

    return next(_batches(network, observations, SEEDS[seed], len(observations), outputs, boxed)).inputs.sum(1)


@contextlib.contextmanager
def traced(network: Network) -> Iterator[dict[str, Tensor]]:
    """Record the hidden layers' activations of the forward passes made inside the block.

    Parameters
    ----------
    network : Network
        The network to watch; its hooks are removed at the end of the block, also after an exception.

    Yields
    ------
    dict of str to Tensor
        Filled by each forward pass: per hidden layer the output of its ReLU, still part of the autograd graph.
    """
    activations: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def store(module: nn.Module, inputs: Any, output: Tensor) -> None:
            activations[name] = output

        return store

    handles = [getattr(network, f"{name}_relu").register_forward_hook(record(name)) for name in network.widths]
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
        result = _propagate(explained, observations[batch].to(network.device), weigh, chosen, composite)
        yield Relevance(_original_names(network, result.layers), result.inputs, result.output)


@torch.no_grad()
def _explained(network: Network) -> Network:
    """Copy the network into the form that is explained; see `relevance`."""
    folded = fold_dueling(network)
    copied = copy.deepcopy(network) if folded is network else folded
    if network.head_kind == "policy":
        head: Any = copied.head
        head.weight -= head.weight.mean(0)
        head.bias -= head.bias.mean()
    # The rules divide by sums near zero; in single precision that shows the batch size and the device in the scores.
    return copied.double().eval().requires_grad_(False)


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
        scale = 255 if observations.dtype == torch.uint8 else 1
        pixels = (observations.detach().double() / scale).requires_grad_()
        outputs = network(pixels)
        own = outputs.detach()
        weights = weigh(own if chosen is None else chosen, own)
        parts = [*hidden.values(), pixels]
        found = torch.autograd.grad(outputs, parts, grad_outputs=weights if composite is None else weights * own)
    if composite is None:
        found = tuple(part.detach() * gradient for part, gradient in zip(parts, found, strict=True))
    return Relevance(dict(zip(hidden, found[:-1], strict=True)), found[-1], (weights * own).sum(1))


def _original_names(network: Network, layers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo `fold_dueling`'s stacking: its ``fcK`` holds the units of ``value_fcK``, then those of ``advantage_fcK``."""
    if network.head_kind != "dueling":
        return layers
    named = {name: tensor for name, tensor in layers.items() if not name.startswith("fc")}
    for stream in ("value_", "advantage_"):
        for name in (name for name in layers if name.startswith("fc")):
            split = network.widths[f"value_{name}"]
            named[f"{stream}{name}"] = layers[name][:, :split] if stream == "value_" else layers[name][:, split:]
    return named


@contextlib.contextmanager
def _rules_applied(network: Network, composite: Composite) -> Iterator[None]:
    _mend_torchvision()
    from zennit import core, rules

    def hook(context: dict[str, Any], name: str, module: nn.Module) -> Rule | None:
        if isinstance(module, nn.ReLU):
            return rules.Pass()
        return composite(rules, name) if isinstance(module, nn.Conv2d | nn.Linear) else None

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
