"""The same command again: what has finished is shown, what has not is continued, what failed beside it is repeated."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from rich.console import Console

from lrp_compress.config.schema import Config, FirmwareConfig, TrainConfig, config_hash, flatten
from lrp_compress.support.errors import UserError
from lrp_compress.support.files import check_all_signed, read_json, told_damaged, write_json, write_text
from lrp_compress.tracking.journal import JOURNAL, Journal
from lrp_compress.tracking.runs import open_run
from lrp_compress.tracking.tracker import Tracker

STAGES = "stages"  # folder of the finished stages, within a run's
RESULT = "result.json"  # final metrics, within a run's folder
IDENTITY = "identity.json"  # kept twice, since without one no stage could be trusted
SETTINGS = ".hydra"  # folder of the settings, within a run's, as Hydra has it
LOCK = ".lock"  # held by the process that works in a run's folder
FAILED = "/failed"  # ends the name of a metric that is 1 where something beside the result has failed


def run_once(
    config: Config | TrainConfig | FirmwareConfig,
    run_dir: Path,
    identity: Mapping[str, str],
    tags: Mapping[str, str],
    work: Callable[[Tracker], dict[str, float]],
    console: Console,
) -> dict[str, float]:
    """Do a run, or go on with it, or find that it is done.

    Parameters
    ----------
    config : Config, TrainConfig or FirmwareConfig
        The checked configuration; its hash is part of the run's identity.
    run_dir : Path
        The run's folder. Under ``force`` the stages in it are removed.
    identity : mapping of str to str
        What else the results depend on.
    tags : mapping of str to str
        Of the run in MLflow.
    work : callable
        Does what is not done yet and returns the final metrics.
    console : Console
        Where a run that is done is mentioned.

    Returns
    -------
    dict of str to float
        The final metrics.

    Raises
    ------
    UserError
        If another process works in the folder, or it holds another run and `config` does not say ``force``.
    """
    with _claimed(run_dir):
        return _run_once(config, run_dir, {"config_hash": config_hash(config), **identity}, tags, work, console)


def _run_once(
    config: Config | TrainConfig | FirmwareConfig,
    run_dir: Path,
    identity: Mapping[str, str],
    tags: Mapping[str, str],
    work: Callable[[Tracker], dict[str, float]],
    console: Console,
) -> dict[str, float]:
    result, stamps = run_dir / RESULT, [run_dir / IDENTITY, run_dir / STAGES / IDENTITY]
    known = [_known(stamp, str) for stamp in stamps]
    before = next((one for one in known if one is not None), None)
    if before not in (None, identity) and not config.force:
        raise UserError(
            f"{run_dir} holds another run, made with other settings or another agent; choose another hydra.run.dir, or "
            "force=true to replace it"
        )
    if config.force or before is None:
        result.unlink(missing_ok=True)
        (run_dir / JOURNAL).unlink(missing_ok=True)
        shutil.rmtree(run_dir / STAGES, ignore_errors=True)  # under another identity, or nobody knows which
    for stamp, one in zip(stamps, known, strict=True):
        if one != identity or not stamp.exists():
            write_json(stamp, identity)
    _write_settings(run_dir / SETTINGS, config)
    finished = _known(result, float)
    journal = Journal(run_dir / JOURNAL)
    done = finished is not None and not failures(finished) and _is_whole(run_dir)
    if done and (journal.ended or not journal.records or config.tracking.uri is None):
        console.print(f"{config.run_name} has finished before; force=true runs it again.")
    else:
        with open_run(
            config.tracking,
            name=config.run_name,
            tags={
                "config_hash": identity["config_hash"],
                "game": config.game.name,
                "run_dir": str(run_dir.resolve()),
                **tags,
            },
            params=flatten(config),
            again=before is not None and not config.force,
            journal=journal,
        ) as tracker:
            if done:
                console.print(f"{config.run_name} has finished before; {config.tracking.uri} is given its records.")
            else:
                metrics = work(tracker)
                tracker.metrics(metrics)
                tracker.artifact(run_dir / SETTINGS)
                write_json(result, metrics)
    values: dict[str, float] = read_json(result)
    return values


@contextlib.contextmanager
def _claimed(run_dir: Path) -> Iterator[None]:
    """Keep other processes, also those of other containers, out of a run's folder; the lock ends with this process."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process works in {run_dir}; wait until it has finished, or stop it") from error
        yield


def _write_settings(folder: Path, config: Config | TrainConfig | FirmwareConfig) -> None:
    """Write what Hydra writes for a job, which it would do before anybody knows whose the folder is."""
    write_text(folder / "config.yaml", OmegaConf.to_yaml(config))
    if HydraConfig.initialized() and HydraConfig.get().output_subdir is None:  # else it is somebody else's job
        write_text(folder / "hydra.yaml", OmegaConf.to_yaml(HydraConfig.instance().cfg))
        write_text(folder / "overrides.yaml", OmegaConf.to_yaml(HydraConfig.get().overrides.task))


def _known(path: Path, kind: type) -> Any:
    """Read a mapping to values of a kind, or nothing where the file is not there or damaged."""
    try:
        values = read_json(path)
        if not isinstance(values, dict) or not all(type(value) in (kind, int) for value in values.values()):
            raise ValueError("it holds something else than was written")
        return values
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        told_damaged(path, error)
        return None


def _is_whole(run_dir: Path) -> bool:
    """Tell whether the files that a finished run has signed are as they were; if one is damaged, say so."""
    try:
        check_all_signed(run_dir)
    except (OSError, ValueError) as error:
        told_damaged(run_dir, error)
        return False
    return True


def failures(metrics: Mapping[str, float]) -> list[str]:
    """Name what has failed beside a run's result, such as ``export/c``; the same command repeats it."""
    return [name.removesuffix(FAILED) for name, value in metrics.items() if name.endswith(FAILED) and value]
