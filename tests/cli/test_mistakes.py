"""A user's mistake: one line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cli.commands import Command, environment

# What was typed, and what the line must hold.
MISTAKES = {
    "": ["no game was chosen", "game=breakout", "seaquest"],
    "game=brekout": ["game=brekout", "did you mean breakout?", "seaquest"],
    "game=breakout game=pong": ["game is chosen more than once"],
    "game=breakout criterion=lpr": ["criterion=lpr", "did you mean lrp?", "apoz"],
    "game=breakout +criterion=random": ["criterion is chosen more than once"],
    "game=breakout criterio=lrp": ["criterio", "did you mean criterion?"],
    "game=breakout experiment=smok": ["experiment=smok", "did you mean smoke?"],
    "game=breakout prune.ration=0.5": ["prune.ration", "did you mean prune.ratio?"],
    "game=breakout ratio=0.5": ["ratio", "did you mean prune.ratio?"],
    "game=breakout +prune.extra=1": ["there is no setting prune.extra", "min_width"],
    "game=breakout prune.ratio=abc": ["prune.ratio=abc", "could not be converted to Float"],
    "game=breakout prune.ratio=1.7": ["prune.ratio=1.7", "[0, 1)"],
    "game=breakout prune.ratio=nan": ["prune.ratio=nan", "[0, 1)"],
    "game=breakout prune.layer_ratios={fc:1.2}": ["prune.layer_ratios.fc=1.2", "[0, 1)"],
    "game=breakout prune.layer_ratios.fc=-1": ["prune.layer_ratios.fc=-1", "[0, 1)"],
    "game=breakout prune.scope=globl": ["prune.scope=globl", "did you mean global?"],
    "game=breakout prune.steps=4": ["prune.steps=4", "prune=cubic"],
    "game=breakout prune.ratio": ["cannot read prune.ratio", "KEY=VALUE"],
    "game=breakout prune.ratio=0.3,0.5": ["prune.ratio=0.3,0.5", "add -m"],
    "game=breakout criterion=3": ["must be a string"],
    "game=breakout seed=1.5": ["seed=1.5", "could not be converted to Integer"],
    "game=breakout ~prune": ["prune has no value"],
    "game=breakout prune.ratio=${nothing}": ["prune.ratio", "nothing"],
    "game=breakout hydra.run.dirr=x": ["hydra.run.dirr", "--hydra-help"],
    "game=breakout --config-dir nowhere": ["nowhere", "not found"],
    "game=klax": ["no agent is shipped for game klax", "teacher.source=FILE"],
    "game=mine --config-dir {bad}": ["game/mine.yaml: game.titel: Key 'titel' not in 'GameConfig'"],
    "-m prune.ratio=0.3,0.5": ["no game was chosen"],
    "-m game=breakout,pongg": ["game=pongg", "did you mean pong?"],
    "-m game=breakout criterion=lrp,rndom": ["criterion=rndom", "did you mean random?"],
    "-m game=breakout prune.ratio=0.5,abc": ["prune.ratio=abc"],
    "-m game=breakout prune.ratio=1.5,2": ["prune.ratio=1.5"],
    "-m game=breakout --cfg job": ["--multirun"],
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[subprocess.CompletedProcess[str], list[Path]]]:
    """Run all the commands, as many at once as there are processors; each with what it wrote."""
    bad = tmp_path_factory.mktemp("bad")
    (bad / "game").mkdir()
    (bad / "game" / "mine.yaml").write_text("name: breakout\ntitel: Mine\n")

    def answer(typed: str) -> tuple[subprocess.CompletedProcess[str], list[Path]]:
        folder = tmp_path_factory.mktemp("empty")
        command = [sys.executable, "-m", "lrp_compress", *typed.replace("{bad}", str(bad)).split()]
        done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
        return done, list(folder.iterdir())

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(MISTAKES, pool.map(answer, MISTAKES), strict=True))


@pytest.mark.parametrize("typed", MISTAKES)
def test_mistake(answers: dict[str, tuple[subprocess.CompletedProcess[str], list[Path]]], typed: str):
    done, written = answers[typed]
    line = done.stderr.removesuffix("\n")
    assert line.startswith("error: ")
    assert "\n" not in line
    assert [part for part in MISTAKES[typed] if part not in line] == []
    assert done.stdout == ""
    assert done.returncode == 2
    assert written == []


def test_traceback_on_request(lrp_compress: Command):
    done = lrp_compress("game=breakout", "prune.ratio=1.7", HYDRA_FULL_ERROR="1")
    assert done.stderr.startswith("Traceback")
    assert done.stderr.splitlines()[-1].startswith("error: prune.ratio=1.7")
    assert done.returncode == 2
