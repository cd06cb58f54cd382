"""What the stages of a run hand on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lrp_compress.agents.checkpoints import Agent, AgentInfo, all_channels
from lrp_compress.compression import tuning
from lrp_compress.compression.tuning import Effort
from lrp_compress.config.checks import check_config, conf_dir, register_schemas
from lrp_compress.config.schema import Config
from lrp_compress.deployment.measuring.profiling import profile_network
from lrp_compress.networks.nature import nature_cnn
from lrp_compress.stages.context import Run
from lrp_compress.stages.judging import evaluate
from lrp_compress.stages.learning import plan, prune, ratios, score
from lrp_compress.stages.playing import float_file
from lrp_compress.support.files import SUMS, read_json
from lrp_compress.tracking.tracker import Tracker
from tests.compression.test_tuning import WIDTHS as WIDTHS_BY_HEAD
from tests.compression.test_tuning import played, small_network

pytestmark = pytest.mark.slow

WIDTHS = WIDTHS_BY_HEAD["policy"]


def small_run(tmp_path: Path, *overrides: str) -> Run:
    register_schemas()
    OmegaConf.register_new_resolver("run_folder", str, replace=True)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = check_config(compose("config", ["+game=breakout", f"cache_dir={tmp_path}", *overrides]), Config)
    network = nature_cnn({"conv1": 2, "conv2": 2, "conv3": 2, "fc1": 2}, "policy", 4)
    agent = Agent(network, AgentInfo("breakout", "minimal", True, {}, {}))
    return Run(config, agent, "digest", tmp_path / "stages", Tracker())


@pytest.mark.parametrize(("episodes", "fewer"), [(4, 2), (2, 2)])
def test_the_undistilled_networks_play_fewer_games(tmp_path: Path, episodes: int, fewer: int):
    settings = {"episodes": episodes, "pruned_episodes": 2, "envs": 2, "max_frames": 40}
    run = small_run(tmp_path, *(f"evaluate.{name}={value}" for name, value in settings.items()))
    agents = ("teacher", "pruned", "repaired", "student")
    games = {name: len(evaluate(run, run.teacher, name).episodes) for name in agents}
    assert games == {"teacher": episodes, "pruned": fewer, "repaired": fewer, "student": episodes}


@pytest.mark.parametrize("lost", [b"", b"\xff", None])
def test_an_onnx_file_is_made_again_though_its_digest_is_lost_too(
    tmp_path: Path, lost: bytes | None, caplog: pytest.LogCaptureFixture
):
    run = small_run(tmp_path)
    path = float_file(run, run.teacher, "student")
    whole = path.read_bytes()
    if lost is None:
        (path.parent / SUMS).unlink()
    else:
        (path.parent / SUMS).write_bytes(lost)
    path.write_bytes(whole[: len(whole) // 2])
    assert float_file(run, run.teacher, "student") == path
    assert path.read_bytes() == whole
    assert caplog.text.count("student.onnx is damaged") == 1


class Noted(Tracker):
    """Keeps what a run would show of its settings."""

    def __init__(self) -> None:
        self.noted: dict[str, object] = {}

    def params(self, values: Mapping[str, object]) -> None:
        self.noted |= values

    def tags(self, values: Mapping[str, str]) -> None:
        self.noted |= values


def test_tuned_rules_and_chosen_widths_are_noted_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tuning, "TRIAL", Effort((0.5,), 16, 32, 12))
    monkeypatch.setattr(tuning, "FINAL", Effort((0.5,), 16, 60, 12))
    register_schemas()
    OmegaConf.register_new_resolver("run_folder", str, replace=True)
    overrides = ["criterion=lrp_tuned", "criterion.trials=7", "prune=auto", "prune.budget=macs", "prune.share=0.5"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = check_config(compose("config", ["+game=breakout", f"cache_dir={tmp_path}", *overrides]), Config)
    network = small_network("policy")
    agent = Agent(network, AgentInfo("breakout", "minimal", True, {}, all_channels(network.widths)))
    rollouts, noted = played(network), (Noted(), Noted())
    plans = []
    for tracker in noted:
        run = Run(config, agent, "digest", tmp_path / "stages", tracker)
        chosen = ratios(run, rollouts)
        scores = score(run, agent, rollouts, 1)
        plans.append(plan(run, chosen, agent, scores, 1, chosen.ratio))
        student = prune(run, agent, plans[-1], 1)
    macs = [profile_network(one.network).macs for one in (student, agent)]
    assert 0.3 < macs[0] / macs[1] <= 0.5
    assert plans[0] == plans[1]
    assert noted[0].noted == noted[1].noted
    expected = {
        f"prune.layer_ratios.{name}": 1 - student.network.widths[name] / network.widths[name] for name in WIDTHS
    }
    assert noted[0].noted == {"composite.step_1": scores.composite} | expected
    assert scores.composite.startswith("head ")
    assert read_json(tmp_path / "stages" / "step-1" / "scores.json")["composite"] == scores.composite
