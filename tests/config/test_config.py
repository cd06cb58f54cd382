"""The schema and conf/ fit together, and every wrong value is refused in one line."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ale_py.roms import get_all_rom_ids
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from lrp_compress.config.checks import check_config, check_storage, conf_dir, options, register_schemas
from lrp_compress.config.schema import Config, TrainConfig, config_hash, flatten
from lrp_compress.networks.nature import NATURE_WIDTHS
from lrp_compress.support.errors import UserError
from tests.commands.running import default_options

CHOSEN = ["+game=breakout"]


@pytest.fixture(autouse=True, scope="module")
def _hydra() -> Iterator[None]:
    register_schemas()
    OmegaConf.register_new_resolver("run_folder", str, replace=True)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


def composed(*overrides: str) -> DictConfig:
    return compose("config", overrides=list(overrides))


@functools.cache
def checked(*overrides: str) -> Config:
    return check_config(composed(*CHOSEN, *overrides), Config)


def checked_training(*overrides: str) -> TrainConfig:
    return check_config(compose("train", overrides=["+game=pong", *overrides]), TrainConfig)


def required_options(command: str) -> list[tuple[str, str]]:
    """All options of a command's groups that have a default."""
    groups = default_options(command)
    return [(group, option) for group, default in groups.items() if default for option in options(group)]


def test_only_the_game_is_missing():
    assert OmegaConf.missing_keys(composed()) == {"game"}
    assert isinstance(checked(), Config)


def test_no_game_lists_the_games_in_one_line():
    with pytest.raises(UserError, match="game=breakout") as caught:
        check_config(composed(), Config)
    assert "seaquest" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("group", "option"), required_options("compress"))
def test_every_option_composes(group: str, option: str):
    before, after = checked(), checked(f"{group}={option}")
    unchanged = {key for key in flatten(before) if not key.startswith(f"{group}.")}
    assert {key: flatten(after)[key] for key in unchanged} == {key: flatten(before)[key] for key in unchanged}


@pytest.mark.parametrize(("group", "option"), required_options("train"))
def test_every_option_of_a_training_composes(group: str, option: str):
    assert checked_training(f"{group}={option}").game.name == "pong"


def test_a_training_misses_only_its_game():
    assert OmegaConf.missing_keys(compose("train")) == {"game"}
    assert checked_training().run_name == "train-pong-ppo-s0"
    for name in options("train"):
        assert checked_training(f"train={name}").train.algorithm == name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=0", "train.steps=0 is not allowed; it must be at least 1"),
        ("train.precision=int8", "train.precision=int8 is unknown"),
        ("+train.lr=1", "there is no setting train.lr"),
    ],
)
def test_wrong_value_of_a_training_is_refused_in_one_line(override: str, message: str):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        checked_training(override)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", options("experiment"))
def test_every_experiment_composes_and_names_its_command(option: str):
    assert checked(f"+experiment={option}").game.name == "breakout"
    text = (conf_dir() / "experiment" / f"{option}.yaml").read_text().splitlines()
    assert text[0] == "# @package _global_"  # Hydra reads it only there
    assert text[1].startswith("# python -m lrp_compress ")
    assert f"experiment={option}" in text[1]
    assert not any(line.startswith(("game", "  - /game")) for line in text)


@pytest.mark.parametrize(("group", "key"), [("criterion", "name"), ("prune", "schedule"), ("distill", "loss")])
def test_the_files_of_a_registry_are_named_after_its_entries(group: str, key: str):
    for name in set(options(group)) - {"none", "auto"}:  # auto chooses how much of each layer goes, in any schedule
        assert flatten(checked(f"{group}={name}"))[f"{group}.{key}"] == name


@pytest.mark.parametrize("other", ["prune.scope=global", "++prune.layer_ratios.fc1=0.5"])
def test_a_budget_is_the_only_one_to_choose_ratios(other: str):
    with pytest.raises(UserError, match=r"^prune\.budget=macs chooses each layer's ratio; leave out prune\.\w+"):
        checked("prune=auto", "prune.budget=macs", other)


def test_a_run_with_a_budget_is_named_after_it():
    assert checked("prune=auto", "prune.share=0.125").run_name == "breakout-lrp-params0.12-s0"


def test_every_game_file_has_the_same_four_keys():
    fields = [field.name for field in dataclasses.fields(checked().game)]
    for path in (conf_dir() / "game").glob("*.yaml"):
        values = OmegaConf.load(path)
        assert list(values) == fields, path
        assert values.name == path.stem
        assert (values.random_score is None) == (values.human_score is None)


def test_the_games_are_those_ale_plays_alone():
    assert set(options("game")) == set(get_all_rom_ids()) - {"combat", "joust", "maze_craze", "warlords"}


def test_published_scores():
    # Mnih et al. 2015, extended data table 2; Wang et al. 2016.
    for game, scores in {"breakout": (1.7, 30.5), "pong": (-20.7, 14.6), "seaquest": (68.4, 42054.7)}.items():
        config = check_config(composed(f"+game={game}"), Config).game
        assert (config.random_score, config.human_score) == scores
    assert sum(OmegaConf.load(path).human_score is not None for path in (conf_dir() / "game").glob("*.yaml")) == 57


def test_every_value_has_a_comment():
    for path in conf_dir().rglob("*.yaml"):
        if path.parent.name in ("game", "experiment", "search"):
            continue
        text = path.read_text().partition("\nhydra:")[0]
        for line in text.splitlines():
            if ": " in line and not line.startswith(("defaults:", "  - ", "#")):
                assert " # " in line, f"{path}: {line}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prune.ratio=1", "prune.ratio=1.0 is not allowed; it must be in [0, 1)"),
        ("prune.ratio=-0.1", "prune.ratio=-0.1 is not allowed"),
        ("prune.ratio=nan", "prune.ratio=nan is not allowed"),
        ("distill.learning_rate=nan", "distill.learning_rate=nan is not allowed; it must be above 0"),
        (
            "distill.learning_rate=inf",
            "distill.learning_rate=inf is not allowed; it must be a number, and at most 2147",
        ),
        ("game.random_score=nan", "game.random_score=nan is not allowed; it must be a number"),
        (
            "evaluate.max_frames=99999999999999999999",
            "=99999999999999999999 is not allowed; it must be a number, and at",
        ),
        ("rollouts.states=999999999999", "rollouts.states=999999999999 is not allowed; it must be in [64, 1e+07]"),
        ("latency.threads=99999999999", "latency.threads=99999999999 is not allowed; it must be in [1, 1024]"),
        ("++prune.layer_ratios.fc=1.2", "prune.layer_ratios.fc=1.2 is not allowed; it must be in [0, 1)"),
        ("distill.temperature=0", "distill.temperature=0.0 is not allowed; it must be above 0"),
        ("evaluate.episodes=1", "evaluate.episodes=1 is not allowed; it must be at least 2"),
        ("evaluate.confidence=1", "evaluate.confidence=1.0 is not allowed; it must be in (0, 1)"),
        ("seed=-1", "seed=-1 is not allowed"),
        ("seed=2147483648", "seed=2147483648 is not allowed"),
        ("prune.scope=globl", "prune.scope=globl is unknown (did you mean global?); choose from: global, layer"),
        ("protocol=Noop", "did you mean noop?"),
        ("prune.ratio=???", "prune.ratio has no value"),
        ("cache_dir=", "cache_dir is empty"),
        ("+prune.extra=1", "there is no setting prune.extra"),
        ("+prune.rato=1", "did you mean prune.ratio?"),
        ("+ration=1", "did you mean prune.ratio?"),
        ("prune.ratio=${nothing}", "prune.ratio: Interpolation key 'nothing' not found"),
        ("prune.steps=4", "prune.schedule=one_shot does not go with prune.steps=4"),
        ("prune.schedule=cubic", "prune.schedule=cubic does not go with prune.steps=1"),
        ("criterion.states=40000", "criterion.states=40000 is more than rollouts.states=32768"),
        ("prune.share=0", "prune.share=0.0 is not allowed; it must be in (0, 1]"),
        ("prune.budget=parms", "prune.budget=parms is unknown (did you mean params?)"),
        ("distill.batch_size=200000", "distill.batch_size=200000 is more than distill.replay_states=100000"),
        ("~prune", "prune has no value"),
    ],
)
def test_wrong_value_is_refused_in_one_line(override: str, message: str):
    with pytest.raises(UserError) as caught:
        checked(override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override", ["prune.ratio=0", "prune.ratio=0.999", "distill.temperature=null", "distill.samples=0", "prune=cubic"]
)
def test_edges_are_allowed(override: str):
    checked(override)


def test_an_untyped_configuration_is_checked_for_types_too():
    values = OmegaConf.to_container(composed(*CHOSEN), resolve=True)
    assert check_config(OmegaConf.create(values), Config) == checked()
    values["prune"]["ratio"] = "half"
    with pytest.raises(UserError, match=r"ratio: Value 'half' of type 'str' could not be converted to Float"):
        check_config(OmegaConf.create(values), Config)


def test_hash_is_the_runs_identity():
    same = [
        [],
        ["tracking=none"],
        ["tracking.experiment=mine"],
        ["cache_dir=elsewhere"],
        ["force=true"],
        ["prune.ratio=0.50"],
        ["seed=0"],
    ]
    assert len({config_hash(checked(*overrides)) for overrides in same}) == 1
    other = [
        [],
        ["seed=1"],
        ["prune.ratio=0.51"],
        ["criterion=random"],
        ["++prune.layer_ratios.fc=0.5"],
        ["protocol=sticky"],
    ]
    assert len({config_hash(checked(*overrides)) for overrides in other}) == len(other)
    assert len(config_hash(checked())) == 8


def test_hash_changes_with_the_version(monkeypatch: pytest.MonkeyPatch):
    before = config_hash(checked())
    monkeypatch.setattr("lrp_compress.config.schema.__version__", "99.0")
    assert config_hash(checked()) != before


def test_names():
    assert checked("seed=3", "prune.ratio=0.255").run_name == "breakout-lrp-r0.26-s3"
    flat = flatten(checked("++prune.layer_ratios={fc: 0.8}", "tracking=none"))
    assert flat["prune.layer_ratios.fc"] == 0.8
    assert flat["tracking.uri"] is None
    assert not any(isinstance(value, dict) for value in flat.values())


def test_conf_dir_is_absolute():
    assert conf_dir().is_absolute()
    assert Path(conf_dir() / "config.yaml").is_file()


def test_the_rungs_of_the_ladder_are_right():
    ladder = compose("config", overrides=[*CHOSEN, "+experiment=ladder"], return_hydra_config=True).hydra.sweeper.params
    (override,) = OverridesParser.create().parse_overrides([f"++prune={ladder['++prune']}"])
    rungs = [checked("+experiment=ladder", f"++prune={rung}").prune for rung in override.sweep_string_iterator()]
    assert [rung.ratio for rung in rungs] == [0.0, 0.5, 0.8, 0.9, 0.95]
    assert all(set(rung.layer_ratios) == set(NATURE_WIDTHS) for rung in rungs[2:])
    assert not rungs[1].layer_ratios
    assert not any(rung.evaluate for rung in rungs)


@pytest.mark.parametrize(
    "storage",
    [
        "postgresql+psycopg://joe:hunter2@localhost/db",
        "postgresql+psycopg://joe:hun:ter2@localhost/db",
        "postgresql+psycopg://joe:hun@ter2@localhost/db",
        "postgresql+psycopg://joe:hun/ter2@localhost/db",
        "postgresql+psycopg://joe@localhost/db?password=hunter2",
        "mysql://joe@localhost/db?passwd=hunter2",
    ],
)
def test_no_part_of_a_password_is_shown(storage: str):
    with pytest.raises(UserError, match="holds a password") as raised:
        check_storage(storage)
    assert "hun" not in str(raised.value)
    assert "ter2" not in str(raised.value)


@pytest.mark.parametrize(
    "storage", ["postgresql+psycopg://joe@localhost/db", "sqlite:///studies.db", "sqlite:////a/b.db"]
)
def test_addresses_without_a_password_are_taken(storage: str):
    check_storage(storage)
