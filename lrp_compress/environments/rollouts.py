"""States the teacher visits, with its outputs; each frame is kept once."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.config.schema import RolloutsConfig
from lrp_compress.environments.acting import Outputs, choose_actions, cores_shared_with_emulators
from lrp_compress.environments.groups import Acting, in_threads, reset_groups
from lrp_compress.networks.fast import batched_outputs
from lrp_compress.support.files import atomic_path

STACK, SIDE = 4, 84
HELD_OUT = 1 / 6  # of the states: games that nothing is solved or learned from


@dataclass(frozen=True)
class LabelledStates:
    """States of play and what the teacher said of them.

    Attributes
    ----------
    observations : Tensor of uint8, shape (N, 4, 84, 84)
    outputs : Tensor of float32, shape (N, actions)
    """

    observations: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class Rollouts:
    """States of play and what the teacher said of them.

    Attributes
    ----------
    frames : Tensor of uint8, shape (F, 84, 84)
        Grey frames; consecutive states share theirs.
    starts : Tensor of int64, shape (N,)
        State ``i`` is ``frames[starts[i] : starts[i] + 4]``, oldest first.
    outputs : Tensor of float32, shape (N, actions)
        The teacher's outputs.
    episodes : Tensor of int64, shape (N,)
        Index of the episode a state belongs to.
    protocol : str
        Name of the protocol played under.
    seed : int
        Seed of the environments and of the action choice.
    """

    frames: Tensor
    starts: Tensor
    outputs: Tensor
    episodes: Tensor
    protocol: str
    seed: int

    def __len__(self) -> int:
        return len(self.starts)

    def observations(self, indices: Tensor) -> Tensor:
        """Rebuild stacked observations.

        Parameters
        ----------
        indices : Tensor of int64, shape (n,)
            Which states.

        Returns
        -------
        Tensor of uint8, shape (n, 4, 84, 84)
        """
        return stacks(self.frames, self.starts[indices])

    def held_out(self, share: float = HELD_OUT) -> Tensor:
        """Choose states to judge by: of whole games, the last ones.

        Parameters
        ----------
        share : float
            Of the states that are chosen at least, in (0, 1).

        Returns
        -------
        Tensor of bool, shape (N,)
            Of a single game the last states.
        """
        first = len(self) - round(len(self) * share)
        chosen = self.episodes >= self.episodes[first]
        return chosen if not chosen.all() else torch.arange(len(self)) >= first

    def part(self, chosen: Tensor, at_most: int | None = None) -> LabelledStates:
        """Take the states where `chosen`, of bool, shape (N,), is set, or some of them, evenly spaced."""
        indices = chosen.nonzero().flatten()
        if at_most is not None and at_most < len(indices):
            indices = indices[torch.linspace(0, len(indices) - 1, at_most).round().long()]
        return LabelledStates(self.observations(indices), self.outputs[indices])


def stacks(frames: Tensor, starts: Tensor) -> Tensor:
    """Gather stacks of four consecutive frames, one block copy a stack.

    Parameters
    ----------
    frames : Tensor of uint8, shape (F, 84, 84)
        Contiguous.
    starts : Tensor of int64, shape (n,)
        First frame of each stack.

    Returns
    -------
    Tensor of uint8, shape (n, 4, 84, 84)
    """
    count, height, width = frames.shape
    size = height * width
    windows = frames.view(-1).as_strided((count - STACK + 1, STACK * size), (size, 1))
    return windows.index_select(0, starts).view(-1, STACK, height, width)


def collect_rollouts(
    agent: Agent, config: RolloutsConfig, acting: Acting, outputs_of: Outputs | None = None
) -> Rollouts:
    """Let an agent play and keep states spread over its episodes.

    Each environment keeps one block of ``config.block`` consecutive states out of every ``config.every`` blocks it
    plays, at staggered times, so the states cover whole games at little more than one frame each.

    Parameters
    ----------
    agent : Agent
        The player.
    config : RolloutsConfig
        How many states, from how many environments, in what blocks.
    acting : Acting
        How it plays.
    outputs_of : callable, optional
        What computes the agent's outputs in its network's place, such as a file of it in another runtime.
    """
    outputs_of = outputs_of or (lambda observations: batched_outputs(agent.network, torch.from_numpy(observations)))
    quota = -(-config.states // config.envs)
    players = [_EnvRecord(quota) for _ in range(config.envs)]
    with (
        cores_shared_with_emulators(),
        acting.emulators.groups(agent, config.envs, acting.protocol, acting.seed) as groups,
        tqdm(total=quota * config.envs, desc="rollouts", unit="state", leave=False, disable=None) as progress,
    ):
        steps = reset_groups(groups)
        ends = list(itertools.accumulate(envs.envs for envs in groups))

        def play(number: int, ended: Event) -> None:
            rng = np.random.default_rng([acting.seed, number])
            envs, step = groups[number], steps[number]
            begin = ends[number] - envs.envs
            own = players[begin : ends[number]]
            for t in itertools.count():
                outputs = outputs_of(step.observations)
                kept = 0
                for row, player in enumerate(own):
                    player.episode += int(step.first[row])
                    wanted = (t // config.block + begin + row) % config.every == 0 and not step.ended[row]
                    kept += player.observe(step.observations[row], outputs[row], wanted, bool(step.first[row]))
                progress.update(kept)
                if ended.is_set() or all(len(player.starts) == quota for player in own):
                    return
                step = envs.step(choose_actions(outputs, acting.rule, rng))

        in_threads(play, range(len(groups)))
    return _join(players, config.states, acting.protocol, acting.seed)


class _EnvRecord:
    """What one environment has kept so far, up to its quota of states."""

    def __init__(self, quota: int) -> None:
        self.quota = quota
        # in one piece, of which only what is written takes memory: thousands of small arrays would keep the freed
        # observations between them from being used again
        self._frames = np.empty((quota * STACK, SIDE, SIDE), np.uint8)
        self.starts: list[int] = []
        self.outputs: list[Tensor] = []
        self.episodes: list[int] = []
        self.episode = -1
        self._count = 0
        self._adjoining = False

    def observe(self, stack: NDArray[np.uint8], outputs: Tensor, wanted: bool, first: bool) -> bool:
        """Keep a state if it is wanted and there is room, and tell whether it was kept."""
        wanted = wanted and len(self.starts) < self.quota
        if wanted:
            new = stack[-1:] if self._adjoining and not first else stack
            self._frames[self._count : self._count + len(new)] = new
            self._count += len(new)
            self.starts.append(self._count - STACK)
            self.outputs.append(outputs)
            self.episodes.append(self.episode)
        self._adjoining = wanted
        return wanted

    @property
    def frames(self) -> NDArray[np.uint8]:
        return self._frames[: self._count]


def _join(players: list[_EnvRecord], states: int, protocol: str, seed: int) -> Rollouts:
    frames, starts, episodes = [], [], []
    frame_offset = episode_offset = 0
    for player in players:
        frames.append(player.frames)
        starts += [start + frame_offset for start in player.starts]
        episodes += [episode + episode_offset for episode in player.episodes]
        frame_offset += len(player.frames)
        episode_offset += player.episode + 1
    # thin out evenly: dropping the surplus at the end would drop the last environment's
    pick = np.linspace(0, len(starts) - 1, states).round().astype(np.int64)
    return Rollouts(
        torch.from_numpy(np.concatenate(frames)),
        torch.tensor(starts)[pick],
        torch.stack([output for player in players for output in player.outputs])[pick],
        torch.tensor(episodes)[pick],
        protocol,
        seed,
    )


def save_rollouts(path: Path, rollouts: Rollouts) -> None:
    """Write rollouts as safetensors, atomically; the frames deflated, since most of a frame is as in the one before."""
    tensors = {name: getattr(rollouts, name) for name in ("starts", "outputs", "episodes")}
    deflated = np.frombuffer(zlib.compress(rollouts.frames.numpy().tobytes(), level=1), np.uint8)
    tensors["frames"] = torch.from_numpy(deflated.copy())
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"protocol": rollouts.protocol, "seed": str(rollouts.seed)})


def load_rollouts(path: Path, protocol: str, seed: int) -> Rollouts:
    """Read rollouts written by `save_rollouts`; protocol and seed are part of the cache's key."""
    tensors = load_file(path)
    inflated = bytearray(zlib.decompress(tensors.pop("frames").numpy().tobytes()))
    frames = torch.frombuffer(inflated, dtype=torch.uint8).view(-1, SIDE, SIDE)
    return Rollouts(frames, **tensors, protocol=protocol, seed=seed)
