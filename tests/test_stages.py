"""What the stages of a run hand on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lrp_compress.agents.checkpoints import Agent, AgentInfo
from lrp_compress.agents.networks import PolicyNetwork
from lrp_compress.checks import check_config, conf_dir, register_schemas
from lrp_compress.config import Config
from lrp_compress.stages import Stages
from lrp_compress.tracking.tracker import Tracker


@pytest.mark.parametrize(("episodes", "fewer"), [(4, 2), (2, 2)])
def test_the_undistilled_networks_play_fewer_games(tmp_path: Path, episodes: int, fewer: int):
    register_schemas()
    OmegaConf.register_new_resolver("run_folder", str, replace=True)
    settings = {"episodes": episodes, "pruned_episodes": 2, "envs": 2, "max_frames": 40}
    overrides = [f"evaluate.{name}={value}" for name, value in settings.items()]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = check_config(compose("config", ["+game=breakout", f"cache_dir={tmp_path}", *overrides]), Config)
    network = PolicyNetwork({"conv1": 2, "conv2": 2, "conv3": 2, "fc1": 2}, "policy", 4)
    agent = Agent(network, AgentInfo("breakout", "minimal", True, {}, {}))
    stages = Stages(config, agent, "digest", tmp_path / "stages", Tracker())
    games = {name: len(stages.evaluate(agent, name).episodes) for name in ("teacher", "pruned", "repaired", "student")}
    assert games == {"teacher": episodes, "pruned": fewer, "repaired": fewer, "student": episodes}
