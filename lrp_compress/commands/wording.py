"""Errors on the terminal: a user's mistake in one line, any other with its traceback.

Hydra and OmegaConf raise errors that span lines and suggest things that do not help here; they are worded anew.
"""

from __future__ import annotations

import errno
import re
import sys
import traceback

import yaml
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from lrp_compress.config.checks import omegaconf_message, unknown_key
from lrp_compress.config.schema import RootConfig, SearchConfig
from lrp_compress.support.errors import GivenUp, UserError, printable, unknown_name

MISTAKES = (UserError, HydraException, OmegaConfBaseException, yaml.YAMLError, MemoryError)
SEARCH = "hydra.sweeper."  # users write search.
TYPED = {"train": "algorithm"}  # what users write for a group, where that is not its name
# What Hydra says, and what is said instead.
WORDINGS = {
    r"Multiple values for /?([^.]+)\.": (
        r"\1 is chosen more than once; choose it once, as \1=OPTION without a +, in an experiment's file as "
        r"'override /\1: OPTION'"
    ),
    r"In '([^']+)': Could not override '([^']+)'": (
        r"\1.yaml overrides \2, which is in no defaults list; mend the name, or put '\2: null' into the list of your "
        "primary configuration"
    ),
    r"Cannot find primary config '([^']+)'": r"there is no \1.yaml in conf/ or in the folder that --config-dir names",
    r"Ambiguous value for argument '(.*)'": r"\1 lists several values; add -m to run each of them",
    r"In 'hydra/launcher/(\w+)': Could not load": r"hydra/launcher=\1 needs a plugin: pip install 'lrp_compress[\1]'",
}
# Folders and disks that cannot be written to are the user's to put right.
UNWRITABLE = {errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS}


def one_line(error: BaseException, schema: type[RootConfig]) -> str:
    """Word a mistake in one line that names what was given and what is allowed.

    Parameters
    ----------
    error : BaseException
        An error of ours, or of Hydra or OmegaConf, whose texts span lines and suggest things that do not help here.
    schema : type
        Dataclass of the configuration.

    Returns
    -------
    str
        One line.
    """
    text, cause = str(error), error.__cause__
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return str(unknown_name(TYPED.get(group, group), name, error.options))
    if lacking := _lacking(error):
        return lacking
    if match := re.match(r"Could not override '([^']+)'|Override ([^=]+)\S+ looks like a config group", text):
        return _unknown(match[1] or match[2], schema)
    for pattern, wording in WORDINGS.items():
        if match := re.match(pattern, text):
            return match.expand(wording)
    if match := re.match(r"In '([^']+)': \w+ raised while composing config:\n(.*)(?:\n\s*full_key: (\S*))?", text):
        return f"{match[1]}.yaml: {match[3] or ''}: {match[2]}"
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override}; write KEY=VALUE, and quote a value with spaces, commas or brackets"
    if isinstance(error, OmegaConfBaseException):
        text = omegaconf_message(error)
    elif isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        text = _refused(text.removeprefix("Error merging override "), str(cause))
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def _lacking(error: BaseException) -> str | None:
    if isinstance(error, MemoryError):
        return (
            f"there is not enough memory ({str(error)[:200] or 'none is left'}); lower the settings that say how many"
        )
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return f"cannot write {error.filename}: {error.strerror}; mend that or choose another folder, then repeat"
    return None


def _refused(given: str, why: str) -> str:
    if "is not a ListConfig" in why:
        key, _, value = given.partition("=")
        return f"{given} is not a list; write '{key}=[{value}]'"
    return f"{given}: {why.splitlines()[0]}"


def _unknown(key: str, schema: type[RootConfig]) -> str:
    if key.startswith(SEARCH):
        return f"search: {unknown_key(key.removeprefix(SEARCH), SearchConfig)}"
    return f"there is no setting {key}; see --hydra-help" if key.startswith("hydra") else str(unknown_key(key, schema))


def report(error: BaseException, schema: type[RootConfig], full: bool, job: str = "") -> int:
    """Print an error, a mistake of the user's in one line and any other with its traceback.

    Parameters
    ----------
    error : BaseException
        What went wrong.
    schema : type
        Dataclass of the configuration.
    full : bool
        Print the traceback of a mistake too.
    job : str
        Which job of a sweep failed; empty for a single run.

    Returns
    -------
    int
        The exit code: 2 for a mistake, 1 otherwise.
    """
    mistake = isinstance(error, MISTAKES) or (isinstance(error, OSError) and error.errno in UNWRITABLE)
    if full or not mistake:
        traceback.print_exception(error)
    if mistake or job:
        line = one_line(error, schema) if mistake else f"{type(error).__name__}: {one_line(error, schema)}"
        said = f"{'' if isinstance(error, GivenUp) else 'error: '}{job}{line}"
        print(printable(said), file=sys.stderr, flush=True)
    return 2 if mistake else 1
