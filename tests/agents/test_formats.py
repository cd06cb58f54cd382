"""Files that the libraries themselves wrote, and what is refused."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from lrp_compress.agents.formats import read_foreign
from lrp_compress.errors import UserError

OBSERVATIONS = torch.randint(0, 256, (16, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Noise(gymnasium.Env[Any, Any]):
    """An environment of the right shape, so that a few real training steps can be taken."""

    observation_space = gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = gymnasium.spaces.Discrete(6)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), float(action), bool(self.np_random.random() < 0.2), False, {}


def trained(algorithm: type[BaseAlgorithm], path: Path, **policy_kwargs: Any) -> BaseAlgorithm:
    small = {"buffer_size": 64, "learning_starts": 4, "batch_size": 4}
    settings: dict[type, dict[str, Any]] = {
        DQN: small,
        QRDQN: small,
        PPO: {"n_steps": 8, "batch_size": 4},
        A2C: {},
    }
    model = algorithm("CnnPolicy", Noise(), policy_kwargs=policy_kwargs, seed=0, **settings[algorithm])
    model.learn(24)
    model.save(path)
    return model


def outputs(model: BaseAlgorithm) -> torch.Tensor:
    policy = model.policy
    with torch.no_grad():
        if isinstance(model, DQN):
            return policy.q_net(OBSERVATIONS)
        if isinstance(model, QRDQN):
            return policy.quantile_net(OBSERVATIONS).mean(dim=1)
        return policy.get_distribution(OBSERVATIONS).distribution.logits


@pytest.mark.parametrize(
    ("algorithm", "policy_kwargs", "head"),
    [
        (DQN, {}, "q"),
        (DQN, {"net_arch": [32, 24]}, "q"),
        (DQN, {"features_extractor_kwargs": {"features_dim": 64}}, "q"),
        (QRDQN, {}, "q"),
        (QRDQN, {"n_quantiles": 7}, "q"),
        (PPO, {}, "policy"),
        (PPO, {"share_features_extractor": False}, "policy"),
        (A2C, {}, "policy"),
    ],
)
def test_stable_baselines_agents_compute_what_they_computed(
    tmp_path: Path, algorithm: type[BaseAlgorithm], policy_kwargs: dict[str, Any], head: str
):
    path = tmp_path / "agent.zip"
    model = trained(algorithm, path, **policy_kwargs)
    network, layout = read_foreign(path, [6, 18])
    assert (network.head_kind, network.actions) == (head, 6)
    assert algorithm.__name__.replace("QRD", "QR-D") in layout.name
    expected = outputs(model)
    with torch.no_grad():
        found = network(OBSERVATIONS)
    if head == "policy":  # torch's distribution subtracts the logarithm of the sum
        found = found.log_softmax(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert expected.std() > 1e-4


def test_old_zips_name_one_features_extractor(tmp_path: Path):
    model = trained(PPO, tmp_path / "new.zip")
    state = {key: value for key, value in model.policy.state_dict().items() if not key.startswith(("pi_", "vf_"))}
    with zipfile.ZipFile(tmp_path / "new.zip") as new, zipfile.ZipFile(tmp_path / "old.zip", "w") as old:
        old.writestr("data", new.read("data"))
        old.writestr("policy.pth", saved(state))
    networks = [read_foreign(tmp_path / name, [6])[0] for name in ("new.zip", "old.zip")]
    with torch.no_grad():
        assert torch.equal(networks[0](OBSERVATIONS), networks[1](OBSERVATIONS))


def test_a_tanh_layer_on_top_is_refused(tmp_path: Path):
    trained(PPO, tmp_path / "agent.zip", net_arch=[32])
    with pytest.raises(UserError, match=r"further layers \(mlp_extractor\.policy_net.*only plain CnnPolicy"):
        read_foreign(tmp_path / "agent.zip", [6])


def test_another_architecture_is_refused(tmp_path: Path):
    model = trained(DQN, tmp_path / "agent.zip")
    state = model.policy.state_dict()
    state["q_net.features_extractor.cnn.2.weight"] = torch.zeros(64, 32, 5, 5)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"no Nature CNN: conv2\.weight has the shape \(64, 32, 5, 5\), not"):
        read_foreign(tmp_path / "other.pth", [6])
    state["q_net.features_extractor.cnn.0.weight"] = torch.zeros(32, 3, 8, 8)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"3 channels, not the 4 frames"):
        read_foreign(tmp_path / "other.pth", [6])


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class CleanRL(nn.Module):
    """The networks of CleanRL's dqn_atari.py and ppo_atari.py, layer by layer."""

    def __init__(self, policy: bool) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3)]
        body = [*convolutions, nn.ReLU(), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU()]
        self.policy = policy
        if policy:
            self.network, self.actor, self.critic = nn.Sequential(*body), nn.Linear(512, 6), nn.Linear(512, 1)
        else:
            self.network = nn.Sequential(*body, nn.Linear(512, 6))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        hidden = self.network(observations / 255.0)
        return self.actor(hidden) if self.policy else hidden


@pytest.mark.parametrize("policy", [True, False])
def test_cleanrl(tmp_path: Path, policy: bool):
    torch.manual_seed(1)
    model = CleanRL(policy)
    path = tmp_path / "agent.cleanrl_model"
    torch.save(model.state_dict(), path)
    network, layout = read_foreign(path, [6])
    assert network.head_kind == ("policy" if policy else "q")
    assert layout.fires
    with torch.no_grad():
        torch.testing.assert_close(network(OBSERVATIONS), model(OBSERVATIONS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("legacy", [True, False])
def test_atari_agents(tmp_path: Path, legacy: bool):
    """Gzipped checkpoints, saved in the layout of torch before or since version 1.6."""
    model = CleanRL(policy=False)
    names = {0: "features.0", 2: "features.2", 4: "features.4", 7: "head.0", 9: "head.2"}
    state = {
        f"_AtariNet__{own}.{kind}": getattr(model.network[i], kind)
        for i, own in names.items()
        for kind in ("weight", "bias")
    }
    buffer = io.BytesIO()
    torch.save({"estimator_state": state, "step": 7}, buffer, _use_new_zipfile_serialization=not legacy)
    path = tmp_path / "model_50000000.gz"
    path.write_bytes(gzip.compress(buffer.getvalue()))
    network, layout = read_foreign(path, [6])
    assert (layout.name, layout.fires) == ("atari-agents", False)
    with torch.no_grad():
        torch.testing.assert_close(network(OBSERVATIONS), model(OBSERVATIONS), rtol=0, atol=1e-5)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["pickle", "torch", "sb3"])
def test_pickled_objects_are_never_loaded(tmp_path: Path, kind: str):
    crater, path = tmp_path / "crater", tmp_path / "agent.zip"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(crater)))
    elif kind == "torch":
        torch.save({"network.0.weight": Bomb(crater)}, path)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data", "{}")
            archive.writestr("policy.pth", saved(Bomb(crater)))
    with pytest.raises(UserError, match=r"agent\.zip is no plain file of tensors.*never") as raised:
        read_foreign(path, [6])
    assert "\n" not in str(raised.value)
    assert not crater.exists()


@pytest.mark.parametrize("kind", ["zip", "gzip", "state"])
def test_truncated_files(tmp_path: Path, kind: str):
    path = tmp_path / "agent"
    state = saved(CleanRL(policy=False).state_dict())
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data", "{}")
            archive.writestr("policy.pth", state)
        content = path.read_bytes()
    else:
        content = gzip.compress(state) if kind == "gzip" else state
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="agent file") as raised:
        read_foreign(path, [6])
    assert "\n" not in str(raised.value)


# without a time in its header, since all pytest workers must collect the same tests
DAMAGED = gzip.compress(b"weights" * 100, mtime=0)[:12] + b"\xff" * 60


@pytest.mark.parametrize("content", [b"", b"PK", b"hello", b"\x1f\x8b", b"\x80\x04", DAMAGED])
def test_rubbish(tmp_path: Path, content: bytes):
    path = tmp_path / "agent"
    path.write_bytes(content)
    with pytest.raises(UserError, match="agent file"):
        read_foreign(path, [6])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "holds no state_dict"),
        ({"a": 1}, "holds no state_dict"),
        (
            {"layer.weight": torch.zeros(2)},
            r"\(layer\.weight, \.\.\.\) belong to no known library \(Stable-Baselines3 DQN",
        ),
    ],
)
def test_files_of_something_else(tmp_path: Path, value: Any, message: str):
    torch.save(value, tmp_path / "agent.pth")
    with pytest.raises(UserError, match=message):
        read_foreign(tmp_path / "agent.pth", [6])
