"""Int8 outputs are those of exact integer arithmetic, on every processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lrp_compress.agents.checkpoints import load_agent
from lrp_compress.agents.teachers import teachers_dir
from lrp_compress.config.schema import RolloutsConfig
from lrp_compress.deployment.files.onnx_models import save_int8
from lrp_compress.deployment.files.onnx_sessions import OnnxPolicy
from lrp_compress.environments.acting import action_rule
from lrp_compress.environments.groups import Acting
from lrp_compress.environments.rollouts import collect_rollouts
from tests.deployment.exact import exact_outputs

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("game", "per_channel"), [("road_runner", True), ("freeway", False)])
def test_a_played_teacher_computes_exactly(tmp_path: Path, game: str, per_channel: bool):
    teacher = load_agent(teachers_dir() / f"{game}.safetensors")
    how = RolloutsConfig(states=96, envs=4, block=1, every=16)
    rule = action_rule("auto", teacher.network.head_kind, 0.01)
    observations = collect_rollouts(teacher, how, Acting(rule, "noop", 0)).observations(torch.arange(96)).numpy()
    path = tmp_path / "teacher.onnx"
    save_int8(path, teacher, observations[:48], per_channel)
    wanted = exact_outputs(path, observations[48:])
    assert len(np.unique(wanted)) > 20
    assert OnnxPolicy(path).run(observations[48:]).tobytes() == wanted.tobytes()
