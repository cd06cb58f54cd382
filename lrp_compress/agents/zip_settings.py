"""What a Stable-Baselines3 zip says of its agent in plain JSON: followed where it can be, else refused."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from lrp_compress.agents.architectures import Architecture
from lrp_compress.agents.outputs import check_shape
from lrp_compress.networks.spaces import Observations
from lrp_compress.support.errors import UserError

LIBRARIES = ("stable_baselines3.", "sb3_contrib.")  # whose classes are known
ACTIVATIONS = "torch.nn.modules.activation."
RAW_PIXELS = 255.0  # conv1 times this takes pixels in [0, 1] for pixels in [0, 255]


def check_settings(settings: Mapping[str, Any], architecture: Architecture, dense_layers: int, source: str) -> None:
    """Refuse an agent whose tensors look like a known network's but are used in another way.

    Parameters
    ----------
    settings : mapping
        The zip's JSON, empty for other files.
    architecture : Architecture
        Of the network that the tensors look like.
    dense_layers : int
        Dense layers below the output, of which the settings choose the activation of those that the extractor has not.
    source : str
        What errors call the agent.

    Raises
    ------
    UserError
        If its policy is a class of another library, its actions are not discrete, its features are extracted by another
        class, or another function follows its dense layers than in that network.
    """
    if not settings:
        return
    theirs = str(_part(settings, "policy_class").get("__module__", LIBRARIES[0]))
    if not theirs.startswith(LIBRARIES):
        raise UserError(f"{source}: its policy is a class of {theirs[:80]}, which may compute anything; it is not read")
    space = _class(_part(settings, "action_space").get(":type:"))
    if space != "Discrete":
        raise UserError(f"{source}: its action space is {space}, but only Discrete ones are played")
    policy = _part(settings, "policy_kwargs")
    named = policy.get("features_extractor_class")
    if named is not None and not (_class(named) == architecture.extractor and _path(named).startswith(LIBRARIES)):
        raise UserError(
            f"{source}: its features are extracted by {_path(named)}; only {architecture.extractor} is read"
        )
    named = policy.get("activation_fn")
    chosen = dense_layers - (architecture.convolutions > 0)  # a convolutional extractor ends with one of its own
    if chosen > 0 and named is not None and _path(named) != f"{ACTIVATIONS}{architecture.activation}":
        raise UserError(
            f"{source}: {_path(named)} follows its dense layers; only {architecture.activation} is computed here"
        )


def check_actions(settings: Mapping[str, Any], actions: int, source: str) -> None:
    """Refuse an agent whose outputs are not one for each of its actions."""
    if settings and stated_actions(settings, source) != actions:
        raise UserError(f"{source}: it has {actions} outputs for {stated_actions(settings, source)} actions")


def stated_actions(settings: Mapping[str, Any], source: str) -> int:
    """Read the number of actions from the zip's JSON."""
    try:
        count = int(_part(settings, "action_space")["n"])
    except (KeyError, TypeError, ValueError, OverflowError):
        count = 0
    if count < 1:
        raise UserError(f"{source}: its action_space.n is no number of actions")
    return count


def check_pictures(settings: Mapping[str, Any], observations: Observations, source: str) -> None:
    """Refuse an agent that was given pictures of another size; its convolutions do not tell.

    Raises
    ------
    UserError
        If the zip says such a size.
    """
    space = _part(settings, "observation_space")
    shape = space.get("_shape", space.get("shape"))
    if isinstance(shape, list):
        check_shape(shape, observations, source)


def input_scale(settings: Mapping[str, Any], source: str) -> float:
    """Say what conv1 has to be multiplied by: agents may have seen pixels that were not divided by 255.

    Raises
    ------
    UserError
        If they have seen others than bytes, or numbers up to 1 or 255, or it is not said whether they were divided.
    """
    space = _part(settings, "observation_space")
    dtype = str(space.get("dtype", "uint8"))[:80]
    low, high = (_bound(space.get(name, default)) for name, default in (("low", 0), ("high", RAW_PIXELS)))
    if (low, high) != (0.0, RAW_PIXELS) and not ((low, high) == (0.0, 1.0) and "float" in dtype):
        raise UserError(
            f"{source}: its pixels are {dtype} from {low} to {high}; read are bytes, or floats up to 1 or 255"
        )
    if dtype != "uint8":  # which the library does not divide
        return high
    divided = _part(settings, "policy_kwargs").get("normalize_images", True)
    if divided not in (True, False, "True", "False"):  # also 1 and 0; as NumPy prints its own
        raise UserError(f"{source}: its normalize_images is {str(divided)[:80]}, neither true nor false")
    return 1.0 if divided in (True, "True") else RAW_PIXELS


def _bound(printed: object) -> float:
    """Read the one number that an array as numpy prints it consists of; nan if there are others."""
    numbers = {float(number) for number in re.findall(r"-?(?:\d+\.?\d*(?:e[-+]?\d+)?|inf)", str(printed))}
    return numbers.pop() if len(numbers) == 1 else math.nan


def _part(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = settings.get(name)
    return part if isinstance(part, dict) else {}


def _path(named: object) -> str:
    """Take the class out of what Python says of it, alone or in a `functools.partial`, with the module it is in."""
    paths: list[str] = re.findall(r"<class '([^']+)'>", str(named))
    return (paths[0] if len(paths) == 1 else str(named))[:80]


def _class(named: object) -> str:
    """Take the last part of what Python says of a class, ``<class 'torch.nn.modules.activation.Tanh'>``."""
    words: list[str] = re.findall(r"\w+", str(named)) or ["nothing"]
    return words[-1][:80]
