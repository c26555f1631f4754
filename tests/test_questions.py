"""The five questions, asked of a world whose answers are known in closed form. Nothing here is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import LinearGaussianWorld, StillModel, flat
from torch import Tensor

from imagine.noise import Shares, clean_from_velocity, draw_levels, mix, schedule, velocity_from_clean
from imagine.questions import DYNAMICS, INVERSE, JOINT, POLICY, QUESTIONS, VIDEO, Question
from imagine.sampler import draw_noise, sample
from imagine.types import Chunk, ImagineError, NoiseLevels, ShapeError, UntrainedQuestion

O = [0.5, -1.0]  # noqa: E741
ACTION = torch.tensor([0.3, -0.8], dtype=torch.float64)
NEXT = torch.tensor([1.1, -0.6, 0.4], dtype=torch.float64)  # two latents, one proprioceptive number
A, V = slice(0, 2), slice(2, 5)
LANES, STEPS = 20_000, 80
SIGMAS = 4.5  # a check of about 100 numbers fails by chance once in a thousand runs; seeds are fixed anyway


def given(question: Question, lanes: int) -> dict[str, Tensor]:
    """What the question must be given, the same in every lane."""
    out = {}
    if "action" in question.given:
        out["action"] = ACTION.view(1, 2, 1).repeat(lanes, 1, 1)
    if "video" in question.given:
        out["video"] = NEXT[:2].view(1, 1, 2, 1, 1).repeat(lanes, 1, 1, 1, 1)
        out["proprio"] = NEXT[2:].view(1, 1, 1).repeat(lanes, 1, 1)
    return out


def truth(world: LinearGaussianWorld, question: Question) -> tuple[Tensor, Tensor]:
    """Mean and covariance of what the question generates, by conditioning a Gaussian."""
    one = world.context(O, 1)
    if question is DYNAMICS:
        return world.conditional(one, V, A, ACTION)
    if question is INVERSE:
        return world.conditional(one, A, V, NEXT)
    keep = {"POLICY": A, "VIDEO": V, "JOINT": slice(0, 5)}[question.name]
    return world.mean(one)[0, keep], world.covariance()[keep, keep]


def generated(question: Question, chunk: Chunk) -> Tensor:
    """(B, n) of the modalities that were generated."""
    if "action" in question.given:
        chunk = Chunk(video=chunk.video, proprio=chunk.proprio)
    if "video" in question.given:
        chunk = Chunk(action=chunk.action)
    return flat(chunk)


def noise_rows(z: Tensor) -> Chunk:
    """(B, 5) as the initial noise of a chunk."""
    return Chunk(action=z[:, :2, None], video=z[:, 2:4].reshape(-1, 1, 2, 1, 1), proprio=z[:, 4:].reshape(-1, 1, 1))


def euler_moments(world: LinearGaussianWorld, question: Question, steps: int) -> tuple[Tensor, Tensor]:
    """Exact moments of the sampler's output: it is affine in its noise, so unit vectors as noise reveal the map."""
    z = torch.cat([torch.zeros(1, 5), torch.eye(5)]).double()
    out = sample(world, question, world.context(O, 6), steps=steps, noise=noise_rows(z), **given(question, 6))
    y = generated(question, out)
    columns = (y[1:] - y[0]).T
    return y[0], columns @ columns.T


def standard_errors(cov: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Of the sample mean and the sample covariance of n Gaussian draws."""
    var = cov.diagonal()
    return (var / n).sqrt(), ((var[:, None] * var + cov**2) / n).sqrt()


def assert_moments(y: Tensor, mean: Tensor, cov: Tensor, slack: tuple[Tensor, Tensor]) -> None:
    """Sample moments agree up to chance plus ``slack`` (the discretisation)."""
    se_mean, se_cov = standard_errors(cov, len(y))
    assert ((y.mean(0) - mean).abs() <= SIGMAS * se_mean + slack[0]).all()
    assert ((torch.cov(y.T) - cov).abs() <= SIGMAS * se_cov + slack[1]).all()


def discretisation(world: LinearGaussianWorld, question: Question, steps: int) -> tuple[Tensor, Tensor]:
    """How far Euler with so many steps is from the continuous answer, entry by entry."""
    return tuple(
        (a - b).abs() for a, b in zip(euler_moments(world, question, steps), truth(world, question), strict=True)
    )


# ---------------------------------------------------------------------- what the questions answer
@pytest.mark.parametrize("name", QUESTIONS)
def test_question_matches_its_closed_form_conditional(name: str) -> None:
    world, question = LinearGaussianWorld(), QUESTIONS[name]
    mean, cov = truth(world, question)
    slack = discretisation(world, question, STEPS)
    # Euler is of first order: a bias of about 1/STEPS of the spread, never more than a few of these.
    assert slack[0].max() < 3 / STEPS * cov.diagonal().max().sqrt() and slack[1].max() < 6 / STEPS * cov.abs().max()
    generator = torch.Generator().manual_seed(1)
    context = world.context(O, LANES)
    out = sample(world, question, context, steps=STEPS, generator=generator, **given(question, LANES))
    assert_moments(generated(question, out), mean, cov, slack)


@pytest.mark.parametrize("name", QUESTIONS)
def test_answer_converges_to_the_truth_as_steps_grow(name: str) -> None:
    world, question = LinearGaussianWorld(), QUESTIONS[name]
    coarse, fine = (torch.cat([e.flatten() for e in discretisation(world, question, n)]) for n in (100, 200))
    assert fine.max() < 0.6 * coarse.max()  # first order: half the step, half the error
    moments = [euler_moments(world, question, n) for n in (100, 200)]
    for a, b, want in zip(*moments, truth(world, question), strict=True):
        extrapolated = 2 * b - a  # what is left is of second order
        assert (extrapolated - want).abs().max() < 20 / 100**2 * want.abs().max()


def test_questions_tell_different_things() -> None:
    """The oracle has power: conditioning moves means by more than any tolerance above."""
    world = LinearGaussianWorld()
    mean, cov = truth(world, JOINT)
    for question, part in ((DYNAMICS, V), (INVERSE, A)):
        conditional, narrower = truth(world, question)
        assert (conditional - mean[part]).abs().max() > 0.2
        assert (narrower.diagonal() < 0.8 * cov.diagonal()[part]).all()


def test_the_square_commutes() -> None:
    world = LinearGaussianWorld()
    context = world.context(O, LANES)
    g = torch.Generator().manual_seed(2)

    def ask(question: Question, **clean: Any) -> Chunk:
        return sample(world, question, context, steps=STEPS, generator=g, **clean)

    a = ask(POLICY).action
    v = ask(VIDEO)
    ways = {
        "policy then dynamics": ask(DYNAMICS, action=a),
        "video then inverse": ask(INVERSE, video=v.video, proprio=v.proprio),
        "joint": ask(JOINT),
    }
    mean, cov = truth(world, JOINT)
    # Two passes carry the discretisation of each, in every entry; the first order bound of the test above.
    slack = 3 / STEPS * cov.diagonal().max().sqrt(), 2 * 6 / STEPS * cov.abs().max()
    for way, chunk in ways.items():
        try:
            assert_moments(flat(chunk), mean, cov, slack)
        except AssertionError as error:
            raise AssertionError(f"{way} gives another distribution") from error


def test_oracle_velocity_is_the_same_for_lanes_at_different_levels() -> None:
    world, g = LinearGaussianWorld(), torch.Generator().manual_seed(0)
    noisy, context = noise_rows(torch.randn(3, 5, generator=g).double()), world.context(O, 3)
    levels = NoiseLevels(torch.tensor([0.2, 1.0, 0.0]).double(), torch.tensor([0.9, 0.0, 0.4]).double())
    together = flat(world.velocity(noisy, levels, context, None))
    for i in range(3):
        alone = world.velocity(noisy.index([i]), levels.index([i]), context.index([i]), None)
        torch.testing.assert_close(together[i : i + 1], flat(alone))


def test_oracle_velocity_is_the_regression_of_noise_minus_clean() -> None:
    """Among linear functions of (x, 1), the conditional expectation leaves a residual that x cannot explain."""
    world, n, g = LinearGaussianWorld(), 200_000, torch.Generator().manual_seed(0)
    context = world.context(O, n)
    clean = world.mean(context) + torch.randn(n, 5, generator=g).double() @ torch.linalg.cholesky(world.covariance()).T
    eps = torch.randn(n, 5, generator=g).double()
    sigma = torch.tensor([0.7] * 2 + [0.4] * 3).double()
    x = (1 - sigma) * clean + sigma * eps
    levels = NoiseLevels(torch.full((n,), 0.4).double(), torch.full((n,), 0.7).double())
    residual = eps - clean - flat(world.velocity(noise_rows(x), levels, context, None))
    centred = x - x.mean(0)
    correlation = (residual.T @ centred / n) / (residual.std(0)[:, None] * centred.std(0))
    assert correlation.abs().max() < SIGMAS / n**0.5
    assert (residual.mean(0).abs() < SIGMAS * residual.std(0) / n**0.5).all()


def test_absent_modality_is_marginalised_not_zeroed() -> None:
    """POLICY with the video absent is p(a | o): its covariance is wider than p(a | o, o')."""
    world = LinearGaussianWorld()
    _, alone = euler_moments(world, POLICY, STEPS)
    _, informed = euler_moments(world, INVERSE, STEPS)
    assert (alone.diagonal() > 1.2 * informed.diagonal()).all()


@pytest.mark.parametrize("name", QUESTIONS)
def test_what_is_ignored_is_absent_and_what_takes_part_is_there(name: str) -> None:
    world, question = LinearGaussianWorld(), QUESTIONS[name]
    out = sample(world, question, world.context(O, 2), steps=2, seeds=[0, 1], **given(question, 2))
    assert (out.action is not None) == question.has_action
    assert (out.video is not None) == (out.proprio is not None) == question.has_video


# ---------------------------------------------------------------------- what is given
def test_clean_action_is_never_changed_by_dynamics() -> None:
    world, clean = LinearGaussianWorld(), given(DYNAMICS, 3)
    before = clean["action"].clone()
    out = sample(world, DYNAMICS, world.context(O, 3), steps=5, seeds=[0, 1, 2], **clean)
    assert torch.equal(out.action, before) and torch.equal(clean["action"], before)


def test_clean_video_is_never_changed_by_inverse() -> None:
    world, clean = LinearGaussianWorld(), given(INVERSE, 3)
    out = sample(world, INVERSE, world.context(O, 3), steps=5, seeds=[0, 1, 2], **clean)
    assert torch.equal(out.video, clean["video"]) and torch.equal(out.proprio, clean["proprio"])


SUPERFLUOUS = [(POLICY, "action"), (POLICY, "video"), (DYNAMICS, "video"), (INVERSE, "action"), (JOINT, "proprio")]
MISSING = [(DYNAMICS, "action"), (INVERSE, "video"), (INVERSE, "proprio")]


@pytest.mark.parametrize(("question", "extra"), SUPERFLUOUS, ids=lambda x: getattr(x, "name", x))
def test_superfluous_modality_is_refused_in_one_sentence(question: Question, extra: str) -> None:
    world = LinearGaussianWorld()
    clean = given(question, 2) | {extra: torch.zeros(2, *world.chunk_shapes[extra])}
    with pytest.raises(ShapeError, match=f"^{question.name} does not take a clean {extra}; drop `{extra}=`") as caught:
        sample(world, question, world.context(O, 2), **clean)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("question", "absent"), MISSING, ids=lambda x: getattr(x, "name", x))
def test_missing_modality_is_refused_in_one_sentence(question: Question, absent: str) -> None:
    world = LinearGaussianWorld()
    clean = {k: v for k, v in given(question, 2).items() if k != absent}
    with pytest.raises(ShapeError, match=f"^{question.name} needs a clean {absent}; give `{absent}=`") as caught:
        sample(world, question, world.context(O, 2), **clean)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(2, 1, 2), (3, 2, 1), (2, 2), (1, 2, 1)])
def test_given_modality_of_the_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    world = LinearGaussianWorld()
    with pytest.raises(ShapeError, match=r"action has shape .*expected \(2, 2, 1\)"):
        sample(world, DYNAMICS, world.context(O, 2), action=torch.zeros(shape))


@pytest.mark.parametrize("name", ["DYNAMICS", "INVERSE", "POLICY", "VIDEO"])
def test_model_trained_with_coupled_noise_refuses_what_it_never_saw(name: str) -> None:
    world, question = LinearGaussianWorld(answers=frozenset({JOINT})), QUESTIONS[name]
    with pytest.raises(UntrainedQuestion) as caught:
        sample(world, question, world.context(O, 2), **given(question, 2))
    message = str(caught.value)
    assert "answers JOINT" in message and name in message
    assert "Fine-tune" in message and "model.answers" in message  # the remedy
    assert isinstance(caught.value, ImagineError)
    assert world.prefills == 0  # refused before any work
    sample(world, JOINT, world.context(O, 2), steps=1)


@pytest.mark.parametrize("steps", [0, -1])
def test_fewer_than_one_step_is_refused(steps: int) -> None:
    world = LinearGaussianWorld()
    with pytest.raises(ShapeError, match=f"steps is {steps}, expected at least 1"):
        sample(world, POLICY, world.context(O, 2), steps=steps)


# ---------------------------------------------------------------------- noise and seeds
@pytest.mark.parametrize("name", QUESTIONS)
def test_same_seeds_give_the_same_bytes(name: str) -> None:
    world, question = LinearGaussianWorld(), QUESTIONS[name]
    first, again, other = (
        flat(sample(world, question, world.context(O, 3), steps=3, seeds=s, **given(question, 3)))
        for s in ([7, 8, 9], [7, 8, 9], [7, 8, 10])
    )
    assert torch.equal(first, again)
    assert torch.equal(first[:2], other[:2]) and not torch.equal(first[2], other[2])


def test_noise_of_a_lane_does_not_depend_on_its_batch() -> None:
    still = StillModel()
    context = LinearGaussianWorld().context(O, 4)
    batch = flat(sample(still, JOINT, context, seeds=[3, 14, 15, 92]))
    alone = [flat(sample(still, JOINT, context.index([i]), seeds=[s])) for i, s in enumerate([3, 14, 15, 92])]
    assert torch.equal(batch, torch.cat(alone))
    assert len(batch.unique()) == batch.numel()  # no two numbers of any lane or modality come from one stream


def test_answer_of_a_lane_does_not_depend_on_its_batch() -> None:
    world = LinearGaussianWorld()
    batch = flat(sample(world, JOINT, world.context(O, 3), steps=4, seeds=[3, 14, 15]))
    alone = flat(sample(world, JOINT, world.context(O, 1), steps=4, seeds=[14]))
    torch.testing.assert_close(batch[1:2], alone, rtol=0, atol=1e-12)


def test_action_noise_is_the_same_whether_or_not_video_is_sampled() -> None:
    still, context = StillModel(), LinearGaussianWorld().context(O, 2)
    policy, joint = (sample(still, q, context, seeds=[5, 6]) for q in (POLICY, JOINT))
    assert torch.equal(policy.action, joint.action)


def test_seeds_of_another_number_than_lanes_are_refused() -> None:
    world = LinearGaussianWorld()
    with pytest.raises(ShapeError, match="got 3 seeds for 2 rows"):
        sample(world, POLICY, world.context(O, 2), seeds=[1, 2, 3])


def test_generator_draws_the_whole_batch_reproducibly() -> None:
    a, b = (draw_noise((2, 1), 3, None, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(a, b) and a.shape == (3, 2, 1)


def test_noise_given_explicitly_is_used_and_the_rest_is_drawn() -> None:
    still, context = StillModel(), LinearGaussianWorld().context(O, 2)
    mine = torch.arange(4.0).view(2, 2, 1).double()
    out = sample(still, JOINT, context, noise=Chunk(action=mine), seeds=[5, 6])
    assert torch.equal(out.action, mine)
    assert torch.equal(out.video, sample(still, JOINT, context, seeds=[5, 6]).video)


def test_explicit_noise_of_the_wrong_shape_is_refused() -> None:
    still, context = StillModel(), LinearGaussianWorld().context(O, 2)
    with pytest.raises(ShapeError, match=r"noise for action has shape \(1, 2, 1\), expected \(2, 2, 1\)"):
        sample(still, POLICY, context, noise=Chunk(action=torch.zeros(1, 2, 1)))


def test_given_cache_spares_the_prefill() -> None:
    world = LinearGaussianWorld()
    context = world.context(O, 2)
    sample(world, POLICY, context, cache=world.prefill(context))
    assert world.prefills == 1


def test_callback_sees_every_step_and_the_last_is_the_answer() -> None:
    world, seen = LinearGaussianWorld(), []
    out = sample(world, POLICY, world.context(O, 2), steps=3, callback=lambda k, chunk: seen.append((k, chunk.action)))
    assert [k for k, _ in seen] == [0, 1, 2] and torch.equal(seen[-1][1], out.action)


# ---------------------------------------------------------------------- noise levels
def test_schedule_goes_from_noise_to_clean_and_shift_dwells_in_noise() -> None:
    plain, shifted = schedule(8), schedule(8, 3.0)
    for grid in (plain, shifted):
        assert grid[0] == 1 and grid[-1] == 0 and (grid.diff() < 0).all()
    torch.testing.assert_close(plain, torch.linspace(1, 0, 9))
    assert (shifted[1:-1] > plain[1:-1]).all()


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0])
def test_velocity_of_the_true_clean_sample_is_noise_minus_clean(sigma: float) -> None:
    clean, eps = torch.randn(2, 3, 4, 1, generator=torch.Generator().manual_seed(0)).double().unbind(0)
    level = torch.full((3,), sigma).double()
    noisy = mix(clean, eps, level)
    torch.testing.assert_close(velocity_from_clean(noisy, clean, level), eps - clean)
    torch.testing.assert_close(clean_from_velocity(noisy, eps - clean, level), clean)


@pytest.mark.parametrize("sigma", [0.0, 0.01, 0.04])
def test_true_velocity_gives_the_clean_sample_even_when_almost_nothing_is_noisy(sigma: float) -> None:
    clean, eps = torch.ones(2, 3).double(), torch.full((2, 3), -2.0).double()
    level = torch.full((2,), sigma).double()
    torch.testing.assert_close(clean_from_velocity(mix(clean, eps, level), eps - clean, level), clean)


def test_training_draws_cover_every_edge_of_the_square() -> None:
    n = 20_000
    shares = {"dynamics": 0.4, "inverse": 0.2, "joint": 0.3, "free": 0.1}
    levels = draw_levels(n, Shares(**shares), video_shift=3.0, generator=torch.Generator().manual_seed(0))
    v, a = levels.video, levels.action
    assert ((v >= 0) & (v <= 1) & (a >= 0) & (a <= 1)).all()
    # Where FREE hits both corners at once (video and action pure noise) it looks like JOINT.
    share = {"dynamics": a == 0, "inverse": v == 0, "joint": a == v}
    extra = {"joint": 0.1 * 0.15**2}
    for name, where in share.items():
        p = shares[name] + extra.get(name, 0.0)
        assert abs(where.float().mean().item() - p) < SIGMAS * (p * (1 - p) / n) ** 0.5, name
    for name, level in {"DYNAMICS": v[a == 0], "INVERSE": a[v == 0], "JOINT": v[a == v]}.items():
        assert (level == 1).float().mean() > 0.1, f"{name} never starts where its sampler starts"
        assert level.min() < 0.1, f"{name} never comes near the end of its path"
