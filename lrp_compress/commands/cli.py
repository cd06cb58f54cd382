"""The command lines: compose the configuration, check it, run it; a user's mistake ends in one line.

Hydra makes a run's folder before it calls the task, turns exceptions of callbacks into warnings and prints errors in
its own way. So the check is a callback that leaves Hydra by an exception it lets pass, and `run_command` words all
errors.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lrp_compress import __version__
from lrp_compress.commands.arguments import written_out
from lrp_compress.commands.completion import answer_shell
from lrp_compress.commands.table import COMMANDS, REPORT, Command, config_groups, register_starts, split_verb
from lrp_compress.commands.wording import report
from lrp_compress.config.checks import check_config, check_storage, conf_dir, register_schemas, settings
from lrp_compress.config.schema import INCIDENTAL, Config, RootConfig, TrackingConfig, config_hash
from lrp_compress.support.errors import UserError
from lrp_compress.support.files import value_digest
from lrp_compress.support.processes import INTERRUPTED, TERMINATED, printing_never_fails, sigterm_exits

LONGEST_FOLDER_NAME = 96
STOPPED = {INTERRUPTED: "interrupted", TERMINATED: "terminated"}


# The sweep under way. Hydra tells its callbacks of it, and `run_command` needs it where Hydra has failed.
SWEEP: ContextVar[DictConfig | None] = ContextVar("sweep", default=None)


class Aborted(SystemExit):
    """Carries an exception, its cause, past Hydra's own handling."""


@contextlib.contextmanager
def past_hydra() -> Iterator[None]:
    """Let an exception of the block reach `run_command` untouched."""
    try:
        yield
    except Exception as error:
        raise Aborted(1) from error


class CheckFirst(Callback):
    """Refuses a wrong configuration before Hydra makes any folder (``hydra.callbacks`` in ``conf/``).

    Parameters
    ----------
    command : str
        A name in `COMMANDS`.
    """

    def __init__(self, command: str) -> None:
        self._command = COMMANDS[command]

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the configuration, then what it needs from outside."""
        with past_hydra():
            checked = check_config(settings(config), self._command.schema)
            importlib.import_module(self._command.module).preflight(checked)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Compose every job of a sweep and check its settings; one wrong job refuses the sweep before the first."""
        SWEEP.set(config)
        with past_hydra():
            if storage := config.hydra.sweeper.get("storage"):
                check_storage(str(storage))
            jobs = list(sweep_jobs(config))
            for number, job in enumerate(jobs):
                try:
                    check_config(settings(job), self._command.schema)
                except UserError as error:
                    which = f"job {number} ({' '.join(job.hydra.overrides.task)}): " if len(jobs) > 1 else ""
                    raise UserError(f"{which}{error}") from error

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the report of a sweep of which no job failed; `run_command` does it for the others."""
        with past_hydra():
            report_sweep(self._command, config)


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


def run_folder(root: DictConfig, schema: type[RootConfig]) -> str:
    """Name the folder of a run after its configuration, so that the same command finds it again."""
    try:
        config = check_config(settings(root), schema)
    except UserError:  # reported elsewhere; a sweep has made the folder by then
        return f"invalid-{value_digest(list(root.hydra.overrides.task))[:8]}"
    return f"{config.run_name}-{config_hash(config)}"


def job_label(root: DictConfig, schema: type[RootConfig]) -> str:
    """Begin the log's lines with the job's number and name, where several may run at once."""
    if root.hydra.mode != RunMode.MULTIRUN:
        return ""
    return f"#{root.hydra.job.num} {run_folder(root, schema).rpartition('-')[0]}: "


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


def run_job(command: Command, cfg: DictConfig) -> dict[str, float]:
    """Do what the command is for, for the job that Hydra has set up; its metrics are returned."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    config = check_config(cfg, command.schema)
    module = importlib.import_module(command.module)
    job = HydraConfig.get()
    swept = job.mode == RunMode.MULTIRUN
    if swept:  # a single run has had it, before its folder was made
        module.preflight(config)
    with logging_redirect_tqdm():  # lines of the log come above the progress bars, not into them
        metrics: dict[str, float] = module.run(
            config, Path(job.runtime.output_dir), Path(job.sweep.dir).name if swept else None
        )
    return metrics


def report_sweep(command: Command, config: DictConfig) -> None:
    """Write the report of a sweep of compressed agents, if it has got as far as a folder."""
    folder = Path(config.hydra.sweep.dir)
    if command.schema is Config and folder.is_dir():
        from rich.console import Console

        tracking = TrackingConfig(**OmegaConf.to_container(config.tracking, resolve=True))  # type: ignore[arg-type]
        elsewhere = importlib.import_module("lrp_compress.reporting.collections").Elsewhere(
            tracking, Path(config.cache_dir) / "downloads"
        )
        importlib.import_module("lrp_compress.reporting.publishing").report_sweep(
            folder, elsewhere, Console(markup=False)
        )


def stopped(end: KeyboardInterrupt | SystemExit) -> Any:
    """Say how to go on after Ctrl-C or SIGTERM; the exit code is returned, of any other end its own."""
    code = INTERRUPTED if isinstance(end, KeyboardInterrupt) else end.code
    if code in STOPPED:
        print(f"{STOPPED[code]}; the same command goes on from what has finished", file=sys.stderr, flush=True)
    return code


def register(command: Command) -> None:
    """Make known to Hydra and OmegaConf what the files in ``conf/`` refer to."""
    register_schemas()
    register_starts()
    resolvers: dict[str, Callable[..., str]] = {
        "run_folder": lambda *, _root_: run_folder(_root_, command.schema),
        "job_label": lambda *, _root_: job_label(_root_, command.schema),
        "config_groups": lambda *, _root_: config_groups(_root_, command),
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    # The jobs of a sweep inherit the cache of resolvers, and with it the folder's name.
    OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True, use_cache=True)


def main() -> None:
    """Run the command that the first argument names, ``lrp-compress train game=pong``; without one, compress."""
    try:
        verb, sys.argv[1:] = split_verb(sys.argv[1:])
    except UserError as error:
        sys.exit(report(error, Config, full=False))
    if verb == REPORT:
        importlib.import_module("lrp_compress.report").main()
    else:
        run_command(verb or "compress")


def run_command(name: str) -> None:
    """Run a command line and exit: 0 done, 1 failed, 2 a user's mistake, 130 interrupted, 143 terminated.

    Parameters
    ----------
    name : str
        A name in `COMMANDS`.
    """
    printing_never_fails()
    if "--version" in sys.argv[1:]:
        print(f"lrp_compress {__version__}")
        sys.exit()
    command = COMMANDS[name]
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
    register(command)
    answer_shell()
    codes: list[int] = []  # of the failed jobs of a sweep, those in this process

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command.start)
    def app(cfg: DictConfig) -> dict[str, float]:
        job = HydraConfig.get()
        if job.mode == RunMode.RUN:
            with past_hydra():
                return run_job(command, cfg)
        try:
            return run_job(command, cfg)
        except Exception as error:
            codes.append(report(error, command.schema, full, f"job {job.job.num} ({' '.join(job.overrides.task)}): "))
            raise  # Hydra goes on with the next job; its own sweeper raises the first error at the end

    try:
        sys.argv[1:] = written_out(sys.argv[1:], command)
        with sigterm_exits():
            app()
    except Aborted as aborted:
        sys.exit(report(aborted.__cause__ or aborted, command.schema, full))
    except (KeyboardInterrupt, SystemExit) as end:
        sys.exit(stopped(end))
    except Exception as error:
        if (sweep := SWEEP.get()) is not None:
            report_sweep(command, sweep)
        if codes:
            print(f"error: {len(codes)} of the sweep's jobs failed, see above", file=sys.stderr)
            sys.exit(min(codes))
        # What Hydra raises before any job is about the command line.
        mistake = UserError(str(error)) if isinstance(error, ValueError) else error
        sys.exit(report(mistake, command.schema, full))
