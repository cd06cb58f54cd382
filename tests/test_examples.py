"""The examples, run as they are."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from lrp_compress.agents.checkpoints import load_agent
from lrp_compress.agents.teachers import teachers_dir
from lrp_compress.deployment.files.onnx_models import save_float
from tests.commands.running import environment

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent / "examples"
EXAMPLE = EXAMPLES / "play_onnx.py"
TINY = [
    "rollouts={states: 128, envs: 2, every: 2}",
    "criterion.states=32",
    "repair={states: 64, strength: 0.1}",
    "distill={samples: 512, envs: 4, replay_states: 4096}",
    "evaluate={episodes: 2, envs: 1, stall_limit: 200, max_frames: 400}",
]
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


def test_a_residual_network_is_taught(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(EXAMPLES / "teach_impala.py"))["main"]
    main(
        str(tmp_path / "impala.safetensors"),
        *TINY,
        "distill={samples: 64, batch_size: 32, envs: 4, replay_states: 1024}",
    )
    assert "impala.safetensors plays at" in capsys.readouterr().out
    network = load_agent(tmp_path / "impala.safetensors").network
    assert network.channels["conv1"].writers == ("conv1", "conv3", "conv5")


def test_the_notebook_goes_from_a_teacher_to_a_file(tmp_path: Path) -> None:
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    (settings,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    settings.source = f"import lrp_compress as lc\n\nratio, config = 0.5, lc.settings('pong', *{TINY})"
    NotebookClient(notebook, resources={"metadata": {"path": tmp_path}}).execute()
    assert (tmp_path / "play.gif").stat().st_size > 10_000
    float_size, int8_size = ((tmp_path / name).stat().st_size for name in ("student.onnx", "student-int8.onnx"))
    assert 3 < float_size / int8_size < 4.5
