"""The distillation losses against formulas written out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lrp_compress.compression.losses import LOSSES, default_temperature, hint_loss, match_likelihood
from lrp_compress.support.errors import UserError

STUDENT = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])
TEACHER = torch.tensor([[2.0, 0.0, 0.5], [1.0, -1.0, 2.0]])


def softmax(row: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp(value / temperature) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def divergence(truth: list[float], approximation: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(truth, approximation, strict=True))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_values(temperature: float):
    students = [softmax(row, temperature) for row in STUDENT.tolist()]
    teachers = [softmax(row, temperature) for row in TEACHER.tolist()]
    pairs = list(zip(students, teachers, strict=True))
    squares = [(s - t) ** 2 for s, t in zip(STUDENT.flatten().tolist(), TEACHER.flatten().tolist(), strict=True)]
    expected = {
        "kl": sum(divergence(teacher, student) for student, teacher in pairs) / 2,
        "reverse_kl": sum(divergence(student, teacher) for student, teacher in pairs) / 2,
        "jeffreys": sum(divergence(*pair) + divergence(*reversed(pair)) for pair in pairs) / 4,
        "mse": sum(squares) / 6 / temperature**2,
        "nll": -(math.log(students[0][0]) + math.log(students[1][2])) / 2,
    }
    assert LOSSES.names() == sorted(expected)
    for name, value in expected.items():
        assert LOSSES[name](STUDENT, TEACHER, temperature).item() == pytest.approx(value, rel=1e-5), name
    assert abs(expected["kl"] - expected["reverse_kl"]) > 1e-3  # the direction is seen


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "jeffreys", "mse"])
def test_zero_at_equality_only(name: str):
    loss = LOSSES[name]
    student = TEACHER.clone().requires_grad_()
    value = loss(student, TEACHER, 0.3)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.abs().max() < 1e-6
    assert loss(STUDENT, TEACHER, 0.3).item() > 0.1


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "jeffreys"])
def test_divergences_ignore_a_shift_of_the_outputs(name: str):
    shift = torch.tensor([[5.0], [-3.0]])
    assert LOSSES[name](STUDENT + shift, TEACHER, 0.7) == pytest.approx(LOSSES[name](STUDENT, TEACHER, 0.7))
    assert LOSSES["mse"](STUDENT + shift, TEACHER, 0.7) > 2 * LOSSES["mse"](STUDENT, TEACHER, 0.7)


def test_forward_covers_and_reverse_seeks():
    """A teacher torn between two actions; students that cover both or choose one."""
    teacher = torch.tensor([[5.0, 5.0, -5.0]])
    covering, choosing = torch.tensor([[2.0, 2.0, 0.0]]), torch.tensor([[9.0, 0.0, -5.0]])
    assert LOSSES["kl"](covering, teacher, 1.0) < LOSSES["kl"](choosing, teacher, 1.0)
    assert LOSSES["reverse_kl"](covering, teacher, 1.0) > 0.5 * LOSSES["reverse_kl"](choosing, teacher, 1.0)
    assert LOSSES["reverse_kl"](choosing, teacher, 1.0) < 1 < LOSSES["kl"](choosing, teacher, 1.0)


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "mse", "nll"])
def test_the_mean_is_over_the_states(name: str):
    loss = LOSSES[name]
    rows = [loss(STUDENT[i : i + 1], TEACHER[i : i + 1], 1.0).item() for i in range(2)]
    assert loss(STUDENT, TEACHER, 1.0).item() == pytest.approx(sum(rows) / 2)
    twice = loss(STUDENT.repeat(2, 1), TEACHER.repeat(2, 1), 1.0)
    assert twice.item() == pytest.approx(sum(rows) / 2)


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "mse", "nll"])
def test_sharp_outputs_stay_finite(name: str):
    student = (1000 * STUDENT).requires_grad_()
    value = LOSSES[name](student, 1000 * TEACHER, 0.01)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_descending_a_loss_brings_the_student_to_the_teachers_choice():
    for name in LOSSES.names():
        student = STUDENT.clone().requires_grad_()
        optimiser = torch.optim.SGD([student], lr=1.0)
        for _ in range(200):
            optimiser.zero_grad()
            LOSSES[name](student, TEACHER, 1.0).backward()
            optimiser.step()
        assert student.argmax(1).tolist() == TEACHER.argmax(1).tolist(), name


def test_unknown_loss():
    with pytest.raises(UserError, match=r"distill\.loss=klm is unknown \(did you mean kl\?\)"):
        LOSSES["klm"]


def test_default_temperature():
    gaps = torch.tensor([0.1, 0.3, 5.0])
    outputs = torch.stack([torch.zeros(3), gaps, torch.full((3,), -9.0)], dim=1)
    assert default_temperature("policy", outputs) == 1
    assert default_temperature("q", outputs) == pytest.approx(0.03)
    assert default_temperature("q", outputs * 100 + 7) == pytest.approx(3)  # follows the rewards' scale
    assert default_temperature("q", outputs[:, [2, 0, 1]]) == pytest.approx(0.03)
    assert default_temperature("q", torch.zeros(5, 3)) > 0  # undecided everywhere
    assert default_temperature("q", torch.zeros(5, 1)) == 1


def test_hints_are_relative_to_the_teachers_values():
    teacher = torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    assert hint_loss(teacher, teacher) == 0
    assert hint_loss(torch.zeros(2, 2), teacher) == pytest.approx(1)
    assert hint_loss(torch.zeros(2, 2), 10 * teacher) == pytest.approx(1)
    assert hint_loss(torch.ones(2, 2), torch.zeros(2, 2)).isfinite()


@pytest.mark.parametrize("factor", [0.85, 1.0, 1.2])
def test_matching_the_likelihood_undoes_a_factor(factor: float):
    teacher = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * 2
    assert match_likelihood(factor * teacher, teacher) == pytest.approx(factor, rel=0.005)


def test_a_hedging_students_actions_become_as_likely_to_its_teacher_as_its_own():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(2000, 4, generator=generator) * 2
    student = 0.9 * teacher + 0.3 * torch.randn(2000, 4, generator=generator)

    def likelihood(logits: torch.Tensor) -> float:
        return (logits.softmax(1) * teacher.log_softmax(1)).sum(1).mean().item()

    assert likelihood(student) < likelihood(teacher) - 0.02
    assert likelihood(student / match_likelihood(student, teacher)) == pytest.approx(likelihood(teacher), abs=5e-3)


def test_the_likelihood_is_not_matched_by_more_than_a_quarter():
    teacher = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * 20
    assert match_likelihood(teacher / 10, teacher) == pytest.approx(0.8, rel=0.01)
    assert match_likelihood(torch.zeros(5, 4), teacher[:5]) == 1  # nothing to be had by it
