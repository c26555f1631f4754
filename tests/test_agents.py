"""Policy, rollout, statistics, planner, judge and fine-tuning: contracts on a tiny random model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_dream import SeededStarts, chunks

from imagine.agents.evaluate import evaluate
from imagine.agents.planner import BestOfN, DreamScorer
from imagine.agents.rollout import DreamEnvs, RecordedEnvs, rollout
from imagine.agents.statistics import decibel_gain, mean_interval, paired_difference, success_rate
from imagine.model.model import WorldActionModel
from imagine.policy.adapter import merged
from imagine.policy.policy import JointPolicy, RandomPolicy
from imagine.rewards.latent import HeadConfig, JudgeConfig, LatentJudge
from imagine.types import (
    CheckpointMismatch,
    Clip,
    ImagineError,
    Policy,
    RewardModel,
    Score,
    ShapeError,
    pack_instruction,
    unpack_instruction,
)
from imagine.world.dream import Dream, DreamConfig


class FarRight:
    """Likes clips whose first joint ends far out."""

    def __init__(self, threshold: float):
        self.threshold = threshold

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        reach = torch.sigmoid(clip.proprio[:, -1, 0])
        valid = torch.ones(len(reach), dtype=torch.bool)
        done = reach > self.threshold
        return Score(done.float(), reach, valid, {"progress": reach}, terminated=done)


def observation(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "head": rng.integers(0, 256, (n, 16, 16, 3), np.uint8),
        "proprio": rng.normal(size=(n, 3)).astype(np.float32),
        "instruction": np.stack([pack_instruction("push the red bowl")] * n),
    }


def tiny_judge(model: WorldActionModel) -> LatentJudge:
    channels, height, width = model.chunk_shapes["video"][1:]
    torch.manual_seed(0)
    head = HeadConfig(width=8)
    words = ("bowl", "push", "red", "the")
    return LatentJudge(
        JudgeConfig(head=head, channels=channels, height=height, width=width, proprio=3, words=words)
    ).eval()


# ---------------------------------------------------------------------- policy
@pytest.mark.parametrize("kind", ["joint", "random", "best of 3"])
def test_policies_keep_the_contract(tiny_model: WorldActionModel, kind: str) -> None:
    policy: Any = {
        "joint": JointPolicy(tiny_model),
        "random": RandomPolicy(tiny_model.body.action_low, tiny_model.body.action_high, 4),
        "best of 3": BestOfN(JointPolicy(tiny_model), DreamScorer(tiny_model, FarRight(0.5)), 3),
    }[kind]
    assert isinstance(policy, Policy)
    obs = observation(3)
    policy.reset()
    a = policy.act(obs, [1, 2, 3])
    policy.reset()
    assert a.shape == (3, 4, 2) and a.dtype == np.float32
    assert tiny_model.body.check_action(a).tobytes() == a.tobytes(), "within the embodiment's bounds"
    assert policy.act(obs, [1, 2, 3]).tobytes() == a.tobytes(), "same seeds, same bytes"
    policy.reset()
    last = policy.act({k: v[2:] for k, v in obs.items()}, [3])
    np.testing.assert_allclose(last[0], a[2], atol=1e-5)


def test_joint_policy_gives_the_same_bytes_in_any_batch(tiny_model: WorldActionModel) -> None:
    obs, policy = observation(11), JointPolicy(tiny_model)
    many = policy.act(obs, list(range(11)))
    for i in (0, 10):
        assert policy.act({k: v[i : i + 1] for k, v in obs.items()}, [i])[0].tobytes() == many[i].tobytes()


def test_a_policy_refuses_the_observation_of_another_embodiment(tiny_model: WorldActionModel) -> None:
    obs = observation(1)
    with pytest.raises(ShapeError, match="no 'head'"):
        JointPolicy(tiny_model).act({k: v for k, v in obs.items() if k != "head"})
    with pytest.raises(ShapeError, match="expected uint8"):
        JointPolicy(tiny_model).act({**obs, "head": obs["head"][:, :8]})


# ---------------------------------------------------------------------- judge
def test_the_latent_judge_keeps_the_contract_and_survives_its_folder(
    tiny_model: WorldActionModel, tmp_path: Path
) -> None:
    judge = tiny_judge(tiny_model)
    assert isinstance(judge, RewardModel)
    clip = Clip(torch.randn(2, 3, 4, 2, 2), torch.randn(2, 3, 3), lambda: torch.zeros(2, 3, 16, 16, 3))
    score = judge(clip, ["push the red bowl", "xyzzy"])
    assert score.valid.tolist() == [True, False], "an instruction of unknown words cannot be judged"
    assert ((score.success >= 0) & (score.success <= 1)).all()
    judge.save(tmp_path)
    again = LatentJudge.load(tmp_path)(clip, ["push the red bowl", "xyzzy"])
    torch.testing.assert_close(again.success, score.success, atol=1e-3, rtol=0)
    with pytest.raises(ShapeError, match="expected"):
        judge(Clip(torch.randn(2, 3, 5, 2, 2), clip.proprio, clip.decode), ["push", "push"])


def test_a_missing_or_truncated_judge_is_named(tiny_model: WorldActionModel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointMismatch, match=r"judge\.(json|safetensors) is damaged"):
        LatentJudge.load(tmp_path)
    tiny_judge(tiny_model).save(tmp_path)
    weights = tmp_path / "judge.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointMismatch, match=r"judge\.(json|safetensors) is damaged"):
        LatentJudge.load(tmp_path)


def test_the_lowest_head_decides(tiny_model: WorldActionModel) -> None:
    judge = tiny_judge(tiny_model)
    latents, proprio = torch.randn(5, 2, 4, 2, 2), torch.randn(5, 2, 3)
    words = judge.word_counts(["push the bowl"] * 5)
    every = torch.sigmoid(judge.logits(latents, proprio, words))[..., 0]
    score = judge(Clip(latents, proprio, lambda: latents), ["push the bowl"] * 5)
    torch.testing.assert_close(score.success, every.min(0).values)


# ---------------------------------------------------------------------- rollout, evaluation, statistics
def envs(model: WorldActionModel, threshold: float, n: int = 3) -> DreamEnvs:
    return DreamEnvs(Dream(model, FarRight(threshold), SeededStarts(), DreamConfig()), n, horizon=3)


def test_rollout_keeps_what_happened(tiny_model: WorldActionModel) -> None:
    records = rollout(envs(tiny_model, 2.0), JointPolicy(tiny_model), range(4), keep=True, frames=True)
    assert [r.seed for r in records] == [0, 1, 2, 3]
    for r in records:
        assert not r.success and len(r.actions) == len(r.observations) == len(r.hallucination) == 3
        assert r.frames.shape == (1 + 3 * 2, 16, 16, 3)
    with pytest.raises(ImagineError, match="0 episodes"):
        rollout(envs(tiny_model, 2.0), JointPolicy(tiny_model), [])


def test_recorded_actions_are_dreamt_as_they_were(tiny_model: WorldActionModel) -> None:
    done = rollout(envs(tiny_model, 0.55), JointPolicy(tiny_model), range(5), keep=True, frames=True)
    assert {len(r.actions) for r in done} > {1}, "some succeed at once, some later"
    given = {r.seed: np.stack(r.actions) for r in done}
    seen: list[tuple[int, int]] = []
    again = rollout(
        RecordedEnvs(envs(tiny_model, 0.55, n=2), given), None, range(5), keep=True, frames=True,
        on_step=lambda episodes, rows: seen.extend(zip(episodes, rows, strict=True)),
    )  # fmt: skip
    for a, b in zip(done, again, strict=True):
        assert np.array_equal(a.frames, b.frames) and np.array_equal(a.actions, b.actions)
        assert (a.success, a.rewards, a.terms) == (b.success, b.rewards, b.terms)
        assert seen.count((b.seed, b.seed % 2)) == 1 + len(b.actions), "it is seen at its start and after every chunk"
    longer = {seed: np.concatenate([chunks, chunks]) for seed, chunks in given.items()}
    for whole in (False, True):
        wide = envs(tiny_model, 0.55, n=2)
        wide.horizon = 6
        for r in rollout(RecordedEnvs(wide, longer, whole=whole), None, range(5)):
            won_at = next((t for t, reward in enumerate(r.rewards) if reward > 0), len(longer[r.seed]) - 1)
            assert len(r.rewards) == (len(longer[r.seed]) if whole else won_at + 1)
    with pytest.raises(ImagineError, match="give a policy"):
        rollout(envs(tiny_model, 0.55), None, [1])


def test_a_policy_may_be_told_something_else_than_its_success_is_measured_by(tiny_model: WorldActionModel) -> None:
    judged: list[str] = []

    class Listening(FarRight):
        def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
            judged.extend(instruction)
            return super().__call__(clip, instruction)

    def told(instruction: str, seed: int) -> str:
        return "push the bowl" if seed % 2 else instruction

    world = DreamEnvs(Dream(tiny_model, Listening(2.0), SeededStarts(), DreamConfig()), 4, horizon=1)
    swapped, plain = (
        rollout(world, JointPolicy(tiny_model), range(4), instruct=how, keep=True) for how in (told, None)
    )
    assert [r.instruction for r in swapped] == [r.instruction for r in plain] and "push the bowl" not in judged
    prompts = [unpack_instruction(r.observations[0]["instruction"]) for r in swapped]
    assert prompts == [told(r.instruction, r.seed) for r in plain]
    same = [np.array_equal(a.actions, b.actions) for a, b in zip(swapped, plain, strict=True)]
    assert same == [True, False, True, False], "and it does something else for it"


def test_an_unbelievable_episode_breaks_off_unless_it_is_only_watched(tiny_model: WorldActionModel) -> None:
    doubtful = DreamConfig(hallucination_limit=0.0)
    for break_off, chunks_lived in ((True, 1), (False, 3)):
        dream = Dream(tiny_model, FarRight(2.0), SeededStarts(), doubtful)
        watched = DreamEnvs(dream, 2, horizon=3, break_off=break_off)
        records = rollout(watched, JointPolicy(tiny_model), range(2))
        assert [len(r.rewards) for r in records] == [chunks_lived] * 2 and all(r.unbelievable for r in records)


def test_an_episode_does_not_depend_on_how_many_run_beside_it(tiny_model: WorldActionModel) -> None:
    wide = rollout(envs(tiny_model, 2.0, n=4), JointPolicy(tiny_model), range(4), keep=True)
    narrow = rollout(envs(tiny_model, 2.0, n=1), JointPolicy(tiny_model), range(4), keep=True)
    for a, b in zip(wide, narrow, strict=True):
        assert np.stack(a.actions).tobytes() == np.stack(b.actions).tobytes()


def test_evaluation_reports_rate_interval_and_tasks(tiny_model: WorldActionModel) -> None:
    result, _ = evaluate(envs(tiny_model, -1.0), JointPolicy(tiny_model), range(4), task_of=lambda i: i.split()[0])
    assert result["success_rate"] == 1 and result["n"] == 4 and result["ci_high"] == 1
    assert {k: v["n"] for k, v in result["per_task"].items()} == {"push": 2, "reach": 2}


def test_wilson_interval_is_the_textbooks() -> None:
    p, n, z = 0.3, 50, 1.959963984540054
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    got = success_rate([True] * 15 + [False] * 35)
    assert (got.low, got.high) == pytest.approx((middle - half, middle + half))


def test_paired_difference_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        luck = rng.random(60)
        after, before = luck < 0.6, (luck < 0.4) ^ (rng.random(60) < 0.1)
        truth = 0.6 - (0.4 * 0.9 + 0.6 * 0.1)
        ci = paired_difference(after, before)
        inside += ci.low <= truth <= ci.high
    assert inside >= 940


def test_mean_interval_resamples_whole_clusters() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=20), 10)
    whole, torn = mean_interval(values, np.repeat(np.arange(20), 10)), mean_interval(values)
    assert (whole.high - whole.low) > 2 * (torn.high - torn.low)


def test_a_tenth_of_the_error_is_ten_decibels() -> None:
    error = np.random.default_rng(0).uniform(1, 2, 40)
    gain = decibel_gain(error, 10 * error, np.repeat(np.arange(8), 5))
    assert (gain.value, gain.low, gain.high) == pytest.approx((10, 10, 10))


# ---------------------------------------------------------------------- adapters
def test_an_adapter_for_another_network_is_refused(tiny_model: WorldActionModel, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(CheckpointMismatch, match="no usable LoRA adapter"):
        merged(tiny_model, tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 2, "target_modules": ["to_q"]}')
    name = "base_model.model.blocks.0.attn1.to_q"
    state = {f"{name}.lora_A.weight": torch.zeros(2, 7), f"{name}.lora_B.weight": torch.zeros(32, 2)}
    save_file(state, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointMismatch, match="do not fit"):
        merged(tiny_model, tmp_path)


def test_random_chunks_are_smooth(tiny_model: WorldActionModel) -> None:
    body = tiny_model.body
    chunk = RandomPolicy(body.action_low, body.action_high, 4).act(observation(2), [1, 2])
    assert np.abs(np.diff(chunk, axis=1)).max() < 0.2 and chunks(1, 1).shape == (1, 1, 4, 2)
