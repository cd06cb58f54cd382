"""ALE's C++ vector environment under a named protocol: the only file that imports ale_py."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import TracebackType

import ale_py
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from numpy.typing import NDArray

from lrp_compress.agents.checkpoints import Agent, AgentInfo
from lrp_compress.networks.spaces import Observations, Spaces
from lrp_compress.support.errors import UserError, unknown_name

BRIGHTEST = 255.0  # pixel
MAX_FRAMES = 108_000  # 30 minutes of play at 60 Hz, the usual cap (Hessel et al. 2018; Mnih et al. 2015 had 5)


@dataclass(frozen=True)
class Protocol:
    """How episodes start and how actions reach the emulator.

    Attributes
    ----------
    repeat_action_probability : float
        Probability that ALE repeats the previous action (sticky actions).
    noop_max : int
        Upper bound, exclusive, on the no-op frames at an episode's start.
    """

    repeat_action_probability: float
    noop_max: int


PROTOCOLS = {
    "noop": Protocol(repeat_action_probability=0.0, noop_max=30),  # Mnih et al. 2015
    "sticky": Protocol(repeat_action_probability=0.25, noop_max=0),  # Machado et al. 2018
}


@dataclass(frozen=True)
class Step:
    """What one step of all environments gave.

    Attributes
    ----------
    observations : ndarray of uint8, shape (envs, 4, 84, 84)
        Oldest frame first, zeros before the start of an episode. A fresh array at every step.
    rewards : ndarray of float64, shape (envs,)
        Unclipped game rewards; 0 in rows that have just been reset.
    ended : ndarray of bool, shape (envs,)
        The episode is over (game over or frame cap); the observation is its last.
    capped : ndarray of bool, shape (envs,)
        The episode ended by the frame cap.
    first : ndarray of bool, shape (envs,)
        The observation is the first of a new episode; the action given was ignored.
    lives : ndarray of int, shape (envs,)
        Lives left; always 0 in games without lives.
    """

    observations: NDArray[np.uint8]
    rewards: NDArray[np.float64]
    ended: NDArray[np.bool_]
    capped: NDArray[np.bool_]
    first: NDArray[np.bool_]
    lives: NDArray[np.int64]


@dataclass(frozen=True)
class Interface:
    """How an agent meets a game.

    Attributes
    ----------
    action_set : {"minimal", "full"}
        The game's minimal action set or ALE's 18 actions.
    fire_on_life_loss : bool
        Press FIRE in place of the agent's action after a life is lost, and at the start of an episode, for agents
        trained under a wrapper that did so.
    frame_skip : int
        Emulator frames of a step; the observation is the maximum of the last two.
    max_frames : int
        Emulator frames after which an episode is cut.
    """

    action_set: str = "minimal"
    fire_on_life_loss: bool = False
    frame_skip: int = 4
    max_frames: int = MAX_FRAMES


class AtariEnvs:
    """Several emulators of one game, stepped together by C++ threads.

    Frame skip 4, maximum over the last two frames, grey 84x84, 4 frames stacked. Rewards are unclipped and a lost life
    never ends an episode. After an episode has ended the next step ignores the action and returns the first
    observation of a new episode (``Step.first``).

    Parameters
    ----------
    game : str
        ROM id, e.g. ``"breakout"``.
    envs : int
        Number of emulators.
    protocol : str
        A name in `PROTOCOLS`.
    seed : int
        Environment ``i`` is seeded with ``seed + i``.
    interface : Interface
        Action set, frame skip and so on.
    threads : int
        Emulator threads; 0 leaves it to ALE (one per core).

    Attributes
    ----------
    observations : Observations
        What agents are given.
    seed : int
        Of the next `reset`, which makes the same games of a seed whatever was played before.

    Raises
    ------
    UserError
        If the game or the protocol is unknown, or FIRE is asked for in a game that has no such action.
    """

    def __init__(
        self,
        game: str,
        envs: int,
        protocol: str,
        seed: int,
        interface: Interface = Interface(),
        threads: int = 0,
    ) -> None:
        if protocol not in PROTOCOLS:
            raise unknown_name("protocol", protocol, PROTOCOLS)
        if game not in ale_py.roms.get_all_rom_ids():
            raise unknown_name("game.name", game, ale_py.roms.get_all_rom_ids())
        rules = PROTOCOLS[protocol]
        self._env = AtariVectorEnv(
            game,
            envs,
            num_threads=threads,
            frameskip=interface.frame_skip,
            max_num_frames_per_episode=interface.max_frames,
            repeat_action_probability=rules.repeat_action_probability,
            noop_max=rules.noop_max,
            full_action_space=interface.action_set == "full",
            reward_clipping=False,
            episodic_life=False,
            life_loss_info=False,
            use_fire_reset=False,
        )
        pictures = self._env.single_observation_space
        self.observations = Observations(pictures.shape or (), str(pictures.dtype), BRIGHTEST)
        self.envs = envs
        names = [action.name for action in self._env.ale.get_action_set()]
        self.action_names = names
        self.actions = len(names)
        if interface.fire_on_life_loss and "FIRE" not in names:
            raise UserError(
                f"{game} has no FIRE action to press after a life loss; set teacher.fire_on_life_loss=false"
            )
        self._fire = interface.fire_on_life_loss
        self._fire_action = names.index("FIRE") if "FIRE" in names else 0
        self.seed = seed
        self._waiting = False

    def reset(self) -> Step:
        """Start new episodes everywhere, the random streams from ``seed``; a step in flight is forgotten."""
        if self._waiting:
            self.receive()
        observations, info = self._env.reset(seed=self.seed)
        none = np.zeros(self.envs, dtype=bool)
        self._lives = info["lives"].astype(np.int64)
        self._press_fire = np.full(self.envs, self._fire)
        self._ended = none
        return Step(observations, np.zeros(self.envs), none, none, ~none, self._lives)

    def restart(self, rows: NDArray[np.bool_]) -> Step:
        """Abandon the episodes of some environments and start new ones there.

        Parameters
        ----------
        rows : ndarray of bool, shape (envs,)
            Which environments; their random streams go on.

        Returns
        -------
        Step
            The current observations of all environments; ``first`` is set in the new rows.
        """
        observations, info = self._env.reset(options={"reset_mask": rows})
        self._lives = info["lives"].astype(np.int64)
        self._press_fire = np.where(rows, self._fire, self._press_fire)
        self._ended = self._ended & ~rows
        none = np.zeros(self.envs, dtype=bool)
        return Step(observations, np.zeros(self.envs), self._ended, none, rows.copy(), self._lives)

    def send(self, actions: NDArray[np.integer]) -> None:
        """Hand actions to the emulator threads and return at once; `receive` collects the result.

        Parameters
        ----------
        actions : ndarray of int, shape (envs,)
            One action index per environment.

        Raises
        ------
        ValueError
            If an action is out of range (ALE's workers would hang for ever).
        """
        actions = np.asarray(actions, dtype=np.int64)
        if actions.shape != (self.envs,) or actions.min() < 0 or actions.max() >= self.actions:
            raise ValueError(f"actions must be {self.envs} integers in [0, {self.actions}), got {actions.tolist()}")
        self._env.send(np.where(self._press_fire, self._fire_action, actions))
        self._waiting = True

    def receive(self) -> Step:
        """Wait for the step begun by `send`."""
        self._waiting = False  # first: a signal that came while it waits is raised as soon as the result is there
        observations, rewards, terminated, truncated, info = self._env.recv()
        first = self._ended
        lives = info["lives"].astype(np.int64)
        self._ended = terminated | truncated
        if self._fire:
            self._press_fire = (first | (lives < self._lives)) & ~self._ended
        self._lives = lives
        return Step(observations, rewards.astype(np.float64), self._ended, truncated & ~terminated, first, lives)

    def step(self, actions: NDArray[np.integer]) -> Step:
        """`send` and `receive` in one call."""
        self.send(actions)
        return self.receive()

    def close(self) -> None:
        """Let a step in flight end and free the emulators."""
        if self._waiting:
            self.receive()
        self._env.close()

    def __enter__(self) -> AtariEnvs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@functools.cache
def game_spaces(game: str) -> Spaces:
    """Find what a game's environment gives and takes; every game understands all 18 actions of ALE."""
    with AtariEnvs(game, 1, "noop", seed=0) as envs:
        names = {"minimal": tuple(envs.action_names), "full": tuple(ale_py.Action.__members__)}
        return Spaces(envs.observations, names)


def action_names(info: AgentInfo) -> tuple[str, ...]:
    """Names of the actions an agent chooses from, in the order of its outputs."""
    return game_spaces(info.game).actions[info.action_set]


def envs_for(
    agent: Agent, envs: int, protocol: str, seed: int, *, max_frames: int = MAX_FRAMES, threads: int = 0
) -> AtariEnvs:
    """Make the environments an agent was trained for.

    Raises
    ------
    UserError
        If the agent's number of actions is not the game's.
    """
    info = agent.info
    interface = Interface(info.action_set, info.fire_on_life_loss, info.frame_skip, max_frames)
    made = AtariEnvs(info.game, envs, protocol, seed, interface, threads)
    if made.actions != agent.network.actions:
        made.close()
        raise UserError(
            f"the agent has {agent.network.actions} actions, but {info.game}'s {info.action_set} action set has "
            f"{made.actions}; it was trained for another game or action set"
        )
    return made
