"""The configuration's types and ranges; the values, with a comment each, are in ``conf/``.

Every field is mandatory here, so that each value is written down in YAML once. Importing this module imports no torch.
`lrp_compress.config.checks` compares the two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from lrp_compress import __version__
from lrp_compress.config.ranges import RATIO, one_of, within
from lrp_compress.support.files import value_digest

MOST_STATES = 10_000_000  # 70 GB
# What does not change a run's results, and so is no part of its identity.
INCIDENTAL = ("tracking", "cache_dir", "device", "force", "window")


@dataclass
class GameConfig:
    """One Atari game (``conf/game``)."""

    name: str = MISSING
    title: str = MISSING
    random_score: float | None = MISSING
    human_score: float | None = MISSING


@dataclass
class TeacherConfig:
    """The trained agent that goes in (``conf/teacher``)."""

    source: str = MISSING
    fire_on_life_loss: bool | None = MISSING
    frame_skip: int | None = within(1, 60)
    head: str = one_of("auto", "q", "policy")
    network: str | None = MISSING


@dataclass
class RolloutsConfig:
    """States the teacher visits (``conf/rollouts``)."""

    states: int = within(64, MOST_STATES)
    envs: int = within(1, 256)
    block: int = within(1)
    every: int = within(1)


@dataclass
class CriterionConfig:
    """How channels are scored (``conf/criterion``)."""

    name: str = MISSING
    composite: str = MISSING
    relevance_seed: str = one_of("greedy", "all", "softmax")
    states: int = within(1)
    batch_size: int = within(1)
    trials: int = within(1)


@dataclass
class PruneConfig:
    """How many channels go, where, and in how many steps (``conf/prune``)."""

    ratio: float = field(default=MISSING, metadata={"allowed": RATIO})
    layer_ratios: dict[str, float] = field(default=MISSING, metadata={"allowed": RATIO})
    layers: str = one_of("all", "conv")
    scope: str = one_of("layer", "global")
    schedule: str = MISSING
    steps: int = within(1, 100)
    min_width: int = within(1)
    round_to: str = one_of("none", "desktop", "cortex_m")
    evaluate: bool = MISSING
    budget: str = one_of("none", "params", "macs")
    share: float = within(0, 1, open_low=True)

    @property
    def label(self) -> str:
        """Readable name of how much is removed or remains, e.g. ``r0.50`` or ``params0.25``."""
        return f"r{self.ratio:.2f}" if self.budget == "none" else f"{self.budget}{self.share:.2f}"


@dataclass
class RepairConfig:
    """How what pruning took is made up for in closed form (``conf/repair``)."""

    kind: str = one_of("ridge", "none")
    states: int = within(64, MOST_STATES)
    strength: float | None = within(0, open_low=True)


@dataclass
class DistillConfig:
    """How the student learns from the teacher (``conf/distill``)."""

    loss: str = MISSING
    temperature: float | None = within(0, open_low=True)
    hint: float = within(0)
    enough: float = within(0)
    match_likelihood: bool = MISSING
    samples: int = within(0)
    step_samples: int = within(0)
    patience: int = within(1)
    min_gain: float = within(0, 1)
    data: str = one_of("teacher", "student", "mixed")
    teacher_fraction: float = within(0, 1)
    epsilon: float = within(0, 1)
    envs: int = within(4, 1024)
    replay_states: int = within(1024, MOST_STATES)
    passes: float = within(0, open_low=True)
    batch_size: int = within(1)
    learning_rate: float | None = within(0, open_low=True)
    weight_decay: float = within(0)
    max_grad_norm: float = within(0, open_low=True)
    min_agreement: float | None = within(0, 1)
    checkpoint_minutes: float = within(0)
    precision: str = one_of("auto", "float32", "bfloat16")


@dataclass
class FinetuneConfig:
    """How the distilled student goes on learning from the game (``conf/finetune``)."""

    steps: int = within(0)
    divergence: float = within(0)
    envs: int = within(1, 1024)
    n_steps: int = within(1)
    n_epochs: int = within(1)
    batch_size: int = within(2)
    learning_rate: float = within(0, open_low=True)
    gamma: float = within(0, 1)
    gae_lambda: float = within(0, 1)
    clip_range: float = within(0, open_low=True)
    ent_coef: float = within(0)
    max_grad_norm: float = within(0, open_low=True)
    checkpoint_minutes: float = within(0)


@dataclass
class EvaluateConfig:
    """How agents are evaluated (``conf/evaluate``)."""

    episodes: int = within(2)
    pruned_episodes: int = within(2)
    envs: int = within(1, 256)
    action: str = one_of("auto", "sample", "epsilon", "greedy")
    epsilon: float = within(0, 1)
    stall_limit: int = within(1)
    max_frames: int = within(4)
    confidence: float = within(0, 1, open_low=True, open_high=True)


@dataclass
class LatencyConfig:
    """How latency is measured (``conf/latency``)."""

    rounds: int = within(1)
    decisions: int = within(1)
    warmup: int = within(0)
    threads: int = within(1, 1024)
    max_spread: float = within(0, open_low=True)
    max_rounds: int = within(1)


@dataclass
class QuantizeConfig:
    """How the student becomes int8 (``conf/quantize``)."""

    kind: str = one_of("none", "int8")
    states: int = within(2, MOST_STATES)
    min_agreement: float = within(0, 1)
    distill: str = one_of("auto", "never", "always")
    samples: int = within(1)
    learning_rate: float = within(0, open_low=True)


@dataclass
class TrackingConfig:
    """Where runs are recorded (``conf/tracking``)."""

    uri: str | None = MISSING
    experiment: str = MISSING
    timeout_s: float = within(0, open_low=True)
    ui: str | None = None


@dataclass
class Config:
    """The whole configuration (``conf/config.yaml``)."""

    game: GameConfig = MISSING
    teacher: TeacherConfig = MISSING
    rollouts: RolloutsConfig = MISSING
    criterion: CriterionConfig = MISSING
    prune: PruneConfig = MISSING
    repair: RepairConfig = MISSING
    distill: DistillConfig = MISSING
    finetune: FinetuneConfig = MISSING
    evaluate: EvaluateConfig = MISSING
    quantize: QuantizeConfig = MISSING
    export: list[str] = MISSING
    latency: LatencyConfig = MISSING
    tracking: TrackingConfig = MISSING
    protocol: str = one_of("noop", "sticky")
    device: str = one_of("cpu", "cuda")
    seed: int = within(0, 2**31 - 1)
    plugins: list[str] = MISSING
    cache_dir: str = MISSING
    force: bool = MISSING

    @property
    def run_name(self) -> str:
        """Readable name of a run, e.g. ``breakout-lrp-r0.50-s0``; not unique."""
        return f"{self.game.name}-{self.criterion.name}-{self.prune.label}-s{self.seed}"


@dataclass
class SpaceConfig:
    """What a search may try (``hydra.sweeper.space``)."""

    name: str = MISSING
    max_steps: int = within(2, 100)
    max_ratio: float = field(default=MISSING, metadata={"allowed": RATIO})
    min_samples: int = within(1)
    max_samples: int = within(1)


@dataclass
class SearchConfig:
    """How Optuna searches (``conf/hydra/sweeper/study.yaml``, ``conf/search``)."""

    study: str = MISSING
    storage: str = MISSING
    space: SpaceConfig = MISSING
    objectives: list[str] = MISSING
    floor: float | None = MISSING
    sampler: str = MISSING
    seed: int = within(0, 2**31 - 1)
    n_trials: int = within(1)
    n_jobs: int = within(1)
    confirm_episodes: int = within(2)
    stale_minutes: float = within(0, open_low=True)


@dataclass
class LearnerConfig:
    """How an agent is trained (``conf/train``)."""

    algorithm: str = MISSING
    start: str | None = MISSING
    steps: int = within(1)
    envs: int = within(1, 1024)
    hyperparameters: dict[str, Any] = MISSING
    adam_epsilon: float = within(0, open_low=True)
    fire_on_life_loss: bool = MISSING
    precision: str = one_of("auto", "float32", "bfloat16")
    log_every: int = within(1)
    checkpoint_minutes: float = within(0)
    evaluate_every: int = within(1)
    evaluate_episodes: int = within(2)


@dataclass
class TrainConfig:
    """The whole configuration of a training (``conf/train.yaml``)."""

    game: GameConfig = MISSING
    train: LearnerConfig = MISSING
    evaluate: EvaluateConfig = MISSING
    tracking: TrackingConfig = MISSING
    device: str = one_of("cpu", "cuda")
    seed: int = within(0, 2**31 - 1)
    force: bool = MISSING

    @property
    def run_name(self) -> str:
        """Readable name of a training, e.g. ``train-pong-ppo-s0``; not unique."""
        return f"train-{self.game.name}-{self.train.algorithm}-s{self.seed}"


@dataclass
class PlayConfig:
    """The whole configuration of a watched play (``conf/play.yaml``)."""

    game: GameConfig = MISSING
    teacher: TeacherConfig = MISSING
    criterion: CriterionConfig = MISSING
    evaluate: EvaluateConfig = MISSING
    tracking: TrackingConfig = MISSING
    protocol: str = one_of("noop", "sticky")
    seconds: float = within(0, 86400, open_low=True)
    window: bool | None = MISSING
    seed: int = within(0, 2**31 - 1)
    cache_dir: str = MISSING

    @property
    def run_name(self) -> str:
        """Readable name of a play, e.g. ``play-pong-s0``; not unique."""
        return f"play-{self.game.name}-s{self.seed}"


@dataclass
class FirmwareConfig:
    """The whole configuration of an agent on a microcontroller (``conf/firmware.yaml``)."""

    game: GameConfig = MISSING
    agent: str = MISSING
    board: str = MISSING
    frames: int = within(1)
    play: bool = MISSING
    episodes: int = within(1)
    timeout_s: float = within(0, open_low=True)
    evaluate: EvaluateConfig = MISSING
    tracking: TrackingConfig = MISSING
    protocol: str = one_of("noop", "sticky")
    seed: int = within(0, 2**31 - 1)
    force: bool = MISSING

    @property
    def run_name(self) -> str:
        """Readable name of a run, e.g. ``firmware-breakout-netduinoplus2-s0``; not unique."""
        return f"firmware-{self.game.name}-{self.board}-s{self.seed}"


RootConfig = Config | TrainConfig | PlayConfig | FirmwareConfig


def flatten(config: RootConfig) -> dict[str, bool | int | float | str | None]:
    """All settings by dotted key, e.g. ``prune.ratio``; an empty mapping has none."""
    return dict(_leaves(dataclasses.asdict(config), ""))


def config_hash(config: RootConfig) -> str:
    """Identity of a run: 8 hexadecimal digits of the package's version and of all settings but `INCIDENTAL`."""
    settings = {key: value for key, value in dataclasses.asdict(config).items() if key not in INCIDENTAL}
    return value_digest([__version__, settings])[:8]


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
