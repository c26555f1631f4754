"""Calibration against closed forms, and guards that cannot be talked round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagine.agents.monitor import GapAlarm, shuffled_chunks
from imagine.rewards.calibrate import (
    Calibration,
    Calibrator,
    auroc,
    brier,
    ece,
    fit_calibrator,
    fit_threshold,
    rates,
    reliability,
    report,
)
from imagine.rewards.guards import GuardConfig, GuardedJudge
from imagine.rewards.negative_controls import false_positive_rate, video_control
from imagine.rewards.rules import Limits
from imagine.types import Clip, ImagineError, Score, ShapeError


def test_auroc_counts_pairs() -> None:
    p, label = np.array([0.1, 0.4, 0.35, 0.8, 0.4]), np.array([0, 0, 1, 1, 1], bool)
    pairs = [(a > b) + 0.5 * (a == b) for a in p[label] for b in p[~label]]
    assert auroc(p, label) == pytest.approx(np.mean(pairs))
    assert np.isnan(auroc(p, np.ones(5, bool)))


def test_brier_and_ece_have_their_closed_forms() -> None:
    p, label = np.full(100, 0.7), np.arange(100) < 50
    assert brier(p, label) == pytest.approx(0.29) and ece(p, label, 1) == pytest.approx(0.2)
    honest = np.linspace(0.005, 0.995, 100_000)
    drawn = np.random.default_rng(0).uniform(size=len(honest)) < honest
    assert ece(honest, drawn) < 0.01
    sizes, said, true = reliability(honest, drawn, 10)
    assert sizes.tolist() == [10_000] * 10 and np.allclose(said, true, atol=0.02)


def test_rates_are_of_their_own_class() -> None:
    said, label = np.array([1, 1, 0, 0, 0], bool), np.array([1, 0, 0, 0, 1], bool)
    assert rates(said, label) == (pytest.approx(1 / 3), pytest.approx(1 / 2))


@pytest.mark.parametrize(("temperature", "bias"), [(1.0, 0.0), (3.0, -2.0), (0.5, 1.5)])
def test_temperature_and_bias_are_found_again(temperature: float, bias: float) -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 2, 20_000)
    label = rng.uniform(size=len(honest)) < 1 / (1 + np.exp(-honest))
    found = fit_calibrator(honest * temperature + bias, label)
    assert found.temperature == pytest.approx(temperature, rel=0.08) and found.bias == pytest.approx(bias, abs=0.12)
    p, _ = Calibration(other=found).apply(honest * temperature + bias, ["x"] * len(honest))
    assert ece(p, label) < 0.02


def test_the_threshold_keeps_false_alarms_rare() -> None:
    rng = np.random.default_rng(1)
    label = rng.uniform(size=4000) < 0.5
    margin = rng.normal(np.where(label, 2, -2), 1.5)
    found = fit_calibrator(margin, label, most_false=0.02)
    p, threshold = Calibration(other=found).apply(margin, ["x"] * 4000)
    false, missed = rates(p >= threshold, label)
    assert false <= 0.02 and missed < 0.3


def test_a_matched_threshold_leaves_the_rate_as_it_is() -> None:
    rng = np.random.default_rng(2)
    label = rng.uniform(size=4000) < 0.3
    margin = rng.normal(np.where(label, 1, -1), 1.5)
    found = fit_calibrator(margin, label, most_false=None)
    p, threshold = Calibration(other=found).apply(margin, ["x"] * 4000)
    assert (p >= threshold).sum() == label.sum()
    everything = fit_calibrator(margin[:5], np.ones(5, bool), most_false=None)
    assert everything.threshold <= Calibration(other=everything).apply(margin[:5], ["x"] * 5)[0].min()


def test_a_separable_or_one_sided_split_does_not_diverge() -> None:
    label = np.arange(20) < 10
    found = fit_calibrator(np.where(label, 5.0, -5.0), label)
    assert 0 < found.temperature < 10 and np.isfinite(found.bias)
    only = fit_calibrator(np.zeros(5), np.zeros(5, bool))
    assert (only.temperature, only.bias) == (1.0, 0.0) and only.threshold > 0.5


def test_families_are_patterns_of_instructions() -> None:
    mine = Calibrator(temperature=2)
    calibration = Calibration(families={"pick up the * block": mine})
    assert calibration.of("Pick up the red block.") is mine
    assert calibration.of("push the red block to the left") == Calibrator()


def test_intervals_resample_clusters_not_clips() -> None:
    rng = np.random.default_rng(0)
    label = np.repeat(rng.uniform(size=40) < 0.5, 25)
    p = np.repeat(np.clip(label[::25] * 0.4 + rng.uniform(0, 0.6, 40), 0, 1), 25)
    by_clip = report(p, np.full(1000, 0.5), label, list(range(1000)))
    by_cluster = report(p, np.full(1000, 0.5), label, np.repeat(np.arange(40), 25).tolist())
    width = [r["auroc"]["ci_high"] - r["auroc"]["ci_low"] for r in (by_clip, by_cluster)]  # type: ignore[index]
    assert width[1] > 2 * width[0] and by_cluster["clusters"] == 40
    with pytest.raises(ImagineError, match="0 judged clips"):
        report(np.zeros(0), np.zeros(0), np.zeros(0, bool), [])


# ------------------------------------------------------------------ guards


class Believer:
    """Calls everything a success."""

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        one = torch.ones(len(clip.latents))
        return Score(one, one, one > 0, {"success": one})


def clip(
    inverse_error: float = 0.0, *, noise: bool = False, still: bool = False, flat: bool = False, reach: float = 0.1
) -> Clip:
    frames = torch.randint(0, 256, (1, 3, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    if still:
        frames[:, 2] = frames[:, 1]
    if noise:
        frames[:, 0] //= 8
    if flat:
        frames[:, 2] = 100
    action = torch.linspace(0, reach, 24)[None, :, None].expand(1, 24, 3).contiguous()
    return Clip(
        torch.zeros(1, 3, 1, 1, 1), torch.zeros(1, 3, 1), lambda at=None: frames[:, list(at)],
        action=action, pose=torch.zeros(1, 3), inverse_error=torch.tensor([inverse_error]),
    )  # fmt: skip


LIMITS = Limits(control_hz=30, low=(-1.0,) * 3, high=(1.0,) * 3, velocity=(1.0,) * 3)
GUARDED = GuardedJudge(Believer(), GuardConfig(inverse_error=0.5, blur=0.5, noise=2.0, limits=LIMITS))


def test_a_clean_success_counts() -> None:
    score = GUARDED(clip(), ["x"])
    assert score.reward.item() == 1 and score.success.item() == 1 and score.terms["vetoed"].item() == 0


@pytest.mark.parametrize(
    ("bad", "term"),
    [
        (clip(inverse_error=0.9), "inverse_error"),
        (clip(still=True), "frozen"),
        (clip(flat=True), "blurred"),
        (clip(noise=True), "noisy"),
        (clip(reach=3.0), "velocity"),
    ],
)
def test_each_guard_alone_overrules_the_judge(bad: Clip, term: str) -> None:
    score = GUARDED(bad, ["x"])
    assert score.reward.item() == 0 and score.success.item() == 0 and score.valid.all()
    assert score.terms[term].item() > 0 and score.terms["vetoed"].item() == 1


@pytest.mark.parametrize(("moved", "vetoed"), [(0.05, 1), (0.2, 0), ((0.2, 0.2, 0.05), 1), ((0.2, 0.2, 0.2), 0)])
def test_a_picture_must_change_where_a_command_leads_far_enough_to_be_seen(moved: object, vetoed: int) -> None:
    guarded = GuardedJudge(Believer(), GuardConfig(moved=moved))  # type: ignore[arg-type]
    assert guarded(clip(still=True), ["x"]).terms["vetoed"].item() == vetoed


@pytest.mark.parametrize(("pay", "left"), [(0.2, 0.0), (-0.2, -0.2)])
def test_a_guard_withholds_a_dense_reward_but_no_penalty(pay: float, left: float) -> None:
    class Dense(Believer):
        def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
            return replace(super().__call__(clip, instruction), reward=torch.tensor([pay]))

    guarded = GuardedJudge(Dense(), GuardConfig(blur=0.5))
    assert guarded(clip(), ["x"]).reward.item() == pytest.approx(pay)
    vetoed = guarded(clip(flat=True), ["x"])
    assert vetoed.reward.item() == pytest.approx(left) and not vetoed.terminated.any()


def test_a_guard_without_what_it_needs_says_so() -> None:
    bare = Clip(torch.zeros(1, 3, 1, 1, 1), torch.zeros(1, 3, 1), lambda at=None: torch.zeros(1, 2, 8, 8, 3))
    with pytest.raises(ShapeError, match="no inverse_error"):
        GuardedJudge(Believer(), GuardConfig(inverse_error=0.5))(bare, ["x"])


def test_video_controls_are_what_they_say() -> None:
    films = np.random.default_rng(0).integers(0, 256, (2, 5, 8, 8, 3), np.uint8)
    assert (video_control("reversed", films)[:, 0] == films[:, -1]).all()
    assert (video_control("frozen", films) == films[:, :1]).all()
    noise = video_control("noise", films)
    assert (noise[:, 0] == films[:, 0]).all() and abs(noise[:, 1:].mean() - 127.5) < 3
    with pytest.raises(ImagineError, match="no video control"):
        video_control("upside down", films)


def test_shuffled_chunks_are_the_same_chunks_elsewhere() -> None:
    actions = np.arange(4 * 3 * 2 * 1).reshape(4, 3, 2, 1)
    dealt = shuffled_chunks(actions)
    assert not (dealt == actions).all()
    assert sorted(dealt.reshape(-1, 2).tolist()) == sorted(actions.reshape(-1, 2).tolist())


def test_the_rate_pools_all_controls() -> None:
    found = false_positive_rate({"frozen": np.zeros(150, bool), "noise": np.arange(50) < 4})
    assert found.rate == 0.02 and found.n == 200 and found.by_kind["noise"] == (0.08, 50)
    assert found.ci_low < 0.02 < found.ci_high
    with pytest.raises(ImagineError, match="0 negative controls"):
        false_positive_rate({})


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_the_alarm_keeps_quiet_while_the_gap_stays(seed: int) -> None:
    rng, alarm = np.random.default_rng(seed), GapAlarm(sigmas=4)
    for _ in range(3):
        truth = rng.uniform(size=200) < 0.5
        first, second = truth ^ (rng.uniform(size=200) < 0.1), truth ^ (rng.uniform(size=200) < 0.1)
        assert not alarm(first, second)[1]


def test_the_alarm_rings_when_praise_runs_ahead() -> None:
    alarm, rng = GapAlarm(), np.random.default_rng(0)
    truth = rng.uniform(size=200) < 0.5
    assert alarm(truth, truth) == (0.0, False)
    gap, rings = alarm(truth | (rng.uniform(size=200) < 0.4), truth)
    assert gap > 0.1 and rings
    with pytest.raises(ImagineError, match="as many of each"):
        alarm(truth, truth[:10])


# ------------------------------------------------------------------ thresholds of whole episodes


def episodes(n: int, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Largest success probabilities of n episodes, successes at 0.8, false alarms at 0.7 in every third failure."""
    rng = np.random.default_rng(seed)
    success, best = rng.random(n) < share, rng.uniform(0, 0.6, n)
    best[success] = 0.8
    best[np.flatnonzero(~success)[::3]] = 0.7
    return best, success


def test_a_threshold_makes_episodes_succeed_as_often_as_they_did() -> None:
    best, success = episodes(400, 0.4)
    threshold, found = fit_threshold(best, success)
    assert 0.7 <= threshold < 0.8 and found.n == 400 and found.successes == success.sum() and not found.refused
    assert found.judged == found.real == success.mean() and found.disagreement == 0
    assert found.ci[0] <= threshold <= found.ci[1]


def test_a_blind_judge_gets_the_rate_right_and_the_episodes_wrong() -> None:
    rng = np.random.default_rng(1)
    _, found = fit_threshold(rng.random(4000), rng.random(4000) < 0.25)
    assert abs(found.judged - 0.25) < 0.03 and found.disagreement > 0.3
    assert found.false_positive_ci[0] < found.false_positive < found.false_positive_ci[1]


def test_a_threshold_is_reported_for_episodes_that_did_not_choose_it() -> None:
    """Probabilities that say nothing: matched on all, the rate would be exact; out of fold it is off by chance."""
    off = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        best, success = rng.random(60), rng.random(60) < 0.5
        threshold, found = fit_threshold(best, success)
        assert (best > threshold).sum() == success.sum()
        off.append(abs(found.judged - found.real))
    assert np.mean(off) > 0.01


def test_few_episodes_leave_the_threshold_alone_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    best, success = episodes(10, 0.4, seed=3)
    threshold, found = fit_threshold(best, success, default=0.4)
    assert threshold == 0.4 and found.folds == 0 and found.ci == (0, 1)
    assert "expected at least 10 of each" in found.refused and "stays at 0.4" in caplog.text
    with pytest.raises(ImagineError, match="0 episodes"):
        fit_threshold(np.zeros(0), np.zeros(0, bool))
