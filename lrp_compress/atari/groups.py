"""Environments in two groups, one of which is emulated while a network decides for the other; made once and kept."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.atari.envs import MAX_FRAMES, AtariEnvs, Step, envs_for

GROUPS = 2


class Emulators:
    """Groups of environments that are kept for the next who needs the same: an emulator takes 0.07 s to make.

    The games depend on the seed alone, not on what the emulators were lent for before.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], list[AtariEnvs]] = {}

    @contextlib.contextmanager
    def groups(
        self, agent: Agent, envs: int, protocol: str, seed: int, *, max_frames: int = MAX_FRAMES
    ) -> Iterator[list[AtariEnvs]]:
        """Lend the environments that `env_groups` would make, to be reset first; closed only after an error."""
        info = agent.info
        key = info.game, info.action_set, info.fire_on_life_loss, agent.network.actions, envs, protocol, max_frames
        groups = self._kept.pop(key, None) or list(env_groups(agent, envs, protocol, seed, max_frames=max_frames))
        with contextlib.ExitStack() as stack:
            for group in groups:
                group.seed = seed
                seed += group.envs
                stack.enter_context(group)
            yield groups
            stack.pop_all()
        self._kept[key] = groups


def env_groups(
    agent: Agent, envs: int, protocol: str, seed: int, *, max_frames: int = MAX_FRAMES
) -> Iterator[AtariEnvs]:
    """Make the environments of an agent in two groups, so that one is emulated while a network decides for the other.

    Together the emulator threads use the half of the cores that the networks leave.

    Parameters
    ----------
    agent : Agent
        The agent, as for `envs_for`.
    envs : int
        Environments in all; a single one makes one group.
    protocol : str
        Name of the protocol.
    seed : int
        Environment ``i`` of all is seeded with ``seed + i``.
    max_frames : int
        Emulator frames after which an episode is cut.

    Yields
    ------
    AtariEnvs
    """
    threads = max(1, (os.cpu_count() or 1) // (2 * GROUPS))
    bounds = [0, (envs + 1) // GROUPS, envs]
    for first, last in itertools.pairwise(bounds):
        if last > first:
            yield envs_for(agent, last - first, protocol, seed + first, max_frames=max_frames, threads=threads)


def reset_groups(groups: Sequence[AtariEnvs]) -> list[Step]:
    """Start new episodes in all groups at the same time: a seeded emulator reads its game anew, which takes 0.1 s."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(AtariEnvs.reset, groups))
