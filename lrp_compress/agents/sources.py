"""Agent files that are somewhere else: on the Hugging Face hub or in an MLflow store."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from lrp_compress.agents.formats import AGENT_FILES
from lrp_compress.config.schema import TrackingConfig
from lrp_compress.support.errors import UserError
from lrp_compress.support.files import value_digest
from lrp_compress.tracking.downloads import SCHEMES, download

HUB = "hf://"


def local_file(source: str, cache_dir: Path, tracking: TrackingConfig) -> Path:
    """Bring a source to this machine.

    Parameters
    ----------
    source : str
        A path; ``hf://ORG/REPO/FILE`` or ``hf://ORG/REPO@REVISION/FILE`` (kept in the hub's own cache); or an MLflow
        address such as ``runs:/RUN_ID/student.safetensors`` or ``models:/NAME/VERSION``.
    cache_dir : Path
        Where files from MLflow are put.
    tracking : TrackingConfig
        The MLflow store, and how long to wait for a server.

    Returns
    -------
    Path
        A path as given (it may not exist), or that of the copy.

    Raises
    ------
    UserError
        If a server does not answer or has no such file.
    """
    if source.startswith(HUB):
        return _from_hub(source, tracking.timeout_s)
    if source.startswith(SCHEMES):
        return _single_agent(source, download(source, cache_dir / "downloads" / value_digest(source)[:16], tracking))
    if "://" in source:
        raise UserError(
            f"teacher.source={source} is an address; download the file and give its path, or name one on the Hugging "
            "Face hub as hf://ORG/REPO/FILE"
        )
    return Path(source)


def _from_hub(source: str, timeout_s: float) -> Path:
    # slow to import, and needed here alone
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    org, _, rest = source.removeprefix(HUB).partition("/")
    name, _, file = rest.partition("/")
    repo, _, revision = name.partition("@")
    if not file:
        raise UserError(f"teacher.source={source} is incomplete; write hf://ORG/REPO/FILE")
    if ".." in file.split("/"):
        raise UserError(f"teacher.source={source} names no file of the repository; write hf://ORG/REPO/FILE")
    try:
        cached = try_to_load_from_cache(f"{org}/{repo}", file, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
        _check_hub(source, constants.ENDPOINT, timeout_s)
        return Path(hf_hub_download(f"{org}/{repo}", file, revision=revision or None))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"teacher.source={source}: {' '.join(str(error).split())[:200]}") from error


def _check_hub(source: str, endpoint: str, timeout_s: float) -> None:
    """Find out at once that there is no connection; the hub's library tries for half a minute."""
    try:
        urllib.request.urlopen(endpoint, timeout=timeout_s).close()
    except urllib.error.HTTPError:
        return  # it answers
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"teacher.source={source}: {endpoint} does not answer within {timeout_s:g} s ({reason}); check the "
            "connection, or download the file elsewhere and give its path"
        ) from error


def _single_agent(source: str, path: Path) -> Path:
    if path.is_file():
        return path
    files = sorted(file for file in path.rglob("*") if file.suffix in AGENT_FILES)
    files = [file for file in files if file.suffix != ".onnx"] or files  # what was written of it beside an agent
    if len(files) != 1:
        names = ", ".join(str(file.relative_to(path)) for file in files) or "none"
        raise UserError(f"teacher.source={source} should hold one agent file, but there are {len(files)} ({names})")
    return files[0]
