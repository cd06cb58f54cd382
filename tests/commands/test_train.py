"""The training command on real games: what it leaves, that a kill costs nothing, and that its agent is compressed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from lrp_compress.agents.checkpoints import load_agent
from lrp_compress.agents.teachers import teachers_dir
from lrp_compress.support.files import read_json
from tests.commands.forks import Forks
from tests.commands.running import Command

SMALL = [
    "game=pong",
    "train.steps=1024",
    "train.envs=4",
    "train.log_every=64",
    "train.checkpoint_minutes=0",
    "train.evaluate_every=512",
    "train.evaluate_episodes=2",
    "train.precision=float32",
    "train.hyperparameters.n_steps=16",
    "train.hyperparameters.batch_size=32",
    "evaluate={episodes: 2, envs: 1, max_frames: 400}",
]


def run_folder(folder: Path) -> Path:
    (found,) = (path for path in (folder / "outputs").iterdir() if path.name.startswith("train-"))
    return found


def only_run(folder: Path) -> tuple[MlflowClient, Run]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return client, run


@pytest.fixture(scope="module")
def killed_once(
    tmp_path_factory: pytest.TempPathFactory, forks: Forks, new_store: Callable[[Path], Path]
) -> tuple[Path, str]:
    """Folder and output of a training that was killed after a checkpoint and then repeated."""
    folder = tmp_path_factory.mktemp("training")
    new_store(folder / "mlflow.db")
    with forks.start("lrp_compress.train", SMALL, folder) as first:
        first.until(lambda: list((folder / "outputs").glob("train-*/stages/checkpoint.pt")))
        first.send_signal(signal.SIGKILL)
        assert first.wait().returncode == -signal.SIGKILL
    saved = torch.load(run_folder(folder) / "stages" / "checkpoint.pt", weights_only=True)
    assert 0 < saved["counters"]["num_timesteps"] < 1024
    done = forks.run("lrp_compress.train", SMALL, folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_one_run_whose_curve_has_no_gap(killed_once: tuple[Path, str]):
    client, run = only_run(killed_once[0])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "train-pong-ppo-s0"
    for name in ("time/steps_per_s", "train/value_loss"):
        steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
        assert sorted(steps) == list(range(64, 1025, 64)), name
    evaluated = [point.step for point in client.get_metric_history(run.info.run_id, "eval/return_mean")]
    assert sorted(evaluated) == [512, 1024]
    assert -21 <= run.data.metrics["noop/return_mean"] <= 21
    assert -21 <= run.data.metrics["sticky/return_mean"] <= 21
    assert run.data.params["train.hyperparameters.n_steps"] == "16"
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"agent.safetensors", "card.md", "figures"} <= artifacts


def test_the_agent_and_its_card(killed_once: tuple[Path, str]):
    folder, printed = killed_once
    agent = load_agent(run_folder(folder) / "agent.safetensors")
    assert agent.info.game == "pong"
    assert agent.network.widths == {"conv1": 32, "conv2": 64, "conv3": 64, "fc1": 512}
    assert agent.info.lineage["steps"] == 1024
    assert (run_folder(folder) / "agent.safetensors").stat().st_size < 3.5e6  # half precision
    card = (run_folder(folder) / "card.md").read_text()
    metrics = read_json(run_folder(folder) / "result.json")
    assert f"{metrics['noop/return_mean']:.1f} (interval" in card
    assert "python -m lrp_compress.train game=pong train.steps=1024" in card
    assert "stable-baselines3 2." in card
    assert "random play -20.7, human 14.6" in card
    assert str(run_folder(folder) / "agent.safetensors") in printed
    assert not (run_folder(folder) / "stages" / "checkpoint.pt").exists()


def test_repeated_it_says_that_it_is_done(killed_once: tuple[Path, str], forks: Forks):
    assert "has finished before" in forks.run("lrp_compress.train", SMALL, killed_once[0]).stdout
    only_run(killed_once[0])


def test_its_agent_is_compressed(killed_once: tuple[Path, str], lrp_compress: Command, tmp_path: Path):
    agent = run_folder(killed_once[0]) / "agent.safetensors"
    done = lrp_compress(
        "game=pong", f"teacher.source={agent}", "distill=none", "tracking=none", "repair.strength=0.1",
        "criterion.states=32",
        "quantize=none", "export=[]", "prune.evaluate=false",
        "rollouts={states: 64, envs: 2}", "evaluate={episodes: 2, envs: 1, max_frames: 400}",
        "latency={rounds: 1, decisions: 5, warmup: 2, max_rounds: 1}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (student,) = (tmp_path / "outputs").glob("pong-*/student.safetensors")
    assert load_agent(student).network.widths["fc1"] == 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no game was chosen; add e.g. game=breakout"),
        (["game=pong", "algorithm=dqnn"], "algorithm=dqnn is unknown (did you mean dqn?)"),
        (["game=pong", "device=tpu"], "device=tpu is unknown (did you mean cpu?); choose from: cpu, cuda"),
        (
            ["game=freeway", "train.fire_on_life_loss=true"],
            "freeway has no FIRE action to press; set train.fire_on_life_loss=false",
        ),
        (["game=pong", "train.hyperparameters.gama=1"], "did you mean gamma?"),
        (["game=pong", "train.hyperparameters.device=cpu"], "device is unknown"),
        (["game=pong", "train.start=nowhere.safetensors"], "agent file nowhere.safetensors does not exist"),
        (["game=pong", f"train.start={teachers_dir()}/breakout.safetensors"], "plays breakout, not pong"),
        (["game=breakout", "algorithm=dqn", f"train.start={teachers_dir()}/breakout.safetensors"], "has a policy head"),
        (["game=pong", "train.step=5"], "did you mean train.steps?"),
        (["game=pong", "prune.ratio=0.5"], "there is no setting prune.ratio"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    lrp_compress: Command, tmp_path: Path, arguments: list[str], message: str
):
    done = lrp_compress(*arguments, module="lrp_compress.train")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []
