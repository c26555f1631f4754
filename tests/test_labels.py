"""What judges are taught with: labelled pairs of whole episodes, and what a head learns from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from imagine.labels import LabelledRollouts, RolloutPairs
from imagine.rewards.calibrate import fit_threshold
from imagine.rewards.latent import HeadConfig, JudgeConfig, LatentJudge
from imagine.rewards.measure import cross_folds, pattern_of
from imagine.rewards.train.head import best_of_episodes, train_head
from imagine.train.fit import FitConfig


def rollouts(n: int, t: int = 4, seed: int = 0) -> LabelledRollouts:
    """Episodes whose latents turn bright when they succeed, which half of them do at a random chunk."""
    rng = np.random.default_rng(seed)
    first = np.where(rng.random(n) < 0.5, rng.integers(t, size=n), t)
    done = np.arange(t) >= first[:, None]
    bright = np.concatenate([np.zeros((n, 1), bool), done], 1)
    latents = rng.normal(0, 0.3, (n, 1 + t, 2, 4, 4)) + 2 * bright[..., None, None, None]
    return LabelledRollouts(
        latents=latents.astype(np.float16), proprio=np.zeros((n, 1 + t, 3), np.float32),
        frames=np.zeros((n, 0, 8, 8, 3), np.uint8), actions=np.zeros((n, t, 4, 1), np.float32),
        inverse_error=np.zeros((n, t), np.float32), instruction=np.array(["push"] * n), done=done,
        states=np.zeros((n, 1 + t, 0)), seeds=np.arange(n), kind=np.array(["base", "random"] * (n // 2)),
        held=np.arange(n) % 5 == 0,
    )  # fmt: skip


def test_pairs_end_with_the_first_success() -> None:
    made = rollouts(10)
    pairs, whole = RolloutPairs(made), RolloutPairs(made, whole=True)
    first = np.where(made.done.any(1), made.done.argmax(1) + 1, 4)
    assert len(pairs) == first.sum() and len(whole) == made.done.size
    clips = pairs.at(np.arange(len(pairs)))
    assert clips.latents.shape == (len(pairs), 2, 2, 4, 4) and clips.success.sum() == made.done.any(1).sum()
    assert ((clips.chunks_left == 0) == clips.success).all()
    assert torch.isinf(clips.chunks_left[torch.from_numpy(~made.done.any(1)[pairs.episode])]).all()


def test_later_pairs_stay_within_their_episode() -> None:
    made = rollouts(6)
    whole = RolloutPairs(made, whole=True)
    later, within = whole.later(np.array([0, 2, 3]), 2)
    assert within.tolist() == [[True, True, True], [True, True, False], [True, False, False]]
    assert torch.equal(later.latents[:3], whole.at(np.array([0, 1, 2])).latents)
    assert torch.equal(later.latents[7], whole.at(np.array([3])).latents[0]), "what is past the end stands still"


def test_a_head_learns_from_rollouts_and_gets_a_threshold_that_it_reports(tmp_path: Path) -> None:
    made = rollouts(200)
    held = made.pick(made.held)
    torch.manual_seed(0)
    sizes = {"channels": 2, "height": 4, "width": 4, "proprio": 3}
    head = LatentJudge(JudgeConfig(head=HeadConfig(width=8, trace=0.7), words=("push",), **sizes))
    run = FitConfig(steps=60, batch=32, lr=5e-3, warmup=5, ema=0.9, mixed_precision="no", eval_every=60)
    taught = train_head(
        head, [RolloutPairs(made.pick(~made.held))], {"": RolloutPairs(held)}, run, tmp_path,
        replays=RolloutPairs(held, whole=True), kinds=held.kind, trace=0.7,
    )  # fmt: skip
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["auroc"] > 0.95 and set(found["policies"]) == {"base", "random"}
    assert taught.cfg.head.threshold == found["threshold"] and taught.cfg.threshold_fit is not None
    assert taught.cfg.threshold_fit.n == len(held) and not taught.cfg.threshold_fit.refused
    taught.save(tmp_path)
    assert LatentJudge.load(tmp_path).cfg == taught.cfg


def test_one_judged_success_anywhere_makes_an_episode_a_success() -> None:
    """Ten frames per dream: calm ones below 0.6, one false alarm at 0.7 in every third failure, successes at 0.8."""
    rng = np.random.default_rng(0)
    won = rng.random(400) < 0.4
    label, p = np.zeros((400, 10), bool), rng.uniform(0, 0.6, (400, 10))
    label[won, 7:] = True
    p[won, 9] = 0.8
    p[np.flatnonzero(~won)[::3], 4] = 0.7
    best, success = best_of_episodes(p.ravel(), label.ravel(), np.repeat(np.arange(400), 10))
    assert (success == won).all() and best.tolist() == p.max(1).tolist()
    threshold, found = fit_threshold(best, success)
    assert 0.7 <= threshold < 0.8 and found.n == 400
    assert found.judged == found.real == won.mean() and found.disagreement == 0


@pytest.mark.parametrize(
    ("texts", "pattern"),
    [
        (["pick up the red block", "Pick up the blue block."], "pick up the * block"),
        (["push the red block to the left", "push the green block to the left"], "push the * block to the left"),
        (["open the drawer"], "open the drawer"),
        (["open the drawer", "close it"], "*"),
        (["go", "go there"], "go *"),
    ],
)
def test_a_pattern_is_what_instructions_share(texts: list[str], pattern: str) -> None:
    assert pattern_of(texts) == pattern


def test_folds_keep_an_episode_together() -> None:
    cluster = np.repeat(np.arange(13), 4)
    fold = cross_folds(cluster)
    assert set(fold) == set(range(5)) and all(len(set(fold[cluster == c])) == 1 for c in range(13))
