"""Studies on real databases: resumed, shared by workers, and never stopped by a trial."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pgserver
import pytest
import sqlalchemy
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from optuna.study import Study
from optuna.trial import Trial, TrialState

from lrp_compress.config.schema import SearchConfig, SpaceConfig
from lrp_compress.search.studies import OWNER, RETRY_OF, ask, close_dead, counts, open_study, storage_answers
from lrp_compress.search.trials import run_trials
from lrp_compress.support.errors import GivenUp, UserError
from lrp_compress.support.processes import owner
from tests.commands.forks import Forks
from tests.commands.running import REPOSITORY

pytestmark = pytest.mark.slow

METRICS = {"student/return_kept": 0.8, "student/speedup": 2.0, "student/speedup_spread": 0.1}
Ends = Callable[[int], dict[str, float]]


@pytest.fixture(scope="module")
def postgres() -> Iterator[pgserver.PostgresServer]:
    """A PostgreSQL server of its own; its user may not look into the folders of pytest."""
    with tempfile.TemporaryDirectory() as folder, pgserver.get_server(folder) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def shared(request: pytest.FixtureRequest, config: SearchConfig) -> SearchConfig:
    """The same study on every kind of database that workers share."""
    if request.param == "sqlite":
        return config
    server = request.getfixturevalue("postgres")
    name = f"study_{uuid.uuid4().hex[:8]}"
    server.psql(f"create database {name}")
    storage = server.get_uri().replace("postgresql://", "postgresql+psycopg://").replace("/postgres?", f"/{name}?")
    return dataclasses.replace(config, storage=storage)


@pytest.fixture
def reachable(request: pytest.FixtureRequest, shared: SearchConfig, tmp_path: Path) -> Callable[[bool], None]:
    """Takes the database of the shared study away and puts it back."""

    def move(here: bool) -> None:
        places = tmp_path / "away.db", tmp_path / "studies.db"
        places[not here].replace(places[here])

    def refuse(here: bool) -> None:
        server, name = request.getfixturevalue("postgres"), sqlalchemy.make_url(shared.storage).database
        server.psql(f"alter database {name} allow_connections {str(here).lower()}")
        server.psql(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'")

    return move if shared.storage.startswith("sqlite") else refuse


@pytest.fixture
def config(tmp_path: Path) -> SearchConfig:
    return SearchConfig(
        study="test",
        storage=f"sqlite:///{tmp_path}/studies.db",
        space=SpaceConfig(name="pruning_schedule", max_steps=2, max_ratio=0.9, min_samples=10, max_samples=20),
        objectives=["return_kept", "speedup"],
        floor=0.9,
        sampler="random",
        seed=0,
        n_trials=4,
        n_jobs=1,
        confirm_episodes=2,
        stale_minutes=1,
    )


def ratio(trial: Trial) -> list[str]:
    return [f"prune.ratio={trial.suggest_float('prune.ratio', 0, 0.9)}"]


def launcher(end: Ends, jobs: list[Sequence[str]]) -> Any:
    """Build a launcher whose jobs end as a function of their number says."""

    def launch(overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        ends = []
        for number, job in enumerate(overrides, start=first):
            jobs.append(job)
            folder = OmegaConf.create({"hydra": {"runtime": {"output_dir": f"/runs/{number}"}}})
            try:
                ends.append(JobReturn(hydra_cfg=folder, status=JobStatus.COMPLETED, _return_value=end(number)))
            except Exception as error:
                ends.append(JobReturn(hydra_cfg=folder, status=JobStatus.FAILED, _return_value=error))
        return ends

    return launch


def run(config: SearchConfig, end: Ends) -> tuple[Study, list[Sequence[str]]]:
    jobs: list[Sequence[str]] = []
    study = open_study(config, {"space": "a"})
    run_trials(study, config, [{"prune.ratio": 0.5}], ratio, launcher(end, jobs))
    return study, jobs


def states(study: Study) -> list[str]:
    return [trial.state.name for trial in study.get_trials(deepcopy=False)]


def test_a_study_has_as_many_trials_as_it_should_and_goes_on(config: SearchConfig):
    study, jobs = run(config, lambda number: METRICS)
    assert states(study) == ["COMPLETE"] * 4
    assert jobs[0] == ["prune.ratio=0.5"]
    assert len({tuple(job) for job in jobs}) == 4
    again, none = run(config, lambda number: METRICS)
    assert (len(again.trials), none) == (4, [])
    longer, more = run(dataclasses.replace(config, n_trials=6), lambda number: METRICS)
    assert len(more) == 2
    assert len({trial.params["prune.ratio"] for trial in longer.trials}) == 6  # not the same draws again


def test_floor_keeps_trials_off_the_front(config: SearchConfig):
    kept = [0.5, 0.95, 0.8, 0.92]
    study, _ = run(config, lambda number: METRICS | {"student/return_kept": kept[number]})
    assert {trial.number for trial in study.best_trials} == {1}
    assert study.trials[1].user_attrs["run_dir"] == "/runs/1"
    assert study.metric_names == ["return_kept", "speedup"]


def test_no_trial_stops_a_study(config: SearchConfig):
    def end(number: int) -> dict[str, float]:
        if number == 0:
            raise RuntimeError("out of luck\nand more")
        if number == 1:
            raise GivenUp("given up after 5 of 10 samples")
        return {"student/speedup": 2.0} if number == 2 else METRICS

    study, _ = run(config, end)
    assert states(study) == ["FAIL", "PRUNED", "FAIL", "COMPLETE"]
    assert study.trials[0].user_attrs["error"] == "RuntimeError: out of luck\nand more"
    assert study.trials[1].user_attrs["given_up"] == "given up after 5 of 10 samples"
    assert study.trials[2].user_attrs["error"] == "ValueError: the run has no student/return_kept"


def test_a_launcher_that_dies_costs_its_batch(config: SearchConfig):
    def launch(overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        raise OSError("a process of the pool died")

    study = open_study(config, {})
    run_trials(study, dataclasses.replace(config, n_jobs=3), [], ratio, launch)
    assert states(study) == ["FAIL"] * 4
    assert all("a process of the pool died" in trial.user_attrs["error"] for trial in study.trials)


def test_an_interrupted_trial_is_queued_again(config: SearchConfig):
    def interrupted(overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        raise KeyboardInterrupt

    study = open_study(config, {})
    with pytest.raises(KeyboardInterrupt):
        run_trials(study, config, [], ratio, interrupted)
    assert states(study) == ["FAIL", "WAITING"]
    jobs: list[Sequence[str]] = []
    run_trials(study, config, [], ratio, launcher(lambda number: METRICS, jobs))
    assert states(study) == ["FAIL"] + ["COMPLETE"] * 4
    assert study.trials[1].params == study.trials[0].params
    assert study.trials[1].user_attrs[RETRY_OF] == 0


def test_a_trial_of_a_killed_worker_is_queued_again(shared: SearchConfig, forks: Forks, tmp_path: Path):
    config = shared
    code = (
        "import sys, time\n"
        "from tests.search.test_studies import *\n"
        "from lrp_compress.config.checks import check_search\n"
        "config = check_search(OmegaConf.to_container(OmegaConf.load(sys.argv[1])))\n"
        "def launch(overrides, first):\n"
        "    print(first, flush=True)\n"
        "    time.sleep(60)\n"
        "run_trials(open_study(config, {'space': 'a'}), config, [{'prune.ratio': 0.5}], ratio, launch)\n"
    )
    OmegaConf.save(OmegaConf.structured(config), tmp_path / "search.yaml")
    with forks.start("-c", [code, str(tmp_path / "search.yaml")], REPOSITORY) as worker:
        assert worker.first_line() == "0"
        study = open_study(config, {"space": "a"})
        close_dead(study, config)
        assert states(study) == ["RUNNING"]
        worker.send_signal(signal.SIGKILL)
    study, _ = run(config, lambda number: METRICS)
    assert states(study) == ["FAIL"] + ["COMPLETE"] * 4
    assert study.trials[1].user_attrs[RETRY_OF] == 0  # the first of the four
    assert study.trials[1].params == study.trials[0].params
    assert sum(map(counts, study.trials)) == 4


def test_workers_that_ask_at_the_same_moment_do_nothing_twice(shared: SearchConfig):
    config = shared
    starts = [{"prune.ratio": 0.3}, {"prune.ratio": 0.5}]
    studies = [open_study(config, {}) for _ in range(8)]
    trial = ask(studies[0], config, starts)
    assert trial is not None
    trial.set_user_attr(OWNER, owner() | {"process_start": "1"})  # a worker that is gone
    together = threading.Barrier(len(studies))

    def work(study: Study) -> int | None:
        together.wait()
        close_dead(study, config)
        begun = ask(study, config, starts)
        return begun and begun.number

    with ThreadPoolExecutor(len(studies)) as workers:
        numbers = list(workers.map(work, studies))
    trials = studies[0].get_trials(deepcopy=False)
    assert [trial.state.name for trial in trials] == ["FAIL"] + ["RUNNING"] * 4
    assert sorted(number for number in numbers if number is not None) == [1, 2, 3, 4]
    queued = [trial.system_attrs.get("fixed_params") for trial in trials]
    assert [queued.count(start) for start in starts] == [2, 1]  # the first was cut off
    assert [trial.user_attrs.get(RETRY_OF) for trial in trials].count(0) == 1


def test_values_that_were_not_asked_for_yet_are_queued_again(config: SearchConfig):
    start = {"prune.ratio": 0.5, "seed": 3}
    study = open_study(config, {})
    trial = ask(study, config, [start])
    assert trial is not None
    trial.suggest_float("prune.ratio", 0, 0.9)
    trial.set_user_attr(OWNER, owner() | {"process_start": "1"})
    close_dead(study, config)
    retried = ask(study, config, [])
    assert retried is not None
    assert retried.suggest_int("seed", 0, 9) == 3


def test_a_silent_worker_of_another_host_is_taken_for_dead(config: SearchConfig):
    study = open_study(config, {})
    trial = ask(study, config, [])
    assert trial is not None
    trial.set_user_attr(OWNER, owner() | {"host": "elsewhere"})
    trial.set_user_attr("beat", time.time() - 30)
    close_dead(study, config)
    assert states(study) == ["RUNNING"]
    close_dead(study, dataclasses.replace(config, stale_minutes=0.4))
    assert states(study) == ["FAIL"]


def test_workers_that_begin_at_once_share_a_new_database(shared: SearchConfig, forks: Forks, tmp_path: Path):
    config = shared
    code = (
        "import sys, time\n"
        "from tests.search.test_studies import *\n"
        "from lrp_compress.config.checks import check_search\n"
        "config = check_search(OmegaConf.to_container(OmegaConf.load(sys.argv[1])))\n"
        "while not Path(sys.argv[2]).exists(): time.sleep(0.001)\n"
        "run(config, lambda number: METRICS)\n"
    )
    OmegaConf.save(OmegaConf.structured(dataclasses.replace(config, n_trials=10)), tmp_path / "search.yaml")
    begin = tmp_path / "begin"
    job = [code, str(tmp_path / "search.yaml"), str(begin)]
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(forks.start("-c", job, REPOSITORY)) for _ in range(4)]
        begin.touch()
        ends = [worker.wait() for worker in workers]
    assert [end.returncode for end in ends] == [0] * 4, ends
    study = open_study(config, {"space": "a"})
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert len(complete) == 10
    assert sum(map(counts, study.trials)) == 10
    assert not {"RUNNING", "WAITING"} & set(states(study))


def test_a_database_that_goes_away_is_named_and_the_study_goes_on(
    shared: SearchConfig, reachable: Callable[[bool], None]
):
    def end(number: int) -> dict[str, float]:
        if number == 2:
            reachable(False)
        return METRICS

    study = open_study(shared, {"space": "a"})
    message = r"search.storage=\S+ stopped answering: .+; the same command"
    with pytest.raises(UserError, match=message) as caught, storage_answers(shared):
        run_trials(study, shared, [], ratio, launcher(end, []))
    assert "\n" not in str(caught.value)
    reachable(True)
    study, jobs = run(shared, lambda number: METRICS)
    assert states(study) == ["COMPLETE", "COMPLETE", "RUNNING", "COMPLETE"]  # this process, its owner, lives
    assert len(jobs) == 1


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"objectives": ["return_kept", "size_bytes"]}, {"space": "a"}, "study test optimises return_kept, speedup;"),
        ({"objectives": ["speedup"]}, {"space": "a"}, "study test optimises return_kept, speedup;"),
        ({}, {"space": "b"}, "study test was made with another space; choose another search.study"),
        ({"storage": "sqlite:////no/such/folder/studies.db"}, {}, "unable to open database file"),
        ({"storage": "studies.db"}, {}, "search.storage=studies.db: Could not parse"),
        ({"storage": "nosql://host/name"}, {}, "search.storage=nosql://host/name: "),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    config: SearchConfig, changes: dict[str, Any], settings: dict[str, str], message: str
):
    open_study(config, {"space": "a"})
    with pytest.raises(UserError) as caught:
        open_study(dataclasses.replace(config, **changes), settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_database_is_left_as_it_is(config: SearchConfig, tmp_path: Path):
    path = tmp_path / "studies.db"
    path.write_text("not a database, but of some length")
    with pytest.raises(UserError, match="file is not a database"):
        open_study(config, {})
    assert path.read_text() == "not a database, but of some length"
