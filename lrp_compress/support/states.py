"""What a learner needs to go on, in a file that appears whole or not at all."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lrp_compress.support.errors import UserError
from lrp_compress.support.files import atomic_path


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values."""
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_state(path: Path) -> dict[str, Any] | None:
    """Read what `save_state` wrote, if the file is there; only tensors and plain values, never other objects.

    Raises
    ------
    UserError
        If the file is damaged.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is no whole checkpoint; force=true starts anew") from error
    return state
