"The published error rates of a check, and the properties of its arithmetic."

import math

import numpy as np
import pytest
from helpers import refused
from scipy import stats

from interpkit.core.error_rates import BEYOND, PROMISED, Population, error_rate
from interpkit.core.statistics import (
    clopper_pearson,
    holm,
    outcome,
    p_above,
    ratio_interval,
    sequences_needed,
)

# The weighted population comes closest: 0.850 % [0.810, 0.891] in 200,000 checks at n = 200. With
# 40,000 the bound depends on the seed (seed 0 gives 1.005 %), so this row guards against
# regressions; what shows the promise is the row of 200,000 in
# nbs/benchmarks/gate_error_rates.ipynb.
CHECKS = {
    ("half of the sequences weigh 20:1", 200): 40_000,
    ("half of the sequences weigh 20:1", 1000): 6000,
}


@pytest.mark.parametrize("n", (50, 200, 1000))
@pytest.mark.parametrize("population", PROMISED, ids=lambda p: p.name)
def test_at_the_limit_both_errors_stay_under_one_percent_a_check(population, n):
    r = error_rate(population, n, checks=CHECKS.get((population.name, n), 3000), seed=n)
    assert r["FAIL_at_most"] <= 0.01, r
    assert r["PASS_at_most"] <= 0.01, r


@pytest.mark.parametrize("limit,statements", [(0.05, 4), (0.10, 12), (0.50, 40)])
def test_other_limits_and_more_statements_keep_it(limit, statements):
    r = error_rate(PROMISED[0], 200, limit=limit, statements=statements, checks=6000, seed=1)
    assert r["FAIL_at_most"] <= 0.01, r
    assert r["PASS_at_most"] <= 0.01, r


@pytest.mark.parametrize("population", BEYOND, ids=lambda p: p.name)
def test_where_the_promise_ends_is_known(population):
    "These rates are published as bars that do not hold; should they hold, pages have to say so."
    n, limit = (50, 0.05) if population.rare < 1 else (200, 0.25)
    r = error_rate(population, n, limit=limit, checks=6000, seed=2)
    assert r["FAIL_at_most"] <= 0.01 < r["PASS_at_least"], r


SPREAD_OF_ONE = Population("relative spread 1", tail=math.sqrt(math.log1p(math.exp(-0.25))))


@pytest.mark.parametrize("truth,expected", [(1.25, "FAIL"), (0.8, "PASS")])
def test_a_quarter_beyond_the_limit_is_settled_by_a_thousand_sequences(truth, expected):
    assert SPREAD_OF_ONE.spread == pytest.approx(1)
    r = error_rate(SPREAD_OF_ONE, 1000, truth=truth, statements=12, checks=3000, seed=3)
    assert r[f"{expected}_at_least"] >= 0.99, r


@pytest.mark.parametrize("limit", [0.05, 0.25])
def test_planned_sequences_settle_half_and_double(limit):
    n = max(50, sequences_needed(16, limit=limit))
    assert error_rate(SPREAD_OF_ONE, n, limit, 16, truth=2, checks=1000)["FAIL"] > 0.95
    assert error_rate(SPREAD_OF_ONE, n, limit, 16, truth=0.5, checks=1000)["PASS"] > 0.88


def test_without_the_limit_the_plan_is_too_small_for_small_limits():
    assert (
        error_rate(SPREAD_OF_ONE, max(50, sequences_needed(16)), 0.05, 16, truth=0.5, checks=500)[
            "PASS"
        ]
        < 0.1
    )


def _tokens(rng, n=200, tokens=40):
    "Tokens whose change is mostly their sequence's; the true ratio is 0.25."
    group = np.repeat(np.arange(n), tokens)
    change = rng.lognormal(-0.32, 0.8, n)[group] * rng.lognormal(-0.02, 0.2, n * tokens)
    return 0.25 * change, np.ones(n * tokens), group


def test_token_level_standard_errors_break_the_rate():
    rng = np.random.default_rng(0)
    found = dict(tokens=[], sequences=[])
    for _ in range(300):
        num, den, group = _tokens(rng)
        found["tokens"].append(outcome(ratio_interval(num, den, statements=4), 0.25)[0])
        found["sequences"].append(
            outcome(ratio_interval(num, den, group=group, statements=4), 0.25)[0]
        )
    wrong = {k: 1 - v.count("INCONCLUSIVE") / 300 for k, v in found.items()}
    assert wrong["tokens"] > 0.3, wrong
    assert wrong["sequences"] < 0.02, wrong


def test_sequences_instead_of_effective_sequences_break_the_rate():
    "Degrees of freedom come from n_eff, and under 50 effective sequences nothing is settled."
    num = den = np.ones(400)
    weight = np.where(np.arange(400) < 8, 20.0, 1.0)
    i = ratio_interval(num, den, weight)
    assert i.n == 400
    assert i.n_eff == pytest.approx((8 * 20 + 392) ** 2 / (8 * 400 + 392))
    assert i.n_eff < 100
    few = ratio_interval(num, den, np.where(np.arange(400) < 2, 200.0, 1.0))
    assert outcome(few, 0.5) == (
        "INCONCLUSIVE",
        f"{few.n_eff:.0f} effective groups, at least 50 needed",
    )


def _by_hand(num, den, weight, group, statements, alpha=0.01):
    "The definition, written down a second time."
    keys = np.unique(group)
    a = np.array([(weight * num)[group == k].sum() for k in keys])
    b = np.array([(weight * den)[group == k].sum() for k in keys])
    w = np.array([weight[group == k].sum() for k in keys])
    G = len(keys)
    R = a.sum() / b.sum()
    s = np.std(a - R * b, ddof=1) * np.sqrt(G) / b.sum()
    n_eff = w.sum() ** 2 / (w**2).sum()
    q = stats.t.ppf(1 - alpha / (2 * statements), n_eff - 1)
    m = b.mean()
    return R, R * np.exp(-q * s / R), (a.sum() + m) / (b.sum() + m) * np.exp(q * s / R), n_eff, s


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_is_the_one_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(60, 300))
    num = rng.lognormal(-1, 1, n)
    den = rng.lognormal(0, 1, n)
    weight = rng.choice([1.0, 20.0], n)
    group = rng.integers(0, n // 2, n)
    i = ratio_interval(num, den, weight, group, statements=7)
    assert np.allclose(
        [i.ratio, i.lower, i.upper, i.n_eff, i.spread],
        _by_hand(num, den, weight, group, 7),
        rtol=1e-10,
    )


def test_order_of_rows_and_names_of_groups_change_no_bit():
    rng = np.random.default_rng(1)
    num = rng.lognormal(0, 3, 500)
    den = rng.lognormal(0, 3, 500)
    weight = rng.random(500)
    group = rng.integers(0, 200, 500)
    names = np.array([f"c{g}" for g in group])
    first = ratio_interval(num, den, weight, group)
    for _ in range(20):
        o = rng.permutation(500)
        assert ratio_interval(num[o], den[o], weight[o], names[o]) == first


def test_a_scale_common_to_all_changes_nothing():
    rng = np.random.default_rng(2)
    num = rng.lognormal(0, 1, 100)
    den = rng.lognormal(0, 1, 100)
    a = ratio_interval(num, den)
    b = ratio_interval(num * 2**40, den * 2**40, np.full(100, 2.0**10))
    assert (a.ratio, a.lower, a.upper, a.n_eff) == (b.ratio, b.lower, b.upper, b.n_eff)


def test_nothing_changed_is_not_certainty():
    i = ratio_interval(np.zeros(1000), np.full(1000, 7.0))
    assert i.ratio == i.lower == 0
    assert i.upper == pytest.approx(1 / 1001)
    assert outcome(i, 0.05)[0] == "PASS"
    assert outcome(i, 0.0009)[0] == "INCONCLUSIVE"


def test_a_zero_denominator_settles_nothing():
    for columns in (
        (np.zeros(100), np.zeros(100)),
        (np.ones(100), np.ones(100), np.zeros(100)),
        ([], []),
    ):
        assert outcome(ratio_interval(*columns), 0.25)[0] == "INCONCLUSIVE"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("column", range(3))
def test_nan_infinity_and_negative_numbers_are_refused(column, bad):
    columns = [np.ones(60), np.ones(60), np.ones(60)]
    columns[column][17] = bad
    refused(lambda: ratio_interval(*columns), "row 17")


@pytest.mark.parametrize(
    "columns",
    [
        (np.ones(60), np.ones(59)),
        (np.ones(60), np.ones(60), np.ones(1)),
        (np.ones(60), np.ones(60), None, [1, 2]),
        (np.ones(3), np.ones(3), None, ["a", None, "b"]),
        (np.full(60, 1e308), np.ones(60)),
        (np.ones((3, 2)), np.ones(3)),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns):
    refused(lambda: ratio_interval(*columns))


@pytest.mark.parametrize("statements,spread", [(4, 1.0), (16, 1.0), (40, 1.5), (4, 6.0)])
def test_sequences_needed_solves_its_equation(statements, spread):
    def need(n):
        q = stats.t.ppf(1 - 0.01 / (2 * statements), n - 1)
        return ((q + 1.645) * spread / math.log(2)) ** 2

    n = sequences_needed(statements, spread)
    assert need(n) <= n
    assert need(n - 1) > n - 1
    assert sequences_needed(statements, 100.0) == pytest.approx(
        ((stats.norm.ppf(1 - 0.01 / (2 * statements)) + 1.645) * 100 / math.log(2)) ** 2, rel=1e-3
    )


def test_sequences_needed_with_limit_is_the_smallest_that_does():
    def upper(n, limit):
        q = stats.t.ppf(1 - 0.01 / 8, n - 1)
        return (limit / 2 + 1 / n) / (1 + 1 / n) * math.exp((q + 1.645) / math.sqrt(n))

    for limit in (0.05, 0.1, 0.5):
        n = sequences_needed(4, limit=limit)
        assert upper(n, limit) <= limit < upper(n - 1, limit)
    assert sequences_needed(4, math.inf) >= 1e9
    assert sequences_needed(4, 0.0) >= 1


def test_holm_is_the_textbook_procedure():
    rng = np.random.default_rng(3)
    for _ in range(200):
        p = rng.random(8) ** 4
        alpha = 0.05
        expected = np.zeros(8, bool)
        order = np.argsort(p)
        for k, i in enumerate(order):
            if p[i] > alpha / (8 - k):
                break
            expected[i] = True
        assert (holm(p, alpha) == expected).all()
    assert not holm([0.002] * 10, 0.01).any()
    assert holm([0.0009] * 10, 0.01).all()
    assert len(holm([])) == 0
    refused(lambda: holm([0.1, math.nan]))


def test_holm_names_nothing_by_chance():
    "Forty features exactly at the limit in each of 400 checks: at most 1 % of the checks name any."
    rng = np.random.default_rng(4)
    population = Population("", tail=0.8)
    named = 0
    for _ in range(400):
        p = [p_above(ratio_interval(**population.draw(rng, 100, 0.5)), 0.5) for _ in range(20)]
        named += holm(p).any()
    assert clopper_pearson(named, 400)[0] <= 0.01


def test_p_above_agrees_with_the_interval():
    rng = np.random.default_rng(5)
    i = ratio_interval(rng.lognormal(0, 1, 100), np.ones(100))
    assert p_above(i, i.lower) == pytest.approx(0.005)
    assert p_above(i, i.ratio) == pytest.approx(0.5)
    assert p_above(ratio_interval(np.zeros(60), np.ones(60)), 0.5) == 1.0


def test_clopper_pearson_against_binomial_tails():
    for k, n in ((0, 3000), (30, 3000), (3, 7), (7, 7)):
        low, high = clopper_pearson(k, n)
        assert k == 0 or stats.binom.sf(k - 1, n, low) == pytest.approx(0.025)
        assert k == n or stats.binom.cdf(k, n, high) == pytest.approx(0.025)
    refused(lambda: clopper_pearson(5, 4), code=64)
