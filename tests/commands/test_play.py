"""Watching an agent, as users start it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from lrp_compress.agents.teachers import teachers_dir
from tests.commands.running import Command


def test_a_video_shows_the_game_and_its_relevance(lrp_compress: Command, tmp_path: Path):
    agent = teachers_dir() / "breakout.safetensors"
    done = lrp_compress("game=breakout", f"agent={agent}", "seconds=3", module="lrp_compress.play")
    assert (done.returncode, done.stderr) == (0, "")
    (video,) = tmp_path.glob("outputs/play-breakout-s0-*/play.gif")
    assert done.stdout == f"3 s of play   {video}\n"
    with Image.open(video) as opened:
        frames = [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(opened)]
    assert 40 <= len(frames) <= 45  # frames that do not differ are one in the file
    left, right = np.stack(frames)[:, :, : 84 * 3], np.stack(frames)[:, :, -84 * 3 :]
    assert np.ptp(left, axis=-1).max() <= 24  # grey, but for the file's palette
    assert np.ptp(right, axis=-1).max() > 100  # coloured


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no game was chosen; add e.g. game=breakout"),
        (["game=breakout", "agent=no.zip"], "agent file no.zip does not exist"),
        (["game=tetris"], "no agent is shipped for game tetris"),
        (["game=breakout", "criterion.composite=foo"], "criterion.composite=foo is unknown; choose from: alpha2_beta1"),
        (["game=breakout", "window=true"], "window=true, but there is no screen here; window=false leaves the play in"),
        (["game=breakout", "window=maybe"], "window=maybe: Value 'maybe' is not a valid bool"),
        (["game=breakout", "seconds=0"], "seconds=0.0 is not allowed; it must be in (0, 86400]"),
    ],
)
def test_mistakes_end_in_one_line(lrp_compress: Command, tmp_path: Path, arguments: list[str], message: str):
    done = lrp_compress(*arguments, module="lrp_compress.play")
    assert re.fullmatch(rf"error: {re.escape(message)}.*\n", done.stderr), done.stderr
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []
