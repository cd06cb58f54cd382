"""A whole run of a residual network: pruned, repaired, distilled, played, in int8 and as C."""

from __future__ import annotations

from pathlib import Path

import pytest

import lrp_compress as lc
from lrp_compress.agents.checkpoints import Agent, AgentInfo, all_channels
from tests.compression.networks import built
from tests.test_api import SMALL

pytestmark = pytest.mark.slow


def test_a_residual_network_goes_the_whole_path(tmp_path: Path) -> None:
    network = built("residual", bias=0.05)
    teacher = Agent(network, AgentInfo("pong", "minimal", False, {}, all_channels(network.widths)))
    overrides = [one for one in SMALL if not one.startswith(("quantize", "export"))]
    done = lc.compress(
        teacher, "pong", 0.5, *overrides, "export=[c]", "quantize={distill: never, min_agreement: 0.0, states: 32}",
        f"cache_dir={tmp_path}", folder=tmp_path / "run",
    )  # fmt: skip
    assert done.student.network.widths == {name: width // 2 for name, width in network.widths.items()}
    assert done.metrics["repaired/kl"] < done.metrics["pruned/kl"]
    assert done.metrics["export/c/int8/max_difference"] == 0
