"""A network of one's own as a teacher: a function that makes the module, and a file with its weights."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch
from torch import nn

from lrp_compress.agents.layouts import State
from lrp_compress.networks.graph import Network, as_policy_network
from lrp_compress.networks.reading import read_module
from lrp_compress.networks.spaces import STACK
from lrp_compress.support.errors import UserError

TOLERANCE = 1e-3  # relative to the largest output


def own_network(name: str, state: State, head: str) -> Network:
    """Read a network of the user's own.

    Parameters
    ----------
    name : str
        ``package.module:function`` of a function without arguments that makes a `torch.nn.Module` from uint8
        observations of shape (N, 4, 84, 84) to outputs of shape (N, actions); of an installed package or of the
        current folder.
    state : mapping of str to Tensor
        The module's ``state_dict``.
    head : {"auto", "q", "policy"}
        What the outputs are; a module does not say.

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
    if head == "auto":
        raise UserError(f"{source} does not say what its outputs are; add teacher.head=q or teacher.head=policy")
    module = _made(name, source)
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        raise UserError(f"{source} and the weights do not fit: {' '.join(str(error).split())[:300]}") from error
    network = as_policy_network(read_module(module, source), head, source)
    observations = torch.randint(0, 256, (4, STACK, 84, 84), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with torch.inference_mode():
        theirs, ours = module(observations), network(observations)
    if (ours - theirs).abs().max() > TOLERANCE * max(1e-6, float(theirs.abs().max())):
        raise UserError(f"{source} computes something else than the layers that were read from it; it is not used")
    return network


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
