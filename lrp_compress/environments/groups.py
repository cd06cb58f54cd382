"""Environments in groups, one of which is emulated while a network decides for another; made once and kept."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event
from typing import TypeVar

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.environments.acting import ActionRule
from lrp_compress.environments.atari import MAX_FRAMES, AtariEnvs, Step, envs_for

GROUPS = 2
T = TypeVar("T")


class Emulators:
    """Groups of environments that are kept for the next who needs such ones: an emulator takes 0.1 s to make.

    The games depend on the seed alone, not on what the emulators were lent for before.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], list[AtariEnvs]] = {}

    @contextlib.contextmanager
    def groups(
        self,
        agent: Agent,
        envs: int,
        protocol: str,
        seed: int,
        *,
        max_frames: int = MAX_FRAMES,
        count: int = GROUPS,
    ) -> Iterator[list[AtariEnvs]]:
        """Lend the environments that `env_groups` would make, to be reset first; closed only after an error."""
        info, parts = agent.info, _parts(envs, seed, count)
        own = info.game, info.action_set, info.fire_on_life_loss, info.frame_skip, agent.network.actions
        stocks = [self._kept.setdefault((*own, protocol, max_frames, part.envs, part.threads), []) for part in parts]
        taken = [stock.pop() if stock else None for stock in stocks]
        with ThreadPoolExecutor() as makers:
            groups = list(makers.map(lambda kept, part: kept or part.made(agent, protocol, max_frames), taken, parts))
        with contextlib.ExitStack() as stack:
            for group, part in zip(groups, parts, strict=True):
                group.seed = part.seed
                stack.enter_context(group)
            yield groups
            stack.pop_all()
        for stock, group in zip(stocks, groups, strict=True):
            stock.append(group)


@dataclass(frozen=True)
class Acting:
    """How agents play.

    Attributes
    ----------
    rule : ActionRule
        How actions are chosen.
    protocol : str
        Name of the protocol.
    seed : int
        Of the environments and of the choice of actions.
    emulators : Emulators
        Where the environments come from.
    """

    rule: ActionRule
    protocol: str
    seed: int
    emulators: Emulators = field(default_factory=Emulators)


def env_groups(
    agent: Agent, envs: int, protocol: str, seed: int, *, max_frames: int = MAX_FRAMES, count: int = GROUPS
) -> list[AtariEnvs]:
    """Make the environments of an agent in groups, so that one is emulated while a network decides for another.

    Together the emulator threads use the half of the cores that the networks leave, one per group at least.

    Parameters
    ----------
    agent : Agent
        The agent, as for `envs_for`.
    envs : int
        Environments in all.
    protocol : str
        Name of the protocol.
    seed : int
        Environment ``i`` of all is seeded with ``seed + i``.
    max_frames : int
        Emulator frames after which an episode is cut.
    count : int
        Groups, as even as can be; fewer where there are fewer environments.
    """
    with ThreadPoolExecutor() as makers:
        return list(makers.map(lambda part: part.made(agent, protocol, max_frames), _parts(envs, seed, count)))


@dataclass(frozen=True)
class _Part:
    """One of several groups of environments: how many there are in it, the first one's seed, and their threads."""

    envs: int
    seed: int
    threads: int

    def made(self, agent: Agent, protocol: str, max_frames: int) -> AtariEnvs:
        return envs_for(agent, self.envs, protocol, self.seed, max_frames=max_frames, threads=self.threads)


def _parts(envs: int, seed: int, count: int) -> list[_Part]:
    threads = max(1, (os.cpu_count() or 1) // (2 * count))
    bounds = [round(envs * number / count) for number in range(count + 1)]
    return [
        _Part(last - first, seed + first, min(threads, last - first))
        for first, last in itertools.pairwise(bounds)
        if last > first
    ]


def reset_groups(groups: Sequence[AtariEnvs]) -> list[Step]:
    """Start new episodes in all groups at the same time: a seeded emulator reads its game anew, which takes 0.1 s."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(AtariEnvs.reset, groups))


def in_threads(work: Callable[[T, Event], None], parts: Sequence[T]) -> None:
    """Work on each part in a thread of its own, so that one emulates while a network decides for another.

    Parameters
    ----------
    work : callable
        Has to end soon when the event given is set: after an error in another thread, or an interruption.
    parts : sequence
        What to work on.
    """
    ended = Event()

    def guarded(part: T) -> None:
        try:
            work(part, ended)
        except BaseException:
            ended.set()
            raise

    with ThreadPoolExecutor(len(parts)) as threads:
        try:
            list(threads.map(guarded, parts))
        finally:
            ended.set()
