"""The fast way through a network for batches of observations, in acting and in learning.

Two exact rewritings make the Nature CNN's first layer, which dominates a small network's time, cheap. An 8x8
convolution with stride 4 equals a 2x2 convolution with stride 1 over 4x4 blocks laid out as channels ("space to
depth"), which has 64 input channels in place of 4; and the division by 255 moves from the pixels to the weights, so
that bfloat16 holds the pixels 0 to 255 exactly.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import NATURE_CONVOLUTIONS
from lrp_compress.support.errors import UserError

KERNEL, BLOCK = NATURE_CONVOLUTIONS["conv1"]  # conv1's kernel and stride in pixels
CLEARLY = 1.5  # times the other's time: a precision that much slower is not measured again
TAPS = KERNEL // BLOCK  # blocks along conv1's kernel


def fast_outputs(network: Network, observations: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Compute a network's outputs as ``network(observations)`` does, only faster.

    Parameters
    ----------
    network : Network
        Differentiable with respect to its weights.
    observations : Tensor, shape (N, *network.observations.shape)
        Contiguous, of the dtype that the network takes.
    dtype : torch.dtype
        ``torch.float32`` (equal up to rounding) or ``torch.bfloat16`` (mixed precision by autocast; the last layer
        stays in float32).

    Returns
    -------
    Tensor of float32, shape (N, actions)
    """
    # the last layer is cheap, and Q-values can lie closer together than bfloat16 can tell
    return network.decide(fast_hidden(network, observations, dtype).float())


def fast_hidden(network: Network, observations: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Compute what the head sees, of `dtype` and shape (N, units), as `fast_outputs` does."""
    with mixed_precision(observations.device, dtype):
        return network.after_first(fast_first(network, observations, dtype))


def fast_first(network: Network, observations: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Compute what the first layer gives, as `fast_outputs` does; for another `dtype`, in `mixed_precision`."""
    first: nn.Module = network.get_submodule(network.layers[0].name)
    if network.observations.dtype == "uint8" and isinstance(first, nn.Conv2d):
        return fast_conv1(first, observations, dtype, network.observations.unit)
    values: Tensor = first(network.scaled(observations))
    return values


def mixed_precision(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Block in which layers compute in `dtype`, ``torch.bfloat16`` (autocast) or ``torch.float32``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def fast_conv1(conv1: nn.Conv2d, observations: Tensor, dtype: torch.dtype, unit: float = 255.0) -> Tensor:
    """Compute ``conv1(observations / unit)`` the fast way.

    Parameters
    ----------
    conv1 : nn.Conv2d
        The first layer; fast where it is a Nature CNN's, 8x8 with stride 4, no padding and one group, and the sides of
        the pictures are multiples of 4.
    observations : Tensor of uint8, shape (N, frames, height, width)
        Contiguous.
    dtype : torch.dtype
        Of the computation, as in `mixed_precision`.
    unit : float
        What the observations are divided by.

    Returns
    -------
    Tensor of `dtype`, shape (N, channels, h, w)
    """
    moves = (conv1.kernel_size, conv1.stride, conv1.padding)
    whole = all(side % BLOCK == 0 for side in observations.shape[2:])
    if not whole or moves != ((KERNEL, KERNEL), (BLOCK, BLOCK), (0, 0)) or conv1.groups > 1:
        pixels, weight = observations.to(dtype), conv1.weight / unit
        return functional.conv2d(pixels, weight, conv1.bias, conv1.stride, conv1.padding, groups=conv1.groups)
    blocks = _blocks(observations)
    if dtype == torch.bfloat16:  # PyTorch converts uint8 to it one element at a time, these two steps are vectorised
        blocks = blocks.to(torch.int16)
    blocks = blocks.to(dtype)
    return functional.conv2d(blocks, _block_weight(conv1.weight) / unit, conv1.bias)


def _blocks(observations: Tensor) -> Tensor:
    """Lay 4x4 blocks of pixels out as 16 channels a frame, last in memory: of 4 frames of 84x84, (N, 64, 21, 21)."""
    count, frames, height, width = observations.shape
    rows, columns = height // BLOCK, width // BLOCK
    # four neighbouring pixels travel as one 32-bit word, a quarter of the element moves
    words = observations.view(torch.int32).view(count, frames, rows, BLOCK, columns).permute(0, 2, 4, 1, 3).contiguous()
    return words.view(torch.uint8).view(count, rows, columns, frames * BLOCK * BLOCK).permute(0, 3, 1, 2)


def _block_weight(weight: Tensor) -> Tensor:
    """Rearrange conv1's weight to match `_blocks`: (filters, 16 for each frame, 2, 2)."""
    filters, frames = weight.shape[:2]
    parts = weight.view(filters, frames, TAPS, BLOCK, TAPS, BLOCK).permute(0, 1, 3, 5, 2, 4)
    return parts.reshape(filters, frames * BLOCK * BLOCK, TAPS, TAPS)


@contextlib.contextmanager
def dense_values(network: Network) -> Iterator[dict[str, Tensor]]:
    """Collect what the dense hidden layers compute in the block, after their activation.

    Yields
    ------
    dict of str to Tensor
        By layer, of shape (N, units); those of the last call, filled in by it.
    """
    values: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for name in network.dense_layers:

            def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                values[name] = output

            (shown,) = network.channels[name].shown
            stack.callback(getattr(network, shown).register_forward_hook(keep).remove)
        yield values


@torch.inference_mode()
def batched_outputs(
    network: Network, observations: Tensor, dtype: torch.dtype = torch.float32, batch_size: int = 256
) -> Tensor:
    """Compute the outputs for many observations without gradients, a batch at a time on the network's device.

    Returns
    -------
    Tensor of float32, shape (N, actions)
        Where the observations are.
    """
    batches = torch.split(observations, batch_size)
    outputs = [fast_outputs(network, batch.to(network.device), dtype) for batch in batches]
    return torch.cat(outputs).to(observations.device)


def check_device(name: str) -> None:
    """Refuse a device that this machine does not have.

    Raises
    ------
    UserError
        If ``"cuda"`` is asked for and PyTorch finds no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but PyTorch finds no GPU; choose device=cpu or install a CUDA build of torch")


def faster_precision(network: Network, batch_size: int) -> torch.dtype:
    """Measure whether a learning step is faster in bfloat16 than in float32 on this machine.

    Parameters
    ----------
    network : Network
        The network that will learn; its gradients are cleared.
    batch_size : int
        Observations per step.

    Returns
    -------
    torch.dtype
        The faster of ``torch.bfloat16`` and ``torch.float32``, by the best of up to five interleaved steps; on a GPU
        bfloat16 where its hardware multiplies in it.
    """
    if network.device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    observations = network.observations.random(batch_size, 0).to(network.device)
    seconds: dict[torch.dtype, list[float]] = {torch.bfloat16: [], torch.float32: []}
    for turn in range(6):
        for dtype, times in seconds.items():
            start = time.perf_counter()
            fast_outputs(network, observations, dtype).square().mean().backward()  # type: ignore[no-untyped-call]
            if turn:  # the first is to warm up
                times.append(time.perf_counter() - start)
        if turn and max(map(min, seconds.values())) > CLEARLY * min(map(min, seconds.values())):
            break
    network.zero_grad()
    return min(seconds, key=lambda dtype: min(seconds[dtype]))
