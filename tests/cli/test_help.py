"""What the command line says of itself."""

from __future__ import annotations

from lrp_compress.checks import groups, options
from tests.cli.commands import Command


def test_help_names_everything(lrp_compress: Command):
    done = lrp_compress("--help")
    assert (done.returncode, done.stderr) == (0, "")
    words = set(done.stdout.replace(",", " ").replace("*", "").split())
    assert set(groups()) <= words
    assert {name for group in groups() for name in options(group)} <= words
    assert "lrp*" in done.stdout
    assert "python -m lrp_compress game=breakout prune.ratio=0.5" in done.stdout
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
