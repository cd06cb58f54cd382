"""Finished runs, read back from their folders."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.stats import t

from lrp_compress.config.schema import INCIDENTAL
from lrp_compress.environments.returns import BOOTSTRAP_SAMPLES, load_evaluation
from lrp_compress.stages.resume import STAGES
from lrp_compress.support.errors import UserError
from lrp_compress.support.files import read_json
from lrp_compress.tracking.journal import JOURNAL, recorded_as

# What reading a damaged file raises.
DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, ArithmeticError)
# Settings in which the runs of a group may differ.
NOT_SETTINGS = ("seed", *INCIDENTAL)


@dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes
    ----------
    folder : Path
        The run's.
    settings : dict
        Its configuration by dotted keys, as it was recorded.
    metrics : dict of str to float
        Its final metrics.
    returns : dict of str to ndarray of float
        Episodic returns of ``teacher``, ``student`` and, where there is one, its ``int8`` file.
    widths, teacher_widths : dict of str to int
        Channels per hidden layer of student and teacher.
    run_id : str
        The run's id in MLflow; empty if it was not recorded there.
    """

    folder: Path
    settings: dict[str, Any]
    metrics: dict[str, float]
    returns: dict[str, NDArray[np.float64]]
    widths: dict[str, int]
    teacher_widths: dict[str, int]
    run_id: str

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.settings["seed"])

    @property
    def criterion(self) -> str:
        """Name of the criterion."""
        return str(self.settings["criterion.name"])


@dataclass(frozen=True)
class Kept:
    """Share of the teacher's return that an agent keeps over some runs; nan where the game has no published scores.

    Attributes
    ----------
    mean : float
        Over the runs.
    low, high : float
        95 % interval. Over several seeds a t interval of their values (`seed_interval`), since what is asked is how
        another seed would fare. Of one seed alone the percentile bootstrap from resampling the episodes of teacher and
        agent, which knows nothing of other seeds.
    seeds : int
        How many there are.
    """

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def over(self) -> str:
        """What the interval counts as its sample."""
        return "games" if self.seeds == 1 else f"{self.seeds} seeds"


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed.

    Attributes
    ----------
    records : list of Record
        In the order of their seeds.
    kept : Kept
        By their students.
    int8_kept : Kept or None
        By the students' int8 files; none if a run has no such file.
    """

    records: list[Record]
    kept: Kept
    int8_kept: Kept | None

    def mean(self, metric: str) -> float:
        """Mean of a metric over the runs; nan where one has none."""
        return float(np.mean([record.metrics.get(metric, np.nan) for record in self.records]))


def find_runs(folder: Path) -> list[Record]:
    """Read all finished runs in a folder: a run's own, or a sweep's.

    Raises
    ------
    UserError
        If there is none, or a file of one of them is damaged.
    """
    results = sorted([*folder.glob("result.json"), *folder.glob("*/result.json")])
    records = [record for path in results if (record := _read(path.parent)) is not None]
    if not records:
        raise UserError(f"{folder} holds no finished run; name the folder of a sweep or of a run, e.g. under multirun/")
    return records


def read_runs(folders: Iterable[Path]) -> list[Record]:
    """Read the runs of some folders that are there and finished."""
    records = [_read(folder) for folder in dict.fromkeys(folders) if (folder / "result.json").exists()]
    return [record for record in records if record is not None]


def group_seeds(records: Sequence[Record]) -> list[Group]:
    """Put runs together that differ in nothing but their seed, in order of criterion and size."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[json.dumps(_settings(record), sort_keys=True, default=str)].append(record)
    made = [_group(sorted(own, key=lambda record: record.seed)) for own in groups.values()]
    return sorted(made, key=lambda group: (group.records[0].criterion, -group.mean("student/params")))


def differing(records: Sequence[Record]) -> list[str]:
    """Name the settings, but for the seed, in which the runs differ."""
    all_settings = [_settings(record) for record in records]
    names = dict.fromkeys(name for settings in all_settings for name in settings)
    return [name for name in names if len({str(settings.get(name)) for settings in all_settings}) > 1]


def _settings(record: Record) -> dict[str, Any]:
    return {name: value for name, value in record.settings.items() if name.partition(".")[0] not in NOT_SETTINGS}


def _read(folder: Path) -> Record | None:
    """Read a run; None if it is another command's, such as a training."""
    try:
        metrics = {str(name): float(value) for name, value in read_json(folder / "result.json").items()}
        if "student/return_mean" not in metrics:
            return None
        # nothing in it is resolved: what comes from elsewhere must not read this machine's environment
        recorded = yaml.load((folder / ".hydra" / "config.yaml").read_text(), _Plain)
        settings = dict(_leaves(recorded, ""))
        settings["game.name"], settings["criterion.name"], settings["game.title"]  # what all records have
        settings["seed"], settings["prune.ratio"] = int(settings["seed"]), float(settings["prune.ratio"])
        settings["game.random_score"] = (
            None if settings["game.random_score"] is None else float(settings["game.random_score"])
        )
        stages = folder / STAGES
        files = {"teacher": "teacher", "student": "student"}
        if "int8/return_mean" in metrics:
            files["int8"] = "int8-distilled" if metrics["int8/distilled"] else "int8"
        returns = {name: _returns(stages / f"evaluation-{own}.json") for name, own in files.items()}
        last = max(stages.glob("step-*"), key=lambda step: int(step.name.removeprefix("step-")))
        kept = {str(name): len(own) for name, own in read_json(last / "plan.json")["keep"].items()}
        scores = {str(name): len(own) for name, own in read_json(stages / "step-1" / "scores.json")["scores"].items()}
        run_id = recorded_as(folder / JOURNAL)
    except (*DAMAGED, yaml.YAMLError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{folder} is damaged ({reason}); run it again with force=true, or remove it") from error
    return Record(folder, settings, metrics, returns, kept, scores, run_id)


def _returns(path: Path) -> NDArray[np.float64]:
    returns = load_evaluation(path).returns.astype(float)
    if not len(returns) or not np.isfinite(returns).all():
        raise ValueError(f"{path.name} holds no finite returns")
    return returns


class _Plain(yaml.SafeLoader):  # type: ignore[misc]
    """YAML without aliases, of which a few lines can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("its configuration holds YAML aliases")
        return super().compose_node(parent, index)


def _group(records: list[Record]) -> Group:
    has_int8 = all("int8" in record.returns for record in records)
    return Group(records, _kept(records, "student"), _kept(records, "int8") if has_int8 else None)


def _kept(records: list[Record], agent: str) -> Kept:
    name = f"{agent}/return_kept"
    values = [record.metrics[name] for record in records if name in record.metrics]
    if len(values) < len(records):  # a game without a published random score
        return Kept(np.nan, np.nan, np.nan, len(records))
    low, high = _game_interval(records[0], agent) if len(records) == 1 else seed_interval(values)
    return Kept(float(np.mean(values)), low, high, len(records))


def seed_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean over seeds: Student's t with one degree of freedom less than there are seeds.

    The seeds are the sample, whatever number of games stands behind each: their values differ by the luck of the games
    and by what the seed has made of the agent, and only the spread of the values knows both. Resampling games, or a
    handful of seeds, gives intervals that are too narrow (``benchmarks/coverage.py``).

    Parameters
    ----------
    values : sequence of float
        One per seed, two at least.
    """
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def _game_interval(record: Record, agent: str) -> tuple[float, float]:
    random_score = record.settings["game.random_score"] or 0.0
    rng = np.random.default_rng(0)
    means = []
    for name in (agent, "teacher"):
        returns = record.returns[name]
        means.append(returns[rng.integers(len(returns), size=(BOOTSTRAP_SAMPLES, len(returns)))].mean(axis=1))
    low, high = np.quantile((means[0] - random_score) / (means[1] - random_score), [0.025, 0.975])
    return float(low), float(high)


def as_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Give one flat row per run: its folder, seed, settings that differ, and all metrics."""
    names = differing(records)
    rows = []
    for record in records:
        own = {"run": str(record.folder), "game": record.settings["game.name"], "seed": record.seed}
        rows.append(own | {name: record.settings.get(name) for name in names} | record.metrics)
    return rows


def _leaves(values: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
