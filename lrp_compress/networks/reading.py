"""What a program of `torch.export` computes, and a module by way of one."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from lrp_compress.networks import values
from lrp_compress.networks.aten import READERS, VIEWS, Call, Read
from lrp_compress.networks.programs import SIZE_OF_BATCH, Node, Program, read_program
from lrp_compress.networks.spaces import Observations
from lrp_compress.networks.values import Unread, Value
from lrp_compress.support.errors import UserError

TELLING = {"lstm": "an LSTM", "gru": "a GRU", "scaled_dot_product_attention": "attention"}  # more than what leads there
BATCH = 2  # observations that a module is exported for


def read_outputs(program: Program, observations: Observations) -> dict[str, Value | Unread]:
    """Read what a program with one input computes.

    Returns
    -------
    dict of str to Value or Unread
        By output; the first thing on the way to it that is no layer, if there is one.
    """
    return _Reading(program, observations).outputs()


def unknown_call(program: Program, output: str) -> str | None:
    """Name a call on the way to an output that is none of a layer: such a program is not run."""
    for node in program.way(output):
        name, _, overload = node.op.partition(".")
        if node.op != SIZE_OF_BATCH and f"{name.removesuffix('_')}.{overload}" not in READERS:
            return node.op
    return None


def read_module(module: nn.Module, observations: Observations, source: str) -> Program:
    """Export a module by `torch.export`; nothing of it is run but its own ``forward``.

    Parameters
    ----------
    module : nn.Module
        From observations, (N, *observations.shape) or with the channels last, to outputs of shape (N, actions).
    observations : Observations
    source : str
        What errors call the module.

    Returns
    -------
    Program

    Raises
    ------
    UserError
        If it cannot be exported.
    """
    shapes = [observations.shape] + [(*observations.shape[1:], observations.shape[0])] * (len(observations.shape) == 3)
    errors = []
    for shape in shapes:
        given = torch.zeros((BATCH, *shape), dtype=getattr(torch, observations.dtype))
        try:
            with warnings.catch_warnings(), _unlogged():  # of what the module does on its way to be refused
                warnings.simplefilter("ignore")
                exported = torch.export.export(module.eval(), (given,))
                content = io.BytesIO()
                torch.export.save(exported, content)
            return read_program(content.getvalue())
        except Exception as error:  # of the module's own code too
            errors.append(error)
    raise UserError(
        f"{source} cannot be exported by PyTorch: {' '.join(str(errors[0]).split())[:300]}; it must take observations, "
        f"{observations.dtype} of shape (N, {', '.join(map(str, observations.shape))}), and give a tensor of shape "
        "(N, actions)"
    ) from errors[0]


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Keep torch from logging the traceback of an error that is raised, and worded, as well."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@dataclass
class _Reading:
    """What has been read of a program."""

    program: Program
    observations: Observations
    reads: dict[str, Read] = field(default_factory=dict)
    same: dict[str, set[str]] = field(default_factory=dict)  # by value all that may share its memory

    def outputs(self) -> dict[str, Value | Unread]:
        """Read every output."""
        (given,) = self.program.inputs
        last = tuple(self.program.shapes[given][1:]) != self.observations.shape
        self.reads = {**self.program.tensors, given: values.given(self.observations, last)}
        for node in self.program.nodes:
            self._share(node)
        for name in {name for node in self.program.nodes for name in node.written()}:
            # what is stored would be another in the next call, whenever it is changed
            self._unread(self.program.tensors.keys() & self.same.get(name, {name}))
        self.same.clear()
        for node in self.program.nodes:
            self._read(node, self.program.shapes[given][0])
            self._share(node)
        found = {name: self.reads.get(name, Unread("an output that is not known")) for name in self.program.outputs}
        return {name: one if isinstance(one, Value | Unread) else Unread("a constant") for name, one in found.items()}

    def _read(self, node: Node, batch: int | str) -> None:
        written = node.written()
        if not node.outputs or node.op == SIZE_OF_BATCH:
            return self._unread({other for name in written for other in self.same.get(name, {name})})
        name, _, overload = node.op.partition(".")
        call = Call(node, self.reads, self.program.shapes.get(node.outputs[0], []), batch)
        reader = READERS.get(f"{name.removesuffix('_')}.{overload}")
        try:
            if name in TELLING:
                raise Unread(TELLING[name])
            for argument in node.names():
                if isinstance(before := self.reads.get(argument), Unread):
                    raise before
            if reader is None:
                raise Unread(f"{node.op.removesuffix('.default')}")
            found: Read = reader(call)
        except Unread as error:
            found = error
        self._unread({other for name in written for other in self.same.get(name, {name})})
        self.reads |= dict.fromkeys(node.outputs, found)
        if len(written) == 1 and reader is not None and written == [node.arguments.get("self")]:
            self.reads[written[0]] = found

    def _share(self, node: Node) -> None:
        """Note which values may share memory after a call: those of a view, and of what is not known, all."""
        name, _, overload = node.op.partition(".")
        reader = READERS.get(f"{name.removesuffix('_')}.{overload}")
        shared = node.names() if reader is None else node.written()
        if reader in VIEWS:
            shared = [*shared, *(str(node.arguments[name]) for name in ("self", "input") if name in node.arguments)]
        together = {*node.outputs, *shared} & (self.program.shapes.keys() | self.program.tensors.keys())
        together = together.union(*(self.same.get(name, {name}) for name in together))
        self.same |= dict.fromkeys(together, together)

    def _unread(self, names: Iterable[str]) -> None:
        """Note that values were changed in place: what shares their memory is no longer what it was."""
        for name in names:
            self.reads[name] = Unread("a value that is changed in place under another name")
