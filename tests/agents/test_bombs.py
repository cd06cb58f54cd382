"""Small files that would take gigabytes, or no end of time, are refused before they do."""

from __future__ import annotations

import gzip
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from lrp_compress.agents.checkpoints import Agent, AgentInfo
from lrp_compress.deployment.files.onnx_models import save_float
from lrp_compress.networks.graph import Layer, Network
from lrp_compress.networks.spaces import ATARI, Decision
from tests.commands.forks import Forks

LARGE = "MiB; agents of more than 64 are not read"
READ = """
import resource, sys, time
from pathlib import Path
from lrp_compress.agents.formats import read_foreign
from lrp_compress.networks.spaces import ATARI, Spaces
from lrp_compress.support.errors import UserError
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    began = time.process_time()
    try:
        read_foreign(path, Spaces(ATARI, {"minimal": ("NOOP",) * 6}), "policy")
        told = "is read"
    except UserError as error:
        told = error
    print(path.name, peak() - start, time.process_time() - began, told)
"""


def read_all(forks: Forks, folder: Path, expected: dict[str, str]) -> None:
    """Read files in a process of its own, whose peak of memory and time are known."""
    lines = forks.run("-c", [READ, str(folder)], folder).stdout.splitlines()
    assert [line.split()[0] for line in lines] == sorted(expected)
    for line in lines:
        name, peak, seconds, told = line.split(" ", 3)
        assert expected[name] in told, line
        assert int(peak) < 300_000, line  # kB
        assert float(seconds) < 20, line


def save_graph(
    path: Path,
    nodes: list[onnx.NodeProto],
    tensors: dict[str, np.ndarray],
    functions: tuple[onnx.FunctionProto, ...] = (),
) -> None:
    """Write a graph from x to y."""
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", ["N", 4, 84, 84]), ("y", ["N", None]))
    ]
    stored = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "agent", ends[:1], ends[1:], stored)
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(one.domain, 1) for one in functions)]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)
    onnx.save(model, path)


def dense(last: str, width: int) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Give a dense layer on flattened observations, followed by a node."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["outputs"]),
        helper.make_node(last, ["outputs"], ["y"]),
    ]
    return nodes, {"weight": np.zeros((28224, width), np.float32)}


def convolutional(*middle: onnx.NodeProto, **tensors: np.ndarray) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Give a convolution, nodes from c to m, and a dense layer."""
    generator = np.random.default_rng(0)
    stored = {
        "conv": generator.standard_normal((8, 4, 84, 84), np.float32),
        "head": generator.standard_normal((8, 6), np.float32),
        **tensors,
    }
    first, last = helper.make_node("Conv", ["x", "conv"], ["c"]), helper.make_node("MatMul", ["m", "head"], ["y"])
    return [first, *middle, last], stored


class Chain(nn.Module):
    """Multiplies its observations by one, a thousand times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(4, 1, 8, 4), nn.Linear(400, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(1000):
            x = x * 1.0
        return self.out(torch.relu(self.conv(x)).flatten(1))  # type: ignore[no-any-return]


def varint(number: int) -> bytes:
    return bytes([number % 128 + 128, *varint(number // 128)]) if number > 127 else bytes([number])


def test_onnx_files(forks: Forks, tmp_path: Path):
    save_graph(tmp_path / "unread.onnx", *dense("Erf", 290))
    save_graph(tmp_path / "vast.onnx", *dense("Identity", 300))
    flat = helper.make_node("Flatten", ["c"], ["m"])
    save_graph(tmp_path / "fine.onnx", *convolutional(flat))
    doubled = [helper.make_node("Concat", [f"s{i}", f"s{i}"], [f"s{i + 1}"], axis=0) for i in range(26)]
    sides = [helper.make_node("Shape", ["c"], ["s0"]), *doubled]
    sides += [
        helper.make_node("Slice", ["s26", "start", "end"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["s"], axis=0),
    ]
    numbers = {"start": np.array([0]), "end": np.array([1]), "rest": np.array([-1])}
    save_graph(
        tmp_path / "doubled.onnx", *convolutional(*sides, helper.make_node("Reshape", ["c", "s"], ["m"]), **numbers)
    )
    again = helper.make_node("Concat", ["many"] * 50_000, ["unused"], axis=0)
    save_graph(tmp_path / "repeated.onnx", *convolutional(flat, again, many=np.zeros(1024, np.float32)))
    vast = helper.make_node("Conv", ["x", "wide"], ["w"])
    size = [helper.make_node("Shape", ["w"], ["s"]), helper.make_node("Reshape", ["c", "s"], ["m"])]
    save_graph(tmp_path / "aside.onnx", *convolutional(vast, *size, wide=np.zeros((4000, 4, 1, 1), np.float32)))
    body = [
        helper.make_node("Constant", [], ["n"], value=numpy_helper.from_array(np.array([3 * 10**8]))),
        helper.make_node("ConstantOfShape", ["n"], ["zeros"]),
        helper.make_node("ReduceMax", ["zeros"], ["most"], keepdims=0),
        helper.make_node("Add", ["a", "most"], ["b"]),
    ]
    function = helper.make_function("own", "Relu", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    theirs = helper.make_node("Relu", ["c"], ["r"], domain="own")
    nodes = [theirs, helper.make_node("Flatten", ["r"], ["m"])]
    save_graph(tmp_path / "function.onnx", *convolutional(*nodes), functions=(function,))
    many = 4_000_000
    (tmp_path / "nodes.onnx").write_bytes(b"\x08\x08\x3a" + varint(2 * many) + b"\x0a\x00" * many)
    (tmp_path / "metadata.onnx").write_bytes(b"\x08\x08\x12\x00" + b"\x72\x00" * many)
    (tmp_path / "integers.onnx").write_bytes(  # a constant of bytes that become numbers of eight
        b"\x08\x08\x3a" + varint(2**24 + 10) + b"\x2a" + varint(2**24 + 5) + b"\x3a" + varint(2**24) + bytes(2**24)
    )
    window = {"padding": (0, 0)}
    wide = Network(
        [
            Layer("conv1", "conv", ("observations",), {"width": 4000, "kernel": (1, 1), "stride": (1, 1), **window}),
            Layer("mean_pool1", "mean_pool", ("conv1",), {"kernel": (84, 84), "stride": (84, 84)}),
            Layer("flatten", "flatten", ("mean_pool1",)),
            Layer("head", "dense", ("flatten",), {"width": 6}),
        ],
        ATARI,
        Decision("policy", 6),
    )
    save_float(tmp_path / "wide.onnx", Agent(wide, AgentInfo("pong", "minimal", False, {}, {})))
    expected = {
        "aside.onnx": "to a shape that is computed",
        "doubled.onnx": "to a shape that is computed",
        "fine.onnx": "is read",
        "function.onnx": "computes Relu of own, which is no layer here",
        "integers.onnx": "more than 65536 parts",
        "metadata.onnx": "more than 65536 parts",
        "nodes.onnx": "more than 65536 parts",
        "repeated.onnx": "is read",
        "unread.onnx": "it computes Erf",
        "vast.onnx": "MiB; agents of more than 32 are not read",
        "wide.onnx": "numbers for 4 observations at once; at most",
    }
    read_all(forks, tmp_path, expected)


def rewritten(path: Path, new: Path, content: bytes, name: str) -> None:
    """Copy one of torch's archives with other content under its pickle's name, or another name."""
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(new, "w", 8) as packed:
        for item in whole.infolist():
            root, _, file = item.filename.partition("/")
            pickled = file == "data.pkl"
            packed.writestr(f"{root}/{name}" if pickled else item.filename, content if pickled else whole.read(item))


def test_pickles_and_archives(forks: Forks, tmp_path: Path):
    torch.save({"network.0.weight": torch.zeros(1).expand(40000, 40000)}, tmp_path / "strided.pth")
    rows = {f"network.{number}.weight": torch.zeros(1).expand(2000, 4000) for number in range(18)}
    torch.save(rows, tmp_path / "together.pth")
    torch.save({"network.0.weight": torch.zeros(50_000_000)}, tmp_path / "large.pth")
    with zipfile.ZipFile(tmp_path / "large.pth") as whole, zipfile.ZipFile(tmp_path / "packed.pth", "w", 8) as packed:
        for item in whole.infolist():
            packed.writestr(item.filename, whole.read(item), compresslevel=1)
    (tmp_path / "large.pth").unlink()
    torch.save({"network.0.weight": torch.zeros(3)}, tmp_path / "one.pth")
    many = 20_000_000
    rewritten(tmp_path / "one.pth", tmp_path / "capitals.pth", b"\x80\x02(" + b"]" * many + b"l.", "data.PKL")
    rewritten(tmp_path / "one.pth", tmp_path / "nothings.pth", b"\x80\x02(" + b"N" * many + b"l.", "data.pkl")
    (tmp_path / "one.pth").unlink()
    (tmp_path / "packed.gz").write_bytes(gzip.compress(bytes(2**28), 1))
    (tmp_path / "lists.gz").write_bytes(gzip.compress(b"\x80\x02(" + b"]" * many + b"l.", 1))
    for name, kind in (("arrays.gz", b"\x90"), ("nils.gz", b"\xc0")):
        flax = b"\x81\xa1a\xdd" + many.to_bytes(4, "big") + kind * many
        (tmp_path / name).write_bytes(gzip.compress(flax, 1))
    entry = struct.pack("<IBBBBHHHHIIIHHHHHII", 0x02014B50, 20, 3, 20, 0, *[0] * 7, 1, *[0] * 6) + b"a"
    table = entry * 500_000
    ends = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 65535, 65535, len(table), 30, 0)
    (tmp_path / "entries.zip").write_bytes(b"PK\x03\x04" + bytes(26) + table + ends)
    module = nn.Sequential(nn.Conv2d(4, 1, 8, 4), nn.ReLU(), nn.Flatten(), nn.Linear(400, 6))
    torch.export.save(torch.export.export(module, (torch.zeros(2, 4, 84, 84),)), tmp_path / "once.pt2")
    with zipfile.ZipFile(tmp_path / "once.pt2") as whole, zipfile.ZipFile(tmp_path / "again.pt2", "w", 8) as packed:
        for item in whole.infolist():
            content = whole.read(item)
            if item.filename.endswith("weights/model_weights_config.json"):
                weights = json.loads(content)
                first = next(iter(weights["config"].values()))
                large = json.loads(json.dumps(first)) | {"path_name": "large"}
                large["tensor_meta"] |= {"sizes": [{"as_int": 10_000_000}], "strides": [{"as_int": 1}]}
                weights["config"] |= {f"more{number}": large for number in range(20)}
                content = json.dumps(weights).encode()
                packed.writestr(item.filename.rpartition("/")[0] + "/large", bytes(40_000_000))
            packed.writestr(item.filename, content)
    (tmp_path / "once.pt2").unlink()
    torch.export.save(torch.export.export(Chain().eval(), (torch.zeros(2, 4, 84, 84),)), tmp_path / "chain.pt2")
    with zipfile.ZipFile(tmp_path / "nested.zip", "w") as nested:
        nested.writestr("data", "{}")
        nested.write(tmp_path / "packed.pth", "policy.pth")
    pickled = "is a pickle of more than 262,144 steps"
    expected = {
        "again.pt2": "is read",
        "arrays.gz": "exceeds max_array_len",
        "capitals.pth": pickled,
        "chain.pt2": "is read",
        "entries.zip": "is an archive of more than 4,096 files",
        "lists.gz": pickled,
        "nested.zip": LARGE,
        "nils.gz": "exceeds max_array_len",
        "nothings.pth": pickled,
        "packed.gz": LARGE,
        "packed.pth": LARGE,
        "strided.pth": LARGE,
        "together.pth": LARGE,
    }
    read_all(forks, tmp_path, expected)
