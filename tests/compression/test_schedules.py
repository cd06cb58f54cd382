"""The schedules' values."""

from __future__ import annotations

import itertools

import pytest

from lrp_compress.compression.schedules import SCHEDULES, cumulative_ratios
from lrp_compress.support.errors import UserError


@pytest.mark.parametrize("schedule", SCHEDULES.names())
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_ratios_increase_to_exactly_the_ratio_asked(schedule: str, ratio: float, steps: int) -> None:
    ratios = cumulative_ratios(schedule, ratio, steps)
    assert ratios[-1] == ratio
    assert len(ratios) == (1 if schedule == "one_shot" else steps)
    assert all(0 < before < after for before, after in itertools.pairwise(ratios))


@pytest.mark.parametrize("schedule", SCHEDULES.names())
def test_ratio_zero_is_one_step_that_removes_nothing(schedule: str) -> None:
    assert cumulative_ratios(schedule, 0.0, 5) == [0.0]


def test_linear_removes_equally_many_each_step() -> None:
    assert cumulative_ratios("linear", 0.8, 4) == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_geometric_removes_an_equal_fraction_of_what_remains() -> None:
    remaining = [1.0] + [1 - ratio for ratio in cumulative_ratios("geometric", 0.875, 3)]
    assert remaining == pytest.approx([1.0, 0.5, 0.25, 0.125])


def test_cubic_follows_the_polynomial() -> None:
    assert cumulative_ratios("cubic", 0.64, 4) == pytest.approx([0.37, 0.56, 0.63, 0.64])


def test_unknown_schedule_names_the_key_and_the_closest() -> None:
    with pytest.raises(UserError, match=r"prune\.schedule=cubik is unknown \(did you mean cubic\?\)"):
        cumulative_ratios("cubik", 0.5, 2)


@pytest.mark.parametrize(("ratio", "steps"), [(1.0, 2), (-0.1, 2), (0.5, 0)])
def test_out_of_range_values_are_refused(ratio: float, steps: int) -> None:
    with pytest.raises(ValueError, match="needs a ratio"):
        cumulative_ratios("linear", ratio, steps)
