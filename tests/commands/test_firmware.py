"""An agent on an emulated board, as users start it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from lrp_compress.commands.firmware import preflight, put_on_board
from lrp_compress.config.checks import check_config, conf_dir, register_schemas
from lrp_compress.config.schema import FirmwareConfig
from lrp_compress.networks.nature import nature_cnn
from lrp_compress.support.errors import UserError
from lrp_compress.tracking.tracker import Tracker
from tests.commands.running import Command
from tests.deployment.arm import needs_arm_tools
from tests.deployment.int8_files import write_int8

pytestmark = pytest.mark.slow

TINY = {"conv1": 4, "conv2": 8, "conv3": 8, "fc1": 32}
LARGE = {"conv1": 16, "conv2": 32, "conv3": 32, "fc1": 256}


def int8_file(folder: Path, widths: dict[str, int], game: str = "breakout", actions: int = 4) -> Path:
    torch.manual_seed(0)
    return write_int8(folder / "student-int8.onnx", nature_cnn(widths, "policy", actions), game)


def config(*overrides: str) -> FirmwareConfig:
    register_schemas()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("firmware", overrides=["+game=breakout", "tracking=none", *overrides])
    return check_config(composed, FirmwareConfig)


@needs_arm_tools
def test_a_board_plays_in_the_loop(lrp_compress: Command, tmp_path: Path):
    agent = int8_file(tmp_path, TINY)
    arguments = ["game=breakout", f"agent={agent}", "board=lm3s6965evb", "frames=10", "play=true", "episodes=2"]
    arguments += ["evaluate.max_frames=200", "tracking=none"]
    done = lrp_compress(*arguments, module="lrp_compress.firmware")
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = tmp_path.glob("outputs/firmware-breakout-lm3s6965evb-s0-*")
    assert "10 of 10 observations" in done.stdout
    assert re.search(r"same games as onnxruntime +2, 100 decisions", done.stdout)
    assert re.search(r"flash, bytes +\d\d,\d{3} of 262,144", done.stdout)
    result = json.loads((folder / "result.json").read_text())
    assert result["board/games"] == 2
    assert result["board/instructions_min"] <= result["board/instructions_mean"] <= result["board/instructions_max"]
    assert (folder / "build" / "firmware.elf").read_bytes().startswith(b"\x7fELF")
    with Image.open(folder / "play.gif") as video:
        assert video.n_frames > 10


@needs_arm_tools
def test_a_network_that_does_not_fit_is_told_and_its_code_kept(tmp_path: Path):
    agent = int8_file(tmp_path, LARGE)
    with pytest.raises(UserError, match=r"does not fit lm3s6965evb: \.text.* overflows FLASH .* by 1\d\d,\d{3} bytes"):
        put_on_board(config(f"agent={agent}", "board=lm3s6965evb"), tmp_path / "run", Tracker())
    assert (tmp_path / "run" / "build" / "policy.c").exists()


@needs_arm_tools
def test_what_is_wrong_is_refused_before_anything_is_written(tmp_path: Path):
    agent = int8_file(tmp_path, TINY, "pong", 6)
    other = int8_file(tmp_path / "other", TINY, "breakout", 6)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(agent.read_bytes()[:2000])
    for overrides, message in {
        (f"agent={agent}",): r"plays pong, not breakout; choose game=pong",
        (f"agent={other}",): r"has 6 actions, breakout has 4",
        (f"agent={agent}", "board=netduino"): r"board=netduino is unknown \(did you mean netduinoplus2\?\)",
        (f"agent={broken}",): r"broken.onnx is not whole",
        ("agent=none.onnx",): r"none.onnx does not exist",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            preflight(config(*overrides))
        assert "\n" not in str(caught.value)


def test_mistakes_end_in_one_line(lrp_compress: Command, tmp_path: Path):
    for arguments, message in {
        ("game=breakout",): "agent has no value; give one with agent=VALUE",
        ("game=breakout", "agent=x.onnx", "frames=0"): "frames=0 is not allowed; it must be at least 1",
        ("game=breakout", "agent=x.onnx", "board=foo"): "board=foo is unknown; choose from: lm3s6965evb, mps2",
    }.items():
        done = lrp_compress(*arguments, module="lrp_compress.firmware")
        assert re.fullmatch(rf"error: {re.escape(message)}.*\n", done.stderr), done.stderr
        assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []
