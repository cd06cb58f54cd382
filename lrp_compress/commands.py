"""The commands of the package: what each runs, its groups, and how its arguments may be spelled."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf

from lrp_compress.checks import conf_dir, options
from lrp_compress.config import Config, FirmwareConfig, PlayConfig, RootConfig, TrainConfig
from lrp_compress.errors import unknown_name


@dataclass(frozen=True)
class Command:
    """A command of the package.

    Attributes
    ----------
    config : str
        Name of its file in ``conf/``.
    schema : type
        Dataclass of its configuration.
    module : str
        Module with its ``preflight(config)`` and ``run(config, run_dir, sweep)``; slow to import, so only when needed.
    optional : tuple of str
        Groups without a default.
    shorthand : mapping of str to str
        Starts of arguments, and what Hydra wants in their place: it takes groups without a default only with a +,
        keys of a free mapping only with ++, and users need not know.
    """

    config: str
    schema: type[RootConfig]
    module: str
    optional: tuple[str, ...]
    shorthand: Mapping[str, str]


COMMANDS = {
    "compress": Command(
        "config",
        Config,
        "lrp_compress.pipeline",
        ("game", "experiment", "search"),
        {
            "game=": "+game=",
            "experiment=": "+experiment=",
            "search=": "+search=",
            "search.": "hydra.sweeper.",
            "prune.layer_ratios": "++prune.layer_ratios",
        },
    ),
    "train": Command(
        "train",
        TrainConfig,
        "lrp_compress.training.run",
        ("game",),
        {"game=": "+game=", "algorithm=": "train=", "train.hyperparameters": "++train.hyperparameters"},
    ),
    "play": Command(
        "play",
        PlayConfig,
        "lrp_compress.watching",
        ("game",),
        {"game=": "+game=", "agent=": "teacher.source="},
    ),
    "firmware": Command("firmware", FirmwareConfig, "lrp_compress.microcontroller", ("game",), {"game=": "+game="}),
}


REPORT = "report"  # has a command line of its own, without settings


def split_verb(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Take the command's name from the arguments, ``train game=pong``, if they begin with one.

    Raises
    ------
    UserError
        If they begin with a word that is no command.
    """
    first = arguments[0] if arguments else ""
    if not first.isidentifier():  # settings have a =, flags begin with a -
        return None, list(arguments)
    if first not in (*COMMANDS, REPORT):
        raise unknown_name("command", first, (*COMMANDS, REPORT))
    return first, list(arguments[1:])


def default_options(command: Command) -> dict[str, str]:
    """Map a command's groups to the options they have by default, or to nothing."""
    chosen = dict.fromkeys(command.optional, "")
    for entry in OmegaConf.load(conf_dir() / f"{command.config}.yaml").defaults:
        if isinstance(entry, DictConfig):
            chosen |= {str(group): str(option) for group, option in entry.items()}
    return dict(sorted(chosen.items()))


def config_groups(command: Command) -> str:
    """List a command's groups and their options, for ``--help``."""
    lines = []
    for group, default in default_options(command).items():
        names = [f"{name}*" if name == default else name for name in options(group)]
        lines += textwrap.wrap(f"{group:<11} {', '.join(names)}", 110, subsequent_indent=" " * 12)
    return "\n".join(lines)


def written_out(arguments: Sequence[str], shorthand: Mapping[str, str]) -> list[str]:
    """Write arguments the way Hydra wants them: ``game=pong -m`` becomes ``-m +game=pong``."""
    settings = get_args_parser().parse_intermixed_args(arguments).overrides
    flags = list(arguments)
    for setting in settings:
        flags.remove(setting)
    return flags + [
        next((long + setting[len(short) :] for short, long in shorthand.items() if setting.startswith(short)), setting)
        for setting in settings
    ]
