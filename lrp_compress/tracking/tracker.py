"""Where a run's numbers and files go while it is recorded."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from mlflow import MlflowClient
    from mlflow.entities import Metric

logger = logging.getLogger(__name__)

# MLflow refuses larger requests and longer parameter values.
METRICS_PER_REQUEST = 1000
PARAMS_PER_REQUEST = 100
PARAM_CHARS = 6000

# One request for many metrics is some hundred times cheaper than one each.
BUFFER_METRICS = 500
BUFFER_SECONDS = 5.0


class Tracker:
    """Where a run's numbers and files go. This one keeps nothing; it stands in when ``tracking.uri`` is null.

    Attributes
    ----------
    run_id : str or None
        The run's id in the store.
    address : str or None
        The run's page in MLflow's user interface (for a SQLite store: once ``mlflow ui`` has been started).
    """

    run_id: str | None = None
    address: str | None = None

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record numbers under their names at `step`; buffered for up to 500 values or 5 s until the next call.

        NaN and infinities make no point on a curve: their first occurrence becomes the tag ``not_finite.<name>``.
        """

    def params(self, values: Mapping[str, object]) -> None:
        """Record parameters, flat names to values, as JSON scalars read (``null``, ``true``, ``0.5``).

        A parameter that the run already has keeps its value. A value over 6000 characters is cut and says so.
        """

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags; a tag that exists is replaced."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file, or a folder with what is in it, into the run's artifacts, below `folder`."""

    def image(self, image: Path | npt.NDArray[np.uint8], key: str, step: int = 0) -> None:
        """Show an image at `step` of the series `key`, in the section named after the key's part before the slash.

        Parameters
        ----------
        image : Path or array
            An image file, or uint8 pixels (H,W) or (H,W,3).
        key : str
            Letters, digits, ``_ - . /`` and spaces, e.g. ``relevance/teacher``.
        step : int
            Position of the image on the slider.
        """

    def flush(self) -> None:
        """Write the buffered metrics to the store."""


class MlflowTracker(Tracker):
    """Records one run in an MLflow store.

    Parameters
    ----------
    client : MlflowClient
        Connection to the store.
    run_id : str
        An existing run.
    address : str
        The run's page in the user interface.
    """

    def __init__(self, client: MlflowClient, run_id: str, address: str) -> None:
        self.run_id: str = run_id
        self.address: str = address
        self._client = client
        self._buffer: list[Metric] = []
        self._flushed = time.monotonic()
        self._not_finite: set[str] = set()

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        for name, value in values.items():
            number = float(value)
            if math.isfinite(number):
                self._buffer.append(Metric(name, number, now, step))
            elif name not in self._not_finite:
                self._not_finite.add(name)
                logger.warning("%s is %s at step %d", name, number, step)
                self.tags({f"not_finite.{name}": f"{number} at step {step}"})
        if len(self._buffer) >= BUFFER_METRICS or time.monotonic() - self._flushed > BUFFER_SECONDS:
            self.flush()

    def params(self, values: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        known = self._client.get_run(self.run_id).data.params
        new = [Param(name, _param_text(value)) for name, value in values.items() if name not in known]
        for first in range(0, len(new), PARAMS_PER_REQUEST):
            self._client.log_batch(self.run_id, params=new[first : first + PARAMS_PER_REQUEST])

    def tags(self, values: Mapping[str, str]) -> None:
        set_tags(self._client, self.run_id, values)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        self._client.log_artifact(self.run_id, str(path), folder)

    def image(self, image: Path | npt.NDArray[np.uint8], key: str, step: int = 0) -> None:
        if isinstance(image, Path):
            import PIL.Image

            with PIL.Image.open(image) as opened:
                self._client.log_image(self.run_id, opened.convert("RGB"), key=key, step=step, synchronous=True)
        else:
            self._client.log_image(self.run_id, image, key=key, step=step, synchronous=True)

    def flush(self) -> None:
        # What is not written stays in the buffer, so that a call that fails loses nothing.
        while self._buffer:
            self._client.log_batch(self.run_id, metrics=self._buffer[:METRICS_PER_REQUEST])
            del self._buffer[:METRICS_PER_REQUEST]
        self._flushed = time.monotonic()


def _param_text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if len(text) <= PARAM_CHARS:
        return text
    note = f"... [cut, {len(text)} characters]"
    return text[: PARAM_CHARS - len(note)] + note


def set_tags(client: MlflowClient, run_id: str, values: Mapping[str, str]) -> None:
    """Set tags of a run; a tag that exists is replaced."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(name, str(value)) for name, value in values.items()])
