"""What the command lines say of themselves."""

from __future__ import annotations

import pytest

from lrp_compress.commands.table import COMMANDS
from lrp_compress.config.checks import options
from tests.commands.running import Command, default_options


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
    groups = default_options(name)
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


@pytest.mark.parametrize(
    "arguments",
    [
        ("game=breakout", "--cfg", "job", "prune=cubic", "--package", "prune"),
        ("-p", "prune", "game=breakout", "prune=cubic", "-c", "job"),
    ],
)
def test_flags_may_stand_anywhere(lrp_compress: Command, arguments: tuple[str, ...]):
    done = lrp_compress(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("# @package prune")
    assert "schedule: cubic" in done.stdout


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "compress"])
def test_a_command_by_its_name(lrp_compress: Command, name: str):
    by_name, by_module = lrp_compress(name, "--help"), lrp_compress("--help", module=f"lrp_compress.{name}")
    assert by_name.stdout == by_module.stdout
    assert (by_name.returncode, by_name.stderr) == (0, "")


def test_the_report_by_its_name(lrp_compress: Command):
    assert "--tracking" in lrp_compress("report", "--help").stdout


def test_help_is_a_command_too(lrp_compress: Command):
    assert lrp_compress("help").stdout == lrp_compress("--help").stdout
    assert lrp_compress("help", "train").stdout == lrp_compress("train", "-h").stdout


def test_a_report_of_nothing(lrp_compress: Command):
    done = lrp_compress("report")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the following arguments are required: source; --help says what there is\n"


def test_the_variables_of_mlflow_are_the_defaults(lrp_compress: Command):
    variables = {"MLFLOW_TRACKING_URI": "http://tracker:5000", "MLFLOW_EXPERIMENT_NAME": "mine"}
    shown = lrp_compress("game=pong", "--cfg", "job", "--resolve", "-p", "tracking", **variables).stdout
    assert "uri: http://tracker:5000" in shown
    assert "experiment: mine" in shown
    assert "http://tracker:5000" in lrp_compress("report", "--help", **variables).stdout
    assert "uri: sqlite:///mlflow.db" in lrp_compress("game=pong", "--cfg", "job", "--resolve").stdout
