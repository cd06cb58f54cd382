"""The C code of int8 agents beside that of emx-onnx-cgen, a general ONNX-to-C compiler, on one emulated processor.

    python benchmarks/generated_c.py student-int8.onnx ...

Both are compiled with the same flags and harness for the Cortex-M4 of the mps2-an386 and decide on the same
observations, bit for bit alike. emx-onnx-cgen gets the weights' zero points, all 0, as scalars, which spares it a load
and a subtraction in its innermost loops, and the head in ONNX's own operators, as it knows no QGemm of float outputs.
Prints a Markdown table: flash and RAM in bytes, instructions per decision.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from pathlib import Path

import numpy as np
import onnx
from emx_onnx_cgen.compiler import Compiler, CompilerOptions
from onnx import numpy_helper

from lrp_compress.deployment.c.boards import BOARDS
from lrp_compress.deployment.c.building import build_firmware
from lrp_compress.deployment.c.emulation import EmulatedBoard
from lrp_compress.deployment.c.source import CSource, export_c
from lrp_compress.deployment.files.onnx_sessions import OnnxPolicy
from lrp_compress.environments.atari import AtariEnvs


def general_c(path: Path, own: CSource, folder: Path) -> CSource:
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    names = {node.input[5] for node in model.graph.node if node.op_type == "QLinearConv"}
    for tensor in model.graph.initializer:
        if tensor.name in names:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros((), np.int8), tensor.name))
    _spell_out_head(model.graph)
    options = CompilerOptions(model_name="policy", large_weight_threshold=0, large_temp_threshold_bytes=0)
    folder.mkdir()
    (folder / "policy.c").write_text(Compiler(options).compile(model))
    (folder / "policy.h").write_text((own.folder / "policy.h").read_text())
    return dataclasses.replace(own, folder=folder)


def _spell_out_head(graph: onnx.GraphProto) -> None:
    """Replace the last QGemm by a product of integers, the bias, and the factor in float32."""
    head = graph.node.pop()
    values, scale, zero, weights, weight_scale, _, bias = head.input
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    factor = constants[scale] * constants[weight_scale]
    for name, value in (("head_columns", constants[weights].T.copy()), ("head_factor", factor)):
        graph.initializer.append(numpy_helper.from_array(value, name))
    whole, floating = onnx.TensorProto.INT32, onnx.TensorProto.FLOAT
    for operator, inputs, output, kind in (
        ("MatMulInteger", [values, "head_columns", zero], "head_products", whole),
        ("Add", ["head_products", bias], "head_sums", whole),
        ("Cast", ["head_sums"], "head_floats", floating),
        ("Mul", ["head_floats", "head_factor"], head.output[0], floating),
    ):
        attributes = {"to": floating} if operator == "Cast" else {}
        graph.node.append(onnx.helper.make_node(operator, inputs, [output], **attributes))
        graph.value_info.append(onnx.helper.make_tensor_value_info(output, kind, [1, len(constants[bias])]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agents", nargs="+", type=Path, metavar="FILE.onnx")
    parser.add_argument("--frames", type=int, default=20, help="measured decisions")
    options = parser.parse_args()
    print("| agent | code | flash | RAM | instructions per decision | ratio |\n|---|---|---|---|---|---|")
    for path in options.agents:
        policy = OnnxPolicy(path)
        with AtariEnvs(policy.metadata["game"], options.frames, "noop", seed=0) as envs:
            observations = envs.reset().observations
            for _ in range(50):
                observations = envs.step(policy.outputs(observations).argmax(1).numpy()).observations
        with tempfile.TemporaryDirectory() as folder:
            own = export_c(path, Path(folder) / "own")
            means: list[float] = []
            for name, source in (
                ("emx-onnx-cgen", general_c(path, own, Path(folder) / "general")),
                ("lrp_compress", own),
            ):
                firmware = build_firmware(source, BOARDS["mps2-an386"])
                with EmulatedBoard(firmware, timeout_s=60) as board:
                    assert board.outputs(observations).equal(policy.outputs(observations))
                    ram = firmware.static_ram_bytes + board.finish()
                means.append(statistics.fmean(board.instructions))
                cells = [path.stem, name, f"{firmware.flash_bytes:,}", f"{ram:,}", f"{means[-1]:,.0f}"]
                print(f"| {' | '.join(cells)} | {means[0] / means[-1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
