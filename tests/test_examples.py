"""The examples, run as they are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lrp_compress.agents.checkpoints import load_agent
from lrp_compress.agents.teachers import teachers_dir
from lrp_compress.deployment.onnx_models import save_float
from tests.cli.commands import environment

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parent.parent / "examples" / "play_onnx.py"
# as if nothing else were installed
ALONE = "import runpy, sys; sys.modules.update(dict.fromkeys(['torch', 'gymnasium', 'lrp_compress', 'onnx'])); "


def test_an_exported_agent_plays_without_this_package(tmp_path: Path) -> None:
    save_float(tmp_path / "agent.onnx", load_agent(teachers_dir() / "breakout.safetensors"))
    run = f"sys.argv = ['play', 'agent.onnx', '3']; runpy.run_path({str(EXAMPLE)!r})"
    done = subprocess.run(
        [sys.executable, "-c", ALONE + run], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    score = re.fullmatch(r"breakout, float32: (\d+) points", done.stdout.strip())
    assert score
    assert int(score[1]) > 20  # random play gets 1.7
