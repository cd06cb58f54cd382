"""Games, experiments and primary configurations in a folder of the user's own, used as Hydra's users do."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.commands.running import Command

FILES = {
    "game/klax2": "name: klax\ntitle: Klax, my way\nrandom_score: 0\nhuman_score: null\n",
    "experiment/elsewhere": """# @package _global_
defaults: [override /game: freeway, override /criterion: random]
seed: 9
""",
    "pong": "defaults: [config, game: pong, _self_]\nseed: 7\n",
    "open": "defaults: [config, game: '???', _self_, experiment: null]\nseed: 8\n",
    "train_pong": "defaults: [train, game: pong, _self_]\nseed: 6\n",
}
DIR, SEARCHED = "--config-dir=own", "hydra.searchpath=[file://{own}]"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("arguments", "game", "criterion", "seed"),
    [
        ([DIR, "game=klax2"], "klax", "lrp", 0),
        ([SEARCHED, "game=klax2"], "klax", "lrp", 0),
        ([DIR, "experiment=elsewhere"], "freeway", "random", 9),
        ([SEARCHED, "+experiment=elsewhere"], "freeway", "random", 9),
        (["+game=pong", "experiment=elsewhere", DIR], "pong", "random", 9),
        (["game=pong", "game=breakout"], "breakout", "lrp", 0),
        ([DIR, "--config-name=pong"], "pong", "lrp", 7),
        ([DIR, "--config-name=pong", "game=freeway"], "freeway", "lrp", 7),
        ([DIR, "--config-name=pong", "+game=freeway", "seed=1"], "freeway", "lrp", 1),
        ([DIR, "--config-name=pong", "experiment=elsewhere"], "freeway", "random", 9),
        ([DIR, "-cn", "open", "game=breakout", "experiment=elsewhere"], "breakout", "random", 9),
    ],
)
def test_what_is_chosen(lrp_compress: Command, own: Path, arguments: list[str], game: str, criterion: str, seed: int):
    done = lrp_compress(*(argument.format(own=own) for argument in arguments), "--cfg", "job")
    assert (done.returncode, done.stderr) == (0, "")
    config = yaml.safe_load(done.stdout)
    assert (config["game"]["name"], config["criterion"]["name"], config["seed"]) == (game, criterion, seed)


def test_a_training_of_ones_own(lrp_compress: Command, own: Path):
    done = lrp_compress("train", "--config-dir", "own", "-cn", "train_pong", "game=freeway", "--cfg", "job")
    config = yaml.safe_load(done.stdout)
    assert (config["game"]["name"], config["seed"]) == ("freeway", 6)


@pytest.mark.parametrize(
    ("arguments", "default"),
    [([DIR], "lrp"), ([SEARCHED], "lrp"), ([DIR, "-cn", "pong"], "pong"), ([DIR, "criterion=random"], "random")],
)
def test_help_lists_what_a_folder_adds(lrp_compress: Command, own: Path, arguments: list[str], default: str):
    done = lrp_compress("--help", *(argument.format(own=own) for argument in arguments))
    words = done.stdout.replace(",", " ").split()
    assert {"klax2", "elsewhere", "smoke", "pareto", f"{default}*"} <= set(words)
    assert "klax2" not in lrp_compress("--help").stdout
