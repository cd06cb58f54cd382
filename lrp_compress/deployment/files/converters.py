"""Files made by converters that start from PyTorch: LiteRT's ``.tflite`` and ExecuTorch's ``.pte``.

Both read a program that ``torch.export`` traced. For int8 it is rounded after it has seen calibration states (PyTorch 2
Export quantisation), symmetric weights with a scale per output channel. The libraries are extras and are imported only
where a file is written or read.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lrp_compress.networks.graph import Network
from lrp_compress.support.files import atomic_path


def save_litert(path: Path, network: Network, calibration: NDArray[Any] | None) -> None:
    """Write a network for LiteRT (TensorFlow Lite), for one observation at a time.

    Parameters
    ----------
    path : Path
        For the ``.tflite`` file.
    network : Network
        Left untouched.
    calibration : ndarray, shape (N, *network.observations.shape), or None
        For int8: states that set the ranges. The input is then int8, pixels less 128, the outputs int8 too. Without,
        the input is what the network takes and all else float32.
    """
    import litert_torch
    from litert_torch.quantize import pt2e_quantizer, quant_config
    from torchao.quantization.pt2e.observer import MinMaxObserver

    litert_torch.config.show_progress = False  # prints a screenful
    plain = copy.deepcopy(network).eval()
    if calibration is None:
        converted = litert_torch.convert(plain, (_example(network),))
    else:
        scheme = pt2e_quantizer.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)
        # the default cuts off large activations: on a Breakout student 77 % of the actions agreed, so 93 % do
        whole_range = dataclasses.replace(scheme.input_activation, observer_or_fake_quant_ctr=MinMaxObserver)
        scheme = dataclasses.replace(scheme, input_activation=whole_range, output_activation=whole_range)
        quantizer = pt2e_quantizer.PT2EQuantizer().set_global(scheme)
        observations = torch.from_numpy(calibration)
        if network.observations.dtype == "uint8":
            observations = network.scaled(observations)
            # the input's range, and so its scale, must be that of all pixels
            observations.view(-1)[0] = 255 / network.observations.unit
        quantized = _quantized(plain, quantizer, observations, fold_quantize=False)
        how = quant_config.QuantConfig(pt2e_quantizer=quantizer)
        converted = litert_torch.convert(quantized, (observations[:1],), quant_config=how)
    with atomic_path(path) as temporary:
        converted.export(str(temporary))


def litert_outputs(path: Path, observations: NDArray[Any]) -> Tensor:
    """Run a ``.tflite`` file of `save_litert` on one thread.

    Parameters
    ----------
    path : Path
        The file.
    observations : ndarray, shape (N, ...)

    Returns
    -------
    Tensor of float32, shape (N, actions)
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    inputs, outputs = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    if inputs["dtype"] == np.int8:
        observations = _bytes(observations, *inputs["quantization"])
    values = []
    for one in observations:
        interpreter.set_tensor(inputs["index"], one[None])
        interpreter.invoke()
        values.append(interpreter.get_tensor(outputs["index"]).astype(np.float32))
    scale, zero = outputs["quantization"]
    decoded = (np.concatenate(values) - zero) * (scale or 1)  # a scale of 0 stands for float32
    return torch.from_numpy(decoded.astype(np.float32))


def save_executorch(path: Path, network: Network, calibration: NDArray[Any] | None) -> None:
    """Write a network for ExecuTorch with XNNPACK's kernels, for one observation at a time.

    Parameters
    ----------
    path : Path
        For the ``.pte`` file; its input is what the network takes, its outputs are float32.
    network : Network
        Left untouched.
    calibration : ndarray, shape (N, *network.observations.shape), or None
        For int8: states that set the ranges.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
    from executorch.exir import to_edge_transform_and_lower

    module: nn.Module = copy.deepcopy(network).eval()
    if calibration is not None:
        scheme = xnnpack_quantizer.get_symmetric_quantization_config(is_per_channel=True)
        quantizer = xnnpack_quantizer.XNNPACKQuantizer().set_global(scheme)
        module = _quantized(module, quantizer, torch.from_numpy(calibration))
    exported = torch.export.export(module, (_example(network),))
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    with atomic_path(path) as temporary:
        temporary.write_bytes(program.buffer)


def executorch_outputs(path: Path, observations: NDArray[Any]) -> Tensor:
    """Run a ``.pte`` file of `save_executorch`.

    Parameters
    ----------
    path : Path
        The file.
    observations : ndarray, shape (N, ...)

    Returns
    -------
    Tensor of float32, shape (N, actions)
    """
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    rows = torch.from_numpy(observations)
    return torch.cat([method.execute([row[None]])[0].clone() for row in rows])


def _example(network: Network) -> Tensor:
    return torch.zeros(1, *network.observations.shape, dtype=getattr(torch, network.observations.dtype))


def _bytes(observations: NDArray[Any], scale: float, zero: int) -> NDArray[np.int8]:
    """Bring observations to int8: pixels less 128, others rounded."""
    if observations.dtype == np.uint8:
        return (observations ^ 0x80).view(np.int8)
    rounded: NDArray[np.int8] = np.clip(np.rint(observations / scale) + zero, -128, 127).astype(np.int8)
    return rounded


def _quantized(network: nn.Module, quantizer: Any, observations: Tensor, **how: bool) -> nn.Module:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    # of any number of observations, since calibration one by one takes a minute
    count = torch.export.Dim("count", min=1, max=len(observations) + 1)
    traced = torch.export.export(network, (observations[:2],), dynamic_shapes=({0: count},)).module()
    watched: Callable[[Tensor], Tensor] = prepare_pt2e(traced, quantizer)
    with torch.no_grad():
        watched(observations)
    rounded: nn.Module = convert_pt2e(watched, **how)
    return rounded
