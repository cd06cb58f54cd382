"""Programs of `torch.export`, taken out of their archive without unpickling anything.

An archive (``.pt2``, of PyTorch 2.9 and later) is a zip: the graph as JSON, and each weight as plain bytes. PyTorch's
own `torch.export.load` unpickles what the archive says is pickled; here nothing is, and the example inputs are left.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MODEL = "models/model.json"
CONFIGS = {"data/weights/": "model_weights_config.json", "data/constants/": "model_constants_config.json"}
MARKS = (f"/{MODEL}", "/archive_format", "serialized_exported_program.json")
SCHEMA = 8  # major version of the JSON
DTYPES = {  # numbers of the JSON
    1: torch.uint8,
    **{number: dtype for number, dtype in enumerate((torch.int32, torch.int64, torch.float16), start=4)},
    7: torch.float32,
    8: torch.float64,
    13: torch.bfloat16,
}
PREFIX = "torch.ops.aten."
SIZE_OF_BATCH = "sym_size.int"
LEARNS = ("training", "train", "use_input_stats")  # arguments of normalisations
MOST_LIVE = 2**25  # numbers that are kept at once while a program runs
MOST_TEXT = 2**22  # bytes of JSON, which takes twenty times as much when it is read


class Name(str):
    """In an argument, the name of a value."""


@dataclass(frozen=True)
class Node:
    """One call.

    Attributes
    ----------
    op : str
        Of ATen, with its overload: ``"conv2d.default"``.
    arguments : dict
        By their names in the schema of the operation.
    outputs : list of str
        Names of the values that it gives.
    """

    op: str
    arguments: dict[str, Any]
    outputs: list[str]

    def names(self) -> list[str]:
        """Name the values that it is given."""
        return [name for argument in self.arguments for name in self._named(argument)]

    def written(self) -> list[str]:
        """Name the values that it changes in place; of a call that is not known, all that it is given."""
        name, _, overload = self.op.partition(".")
        try:
            schema = getattr(getattr(torch.ops.aten, name), overload)._schema
        except (AttributeError, RuntimeError):
            return self.names()
        arguments = {one.name for one in schema.arguments if one.alias_info is not None and one.alias_info.is_write}
        if any(self.arguments.get(learns) for learns in LEARNS):  # statistics, without a word in its schema
            arguments |= {"running_mean", "running_var"}
        return [name for argument in sorted(arguments & self.arguments.keys()) for name in self._named(argument)]

    def _named(self, argument: str) -> list[str]:
        value = self.arguments[argument]
        return [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, Name)]


@dataclass(frozen=True)
class Program:
    """A graph of calls.

    Attributes
    ----------
    inputs, outputs : list of str
        Names of the values that are given and computed.
    nodes : list of Node
        In the order of computation.
    tensors : dict of str to Tensor
        Weights and constants by their names in the graph.
    shapes : dict of str to list of int or str
        Of every value; a size that is not fixed is an expression.
    given : torch.dtype
        Of the first input.
    """

    inputs: list[str]
    outputs: list[str]
    nodes: list[Node]
    tensors: dict[str, Tensor]
    shapes: dict[str, list[int | str]]
    given: torch.dtype

    def run(self, given: Tensor, output: str) -> Tensor:
        """Compute an output from the one input; all that is on the way must be known to be harmless.

        Raises
        ------
        ValueError
            If more than `MOST_LIVE` numbers have to be kept at once.
        """
        values: dict[str, Any] = {**self.tensors, self.inputs[0]: given.to(self.given, copy=True)}
        way = self.way(output)
        last = {name: place for place, node in enumerate(way) for name in (*node.names(), *node.outputs)}
        live = 0
        for place, node in enumerate(way):
            name, _, overload = node.op.partition(".")
            call = getattr(getattr(torch.ops.aten, name), overload)
            (name,) = node.outputs
            values[name] = call(**{key: _filled(value, values) for key, value in node.arguments.items()})
            live += _numbers(values[name])
            if live > MOST_LIVE:
                raise ValueError(f"it keeps more than {MOST_LIVE:,} numbers at once")
            for name in {*node.names(), *node.outputs} - self.tensors.keys() - {output, *self.inputs}:
                if last[name] == place:
                    live -= _numbers(values.pop(name))
        result: Tensor = values[output]
        return result

    def way(self, output: str) -> list[Node]:
        """List the calls whose values an output is computed from, and those that change such a value in place."""
        wanted, way = {output}, []
        for node in reversed(self.nodes):
            if wanted.intersection(node.outputs) or wanted.intersection(node.written()):
                wanted.update(node.names())
                way.append(node)
        return way[::-1]


def is_program(content: bytes) -> bool:
    """Tell whether a file is an archive of `torch.export`, of any version."""
    if content[:2] != b"PK":
        return False
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return any(name.endswith(MARKS) for name in archive.namelist())


def read_program(content: bytes) -> Program:
    """Read a program from its archive.

    Parameters
    ----------
    content : bytes
        What `torch.export.save` writes.

    Returns
    -------
    Program

    Raises
    ------
    ValueError
        If it is of another version, or something in it is pickled.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        root = next((name.removesuffix(MODEL) for name in archive.namelist() if name.endswith(f"/{MODEL}")), None)
        if root is None or not all(
            f"{root}{folder}{config}" in archive.namelist() for folder, config in CONFIGS.items()
        ):
            raise ValueError("it is a program of an older PyTorch; save it again with PyTorch 2.9 or later")
        model = _json(archive, root + MODEL)
        if model["schema_version"]["major"] != SCHEMA:
            raise ValueError(
                f"it is a program of another version ({model['schema_version']}); read are those of {SCHEMA}"
            )
        stored: dict[str, Tensor] = {}
        read: dict[str, bytearray] = {}  # several weights may lie in one file
        for folder, config in CONFIGS.items():
            for name, payload in _json(archive, f"{root}{folder}{config}")["config"].items():
                stored[name] = _tensor(name, payload, archive, root + folder, read)
    graph = model["graph_module"]["graph"]
    inputs: list[str] = []
    tensors: dict[str, Tensor] = {}
    for spec in model["graph_module"]["signature"]["input_specs"]:
        ((kind, what),) = spec.items()
        if kind == "user_input":
            inputs += _names([what["arg"]])
        elif (key := what.get(f"{kind}_name", what.get("tensor_constant_name"))) is not None:
            tensors[what["arg"]["name"]] = stored[key]
    return Program(
        inputs,
        [name for name in _names(graph["outputs"]) if name],
        [_node(node) for node in graph["nodes"]],
        tensors,
        {name: [_size(size) for size in value["sizes"]] for name, value in graph["tensor_values"].items()},
        DTYPES.get(graph["tensor_values"][inputs[0]]["dtype"], torch.bool) if inputs else torch.bool,
    )


def _json(archive: zipfile.ZipFile, name: str) -> Any:
    if archive.getinfo(name).file_size > MOST_TEXT:
        raise ValueError(f"{name[:80]} in it has more than {MOST_TEXT >> 20} MiB")
    return json.loads(archive.read(name))


def _tensor(
    name: str, payload: Mapping[str, Any], archive: zipfile.ZipFile, folder: str, read: dict[str, bytearray]
) -> Tensor:
    if payload["use_pickle"]:
        raise ValueError(f"{name[:80]} in it is pickled, which is never loaded; save a module of plain tensors")
    meta = payload["tensor_meta"]
    if meta["dtype"] not in DTYPES:
        raise ValueError(f"{name[:80]} in it is of a kind that is not read")
    path, dtype = folder + payload["path_name"], DTYPES[meta["dtype"]]
    if path not in read:
        read[path] = bytearray(archive.read(path))
    content = read[path]
    flat = torch.frombuffer(content, dtype=dtype) if content else torch.zeros(0, dtype=dtype)
    sizes, strides = ([int(size["as_int"]) for size in meta[key]] for key in ("sizes", "strides"))
    tensor = flat.as_strided(sizes, strides, int(meta["storage_offset"]["as_int"]))
    if tensor.numel() > flat.numel():
        raise ValueError(f"{name[:80]} in it has fewer numbers than it says")
    return tensor


def _node(node: Mapping[str, Any]) -> Node:
    arguments = {one["name"]: _argument(one["arg"]) for one in node["inputs"]}
    return Node(node["target"].removeprefix(PREFIX)[:80], arguments, list(_names(node["outputs"])))


def _names(outputs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for output in outputs:
        ((_, what),) = output.items()
        yield str(what.get("name", what.get("as_name"))) if isinstance(what, dict) else ""


PLAIN = ("as_int", "as_bool", "as_string", "as_ints", "as_floats", "as_bools")
ARGUMENTS: Mapping[str, Callable[[Any], Any]] = {  # what arguments are, by the kinds that the JSON gives them
    **dict.fromkeys(PLAIN, lambda value: value),
    "as_none": lambda value: None,
    "as_float": float,
    "as_tensor": lambda value: Name(value["name"]),
    "as_tensors": lambda value: [Name(one["name"]) for one in value],
    "as_sym_int": lambda value: _argument_size(value),
    "as_sym_ints": lambda value: [_argument_size(one) for one in value],
    "as_scalar_type": lambda value: DTYPES.get(value, torch.bool),
    "as_device": lambda value: torch.device("cpu"),
    "as_layout": lambda value: torch.strided,
    "as_memory_format": lambda value: torch.contiguous_format,
}


def _argument(argument: Mapping[str, Any]) -> Any:
    ((kind, value),) = argument.items()
    return ARGUMENTS[kind](value) if kind in ARGUMENTS else f"what is not read: {kind}"


def _argument_size(size: Mapping[str, Any]) -> int | Name:
    return Name(size["as_name"]) if "as_name" in size else int(size["as_int"])


def _size(size: Mapping[str, Any]) -> int | str:
    return int(size["as_int"]) if "as_int" in size else str(size["as_expr"]["expr_str"])


def _numbers(value: Any) -> int:
    return value.numel() if isinstance(value, Tensor) else 1


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_filled(one, values) for one in value]
    return values[value] if isinstance(value, Name) else value
