"""Named entries, and what happens with a name that is not there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lrp_compress.support.errors import UserError
from lrp_compress.support.registry import Registry


def filled() -> Registry[Callable[[int], int]]:
    registry: Registry[Callable[[int], int]] = Registry("maths.operation")

    @registry.register("negate")
    def negate(value: int) -> int:
        return -value

    @registry.register("double")
    def double(value: int) -> int:
        return 2 * value

    assert double(3) == 6  # the decorator hands the function back
    return registry


def test_entries_by_name():
    registry = filled()
    assert registry.names() == ["double", "negate"]
    assert registry["negate"](5) == -5


def test_registries_share_nothing():
    filled()
    assert Registry[int]("other").names() == []


@pytest.mark.parametrize(("given", "hint"), [("duoble", " (did you mean double?)"), ("xyz", "")])
def test_unknown_name(given: str, hint: str):
    with pytest.raises(UserError) as caught:
        filled()[given]
    assert str(caught.value) == f"maths.operation={given} is unknown{hint}; choose from: double, negate"


def test_a_name_is_registered_once():
    registry = filled()
    with pytest.raises(ValueError, match=r"maths\.operation: 'double' is registered twice"):
        registry.register("double")(abs)
    assert registry["double"](4) == 8
