"""The shipped agent plays better than random actions; an untrained one does not, and is told apart."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lrp_compress.agents.checkpoints import Agent, load_agent
from lrp_compress.agents.teachers import teachers_dir
from lrp_compress.environments import probing
from lrp_compress.environments.acting import ActionRule
from lrp_compress.environments.groups import Acting
from lrp_compress.environments.probing import probe
from lrp_compress.networks.nature import nature_cnn

pytestmark = pytest.mark.slow

SAMPLE = ActionRule("sample", 0.0)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "ENVS", 8)
    monkeypatch.setattr(probing, "STEPS", 150)


def test_a_trained_agent_is_better_than_random():
    agent = load_agent(teachers_dir() / "breakout.safetensors")
    result = probe(agent, Acting(SAMPLE, "noop", 1))
    assert result.better
    assert result.reward > 3 * result.random


def test_an_untrained_agent_is_not():
    agent = load_agent(teachers_dir() / "breakout.safetensors")
    torch.manual_seed(0)
    untrained = nature_cnn({"conv1": 4, "conv2": 4, "conv3": 4, "fc1": 8}, "policy", 4)
    result = probe(Agent(untrained, dataclasses.replace(agent.info, fire_on_life_loss=True)), Acting(SAMPLE, "noop", 1))
    assert not result.better
    assert "no better than random actions" in str(result)
    assert "teacher.fire_on_life_loss=false" in str(result)
    assert "\n" not in str(result)
