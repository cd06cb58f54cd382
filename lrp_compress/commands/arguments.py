"""Arguments as users write them, and as Hydra wants them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Container, Sequence
from pathlib import Path
from typing import NoReturn

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.types import RunMode

from lrp_compress.commands.table import Command
from lrp_compress.config.checks import conf_dir
from lrp_compress.support.errors import UserError

# Hydra's own --help lists all groups twice before it prints anything, which takes longer than all else.
PRINT_HELP = ["--cfg", "all", "--package", "hydra.help.template"]


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments."""
        raise UserError(f"{message}; --help says what there is")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Tell Hydra's flags from the settings, which are the ``overrides``, in any order.

    Raises
    ------
    UserError
        For a flag that Hydra does not have, or one without its value.
    """
    return Parser(add_help=False, parents=[get_args_parser()]).parse_intermixed_args(arguments)


def written_out(arguments: Sequence[str], command: Command) -> list[str]:
    """Write arguments the way Hydra wants them: ``+game=pong search.n_trials=9 -m`` is ``-m game=pong ...``.

    Parameters
    ----------
    arguments : sequence of str
        As typed.
    command : Command
        Whose they are.

    Returns
    -------
    list of str
        Flags first, which may stand anywhere.

    Raises
    ------
    UserError, HydraException
        For flags that cannot be read, and a primary configuration that cannot be found.
    """
    typed = parse(arguments)
    flags = list(arguments)
    for setting in typed.overrides:
        flags.remove(setting)
    listed = command.optional if typed.config_name is None else groups_listed(typed)
    settings = [_written_out(setting, command, listed) for setting in typed.overrides]
    return [*(places(typed) + PRINT_HELP if typed.help else flags), *settings]


def places(typed: argparse.Namespace) -> list[str]:
    """Give the flags that say where the configuration is, as they were typed."""
    named = {"--config-path": typed.config_path, "--config-name": typed.config_name, "--config-dir": typed.config_dir}
    return [f"{flag}={value}" for flag, value in named.items() if value is not None]


def groups_listed(typed: argparse.Namespace) -> Container[str]:
    """Collect the groups in the defaults list of a primary configuration of the user's own."""
    version.setbase("1.3")  # may come before hydra.main, which does the same
    path = create_config_search_path(typed.config_path or str(conf_dir()))
    if typed.config_dir is not None:
        own = f"file://{Path(typed.config_dir).absolute()}"
        path.prepend("command-line", own, SearchPathQuery(provider="schema"))
    searched = [setting for setting in typed.overrides if setting.startswith("hydra.searchpath=")]
    listed: Container[str] = (
        ConfigLoaderImpl(path)
        .compute_defaults_list(typed.config_name, searched, RunMode.MULTIRUN)
        .overrides.known_choices
    )
    return listed


def _written_out(setting: str, command: Command, listed: Container[str]) -> str:
    match = re.match(r"\+?(\w+)=", setting)
    if match and match[1] in command.optional:
        plus = "" if match[1] in listed else "+"  # Hydra adds to a defaults list only with one
        return plus + setting.removeprefix("+")
    for short, long in command.shorthand.items():
        if setting.startswith(short):
            return long + setting.removeprefix(short)
    return setting
