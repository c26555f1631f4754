"""Rules on commands and on pictures, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from imagine.rewards.rules import MOVED, STILL, Limits, blurred, check_actions, frozen
from imagine.types import ShapeError

TERMS = ["joint_limit", "velocity", "jerk", "workspace", "two_arms"]
BOX = {"workspace_low": (0.0, -1.0, 0.0), "workspace_high": (1.0, 1.0, 0.5)}


def one(name: str, action: list[list[float]], pose: list[float], limits: Limits) -> float:
    return check_actions(torch.tensor([action]).float(), torch.tensor([pose]).float(), limits)[name].item()


# -------------------------------------------------------------------- commands


def test_without_limits_nothing_is_checked() -> None:
    terms = check_actions(torch.randn(3, 5, 2) * 1e3, torch.zeros(3, 2), Limits(control_hz=30))
    assert list(terms) == TERMS
    for value in terms.values():
        assert value.dtype == torch.float32 and torch.equal(value, torch.zeros(3))


def test_joint_limit_is_the_excess_as_a_share_of_the_range() -> None:
    limits = Limits(control_hz=10, low=(-1, None, 0), high=(3, None, 1))
    assert one("joint_limit", [[3, 99, 1], [-1, -99, 0]], [0, 0, 0], limits) == 0  # both ends are allowed
    assert one("joint_limit", [[3.4, 0, 0], [0, 0, 0]], [0, 0, 0], limits) == pytest.approx(0.1)
    assert one("joint_limit", [[3.4, 0, 0], [0, 0, -0.5]], [0, 0, 0], limits) == pytest.approx(0.5)  # the worst
    assert one("joint_limit", [[0, 0, 0]], [9, 9, 9], limits) == 0  # where it already was is nobody's command


@given(st.floats(-50, 50, width=32), st.floats(0.125, 8, width=32))
def test_a_command_clipped_to_its_limit_is_clean(low: float, size: float) -> None:
    limits = Limits(control_hz=30, low=(low * 0.1,), high=(low * 0.1 + size * 0.1,))
    wild = torch.linspace(-100, 100, 41)[None, :, None]
    clipped = wild.clamp(torch.tensor(limits.low[0]), torch.tensor(limits.high[0]))
    assert check_actions(clipped, torch.zeros(1, 1), limits)["joint_limit"].item() == 0
    assert check_actions(wild, torch.zeros(1, 1), limits)["joint_limit"].item() > 0


@given(st.floats(0.1, 10), st.floats(1, 100), st.floats(1.01, 5), st.integers(1, 6))
def test_velocity_is_relative_to_the_limit_and_starts_at_the_pose(
    limit: float, hz: float, times: float, length: int
) -> None:
    limits = Limits(control_hz=hz, velocity=(limit,))
    ramp = torch.arange(1, length + 1, dtype=torch.float64)[None, :, None] * limit / hz
    pose = torch.zeros(1, 1, dtype=torch.float64)
    assert check_actions(ramp, pose, limits)["velocity"].item() == 0
    assert check_actions(-times * ramp, pose, limits)["velocity"].item() == pytest.approx(times - 1, rel=1e-5)


def test_a_jump_away_from_the_pose_is_seen_though_the_chunk_itself_stands_still() -> None:
    limits = Limits(control_hz=10, velocity=(1.0,))
    assert one("velocity", [[0.5], [0.5]], [0.5], limits) == 0
    assert one("velocity", [[0.5], [0.5]], [0.0], limits) == pytest.approx(4)  # 5 per second for 1


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3), st.floats(0.5, 3), st.floats(5, 50))
def test_jerk_of_a_cubic_is_its_third_derivative(a: float, b: float, c: float, d: float, hz: float) -> None:
    t = torch.arange(0, 9, dtype=torch.float64) / hz
    path = (a + b * t + c * t**2 + d * t**3)[None, :, None]
    jerk = check_actions(path[:, 1:], path[:, 0], Limits(control_hz=hz, jerk=(d,)))["jerk"].item()
    assert jerk == pytest.approx(5, rel=1e-4)  # third derivative 6 d, for an allowance of d
    smooth = (a + b * t + c * t**2)[None, :, None]
    assert check_actions(smooth[:, 1:], smooth[:, 0], Limits(control_hz=hz, jerk=(d,)))["jerk"].item() == 0


@pytest.mark.parametrize("length", [1, 2])
def test_a_chunk_too_short_for_jerk_has_none(length: int) -> None:
    assert one("jerk", [[9.0]] * length, [0.0], Limits(control_hz=30, jerk=(0.1,))) == 0
    assert one("jerk", [[9.0]] * 3, [0.0], Limits(control_hz=30, jerk=(0.1,))) > 0


def test_a_float32_ramp_at_the_speed_limit_is_clean_in_velocity_and_jerk() -> None:
    limits = Limits(control_hz=30, velocity=(1.0,), jerk=(100.0,))
    ramp = (3 + torch.arange(1, 25) / 30)[None, :, None]
    terms = check_actions(ramp, torch.full((1, 1), 3.0), limits)
    assert terms["velocity"].item() == 0 and terms["jerk"].item() == 0


def test_each_hand_is_kept_in_the_box() -> None:
    limits = Limits(control_hz=10, hands=((0, 3), (4, 7)), **BOX)
    inside = [0.5, 0, 0.25, 77, 1.0, -1.0, 0.5]
    assert one("workspace", [inside], inside, limits) == 0
    below = [0.5, 0, -0.05, 77, 1.0, -1.0, 0.5]  # 5 cm under a box 50 cm high
    assert one("workspace", [inside, below], inside, limits) == pytest.approx(0.1)
    aside = [0.5, 0, -0.05, 77, 1.0, 1.5, 0.5]  # the other hand, 50 cm beside a box 2 m wide
    assert one("workspace", [below, aside], inside, limits) == pytest.approx(0.25)


@given(st.floats(0.05, 1), st.floats(0, 2), st.integers(0, 4))
def test_two_arms_counts_how_much_of_the_distance_is_missing(apart: float, share: float, when: int) -> None:
    limits = Limits(control_hz=10, hands=((0, 3), (3, 6)), apart=apart)
    action = torch.zeros(1, 5, 6, dtype=torch.float64)
    action[..., 4] = 10 * apart  # far away, but at one tick
    action[0, when, 4] = share * apart
    found = check_actions(action, action[:, 0], limits)["two_arms"].item()
    expected = max(0.0, 1 - share)
    assert found == pytest.approx(expected if expected > 1e-3 else 0, abs=1.1e-3)


def test_every_lane_is_judged_alone() -> None:
    limits = Limits(
        control_hz=30, low=(-1,) * 6, high=(1,) * 6, velocity=(2,) * 6, jerk=(500,) * 6, hands=((0, 3), (3, 6)),
        apart=0.3, **BOX,
    )  # fmt: skip
    g = torch.Generator().manual_seed(0)
    action, pose = torch.randn(5, 8, 6, generator=g), torch.randn(5, 6, generator=g)
    together = check_actions(action, pose, limits)
    for i in range(5):
        alone = check_actions(action[i : i + 1], pose[i : i + 1], limits)
        assert all(torch.equal(alone[name][0], together[name][i]) for name in TERMS)
    assert all(value.shape == (5,) and (value > 0).any() for value in together.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"control_hz": 0}, "greater than 0"),
        ({"low": (0.0,)}, "equally many"),
        ({"low": (0.0, None), "high": (1.0, 1.0)}, "two ends"),
        ({"low": (1.0,), "high": (1.0,)}, "less"),
        ({"low": (0.0,), "high": (1.0,), "velocity": (1.0, 1.0)}, "different numbers"),
        ({"velocity": (0.0,)}, "more than 0"),
        ({"jerk": (-1.0,)}, "more than 0"),
        ({"jerk": (math.nan,)}, "finite"),
        ({"hands": ((0, 2),)}, "stop = start"),
        ({"hands": ((3, 6),), "velocity": (1.0,) * 5}, "stop = start"),
        ({"hands": ((0, 3),) * 3}, "at most 2"),
        (BOX, "no hands"),
        ({"workspace_low": (0.0,), "workspace_high": (1.0,), "hands": ((0, 3),)}, "3: x, y, z"),
        ({"apart": 0.1, "hands": ((0, 3),)}, "2 hands"),
        ({"wheels": 4}, "Extra"),
    ],
)
def test_limits_that_make_no_sense_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Limits(**{"control_hz": 30, **change})


@pytest.mark.parametrize(
    ("action", "pose"),
    [
        (torch.zeros(2, 2), torch.zeros(2, 2)),
        (torch.zeros(2, 0, 2), torch.zeros(2, 2)),
        (torch.zeros(2, 4, 2, dtype=torch.int64), torch.zeros(2, 2)),
        (torch.zeros(2, 4, 3), torch.zeros(2, 3)),
        (torch.zeros(2, 4, 2), torch.zeros(1, 2)),
        (torch.full((2, 4, 2), math.nan), torch.zeros(2, 2)),
        (torch.zeros(2, 4, 2), torch.full((2, 2), math.inf)),
    ],
)
def test_a_chunk_of_another_kind_is_refused(action: torch.Tensor, pose: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match="expected"):
        check_actions(action, pose, Limits(control_hz=30, velocity=(1.0, 1.0)))


# -------------------------------------------------------------------- pictures


def film(frames: int = 4, size: int = 16) -> torch.Tensor:
    """A noisy still, (1, T, size, size, 3)."""
    g = torch.Generator().manual_seed(1)
    return torch.randint(20, 230, (1, 1, size, size, 3), generator=g, dtype=torch.uint8).repeat(1, frames, 1, 1, 1)


def test_frozen_needs_both_a_still_picture_and_a_command_to_move() -> None:
    still, moving = film(), film()
    moving[:, -1, 3:9, 3:9] += 10
    frames = torch.cat([still, still, moving, moving])
    moved = torch.tensor([2 * MOVED, 0.5 * MOVED, 2 * MOVED, 0.0])
    assert frozen(frames, moved).tolist() == [1, 0, 0, 0]


@settings(deadline=None)
@given(st.integers(0, 256))
def test_frozen_measures_the_mean_change_in_grey_levels(changed: int) -> None:
    frames = film()
    frames[:, 2:].view(1, 2, 256, 3)[:, :, :changed] += 1  # a share of pixels, one grey level, between two frames
    assert frozen(frames, torch.ones(1)).item() == float(changed / 256 < STILL)


def test_frozen_sees_darkening_as_change() -> None:
    frames = film()
    frames[:, 1] -= 1  # uint8 differences must not wrap around, nor cancel
    assert frozen(frames, torch.ones(1)).item() == 0
    assert frozen(frames, torch.ones(1), still=1.5).item() == 1


def test_blurred_of_an_unchanged_picture_is_nothing_and_of_a_flat_one_everything() -> None:
    frames = film()
    assert blurred(frames, frames[:, 0]).item() == 0
    frames[:, -1] = 128
    assert blurred(frames, film()[:, 0]).item() == 1
    assert blurred(film(), torch.full((1, 16, 16, 3), 9, dtype=torch.uint8)).item() == 0  # had nothing to lose


@given(st.integers(1, 12), st.integers(1, 12))
def test_blurred_is_the_loss_of_squared_contrast(before: int, now: int) -> None:
    board = ((torch.arange(12)[:, None] + torch.arange(12)) % 2)[..., None].expand(12, 12, 3)

    def at(contrast: int) -> torch.Tensor:
        return (100 + contrast * board).to(torch.uint8)

    found = blurred(torch.stack([at(12), at(now)])[None], at(before)[None]).item()
    assert found == pytest.approx(max(0.0, 1 - (now / before) ** 2), abs=1e-6)


def test_blurred_grows_with_the_blur() -> None:
    sharp = film(1, 32)
    pixels = sharp[:, 0].permute(0, 3, 1, 2).float()
    found = []
    for width in (1, 3, 5, 7):
        soft = torch.nn.functional.avg_pool2d(pixels, width, 1, width // 2, count_include_pad=False)
        found.append(blurred(soft.round().to(torch.uint8).permute(0, 2, 3, 1)[:, None], sharp[:, 0]).item())
    assert found == sorted(found) and found[0] == 0 and found[1] > 0.5


def test_pictures_of_another_kind_are_refused() -> None:
    good, one = film(), torch.ones(1)
    for frames, moved in [
        (good.float(), one), (good[:, :1], one), (good[0], one), (good[..., :2], one), (good, torch.ones(2)),
        (good, -one), (good, one * math.nan), (good, one.long()),
    ]:  # fmt: skip
        with pytest.raises(ShapeError, match="expected"):
            frozen(frames, moved)
    for frames, reference in [(good, good), (good, good[:, 0, :8]), (good[:, :, :2], good[:, 0, :2])]:
        with pytest.raises(ShapeError, match="expected"):
            blurred(frames, reference)
