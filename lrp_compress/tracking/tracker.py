"""Where a run's numbers and files go while it is recorded."""

from __future__ import annotations

import functools
import json
import logging
import math
import sqlite3
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrp_compress.tracking.journal import Journal, content_digest
from lrp_compress.tracking.models import log_onnx

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

# What MLflow takes in one request: one for many metrics is some hundred times cheaper than one each.
BATCHES = {"metric": 1000, "param": 100, "tag": 100, "artifact": 1, "image": 1, "model": 1}
PARAM_CHARS = 6000  # of a parameter's value that MLflow takes

DESCRIPTION = "mlflow.note.content"  # tag that MLflow shows on top of a run's page, as Markdown

BUFFER_METRICS = 500
BUFFER_SECONDS = 5.0
RETRY_SECONDS = 60.0  # after which a store that has failed is asked again
REASON_CHARS = 300


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

    def image(self, image: Path, key: str, step: int = 0) -> None:
        """Show an image file at `step` of the series `key`, in the section named after the key's part before the slash.

        Parameters
        ----------
        image : Path
            The file.
        key : str
            Letters, digits, ``_ - . /`` and spaces, e.g. ``relevance/teacher``.
        step : int
            Position of the image on the slider.
        """

    def model(self, file: Path, name: str, example: Path, agent: Path) -> None:
        """Log an ONNX file as a model of the run, which ``models:/`` loads and serves.

        Parameters
        ----------
        file : Path
            The file; one input and one output, with any number of rows.
        name : str
            The model's, e.g. ``student``; one of the run that is called so is replaced.
        example : Path
            A ``.npy`` file with a batch that it can be tried with.
        agent : Path
            The same agent's own file, put beside it: ``teacher.source=models:/…`` reads that.
        """

    def address_of(self, artifact: str) -> str:
        """Say where a picture among the run's artifacts is, for Markdown in the run's description."""
        return artifact

    def flush(self) -> None:
        """Write the buffered metrics to the store."""


class MlflowTracker(Tracker):
    """Records one run in an MLflow store, by way of a journal.

    A store that fails does not fail the run: what it did not take waits in the journal, is offered again every minute,
    at the end, and when the same command is given another time.

    Parameters
    ----------
    client : MlflowClient
        Connection to the store.
    run_id : str
        An existing run.
    address : str
        The run's page in the user interface.
    journal : Journal
        What the run has recorded before; all of it, if another run of the store has it.
    """

    def __init__(self, client: MlflowClient, run_id: str, address: str, journal: Journal) -> None:
        self.run_id: str = run_id
        self.address: str = address
        self._client = client
        self._journal = journal
        self._flushed = time.monotonic()
        self._refused_at: float | None = None
        if journal.run_id != run_id:
            journal.hand_over(run_id, 0)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        now = time.time_ns() // 1_000_000
        for name, value in values.items():
            number = float(value)
            if math.isfinite(number):
                self._journal.add("metric", name, number, step=step, timestamp=now)
            elif self._journal.add("tag", f"not_finite.{name}", f"{number} at step {step}", once=True):
                logger.warning("%s is %s at step %d", name, number, step)
        late = time.monotonic() - self._flushed > BUFFER_SECONDS
        if late or len(self._journal.records) - self._journal.handed >= BUFFER_METRICS:
            self.flush()

    def params(self, values: Mapping[str, object]) -> None:
        for name, value in values.items():
            self._journal.add("param", name, _param_text(value), once=True)
        self.flush()

    def tags(self, values: Mapping[str, str]) -> None:
        for name, value in values.items():
            self._journal.add("tag", name, str(value))
        self.flush()

    def artifact(self, path: Path, folder: str | None = None) -> None:
        digest = content_digest(path)
        self._journal.add("artifact", path.name, digest, folder=folder, path=str(path.absolute()))
        self.flush()

    def image(self, image: Path, key: str, step: int = 0) -> None:
        self._journal.add("image", key, content_digest(image), step=step, path=str(image.absolute()))
        self.flush()

    def model(self, file: Path, name: str, example: Path, agent: Path) -> None:
        path, tried, own = (str(one.absolute()) for one in (file, example, agent))
        self._journal.add("model", name, content_digest(file), path=path, example=tried, agent=own)
        self.flush()

    def address_of(self, artifact: str) -> str:
        return f"get-artifact?path={urllib.parse.quote(artifact, safe='')}&run_uuid={self.run_id}"

    def flush(self) -> None:
        if self._refused_at is None or time.monotonic() - self._refused_at > RETRY_SECONDS:
            self._hand_over()

    def end(self) -> None:
        """Give the store all that it has not, and end the run; what it does not take waits for the next try."""
        if self._hand_over() and self._tried(lambda: self._client.set_terminated(self.run_id, "FINISHED")):
            self._journal.end()
        else:
            waits = "what is left of run %s waits in %s; the same command hands it over"
            logger.warning(waits, self.run_id, self._journal)

    def _hand_over(self) -> bool:
        self._flushed = time.monotonic()
        journal = self._journal
        while batch := journal.pending(BATCHES):
            if not self._tried(functools.partial(self._send, batch)):
                return False
            journal.hand_over(self.run_id, journal.handed + len(batch))
        return True

    def _tried(self, send: Callable[[], None]) -> bool:
        """Ask the store for something; say so in a line when it begins to fail and when it answers again."""
        try:
            send()
        except failures_of_stores() as error:
            if self._refused_at is None:
                reason = " ".join(str(error).split())[:REASON_CHARS]
                logger.warning("the run goes on, though its store fails (%s)", reason)
            self._refused_at = time.monotonic()
            return False
        if self._refused_at is not None:
            logger.info("the store answers again")
            self._refused_at = None
        return True

    def _send(self, records: Sequence[Mapping[str, Any]]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        client, run_id, kind = self._client, self.run_id, records[0]["kind"]
        if kind == "metric":
            points = [Metric(r["name"], r["value"], r["timestamp"], r["step"]) for r in records]
            client.log_batch(run_id, metrics=points)
        elif kind == "tag":
            client.log_batch(run_id, tags=[RunTag(r["name"], r["value"]) for r in records])
        elif kind == "param":
            known = client.get_run(run_id).data.params
            client.log_batch(run_id, params=[Param(r["name"], r["value"]) for r in records if r["name"] not in known])
        elif not Path(records[0]["path"]).exists():
            logger.warning("%s is gone and can no longer be recorded", records[0]["path"])
        elif kind == "artifact":
            client.log_artifact(run_id, records[0]["path"], records[0]["folder"])
        elif kind == "model":
            files = (Path(records[0][file]) for file in ("path", "example", "agent"))
            log_onnx(client, run_id, records[0]["name"], *files)
        else:
            import PIL.Image

            with PIL.Image.open(records[0]["path"]) as opened:
                key, step = records[0]["name"], records[0]["step"]
                client.log_image(run_id, opened.convert("RGB"), key=key, step=step, synchronous=True)


def _param_text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if len(text) <= PARAM_CHARS:
        return text
    note = f"... [cut, {len(text)} characters]"
    return text[: PARAM_CHARS - len(note)] + note


def failures_of_stores() -> tuple[type[Exception], ...]:
    """Name what MLflow raises where a store does not answer, is full, damaged or refuses."""
    from alembic.util.exc import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, CommandError, sqlite3.Error, OSError


def set_tags(client: MlflowClient, run_id: str, values: Mapping[str, str]) -> None:
    """Set tags of a run; a tag that exists is replaced."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(name, str(value)) for name, value in values.items()])
