"""Files that the libraries themselves wrote, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import msgpack
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sb3_contrib import QRDQN
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.dqn import policies as dqn_policies
from torch import nn

from lrp_compress.agents.formats import read_foreign
from lrp_compress.agents.teachers import load_teacher
from lrp_compress.config.schema import GameConfig, TeacherConfig
from lrp_compress.networks.spaces import Observations
from lrp_compress.support.errors import UserError
from tests.agents.environments import atari, spaces

CARTPOLE = Observations((4,), "float32")
OBSERVATIONS = torch.randint(0, 256, (16, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


FRAMES = gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)


class Noise(gymnasium.Env[Any, Any]):
    """An environment of the right shape, so that a few real training steps can be taken."""

    action_space = gymnasium.spaces.Discrete(6)

    def __init__(self, space: gymnasium.spaces.Box = FRAMES) -> None:
        self.observation_space = space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), float(action), bool(self.np_random.random() < 0.2), False, {}


def trained(
    algorithm: type[BaseAlgorithm],
    path: Path,
    space: gymnasium.spaces.Box = FRAMES,
    policy: str | type = "CnnPolicy",
    **policy_kwargs: Any,
) -> BaseAlgorithm:
    small = {"buffer_size": 64, "learning_starts": 4, "batch_size": 4}
    settings: dict[type, dict[str, Any]] = {
        DQN: small,
        QRDQN: small,
        PPO: {"n_steps": 8, "batch_size": 4},
        A2C: {},
    }
    model = algorithm(policy, Noise(space), policy_kwargs=policy_kwargs, seed=0, **settings[algorithm])
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


@pytest.mark.slow
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
    network, layout, _ = read_foreign(path, spaces(6, 18))
    assert (network.head_kind, network.actions) == (head, 6)
    assert algorithm.__name__.replace("QRD", "QR-D") in layout.name
    expected = outputs(model)
    with torch.no_grad():
        found = network(OBSERVATIONS)
    if head == "policy":  # torch's distribution subtracts the logarithm of the sum
        found = found.log_softmax(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert expected.std() > 1e-4


@pytest.mark.slow
def test_old_zips_name_one_features_extractor(tmp_path: Path):
    model = trained(PPO, tmp_path / "new.zip")
    state = {key: value for key, value in model.policy.state_dict().items() if not key.startswith(("pi_", "vf_"))}
    with zipfile.ZipFile(tmp_path / "new.zip") as new, zipfile.ZipFile(tmp_path / "old.zip", "w") as old:
        old.writestr("data", new.read("data"))
        old.writestr("policy.pth", saved(state))
    networks = [read_foreign(tmp_path / name, spaces(6))[0] for name in ("new.zip", "old.zip")]
    with torch.no_grad():
        assert torch.equal(networks[0](OBSERVATIONS), networks[1](OBSERVATIONS))


@pytest.mark.slow
def test_a_tanh_layer_on_top_is_refused(tmp_path: Path):
    trained(PPO, tmp_path / "agent.zip", net_arch=[32])
    with pytest.raises(UserError, match=r"mlp_extractor\.policy_net\.0\.weight is no part of a plain Nature CNN"):
        read_foreign(tmp_path / "agent.zip", spaces(6))


@pytest.mark.slow
def test_another_architecture_is_refused(tmp_path: Path):
    model = trained(DQN, tmp_path / "agent.zip")
    state = model.policy.state_dict()
    state["q_net.features_extractor.cnn.2.weight"] = torch.zeros(64, 32, 5, 5)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"no Nature CNN: conv2\.weight has the shape \(64, 32, 5, 5\), not"):
        read_foreign(tmp_path / "other.pth", spaces(6))
    state["q_net.features_extractor.cnn.0.weight"] = torch.zeros(32, 3, 8, 8)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"3 channels, not the 4 frames"):
        read_foreign(tmp_path / "other.pth", spaces(6))


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
    network, layout, _ = read_foreign(path, spaces(6))
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
    network, layout, _ = read_foreign(path, spaces(6))
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
        read_foreign(path, spaces(6))
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
        read_foreign(path, spaces(6))
    assert "\n" not in str(raised.value)


# without a time in its header, since all pytest workers must collect the same tests
DAMAGED = gzip.compress(b"weights" * 100, mtime=0)[:12] + b"\xff" * 60


@pytest.mark.parametrize("content", [b"", b"PK", b"hello", b"\x1f\x8b", b"\x80\x04", DAMAGED])
def test_rubbish(tmp_path: Path, content: bytes):
    path = tmp_path / "agent"
    path.write_bytes(content)
    with pytest.raises(UserError, match="agent file"):
        read_foreign(path, spaces(6))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "holds no state_dict"),
        ({"a": 1}, "holds no state_dict"),
        (
            {"layer.weight": torch.zeros(2)},
            r"\(layer\.weight\) belong to no known library \(Stable-Baselines3 DQN",
        ),
    ],
)
def test_files_of_something_else(tmp_path: Path, value: Any, message: str):
    torch.save(value, tmp_path / "agent.pth")
    with pytest.raises(UserError, match=message):
        read_foreign(tmp_path / "agent.pth", spaces(6))


def renamed(model: nn.Module, names: dict[str, str]) -> dict[str, torch.Tensor]:
    """Give a CleanRL network's tensors other names."""
    return {
        f"{names[module]}.{kind}": tensor
        for key, tensor in model.state_dict().items()
        for module, _, kind in [key.rpartition(".")]
        if module in names
    }


SAC = {"network.0": "conv.0", "network.2": "conv.2", "network.4": "conv.4", "network.7": "fc1", "actor": "fc_logits"}
PFRL = {"network.0": "0.layers.0", "network.2": "0.layers.1", "network.4": "0.layers.2", "network.7": "0.output"}
Q_NET = {f"network.{i}": f"features_extractor.cnn.{i}" for i in (0, 2, 4)}


@pytest.mark.parametrize(
    ("policy", "names", "name"),
    [
        (True, SAC, "CleanRL SAC"),
        (False, PFRL | {"network.9": "1"}, "PFRL DQN"),
        (False, Q_NET | {"network.7": "features_extractor.linear.0", "network.9": "q_net.0"}, "Stable-Baselines3 DQN"),
    ],
)
def test_the_same_network_under_other_names(tmp_path: Path, policy: bool, names: dict[str, str], name: str):
    model = CleanRL(policy)
    torch.save(renamed(model, names), tmp_path / "agent.pt")
    network, layout, _ = read_foreign(tmp_path / "agent.pt", spaces(6))
    assert layout.name == name
    with torch.no_grad():
        torch.testing.assert_close(network(OBSERVATIONS), model(OBSERVATIONS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "model.", "policy._orig_mod."])
@pytest.mark.parametrize("wrapper", [None, "model_state_dict", "state_dict", "agent", "model"])
def test_wrappers_are_taken_off(tmp_path: Path, prefix: str, wrapper: str | None):
    model = CleanRL(True)
    state: Any = {f"{prefix}{key}": value for key, value in model.state_dict().items()}
    torch.save({wrapper: state, "global_step": 7} if wrapper else state, tmp_path / "agent.pt")
    network, *_ = read_foreign(tmp_path / "agent.pt", spaces(6))
    with torch.no_grad():
        torch.testing.assert_close(network(OBSERVATIONS), model(OBSERVATIONS), rtol=0, atol=1e-5)


def test_safetensors_of_another_library(tmp_path: Path):
    model = CleanRL(False)
    save_file(model.state_dict(), tmp_path / "agent.safetensors")
    network, *_ = read_foreign(tmp_path / "agent.safetensors", spaces(6))
    with torch.no_grad():
        torch.testing.assert_close(network(OBSERVATIONS), model(OBSERVATIONS), rtol=0, atol=1e-5)


class Dueling(nn.Module):
    """RADIAL-RL's CnnDQN on four frames."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = CleanRL(False).network[:7]
        self.advantage = nn.Sequential(nn.Linear(3136, 48), nn.ReLU(), nn.Linear(48, 6))
        self.value = nn.Sequential(nn.Linear(3136, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        features = self.cnn(observations / 255)
        advantage = self.advantage(features)
        return self.value(features) + advantage - advantage.mean(1, keepdim=True)


@pytest.mark.parametrize("library", ["RADIAL-RL", "PFRL"])
def test_dueling_agents(tmp_path: Path, library: str):
    model = Dueling()
    state = model.state_dict()
    if library == "PFRL":
        names = {"cnn.0": "conv_layers.0", "cnn.2": "conv_layers.1", "cnn.4": "conv_layers.2"}
        streams = {"value": "v_stream", "advantage": "a_stream"}
        names |= {f"{own}.0": f"{s}.hidden_layers.0" for own, s in streams.items()}
        names |= {f"{own}.2": f"{s}.output" for own, s in streams.items()}
        state = renamed(model, names)
    torch.save(state, tmp_path / "agent.pt")
    network, layout, _ = read_foreign(tmp_path / "agent.pt", spaces(6))
    assert layout.name == f"{library} dueling DQN"
    with torch.no_grad():
        torch.testing.assert_close(network(OBSERVATIONS), model(OBSERVATIONS), rtol=0, atol=1e-5)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv1(self.conv0(x.relu()).relu())


class ConvSequence(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.res_block0, self.res_block1 = ResidualBlock(width), ResidualBlock(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.res_block1(self.res_block0(nn.functional.max_pool2d(self.conv(x), 3, 2, 1)))


class Impala(CleanRL):
    """The networks of CleanRL's ppo_procgen.py and qdagger_dqn_atari_impalacnn.py, narrower."""

    def __init__(self, policy: bool) -> None:
        nn.Module.__init__(self)
        sequences = [ConvSequence(channels, width) for channels, width in ((4, 3), (3, 5), (5, 4))]
        body = [*sequences, nn.Flatten(), nn.ReLU(), nn.Linear(4 * 121, 16), nn.ReLU()]
        self.policy = policy
        if policy:
            self.network, self.actor, self.critic = nn.Sequential(*body), nn.Linear(16, 6), nn.Linear(16, 1)
        else:
            self.network = nn.Sequential(*body, nn.Linear(16, 6))


@pytest.mark.parametrize("policy", [True, False])
def test_impala_agents_of_cleanrl(tmp_path: Path, policy: bool):
    torch.manual_seed(1)
    model = Impala(policy)
    torch.save(model.state_dict(), tmp_path / "agent.pt")
    network, layout, _ = read_foreign(tmp_path / "agent.pt", spaces(6))
    assert layout.name == f"CleanRL IMPALA {'PPO' if policy else 'DQN'}"
    assert network.head_kind == layout.head == ("policy" if policy else "q")
    assert network.channels["conv6"].writers == ("conv6", "conv8", "conv10")
    with torch.no_grad():
        torch.testing.assert_close(network(OBSERVATIONS), model(OBSERVATIONS), rtol=0, atol=1e-5)
    state = model.state_dict() | {"network.1.conv.weight": torch.zeros(5, 3, 5, 5)}
    torch.save(state, tmp_path / "agent.pt")
    with pytest.raises(UserError, match=r"is no IMPALA ResNet: conv6 has the shape \(5, 3, 5, 5\)"):
        read_foreign(tmp_path / "agent.pt", spaces(6))


def vectors(algorithm: type[BaseAlgorithm], path: Path) -> BaseAlgorithm:
    model = algorithm("MlpPolicy", "CartPole-v1", seed=0)
    model.save(path)
    return model


@pytest.mark.parametrize(("algorithm", "activation"), [(PPO, "tanh"), (DQN, "relu")])
def test_policies_for_vectors(tmp_path: Path, algorithm: type[BaseAlgorithm], activation: str):
    model = vectors(algorithm, tmp_path / "agent.zip")
    network, *_ = read_foreign(tmp_path / "agent.zip", spaces(2, observations=CARTPOLE))
    assert [layer.op for layer in network.layers] == ["dense", activation, "dense", activation, "dense"]
    given = network.observations.random(5, 0)
    with torch.no_grad():
        if isinstance(model, DQN):
            found, expected = network(given), model.policy.q_net(given)
        else:
            found, expected = network(given).log_softmax(1), model.policy.get_distribution(given).distribution.logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    pong = GameConfig("pong", "Pong", -20.7, 14.6)
    config = TeacherConfig(str(tmp_path / "agent.zip"), None, None, "auto", None)
    with pytest.raises(UserError, match=r"takes 4 numbers, but the game's observations are \(4, 84, 84\)"):
        load_teacher(tmp_path / "agent.zip", config, pong, atari("NOOP", "FIRE"))


@pytest.mark.parametrize(("name", "op"), [("actor", "tanh"), ("network", "relu")])
def test_policies_for_vectors_of_cleanrl(tmp_path: Path, name: str, op: str):
    torch.manual_seed(0)
    activation = nn.Tanh if op == "tanh" else nn.ReLU
    model = nn.Sequential(nn.Linear(4, 8), activation(), nn.Linear(8, 7), activation(), nn.Linear(7, 2))
    critic = {"critic.0.weight": torch.zeros(3, 4)} if name == "actor" else {}
    torch.save({f"{name}.{key}": value for key, value in model.state_dict().items()} | critic, tmp_path / "agent.pt")
    network, *_ = read_foreign(tmp_path / "agent.pt", spaces(2, observations=CARTPOLE))
    assert network.layers[1].op == op
    given = network.observations.random(5, 0)
    with torch.no_grad():
        torch.testing.assert_close(network(given), model(given), rtol=0, atol=1e-6)


def flax_array(tensor: torch.Tensor) -> msgpack.ExtType:
    values = tensor.detach().contiguous().numpy()
    return msgpack.ExtType(1, msgpack.packb((values.shape, values.dtype.name, values.tobytes())))


def flax_layer(module: Any) -> dict[str, msgpack.ExtType]:
    weight = module.weight
    if weight.dim() == 4:
        kernel = weight.permute(2, 3, 1, 0)
    elif weight.shape[1] == 3136:  # flax flattens (row, column, channel)
        kernel = weight.view(512, 64, 7, 7).permute(2, 3, 1, 0).reshape(3136, 512)
    else:
        kernel = weight.T
    return {"kernel": flax_array(kernel), "bias": flax_array(module.bias)}


@pytest.mark.parametrize("policy", [True, False])
def test_flax_files_of_cleanrl(tmp_path: Path, policy: bool):
    model = CleanRL(policy)
    trunk: Any = {"params": {f"Conv_{i}": flax_layer(model.network[2 * i]) for i in range(3)}}
    trunk["params"]["Dense_0"] = flax_layer(model.network[7])
    if policy:  # settings, then the parameters of trunk, actor and critic
        ends = {str(i): {"params": {"Dense_0": flax_layer(m)}} for i, m in enumerate((model.actor, model.critic), 1)}
        content: Any = {"0": {"env_id": "Pong-v5", "seed": 1}, "1": {"0": trunk} | ends}
    else:
        trunk["params"]["Dense_1"] = flax_layer(model.network[9])
        content = trunk
    path = tmp_path / "agent.cleanrl_model"
    path.write_bytes(msgpack.packb(content))
    network, *_ = read_foreign(path, spaces(6))
    with torch.no_grad():
        torch.testing.assert_close(network(OBSERVATIONS), model(OBSERVATIONS), rtol=0, atol=1e-5)
    content["1" if policy else "params"]["further"] = {"Dense_0": flax_layer(nn.Linear(3, 3))}
    path.write_bytes(msgpack.packb(content))
    with pytest.raises(UserError, match="is no array" if policy else r"further\.Dense_0\.\w+ is no part of a plain"):
        read_foreign(path, spaces(6))


def test_flax_statistics_beside_the_parameters_are_not_dropped(tmp_path: Path):
    path = tmp_path / "agent.cleanrl_model"
    layer = flax_layer(nn.Linear(3, 3))
    path.write_bytes(msgpack.packb({"params": {"Dense_0": layer}, "batch_stats": {"BatchNorm_0": layer}}))
    with pytest.raises(UserError, match="batch_stats beside its parameters is not known"):
        read_foreign(path, spaces(6))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("told", "dtype"),
    [(False, np.uint8), (0, np.uint8), (np.bool_(False), np.uint8), (True, np.int16), (True, np.int32), (1, np.uint8)],
)
def test_pixels_that_were_not_divided(tmp_path: Path, told: Any, dtype: Any):
    """Nor are those that the library takes for no pictures; the last are divided, as are the plain ones."""
    space = gymnasium.spaces.Box(0, 255, (4, 84, 84), dtype)
    extractor = {"features_extractor_kwargs": {"normalized_image": True}} if dtype != np.uint8 else {}
    model = trained(PPO, tmp_path / "agent.zip", space=space, normalize_images=told, **extractor)
    network, *_ = read_foreign(tmp_path / "agent.zip", spaces(6))
    with torch.no_grad():
        found = network(OBSERVATIONS).log_softmax(1)
    torch.testing.assert_close(found, outputs(model), rtol=0, atol=1e-4)


class ReLU(nn.LeakyReLU):
    """Called as PyTorch's own."""


class Leaky(NatureCNN):
    """The same tensors, another function between them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cnn = nn.Sequential(*(nn.LeakyReLU() if isinstance(m, nn.ReLU) else m for m in self.cnn))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "policy_kwargs", "named"),
    [
        (DQN, {"net_arch": [32], "activation_fn": nn.Tanh}, "Tanh follows its dense layers"),
        (DQN, {"net_arch": [32], "activation_fn": nn.ELU}, "ELU follows its dense layers"),
        (DQN, {"net_arch": [32], "activation_fn": ReLU}, r"\.ReLU follows its dense layers; only ReLU is computed"),
        (PPO, {"features_extractor_class": Leaky, "net_arch": []}, r"its features are extracted by \S+\.Leaky"),
    ],
)
def test_what_a_zip_says_of_its_network_is_believed(
    tmp_path: Path, algorithm: type[BaseAlgorithm], policy_kwargs: dict[str, Any], named: str
):
    trained(algorithm, tmp_path / "agent.zip", **policy_kwargs)
    with pytest.raises(UserError, match=named):
        read_foreign(tmp_path / "agent.zip", spaces(6))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({":type:": "<class 'gymnasium.spaces.multi_binary.MultiBinary'>"}, "action space is MultiBinary"),
        ({"n": 0}, r"action_space\.n is no number"),
        ({"n": -2}, r"action_space\.n is no number"),
        ({"n": 1e999}, r"action_space\.n is no number"),
        ({"n": 4}, "6 outputs for 4 actions"),
    ],
)
def test_what_a_zip_says_of_its_actions_is_believed(tmp_path: Path, change: dict[str, Any], named: str):
    trained(PPO, tmp_path / "agent.zip")
    with zipfile.ZipFile(tmp_path / "agent.zip") as whole:
        settings, policy = json.loads(whole.read("data")), whole.read("policy.pth")
    settings["action_space"] |= change
    with zipfile.ZipFile(tmp_path / "changed.zip", "w") as archive:
        archive.writestr("data", json.dumps(settings))
        archive.writestr("policy.pth", policy)
    with pytest.raises(UserError, match=named):
        read_foreign(tmp_path / "changed.zip", spaces(6))


def test_quantiles_without_their_number_are_not_guessed(tmp_path: Path):
    model = trained(QRDQN, tmp_path / "agent.zip", n_quantiles=9)
    torch.save(model.policy.state_dict(), tmp_path / "policy.pth")
    for sizes, named in (((6, 18), "6 or of 18"), ((18,), "18"), ((6,), "6")):
        with pytest.raises(UserError, match=f"quantiles of {named} actions or others; give the zip"):
            read_foreign(tmp_path / "policy.pth", spaces(*sizes))
    model = trained(QRDQN, tmp_path / "agent.zip")
    torch.save(model.policy.state_dict(), tmp_path / "policy.pth")
    assert read_foreign(tmp_path / "policy.pth", spaces(6))[0].actions == 6  # with the default number of quantiles


class Tilted(dqn_policies.CnnPolicy):
    """A policy of one's own whose tensors are those of the plain one."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{**settings, "net_arch": [32], "activation_fn": nn.Tanh})


@pytest.mark.slow
@pytest.mark.parametrize(("high", "divisor"), [(1, 255.0), (255, 1.0)])
@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_pictures_of_real_numbers(tmp_path: Path, algorithm: type[BaseAlgorithm], high: int, divisor: float):
    space = gymnasium.spaces.Box(0, high, (4, 84, 84), np.float32)
    model = trained(algorithm, tmp_path / "agent.zip", space=space, normalize_images=False)
    network, *_ = read_foreign(tmp_path / "agent.zip", spaces(6))
    given = OBSERVATIONS / divisor
    with torch.no_grad():
        if isinstance(model, DQN):
            found, expected = network(OBSERVATIONS), model.policy.q_net(given)
        else:
            found = network(OBSERVATIONS).log_softmax(1)
            expected = model.policy.get_distribution(given).distribution.logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("space", "policy", "named"),
    [
        (gymnasium.spaces.Box(0, 255, (4, 86, 86), np.uint8), "CnnPolicy", r"shape \(4, 86, 86\), but the game gives"),
        (gymnasium.spaces.Box(0, 2, (4, 84, 84), np.float32), "CnnPolicy", r"float32 from 0\.0 to 2\.0; read are"),
        (gymnasium.spaces.Box(-1, 1, (4, 84, 84), np.float32), "CnnPolicy", r"float32 from -1\.0 to 1\.0; read are"),
        (gymnasium.spaces.Box(0, 254, (4, 84, 84), np.uint8), "CnnPolicy", r"uint8 from 0\.0 to 254\.0; read are"),
        (gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8), Tilted, r"policy is a class of \S*test_formats, which"),
    ],
)
def test_zips_that_say_that_they_are_something_else(tmp_path: Path, space: Any, policy: Any, named: str):
    more: dict[str, Any] = {"normalize_images": False} if space.dtype == np.float32 else {}
    if space.high.max() == 254:
        more = {"features_extractor_kwargs": {"normalized_image": True}}
    trained(DQN, tmp_path / "agent.zip", space=space, policy=policy, **more)
    with pytest.raises(UserError, match=named):
        read_foreign(tmp_path / "agent.zip", spaces(6))


@pytest.mark.parametrize(
    ("further", "named"),
    [
        ("network.8.weight", r"CleanRL PPO, but network\.8\.weight is no part"),
        ("network.11.weight", r"network\.11\.weight is no part"),
        ("lstm.weight_ih_l0", r"a recurrent agent \(LSTM\)"),
        ("critic_ext.weight", "random network distillation"),
        ("atoms", r"\(C51\)"),
        ("input_norm.running_mean", r"input_norm\.running_mean is no part"),
    ],
)
def test_every_tensor_is_read_or_the_agent_refused(tmp_path: Path, further: str, named: str):
    torch.save(CleanRL(True).state_dict() | {further: torch.ones(512)}, tmp_path / "agent.pt")
    with pytest.raises(UserError, match=named):
        read_foreign(tmp_path / "agent.pt", spaces(6))


@pytest.mark.parametrize(
    "odd",
    [
        torch.tensor(1.0),
        torch.zeros(0),
        torch.full((32,), torch.nan),
        torch.full((32,), torch.inf),
        torch.zeros(32).to_sparse(),
        torch.zeros(32, dtype=torch.int64),
        torch.zeros(32, device="meta"),
    ],
)
def test_odd_tensors_are_named(tmp_path: Path, odd: torch.Tensor):
    torch.save(CleanRL(True).state_dict() | {"network.0.bias": odd}, tmp_path / "agent.pt")
    with pytest.raises(UserError, match=r"network\.0\.bias|conv1\.bias"):
        read_foreign(tmp_path / "agent.pt", spaces(6))


def archive(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as opened:
        for name in names:
            opened.writestr(name, b"")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:44\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "HTML page"),
        (b"\n <html></html>", "HTML page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
        (b"\x93NUMPY\x01\x00" + bytes(64), "NumPy"),
        (b"\x08\x08\x12\x07pytorch\x1a\x052.13", "ONNX"),
        (["arr_0.npy", "arr_1.npy"], "NumPy"),
        (["data", "parameter_list", "parameters"], "Stable-Baselines 2"),
        (["net/constants.pkl", "net/code/__torch__.py"], "TorchScript"),
        ("tar", "tar archive"),
    ],
)
def test_files_that_are_no_agents_are_named(tmp_path: Path, content: bytes | list[str] | str, named: str):
    path = tmp_path / "agent.zip"
    if content == "tar":
        with tarfile.open(path, "w") as opened:
            opened.add(__file__, "agent.pt")
    elif isinstance(content, list):
        archive(path, *content)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=named) as raised:
        read_foreign(path, spaces(6))
    assert "\n" not in str(raised.value)
