"""The front of a study, evaluated anew.

The best of many noisy results are partly the luckiest (the winner's curse). So every student on the front plays again,
with seeds that no trial has seen and more episodes, against its teacher; the new figures decide who stays.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lrp_compress.agents.checkpoints import Agent, load_agent
from lrp_compress.config.schema import Config, SearchConfig, config_hash
from lrp_compress.search.objectives import OBJECTIVES, RETURN_KEPT, dominates, objective_values
from lrp_compress.search.studies import FRONT
from lrp_compress.stages.context import Run
from lrp_compress.stages.device_files import float_files
from lrp_compress.stages.judging import evaluate, measure
from lrp_compress.stages.metrics import agent_metrics, ratio_metrics
from lrp_compress.stages.playing import rollouts
from lrp_compress.stages.publishing import STUDENT
from lrp_compress.support.errors import UserError
from lrp_compress.support.files import write_json
from lrp_compress.support.seeding import stage_seed
from lrp_compress.tracking.downloads import download_of_run
from lrp_compress.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

FOLDER = "confirmed"  # within the sweep's


@dataclass(frozen=True)
class Candidate:
    """A trial on the front.

    Attributes
    ----------
    number : int
        The trial's.
    values : list of float
        Its objectives.
    config : Config
        Its configuration.
    run_dir : Path
        Its folder.
    """

    number: int
    values: list[float]
    config: Config
    run_dir: Path


@dataclass(frozen=True)
class Confirmed:
    """A candidate with what was seen when it was evaluated anew.

    Attributes
    ----------
    candidate : Candidate
        The trial.
    metrics : dict of str to float
        The new metrics of teacher and student.
    values : list of float
        The objectives among them.
    stays : bool
        Whether it is above the floor and no other candidate is better in everything.
    """

    candidate: Candidate
    metrics: dict[str, float]
    values: list[float]
    stays: bool


def confirm_front(
    candidates: Sequence[Candidate], config: SearchConfig, teacher: Agent, digest: str, folder: Path
) -> list[Confirmed]:
    """Evaluate the candidates anew and decide which make the final front.

    Parameters
    ----------
    candidates : sequence of Candidate
        The trials on the front.
    config : SearchConfig
        Objectives, floor, number of episodes.
    teacher : Agent
        The agent that all of them stem from.
    digest : str
        Digest of its file.
    folder : Path
        The sweep's folder; what is done already is read from there.

    Returns
    -------
    list of Confirmed
        In the candidates' order, without those whose students cannot be found; also written to ``front.json``.
    """
    students = {one.number: student for one in candidates if (student := _find_student(one)) is not None}
    candidates = [one for one in candidates if one.number in students]
    seen = [_evaluate_anew(one, students[one.number], config, teacher, digest, folder / FOLDER) for one in candidates]
    values = [objective_values(config.objectives, metrics) for metrics in seen]
    feasible = [config.floor is None or metrics[RETURN_KEPT] >= config.floor for metrics in seen]
    maximize = [OBJECTIVES[name].maximize for name in config.objectives]
    confirmed = []
    for i, candidate in enumerate(candidates):
        beaten = any(feasible[j] and dominates(values[j], values[i], maximize) for j in range(len(values)))
        confirmed.append(Confirmed(candidate, seen[i], values[i], feasible[i] and not beaten))
    write_json(folder / FRONT, [_record(one, config) for one in confirmed])
    return confirmed


def _find_student(candidate: Candidate) -> Agent | None:
    """Load a candidate's student from its folder, else from MLflow; say so if it is in neither."""
    own, path = candidate.config, candidate.run_dir / STUDENT
    try:
        if not path.exists():
            path = download_of_run(config_hash(own), STUDENT, Path(own.cache_dir) / "downloads", own.tracking)
        return load_agent(path)
    except UserError as error:
        logger.warning(
            "trial %d is left out of the confirmation: no %s in %s on this machine, and %s; give all workers one "
            "MLflow server (tracking=server), or run the same command where that folder is",
            candidate.number,
            STUDENT,
            candidate.run_dir,
            error,
        )
        return None


def _evaluate_anew(
    candidate: Candidate, student: Agent, config: SearchConfig, teacher: Agent, digest: str, folder: Path
) -> dict[str, float]:
    own = candidate.config
    episodes = dataclasses.replace(own.evaluate, episodes=config.confirm_episodes)
    anew = dataclasses.replace(own, evaluate=episodes, seed=stage_seed(own.seed, "confirm"))
    again = Run(anew, teacher, digest, folder / f"trial-{candidate.number}", Tracker())
    agents = {"teacher": teacher, "student": student}
    evaluations = {name: evaluate(again, agent, name) for name, agent in agents.items()}
    states = rollouts(Run(own, teacher, digest, folder, Tracker()))  # those that the trial has used
    latencies = measure(again, agents, float_files(again, agents), states)
    metrics = agent_metrics(agents, evaluations, latencies, {})
    return metrics | ratio_metrics(anew, metrics, evaluations, latencies)


def _record(one: Confirmed, config: SearchConfig) -> dict[str, object]:
    return {
        "trial": one.candidate.number,
        "run_dir": str(one.candidate.run_dir),
        "found": dict(zip(config.objectives, one.candidate.values, strict=True)),
        "confirmed": dict(zip(config.objectives, one.values, strict=True)),
        "on_front": one.stays,
        "metrics": one.metrics,
    }
