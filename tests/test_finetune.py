"""Reinforcement learning in the dream: kernels with closed forms, algorithms on a world that is known, and the loop."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_agents import FarRight
from test_dream import SeededStarts
from torch import Tensor

from imagine.agents.envs import DreamEnvs
from imagine.agents.finetune.algorithms import ALGORITHMS
from imagine.agents.finetune.experience import Experience, advantages, gather, returned, velocity
from imagine.agents.finetune.grpo import FlowGRPO
from imagine.agents.finetune.improve import Check, ImproveConfig, Trainer
from imagine.agents.finetune.kernel import LEAST, FlowKernel, Moves
from imagine.agents.finetune.survey import survey
from imagine.agents.rollout import EpisodeRecord
from imagine.model.model import WorldActionModel
from imagine.noise import schedule
from imagine.policy.adapter import Learner, merged, weights_hash
from imagine.policy.policy import JointPolicy
from imagine.types import CheckpointMismatch, Clip, ImagineError, Score
from imagine.world.dream import Dream, DreamConfig

KERNELS = [FlowKernel(kind="cps", noise=0.5), FlowKernel(kind="sde", noise=0.7)]


# ---------------------------------------------------------------------- kernels
def gaussian_velocity(x: Tensor, sigma: float, mean: float = 0.7, std: float = 0.4) -> Tensor:
    """The exact velocity of data N(mean, std^2): E[eps - clean | x] at level sigma."""
    var = (1 - sigma) ** 2 * std**2 + sigma**2
    clean = mean + (1 - sigma) * std**2 / var * (x - (1 - sigma) * mean)
    eps = sigma / var * (x - (1 - sigma) * mean)
    return eps - clean


def run_chain(kernel: FlowKernel, steps: int, n: int = 60_000) -> Tensor:
    levels = schedule(steps).tolist()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 1, generator=generator)
    for a, b in itertools.pairwise(levels):
        x = kernel.step(x, gaussian_velocity(x, a), a, b, torch.randn(n, 1, generator=generator))
    return x


@pytest.mark.parametrize("kernel", [FlowKernel(kind="ode"), *KERNELS], ids=lambda k: k.kind)
def test_every_kernel_ends_with_the_moments_of_the_data(kernel: FlowKernel) -> None:
    x = run_chain(kernel, 200)
    assert x.mean().item() == pytest.approx(0.7, abs=0.02)
    # cps mixes noise into predicted means and so loses a little of the data's own spread; see the next test.
    assert x.std().item() == pytest.approx(0.4, abs=0.05 if kernel.kind == "cps" else 0.02)


@pytest.mark.parametrize("steps", [2, 4, 10])
def test_cps_has_the_paths_moments_at_every_level_where_the_data_is_a_point(steps: int) -> None:
    kernel, levels, n = FlowKernel(kind="cps", noise=0.6), schedule(steps).tolist(), 100_000
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 1, generator=generator)
    for a, b in itertools.pairwise(levels):
        velocity_ = gaussian_velocity(x, a, mean=0.7, std=0.0)
        x = kernel.step(x, velocity_, a, b, torch.randn(n, 1, generator=generator))
        assert x.mean().item() == pytest.approx((1 - b) * 0.7, abs=0.01)
        assert x.std().item() == pytest.approx(b, abs=0.01)


@pytest.mark.parametrize("kind", ["cps", "sde"])
def test_without_noise_a_kernel_is_the_ode(kind: Any) -> None:
    x, v = torch.randn(5, 3), torch.randn(5, 3)
    ode = FlowKernel(kind="ode").step(x, v, 0.75, 0.5, torch.randn(5, 3))
    torch.testing.assert_close(ode, x - 0.25 * v)
    for noise in (0.0, 1e-5):
        other = FlowKernel(kind=kind, noise=noise).step(x, v, 0.75, 0.5, torch.randn(5, 3))
        torch.testing.assert_close(other, ode, atol=1e-4, rtol=0)


def test_one_sde_step_is_the_published_formula() -> None:
    x, v, t, delta, a = torch.tensor([[0.3]]), torch.tensor([[-0.8]]), 0.6, 0.2, 0.7
    sigma = a * math.sqrt(t / (1 - t))
    mean, std = FlowKernel(kind="sde", noise=a).moments(x, v, t, t - delta)
    clean, eps = x - t * v, x + (1 - t) * v
    published = clean * (1 - (t - delta)) + eps * (t - delta - sigma**2 * delta / (2 * t))
    torch.testing.assert_close(mean, published)
    assert std == pytest.approx(sigma * math.sqrt(delta))


def test_cps_keeps_the_coefficient_of_noise_and_ends_without_any() -> None:
    kernel = FlowKernel(kind="cps", noise=0.5)
    x, v = torch.zeros(1, 1), torch.ones(1, 1)
    mean, std = kernel.moments(x, v, 0.75, 0.5)
    clean, eps = -0.75, 0.25
    share = (mean.item() - 0.5 * clean) / eps
    assert share**2 + std**2 == pytest.approx(0.5**2)
    assert kernel.moments(x, v, 0.25, 0.0)[1] < LEAST


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.kind)
def test_log_prob_is_the_density_of_what_step_draws(kernel: FlowKernel) -> None:
    x, v, eps = torch.randn(4, 2, 3), torch.randn(4, 2, 3), torch.randn(4, 2, 3)
    mean, std = kernel.moments(x, v, 0.75, 0.5)
    after = kernel.step(x, v, 0.75, 0.5, eps)
    want = torch.distributions.Normal(mean, std).log_prob(after).sum((1, 2))
    torch.testing.assert_close(kernel.log_prob(after, x, v, 0.75, 0.5), want)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.kind)
def test_the_divergence_is_what_monte_carlo_says(kernel: FlowKernel) -> None:
    x, v, other = torch.full((1, 2), 0.4), torch.tensor([[0.5, -0.2]]), torch.tensor([[0.9, 0.1]])
    n, generator = 200_000, torch.Generator().manual_seed(1)
    many = [t.expand(n, 2) for t in (x, v, other)]
    drawn = kernel.step(many[0], many[1], 0.75, 0.5, torch.randn(n, 2, generator=generator))
    ours, theirs = (kernel.log_prob(drawn, many[0], u, 0.75, 0.5) for u in many[1:])
    closed = kernel.kl(x, v, other, 0.75, 0.5).item()
    assert closed > 0.01
    assert (ours - theirs).mean().item() == pytest.approx(closed, rel=0.05)
    assert kernel.kl(x, v, v, 0.75, 0.5).item() == 0


def test_a_lanes_noise_depends_on_its_seed_alone() -> None:
    kernel, x = KERNELS[0], torch.zeros(3, 2, 2)
    together = Moves(kernel, [5, 6, 7])(1, x, x, 0.75, 0.5)
    alone = Moves(kernel, [6])(1, x[:1], x[:1], 0.75, 0.5)
    assert torch.equal(together[1:2], alone) and not torch.equal(together[0], together[1])


# ---------------------------------------------------------------------- experience
def envs_of(model: WorldActionModel, n: int = 8, threshold: float = 0.5) -> DreamEnvs:
    return DreamEnvs(Dream(model, FarRight(threshold), SeededStarts(), DreamConfig(inverse_steps=1)), n, horizon=3)


@pytest.fixture
def lived(tiny_model: WorldActionModel) -> Experience:
    return gather(envs_of(tiny_model, threshold=0.6), tiny_model, KERNELS[0], [1, 2, 3], 4, draw=0, steps=3)


def test_a_group_shares_start_and_dream_noise_and_differs_in_the_policys_draws(
    tiny_model: WorldActionModel, lived: Experience
) -> None:
    rows = lived.decisions
    first = [int((rows.episode == e).nonzero()[0]) for e in range(4)]
    assert torch.equal(rows.context.video[first[0]], rows.context.video[first[1]])
    assert not torch.equal(rows.chain[first[0]], rows.chain[first[1]])
    assert lived.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    # The same draws of the policy lead to the same dream: the group's only randomness is the policy's.
    again = gather(envs_of(tiny_model, threshold=0.6), tiny_model, KERNELS[0], [1, 2, 3], 4, draw=0, steps=3)
    assert [r.rewards for r in again.records] == [r.rewards for r in lived.records]
    lanes = envs_of(tiny_model)
    lanes.reset([1] * 8, None)
    lanes.step(range(8), np.full((8, 4, 2), 0.1, np.float32))
    assert all(torch.equal(lanes.dream.video[0], v) for v in lanes.dream.video)


def test_decisions_belong_to_the_episode_that_made_them(tiny_model: WorldActionModel, lived: Experience) -> None:
    rows = lived.decisions
    assert len(rows) == sum(len(r.rewards) for r in lived.records)
    policy, lanes = JointPolicy(tiny_model, steps=3), envs_of(tiny_model, threshold=0.6)
    seen = lanes.reset([int(r.seed) for r in lived.records[4:12]], None)
    context = policy.context(seen)
    for lane, e in enumerate(range(4, 12)):
        row = int((rows.episode == e).nonzero()[0])
        torch.testing.assert_close(rows.context.proprio[row], context.proprio[lane])


def test_advantages_compare_within_groups_in_one_unit_and_are_silent_where_nothing_differs() -> None:
    group = np.repeat([0, 1, 2], 4)
    a = advantages(np.array([1.0, 0, 0, 0, 1, 1, 1, 1, 0.2, 0.2, 0, 0]), group)
    assert a[4:8].tolist() == [0, 0, 0, 0]
    assert a.reshape(3, 4).mean(1) == pytest.approx(0, abs=1e-12) and np.square(a).mean() == pytest.approx(1)
    assert a[0] / a[8] == pytest.approx(0.75 / 0.1), "where little was at stake, little is learnt"
    assert not advantages(np.array([1.0, 1, 0, 0]), np.array([0, 0, 1, 1])).any()


def test_a_return_counts_how_sure_the_judge_is_at_the_end() -> None:
    won = EpisodeRecord(0, "", True, rewards=[-0.1, 0.9], probability=0.6)
    lost = EpisodeRecord(0, "", False, rewards=[-0.1, -0.1], probability=0.3)
    assert returned(won, 0.5) == pytest.approx(-0.1 + 0.5 * (0.6 - 0.1))
    assert returned(lost, 0.5) == pytest.approx(-0.1 + 0.5 * (0.3 - 0.1))
    assert returned(EpisodeRecord(0, "", True, rewards=[1.0, 3.0]), 0.5) == 2.5, "a simulator has no doubt"


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.kind)
def test_at_equal_weights_the_ratio_is_one(tiny_model: WorldActionModel, kernel: FlowKernel) -> None:
    lived = gather(envs_of(tiny_model), tiny_model, kernel, [1, 2], 4, draw=0, steps=3)
    algorithm = FlowGRPO(kernel=kernel)
    old = algorithm.prepare(lived.decisions, tiny_model)
    new = algorithm.log_probs(Learner(tiny_model, rank=2).model, lived.decisions, [0, 1, 2])
    torch.testing.assert_close((new - old).exp(), torch.ones_like(new), atol=1e-3, rtol=0)
    assert algorithm.noisy_steps(3, 1.0) == ([0, 1] if kernel.kind == "cps" else [0, 1, 2])


# ---------------------------------------------------------------------- algorithms
@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_goes_where_the_better_chunks_are(tiny_model: WorldActionModel, name: str) -> None:
    """On known experience: once large chunks are the good ones, once small ones."""
    algorithm = ALGORITHMS[name]()
    lived = gather(envs_of(tiny_model, 32), tiny_model, algorithm.kernel, [1, 2, 3, 4], 32, draw=0, steps=3)
    chain = lived.decisions.chain
    large = chain[:, -1].mean((1, 2))
    ends = []
    for good in (large > large.median(), large <= large.median()):
        rows = replace(lived.decisions, advantage=torch.where(good, 1.0, -1.0), success=good.float())
        ends.append(level_after(algorithm, tiny_model, rows))
    assert ends[0] > ends[1] + 0.01


def level_after(algorithm: Any, model: WorldActionModel, rows: Any) -> float:
    """Mean of the chunks that a policy expects behind pure noise, after 60 steps on those rows."""
    learner, generator = Learner(model, rank=8, seed=1), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(learner.parameters().values(), lr=1e-2)
    kept = rows.index(algorithm.usable(rows))
    prepared = algorithm.prepare(kept, model)
    for _ in range(60):
        loss, _ = algorithm.loss(learner.model, model, model, kept, prepared, generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        noise = rows.chain[:, 0]
        return float((noise - velocity(learner.model, rows.context, noise, 1.0)).mean())


def test_nft_starts_at_a_stationary_point_without_preference(tiny_model: WorldActionModel) -> None:
    """With every chunk as good as bad (r = 1/2) the learner has no reason to leave the acting policy."""
    algorithm, learner = ALGORITHMS["nft"](), Learner(tiny_model, rank=4, seed=1)
    rows = gather(envs_of(tiny_model), tiny_model, algorithm.kernel, [1], 8, draw=0, steps=3).decisions
    half = torch.full((len(rows),), 0.5)
    loss, _ = algorithm.loss(learner.model, tiny_model, tiny_model, rows, half, torch.Generator().manual_seed(0))
    loss.backward()
    assert max(p.grad.abs().max().item() for p in learner.parameters().values() if p.grad is not None) < 1e-6


# ---------------------------------------------------------------------- the loop
def config(**changes: Any) -> ImproveConfig:
    small = {
        "updates": 3,
        "groups": 4,
        "members": 4,
        "minibatch": 16,
        "steps": 3,
        "rank": 4,
        "lr": 3e-3,
        "look_every": 2,
    }
    return ImproveConfig(**{**small, **changes})


class LikesLarge:
    """Calls a chunk a success if it commands to move far; in its eyes a policy's draws are all that matters."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        assert clip.action is not None and clip.pose is not None
        far = (clip.action - clip.pose[:, None]).mean((1, 2))
        done = far > self.threshold
        return Score(done.float(), torch.sigmoid(far), torch.ones_like(done), terminated=done)


class Fickle(LikesLarge):
    """Half of all draws succeed from every start, so that every algorithm has something to compare."""

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        score = super().__call__(clip, instruction)
        won = (score.success * 1e4).floor() % 2 > 0
        return replace(score, reward=won.float(), terminated=won)


def arena(model: WorldActionModel, n: int = 8) -> DreamEnvs:
    """Lanes in which about half of the chunks of an untrained policy succeed."""
    judge = LikesLarge(0.0)
    lanes = DreamEnvs(Dream(model, judge, SeededStarts(), DreamConfig(inverse_steps=1)), n, horizon=3)
    seen = lanes.reset(range(800_000, 800_000 + n), None)
    judge.threshold = float(np.median(JointPolicy(model, steps=3).act(seen, range(n)).mean((1, 2))))
    return lanes


class Calm:
    """Looks, and rings at the update it is told to."""

    def __init__(self, rings_at: int | None = None) -> None:
        self.looks, self.rings_at = 0, rings_at

    def check(self, model: WorldActionModel, horizon: int) -> Check:
        self.looks += 1
        return Check({"floor": 0.1 * self.looks}, "the judge is fooled" if self.looks == self.rings_at else None)

    def state(self) -> dict[str, Any]:
        return {"looks": self.looks}

    def load(self, state: dict[str, Any]) -> None:
        self.looks = state["looks"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_killed_run_goes_on_to_the_same_weights(tiny_model: WorldActionModel, tmp_path: Path, name: str) -> None:
    before = weights_hash(tiny_model)
    cfg = config(algorithm=name)

    def go(folder: Path, kill_after: int | None) -> Trainer:
        lanes = DreamEnvs(Dream(tiny_model, Fickle(0), SeededStarts(), DreamConfig(inverse_steps=1)), 8, horizon=3)
        run = Trainer(tiny_model, lanes, cfg, folder, monitor=Calm())

        def tell(done: int, numbers: dict[str, float]) -> None:
            if done == kill_after:
                raise KeyboardInterrupt

        if kill_after is None:
            run.run(tell)
        else:
            with pytest.raises(KeyboardInterrupt):
                run.run(tell)
        return run

    whole = go(tmp_path / "whole", None)
    go(tmp_path / "cut", 1)
    (tmp_path / "cut" / "state.pt.tmp").write_bytes(b"half a file")  # as a kill in mid-writing leaves it
    resumed = go(tmp_path / "cut", None)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.learner.state().values(), resumed.learner.state().values(), strict=True)
    )
    assert [r["return"] for r in whole.curve] == [r["return"] for r in resumed.curve]
    assert resumed.monitor.looks == whole.monitor.looks  # type: ignore[union-attr]
    files = [(tmp_path / n / "adapter" / "adapter_model.safetensors").read_bytes() for n in ("whole", "cut")]
    assert files[0] == files[1]
    assert weights_hash(tiny_model) == before, "the dream's weights moved"
    assert weights_hash(merged(tiny_model, tmp_path / "whole" / "adapter")) != before


def test_an_alarm_stops_training_and_keeps_the_adapter_from_before(
    tiny_model: WorldActionModel, tmp_path: Path
) -> None:
    run = Trainer(tiny_model, arena(tiny_model), config(updates=6, algorithm="filtered_bc"), tmp_path, monitor=Calm(2))
    adapter = run.run()
    assert "stopped after 2 updates" in run.alarm and "the judge is fooled" in run.alarm
    kept = merged(tiny_model, adapter)
    assert weights_hash(kept) == weights_hash(tiny_model), "the look before the alarm was at the untrained adapter"
    again = Trainer(tiny_model, arena(tiny_model), config(updates=6, algorithm="filtered_bc"), tmp_path, monitor=Calm())
    assert again.alarm == run.alarm


class Found:
    """A watcher that finds given rates of success, one per look."""

    def __init__(self, *rates: float) -> None:
        self.rates = list(rates)

    def check(self, model: WorldActionModel, horizon: int) -> Check:
        return Check({"held_out_success": self.rates.pop(0)}, None)

    def state(self) -> dict:
        return {}

    def load(self, state: dict) -> None:
        pass


@pytest.mark.parametrize(("rates", "kept"), [((0.5, 0.7, 0.6), 1), ((0.5, 0.4, 0.3), 0), ((0.5, 0.5, 0.5), 2)])
def test_the_best_policy_of_all_looks_is_kept(tiny_model: WorldActionModel, tmp_path: Path, rates, kept) -> None:
    cfg = config(updates=2, look_every=1, algorithm="filtered_bc")
    run = Trainer(tiny_model, arena(tiny_model), cfg, tmp_path / "a", monitor=Found(*rates))
    adapter = run.run()
    assert run.kept == kept
    began = weights_hash(merged(tiny_model, adapter)) == weights_hash(tiny_model)
    assert began == (kept == 0)
    again = Trainer(tiny_model, arena(tiny_model), cfg, tmp_path / "a", monitor=Found(*rates))
    assert (again.kept, again.best) == (run.kept, run.best)


@pytest.mark.slow
def test_the_loop_raises_the_imagined_success(tiny_model: WorldActionModel, tmp_path: Path) -> None:
    cfg = config(updates=8, groups=8, members=8, minibatch=64, lr=5e-3, epochs=3, horizon=1, target_kl=1e3)
    run = Trainer(tiny_model, arena(tiny_model, 64), cfg, tmp_path, monitor=None)
    run.run()
    rates = [row["success"] for row in run.curve]
    assert np.mean(rates[-2:]) > rates[0] + 0.1, rates
    assert run.curve[-1]["kl"] > 0


def test_settings_without_a_gradient_are_refused(tiny_model: WorldActionModel, tmp_path: Path) -> None:
    still = FlowGRPO(kernel=FlowKernel(kind="ode"))
    with pytest.raises(ImagineError, match="no random move"):
        Trainer(tiny_model, arena(tiny_model), config(algorithm="grpo", grpo=still), tmp_path, monitor=None)
    with pytest.raises(ImagineError, match="expected 2 or more"):
        Trainer(tiny_model, arena(tiny_model), config(members=1), tmp_path, monitor=None)
    (tmp_path / "state.pt").write_bytes(b"garbage")
    with pytest.raises(CheckpointMismatch, match="damaged"):
        Trainer(tiny_model, arena(tiny_model), config(), tmp_path, monitor=None)


@pytest.mark.parametrize("target", [0.01, 0.1, 1e3])
def test_an_update_leads_no_further_than_the_target(
    tiny_model: WorldActionModel, tmp_path: Path, target: float
) -> None:
    cfg = config(updates=1, lr=3e-2, epochs=3, target_kl=target, algorithm="filtered_bc")
    run = Trainer(tiny_model, arena(tiny_model), cfg, tmp_path, monitor=None)
    run.run()
    numbers = run.curve[0]
    assert 0 < numbers["step_kl"] <= 1.1 * target
    assert numbers["kl"] == pytest.approx(numbers["step_kl"], rel=1e-3), (
        "the first step leads away from where training began"
    )
    assert (numbers["step_share"] < 1) == (target < 1e3), "a step is shortened where it must be, and nowhere else"


def test_only_wanted_starts_are_practised(tiny_model: WorldActionModel, tmp_path: Path) -> None:
    cfg = config(updates=2)
    run = Trainer(tiny_model, arena(tiny_model), cfg, tmp_path, monitor=None, wanted=lambda seed: seed % 3 == 1)
    met: list[int] = []
    reset = run.envs.reset
    run.envs.reset = lambda seeds, told=None: (met.extend(seeds), reset(seeds, told))[1]  # type: ignore[method-assign]
    run.run()
    assert len(set(met)) == 8 and all(seed % 3 == 1 for seed in met)
    assert all(seed in cfg.start_seeds() for seed in met)
    nothing = Trainer(tiny_model, arena(tiny_model), cfg, tmp_path / "none", monitor=None, wanted=lambda seed: False)
    with pytest.raises(ImagineError, match="none of the start seeds"):
        nothing.run()


def test_a_survey_says_how_long_to_practise_and_what() -> None:
    def episodes(n: int, task: str, took: int, success: bool) -> list[EpisodeRecord]:
        return [EpisodeRecord(0, task, success, rewards=[0.0] * took) for _ in range(n)]

    never = episodes(4, "throw it", 4, False)
    some = episodes(3, "push it", 2, True) + episodes(3, "push it", 4, False) + episodes(2, "lift it", 1, True)
    found = survey([*some, *episodes(1, "lift it", 4, True), *never], lambda told: told.split()[0])
    assert found.horizon == 2, "three of six successes had come"
    assert found.success == {"lift": 2 / 3, "push": 0.5, "throw": 0}
    assert found.practised == ("lift", "push") and "not practised: throw" in str(found)
    assert survey(never, str).horizon == 4 and survey(never, str).practised == ("throw it",), "all where there is none"
    always = survey([*some, *episodes(2, "push it", 2, True), *episodes(2, "hold it", 1, True)], str)
    assert always.practised == ("push it",), "nor is anything learnt where all succeed"


# ---------------------------------------------------------------------- adapters
def test_an_adapter_goes_on_where_it_was_saved(tiny_model: WorldActionModel, tmp_path: Path) -> None:
    first = Learner(tiny_model, rank=4, seed=1)
    with torch.no_grad():
        for value in first.parameters().values():
            value.add_(0.05)
    folder = first.save(tmp_path / "adapter")
    second = Learner(tiny_model, start=folder)
    assert second.rank == 4
    obs: Sequence[int] = [3, 4]
    context = lanes_context(tiny_model)
    x = torch.randn(2, *tiny_model.chunk_shapes["action"])
    with torch.no_grad():
        inside = velocity(second.model, context, x, 1.0)
        added = velocity(merged(tiny_model, folder), context, x, 1.0)
        base = velocity(tiny_model, context, x, 1.0)
    torch.testing.assert_close(inside, added, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(inside, base, atol=1e-3) and len(obs) == 2
    with pytest.raises(CheckpointMismatch, match="made for another"):
        second.load(Learner(tiny_model, rank=2).state())


def lanes_context(model: WorldActionModel) -> Any:
    lanes = envs_of(model)
    return JointPolicy(model).context(lanes.reset([1, 2], None))
