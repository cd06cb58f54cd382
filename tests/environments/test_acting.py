"""How actions are chosen: the probabilities that the rule promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lrp_compress.environments.acting import ActionRule, act, action_rule, choose_actions
from lrp_compress.networks.nature import nature_cnn

LOGITS = torch.tensor([1.0, 0.0, -2.0, 2.5])
DRAWS = 40_000
# 99.9 % quantile of chi-square with 3 degrees of freedom; the seeds are fixed, so the tests do not flicker
CHI_SQUARE_LIMIT = 16.27


def frequencies(rule: ActionRule, seed: int = 0) -> np.ndarray:
    actions = choose_actions(LOGITS.expand(DRAWS, -1), rule, np.random.default_rng(seed))
    assert actions.dtype == np.int64
    return np.bincount(actions, minlength=4)


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    expected = DRAWS * probabilities
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("seed", [0, 1])
def test_samples_follow_the_softmax(seed: int):
    probabilities = LOGITS.softmax(0).double().numpy()
    assert chi_square(frequencies(ActionRule("sample", 0), seed), probabilities) < CHI_SQUARE_LIMIT
    flatter = (LOGITS / 1.1).softmax(0).double().numpy()
    assert chi_square(frequencies(ActionRule("sample", 0), seed), flatter) > CHI_SQUARE_LIMIT  # it would be noticed


@pytest.mark.parametrize("epsilon", [0.05, 0.3, 1.0])
def test_epsilon_is_the_share_of_uniform_actions(epsilon: float):
    greedy = np.eye(4)[3]
    mixture = (1 - epsilon) * greedy + epsilon / 4
    assert chi_square(frequencies(ActionRule("greedy", epsilon)), mixture) < CHI_SQUARE_LIMIT
    mixture = (1 - epsilon) * LOGITS.softmax(0).double().numpy() + epsilon / 4
    assert chi_square(frequencies(ActionRule("sample", epsilon)), mixture) < CHI_SQUARE_LIMIT


def test_greedy_takes_the_largest_of_each_row():
    outputs = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    for seed in range(3):
        actions = choose_actions(outputs, ActionRule("greedy", 0), np.random.default_rng(seed))
        assert actions.tolist() == outputs.argmax(1).tolist()


def test_rows_are_drawn_for_themselves():
    rows = torch.tensor([[0.0, 50.0], [50.0, 0.0], [0.0, 50.0]])
    assert choose_actions(rows, ActionRule("sample", 0), np.random.default_rng(0)).tolist() == [1, 0, 1]
    even = choose_actions(torch.zeros(10_000, 2), ActionRule("sample", 0), np.random.default_rng(0))
    assert abs(np.corrcoef(even[:-1], even[1:])[0, 1]) < 0.04


def test_the_seed_decides():
    outputs = torch.zeros(50, 4)
    rule = ActionRule("sample", 0.1)
    one, same, other = (choose_actions(outputs, rule, np.random.default_rng(seed)).tolist() for seed in (0, 0, 1))
    assert one == same
    assert one != other


@pytest.mark.parametrize(
    ("action", "head", "expected"),
    [
        ("auto", "policy", ActionRule("sample", 0)),
        ("auto", "q", ActionRule("greedy", 0.05)),
        ("sample", "q", ActionRule("sample", 0)),
        ("greedy", "q", ActionRule("greedy", 0)),
        ("greedy", "policy", ActionRule("greedy", 0)),
        ("epsilon", "policy", ActionRule("greedy", 0.05)),
    ],
)
def test_rule_by_configuration_and_head(action: str, head: str, expected: ActionRule):
    assert action_rule(action, head, 0.05) == expected


def test_the_rule_can_be_reported():
    assert str(ActionRule("sample", 0)) == "sample"
    assert str(ActionRule("greedy", 0.001)) == "greedy, epsilon 0.001"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_acting_on_observations(dtype: torch.dtype, tolerance: float):
    torch.manual_seed(0)
    network = nature_cnn({"conv1": 4, "conv2": 6, "conv3": 6, "fc1": 16}, "q", 5)
    observations = np.random.default_rng(0).integers(256, size=(7, 4, 84, 84), dtype=np.uint8)
    actions, outputs = act(network, observations, ActionRule("greedy", 0), np.random.default_rng(0), dtype)
    expected = network(torch.from_numpy(observations)).detach()
    torch.testing.assert_close(outputs, expected, rtol=0, atol=tolerance)
    assert not outputs.requires_grad
    assert actions.tolist() == outputs.argmax(1).tolist()
