"""What README and quickstart have in blocks is typed, the long commands with small settings behind them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from tests.commands.forks import Forks
from tests.commands.running import REPOSITORY, environment

PAGES = [REPOSITORY / "README.md", REPOSITORY / "docs" / "quickstart.md"]
BLOCK = re.compile(r"```(sh|python)\n(.*?)```", re.DOTALL)
BEHIND = [
    "rollouts={states: 128, envs: 2, every: 2}",
    "criterion={states: 32, batch_size: 16}",
    "repair.strength=0.1",
    "distill={samples: 500, step_samples: 500, envs: 4, replay_states: 4096}",
    "evaluate={episodes: 2, pruned_episodes: 2, envs: 1, stall_limit: 200, max_frames: 400}",
    "quantize={states: 4, min_agreement: 0, distill: never}",
    "latency={rounds: 2, decisions: 5, warmup: 2, max_rounds: 2}",
]
INSTALLING = "pip install -e '.[dev]' -c constraints.txt"  # what these tests run in was made by it


def test_blocks_are_typed(forks: Forks, tmp_path: Path):
    blocks = [match.groups() for page in PAGES for match in BLOCK.finditer(page.read_text())]
    kinds = set()
    for language, block in blocks:
        if language == "python":
            (student,) = tmp_path.glob("outputs/breakout-*/student.safetensors")
            shutil.copy(student, tmp_path)
            command = [sys.executable, "-c", block + "\nprint(network)"]
            done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
            assert "(conv1): Conv2d(4, 16" in done.stdout, done.stderr
            continue
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            kinds.add(words[0])
            if words[:3] == ["python", "-m", "lrp_compress"]:
                done = forks.run("lrp_compress", [*words[3:], *BEHIND], tmp_path)
                assert done.returncode == 0, f"{line}: {done.stderr}"
                assert "return kept" in done.stdout
            elif words[:2] == ["mlflow", "ui"]:
                assert "breakout-lrp-r0.50-s0" in shown_by(words, tmp_path)
            elif words[0] == "make":
                assert re.search(rf"^{words[1]}:.* ##", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
            else:
                assert line == INSTALLING
    assert kinds == {"make", "pip", "python", "mlflow"}


def shown_by(command: list[str], folder: Path) -> str:
    """Start the page of the runs, ask it for them, and end it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/search"
    asked = urllib.request.Request(
        address, b'{"experiment_ids": ["1"]}', {"Content-Type": "application/json"}, method="POST"
    )
    shown = subprocess.Popen(
        [sys.executable, "-m", *command, "--port", str(port), "--workers", "1"],
        cwd=folder,
        env=environment(MLFLOW_DISABLE_TELEMETRY="true"),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for _ in range(120):
            assert shown.poll() is None
            try:
                return str(urllib.request.urlopen(asked, timeout=5).read().decode())
            except OSError:
                time.sleep(0.5)
        raise AssertionError("the page does not come up in a minute")
    finally:
        os.killpg(shown.pid, signal.SIGKILL)
        shown.wait()
