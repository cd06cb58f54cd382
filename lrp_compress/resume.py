"""The same command again: what has finished is shown, what has not is continued, what failed beside it is repeated."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from lrp_compress.config import Config, FirmwareConfig, TrainConfig, config_hash, flatten
from lrp_compress.files import read_json, write_json
from lrp_compress.tracking.runs import open_run
from lrp_compress.tracking.tracker import Tracker

STAGES = "stages"  # folder of the finished stages, within a run's
RESULT = "result.json"  # final metrics, within a run's folder
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
        The run's folder. Another run's stages in it, and under ``force`` its own, are removed.
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
    """
    result, stamp = run_dir / RESULT, run_dir / "identity.json"
    identity = {"config_hash": config_hash(config), **identity}
    if config.force or not (stamp.exists() and read_json(stamp) == identity):
        result.unlink(missing_ok=True)
        shutil.rmtree(run_dir / STAGES, ignore_errors=True)
        write_json(stamp, identity)
    if result.exists() and not failures(read_json(result)):
        console.print(f"{config.run_name} has finished before; force=true runs it again.")
    else:
        with open_run(
            config.tracking,
            name=config.run_name,
            config_hash=identity["config_hash"],
            tags={"game": config.game.name, "run_dir": str(run_dir.resolve()), **tags},
            params=flatten(config),
            again=result.exists(),
        ) as tracker:
            metrics = work(tracker)
            tracker.metrics(metrics)
            tracker.artifact(run_dir / ".hydra")
        write_json(result, metrics)
    values: dict[str, float] = read_json(result)
    return values


def failures(metrics: Mapping[str, float]) -> list[str]:
    """Name what has failed beside a run's result, such as ``export/c``; the same command repeats it."""
    return [name.removesuffix(FAILED) for name, value in metrics.items() if name.endswith(FAILED) and value]
