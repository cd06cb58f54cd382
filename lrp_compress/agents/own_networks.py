"""Networks of one's own: a function that makes a module and a file with its weights, or a program of `torch.export`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lrp_compress.agents.architectures import State
from lrp_compress.agents.outputs import check_same, check_shape, policy_of, settled_head
from lrp_compress.networks.graph import Network
from lrp_compress.networks.programs import Program, read_program
from lrp_compress.networks.reading import BATCH, read_module, read_outputs, unknown_call
from lrp_compress.networks.spaces import Spaces
from lrp_compress.support.errors import UserError


def own_network(name: str, state: State, head: str, spaces: Spaces) -> Network:
    """Read a network of the user's own.

    Parameters
    ----------
    name : str
        ``package.module:function`` of a function without arguments that makes a `torch.nn.Module` from the
        environment's observations, of Atari uint8 and (N, 4, 84, 84) or (N, 84, 84, 4), to outputs of shape
        (N, actions); of an installed package or of the current folder.
    state : mapping of str to Tensor
        The module's ``state_dict``.
    head : {"auto", "q", "policy"}
        What the outputs are; a module does not say.
    spaces : Spaces
        What the environment gives and takes; of several outputs the one as wide as an action set is the policy's.

    Returns
    -------
    Network
        In evaluation mode, compared with the module on random observations.

    Raises
    ------
    UserError
        If there is no such function, it makes no module, the weights are of another one, `head` is missing, or the
        network is none that is read.
    """
    source = f"teacher.network={name}"
    head = settled_head(head, None, source)
    module = _made(name, source)
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        raise UserError(f"{source} and the weights do not fit: {' '.join(str(error).split())[:300]}") from error
    return module_network(module, head, spaces, source)


def module_network(module: nn.Module, head: str, spaces: Spaces, source: str) -> Network:
    """Read the network that a module computes.

    Parameters
    ----------
    module : nn.Module
        As `own_network` has it made.
    head : {"q", "policy"}
        What its outputs are.
    spaces : Spaces
        As for `own_network`.
    source : str
        What errors call the module.

    Returns
    -------
    Network
        In evaluation mode, with weights of its own, compared with the module on random observations.

    Raises
    ------
    UserError
        If it is none that is read.
    """
    program = read_module(module, spaces.observations, source)
    output, network = _policy(program, head, spaces, source)

    place = program.outputs.index(output)

    def original(observations: Tensor) -> Tensor:
        outputs = tree_leaves(module(_laid_out(program, observations)))
        tensors: list[Tensor] = [one for one in outputs if isinstance(one, Tensor)]
        return tensors[place]

    check_same(network, original, source, BATCH + 3)  # of another number of observations a module may make another use
    return network


def program_network(content: bytes, head: str, spaces: Spaces, source: str) -> Network:
    """Read the network that a program of `torch.export` computes; nothing of the file is unpickled.

    Parameters
    ----------
    content : bytes
        What `torch.export.save` wrote of a module as `own_network` takes it.
    head, spaces
        As for `own_network`.
    source : str
        What errors call the file.

    Returns
    -------
    Network
        In evaluation mode, compared with the program on random observations.

    Raises
    ------
    UserError
        As `own_network` does, or if the file is damaged, of another version, or its weights are pickled.
    """
    head = settled_head(head, None, source)
    try:
        program = read_program(content)
    except Exception as error:  # of damaged archives and JSON, which share no base class
        raise UserError(f"{source} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if len(program.inputs) != 1 or program.given not in (torch.uint8, torch.float32):
        raise UserError(f"{source} takes {', '.join(program.inputs)[:200]}; it must take observations alone")
    batch, *shape = program.shapes[program.inputs[0]]
    check_shape(shape, spaces.observations, source)
    output, network = _policy(program, head, spaces, source)
    count = batch if isinstance(batch, int) else 4
    check_same(network, lambda given: program.run(_laid_out(program, given), output), source, count)
    return network


def _policy(program: Program, head: str, spaces: Spaces, source: str) -> tuple[str, Network]:
    output, network = policy_of(read_outputs(program, spaces.observations), head, spaces, source)
    if odd := unknown_call(program, output):
        raise UserError(f"{source} computes {odd}, which is not run")
    return output, network


def _laid_out(program: Program, observations: Tensor) -> Tensor:
    """Put the channels of pictures where the program has them."""
    last = tuple(program.shapes[program.inputs[0]][1:]) != observations.shape[1:]
    return observations.permute(0, 2, 3, 1).contiguous() if last else observations


def _made(name: str, source: str) -> nn.Module:
    where, _, function = name.partition(":")
    if not where or not function:
        raise UserError(f"{source} is no name of a function; write package.module:function")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = getattr(importlib.import_module(where), function)()
    except Exception as error:  # of the user's own code
        raise UserError(f"{source} fails with {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise UserError(f"{source} gives {type(module).__name__}, which is no torch.nn.Module")
    return module
