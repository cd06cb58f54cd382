"""The replay against a list that keeps every stack whole, over streams many times as long as its rings."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lrp_compress.environments.replay import FrameReplay

Batch = tuple[NDArray[np.uint8], torch.Tensor, NDArray[np.bool_], NDArray[np.bool_]]


def stream(envs: int, steps: int, longest: int, seed: int) -> Iterator[Batch]:
    """Play made-up games: stacked random frames, outputs that name their state, first and ended flags.

    Games last from 1 to `longest` decisions. Two numbers name a state: its environment and its step.
    """
    rng = np.random.default_rng(seed)
    recent = [deque(np.zeros((4, 84, 84), dtype=np.uint8), maxlen=4) for _ in range(envs)]
    left = np.zeros(envs, dtype=int)
    for t in range(steps):
        first = left == 0
        left[first] = rng.integers(1, longest, size=int(first.sum())) + 1
        left -= 1
        for row in range(envs):
            if first[row]:
                recent[row].extend(np.zeros((3, 84, 84), dtype=np.uint8))
            frame = np.zeros((84, 84), dtype=np.uint8)  # a few random bytes tell frames apart
            frame[0, :12] = rng.integers(256, size=12)
            recent[row].append(frame)
        names = torch.stack([torch.arange(envs), torch.full((envs,), t)], dim=1).float()
        yield np.stack([np.stack(frames) for frames in recent]), names, first, left == 0


@pytest.mark.parametrize(
    ("states", "envs", "longest", "steps"),
    [
        (60, 3, 30, 700),  # rings of 20 frames
        (64, 2, 5, 700),  # games of a few steps, most of them stored whole
        (10, 1, 40, 500),  # below the smallest ring
        (120, 2, 1000, 500),  # hardly a game ends
        (111, 5, 12, 400),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_stored_state_is_one_that_was_added(states: int, envs: int, longest: int, steps: int, seed: int):
    replay = FrameReplay(states, envs, 2)
    added: dict[tuple[int, int], NDArray[np.uint8]] = {}
    terminal: set[tuple[int, int]] = set()
    most = 0
    for t, (observations, names, first, ended) in enumerate(stream(envs, steps, longest, seed)):
        replay.add(observations, names, first, ended)
        for row in range(envs):
            added[row, t] = observations[row].copy()
            added.pop((row, t - 400), None)
            if ended[row]:
                terminal.add((row, t))
        if t % 3 and t < steps - 40:
            continue
        indices = replay.stored()
        assert len(indices) == len(replay) == len(indices.unique())
        stacks, outputs = replay.gather(indices)
        stored = [(int(row), int(step)) for row, step in outputs]
        assert len(set(stored)) == len(stored)
        assert not terminal & set(stored)
        assert np.array_equal(stacks.numpy(), np.array([added[name] for name in stored]).reshape(-1, 4, 84, 84))
        newest = {(row, t) for row in range(envs) if not ended[row]}
        assert newest <= set(stored)
        most = max(most, len(replay))
    assert most <= max(states, 16 * envs)
    assert steps > 5 * replay.slots


def test_the_latest_states_are_kept():
    """Of long games all but a handful per ring: no more is lost than what one lap's seam costs."""
    replay = FrameReplay(200, 2, 2)
    for t, batch in enumerate(stream(2, 600, 400, seed=3)):
        replay.add(*batch)
        if t < 300:
            continue
        _, outputs = replay.gather(replay.stored())
        for row in range(2):
            steps = outputs[outputs[:, 0] == row, 1]
            assert len(steps) >= 100 - 16
            assert steps.min() >= t - 110


def test_before_the_ring_is_full_everything_is_kept():
    replay = FrameReplay(300, 3, 2)
    decided = 0
    for batch in stream(3, 40, 10, seed=0):
        replay.add(*batch)
        decided += int((~batch[3]).sum())
    used = 40 + 3 * 15  # frames of a ring at most: three more at each beginning
    assert used < replay.slots
    assert len(replay) == decided


def test_draws_come_in_any_order():
    replay = FrameReplay(100, 2, 2)
    for batch in stream(2, 30, 20, seed=0):
        replay.add(*batch)
    indices = replay.stored()
    stacks, outputs = replay.gather(indices)
    order = torch.randint(len(indices), (64,), generator=torch.Generator().manual_seed(0))
    drawn_stacks, drawn_outputs = replay.gather(indices[order])
    assert torch.equal(drawn_stacks, stacks[order])
    assert torch.equal(drawn_outputs, outputs[order])
    assert (drawn_stacks.dtype, drawn_stacks.shape) == (torch.uint8, (64, 4, 84, 84))


def test_what_is_added_is_copied():
    replay = FrameReplay(100, 1, 2)
    observations, names, first, ended = next(stream(1, 1, 20, seed=0))
    expected = observations.copy()
    replay.add(observations, names, first, ended)
    observations[:] = 7
    names[:] = 7
    stacks, outputs = replay.gather(replay.stored())
    assert np.array_equal(stacks.numpy(), expected)
    assert outputs.tolist() == [[0, 0]]


def test_a_state_costs_one_frame():
    replay = FrameReplay(1000, 4, 18)
    memory = sum(tensor.nbytes for tensor in vars(replay).values() if isinstance(tensor, torch.Tensor))
    assert memory == 1000 * (84 * 84 + 18 * 4)
    assert len(replay) == 0
    assert replay.stored().tolist() == []


def test_environments_may_be_added_in_parts():
    """Storing three environments' steps as one and two gives what storing them at once gives."""
    whole, parts = FrameReplay(90, 3, 2), FrameReplay(90, 3, 2)
    for observations, names, first, ended in stream(3, 200, 20, seed=5):
        whole.add(observations, names, first, ended)
        for rows in (slice(1, 3), slice(0, 1)):
            parts.add(observations[rows], names[rows], first[rows], ended[rows], begin=rows.start)
    assert torch.equal(whole.stored(), parts.stored())
    for expected, found in zip(whole.gather(whole.stored()), parts.gather(parts.stored()), strict=True):
        assert torch.equal(expected, found)


def test_earlier_play_is_stored_with_its_shared_frames():
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.integers(256, size=(40, 84, 84), dtype=np.uint8))
    starts = torch.tensor([0, 1, 2, 9, 10, 20, 21, 22, 23, 30, 36])
    labels = torch.arange(22.0).view(11, 2)
    replay = FrameReplay(60, 3, 2)
    replay.fill(frames, starts, labels)
    kept, found = replay.gather(replay.stored())
    assert torch.equal(found, labels[:9])  # three in each ring, two are left over
    assert torch.equal(kept, torch.stack([frames[start : start + 4] for start in starts[:9]]))
    assert replay._next.tolist() == [6, 9, 6]  # rings of 20 frames: the second's states are of two games
