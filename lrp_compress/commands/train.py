"""The whole path of one training: learn, evaluate, and leave the agent's file with its card."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shlex
import warnings
from pathlib import Path

import torch
import yaml
from rich.console import Console

from lrp_compress.agents.checkpoints import Agent, load_agent, save_agent
from lrp_compress.agents.teachers import load_teacher
from lrp_compress.config.schema import TeacherConfig, TrainConfig
from lrp_compress.environments.acting import action_rule
from lrp_compress.environments.atari import PROTOCOLS, game_spaces
from lrp_compress.environments.evaluation import evaluate
from lrp_compress.environments.groups import Acting
from lrp_compress.environments.recording import record_play
from lrp_compress.environments.returns import Evaluation, load_evaluation, save_evaluation
from lrp_compress.networks.fast import check_device
from lrp_compress.pictures.figures import return_strips
from lrp_compress.pictures.videos import side_by_side_video
from lrp_compress.stages.resume import STAGES, run_once
from lrp_compress.support.errors import UserError
from lrp_compress.support.files import file_digest, stored
from lrp_compress.support.progress import announced
from lrp_compress.support.seeding import stage_seed
from lrp_compress.tracking.runs import check_store, training_view
from lrp_compress.tracking.tracker import Tracker
from lrp_compress.training.algorithms import begin_with, make_learner
from lrp_compress.training.card import write_card
from lrp_compress.training.learning import learn, make_envs

VIDEO_STEPS = 1800  # two minutes at most


def train(config: TrainConfig, run_dir: Path, tracker: Tracker) -> dict[str, float]:
    """Train an agent and find out how it plays.

    Parameters
    ----------
    config : TrainConfig
        The checked configuration.
    run_dir : Path
        The run's folder; ``agent.safetensors`` and ``card.md`` are left in it.
    tracker : Tracker
        Where metrics and artifacts go as they come.

    Returns
    -------
    dict of str to float
        The final metrics: ``noop/return_mean`` and so on, by protocol.
    """
    stages = run_dir / STAGES
    path, checkpoint = stages / "agent.safetensors", stages / "checkpoint.pt"
    look = functools.partial(_look, config)
    save_half = functools.partial(save_agent, dtype=torch.float16)
    stored(path, lambda: learn(config, checkpoint, tracker, look, find_start(config)), save_half, load_agent, "train")
    agent = load_agent(path)  # as it is shipped, in half precision
    checkpoint.unlink(missing_ok=True)
    evaluations = {
        protocol: stored(
            stages / f"evaluation-{protocol}.json",
            functools.partial(_evaluate, config, agent, protocol),
            save_evaluation,
            load_evaluation,
            f"evaluate, {protocol}",
            str,
        )
        for protocol in PROTOCOLS
    }
    announced("publish", lambda: publish(config, agent, evaluations, run_dir, tracker))
    return {
        f"{protocol}/{name}": value
        for protocol, evaluation in evaluations.items()
        for name, value in _metrics(evaluation).items()
    }


def publish(
    config: TrainConfig, agent: Agent, evaluations: dict[str, Evaluation], run_dir: Path, tracker: Tracker
) -> None:
    """Write the agent's file, its card, a picture of its returns and a video, and hand them to the tracker."""
    figures = run_dir / "figures"
    save_agent(run_dir / "agent.safetensors", agent, torch.float16)
    overrides = [f.lstrip("+") for f in yaml.safe_load((run_dir / ".hydra" / "overrides.yaml").read_text())]
    write_card(
        run_dir / "card.md",
        agent,
        config.game,
        [shlex.quote(override) for override in overrides],
        evaluations,
        game_spaces(config.game.name).actions["minimal"],
    )
    tracker.image(return_strips(figures / "returns.png", evaluations), "returns/episodes")
    rule = action_rule(config.evaluate.action, agent.network.head_kind, config.evaluate.epsilon)
    acting = Acting(rule, "noop", stage_seed(config.seed, "video"))
    play = record_play(agent, acting, VIDEO_STEPS)
    side_by_side_video(figures / "play.gif", [play[:, -1]])
    for artifact in (run_dir / "agent.safetensors", run_dir / "card.md", figures):
        tracker.artifact(artifact)


def preflight(config: TrainConfig) -> None:
    """Check what a training needs from outside, before anything is written.

    Raises
    ------
    UserError
        If there is no such device, the algorithm or a hyperparameter is unknown or refused, the game has no FIRE to
        press, the agent to start from cannot be learned on, or the tracking store does not answer.
    """
    check_device(config.device)
    if config.train.fire_on_life_loss and "FIRE" not in game_spaces(config.game.name).actions["minimal"]:
        raise UserError(f"{config.game.name} has no FIRE action to press; set train.fire_on_life_loss=false")
    few = dataclasses.replace(config.train, envs=min(2, config.train.envs))  # 128 take a quarter of a minute to make
    made = contextlib.closing(make_envs(dataclasses.replace(config, train=few), config.seed))
    with made as env, warnings.catch_warnings(action="ignore"):  # of the batch's size for so few
        learner = make_learner(dataclasses.replace(few, precision="float32"), env, config.device, config.seed)
        if start := find_start(config):
            begin_with(learner, start, f"train.start={config.train.start}")
    check_store(config.tracking)


def find_start(config: TrainConfig) -> Agent | None:
    """Load the agent that a training goes on from, if there is one.

    Raises
    ------
    UserError
        If it cannot be read or plays another game.
    """
    if config.train.start is None:
        return None
    teacher = TeacherConfig(config.train.start, None, None, "auto", None)
    return load_teacher(Path(config.train.start), teacher, config.game, game_spaces(config.game.name))


def run(config: TrainConfig, run_dir: Path, sweep: str | None) -> dict[str, float]:
    """Do one training, or go on with it, or find that it is done; then say where its agent is.

    Parameters
    ----------
    config : TrainConfig
        The checked configuration.
    run_dir : Path
        The run's folder; the files of its stages are kept in it.
    sweep : str or None
        Name of the sweep the run belongs to.

    Returns
    -------
    dict of str to float
        The final metrics.
    """
    console = Console(markup=False)
    tags = {"algorithm": config.train.algorithm} | ({"sweep": sweep} if sweep else {})
    identity = {} if config.train.start is None else {"start": file_digest(Path(config.train.start))}
    metrics = run_once(config, run_dir, identity, tags, functools.partial(train, config, run_dir), console)
    for protocol in PROTOCOLS:
        mean, low, high = (metrics[f"{protocol}/return_{name}"] for name in ("mean", "ci_low", "ci_high"))
        console.print(f"return, {protocol:<6} {mean:.1f} ({low:.1f} to {high:.1f})", soft_wrap=True)
    agent = run_dir / "agent.safetensors"
    console.print(f"agent     {agent}\ncard      {run_dir / 'card.md'}", soft_wrap=True)
    console.print(f"compress  python -m lrp_compress game={config.game.name} teacher.source={agent}", soft_wrap=True)
    if view := training_view(config.tracking):
        console.print(f"runs      {view}", soft_wrap=True)
    return metrics


def _evaluate(config: TrainConfig, agent: Agent, protocol: str, steps: int | None = None) -> Evaluation:
    """Evaluate as configured, or shortly after some steps of the training."""
    how, part = config.evaluate, ("evaluate", protocol)
    if steps is not None:
        how, part = dataclasses.replace(how, episodes=config.train.evaluate_episodes), ("look", str(steps))
    rule = action_rule(how.action, agent.network.head_kind, how.epsilon)
    acting = Acting(rule, protocol, stage_seed(config.seed, *part))
    return evaluate(agent, how, config.game, acting, f"evaluate {protocol}")


def _look(config: TrainConfig, agent: Agent, steps: int) -> dict[str, float]:
    return {f"eval/{name}": value for name, value in _metrics(_evaluate(config, agent, "noop", steps)).items()}


def _metrics(evaluation: Evaluation) -> dict[str, float]:
    names = {"return_mean": "mean", "return_ci_low": "ci_low", "return_ci_high": "ci_high"}
    return {name: getattr(evaluation, field) for name, field in names.items()}
