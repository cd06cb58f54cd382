"""A student goes on learning from real Breakout: from the rewards, near the teacher, and on from its checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from lrp_compress.agents.checkpoints import Agent, load_agent
from lrp_compress.agents.teachers import teachers_dir
from lrp_compress.compression.finetuning import WARM_UP, ProximalLearner, Update, finetune
from lrp_compress.compression.trajectories import Trajectories, trajectories
from lrp_compress.config.checks import conf_dir
from lrp_compress.config.schema import FinetuneConfig
from lrp_compress.environments.acting import ActionRule
from lrp_compress.environments.groups import Acting
from lrp_compress.networks.fast import batched_outputs
from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import nature_cnn
from lrp_compress.support.errors import UserError

pytestmark = pytest.mark.slow

BLOCK = 4 * 8  # steps
ACTING = Acting(ActionRule("sample", 0.0), "noop", 0)


@pytest.fixture(scope="module")
def teacher(device: str) -> Agent:
    agent = load_agent(teachers_dir() / "breakout.safetensors")
    return Agent(agent.network.to(device), agent.info)


@pytest.fixture(scope="module")
def student(device: str) -> Network:
    torch.manual_seed(0)
    return nature_cnn({"conv1": 8, "conv2": 8, "conv3": 8, "fc1": 16}, "policy", 4).to(device)


def configured(**changes: Any) -> FinetuneConfig:
    defaults = OmegaConf.load(Path(conf_dir()) / "finetune" / "ppd.yaml")
    small = {"envs": 4, "n_steps": 8, "batch_size": 64, "checkpoint_minutes": 0}
    return FinetuneConfig(**{**OmegaConf.to_container(defaults), **small, **changes})  # type: ignore[arg-type]


def weights(network: Network) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()]).cpu()


@pytest.fixture(scope="module")
def block(student: Network, teacher: Agent) -> Trajectories:
    with contextlib.closing(trajectories(student, teacher, (8, 16), "noop", 0, torch.float32)) as blocks:
        return next(blocks)


def log_probs(network: Network, block: Trajectories) -> torch.Tensor:
    outputs = batched_outputs(network, block.observations.flatten(0, 1))
    return outputs.log_softmax(1).view(block.teacher_log_probs.shape)


def learned(student: Network, block: Trajectories, turns: int, **changes: Any) -> tuple[ProximalLearner, list[Update]]:
    """Let a student learn again and again from the same states, each time with its own policy's probabilities."""
    learner = ProximalLearner(student, configured(steps=10**6, **changes), torch.float32)
    batches = torch.Generator().manual_seed(0)
    updates = []
    for _ in range(turns):
        own = log_probs(learner.student, block).gather(2, block.actions[..., None]).squeeze(2)
        updates.append(learner.learn(dataclasses.replace(block, log_probs=own), batches))
    return learner, updates


def test_the_critic_learns_before_the_student(student: Network, block: Trajectories):
    learner, updates = learned(student, block, WARM_UP)
    assert weights(learner.student).equal(weights(student))
    assert updates[-1].steps == WARM_UP * block.actions.numel()
    assert all(math.isnan(update.divergence) for update in updates)
    learner, updates = learned(student, block, WARM_UP + 1)
    assert not weights(learner.student).equal(weights(student))
    assert math.isfinite(updates[-1].divergence)


@pytest.mark.parametrize("action", [0, 3])
def test_what_is_rewarded_is_done_more_often(student: Network, block: Trajectories, action: int):
    rewarded = dataclasses.replace(block, rewards=(block.actions == action).float())
    learner, updates = learned(student, rewarded, WARM_UP + 8, divergence=0, gamma=0, learning_rate=2e-3)
    before, after = (log_probs(network, block).exp().mean((0, 1))[action] for network in (student, learner.student))
    assert after > before + 0.08
    assert 0 < updates[-1].clip_fraction < 1


def test_the_divergence_brings_it_to_its_teacher(student: Network, block: Trajectories):
    _, updates = learned(student, block, WARM_UP + 12, divergence=50, learning_rate=2e-3)
    assert updates[-1].divergence < 0.7 * updates[WARM_UP].divergence


def test_the_entropy_keeps_it_undecided(student: Network, block: Trajectories):
    rewarded = dataclasses.replace(block, rewards=(block.actions == 2).float())
    decided, undecided = (
        learned(student, rewarded, WARM_UP + 8, divergence=0, learning_rate=2e-3, ent_coef=weight)[1][-1].entropy
        for weight in (0, 10)
    )
    assert undecided > decided + 0.05


class Cut(Exception):
    pass


def test_it_goes_on_from_its_checkpoint(student: Network, teacher: Agent, tmp_path: Path):
    checkpoint = tmp_path / "finetuning.pt"
    blocks, before = WARM_UP + 3, weights(student).clone()
    config = configured(steps=blocks * BLOCK)
    heard: list[Update] = []

    def cut_off(updates: list[Update]) -> None:
        heard.extend(updates)
        if heard[-1].steps == (WARM_UP + 2) * BLOCK:
            raise Cut

    with pytest.raises(Cut):
        finetune(student, teacher, config, ACTING, checkpoint, cut_off)
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["steps"] == (WARM_UP + 1) * BLOCK
    heard = []
    network = finetune(student, teacher, config, ACTING, checkpoint, heard.extend)
    assert [update.steps for update in heard] == [BLOCK * (WARM_UP + 2), BLOCK * (WARM_UP + 3)]
    assert all(math.isfinite(update.divergence) for update in heard)
    at_checkpoint = nature_cnn(student.widths, "policy", 4)
    at_checkpoint.load_state_dict(saved["student"])
    distances = [(weights(network) - weights(start)).norm().item() for start in (at_checkpoint, student)]
    assert 0 < distances[0] < distances[1]
    assert weights(student).equal(before)
    assert not network.training


def test_a_damaged_checkpoint_is_named(student: Network, teacher: Agent, tmp_path: Path):
    checkpoint = tmp_path / "finetuning.pt"
    checkpoint.write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(UserError, match=r"finetuning\.pt is no whole checkpoint; force=true"):
        finetune(student, teacher, configured(steps=BLOCK), ACTING, checkpoint)
