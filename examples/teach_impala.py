"""Teach a network of another kind what an agent does: CleanRL's IMPALA ResNet learns from the shipped Pong agent.

    python examples/teach_impala.py impala-pong.safetensors distill.samples=400000

Settings are those of a run. The file is then a teacher as any other:

    lrp-compress game=pong teacher.source=impala-pong.safetensors prune.ratio=0.5
"""

from __future__ import annotations

import dataclasses
import sys

import torch
from torch import Tensor, nn

import lrp_compress as lc
from lrp_compress.agents.checkpoints import Agent, all_channels
from lrp_compress.agents.own_networks import module_network
from lrp_compress.environments.atari import game_spaces


class Residual(nn.Module):
    """Two convolutions beside a connection that passes them by."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """Compute maps of the same shape."""
        return maps + self.conv1(self.conv0(maps.relu()).relu())


class Impala(nn.Module):
    """The ResNet of Espeholt et al. 2018, "IMPALA" (figure 3, right)."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for before, after in ((4, 16), (16, 32), (32, 32)):
            parts += [nn.Conv2d(before, after, 3, padding=1), nn.MaxPool2d(3, stride=2, padding=1)]
            parts += [Residual(after), Residual(after)]
        self.maps = nn.Sequential(*parts, nn.ReLU(), nn.Flatten())
        self.units = nn.Sequential(nn.Linear(32 * 11 * 11, 256), nn.ReLU())
        self.actor = nn.Linear(256, actions)

    def forward(self, observations: Tensor) -> Tensor:
        """Compute action logits, shape (N, actions), from uint8 frames of shape (N, 4, 84, 84)."""
        logits: Tensor = self.actor(self.units(self.maps(observations / 255)))
        return logits


def main(path: str, *overrides: str) -> None:
    """Teach, save and play."""
    config = lc.settings("pong", "distill.learning_rate=1e-3", *overrides)
    torch.manual_seed(config.seed)
    teacher = lc.load_agent("auto", "pong")
    actions = teacher.network.actions
    network = module_network(Impala(actions), "policy", game_spaces("pong"), "the ResNet")
    # its units are given the values of the teacher's first ones as hints
    hinted = dataclasses.replace(teacher.info, kept={"fc1": list(range(network.widths["fc1"]))})
    student = lc.distill(Agent(network, hinted), teacher, lc.rollouts(teacher, config), config)
    info = dataclasses.replace(teacher.info, kept=all_channels(network.widths), lineage={"network": "IMPALA ResNet"})
    lc.save_agent(path, Agent(student.network, info))
    played = lc.evaluate(Agent(student.network, info), config)
    print(f"{path} plays at {played.mean:.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
