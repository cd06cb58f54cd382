"""Short trainings on real games: the network is the plain Nature CNN, and a stopped training goes on."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from stable_baselines3.common.policies import ActorCriticCnnPolicy
from stable_baselines3.common.torch_layers import NatureCNN

from lrp_compress.agents.checkpoints import Agent, AgentInfo, all_channels
from lrp_compress.config.checks import check_config, conf_dir, options, register_schemas
from lrp_compress.config.schema import TrainConfig
from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import NATURE_WIDTHS, nature_cnn
from lrp_compress.support.errors import UserError
from lrp_compress.support.states import load_state
from lrp_compress.tracking.tracker import Tracker
from lrp_compress.training.algorithms import begin_with, make_learner
from lrp_compress.training.checkpoint import restore, save_checkpoint
from lrp_compress.training.learning import agent_of, learn, make_envs
from lrp_compress.training.policies import FastNatureCNN
from lrp_compress.training.vec_env import AtariVecEnv

pytestmark = pytest.mark.slow

STEPS, POINT = 128, 32  # of a training, and between two points of its curves
HYPERPARAMETERS: dict[str, dict[str, int]] = {
    "ppo": {"n_steps": 8, "n_epochs": 2, "batch_size": 16},
    "dqn": {"learning_starts": 32, "buffer_size": 500, "batch_size": 8},
    "qrdqn": {"learning_starts": 32, "buffer_size": 500, "batch_size": 8, "n_quantiles": 16},
}


def config(algorithm: str = "ppo", *overrides: str) -> TrainConfig:
    register_schemas()
    OmegaConf.register_new_resolver("run_folder", str, replace=True)
    small = [f"train={algorithm}", "train.envs=4", f"train.steps={STEPS}", f"train.log_every={POINT}"]
    small += ["train.precision=float32"]
    small += [f"++train.hyperparameters.{name}={value}" for name, value in HYPERPARAMETERS[algorithm].items()]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", overrides=["+game=breakout", *small, *overrides])
    return check_config(cfg, TrainConfig)


class Notes(Tracker):
    """Keeps the points of the curves."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []

    def metrics(self, values: Any, step: int = 0) -> None:
        self.points.append((step, dict(values)))


def no_look(agent: Agent, steps: int) -> dict[str, float]:
    return {}


@pytest.fixture(scope="module")
def env() -> Iterator[AtariVecEnv]:
    """Give Breakout to learners that only look at its spaces."""
    with contextlib.closing(make_envs(config(), 0)) as made:
        yield made


def pixels(count: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (count, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_every_algorithm_has_its_file():
    assert options("train") == sorted(HYPERPARAMETERS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_are_those_of_stable_baselines3(env: AtariVecEnv, dtype: torch.dtype):
    space = env.observation_space
    torch.manual_seed(0)
    fast, plain = FastNatureCNN(space, dtype, True), NatureCNN(space)
    plain.load_state_dict(fast.state_dict())
    fast.to(memory_format=torch.channels_last)
    observations = pixels()
    own, theirs = fast(observations.float()), plain(observations.float() / 255)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(own, theirs, rtol=tolerance, atol=tolerance * float(theirs.detach().abs().max()))
    own.sum().backward()
    theirs.sum().backward()
    for one, other in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3 if dtype == torch.float32 else 0.1, atol=2.0)


@dataclass(frozen=True)
class Trained:
    """A short training: its settings, its last checkpoint and the agent it gave."""

    settings: TrainConfig
    checkpoint: Path
    agent: Agent


@pytest.fixture(scope="module", params=sorted(HYPERPARAMETERS))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    settings, checkpoint = config(request.param), tmp_path_factory.mktemp("trained") / "checkpoint.pt"
    return Trained(settings, checkpoint, learn(settings, checkpoint, Tracker(), no_look))


def test_the_agent_computes_what_its_learner_does(env: AtariVecEnv, trained: Trained):
    settings, agent, algorithm = trained.settings, trained.agent, trained.settings.train.algorithm
    learner = make_learner(settings.train, env, "cpu", 0)
    restore(learner, load_state(trained.checkpoint) or {})
    assert learner.num_timesteps == STEPS
    observations = pixels()
    with torch.no_grad():
        if algorithm == "ppo":
            expected = learner.policy.get_distribution(observations).distribution.logits
            own = agent.network(observations).log_softmax(1)
        elif algorithm == "dqn":
            expected, own = learner.policy.q_net(observations), agent.network(observations)
        else:
            expected, own = learner.policy.quantile_net(observations).mean(1), agent.network(observations)
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
    assert agent.network.head_kind == ("policy" if algorithm == "ppo" else "q")
    assert agent.info.lineage["steps"] == STEPS


def test_ppo_learns_from_pixels_what_it_would_from_floats(env: AtariVecEnv):
    policy: Any = make_learner(config().train, env, "cpu", 0).policy
    fast = policy.extract_features(pixels())
    torch.testing.assert_close(fast, ActorCriticCnnPolicy.extract_features(policy, pixels()))
    assert fast.requires_grad


def test_the_number_of_quantiles_can_be_set(env: AtariVecEnv):
    learner = make_learner(config("qrdqn").train, env, "cpu", 0)
    assert learner.policy.state_dict()["quantile_net.quantile_net.0.weight"].shape == (16 * env.actions, 512)


def test_a_training_can_start_with_an_agent(env: AtariVecEnv, trained: Trained):
    settings, agent = trained.settings, trained.agent
    learner = make_learner(settings.train, env, "cpu", 5)
    begin_with(learner, agent, "it")
    begun = agent_of(learner, settings).network.state_dict()
    for name, tensor in agent.network.state_dict().items():
        torch.testing.assert_close(begun[name], tensor, msg=name)
    state = learner.policy.state_dict()
    for name in (name for name in state if "_target." in name):
        assert state[name].equal(state[name.replace("_target.", ".")]), name


def test_an_agent_knows_what_it_started_from(trained: Trained, tmp_path: Path):
    agent = learn(trained.settings, tmp_path / "checkpoint.pt", Tracker(), no_look, trained.agent)
    assert agent.info.lineage["started_from"] == trained.agent.info.lineage
    assert agent.info.lineage["steps"] == STEPS


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nature_cnn(NATURE_WIDTHS, "policy", 4), "it has a policy head, but Stable-Baselines3 DQN learns a q head"),
        (
            nature_cnn(NATURE_WIDTHS | {"conv2": 48}, "q", 4),
            "it has 48 outputs in conv2, but Stable-Baselines3 DQN learns 64",
        ),
        (nature_cnn(NATURE_WIDTHS, "q", 6), "it has 6 outputs in head, but Stable-Baselines3 DQN learns 4"),
        (nature_cnn(NATURE_WIDTHS | {"fc2": 8}, "q", 4), "Stable-Baselines3 DQN learns a Nature CNN"),
    ],
)
def test_an_agent_that_cannot_be_started_from(env: AtariVecEnv, network: Network, message: str):
    agent = Agent(network, AgentInfo("breakout", "minimal", False, {}, all_channels(network.widths)))
    learner = make_learner(config("dqn").train, env, "cpu", 0)
    with pytest.raises(UserError, match=message) as raised:
        begin_with(learner, agent, "it")
    assert "\n" not in str(raised.value)


def test_learning_changes_every_layer(env: AtariVecEnv, trained: Trained):
    before = agent_of(make_learner(trained.settings.train, env, "cpu", 0), trained.settings)
    for name, tensor in before.network.state_dict().items():
        assert not torch.equal(tensor, trained.agent.network.state_dict()[name]), name


@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_a_stopped_training_goes_on_where_its_checkpoint_is(algorithm: str, tmp_path: Path):
    checkpoint = tmp_path / "checkpoint.pt"
    settings = config(algorithm, "train.checkpoint_minutes=0", "train.evaluate_every=50")
    notes = Notes()

    class Stop(Exception):
        pass

    def stop(agent: Agent, steps: int) -> dict[str, float]:
        if steps > STEPS // 2:
            raise Stop
        return {"eval/return_mean": float(steps)}

    with pytest.raises(Stop):
        learn(settings, checkpoint, notes, stop)
    saved = load_state(checkpoint)
    assert saved is not None
    done = saved["counters"]["num_timesteps"]
    assert POINT <= done < STEPS
    assert max(step for step, _ in notes.points) <= done
    agent = learn(settings, checkpoint, notes, no_look)
    assert agent.info.lineage["steps"] == STEPS
    steps = [step for step, values in notes.points if "time/steps_per_s" in values]
    assert steps == sorted(set(steps))  # no point twice
    assert {step // POINT for step in steps} == {1, 2, 3, 4}  # and no gap
    assert any("eval/return_mean" in values for _, values in notes.points)


def test_the_entropy_of_ppo_counts_less_and_less(tmp_path: Path):
    notes = Notes()
    learn(config("ppo", "train.hyperparameters.ent_coef=lin_0.04"), tmp_path / "checkpoint.pt", notes, no_look)
    seen = [values["train/ent_coef"] for _, values in notes.points]
    assert seen == pytest.approx([0.03, 0.02, 0.01, 0.0])


@pytest.mark.parametrize("trained", ["dqn"], indirect=True)
def test_a_checkpoint_holds_everything(env: AtariVecEnv, trained: Trained, tmp_path: Path):
    learner = make_learner(trained.settings.train, env, "cpu", 0)
    restore(learner, load_state(trained.checkpoint) or {})
    save_checkpoint(tmp_path / "two.pt", learner, [1.0, 2.0])
    one, two = (load_state(path) or {} for path in (trained.checkpoint, tmp_path / "two.pt"))
    assert one["counters"] == two["counters"]
    assert two["returns"] == [1.0, 2.0]
    for part in ("policy", "replay"):
        assert all(torch.equal(tensor, two[part][name]) for name, tensor in one[part].items())
    for key, values in one["optimizer"]["state"].items():
        assert all(torch.equal(value, two["optimizer"]["state"][key][name]) for name, value in values.items())
    assert one["optimizer"]["state"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("++train.hyperparameters.learning_rat=1", "did you mean learning_rate"),
        ("++train.hyperparameters.learning_rate=quick", "quick is neither a number nor lin_NUMBER"),
        ("++train.hyperparameters.batch_size=1", "ppo refuses them"),
        ("++train.hyperparameters.n_epochs=0", "n_epochs=0 is not allowed; it must be at least 1"),
        ("++train.hyperparameters.n_epochs=1.5", "n_epochs=1.5 is no whole number"),
        ("++train.hyperparameters.n_steps=100000000", "n_steps=100000000 is not allowed; it must be in [1, 65536]"),
        ("++train.hyperparameters.max_grad_norm=-1", "max_grad_norm=-1 is not allowed; it must be above 0"),
        ("++train.hyperparameters.max_grad_norm=null", "max_grad_norm=None is no number"),
        ("++train.hyperparameters.vf_coef=lin_1", "vf_coef does not fall; give a number"),
        ("++train.hyperparameters.gamma=2", "gamma=2 is not allowed; it must be in [0, 1]"),
        ("++train.hyperparameters.clip_range=lin_-0.1", "clip_range=lin_-0.1 is not allowed; it must be above 0"),
        ("++train.hyperparameters.learning_rate=true", "learning_rate=True is no number"),
        ("++train.hyperparameters.stats_window_size=-1", "stats_window_size=-1 is not allowed"),
        ("train.algorithm=ppoo", "algorithm=ppoo is unknown (did you mean ppo?)"),
    ],
)
def test_what_the_algorithm_refuses_is_named_in_one_line(env: AtariVecEnv, override: str, message: str):
    with pytest.raises(UserError) as caught:
        make_learner(config("ppo", override).train, env, "cpu", 0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", pickle.dumps(print)])
def test_a_damaged_checkpoint_is_named_in_one_line(content: bytes, tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoint.pt is no whole checkpoint; force=true starts anew"):
        load_state(path)
