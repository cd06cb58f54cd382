"""Figures: real pictures that show what they were given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lrp_compress.compression.attribution import heat_maps
from lrp_compress.compression.criteria import ChannelScores
from lrp_compress.environments.atari import AtariEnvs
from lrp_compress.environments.returns import Episode, Evaluation
from lrp_compress.networks.nature import nature_cnn
from lrp_compress.pictures.figures import (
    learning_curve,
    pick_moments,
    relevance_bars,
    relevance_maps,
    return_strips,
)
from lrp_compress.pictures.videos import side_by_side_video

pytestmark = pytest.mark.slow

SCORES = ChannelScores(
    {"conv1": torch.rand(32, generator=torch.Generator().manual_seed(0)) / 16, "fc1": torch.arange(512.0) / 130816},
    "lrp",
    256,
)


def picture(path) -> np.ndarray:
    """RGB pixels of a PNG that lies alone in its folder: nothing half-written beside it."""
    assert [other.name for other in path.parent.iterdir()] == [path.name]
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(int)
    height, width, _ = pixels.shape
    assert 300 < height < 4000
    assert 600 < width < 3000
    assert pixels.std() > 5
    return pixels


def count(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(pixels - np.array(colour)).max(2) <= 8).sum())


@pytest.fixture(scope="module")
def moments() -> torch.Tensor:
    """The newest frames and stacks of 4 states of Breakout."""
    envs = AtariEnvs("breakout", 4, "noop", seed=0, threads=1)
    step = envs.reset()
    for _ in range(12):
        step = envs.step(np.ones(4, dtype=np.int64))
    envs.close()
    return torch.from_numpy(step.observations)


def test_relevance_maps(tmp_path, moments):
    torch.manual_seed(0)
    network = nature_cnn({"conv1": 4, "conv2": 6, "conv3": 6, "fc1": 16}, "q", 4)
    maps = heat_maps(network, moments, "gamma", "greedy")
    path = relevance_maps(tmp_path / "maps.png", moments[:, -1], maps, -maps, ["teacher FIRE\nstudent NOOP"] * 4)
    assert path == tmp_path / "maps.png"
    picture(path)


def test_relevance_maps_paint_for_red_and_against_blue(tmp_path, moments):
    corner = torch.zeros(4, 84, 84)
    corner[:, :20, :20] = 0.1
    red, blue, none = (tuple(c) for c in ((216, 31, 42), (31, 79, 216), (255, 255, 255)))
    drawn = {}
    for name, maps in (("for", corner), ("against", -corner), ("nothing", corner * 0)):
        path = relevance_maps(tmp_path / name / "maps.png", moments[:, -1], maps, maps, ["state"] * 4)
        drawn[name] = picture(path)
    assert count(drawn["for"], red) - count(drawn["nothing"], red) > 5000
    assert count(drawn["against"], blue) - count(drawn["nothing"], blue) > 5000
    assert abs(count(drawn["for"], blue) - count(drawn["nothing"], blue)) < 50
    assert count(drawn["nothing"], none) > count(drawn["for"], none)


def test_relevance_bars_grey_what_goes(tmp_path):
    grey = (0xC9, 0xC9, 0xC9)
    whole = picture(relevance_bars(tmp_path / "whole" / "bars.png", SCORES))
    keep = {"conv1": list(range(16)), "fc1": list(range(256, 512))}
    pruned = picture(relevance_bars(tmp_path / "pruned" / "bars.png", SCORES, keep))
    assert count(whole, grey) < 1500  # smoothed edges of letters
    assert count(pruned, grey) > 10_000


def test_relevance_bars_of_dead_and_equal_channels(tmp_path):
    scores = ChannelScores({"conv1": torch.tensor([1.0, 0, 0, 0]), "conv2": torch.full((4,), 0.25)}, "apoz", 64)
    picture(relevance_bars(tmp_path / "bars.png", scores))


@pytest.mark.parametrize("points", [[(0, 0.4, 0.5), (1000, 0.02, 0.9), (2000, 0.01, 0.95)], [(64, 0.0, 1.0)]])
def test_learning_curve(tmp_path, points):
    picture(learning_curve(tmp_path / "curve.png", points))


def test_return_strips(tmp_path):
    def evaluation(scores):
        episodes = [Episode(0, i, float(score), 100, "over") for i, score in enumerate(scores)]
        mean = float(np.mean(scores))
        return Evaluation(episodes, "noop", "sample", 0, mean, mean - 5, mean + 5, mean, 1.0)

    agents = {"teacher": evaluation(range(80, 120)), "student": evaluation(range(70, 110))}
    together = picture(return_strips(tmp_path / "two" / "returns.png", agents))
    agents["pruned"] = evaluation(range(40))
    assert picture(return_strips(tmp_path / "three" / "returns.png", agents)).shape[0] > together.shape[0]


def test_moments_are_spread_over_episodes_and_stages():
    episodes = np.repeat(np.arange(10), 20)
    moments = pick_moments(episodes, 5)
    assert episodes[moments].tolist() == [0, 2, 4, 6, 8]
    assert [moment % 20 for moment in moments] == [2, 6, 10, 14, 18]
    assert len(set(pick_moments(np.zeros(40, dtype=int), 4))) == 4


def test_video_lines_up_plays_of_different_length(tmp_path: Path):
    plays = [
        np.full((3, 84, 84), 200, np.uint8),
        np.arange(2, dtype=np.uint8)[:, None, None].repeat(84, 1).repeat(84, 2),
    ]
    with Image.open(side_by_side_video(tmp_path / "play.gif", plays)) as video:
        assert video.n_frames >= 2  # equal neighbours may be joined
        assert sum(duration_of(video, i) for i in range(video.n_frames)) == pytest.approx(3 * 67, abs=30)
        video.seek(video.n_frames - 1)
        last = np.asarray(video.convert("L"))
    assert last[100, 100] == 200
    assert last[100, (84 + 4 + 40) * 3] == 1


def duration_of(video: Image.Image, frame: int) -> int:
    video.seek(frame)
    return int(video.info["duration"])
