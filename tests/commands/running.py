"""What the tests of the command line share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from lrp_compress.commands.table import COMMANDS
from lrp_compress.config.checks import conf_dir

REPOSITORY = Path(__file__).parents[2]
NOT_KEPT = {
    "HYDRA_FULL_ERROR",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "MPLBACKEND",
    "DISPLAY",
    "WAYLAND_DISPLAY",
}
Command = Callable[..., subprocess.CompletedProcess[str]]


def environment(**extra: str) -> dict[str, str]:
    """Environment of a command: this checkout's package, one thread as in all tests, and no screen."""
    kept = {key: value for key, value in os.environ.items() if key not in NOT_KEPT}
    return {**kept, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **extra}


def default_options(name: str) -> dict[str, str]:
    """Map a command's groups to the options they have by default, or to nothing."""
    chosen = dict.fromkeys(COMMANDS[name].optional, "")
    for entry in OmegaConf.load(conf_dir() / f"{COMMANDS[name].config}.yaml").defaults:
        if isinstance(entry, DictConfig):
            chosen |= {str(group): str(option) for group, option in entry.items()}
    return chosen
