"""What a run leaves behind to look at and to use: the student's file, pictures and tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from lrp_compress.agents.checkpoints import Agent, save_agent
from lrp_compress.compression.attribution import heat_maps
from lrp_compress.config.schema import Config
from lrp_compress.environments.atari import action_names
from lrp_compress.environments.recording import record_play
from lrp_compress.environments.returns import Evaluation
from lrp_compress.environments.rollouts import Rollouts
from lrp_compress.networks.fast import batched_outputs
from lrp_compress.pictures.figures import learning_curve, pick_moments, relevance_maps, return_strips
from lrp_compress.pictures.videos import side_by_side_video
from lrp_compress.stages.context import Run
from lrp_compress.support.files import atomic_path, read_json, sign

STUDENT = "student.safetensors"
MAPS = "figures/relevance-maps.png"
SMALL_MAPS = "figures/relevance-maps-small.png"  # as wide as MLflow's page, which shows it as it is
EXAMPLE = "example.npy"  # an observation that the student's model can be tried with
# Files that a report reads; kept in MLflow at the same places as in the run's folder, for reports on other machines.
REPORTED = ("stages/evaluation-*.json", "stages/step-*/plan.json", "stages/step-1/scores.json")
MOMENTS = 6  # rows of the relevance maps
VIDEO_STEPS = 225  # a quarter of a minute
SMALL = 800  # pixels


def publish(
    run: Run, agents: Mapping[str, Agent], onnx: Path, rollouts: Rollouts, evaluations: Mapping[str, Evaluation]
) -> None:
    """Write the student's file, all pictures and a video of both agents, and hand them to the tracker.

    Parameters
    ----------
    run : Run
    agents : mapping of str to Agent
        ``teacher`` and ``student``, and ``pruned`` if that is wanted.
    onnx : Path
        The student's float32 ONNX file, which MLflow keeps as a model.
    rollouts : Rollouts
        States of the teacher's play; the relevance maps are of some of them.
    evaluations : mapping of str to Evaluation
        By the agents' names.
    """
    run_dir, tracker = run.folder.parent, run.tracker
    figures = run_dir / "figures"
    save_agent(run_dir / STUDENT, agents["student"])
    sign(run_dir / STUDENT)
    tracker.artifact(run_dir / STUDENT)
    for path in (path for pattern in REPORTED for path in sorted(run_dir.glob(pattern))):
        tracker.artifact(path, str(path.parent.relative_to(run_dir)))
    middle = rollouts.observations(torch.tensor([len(rollouts) // 2])).numpy()
    with atomic_path(run_dir / EXAMPLE) as temporary:
        np.save(temporary, middle)
    tracker.model(onnx, "student", run_dir / EXAMPLE, run_dir / STUDENT)
    maps = draw_relevance_maps(run.config, agents, rollouts, run_dir / MAPS)
    tracker.image(maps, "relevance/maps")
    with PIL.Image.open(maps) as picture, atomic_path(run_dir / SMALL_MAPS) as temporary:
        picture.thumbnail((SMALL, 10 * SMALL))
        picture.save(temporary)
    tracker.image(return_strips(figures / "returns.png", evaluations), "returns/episodes")
    if points := distillation_points(run.folder):
        tracker.image(learning_curve(figures / "distillation.png", points), "distill/curve")
    steps = min(VIDEO_STEPS, run.config.evaluate.max_frames // agents["teacher"].info.frame_skip)
    plays = [record_play(agents[name], run.acting(run.seed("video")), steps) for name in ("teacher", "student")]
    side_by_side_video(figures / "teacher-and-student.gif", [play[:, -1] for play in plays])
    tracker.artifact(figures)


def draw_relevance_maps(config: Config, agents: Mapping[str, Agent], rollouts: Rollouts, path: Path) -> Path:
    """Draw what teacher and student look at in several moments of the teacher's play.

    Returns
    -------
    Path
        `path`.
    """
    moments = torch.tensor(pick_moments(rollouts.episodes.numpy(), MOMENTS))
    observations = rollouts.observations(moments)
    chosen, maps = {}, {}
    for name in ("teacher", "student"):
        network = agents[name].network
        chosen[name] = batched_outputs(network, observations).argmax(1)
        maps[name] = heat_maps(network, observations, config.criterion.composite, config.criterion.relevance_seed)
    names = action_names(agents["teacher"].info)
    pairs = zip(chosen["teacher"], chosen["student"], strict=True)
    titles = [f"teacher {names[teacher]}\nstudent {names[student]}" for teacher, student in pairs]
    return relevance_maps(path, observations[:, -1], maps["teacher"], maps["student"], titles)


def distillation_points(stages: Path) -> list[tuple[int, float, float]]:
    """Join the steps' distillation curves: samples so far, loss and action agreement."""
    points: list[tuple[int, float, float]] = []
    for record in sorted(stages.glob("step-*/distillation.json"), key=lambda path: int(path.parent.name[5:])):
        before = points[-1][0] if points else 0
        points += [(before + p["samples"], p["loss"], p["agreement"]) for p in read_json(record)["curve"]]
    return points
