"""Shaping moves every value by the potential and changes no choice; paying progress itself does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagine.rewards.progress import Potential, shaping
from imagine.types import ImagineError, ShapeError

GAMMA = 0.9


def plan(move: np.ndarray, reward: np.ndarray, terminal: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Value iteration: moves and rewards (S, A, S'), terminal (S,) to values (S,) and action values (S, A)."""
    value = np.zeros(len(move))
    for _ in range(2000):
        q = (move * (reward + gamma * np.where(terminal, 0, value))).sum(-1)
        new = np.where(terminal, 0, q.max(-1))
        if np.abs(new - value).max() < 1e-13:
            break
        value = new
    return value, q


def bonus(phi: np.ndarray, terminal: np.ndarray, gamma: float) -> np.ndarray:
    """Shaping of every pair of states (S, S'), from the function under test."""
    n = len(phi)
    before, after = torch.from_numpy(np.repeat(phi, n)), torch.from_numpy(np.tile(phi, n))
    ends = torch.from_numpy(np.tile(terminal, n))
    return shaping(before, after, ends, gamma).double().numpy().reshape(n, n)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 7), st.integers(2, 4), st.floats(0.3, 0.95))
def test_shaping_keeps_the_best_policy_and_moves_values_by_the_potential(
    seed: int, states: int, actions: int, gamma: float
) -> None:
    rng = np.random.default_rng(seed)
    move = rng.dirichlet(np.full(states, 0.5), (states, actions))
    reward = rng.normal(size=(states, actions, states))
    terminal = np.arange(states) >= states - rng.integers(1, states)  # at least one ends, at least one does not
    phi = rng.normal(size=states) * 3  # at terminal states too: what the judge says there must not matter
    plain, q = plan(move, reward, terminal, gamma)
    shaped, q_shaped = plan(move, reward + bonus(phi, terminal, gamma)[:, None], terminal, gamma)
    going = ~terminal
    np.testing.assert_allclose(shaped[going], (plain - phi)[going], atol=2e-5 / (1 - gamma))
    np.testing.assert_allclose(q_shaped[going], (q - phi[:, None])[going], atol=2e-5 / (1 - gamma))
    gap = np.sort(q, 1)[:, -1] - np.sort(q, 1)[:, -2]
    clear = going & (gap > 1e-3)  # ties may go either way
    assert (q.argmax(1) == q_shaped.argmax(1))[clear].all()


def test_paying_progress_itself_makes_the_best_policy_hover() -> None:
    # Far, near, done. From near: 0 goes on to done (reward 1), 1 hovers. From far: 0 goes near, 1 stays.
    move = np.zeros((3, 2, 3))
    move[0, 0, 1] = move[0, 1, 0] = move[1, 0, 2] = move[1, 1, 1] = move[2, :, 2] = 1
    reward = np.zeros((3, 2, 3))
    reward[1, 0, 2] = 1
    terminal, progress = np.array([False, False, True]), np.array([0.0, 0.9, 1.0])
    _, plain = plan(move, reward, terminal, GAMMA)
    _, naive = plan(move, reward + progress, terminal, GAMMA)
    _, shaped = plan(move, reward + bonus(progress, terminal, GAMMA)[:, None], terminal, GAMMA)
    assert plain[:2].argmax(1).tolist() == [0, 0]
    assert naive[1].argmax() == 1, "0.9 forever is worth 9, done is worth 2"
    assert naive[1] == pytest.approx([2, 9])
    assert shaped[:2].argmax(1).tolist() == [0, 0]


def test_a_step_towards_the_goal_is_paid_and_one_back_costs() -> None:
    before, after, no = torch.tensor([0.2, 0.6]), torch.tensor([0.6, 0.2]), torch.zeros(2, dtype=torch.bool)
    assert shaping(before, after, no, 1.0).tolist() == pytest.approx([0.4, -0.4])
    assert shaping(before, after, no, 0.5).tolist() == pytest.approx([0.1, -0.5])
    assert shaping(before, after, ~no, 0.5).tolist() == pytest.approx([-0.2, -0.6])


episodes = st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=12)


@given(episodes, st.floats(0.5, 1), st.booleans(), st.floats(-1, 1, width=32))
def test_an_episode_pays_only_its_ends(phi: list[float], gamma: float, success: bool, start: float) -> None:
    lane = Potential(1, gamma)
    lane.reset(phi=torch.tensor([start]))
    paid = [lane.step(torch.tensor([p]), torch.tensor([success and i == len(phi) - 1])) for i, p in enumerate(phi)]
    total = sum(gamma**i * float(f) for i, f in enumerate(paid))
    last = 0.0 if success else gamma ** len(phi) * phi[-1]  # truncated: the agent bootstraps from V - Phi
    assert total == pytest.approx(last - start, abs=1e-5)


def test_only_the_lanes_that_begin_forget() -> None:
    lanes = Potential(3, 1.0)
    no = torch.zeros(3, dtype=torch.bool)
    lanes.step(torch.tensor([0.5, 0.6, 0.7]), no)
    lanes.reset(torch.tensor([True, False, True]), torch.tensor([0.1, math.nan, 0.0]))
    assert lanes.step(torch.ones(3), no).tolist() == pytest.approx([0.9, 0.4, 1.0])


def test_a_success_is_followed_by_nothing() -> None:
    lane = Potential(1, GAMMA)
    lane.reset(phi=torch.tensor([0.5]))
    assert lane.step(torch.tensor([0.95]), torch.tensor([True])).item() == pytest.approx(-0.5)
    assert lane.snapshot().item() == 0


def test_a_missing_judgement_neither_pays_nor_loses() -> None:
    lane, yes, no = Potential(1, 1.0), torch.tensor([True]), torch.tensor([False])
    lane.step(torch.tensor([0.4]), no)
    assert lane.step(torch.tensor([math.nan]), no, valid=no).item() == 0
    assert lane.step(torch.tensor([0.7]), no, valid=yes).item() == pytest.approx(0.3)


def test_a_snapshot_replays() -> None:
    lanes, no = Potential(2, GAMMA), torch.zeros(2, dtype=torch.bool)
    lanes.step(torch.tensor([0.3, 0.4]), no)
    kept = lanes.snapshot()
    first = lanes.step(torch.tensor([0.8, 0.1]), no)
    lanes.step(torch.tensor([0.0, 0.0]), ~no)
    lanes.restore(kept)
    assert torch.equal(lanes.step(torch.tensor([0.8, 0.1]), no), first)
    lanes.restore(kept)
    assert torch.equal(lanes.snapshot(), kept), "what came after must not have written into the snapshot"


def test_what_cannot_be_shaped_is_refused() -> None:
    for gamma in (0.0, 1.1, math.nan):
        with pytest.raises(ImagineError, match="gamma"):
            Potential(1, gamma)
    with pytest.raises(ImagineError, match="0 environments"):
        Potential(0, GAMMA)
    one, no = torch.zeros(1), torch.tensor([False])
    lane = Potential(1, GAMMA)
    for bad in (
        lambda: lane.step(torch.zeros(2), no),
        lambda: lane.step(one, one),
        lambda: lane.step(one * math.nan, no),
        lambda: lane.step(one.long(), no),
        lambda: lane.reset(torch.tensor([True, True])),
        lambda: lane.reset(phi=one * math.inf),
        lambda: lane.restore(torch.zeros(3)),
    ):
        with pytest.raises(ShapeError, match="expected"):
            bad()
    assert lane.snapshot().item() == 0, "a refused step leaves no trace"
