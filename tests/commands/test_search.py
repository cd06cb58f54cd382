"""A study as users start it: real games, a worker killed half-way, the same command again."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from tests.commands.forks import Forks
from tests.commands.running import Command

TINY = (
    *("game=breakout", "experiment=smoke", "search=smoke", "search.n_trials=2", "search.floor=null"),
    *("search.space.min_samples=256", "search.space.max_samples=1024", "distill.step_samples=256"),
    *("rollouts.states=128", "rollouts.block=32", "rollouts.envs=2", "criterion.states=32"),
    *("repair.strength=0.1", "distill.min_agreement=null", "distill.envs=4"),
    *("evaluate.episodes=2", "evaluate.envs=1", "evaluate.max_frames=400", "search.confirm_episodes=2"),
    *("latency.rounds=1", "latency.decisions=5", "latency.max_rounds=1"),
)


def test_a_killed_study_goes_on_and_ends_with_a_confirmed_front(
    lrp_compress: Command, forks: Forks, new_store: Callable[[Path], Path], tmp_path: Path
):
    new_store(tmp_path / "mlflow.db")
    with forks.start("lrp_compress", [*TINY], tmp_path) as worker:
        worker.until(lambda: list(tmp_path.glob("multirun/*/*/stages/step-1/pruned.safetensors")))
        worker.send_signal(signal.SIGKILL)
    done = lrp_compress(*TINY)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    study = optuna.load_study(study_name="breakout-smoke", storage=f"sqlite:///{tmp_path}/studies.db")
    ends = [trial.state for trial in study.trials]
    assert ends == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert study.trials[1].user_attrs["retry_of"] == 0
    assert study.trials[1].params == study.trials[0].params
    (sweep,) = (tmp_path / "multirun").iterdir()
    folders = [Path(trial.user_attrs["run_dir"]) for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert all(folder.parent == sweep and (folder / "student.safetensors").is_file() for folder in folders)
    front = json.loads((sweep / "front.json").read_text())
    assert any(one["on_front"] for one in front)
    for one in front:
        assert one["found"].keys() == one["confirmed"].keys() == {"return_kept", "speedup"}
        assert one["metrics"]["student/episodes"] == 2
        assert one["metrics"]["student/return_mean"] >= 0
    assert "breakout-smoke: 2 complete" in done.stdout
    assert "searchFilter=tags.sweep" in done.stdout
    again = lrp_compress(*TINY)
    assert again.returncode == 0
    assert "#" not in re.sub(r"http\S+", "", again.stdout)  # no job was launched
    assert len(study.get_trials()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search=smok"], r"search=smok is unknown \(did you mean smoke\?\); choose from: pareto, size, smoke"),
        (["search=smoke", "search.n_trial=3"], r"search: there is no setting n_trial \(did you mean n_trials\?\)"),
        (["search=smoke", "search.n_trials=0"], r"search.n_trials=0 is not allowed; it must be at least 1"),
        (["search=smoke", "search.n_trials=abc"], r"search.n_trials: Value 'abc' of type 'str' could not be"),
        (["search=smoke", "search.sampler=tpee"], r"search.sampler=tpee is unknown \(did you mean tpe\?\)"),
        (["search=smoke", "search.space.name=wide"], r"search.space.name=wide is unknown; choose from: pruning_sch"),
        (["search=smoke", "search.objectives=[speed]"], r"search.objectives=speed is unknown \(did you mean speedup"),
        (["search=smoke", "search.objectives=[]"], r"search.objectives=\[\]: name at least one"),
        (["search=smoke", "search.space.min_samples=9999999"], r"search.space.min_samples=9999999 is more than"),
        (["search=smoke", "search.storage=sqlite:////no/such/x.db"], r"search.storage=\S+: unable to open database"),
        (["search=smoke", "prune.ratio=1.7"], r"prune.ratio=1.7 is not allowed"),
    ],
)
def test_mistakes_end_in_one_line(lrp_compress: Command, tmp_path: Path, arguments: list[str], message: str):
    done = lrp_compress("game=breakout", *arguments)
    assert re.fullmatch(rf"error: {message}.*\n", done.stderr), done.stderr
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []
