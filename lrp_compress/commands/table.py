"""The commands of the package: what each runs, its groups, and how its arguments may be spelled."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigSource
from omegaconf import DictConfig

from lrp_compress.config.schema import Config, FirmwareConfig, PlayConfig, RootConfig, TrainConfig
from lrp_compress.support.errors import UserError, did_you_mean


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
        Starts of arguments, and what Hydra wants in their place: it takes keys of a free mapping only with ++, and
        users need not know.
    """

    config: str
    schema: type[RootConfig]
    module: str
    optional: tuple[str, ...]
    shorthand: Mapping[str, str]

    @property
    def start(self) -> str:
        """Name of the configuration that Hydra starts from unless users name their own."""
        return f"{self.config}_start"


COMMANDS = {
    "compress": Command(
        "config",
        Config,
        "lrp_compress.pipeline",
        ("game", "experiment", "search"),
        {"search.": "hydra.sweeper.", "prune.layer_ratios": "++prune.layer_ratios"},
    ),
    "train": Command(
        "train",
        TrainConfig,
        "lrp_compress.commands.train",
        ("game",),
        {"algorithm=": "train=", "train.hyperparameters": "++train.hyperparameters"},
    ),
    "play": Command("play", PlayConfig, "lrp_compress.commands.play", ("game",), {"agent=": "teacher.source="}),
    "firmware": Command("firmware", FirmwareConfig, "lrp_compress.commands.firmware", ("game",), {}),
}


REPORT = "report"  # has a command line of its own, without settings
HELP = "help"
VERBS = (*COMMANDS, REPORT, HELP)


def split_verb(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Take the command's name from the arguments, ``train game=pong``, if they begin with one.

    ``help train`` is ``train --help``.

    Raises
    ------
    UserError
        If they begin with a word that is no command.
    """
    first = arguments[0] if arguments else ""
    if first == HELP:
        return split_verb([*arguments[1:], "--help"])
    if not first.isidentifier():  # settings have a =, flags begin with a -
        return None, list(arguments)
    if first not in VERBS:
        hint = did_you_mean(first, VERBS)
        raise UserError(f"there is no command {first}{hint}; there are: {', '.join(VERBS)}; settings are KEY=VALUE")
    return first, list(arguments[1:])


def register_starts() -> None:
    """Make known to Hydra what the commands start from: their file in ``conf/``, then a place for each optional group.

    The places are not in the files, so that a primary configuration of a user's own can name a file and then its game.
    """
    for command in COMMANDS.values():
        places = [{group: None} for group in command.optional]
        ConfigStore.instance().store(name=command.start, node={"defaults": [command.config, *places]})


def config_groups(config: DictConfig, command: Command) -> str:
    """List the groups and their options, with those that the user's own folders add, for ``--help``.

    Parameters
    ----------
    config : DictConfig
        The composed configuration, with Hydra's node.
    command : Command
        Whose it is.

    Returns
    -------
    str
        A line or more for each group; what is chosen unless something else is said has a star.
    """
    plugins = cast(list[type[ConfigSource]], Plugins.instance().discover(ConfigSource))
    kinds = {kind.scheme(): kind for kind in plugins}
    runtime = config.hydra.runtime
    sources = [kinds[one.schema](one.provider, f"{one.schema}://{one.path}") for one in runtime.config_sources]
    lines = []
    for group, chosen in sorted({**dict.fromkeys(command.optional), **runtime.choices}.items()):
        holders = [source for source in sources if "/" not in group and source.is_group(group)]
        names = sorted({name for source in holders for name in source.list(group, ObjectType.CONFIG)})
        listed = ", ".join(f"{name}*" if name == chosen else name for name in names)
        lines += textwrap.wrap(f"{group:<11} {listed}", 110, subsequent_indent=" " * 12) if names else []
    return "\n".join(lines)
