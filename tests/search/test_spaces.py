"""What a trial is asked, and what the command line decides."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lrp_compress.compression.schedules import SCHEDULES
from lrp_compress.config.checks import check_config, conf_dir, register_schemas
from lrp_compress.config.schema import Config, SpaceConfig
from lrp_compress.search.search import read_arguments
from lrp_compress.search.spaces import Dimensions, pruning_schedule, removed, starting_points

WIDTHS = {"conv1": 32, "conv2": 64, "conv3": 64, "fc1": 512}
LIMITS = SpaceConfig(name="pruning_schedule", max_steps=4, max_ratio=0.95, min_samples=1000, max_samples=9000)


def configured(*overrides: str) -> Config:
    register_schemas()
    OmegaConf.register_new_resolver("run_folder", str, replace=True)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return check_config(compose("config", overrides=["+game=breakout", *overrides]), Config)


def asked(count: int, given: Any = None, fixed: Any = None, head: str = "policy") -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(count)]
    return [pruning_schedule(Dimensions(trial, given or {}, fixed or {}), WIDTHS, head, LIMITS) for trial in trials]


@pytest.mark.slow
def test_every_trial_composes_and_all_schedules_are_tried():
    seen = asked(40)
    assert {trial["prune.schedule"] for trial in seen} == set(SCHEDULES.names())
    for trial in seen:
        assert (trial["prune.schedule"] == "one_shot") == (trial["prune.steps"] == 1)
        assert ("criterion.composite" in trial) == (trial["criterion"] == "lrp")
    for trial in seen[:8]:
        plus = {name: "++" if "layer_ratios" in name else "" for name in trial}
        config = configured(*(f"{plus[name]}{name}={value}" for name, value in trial.items()))
        assert config.prune.layer_ratios == {layer: trial[f"prune.layer_ratios.{layer}"] for layer in WIDTHS}
        assert config.criterion.name == trial["criterion"]


def test_the_temperature_of_q_values_is_not_searched():
    assert all("distill.temperature" in trial for trial in asked(3))
    assert not any("distill.temperature" in trial for trial in asked(3, head="q"))


def test_the_command_line_fixes_and_replaces_dimensions():
    given = {"prune.layer_ratios.fc1": FloatDistribution(0.8, 0.9)}
    for trial in asked(5, given, {"prune.schedule": "cubic", "criterion": "taylor"}):
        assert (trial["prune.schedule"], trial["criterion"]) == ("cubic", "taylor")
        assert 2 <= trial["prune.steps"] <= 4
        assert 0.8 <= trial["prune.layer_ratios.fc1"] <= 0.9


def test_dimensions_of_the_command_line_join_the_space():
    given = {"distill.learning_rate": FloatDistribution(1e-4, 1e-2, log=True)}
    ask = Dimensions(optuna.create_study().ask(), given, {})
    chosen = pruning_schedule(ask, WIDTHS, "policy", LIMITS)
    rest = ask.rest()
    assert "distill.learning_rate" not in chosen
    assert list(rest) == ["distill.learning_rate"]
    assert 1e-4 <= rest["distill.learning_rate"] <= 1e-2


def test_arguments_are_told_apart():
    typed = read_arguments(
        [
            *("+game=breakout", "+search=smoke", "prune.steps=choice(2,3)", "distill.hint=interval(0.1,3)"),
            *("distill.samples=int(tag(log,interval(1000,5000)))", "criterion=lrp,random", "seed=1"),
        ]
    )
    assert typed.plain == ["+game=breakout", "+search=smoke", "seed=1"]
    assert typed.given == {
        "prune.steps": CategoricalDistribution(["2", "3"]),
        "distill.hint": FloatDistribution(0.1, 3),
        "distill.samples": IntDistribution(1000, 5000, log=True),
        "criterion": CategoricalDistribution(["lrp", "random"]),
    }


def test_the_first_trials_are_those_of_the_paper_and_equal_ratios():
    points = starting_points(configured(), WIDTHS, LIMITS)
    ratios = [[point[f"prune.layer_ratios.{layer}"] for layer in WIDTHS] for point in points]
    assert ratios == [[0.3] * 4, [0.5] * 4, [0.7] * 4, [0.9] * 4, [0.5, 0.5, 0.5, 0.0]]
    assert {point["distill.samples"] for point in points} == {9000}  # the default, within the limits
    study = optuna.create_study()
    study.enqueue_trial(points[3])
    chosen = pruning_schedule(Dimensions(study.ask(), {}, {}), WIDTHS, "policy", LIMITS)
    assert chosen["prune.ratio"] == 0.9
    assert (chosen["criterion"], chosen["prune.steps"]) == ("lrp", 1)


def test_removed_counts_channels():
    ratios = {"conv1": 0.0, "conv2": 0.5, "conv3": 0.5, "fc1": 1.0}
    chosen = {f"prune.layer_ratios.{layer}": ratio for layer, ratio in ratios.items()}
    assert removed(chosen, WIDTHS) == pytest.approx((32 + 32 + 512) / 672, abs=0.005)
