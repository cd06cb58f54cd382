"""Students learn from the shipped teacher on real games."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from lrp_compress.agents.checkpoints import Agent, all_channels, load_agent
from lrp_compress.agents.teachers import teachers_dir
from lrp_compress.compression.criteria import ChannelScores
from lrp_compress.compression.distillation import Beside, Distillation, distill
from lrp_compress.compression.learner import Learner, Progress, Terms
from lrp_compress.compression.losses import LOSSES, action_agreement, hint_loss
from lrp_compress.compression.pruning import apply_pruning, plan_pruning
from lrp_compress.config.checks import conf_dir
from lrp_compress.config.schema import DistillConfig, PruneConfig, RolloutsConfig
from lrp_compress.environments.acting import ActionRule
from lrp_compress.environments.groups import Acting, Emulators
from lrp_compress.environments.rollouts import Rollouts, collect_rollouts
from lrp_compress.networks.fast import batched_outputs, dense_values
from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import nature_cnn
from lrp_compress.support.errors import UserError

pytestmark = pytest.mark.slow

SAMPLE = ActionRule("sample", 0.0)
WIDTHS = {"conv1": 8, "conv2": 12, "conv3": 12, "fc1": 48}
EMULATORS = Emulators()  # kept, which nobody can tell (tests/atari/test_groups.py)


@pytest.fixture(scope="module")
def teacher() -> Agent:
    return load_agent(teachers_dir() / "breakout.safetensors")


@pytest.fixture(scope="module")
def play(teacher: Agent) -> Rollouts:
    """Play of the teacher, of which no student learns from the games that are held out."""
    return collect_rollouts(teacher, RolloutsConfig(400, 2, 8, 2), Acting(SAMPLE, "noop", 99))


def small_student(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return nature_cnn(WIDTHS, "policy", 4)


def configured(**changes: Any) -> DistillConfig:
    defaults = OmegaConf.load(Path(conf_dir()) / "distill" / "kl.yaml")
    small = {"envs": 4, "replay_states": 4096, "batch_size": 64, "passes": 6, "precision": "float32"}
    return DistillConfig(**{**OmegaConf.to_container(defaults), **small, **changes})  # type: ignore[arg-type]


def distilled(
    student: Network,
    teacher: Agent,
    play: Rollouts,
    samples: int,
    seed: int = 0,
    kept: Mapping[str, Sequence[int]] = MappingProxyType({}),
    rule: ActionRule = SAMPLE,
    **changes: Any,
) -> tuple[Distillation, list[Progress]]:
    heard: list[Progress] = []
    own = Agent(student, dataclasses.replace(teacher.info, kept=dict(kept)))
    config, acting = configured(samples=samples, **changes), Acting(rule, "noop", seed, EMULATORS)
    return distill(own, teacher, play, config, acting, Beside(heard.append)), heard


def weights(network: Network) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def pruned(teacher: Agent, ratio: float) -> Network:
    """Keep the filters and units of the largest weights, as many in each layer."""
    network = teacher.network
    norms = {name: getattr(network, name).weight.detach().flatten(1).norm(dim=1) for name in network.widths}
    config = PruneConfig(ratio, {}, "all", "layer", "one_shot", 1, 1, "none", True)
    scores = ChannelScores(norms, "magnitude", 0)
    plan = plan_pruning(scores, network, network.widths, all_channels(network.widths), config, ratio)
    return apply_pruning(network, plan)


def distance(loss: str, network: Network, play: Rollouts) -> float:
    """How far a network is from the teacher in games that nothing is learned from."""
    held_out = play.part(play.held_out())
    return LOSSES[loss](batched_outputs(network, held_out.observations), held_out.outputs, 1.0).item()


@pytest.fixture(scope="module")
def learned(teacher: Agent, play: Rollouts, device: str) -> tuple[Network, Network, Distillation, list[Progress]]:
    """A pruned teacher, a copy made of it before, and what it became: 1,500 steps of play, 6,000 samples."""
    student = pruned(teacher, 0.6).to(device)
    before = copy.deepcopy(student)
    teacher = Agent(copy.deepcopy(teacher.network).to(device), teacher.info)
    result, heard = distilled(student, teacher, play, 6000, data="mixed", batch_size=32, passes=4, learning_rate=1e-3)
    return student, before, result, heard


def test_a_pruned_student_recovers(learned: Any, play: Rollouts):
    _, before, result, heard = learned
    losses = [progress.loss for progress in heard]
    assert losses[-1] < 0.8 * losses[0]
    held_out = play.part(play.held_out())
    agreements = [
        action_agreement(batched_outputs(network, held_out.observations), held_out.outputs)
        for network in (before, result.network)
    ]
    assert agreements[1] > agreements[0] + 0.1
    assert agreements[1] > 0.55
    assert distance("kl", result.network, play) < 0.7 * distance("kl", before, play)


def test_the_student_given_is_left_as_it_was(learned: Any):
    student, before, result, _ = learned
    assert torch.equal(weights(student), weights(before))
    assert student.training == before.training
    assert not result.network.training
    assert result.network.widths == student.widths


def test_the_checks_are_reported(learned: Any):
    _, _, result, heard = learned
    assert heard == result.curve
    samples = [progress.samples for progress in heard]
    assert 10 <= len(samples) <= 25
    assert samples == sorted(set(samples))
    assert samples[0] <= 1000
    assert all(0 <= progress.agreement <= 1 for progress in heard)
    assert result.temperature == 1
    assert 1500 <= result.env_steps <= 1600
    assert result.samples_per_s > 0


def test_the_finished_student_is_compared_too(learned: Any):
    assert learned[3][-1].samples >= 6000


def test_the_best_by_what_suits_the_play_is_kept(learned: Any, teacher: Agent, play: Rollouts):
    """Where actions are sampled it is the student of least loss, and in greedy play the one that agrees most."""
    _, _, result, heard = learned
    least = min(progress.held_out_loss for progress in heard)
    unmatched = copy.deepcopy(result.network)
    with torch.no_grad():
        for parameter in unmatched.head.parameters():
            parameter.mul_(result.policy_temperature)
    assert distance("kl", unmatched, play) == pytest.approx(least, rel=1e-3)
    agent = q_agent(teacher)
    rule = ActionRule("greedy", 0.05)
    greedy, heard = distilled(pruned(agent, 0.6), agent, play, 1500, rule=rule)
    held_out = play.part(play.held_out())
    agreed = action_agreement(batched_outputs(greedy.network, held_out.observations), held_out.outputs)
    assert agreed == pytest.approx(max(p.agreement for p in heard), abs=2 / len(held_out.outputs))


def test_learning_that_stalls_ends(teacher: Agent, play: Rollouts):
    student = pruned(teacher, 0.6)
    stalled, _ = distilled(student, teacher, play, 4000, learning_rate=1e-9, patience=500)
    assert 500 <= stalled.samples < 1300
    going, _ = distilled(student, teacher, play, 2000, learning_rate=1e-9, patience=4000)
    assert going.samples >= 2000


def test_greedy_play_stalls_where_the_choices_do(play: Rollouts):
    """A loss that falls does not keep greedy play learning, nor does one that stalls end it while agreement rises."""
    config, held_out = configured(samples=9000, patience=1000, enough=0.0), play.part(play.held_out())
    falling, rising = [0.5, 0.4, 0.3, 0.2], [0.6, 0.7, 0.8, 0.9]

    def stalls(greedy: bool, losses: list[float], agreements: list[float]) -> bool:
        learner = Learner(small_student(), [], held_out, config, Terms(1.0, 1.0, greedy, torch.float32, 0))
        learner.curve = [
            Progress(500 * number, 1.0, loss, agreement)
            for number, (loss, agreement) in enumerate(zip(losses, agreements, strict=True), 1)
        ]
        return learner.stalls()

    assert stalls(True, falling, [0.9] * 4)
    assert not stalls(False, falling, [0.9] * 4)
    assert not stalls(True, [0.1] * 4, rising)
    assert stalls(False, [0.1] * 4, rising)


def test_a_checkpoint_is_gone_on_from(teacher: Agent, play: Rollouts, tmp_path: Path):
    path, student = tmp_path / "distillation.pt", pruned(teacher, 0.6)

    class Cut(Exception):
        pass

    heard: list[Progress] = []

    def cut_off(progress: Progress) -> None:
        heard.append(progress)
        if progress.samples > 600:
            raise Cut

    config, acting = configured(samples=1500, checkpoint_minutes=0), Acting(SAMPLE, "noop", 0)
    own = Agent(student, dataclasses.replace(teacher.info, kept={}))
    with pytest.raises(Cut):
        distill(own, teacher, play, config, acting, Beside(cut_off, path))
    later: list[Progress] = []
    result = distill(own, teacher, play, config, acting, Beside(later.append, path))
    done = len(result.curve) - len(later)
    assert result.curve[:done] == heard[:done]  # the checkpoint is one turn of play older than the cut
    assert done >= len(heard) - 1
    assert later[0].samples > heard[done - 1].samples
    assert result.samples >= 1500
    assert result.env_steps < 1500 / config.passes
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="no whole checkpoint"):
        distill(own, teacher, play, config, acting, Beside(checkpoint=path))


def test_no_samples_leave_the_student_as_it_is(teacher: Agent, play: Rollouts):
    student = small_student()
    result, heard = distilled(student, teacher, play, 0)
    assert torch.equal(weights(result.network), weights(student))
    assert result.network is not student
    assert heard == result.curve == []
    assert result.env_steps == 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_both_precisions_learn(teacher: Agent, play: Rollouts, precision: str):
    result, heard = distilled(small_student(), teacher, play, 800, precision=precision)
    assert result.precision == precision
    assert heard[-1].loss < heard[0].loss
    assert {parameter.dtype for parameter in result.network.parameters()} == {torch.float32}
    assert weights(result.network).isfinite().all()


def test_auto_chooses_a_precision(teacher: Agent, play: Rollouts):
    result, _ = distilled(small_student(), teacher, play, 64, precision="auto", batch_size=16)
    assert result.precision in ("float32", "bfloat16")


def test_whoever_plays_decides_what_is_learned(teacher: Agent, play: Rollouts):
    """The same student, seed and number of samples: only the states differ."""
    curves = {}
    for data in ("teacher", "student", "mixed"):
        result, curves[data] = distilled(small_student(), teacher, play, 1000, data=data)
        assert not torch.equal(weights(result.network), weights(small_student()))
    losses = {data: [progress.loss for progress in curve] for data, curve in curves.items()}
    assert losses["teacher"] != losses["student"]
    assert losses["mixed"][-1] not in (losses["teacher"][-1], losses["student"][-1])


@pytest.mark.parametrize("loss", ["mse", "nll", "reverse_kl"])
def test_every_loss_teaches(teacher: Agent, play: Rollouts, loss: str):
    settings = {"data": "teacher", "batch_size": 32, "passes": 4, "learning_rate": 1e-3}
    student = pruned(teacher, 0.6)
    result, _ = distilled(student, teacher, play, 2000, loss=loss, **settings)
    assert distance(loss, result.network, play) < 0.8 * distance(loss, student, play)


def test_the_seed_decides(teacher: Agent, play: Rollouts):
    def run(seed: int) -> tuple[list[Progress], int, torch.Tensor]:
        result, heard = distilled(small_student(), teacher, play, 400, seed)
        return heard, result.env_steps, weights(result.network)

    one, same, other = run(0), run(0), run(1)
    assert [progress.samples for progress in one[0]] == [progress.samples for progress in same[0]]
    assert one[1] == same[1]
    torch.testing.assert_close(one[2], same[2], rtol=0, atol=1e-4)  # kernels may add in another order
    assert (one[2] - other[2]).abs().max() > 1e-3


def test_halves_of_a_batch_in_two_threads_are_a_batch(teacher: Agent, play: Rollouts, monkeypatch: pytest.MonkeyPatch):
    student = pruned(teacher, 0.6)
    ends = []
    for cores in (4, 1):
        monkeypatch.setattr("lrp_compress.compression.learner.os.cpu_count", lambda cores=cores: cores)
        result, _ = distilled(student, teacher, play, 640, hint=0.0, data="teacher", match_likelihood=False)
        ends.append(weights(result.network))
    moved, apart = (ends[0] - weights(student)).abs().mean(), (ends[0] - ends[1]).abs().mean()
    assert apart < 0.02 * moved


def q_agent(teacher: Agent, scale: float = 1.0) -> Agent:
    """The teacher's network with its outputs, times a scale, taken for Q-values."""
    network = nature_cnn(teacher.network.widths, "q", teacher.network.actions)
    network.load_state_dict(teacher.network.state_dict())
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.mul_(scale)
    return dataclasses.replace(teacher, network=network)


def test_the_scale_of_q_values_does_not_matter(teacher: Agent, play: Rollouts):
    """Values as close together as 1/1024 of the teacher's are learned as well as the teacher's."""
    results = []
    for scale in (1.0, 2.0**-10):
        agent = q_agent(teacher, scale)
        scaled = dataclasses.replace(play, outputs=play.outputs * scale)
        results.append(distilled(pruned(agent, 0.6), agent, scaled, 600, rule=ActionRule("greedy", 0.05))[0])
    plain, small = results
    assert small.temperature == pytest.approx(plain.temperature / 1024)
    assert [check.agreement for check in small.curve] == pytest.approx([check.agreement for check in plain.curve])
    assert [check.loss for check in small.curve] == pytest.approx([check.loss for check in plain.curve], rel=1e-3)
    torch.testing.assert_close(1024 * small.network.head.weight, plain.network.head.weight, rtol=1e-3, atol=1e-4)


def test_q_networks_learn_in_smaller_steps(teacher: Agent, play: Rollouts):
    """Without a learning rate given, policies take that of 2e-3 and Q-networks less than a sixth of it."""
    for agent, rate, rule in ((teacher, 2e-3, SAMPLE), (q_agent(teacher), 3e-4, ActionRule("greedy", 0.05))):
        student = pruned(agent, 0.6)
        default, given = (
            distilled(student, agent, play, 300, rule=rule, learning_rate=learning_rate)[0].network
            for learning_rate in (None, rate)
        )
        torch.testing.assert_close(weights(default), weights(given), rtol=0, atol=1e-5)
        assert (weights(default) - weights(student)).abs().max() > 1e-4


def test_a_copy_of_the_teacher_stays_one(teacher: Agent, play: Rollouts):
    """Nothing is left to learn: the loss is zero from the start, and the best student agrees throughout."""
    result, heard = distilled(teacher.network, teacher, play, 256, learning_rate=1e-6)
    assert heard[0].loss < 1e-4
    assert heard[-1].agreement > 0.99
    torch.testing.assert_close(weights(result.network), weights(teacher.network), rtol=0, atol=1e-4)


def test_action_agreement_by_hand(play: Rollouts):
    student = small_student().eval()
    observations = play.observations(torch.arange(64))
    with torch.no_grad():
        same = student(observations).argmax(1) == play.outputs[:64].argmax(1)
    assert action_agreement(batched_outputs(student, observations), play.outputs[:64]) == pytest.approx(
        same.float().mean().item()
    )
    assert action_agreement(batched_outputs(student, observations), -1.0 * play.outputs[:64]) != 1


def test_hints_bring_the_kept_units_closer(teacher: Agent, play: Rollouts):
    config = PruneConfig(0.6, {}, "all", "layer", "one_shot", 1, 1, "none", True)
    norms = {n: getattr(teacher.network, n).weight.detach().flatten(1).norm(dim=1) for n in teacher.network.widths}
    widths = teacher.network.widths
    plan = plan_pruning(
        ChannelScores(norms, "magnitude", 0), teacher.network, widths, all_channels(widths), config, 0.6
    )
    student, units = apply_pruning(teacher.network, plan), plan.kept_original["fc1"]
    observations = play.observations(torch.arange(len(play)))

    def error(network: Network) -> float:
        values = []
        for one in (network, teacher.network):
            with torch.no_grad(), dense_values(one) as found:
                one(observations)
            values.append(found["fc1"])
        return hint_loss(values[0], values[1][:, units]).item()

    settings = {"batch_size": 32, "passes": 4, "learning_rate": 1e-3, "kept": plan.kept_original}
    with_hints, without = (distilled(student, teacher, play, 3000, hint=hint, **settings)[0] for hint in (1.0, 0.0))
    assert error(with_hints.network) < 0.9 * min(error(without.network), error(student))


def test_the_likelihood_is_matched_by_one_factor(teacher: Agent, play: Rollouts):
    matched, plain = (
        distilled(small_student(), teacher, play, 800, match_likelihood=match)[0] for match in (True, False)
    )
    assert plain.policy_temperature == 1
    assert matched.policy_temperature not in (0.5, 1, 2)
    for name, tensor in plain.network.state_dict().items():
        factor = matched.policy_temperature if name.startswith("head") else 1.0
        torch.testing.assert_close(matched.network.state_dict()[name] * factor, tensor, rtol=1e-3, atol=1e-4)
