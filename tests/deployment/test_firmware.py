"""C code and firmware of a small network, built by the real compilers and run by the real emulator."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from lrp_compress.deployment.c import building
from lrp_compress.deployment.c.boards import BOARDS
from lrp_compress.deployment.c.building import STACK_BYTES, Firmware, build_firmware
from lrp_compress.deployment.c.emulation import EmulatedBoard
from lrp_compress.deployment.c.integer_layers import read_int8
from lrp_compress.deployment.c.source import CSource, example_outputs, export_c
from lrp_compress.deployment.files.onnx_sessions import OnnxPolicy
from lrp_compress.networks.nature import nature_cnn
from lrp_compress.support.errors import UserError
from tests.deployment.arm import needs_arm_tools
from tests.deployment.int8_files import SMALL, observations, write_int8

pytestmark = pytest.mark.slow

BOARD = BOARDS["lm3s6965evb"]
LOOP, FAULT = "for (;;) {}", "__builtin_trap();"


@pytest.fixture(scope="module")
def int8_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return write_int8(tmp_path_factory.mktemp("int8") / "student.onnx", nature_cnn(SMALL, "q", 6), "pong")


@pytest.fixture(scope="module")
def source(int8_file: Path, tmp_path_factory: pytest.TempPathFactory) -> CSource:
    return export_c(int8_file, tmp_path_factory.mktemp("source"))


def stub(folder: Path, body: str) -> CSource:
    """Code whose decision is something else."""
    folder.mkdir(exist_ok=True)
    (folder / "policy.h").write_text(
        "#include <stdint.h>\n#define POLICY_ACTIONS 2\ntypedef uint8_t policy_observations[1][4][84][84];\n"
        "void policy(const policy_observations o, float y[1][2]);\n"
    )
    (folder / "policy.c").write_text(
        f'#include "policy.h"\nvoid policy(const policy_observations o, float y[1][2]) {{ {body} }}\n'
    )
    return CSource(folder, 2, 0)


def test_the_code_computes_what_onnxruntime_computes(source: CSource, int8_file: Path):
    seen = observations("pong", 10)
    assert torch.equal(example_outputs(source, seen), OnnxPolicy(int8_file).outputs(seen))


def test_the_header_states_the_static_ram(source: CSource):
    subprocess.run(["cc", "-fno-pic", "-c", "policy.c", "-o", "policy.o"], cwd=source.folder, check=True)
    said = subprocess.run(["size", "policy.o"], cwd=source.folder, capture_output=True, text=True, check=True)
    _, data, bss, *_ = map(int, said.stdout.splitlines()[1].split()[:4])
    stated = re.search(r"POLICY_STATIC_RAM_BYTES (\d+)", (source.folder / "policy.h").read_text())
    assert stated is not None
    assert data == 0
    assert source.static_ram_bytes == int(stated[1]) <= bss <= source.static_ram_bytes + 64  # alignment
    assert "alloc" not in (source.folder / "policy.c").read_text()


@pytest.mark.parametrize("per_channel", [False, True])
def test_odd_widths_are_computed_alike(per_channel: bool, tmp_path: Path):
    torch.manual_seed(1)
    network = nature_cnn({"conv1": 5, "conv2": 7, "conv3": 9, "fc1": 13, "fc2": 11}, "policy", 6)
    path = write_int8(tmp_path / "odd.onnx", network, "pong", per_channel)
    seen = observations("pong", 10)
    assert torch.equal(example_outputs(export_c(path, tmp_path), seen), OnnxPolicy(path).outputs(seen))


@needs_arm_tools
@pytest.mark.parametrize("name", sorted(BOARDS))
def test_every_board_decides_bit_for_bit_alike(source: CSource, int8_file: Path, name: str, tmp_path: Path):
    firmware = build_firmware(source, BOARDS[name])
    assert 57_000 < firmware.flash_bytes < BOARDS[name].flash_bytes
    assert source.static_ram_bytes + 28_224 < firmware.static_ram_bytes < BOARDS[name].ram_bytes
    seen = observations("pong", 3)
    with EmulatedBoard(firmware, timeout_s=60) as board:
        outputs = board.outputs(seen)
        stack = board.finish()
    assert outputs.numpy().tobytes() == OnnxPolicy(int8_file).outputs(seen).numpy().tobytes()
    assert 0 < stack < STACK_BYTES


@needs_arm_tools
def test_instructions_are_counted_and_repeat(source: CSource):
    firmware, seen = build_firmware(source, BOARD), observations("pong", 2)
    counts = []
    for _ in range(2):
        with EmulatedBoard(firmware, timeout_s=60) as board:
            board.outputs(seen)
        counts.append(board.instructions)
    assert np.allclose(counts[0], counts[1], rtol=1e-4)
    assert all(3e6 < count < 5e6 for count in counts[0])  # some three for each of 1.15 million multiplications


@needs_arm_tools
def test_a_known_loop_is_counted_exactly(tmp_path: Path):
    body = 'unsigned n = 500000; __asm__ volatile("1: subs %0, #1\\n bne 1b" : "+r"(n) :: "cc"); y[0][0] = y[0][1] = 1;'
    with EmulatedBoard(build_firmware(stub(tmp_path, body), BOARD), timeout_s=60) as board:
        assert board.outputs(observations("pong", 1)).tolist() == [[1.0, 1.0]]
    assert board.instructions[0] == pytest.approx(1_000_000, rel=1e-4)


@needs_arm_tools
@pytest.mark.parametrize(
    ("memory", "told"),
    [
        ({"flash_bytes": 32768}, r"\.text.* overflows FLASH \(32,768 bytes\) by 3\d,\d{3} bytes"),
        ({"ram_bytes": 16384}, r"\.bss.* overflows RAM \(16,384 bytes\) by 1\d,\d{3} bytes"),
    ],
)
def test_what_does_not_fit_is_told_by_section(source: CSource, memory: dict[str, int], told: str):
    with pytest.raises(UserError, match=told) as caught:
        build_firmware(source, dataclasses.replace(BOARD, **memory))
    assert "\n" not in str(caught.value)
    assert "overflowed" in (source.folder / "build.log").read_text()


@needs_arm_tools
def test_a_board_that_hangs_is_given_up(tmp_path: Path):
    board = EmulatedBoard(build_firmware(stub(tmp_path, LOOP), BOARD), timeout_s=1)
    with pytest.raises(UserError, match=r"lm3s6965evb in QEMU gave no answer within 1 s"), board:
        board.outputs(observations("pong", 1))
    assert board._process.returncode is not None


@needs_arm_tools
def test_a_fault_is_told(tmp_path: Path):
    with (
        pytest.raises(UserError, match=r"stopped with code 1: the processor took a fault"),
        EmulatedBoard(build_firmware(stub(tmp_path, FAULT), BOARD), timeout_s=30) as board,
    ):
        board.outputs(observations("pong", 1))


@needs_arm_tools
def test_qemu_that_refuses_is_told(source: CSource, tmp_path: Path):
    firmware = Firmware(dataclasses.replace(BOARD, name="toaster"), tmp_path / "no.elf", 6, 0, 0)
    with pytest.raises(UserError, match="toaster in QEMU stopped with code 1"), EmulatedBoard(firmware, timeout_s=30):
        pass


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"arm-none-eabi-gcc, .*not found: apt-get install"):
        building.check_tools()


def test_files_of_other_kinds_are_refused(int8_file: Path, tmp_path: Path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(int8_file.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"broken\.onnx is not whole: .*; export the agent again"):
        export_c(broken, tmp_path)
    model = onnx.load(int8_file)
    onnx.helper.set_model_props(model, {"format": "float32"})
    onnx.save(model, tmp_path / "float.onnx")
    with pytest.raises(UserError, match=r"float\.onnx is float32; C code is made of files in int8 QO"):
        export_c(tmp_path / "float.onnx", tmp_path)
    with pytest.raises(UserError, match=r"none\.onnx does not exist"):
        export_c(tmp_path / "none.onnx", tmp_path)
    onnx.helper.set_model_props(model, {"format": "int8 QOperator"})
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(UserError, match=r"bare\.onnx does not state its actions, game, head"):
        export_c(tmp_path / "bare.onnx", tmp_path)
    onnx.helper.set_model_props(model, {"format": "int8 QOperator", "game": "pong", "head": "q", "actions": "6"})
    head, constants = model.graph.node[-1], {"scale": np.array(0.1, np.float32), "zero": np.array(128, np.uint8)}
    head.input.extend(constants)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    head.output[0] = "rounded"
    model.graph.node.append(onnx.helper.make_node("DequantizeLinear", ["rounded", *constants], ["outputs"]))
    onnx.save(model, tmp_path / "older.onnx")
    with pytest.raises(
        UserError, match=r"older\.onnx .*rounded to 8 bits, as in earlier versions; export the agent ag"
    ):
        export_c(tmp_path / "older.onnx", tmp_path)
    model.graph.node[0].op_type, model.graph.node[0].domain = "ConvInteger", ""
    del model.graph.node[0].input[4:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UserError, match=r"other\.onnx cannot be turned into C: the operator ConvInteger is not known"):
        export_c(tmp_path / "other.onnx", tmp_path)


def strides(model: onnx.ModelProto, value: int) -> None:
    (own,) = (entry for entry in model.graph.node[0].attribute if entry.name == "strides")
    own.ints[:] = [value, value]


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def gigabytes(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2**20, 2**14]), "much"))
    model.graph.node.insert(0, onnx.helper.make_node("ConstantOfShape", ["much"], ["unused"]))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda model: strides(model, 0), "stride is below 1"),
        (lambda model: strides(model, -4), "stride is below 1"),
        (external, "is not whole|in other files"),
        (gigabytes, "the operator ConstantOfShape is not known"),
        (lambda model: onnx.helper.set_model_props(model, {"game": "*/ x"}), "is of no stated format"),
        (lambda model: setattr(entry_of(model, "game"), "value", "pong */ int x; /*"), "is not the id of a ROM"),
    ],
)
def test_hostile_files_are_refused_in_one_line(
    int8_file: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None], told: str
):
    model = onnx.load(int8_file)
    change(model)
    (tmp_path / "odd.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=told) as caught:
        read_int8(tmp_path / "odd.onnx")
    assert "\n" not in str(caught.value)


def entry_of(model: onnx.ModelProto, key: str) -> Any:
    (entry,) = (entry for entry in model.metadata_props if entry.key == key)
    return entry
