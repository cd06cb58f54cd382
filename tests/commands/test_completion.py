"""Tab completion: what shells are answered, and bash itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.running import Command, environment


def completed(lrp_compress: Command, line: str, shell: str = "bash") -> list[str]:
    """What the end of a line may become, asked as the scripts of Hydra's for shells ask."""
    done = lrp_compress("-sc", f"query={shell}", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lrp-compress game=brea", ["game=breakout"]),
        ("lrp-compress +game=brea", ["+game=breakout"]),
        ("lrp-compress game=pong criterion=la", []),
        ("lrp-compress game=pong criterion=weight", ["criterion=weight_l1", "criterion=weight_l2"]),
        ("lrp-compress game=pong -m criterion=lrp_", ["criterion=lrp_tuned"]),
        ("lrp-compress prune.s", ["prune.schedule=", "prune.scope=", "prune.share=", "prune.steps="]),
        ("lrp-compress prune=cubic prune.schedule=", ["prune.schedule=cubic"]),
        ("lrp-compress sea", ["search.", "search="]),
        ("lrp-compress search.n_", ["search.n_jobs=", "search.n_trials="]),
        ("lrp-compress search=smoke search.n_trials=", ["search.n_trials=5"]),
        ("lrp-compress search.space.na", ["search.space.name="]),
        ("lrp-compress fi", ["finetune.", "finetune=", "firmware"]),
        ("lrp-compress train al", ["algorithm="]),
        ("lrp-compress train algorithm=qr", ["algorithm=qrdqn"]),
        ("lrp-compress play agent=./st", ["agent=./student.safetensors"]),
        ("lrp-compress firmware boa", ["board="]),
        ("lrp-compress report outp", []),  # left to the shell, which knows files
        ("python -m lrp_compress game=brea", ["game=breakout"]),
        ("/usr/bin/python3.12 -m lrp_compress.train train.evaluate_ep", ["train.evaluate_episodes="]),
        ("lrp-compress --config-dir own game=klax", ["game=klax", "game=klax2"]),
        ("lrp-compress game=nowhere criterion=lrp_", ["criterion=lrp_tuned"]),
        ("lrp-compress game=[ crit", []),
        ("lrp-compress --fast crit", []),
        ("lrp-compress", []),
    ],
)
def test_the_end_of_a_line(lrp_compress: Command, tmp_path: Path, line: str, expected: list[str]):
    (tmp_path / "student.safetensors").touch()
    (tmp_path / "own" / "game").mkdir(parents=True)
    (tmp_path / "own" / "game" / "klax2.yaml").touch()
    assert completed(lrp_compress, line) == expected


def test_an_empty_word_lists_commands_groups_and_settings(lrp_compress: Command):
    offered = completed(lrp_compress, "lrp-compress ", "fish")
    assert {"train", "play", "game=", "criterion=", "search.", "prune.", "seed="} <= set(offered)


def test_only_what_is_before_the_cursor_counts(lrp_compress: Command):
    done = lrp_compress("-sc", "query=bash", COMP_LINE="lrp-compress game=brea seed=1", COMP_POINT="22")
    assert done.stdout.split() == ["game=breakout"]


def test_bash_completes_after_what_is_to_be_typed_once(tmp_path: Path):
    program = tmp_path / "lrp-compress"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m lrp_compress "$@"\n')
    program.chmod(0o755)
    script = """
    eval "$(python -m lrp_compress -sc install=bash)"
    complete -p lrp-compress
    COMP_WORDS=(lrp-compress game=brea) COMP_CWORD=1 COMP_LINE="lrp-compress game=brea" COMP_POINT=22
    hydra_bash_completion
    echo "${COMPREPLY[@]}"
    """
    path = f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment(PATH=path), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "game=breakout"
    assert "hydra_bash_completion lrp-compress" in done.stdout
