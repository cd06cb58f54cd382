"""What the command lines say of themselves."""

from __future__ import annotations

import pytest

from lrp_compress.checks import options
from lrp_compress.commands import COMMANDS, default_options
from tests.cli.commands import Command


@pytest.mark.parametrize(
    ("name", "module", "default", "example"),
    [
        ("compress", "lrp_compress", "lrp*", "python -m lrp_compress game=breakout prune.ratio=0.5"),
        ("train", "lrp_compress.train", "ppo*", "python -m lrp_compress.train game=pong"),
        (
            "firmware",
            "lrp_compress.firmware",
            "default*",
            "python -m lrp_compress.firmware game=breakout agent=FILE.onnx",
        ),
    ],
)
def test_help_names_everything(lrp_compress: Command, name: str, module: str, default: str, example: str):
    done = lrp_compress("--help", module=module)
    assert (done.returncode, done.stderr) == (0, "")
    words = set(done.stdout.replace(",", " ").replace("*", "").split())
    groups = default_options(COMMANDS[name])
    assert set(groups) <= words
    assert {option for group in groups for option in options(group)} <= words
    assert default in done.stdout
    assert example in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_settings_can_be_printed(lrp_compress: Command):
    with_plus, without = (lrp_compress(f"{plus}game=breakout", "prune=cubic", "--cfg", "job") for plus in ("+", ""))
    assert with_plus.stdout == without.stdout
    assert "schedule: cubic" in without.stdout
    assert "hydra" not in without.stdout


def test_a_game_of_ones_own(lrp_compress: Command, tmp_path):
    (tmp_path / "mine" / "game").mkdir(parents=True)
    (tmp_path / "mine" / "game" / "klax2.yaml").write_text("name: klax\ntitle: X\nrandom_score: 0\nhuman_score: null\n")
    done = lrp_compress("game=klax2", "--config-dir", "mine", "--cfg", "job")
    assert "name: klax\n" in done.stdout
    assert done.returncode == 0
