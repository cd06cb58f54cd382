"""The command line: compose the configuration, check it, run it; a user's mistake ends in one line.

Hydra makes a run's folder before it calls the task, turns exceptions of callbacks into warnings and prints errors in
its own way. So the check is a callback that leaves Hydra by an exception it lets pass, and `main` words all errors.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lrp_compress.checks import (
    check_config,
    conf_dir,
    groups,
    omegaconf_message,
    options,
    register_schema,
    unknown_key,
)
from lrp_compress.config import INCIDENTAL, Config, config_hash, run_name
from lrp_compress.errors import UserError, unknown_name
from lrp_compress.files import value_digest
from lrp_compress.processes import sigterm_exits

# What Hydra takes only with a + (groups without a default) or ++ (keys of a free mapping); users need not know.
PLUS = {"game=": "+", "experiment=": "+", "prune.layer_ratios": "++"}
MISTAKES = (UserError, HydraException, OmegaConfBaseException, yaml.YAMLError)
LONGEST_FOLDER_NAME = 96
# Folders and disks that cannot be written to are the user's to put right.
UNWRITABLE = {errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS}


class Aborted(SystemExit):
    """Carries an exception, its cause, past Hydra's own handling."""


@contextlib.contextmanager
def past_hydra() -> Iterator[None]:
    """Let an exception of the block reach `main` untouched."""
    try:
        yield
    except Exception as error:
        raise Aborted(1) from error


class CheckFirst(Callback):
    """Refuses a wrong configuration before Hydra makes any folder (``hydra.callbacks`` in ``conf/config.yaml``)."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the configuration, then what it needs from outside."""
        with past_hydra():
            checked = check_config(settings(config))
            from lrp_compress.pipeline import preflight

            preflight(checked)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Compose every job of a sweep; refuse the sweep if that fails, or if not one job is right."""
        with past_hydra():
            refusals = []
            for job in sweep_jobs(config):
                try:
                    check_config(settings(job))
                except UserError as error:
                    refusals.append(error)
                else:
                    return
            if refusals:
                raise refusals[0]


def settings(config: DictConfig) -> DictConfig:
    """Give the composed configuration without Hydra's own node."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def sweep_jobs(config: DictConfig) -> Iterator[DictConfig]:
    """Compose the jobs of a sweep over listed values, all before the first is given.

    Parameters
    ----------
    config : DictConfig
        The sweep's master configuration, with Hydra's node.

    Yields
    ------
    DictConfig
        Composed configurations with Hydra's node; none where a range is swept, whose values only its sweeper knows.
    """
    loader = GlobalHydra.instance().config_loader()
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(config.hydra.overrides.task))
    if any(override.is_sweep_override() and not override.is_discrete_sweep() for override in overrides):
        return
    choices = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [str(override.input_line)]
        for override in overrides
    ]
    yield from [loader.load_sweep_config(config, list(job)) for job in itertools.product(*choices)]


def run_folder(*, _root_: DictConfig) -> str:
    """Name the folder of a run after its configuration, so that the same command finds it again."""
    try:
        config = check_config(settings(_root_))
    except UserError:  # reported elsewhere; a sweep has made the folder by then
        return f"invalid-{value_digest(list(_root_.hydra.overrides.task))[:8]}"
    return f"{run_name(config)}-{config_hash(config)}"


def sweep_folder(overrides: Sequence[str]) -> str:
    """Name the folder of a sweep after what was typed, in any order, so that the same command finds it again.

    Parameters
    ----------
    overrides : sequence of str
        As typed, e.g. ``["+game=breakout", "prune.ratio=0.3,0.5"]``.

    Returns
    -------
    str
        E.g. ``breakout-prune.ratio=0.3,0.5``. What does not belong to a run's identity is left out; a name that had to
        be shortened or cleaned ends in a digest.
    """
    plain = sorted(override.lstrip("+") for override in overrides)
    plain = [override for override in plain if re.split(r"[.=@]", override)[0] not in INCIDENTAL]
    games = [override.removeprefix("game=") for override in plain if override.startswith("game=")]
    name = "-".join(games + [override for override in plain if not override.startswith("game=")]) or "sweep"
    clean = re.sub(r"[^\w.,=-]", "_", name, flags=re.ASCII).lstrip(".")
    if clean == name and len(name) <= LONGEST_FOLDER_NAME:
        return name
    return f"{clean[: LONGEST_FOLDER_NAME - 9]}-{value_digest(name)[:8]}"


def config_groups() -> str:
    """List the groups and their options, for ``--help``."""
    chosen: dict[str, str] = {}
    for entry in OmegaConf.load(conf_dir() / "config.yaml").defaults:
        if isinstance(entry, DictConfig):
            chosen |= {str(group): str(option) for group, option in entry.items()}
    lines = []
    for group in groups():
        names = [f"{name}*" if name == chosen.get(group) else name for name in options(group)]
        lines += textwrap.wrap(f"{group:<11} {', '.join(names)}", 110, subsequent_indent=" " * 12)
    return "\n".join(lines)


def add_plus(arguments: Sequence[str]) -> list[str]:
    """Write arguments the way Hydra wants them: ``game=pong`` becomes ``+game=pong``."""
    return [next((plus for start, plus in PLUS.items() if a.startswith(start)), "") + a for a in arguments]


def one_line(error: BaseException) -> str:
    """Word a mistake in one line that names what was given and what is allowed.

    Parameters
    ----------
    error : BaseException
        An error of ours, or of Hydra or OmegaConf, whose texts span lines and suggest things that do not help here.

    Returns
    -------
    str
        One line.
    """
    text, cause = str(error), error.__cause__
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return str(unknown_name(group, name, error.options))
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return f"cannot write {error.filename}: {error.strerror}; mend that or choose another folder, then repeat"
    if match := re.match(r"Could not override '([^']+)'|Override ([^=]+)\S+ looks like a config group", text):
        key = match[1] or match[2]
        return f"there is no setting {key}; see --hydra-help" if key.startswith("hydra") else str(unknown_key(key))
    if match := re.match(r"Multiple values for ([^.]+)\.", text):
        return f"{match[1]} is chosen more than once; choose it once, as {match[1]}=OPTION without a +"
    if match := re.match(r"Ambiguous value for argument '(.*)'", text):
        return f"{match[1]} lists several values; add -m to run each of them"
    if match := re.match(r"In '([^']+)': \w+ raised while composing config:\n(.*)(?:\n\s*full_key: (\S*))?", text):
        return f"{match[1]}.yaml: {match[3] or ''}: {match[2]}"
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override}; write KEY=VALUE, and quote a value with spaces, commas or brackets"
    if isinstance(error, OmegaConfBaseException):
        text = omegaconf_message(error)
    elif isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        text = f"{text.removeprefix('Error merging override ')}: {str(cause).splitlines()[0]}"
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def report(error: BaseException, full: bool, job: str = "") -> int:
    """Print an error, a mistake of the user's in one line and any other with its traceback.

    Parameters
    ----------
    error : BaseException
        What went wrong.
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
        line = one_line(error) if mistake else f"{type(error).__name__}: {one_line(error)}"
        print(f"error: {job}{line}", file=sys.stderr, flush=True)
    return 2 if mistake else 1


def run_job(config: Config) -> None:
    """Run the pipeline for the job that Hydra has set up."""
    from lrp_compress.pipeline import preflight, run  # they import torch, which --help and mistakes need not wait for

    job = HydraConfig.get()
    swept = job.mode == RunMode.MULTIRUN
    if swept:  # a single run has had it, before its folder was made
        preflight(config)
    run(config, Path(job.runtime.output_dir), Path(job.sweep.dir).name if swept else None)


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 a user's mistake, 130 interrupted, 143 terminated."""
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
    register_schema()
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
    # The jobs of a sweep inherit the cache of resolvers, and with it the folder's name.
    OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("config_groups", config_groups, replace=True)
    sys.argv[1:] = add_plus(sys.argv[1:])
    codes: list[int] = []  # of the failed jobs of a sweep

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def app(cfg: DictConfig) -> None:
        job = HydraConfig.get()
        if job.mode == RunMode.RUN:
            with past_hydra():
                run_job(check_config(cfg))
            return
        try:
            run_job(check_config(cfg))
        except Exception as error:
            codes.append(report(error, full, f"job {job.job.num} ({' '.join(job.overrides.task)}): "))
            raise  # Hydra goes on with the next job and raises the first error at the end

    try:
        with sigterm_exits():
            app()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    except Aborted as aborted:
        sys.exit(report(aborted.__cause__ or aborted, full))
    except Exception as error:
        if codes:
            print(f"error: {len(codes)} of the sweep's jobs failed, see above", file=sys.stderr)
            sys.exit(min(codes))
        # What Hydra raises before any job is about the command line.
        sys.exit(report(UserError(str(error)) if isinstance(error, ValueError) else error, full))
