"What a check set says of itself: blocks of time, error rates of this check, and cautions."

import datetime as dt
import math

import numpy as np
import pandas as pd
import pytest
from helpers import refused

from interpkit.core.cautions import (
    blind_spot,
    few_blocks,
    large_groups,
    large_groups_sentence,
    looks_forgotten,
)
from interpkit.core.error_rates import PROMISED, Population
from interpkit.core.groups import blocks_of
from interpkit.core.resampled import resampled_error_rates
from interpkit.core.statistics import clopper_pearson, outcome, ratio_interval

# --- blocks of time


def _times(days: float, n: int = 1000, start: str = "2026-01-07") -> pd.Series:
    hours = np.sort(np.random.default_rng(0).random(n)) * days * 24
    return pd.Series(pd.Timestamp(start) + pd.to_timedelta(hours, unit="h"))


@pytest.mark.parametrize("days", [0.5, 2, 9, 30, 69, 91, 100, 150, 182, 365, 1000])
def test_any_period_has_ten_to_twenty_blocks_in_order(days):
    times = _times(days)
    blocks = blocks_of(times)
    assert 10 <= blocks.max() + 1 <= 20
    assert (np.diff(blocks) >= 0).all()
    assert set(blocks) == set(range(blocks.max() + 1))


def test_a_quarter_is_cut_into_calendar_weeks():
    times = _times(91)
    week = times.dt.isocalendar().week.to_numpy(int)
    assert (blocks_of(times) == week - week.min()).all()


def test_a_zone_is_kept_as_it_is_read_on_the_wall():
    times = _times(91)
    for zone in ("UTC", "America/New_York", "Asia/Tokyo"):
        assert (
            blocks_of(times.dt.tz_localize(zone, nonexistent="NaT").ffill()) == blocks_of(times)
        ).all()


def test_one_row_of_another_age_does_not_swallow_the_rest():
    times = _times(91)
    with_stray = pd.concat([pd.Series([pd.Timestamp("1970-01-01")]), times])
    assert blocks_of(with_stray).max() == blocks_of(times).max() + 1


def test_rows_of_few_dates_have_so_many_blocks():
    ends = pd.date_range("2026-01-31", periods=6, freq="ME")
    assert blocks_of(np.repeat(ends, 50)).max() + 1 == 6
    assert blocks_of(np.repeat(ends, 50)).tolist() == np.repeat(np.arange(6), 50).tolist()
    assert blocks_of([ends[0]] * 3).tolist() == [0, 0, 0]
    assert blocks_of([dt.date(2026, 1, day) for day in range(1, 16)]).max() + 1 == 15
    assert len(blocks_of([])) == 0
    assert blocks_of(None) is None


UTC, BERLIN = dt.UTC, dt.timezone(dt.timedelta(hours=1))


@pytest.mark.parametrize(
    "times,part",
    [
        (["2026-01-05", "2026-01-06"], "pd.to_datetime"),
        ([20260105, 20260106], "pd.to_datetime"),
        ([pd.Timestamp("2026-01-05"), pd.NaT], "row 1"),
        ([dt.datetime(2026, 1, 5, tzinfo=z) for z in (UTC, BERLIN)], "utc=True"),
        ([dt.datetime(2026, 1, 5, tzinfo=z) for z in (UTC, None)], "utc=True"),
        (pd.period_range("2026-01", periods=3, freq="M"), "datetimes"),
    ],
)
def test_times_that_are_none_are_refused(times, part):
    refused(lambda: blocks_of(times), part)


# --- the error rates of one check


def _by_drawing(a, b, w, limit, statements, alpha, checks=600):
    "The same rates, one check at a time and by `ratio_interval`."
    rng = np.random.default_rng(9)
    a = a * limit * (w * b).sum() / (w * a).sum() * (1 - 1e-12)
    found = []
    for _ in range(checks):
        i = rng.integers(0, len(a), len(a))
        interval = ratio_interval(a[i], b[i], w[i], statements=statements, alpha=alpha)
        found.append(outcome(interval, limit)[0])
    return [clopper_pearson(found.count(x), checks, 0.999) for x in ("FAIL", "PASS")]


@pytest.mark.parametrize("alpha", [0.01, 0.6])
def test_the_rates_are_those_of_checks_drawn_one_by_one(alpha):
    rng = np.random.default_rng(1)
    a, b, w = rng.lognormal(0, 1, 200), rng.lognormal(0, 0.5, 200), rng.choice([1.0, 5.0], 200)
    rates = resampled_error_rates(a, b, w, None, 0.3, 1, checks=4000, alpha=alpha)
    bounds = _by_drawing(a, b, w, 0.3, 1, alpha)
    for name, (low, high) in zip(("false_fail", "false_pass"), bounds, strict=True):
        assert rates[f"{name}_at_least"] <= high, (rates, bounds)
        assert rates[f"{name}_at_most"] >= low, (rates, bounds)
    assert alpha < 0.1 or min(rates["false_fail"], rates["false_pass"]) > 0.02


def _by_drawing_weeks(columns, group, alpha, checks=400):
    "Whole weeks, one check at a time and by `ratio_interval`."
    rng = np.random.default_rng(9)
    week, limit = columns["block"], 0.3
    a, b = columns["numerator"], columns["denominator"]
    a = a * limit * b.sum() / a.sum() * (1 - 1e-12)
    rows = [np.flatnonzero(week == k) for k in range(week.max() + 1)]
    found = []
    for _ in range(checks):
        drawn = [rows[k] for k in rng.integers(0, len(rows), len(rows))]
        i = np.concatenate(drawn)
        block = np.repeat(np.arange(len(drawn)), [len(d) for d in drawn])
        unit = None if group is None else block * 10_000 + group[i]
        interval = ratio_interval(a[i], b[i], None, unit, alpha=alpha, block=block)
        found.append(outcome(interval, limit)[0])
    return [clopper_pearson(found.count(x), checks, 0.999) for x in ("FAIL", "PASS")]


@pytest.mark.parametrize("grouped", [False, True])
def test_with_weeks_whole_weeks_are_drawn_too(grouped):
    columns = Population("", weeks=13, shock=0.6).draw(np.random.default_rng(2), 300, 0.3)
    group = np.arange(300) // 2 if grouped else None
    given = (columns["numerator"], columns["denominator"], None, group, 0.3, 1)
    rates = resampled_error_rates(*given, block=columns["block"], checks=3000, alpha=0.6)
    bounds = _by_drawing_weeks(columns, group, 0.6)
    for name, (low, _) in zip(("false_fail", "false_pass"), bounds, strict=True):
        assert rates[f"{name}_at_most"] >= low, (rates, bounds)  # the larger of two rates
    assert rates["blocks"] == 13
    without = resampled_error_rates(*given, checks=3000, alpha=0.6)
    assert without["blocks"] == 0


def test_groups_are_drawn_whole():
    "Forty rows of each of sixty customers: as many checks are settled as with one row of each."
    rng = np.random.default_rng(3)
    a, b = rng.lognormal(-1, 1, 60), np.ones(60)
    group = np.repeat(np.arange(60), 40)
    one = resampled_error_rates(a, b, None, None, 0.2, 4)
    forty = resampled_error_rates(a[group], b[group], None, [f"c{g}" for g in group], 0.2, 4)
    assert one == forty
    careless = resampled_error_rates(a[group], b[group], None, None, 0.2, 4)
    assert careless["groups"] == 2400


def test_what_sits_in_few_sequences_is_seen_before_the_check():
    changed = np.where(np.arange(400) < 4, 1.0, 0.0)
    rates = resampled_error_rates(changed, np.ones(400), limit=0.15, statements=4)
    assert rates["false_pass_at_least"] > 0.005  # e**-4 = 1.8 % of draws hold none of the four
    usual = resampled_error_rates(None, np.ones(400), limit=0.15, statements=4)
    assert max(usual["false_fail_at_most"], usual["false_pass_at_most"]) <= 0.01
    assert usual["settles"] == 1.0
    whales = np.where(np.arange(400) < 8, 1000.0, 1.0)
    assert resampled_error_rates(None, whales, limit=0.15, statements=4)["settles"] < 0.05


def test_a_share_is_scaled_to_its_limit_and_stays_one():
    "Multiplied, five sequences would change by more than all of themselves."
    rng = np.random.default_rng(4)
    own = np.where(np.arange(300) % 60 == 0, 0.5, 0.01 * rng.random(300))
    kept = resampled_error_rates(own, np.ones(300), limit=0.3, statements=4, bounded=True)
    plain = resampled_error_rates(own, np.ones(300), limit=0.3, statements=4)
    assert kept["false_pass"] <= plain["false_pass"]
    scale = [resampled_error_rates(own * c, np.ones(300) * c, limit=0.3) for c in (1.0, 2.0**60)]
    assert scale[0] == scale[1]
    seeds = [resampled_error_rates(own, np.ones(300), limit=0.3, seed=s) for s in (0, 0, 1)]
    assert seeds[0] == seeds[1]


@pytest.mark.parametrize(
    "columns,options,code",
    [
        ((np.zeros(60), np.ones(60)), {}, 65),
        ((None, np.zeros(60)), {}, 65),
        ((None, []), {}, 65),
        ((np.full(60, math.nan), np.ones(60)), {}, 65),
        ((np.ones(60), np.ones(59)), {}, 65),
        ((np.ones(60), np.ones(60), None, np.zeros(59, int)), {}, 65),
        ((None, np.ones(60), None, np.zeros(59, int)), {}, 65),
        ((np.ones(60), np.ones(60)), dict(block=[1]), 65),
        ((np.arange(60) < 9, np.ones(60)), dict(bounded=True), 65),
        ((np.ones(60), np.ones(60)), dict(limit=0), 64),
        ((np.ones(60), np.ones(60)), dict(checks=0), 64),
    ],
)
def test_tables_that_can_not_be_put_at_a_limit_are_refused(columns, options, code):
    refused(lambda: resampled_error_rates(*columns, **options), code=code)


# --- cautions


def test_whoever_holds_a_tenth_is_named_with_weights_and_groups():
    assert large_groups(np.ones(60)) == {}
    assert large_groups(np.ones(9)) == pytest.approx(dict.fromkeys(range(9), 1 / 9))
    weight = np.where(np.arange(60) == 7, 1e300, 1e299)
    assert large_groups(np.ones(60), weight) == pytest.approx({7: 10 / 69})
    group = ["a"] * 20 + ["b"] * 10 + [f"c{k}" for k in range(70)]
    shares = large_groups(np.ones(100), group=group, most=0.09)
    assert list(shares) == ["a", "b"]
    assert "a (20%), b (10%)" in large_groups_sentence(shares)
    assert large_groups([]) == {}


def test_the_blind_spot_is_one_in_n_over_4_6():
    for n in (100, 1000, 5000):
        assert 1 / blind_spot(n) == pytest.approx(n / 4.6, rel=0.03)
        assert (1 - blind_spot(n)) ** n == pytest.approx(0.01)
    assert blind_spot(0) == 1.0


def test_a_total_change_in_the_blind_spot_passes_unseen():
    "The sentence on the page is measured, not only computed."
    rng = np.random.default_rng(5)
    passed = 0
    for _ in range(2000):
        changed = rng.random(300) < blind_spot(300) / 2
        size = np.where(changed, 30.0, 1.0)
        i = ratio_interval(size * changed, size, statements=48, bounded=True)
        passed += outcome(i, 0.15)[0] == "PASS"
    assert clopper_pearson(passed, 2000)[0] > 0.08  # the root of 1 % are the samples without it


def test_few_blocks_of_time_are_said():
    assert few_blocks(blocks_of(_times(91))) == ""
    assert "1 blocks" in few_blocks(np.zeros(30, int))
    assert "no timestamp" in few_blocks(None)


def _customers(customers: int, each: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(customers), each)
    n = len(who)
    return pd.DataFrame(
        {
            "age": rng.integers(18, 80, customers)[who],
            "limit": rng.lognormal(8, 1, customers)[who],
            "region": rng.choice(list("abcdefgh"), customers)[who],
            "tenure": rng.exponential(5, customers)[who],
            "amount": rng.lognormal(3, 2, n),
            "hour": rng.integers(0, 24, n),
        }
    )


@pytest.mark.parametrize("each,seen", [(1, False), (2, True), (5, True), (40, True), (120, True)])
def test_rows_of_one_customer_that_stand_together_are_seen(each, seen):
    for seed in range(3):
        rows = _customers(600 // each, each, seed)
        assert bool(looks_forgotten(rows)) == seen
        assert bool(looks_forgotten(rows[["age", "limit", "tenure", "amount"]].to_numpy())) == seen
    assert looks_forgotten(rows, group=np.arange(len(rows))) == ""


def test_files_that_are_sorted_or_hold_flags_or_constants_are_not_accused():
    rows = _customers(900, 1)
    for column in rows:
        assert looks_forgotten(rows.sort_values(column)) == "", column
    assert looks_forgotten(rows[["age", "limit", "amount"]].sort_values("age")) == ""
    flags = np.random.default_rng(1).integers(0, 2, (900, 4)).astype(float)
    assert looks_forgotten(flags) == ""
    assert looks_forgotten(np.ones((900, 3))) == ""
    assert looks_forgotten(rows.assign(amount=math.nan)) == ""
    assert looks_forgotten(rows.iloc[:20]) == ""
    assert looks_forgotten([]) == ""


def test_windows_of_tokens_that_moved_by_one_are_seen():
    rng = np.random.default_rng(2)
    streams = rng.integers(0, 50, (150, 30))
    windows = [s[k : k + 20].tolist() for s in streams for k in range(3)]
    assert "near-copies" in looks_forgotten(windows)
    assert "near-copies" in looks_forgotten(np.array(windows))
    strangers = rng.integers(0, 50, (450, 20))
    assert looks_forgotten(strangers.tolist()) == ""
    template = np.where(rng.random((450, 20)) < 0.8, np.arange(20), strangers)  # all alike
    assert looks_forgotten(template) == ""


def test_forgotten_groups_are_what_breaks_the_rate():
    "The warning is about something: the same rows, with their customers and without."
    population = next(p for p in PROMISED if p.per_group > 1)
    rng = np.random.default_rng(6)
    wrong = dict(known=0, forgotten=0)
    for _ in range(800):
        columns = population.draw(rng, 150, 0.25)
        for name, c in (("known", columns), ("forgotten", columns | dict(group=None))):
            result = outcome(ratio_interval(**c, statements=1), 0.25)[0]
            wrong[name] += result != "INCONCLUSIVE"
    assert wrong["forgotten"] > 2 * wrong["known"], wrong
    assert clopper_pearson(wrong["forgotten"], 800)[0] > 0.01, wrong
