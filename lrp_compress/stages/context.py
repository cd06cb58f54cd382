"""What every stage of a run needs to know."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lrp_compress import __version__
from lrp_compress.agents.checkpoints import Agent
from lrp_compress.config.schema import Config
from lrp_compress.environments.acting import ActionRule, action_rule
from lrp_compress.environments.groups import Acting, Emulators
from lrp_compress.support.files import value_digest
from lrp_compress.support.seeding import stage_seed
from lrp_compress.tracking.tracker import Tracker

SHARED_FORMAT = 3  # of the files that runs share: where it is another, they are made anew


@dataclass(frozen=True)
class Run:
    """A run: what its stages are given, and where they leave what they make.

    Attributes
    ----------
    config : Config
        The checked configuration.
    teacher : Agent
        The agent to compress.
    teacher_digest : str
        Digest of its file, which the shared results are cached under.
    folder : Path
        Where the results of this run's stages are kept.
    tracker : Tracker
        Where metrics and artifacts go.
    emulators : Emulators
        Made once and kept between the stages.
    """

    config: Config
    teacher: Agent
    teacher_digest: str
    folder: Path
    tracker: Tracker
    emulators: Emulators = field(default_factory=Emulators)

    @cached_property
    def rule(self) -> ActionRule:
        """How teacher and students choose actions."""
        evaluate = self.config.evaluate
        return action_rule(evaluate.action, self.teacher.network.head_kind, evaluate.epsilon)

    def seed(self, *stage: str | int) -> int:
        """Seed of a stage."""
        return stage_seed(self.config.seed, *stage)

    def acting(self, seed: int) -> Acting:
        """How agents play in this run, from a seed."""
        return Acting(self.rule, self.config.protocol, seed, self.emulators)

    def step_file(self, step: int, name: str) -> Path:
        """Path of a result of one step of the schedule."""
        return self.folder / f"step-{step}" / name

    def shared(self, kind: str, settings: Mapping[str, Any], seed: int) -> Path:
        """Path, without suffix, of a result that depends on the teacher's play alone."""
        info, game = self.teacher.info, dataclasses.asdict(self.config.game)
        how = [info.fire_on_life_loss, info.frame_skip, game, self.config.protocol, str(self.rule), seed]
        key = [__version__, SHARED_FORMAT, self.teacher_digest, *how]
        return Path(self.config.cache_dir) / f"{kind}-{info.game}-{value_digest([*key, settings])[:16]}"

    def is_whole(self, agent: Agent) -> bool:
        """Whether nothing was removed from an agent, so that there is nothing to make up for."""
        return agent.network.widths == self.teacher.network.widths

    def to_learn(self, agent: Agent) -> Agent:
        """Copy an agent to where students learn."""
        return Agent(copy.deepcopy(agent.network).to(self.config.device), agent.info)
