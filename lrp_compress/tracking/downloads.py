"""Files out of an MLflow store."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from lrp_compress.config.schema import TrackingConfig
from lrp_compress.support.errors import UserError
from lrp_compress.support.files import write_json
from lrp_compress.tracking.connections import import_mlflow
from lrp_compress.tracking.journal import JOURNAL, Journal
from lrp_compress.tracking.runs import finished_runs
from lrp_compress.tracking.stores import resolve_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RESULT = "result.json"  # final metrics, in a run's folder
SCHEMES = ("runs:/", "models:/", "mlflow-artifacts:/")


def download(uri: str, folder: Path, config: TrackingConfig) -> Path:
    """Copy an artifact or a registered model to this machine.

    Parameters
    ----------
    uri : str
        E.g. ``runs:/<run id>/student.safetensors`` or ``models:/<name>/<version>`` or
        ``models:/<name>@<alias>``.
    folder : Path
        Where to put it; made if missing.
    config : TrackingConfig
        The store.

    Returns
    -------
    Path
        The file, or the folder of a model.

    Raises
    ------
    UserError
        If nothing is tracked, or the store has no such artifact.
    """
    if config.uri is None:
        raise UserError(f"{uri} needs an MLflow store, but tracking.uri is null; choose tracking=sqlite or server")
    import_mlflow()
    import mlflow
    from mlflow.exceptions import MlflowException

    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    store = resolve_uri(config.uri)
    try:
        address = _registered(mlflow.MlflowClient(store), uri)
        return Path(mlflow.artifacts.download_artifacts(address, dst_path=str(folder), tracking_uri=store))
    except (MlflowException, OSError) as error:
        with contextlib.suppress(OSError):  # it holds what was there before
            folder.rmdir()
            folder.parent.rmdir()
        raise UserError(f"{uri} is not in {store}: {' '.join(str(error).split())[:200]}") from error


def download_of_run(config_hash: str, artifact: str, folder: Path, config: TrackingConfig) -> Path:
    """Copy an artifact of the newest finished run of a configuration to this machine.

    Parameters
    ----------
    config_hash : str
        The run's identity (`config.config_hash`).
    artifact : str
        E.g. ``student.safetensors``.
    folder : Path
        Where to put it, in a folder of the run's own.
    config : TrackingConfig
        The store.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    UserError
        If nothing is tracked, or the store has no such run or it no such artifact.
    """
    run_id = _newest("config_hash", config_hash, config).info.run_id
    return download(f"runs:/{run_id}/{artifact}", folder / run_id, config)


def download_folder(run_dir: str, folder: Path, config: TrackingConfig) -> Path:
    """Copy what a report reads of a finished run on another machine, laid out as the run's folder is there.

    Parameters
    ----------
    run_dir : str
        The run's folder on its machine.
    folder : Path
        Where to put it, in a folder of the run's own.
    config : TrackingConfig
        The store.

    Returns
    -------
    Path
        A folder of the same name.

    Raises
    ------
    UserError
        If nothing is tracked, or the store has no such run or not its files.
    """
    run = _newest("run_dir", run_dir, config)
    local = folder / str(run.info.run_id) / Path(run_dir).name
    if not (local / RESULT).exists():
        for artifact in (".hydra", "stages", "figures"):
            download(f"runs:/{run.info.run_id}/{artifact}", local, config)
        Journal(local / JOURNAL).hand_over(run.info.run_id, 0)
        write_json(local / RESULT, run.data.metrics)
    return local


def _newest(tag: str, value: str, config: TrackingConfig) -> Run:
    runs = finished_runs(config, f"tags.{tag} = '{value}'")
    if not runs:
        raise UserError(f"no finished run {value} in {config.uri}")
    return runs[0]


def _registered(client: MlflowClient, uri: str) -> str:
    """Look up where a registered model's files are; MLflow's own download asks the process-wide store instead."""
    if match := re.fullmatch(r"models:/([^/@]+)/(\d+)", uri):
        return str(client.get_model_version_download_uri(match[1], match[2]))
    if match := re.fullmatch(r"models:/([^/@]+)@(.+)", uri):
        version = client.get_model_version_by_alias(match[1], match[2])
        return str(client.get_model_version_download_uri(match[1], version.version))
    return uri
