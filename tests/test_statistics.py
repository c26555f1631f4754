"""Every interval against a closed form, scipy or a worked example, and its coverage: exact, or over 2,000 draws."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy.stats import binom, binomtest, kendalltau, norm, pearsonr, spearmanr

from imagine.agents.agreement import MEASURES, agreement, kendall, mmrv, pairs, pearson, regret, rmse, spearman
from imagine.agents.correction import ppi_mean, required_real_trials, rogan_gladen, trials_to_tell_apart
from imagine.agents.statistics import (
    Interval,
    betting_interval,
    mcnemar,
    mean_interval,
    paired_difference,
    success_rate,
    unpaired_difference,
)
from imagine.types import ImagineError

DRAWS = 2000


@pytest.fixture(autouse=True)
def _no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def covers(interval: Interval, truth: float) -> bool:
    return interval.low - 1e-9 <= truth <= interval.high + 1e-9


def counts(k: int, n: int) -> np.ndarray:
    """(n,) outcomes with k successes."""
    return np.arange(n) < k


def correlated(rng: np.random.Generator, p: float, q: float, rho: float, size: tuple[int, ...]) -> np.ndarray:
    """(2, *size) Bernoulli(p) and Bernoulli(q), correlated as far as their rates let them."""
    both = np.clip(p * q + rho * math.sqrt(p * (1 - p) * q * (1 - q)), max(0, p + q - 1), min(p, q))
    cell = rng.choice(4, size=size, p=[both, p - both, q - both, 1 - p - q + both])
    return np.stack([cell < 2, (cell == 0) | (cell == 2)])


def zoo(rng: np.random.Generator, real: np.ndarray, imagined: np.ndarray, starts: int) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes (P, S) in both worlds; half of the luck is the start's, a quarter the policy's on that start."""
    shape = len(real), starts
    luck = rng.standard_normal((1, starts)) * math.sqrt(0.5) + rng.standard_normal(shape) * 0.5
    return tuple(luck + 0.5 * rng.standard_normal(shape) < norm.ppf(rates)[:, None] for rates in (real, imagined))


# ---------------------------------------------------------------------- one rate, one mean
def test_clopper_pearson_solves_its_two_equations() -> None:
    got = success_rate(counts(15, 50), exact=True)
    assert binom.sf(14, 50, got.low) == pytest.approx(0.025, rel=1e-6)
    assert binom.cdf(15, 50, got.high) == pytest.approx(0.025, rel=1e-6)
    assert success_rate(counts(0, 50), exact=True).low == 0


@pytest.mark.parametrize("n", [20, 50, 100])
def test_coverage_of_a_rate(n: int) -> None:
    p = np.linspace(0.02, 0.98, 193)
    weight = binom.pmf(np.arange(n + 1)[:, None], n, p)

    def coverage(exact: bool) -> np.ndarray:
        got = [success_rate(counts(k, n), exact=exact) for k in range(n + 1)]
        return (weight * np.array([[covers(i, x) for x in p] for i in got])).sum(0)

    assert coverage(exact=True).min() >= 0.95  # whatever the rate
    assert coverage(exact=False).mean() >= 0.945 and coverage(exact=False).min() >= 0.89  # on average; Wilson dips


def test_betting_interval_of_outcomes_in_other_units() -> None:
    x = np.random.default_rng(0).random(60)
    unit, percent = betting_interval(x), betting_interval(100 * x - 50, bounds=(-50, 50))
    assert [percent.value, percent.low, percent.high] == pytest.approx(
        [100 * v - 50 for v in (unit.value, unit.low, unit.high)]
    )
    assert 0 <= unit.low < unit.value < unit.high <= 1


def test_betting_interval_only_shrinks_while_trials_come_in() -> None:
    x = np.random.default_rng(1).random(120) < 0.7
    got = [betting_interval(x[:n]) for n in range(1, 121)]
    assert (np.diff([i.low for i in got]) >= -1e-8).all() and (np.diff([i.high for i in got]) <= 1e-8).all()


def test_betting_interval_rules_out_what_the_definition_rules_out() -> None:
    """The capital process written out, for one candidate mean a little below and a little above each end."""
    x = (np.random.default_rng(2).random(80) < 0.6).astype(float)

    def capital(x: np.ndarray, m: float) -> float:
        money, most, total, squares = 1.0, 0.0, 0.5, 0.25
        for t, value in enumerate(x, 1):
            variance = squares / t  # of what came before
            stake = math.sqrt(2 * math.log(2 / 0.05) / (variance * t * math.log(t + 1)))
            money *= 1 + min(stake, 0.5 / m) * (value - m)
            most = max(most, money)
            total += value
            squares += (value - total / (t + 1)) ** 2
        return most

    got = betting_interval(x)
    assert got.low > 0 and got.high < 1
    assert capital(x, got.low - 0.01) > 40 > capital(x, got.low + 0.01)
    assert capital(1 - x, 1 - got.high - 0.01) > 40 > capital(1 - x, 1 - got.high + 0.01)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_coverage_of_betting_at_any_time(p: float) -> None:
    """The interval is the intersection of all before it, so covering at the end is covering at every time."""
    outcomes = np.random.default_rng(0).random((DRAWS, 60)) < p
    assert np.mean([covers(betting_interval(x), p) for x in outcomes]) >= 0.95


@pytest.mark.parametrize("k", [10, 20])
def test_coverage_of_an_expanded_mean_of_clusters(k: int) -> None:
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(k), 3)
    values = np.repeat(rng.normal(size=(DRAWS, k)), 3, 1) + rng.normal(size=(DRAWS, 3 * k))
    assert np.mean([covers(mean_interval(x, labels, expanded=True), 0) for x in values]) >= 0.94


def test_mean_interval_says_what_does_not_fit() -> None:
    for values, labels in (([], None), ([1.0, 2.0], [0])):
        with pytest.raises(ImagineError, match="one cluster label per value"):
            mean_interval(values, labels)


# ---------------------------------------------------------------------- two policies
def test_newcombe_is_the_papers_worked_example() -> None:
    """56/70 against 48/80, Newcombe (1998) table II (a), method 10: 0.0524 to 0.3339."""
    got = unpaired_difference(counts(56, 70), counts(48, 80))
    assert [got.value, got.low, got.high] == pytest.approx([0.2, 0.0524, 0.3339], abs=5e-5)


def test_coverage_of_an_unpaired_difference() -> None:
    n, m = 20, 30
    got = [[unpaired_difference(counts(i, n), counts(j, m)) for j in range(m + 1)] for i in range(n + 1)]
    low, high = (np.array([[getattr(i, end) for i in row] for row in got]) for end in ("low", "high"))
    found = []
    for p in np.linspace(0.1, 0.9, 9):
        for q in np.linspace(0.1, 0.9, 9):
            weight = np.outer(binom.pmf(range(n + 1), n, p), binom.pmf(range(m + 1), m, q))
            found.append(weight[(low <= p - q) & (p - q <= high)].sum())
    assert np.mean(found) >= 0.945 and min(found) >= 0.92


@pytest.mark.parametrize(("p", "q", "rho"), [(0.6, 0.4, 0.7), (0.9, 0.9, 0.3), (0.5, 0.1, 0.0)])
def test_coverage_of_a_paired_difference(p: float, q: float, rho: float) -> None:
    after, before = correlated(np.random.default_rng(0), p, q, rho, (DRAWS, 40))
    assert np.mean([covers(paired_difference(a, b), p - q) for a, b in zip(after, before, strict=True)]) >= 0.94


def test_mcnemar_counts_only_starts_on_which_they_differ() -> None:
    after, before = counts(30, 50), np.roll(counts(30, 50), 9)  # 9 gained, 9 lost
    assert mcnemar(after, before) == 1
    after, before = counts(38, 50), counts(30, 50)  # 8 gained, none lost
    assert mcnemar(after, before) == pytest.approx(2 * 0.5**8)
    assert mcnemar(after, after) == 1


def test_libraries_give_what_the_formulas_give() -> None:
    rng = np.random.default_rng(0)
    for n, m in rng.integers(1, 60, (50, 2)):
        i, j = rng.integers(0, n + 1), rng.integers(0, m + 1)
        a, b = success_rate(counts(i, n)), success_rate(counts(j, m))
        low, high = np.hypot(a.value - a.low, b.high - b.value), np.hypot(a.high - a.value, b.value - b.low)
        got = unpaired_difference(counts(i, n), counts(j, m))
        assert (got.value, got.n) == (a.value - b.value, n + m)
        assert abs(got.value - low - got.low) < 1e-9 and abs(got.value + high - got.high) < 1e-9
        after, before = rng.random((2, n)) < 0.5
        gained, lost = (after & ~before).sum(), (before & ~after).sum()
        wanted = binomtest(int(gained), int(gained + lost)).pvalue if gained + lost else 1.0
        assert abs(mcnemar(after, before) - wanted) < 1e-9


def test_paired_outcomes_of_different_lengths_are_refused() -> None:
    for f in (paired_difference, mcnemar):
        with pytest.raises(ImagineError, match="same starts in the same order"):
            f([True, False], [True])


# ---------------------------------------------------------------------- agreement: values
def test_measures_are_scipys() -> None:
    rng = np.random.default_rng(0)
    for a, b in rng.integers(0, 6, (20, 2, 7)) / 5:  # with many ties
        for ours, scipys in ((pearson, pearsonr), (spearman, spearmanr), (kendall, kendalltau)):
            assert ours(a, b) == pytest.approx(scipys(a, b).statistic)


def test_measures_of_a_worked_example() -> None:
    real, imagined = np.array([0.9, 0.5, 0.4, 0.1]), np.array([0.5, 0.6, 0.2, 0.3])
    # the first pair is swapped (real gap 0.4), and so is the last (0.3); four of six pairs stand
    assert mmrv(real, imagined) == pytest.approx((0.4 + 0.4 + 0.3 + 0.3) / 4)
    assert pairs(real, imagined) == pytest.approx(4 / 6)
    assert regret(real, imagined) == pytest.approx(0.4)
    assert rmse(real, imagined) == pytest.approx(math.sqrt((0.16 + 0.01 + 0.04 + 0.04) / 4))
    assert agreement(real, imagined)["bias"].value == pytest.approx(-0.075)
    # mmrv blames real gaps: swapping the worlds swaps what is lost
    assert mmrv(imagined, real) == pytest.approx((0.1 + 0.1 + 0.1 + 0.1) / 4)


def test_mmrv_by_the_papers_double_loop() -> None:
    rng = np.random.default_rng(1)
    for r, s in rng.integers(0, 6, (20, 2, 6)) / 5:
        violations = [
            [abs(a - b) * ((x > y) != (a > b)) for b, y in zip(r, s, strict=True)] for a, x in zip(r, s, strict=True)
        ]
        assert mmrv(r, s) == pytest.approx(np.mean(np.max(violations, axis=1)))


def test_perfect_agreement_has_perfect_values() -> None:
    rates = np.array([0.1, 0.4, 0.7, 0.8])
    got = {k: i.value for k, i in agreement(rates, rates).items()}
    best = {"pearson": 1, "spearman": 1, "kendall": 1, "mmrv": 0, "pairs": 1, "regret": 0, "bias": 0, "rmse": 0}
    assert got == pytest.approx(best) and tuple(got) == MEASURES


def test_ties_for_best_share_the_regret_and_half_the_pair() -> None:
    real, imagined = np.array([0.8, 0.4, 0.2]), np.array([0.6, 0.6, 0.1])
    assert regret(real, imagined) == pytest.approx(0.8 - 0.6)
    assert pairs(real, imagined) == pytest.approx(2.5 / 3)


def test_same_starts_in_both_worlds_are_resampled_together() -> None:
    """Worlds that agree on every start have no bias, however few starts there are."""
    real = np.random.default_rng(0).random((4, 30)) < np.array([[0.1], [0.4], [0.6], [0.9]])
    got = agreement(real, real)
    assert (got["bias"].low, got["bias"].high) == (0, 0) and got["bias"].n == 30
    torn = agreement(real, np.stack([np.roll(row, 7) for row in real]))  # same rates, other starts
    assert torn["bias"].high - torn["bias"].low > 0.1


def test_agreement_is_the_same_for_the_same_seed() -> None:
    real, imagined = zoo(np.random.default_rng(0), np.array([0.2, 0.5, 0.8]), np.array([0.3, 0.4, 0.6]), 40)
    assert agreement(real, imagined, seed=3) == agreement(real, imagined, seed=3)
    assert agreement(real, imagined, seed=3) != agreement(real, imagined, seed=4)


def test_a_constant_side_leaves_correlations_undefined() -> None:
    real, flat = np.array([0.1, 0.3, 0.5, 0.7]), np.full(4, 0.3)
    for got in (agreement(real, flat), agreement(np.tile(np.eye(4, dtype=bool), 5), np.ones((4, 20), bool))):
        for k in ("pearson", "spearman", "kendall"):
            assert np.isnan([got[k].value, got[k].low, got[k].high]).all()
        for k in ("mmrv", "pairs", "regret", "bias", "rmse"):
            assert got[k].low <= got[k].value <= got[k].high


def test_rates_alone_say_nothing_about_a_maximum_over_this_zoo() -> None:
    got = agreement(np.linspace(0.1, 0.8, 8), np.linspace(0.2, 0.7, 8) ** 2)
    assert all((got[k].low, got[k].high) == (0, 1) for k in ("mmrv", "regret"))
    assert got["pearson"].high - got["pearson"].low < 0.3 and got["pearson"].n == 8


def test_other_policies_of_the_kind_are_less_certain_than_these() -> None:
    rng = np.random.default_rng(0)
    real, imagined = zoo(
        rng, np.linspace(0.1, 0.9, 8), np.clip(np.linspace(0.1, 0.9, 8) + rng.normal(0, 0.1, 8), 0, 1), 100
    )
    these, others = agreement(real, imagined), agreement(real, imagined, policies=True)
    assert these["mmrv"] == others["mmrv"]
    for k in ("pearson", "bias", "pairs"):
        assert others[k].low < these[k].low and others[k].high >= these[k].high


@pytest.mark.parametrize(
    ("real", "imagined", "says"),
    [
        ([0.1, 0.2], [0.1, 0.2], "pearson of 2 policies, expected at least 3"),
        ([0.1, 0.2, 0.3], [0.1, 0.2], "same policies on the same starts"),
        (np.zeros((3, 0)), np.zeros((3, 0)), "0 episodes"),
        ([0.1, np.nan, 0.3], [0.1, 0.2, 0.3], "Real holds 1 NaN"),
        ([[1, 0], [1]], [[1, 0], [1]], "not a rectangular array"),
        (np.zeros((2, 2, 2)), np.zeros((2, 2, 2)), "expected 1 or 2 axes"),
        ([10, 20, 30], [0.1, 0.2, 0.3], "Divide percentages by 100"),
        (np.zeros((3, 1)), np.zeros((3, 1)), "1 start, expected at least 2"),
    ],
)
def test_agreement_refuses_what_it_cannot_answer(real: np.ndarray, imagined: np.ndarray, says: str) -> None:
    with pytest.raises(ImagineError, match=says):
        agreement(real, imagined)


def test_two_policies_have_what_needs_no_correlation() -> None:
    got = agreement([0.2, 0.6], [0.3, 0.5], measures=("bias", "rmse", "pairs"))
    assert got["pairs"].value == 1 and got["bias"].value == pytest.approx(0)
    with pytest.raises(ImagineError, match="Unknown measure 'r2'"):
        agreement([0.2, 0.6], [0.3, 0.5], measures=("r2",))


# ---------------------------------------------------------------------- agreement: coverage
ORDERED = np.linspace(0.1, 0.9, 6), np.linspace(0.15, 0.75, 6)
SWAPPED = np.linspace(0.1, 0.9, 5), np.array([0.3, 0.15, 0.6, 0.75, 0.6])
CLOSE = np.linspace(0.4, 0.6, 6), np.linspace(0.35, 0.6, 6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rates", "starts"), [(ORDERED, 30), (SWAPPED, 60), (CLOSE, 30)], ids=["ordered", "swapped", "close"]
)
def test_coverage_of_agreement_over_starts(rates: tuple[np.ndarray, np.ndarray], starts: int) -> None:
    rng, inside, defined = np.random.default_rng(0), dict.fromkeys(MEASURES, 0), dict.fromkeys(MEASURES, 0)
    truth = {k: i.value for k, i in agreement(*rates).items()}
    for _ in range(DRAWS):
        for k, i in agreement(*zoo(rng, *rates, starts), draws=200).items():
            defined[k] += not math.isnan(i.value)
            inside[k] += covers(i, truth[k])
    assert {k: inside[k] / defined[k] for k in MEASURES if inside[k] < 0.94 * defined[k]} == {}


@pytest.mark.slow
def test_coverage_of_agreement_over_policies() -> None:
    rng, rho, count = np.random.default_rng(0), 0.7, 10

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        a, b = rng.standard_normal((2, n))
        return norm.cdf(0.8 * a), norm.cdf(0.8 * (rho * a + math.sqrt(1 - rho**2) * b) + 0.2)

    many = draw(1_000_000)
    truth = {
        "pearson": float(pearson(*many)),
        "spearman": 6 / math.pi * math.asin(rho / 2),  # Gaussian copula
        "kendall": 2 / math.pi * math.asin(rho),
        "pairs": 0.5 + math.asin(rho) / math.pi,
        "bias": float(np.mean(many[1] - many[0])),
        "rmse": float(rmse(*many)),
    }
    inside = dict.fromkeys(truth, 0)
    for _ in range(DRAWS):
        for k, i in agreement(*draw(count), measures=tuple(truth)).items():
            inside[k] += covers(i, truth[k])
    assert {k: v / DRAWS for k, v in inside.items() if v < 0.94 * DRAWS} == {}


# ---------------------------------------------------------------------- correction by a judge's errors
def test_rogan_gladen_undoes_the_judges_errors() -> None:
    # 40 % true successes, sensitivity 0.9, specificity 0.8: the judge counts 0.4 * 0.9 + 0.6 * 0.2 = 48 %
    got = rogan_gladen(counts(48, 100), counts(45, 50), counts(10, 50))
    assert got.value == pytest.approx(0.4) and got.low < 0.4 < got.high and got.n == 100
    assert rogan_gladen(counts(480, 1000), counts(45, 50), counts(10, 50)).high - 0.4 > 0.05  # the judge's part remains


def test_rogan_gladen_of_a_perfect_well_known_judge_is_the_rate() -> None:
    got, plain = rogan_gladen(counts(30, 100), counts(10**5, 10**5), counts(0, 10**5)), success_rate(counts(30, 100))
    assert [got.value, got.low, got.high] == pytest.approx([plain.value, plain.low, plain.high], abs=5e-3)


def test_a_judge_that_says_nothing_is_refused() -> None:
    with pytest.raises(ImagineError, match=r"sum to 1\.00, expected more than 1"):
        rogan_gladen(counts(5, 10), counts(6, 10), counts(6, 10))
    with pytest.raises(ImagineError, match="On failures has shape"):
        rogan_gladen(counts(5, 10), counts(6, 10), [])


@pytest.mark.parametrize(("p", "se", "sp", "n"), [(0.1, 0.95, 0.9, 100), (0.5, 0.8, 0.7, 200), (0.95, 0.9, 0.9, 1000)])
def test_coverage_of_rogan_gladen(p: float, se: float, sp: float, n: int) -> None:
    rng = np.random.default_rng(0)
    k, a, b = (
        rng.binomial(n, p * se + (1 - p) * (1 - sp), DRAWS),
        rng.binomial(30, se, DRAWS),
        rng.binomial(30, 1 - sp, DRAWS),
    )
    inside = 0
    for x, y, z in zip(k, a, b, strict=True):
        with contextlib.suppress(ImagineError):  # a judge that happened to look useless: no interval, so a miss
            inside += covers(rogan_gladen(counts(x, n), counts(y, 30), counts(z, 30)), p)
    assert inside >= 0.94 * DRAWS


# ---------------------------------------------------------------------- correction by a few real episodes
def test_ppi_is_the_papers_formula() -> None:
    rng = np.random.default_rng(0)
    y, f = correlated(rng, 0.6, 0.5, 0.8, (200,)).astype(float)
    more = (rng.random(1000) < 0.5).astype(float)
    weight = np.cov(y, f)[0, 1] / ((1 + 200 / 1000) * f.var(ddof=1))
    got = ppi_mean(y, f, more)
    assert got.weight == pytest.approx(weight) and got.n == 200
    assert got.value == pytest.approx(weight * more.mean() + (y - weight * f).mean())
    variance = weight**2 * more.var() / 1000 + (y - weight * f).var() / 200
    assert got.high - got.low == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.06)


def test_ppi_without_use_of_imagination_is_the_real_mean() -> None:
    real = counts(12, 30)
    for paired in (np.ones(30), ~real):  # says nothing; says the opposite
        got = ppi_mean(real, paired, np.ones(500))
        assert got.weight == 0 and got.value == pytest.approx(0.4)
        plain = success_rate(real)
        assert got.high - got.low == pytest.approx(plain.high - plain.low, rel=0.15)


def test_ppi_is_shorter_than_the_real_episodes_alone() -> None:
    rng = np.random.default_rng(0)
    y, f = correlated(rng, 0.5, 0.5, 0.8, (50,))
    got, plain = ppi_mean(y, f, rng.random(1000) < 0.5), success_rate(y)
    assert got.high - got.low < 0.8 * (plain.high - plain.low)


def test_ppi_after_nothing_but_successes_still_has_a_width() -> None:
    got = ppi_mean(np.ones(30), np.ones(30), np.ones(300))
    assert got.value == got.high == 1 and 0.8 < got.low < 0.95


def test_ppi_refuses_unpaired_outcomes() -> None:
    with pytest.raises(ImagineError, match="30 real and 29 paired"):
        ppi_mean(np.ones(30), np.ones(29), np.ones(300))
    with pytest.raises(ImagineError, match="Imagined has shape"):
        ppi_mean(np.ones(30), np.ones(30), [])


@pytest.mark.parametrize("n", [30, 100])
@pytest.mark.parametrize(("p", "q", "rho"), [(0.5, 0.5, 0.5), (0.2, 0.3, 0.8), (0.9, 0.6, 0.3), (0.97, 0.9, 0.5)])
def test_coverage_of_ppi(p: float, q: float, rho: float, n: int) -> None:
    rng = np.random.default_rng(0)
    real, paired = correlated(rng, p, q, rho, (DRAWS, n))
    more = rng.random((DRAWS, 300)) < q
    got = [ppi_mean(*x) for x in zip(real, paired, more, strict=True)]
    assert np.mean([covers(i, p) for i in got]) >= 0.94


# ---------------------------------------------------------------------- planning
def test_required_trials_without_imagination_are_the_textbooks() -> None:
    assert required_real_trials(0.1) == math.ceil(0.25 * (1.959964 / 0.1) ** 2) == 97
    assert required_real_trials(0.1, rate=0.1) == 35
    assert required_real_trials(0.1, correlation=0.8) == required_real_trials(0.1, imagined=500) == 97


def test_imagination_saves_what_its_correlation_explains() -> None:
    assert required_real_trials(0.1, correlation=0.8, imagined=math.inf) == math.ceil(96.04 * 0.36)
    few, many = (required_real_trials(0.1, correlation=0.8, imagined=n) for n in (50, 5000))
    assert 97 > few > many >= 35
    for n in (few, many):  # the least number that does
        size = {few: 50, many: 5000}[n]
        half = [1.959964 * math.sqrt(0.25 / k * (1 - 0.64 * size / (size + k))) for k in (n - 1, n)]
        assert half[0] > 0.1 >= half[1]


def test_required_trials_give_the_width_asked_for() -> None:
    n = required_real_trials(0.06, correlation=0.8, imagined=2000)
    rng = np.random.default_rng(0)
    real, paired = correlated(rng, 0.5, 0.5, 0.8, (200, n))
    got = [ppi_mean(*x, rng.random(2000) < 0.5) for x in zip(real, paired, strict=True)]
    assert np.mean([i.high - i.low for i in got]) / 2 == pytest.approx(0.06, rel=0.08)


def test_trials_to_tell_apart_find_the_difference_as_often_as_asked() -> None:
    n = trials_to_tell_apart(0.7, 0.5)
    rng = np.random.default_rng(0)
    a, b = rng.binomial(n, 0.7, DRAWS), rng.binomial(n, 0.5, DRAWS)
    found = [unpaired_difference(counts(i, n), counts(j, n)).low > 0 for i, j in zip(a, b, strict=True)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)
    assert trials_to_tell_apart(0.7, 0.5, correlation=0.8, imagined=math.inf) == pytest.approx(0.36 * n, abs=1)
    assert trials_to_tell_apart(0.7, 0.5, power=0.95) > n


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda: required_real_trials(0.7), "Half width is 0.7"),
        (lambda: required_real_trials(0.1, rate=0), "Rate is 0, expected"),
        (lambda: required_real_trials(0.1, correlation=1.2), "Correlation is 1.2"),
        (lambda: required_real_trials(0.1, imagined=-1), "-1 imagined episodes"),
        (lambda: trials_to_tell_apart(0.5, 0.5), "No number of trials"),
        (lambda: betting_interval([0.5, 1.5]), "expected \\[0, 1\\]"),
        (lambda: betting_interval([0.5], bounds=(1, 0)), "Swap them"),
        (lambda: unpaired_difference([], [True]), "After has shape"),
    ],
)
def test_arguments_out_of_range_are_refused(ask: Callable[[], object], says: str) -> None:
    with pytest.raises(ImagineError, match=says):
        ask()


# ---------------------------------------------------------------------- a published table
SIMPLER = {  # real, simulated; success of RT-2-X, RT-1 converged, RT-1 15 %, RT-1-X, RT-1 begin, Octo-base
    "pick coke can": ([0.907, 0.853, 0.920, 0.760, 0.133, 0.293], [0.787, 0.857, 0.710, 0.567, 0.027, 0.170]),
    "move near": ([0.733, 0.633, 0.583, 0.450, 0.017, 0.350], [0.779, 0.442, 0.354, 0.317, 0.050, 0.042]),
    "open drawer": ([0.333, 0.815, 0.704, 0.519, 0.000, 0.148], [0.157, 0.601, 0.463, 0.296, 0.000, 0.009]),
    "close drawer": ([0.630, 0.926, 0.889, 0.741, 0.000, 0.519], [0.343, 0.861, 0.667, 0.891, 0.278, 0.444]),
    "apple in drawer": ([0.074, 0.185, 0.185, 0.407, 0.000, 0.000], [0.037, 0.065, 0.130, 0.213, 0.000, 0.000]),
    # RT-1-X, Octo-base, Octo-small
    "spoon on towel": ([0.000, 0.333, 0.417], [0.000, 0.125, 0.472]),
    "carrot on plate": ([0.000, 0.250, 0.083], [0.042, 0.083, 0.097]),
    "stack cube": ([0.000, 0.000, 0.125], [0.000, 0.000, 0.042]),
    "eggplant in basket": ([0.000, 0.250, 0.400], [0.000, 0.431, 0.569]),
}


def test_simplers_nine_tasks() -> None:
    """Source: arXiv:2405.05941, visual matching; its authors print r = 0.883 and MMRV = 0.042 on average."""
    found = [
        {k: v.value for k, v in agreement(real, sim, measures=("pearson", "mmrv")).items()}
        for real, sim in SIMPLER.values()
    ]
    print(found)
    assert np.mean([f["pearson"] for f in found]) == pytest.approx(0.883, abs=2e-3)
    assert np.mean([f["mmrv"] for f in found]) == pytest.approx(0.042, abs=2e-3)
