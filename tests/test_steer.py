"""A dream that is steered: what the agent's few numbers do to a policy's chunk, and what the agent sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from imagine.agents.envs import DreamEnvs, StepResult
from imagine.agents.practice import episodes, improvement
from imagine.agents.rollout import rollout
from imagine.agents.search import cosines, unmix
from imagine.agents.steer import How, SteerConfig, Steered, SteeredPolicy, UnsteeredPolicy
from imagine.model.model import WorldActionModel
from imagine.policy.policy import JointPolicy
from imagine.types import Clip, ImagineError, Score
from imagine.world.dream import Dream, DreamConfig
from imagine.world.env import EnvConfig, World, WorldModelVectorEnv
from imagine.world.starts import FewStarts, Start

HOWS: tuple[How, ...] = ("noise", "residual", "chunk")
SLOW, K, A = 2, 4, 2


class SeededStarts:
    """A different random observation for every seed."""

    def __call__(self, seed: int, options: Mapping[str, Any]) -> Start:
        rng = np.random.default_rng(seed)
        told = ("push the red bowl", "reach the bowl")[seed % 2]
        return Start(rng.integers(0, 256, (16, 16, 3), np.uint8), rng.normal(size=3).astype(np.float32), told, "")


def never(clip: Clip, instruction: list[str]) -> Score:
    nothing = torch.zeros(len(clip.latents))
    return Score(nothing, nothing, nothing == 0)


def steered(model: WorldActionModel, how: How = "noise", lanes: int = 0, **cfg: Any) -> Steered:
    dream = Dream(model, never, SeededStarts(), DreamConfig())
    policy = None if how == "chunk" else JointPolicy(model, steps=2)
    world = Steered(dream, policy, SteerConfig(how=how, **{"slow": SLOW, **cfg}))
    if lanes:
        world.allocate(lanes)
        world.reset(np.arange(lanes), list(range(lanes)), {})
    return world


def numbers(n: int, steps: int = 1, slow: int = SLOW) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (steps, n, slow * A)).astype(np.float32)


def own(world: Steered) -> np.ndarray:
    """What the policy does by itself in the lanes as they are."""
    assert world.steering.policy is not None
    return world.steering.policy.act(world.dream.observe(), world.seeds())


def test_cosines_are_orthonormal_and_the_first_is_the_mean() -> None:
    rows = cosines(24, 24)
    torch.testing.assert_close(rows @ rows.T, torch.eye(24), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows[0], torch.full((24,), 24**-0.5))


def test_noise_that_the_policy_draws_itself_is_the_policy(tiny_model: WorldActionModel) -> None:
    world = steered(tiny_model, lanes=3)
    for _ in range(2):
        np.testing.assert_allclose(world.chunks(world.unsteered()), own(world), atol=1e-5)
        world.step(world.unsteered())


def test_steered_noise_is_as_white_as_the_policys_own(tiny_model: WorldActionModel) -> None:
    world = steered(tiny_model, lanes=1)
    mine = torch.stack([world.steering._own_noise([s])[0] for s in range(4000)])
    drawn = torch.randn(4000, SLOW, A, generator=torch.Generator().manual_seed(0))
    change = drawn - unmix(world.steering._rows, mine)
    noise = (mine + torch.einsum("sk,nka->nsa", world.steering._rows.T, change)).flatten(1)
    torch.testing.assert_close(noise.T.cov(), torch.eye(K * A), atol=0.1, rtol=0)
    torch.testing.assert_close(unmix(world.steering._rows, noise.unflatten(1, (K, A))), drawn)


def test_only_what_is_not_steered_is_left_to_the_seed(tiny_model: WorldActionModel) -> None:
    action = numbers(1, slow=K)[0]
    chunks = []
    for seed in (2, 4):  # starts of the same instruction
        world = steered(tiny_model, slow=K, lanes=1)
        world.reset(np.array([0]), [0], {})
        world.dream.seeds[:] = seed
        chunks.append(world.chunks(action))
    np.testing.assert_allclose(chunks[0], chunks[1], atol=1e-5)


def test_no_residual_is_the_policy_to_the_bit(tiny_model: WorldActionModel) -> None:
    world = steered(tiny_model, "residual", lanes=3)
    assert world.chunks(world.unsteered()).tobytes() == own(world).tobytes()
    changed = world.chunks(numbers(3)[0])
    assert not np.allclose(changed, own(world), atol=1e-3)


@pytest.mark.parametrize("how", ["residual", "chunk"])
def test_reach_is_the_root_mean_square_of_one_cosine_in_normalised_units(
    tiny_model: WorldActionModel, how: How
) -> None:
    world = steered(tiny_model, how, lanes=1, reach=0.02)
    for row in range(SLOW):
        action = np.zeros((1, SLOW, A), np.float32)
        zero, action[0, row, 1] = world.chunks(action.reshape(1, -1)), 1.0
        moved = (world.chunks(action.reshape(1, -1)) - zero)[0] / tiny_model.action_std.numpy()
        np.testing.assert_allclose(np.square(moved).mean(0), [0, 0.02**2], atol=1e-6)


def test_a_chunk_of_its_own_needs_no_policy_and_zero_is_the_mean_one(tiny_model: WorldActionModel) -> None:
    world = steered(tiny_model, "chunk", lanes=2)
    mean = np.broadcast_to(tiny_model.action_mean.numpy(), (2, K, A))
    np.testing.assert_allclose(world.chunks(np.zeros((2, SLOW * A), np.float32)), mean, atol=1e-6)


@pytest.mark.parametrize("how", HOWS)
def test_chunks_stay_within_the_bounds_of_the_body(tiny_model: WorldActionModel, how: How) -> None:
    world = steered(tiny_model, how, lanes=2, reach=100.0)
    far = np.full((2, SLOW * A), world.single_action_space.high[0], np.float32)
    assert all(world.dream.single_action_space.contains(chunk) for chunk in world.chunks(far))


@pytest.mark.parametrize("how", HOWS)
def test_a_lane_gives_the_same_bytes_whatever_the_number_of_lanes(tiny_model: WorldActionModel, how: How) -> None:
    actions, cfg = numbers(9, 5), EnvConfig(horizon=2)

    def play(n: int, seed: int, rows: slice) -> list[bytes]:
        env = WorldModelVectorEnv(steered(tiny_model, how), n, cfg=cfg, autoreset_mode="SameStep")
        seen = [env.reset(seed=seed)[0], *(env.step(a[rows])[0] for a in actions)]
        return [x[-1].tobytes() for x in seen]

    assert play(9, 5, slice(0, 9)) == play(1, 13, slice(8, 9))


@pytest.mark.parametrize("how", HOWS)
def test_a_restored_dream_goes_on_with_the_same_bytes(tiny_model: WorldActionModel, how: How) -> None:
    env = WorldModelVectorEnv(steered(tiny_model, how), 2, autoreset_mode="SameStep")
    env.reset(seed=1)
    env.step(numbers(2)[0])
    fork, futures = env.snapshot(), []
    for _ in range(2):
        env.restore(fork)
        futures.append([env.step(a)[0].tobytes() for a in numbers(2, 3)])
    assert futures[0] == futures[1]


def test_an_unsteered_episode_is_that_of_a_rollout(tiny_model: WorldActionModel) -> None:
    """So that a return measured here can be held against ``imagine evaluate --world imagined``."""
    world = steered(tiny_model)
    envs = DreamEnvs(Dream(tiny_model, never, SeededStarts(), DreamConfig()), 2, horizon=3)
    records = rollout(envs, JointPolicy(tiny_model, steps=2), [7, 8], keep=True)
    world.allocate(2)
    world.reset(np.arange(2), [7, 8], {})
    for step in range(3):
        chunks = world.chunks(world.unsteered())
        np.testing.assert_allclose(chunks, np.stack([r.actions[step] for r in records]), atol=1e-5)
        world.dream.step(np.stack([r.actions[step] for r in records]))


def test_the_observation_holds_now_what_has_changed_the_body_and_the_words(tiny_model: WorldActionModel) -> None:
    world = steered(tiny_model, lanes=2)
    latent = int(np.prod(tiny_model.chunk_shapes["video"][1:]))
    first = world.observe()
    assert isinstance(world, World) and first.shape == (2, *world.single_observation_space.shape)
    assert first.dtype == np.float32 and not first[:, latent : 2 * latent].any()
    world.step(numbers(2)[0])
    now, changed, body, words = np.split(world.observe(), np.cumsum([latent, latent, 3]), 1)
    np.testing.assert_allclose(now + changed, first[:, :latent], atol=1e-5)
    feels = tiny_model.normalise_proprio(torch.from_numpy(world.dream.observe()["proprio"]))
    np.testing.assert_allclose(body * 3**0.5, feels, atol=1e-5)
    np.testing.assert_array_equal(words, first[:, -16:])
    assert not np.array_equal(words[0], words[1]), "the instructions differ"


def test_an_agent_may_see_nothing(tiny_model: WorldActionModel) -> None:
    world = steered(tiny_model, lanes=2, sees="nothing")
    world.step(numbers(2)[0])
    assert world.observe() in gym.vector.utils.batch_space(world.single_observation_space, 2)
    assert world.observe().tolist() == [[0], [0]]


def test_few_scenes_take_turns_and_everything_else_stays_new() -> None:
    starts, usual = FewStarts(SeededStarts(), [7, 8, 11]), SeededStarts()
    for seed in range(7):
        assert (starts(seed, {}).canvas == usual((7, 8, 11)[seed % 3], {}).canvas).all()
    with pytest.raises(ImagineError, match="got no scene"):
        FewStarts(usual, [])


def test_improvement_is_paired_by_start() -> None:
    before = np.array([0.0, 1.0, 2.0])
    told = improvement(before, before + 0.5)
    assert told["gain"] == {"value": 0.5, "ci_low": 0.5, "ci_high": 0.5, "n": 3}
    assert told["before"]["value"] == 1 and told["after"]["value"] == 1.5
    assert told["each"] == {"before": [0, 1, 2], "after": [0.5, 1.5, 2.5]}


@pytest.mark.parametrize("how", HOWS)
def test_on_the_robot_an_agent_does_what_it_would_do_in_the_dream(tiny_model: WorldActionModel, how: How) -> None:
    world = steered(tiny_model, how, lanes=2, reach=0.05)
    seen: list[np.ndarray] = []

    def agent(observation: np.ndarray) -> np.ndarray:
        seen.append(observation)
        return numbers(2)[0]

    policy = SteeredPolicy(world.steering, agent)
    n = world.dream.start_video[0].numel()
    for _ in range(2):
        chunks = policy.act(world.dream.observe(), world.seeds())
        np.testing.assert_allclose(chunks, world.chunks(numbers(2)[0]), atol=1e-5)
        # Pose and words; the robot encodes pictures, and what this untrained codec paints is no picture.
        np.testing.assert_allclose(seen[-1][:, 2 * n :], world.observe()[:, 2 * n :], atol=1e-4)
        world.step(numbers(2)[0])
    latents = slice(n, 2 * n)
    assert not seen[0][:, latents].any() and seen[1][:, latents].any(), "it remembers how the episode began"
    policy.reset()
    policy.act(world.dream.observe(), world.seeds())
    assert not seen[-1][:, latents].any()
    policy.act(world.dream.observe(), episodes=[5, 6])
    world.step(numbers(2)[0])
    policy.act(world.dream.observe(), world.seeds(), [5, 9])
    assert seen[-1][0, latents].any() and not seen[-1][1, latents].any(), "episodes are told apart, not seeds"


def test_without_a_residual_nothing_changes_on_the_robot(tiny_model: WorldActionModel) -> None:
    world = steered(tiny_model, "residual", lanes=3)
    nothing = SteeredPolicy(world.steering, lambda seen: np.zeros((len(seen), *world.single_action_space.shape)))

    class Coin(DreamEnvs):
        """Some of what a policy does succeeds."""

        def step(self, rows: Sequence[int], actions: np.ndarray) -> tuple[Any, list[StepResult]]:
            seen, results = super().step(rows, actions)
            won = [1e6 * float(a.sum()) % 2 < 1 for a in actions]
            return seen, [replace(r, success=w, done=True) for r, w in zip(results, won, strict=True)]

    assert world.steering.policy is not None
    starts, draws = [1, 2] * 10, (np.arange(20) // 2).tolist()
    own, same = (
        [r.success for r in rollout(Coin(world.dream, 3), p, starts, policy_seed=draws)]
        for p in (world.steering.policy, nothing)
    )
    assert own == same and 0 < sum(own) < 20


@pytest.mark.parametrize("mode", ["Disabled", "SameStep"])
def test_episodes_are_whole_first_ones_whatever_the_number_of_lanes(tiny_model: WorldActionModel, mode: str) -> None:
    def judged(clip: Clip, instruction: list[str]) -> Score:
        won = clip.proprio[:, -1, 0] * 100 % 3 < 1  # some at once, some later, some never
        return Score(won.float(), won.float(), torch.ones_like(won))

    def play(lanes: int) -> tuple[list[float], list[bool]]:
        world = steered(tiny_model)
        world.dream.judge = judged  # type: ignore[assignment]
        env = WorldModelVectorEnv(world, lanes, cfg=EnvConfig(horizon=3), autoreset_mode=mode)
        total, won = episodes(env, UnsteeredPolicy(world.steering), range(20))
        return total.tolist(), won.tolist()

    (total, won), more = play(1), play(3)
    assert (total, won) == more == play(32) and total == [float(w) for w in won]
    assert 0 < sum(won) < 20


def test_what_cannot_be_steered_is_refused_in_a_sentence(tiny_model: WorldActionModel) -> None:
    dream = Dream(tiny_model, never, SeededStarts(), DreamConfig())
    with pytest.raises(ImagineError, match=r"how='noise' steers a policy, got none; give one, or use how='chunk'"):
        Steered(dream, None)
    with pytest.raises(ImagineError, match="slow is 5, expected at most the 4 actions"):
        steered(tiny_model, slow=5)
    other = tiny_model.body.model_copy(update={"name": "other"})
    stranger = JointPolicy(tiny_model)
    stranger.model = type("Model", (), {"body": other})()
    with pytest.raises(ImagineError, match="for embodiment 'other', expected 'tiny'"):
        Steered(dream, stranger)


def test_gymnasium_makes_the_shipped_one_by_name() -> None:
    name: dict[str, Any] = {"id": "imagine/G1TableLatent-v0", "num_envs": 2, "autoreset_mode": "SameStep"}
    env = gym.make_vec(**name, how="residual", horizon=1)
    observation, info = env.reset(seed=0)
    assert observation in env.observation_space and info["instruction"][0]
    assert env.step(np.zeros(env.action_space.shape, np.float32))[3].all()
    for wrong, sentence in (
        ({"how": "magic"}, "expected one of noise"),
        ({"sees": "all"}, "expected one of latents"),
        ({"policy": "random"}, "cannot be steered"),
    ):
        with pytest.raises(ImagineError, match=sentence):
            gym.make_vec(**name, **wrong)
