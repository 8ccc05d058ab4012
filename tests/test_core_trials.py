"A comparison of trainers: each arm at its best settings, found by one rule."

import math
from functools import partial

import pytest
from helpers import refused

from interpkit.core.errors import ExitCode
from interpkit.core.trials import (
    Job,
    absent,
    at_least,
    at_most,
    chosen,
    climb,
    fastest,
    is_sound,
    middle,
    over,
    remembered,
    summed_up,
    timed,
)

BAD = ExitCode.BAD_PARAMETERS


def bowl(batch, lr, best=(1024, 0.006), steep=1.0):
    "Least at one point of the lattice, and better the nearer to it."
    return dict(fvu=abs(math.log2(batch / best[0])) + steep * abs(math.log2(lr / best[1])))


def test_the_fastest_under_a_limit_is_found_and_what_failed_is_not():
    seen = ((0.1, 5), (0.2, 9), (None, 30), (0.4, 20))
    rows = [dict(fvu=left, tokens_per_cpu_second=speed) for left, speed in seen]
    assert fastest(rows, 0.2) is rows[1]
    assert fastest(rows, 0.19) is rows[0]
    assert fastest(rows, 1.0) is rows[3]
    assert fastest(rows, 0.05) is None and fastest([], 1.0) is None


@pytest.mark.parametrize("start", [(128, 0.003), (512, 0.003), (4096, 0.024), (1024, 0.006)])
@pytest.mark.parametrize("steep", [0.1, 1.0, 10.0])
def test_the_best_point_is_found_with_all_its_neighbours(start, steep):
    best, rows = climb(partial(bowl, steep=steep), *start)
    assert (best["batch"], best["lr"], best["at_bound"]) == (1024, 0.006, False)
    points = {(r["batch"], r["lr"]) for r in rows}
    assert len(points) == len(rows)  # none is measured twice
    assert {(512, 0.006), (2048, 0.006), (1024, 0.003), (1024, 0.012)} <= points


@pytest.mark.parametrize("wanted,bound", [(16, 128), (65536, 4096)])
def test_a_bound_is_never_crossed_and_is_said(wanted, bound):
    best, rows = climb(partial(bowl, best=(wanted, 0.003)), 512, 0.003)
    assert (best["batch"], best["at_bound"]) == (bound, True)
    assert all(128 <= r["batch"] <= 4096 for r in rows)


def test_a_start_where_all_diverge_goes_down_to_a_rate_that_does_not():
    def measure(batch, lr):
        return dict(fvu=abs(math.log2(lr / 1e-4)) if lr < 4e-4 else None)

    best, _ = climb(measure, 512, 0.0032)
    assert best["lr"] == pytest.approx(1e-4)
    assert climb(lambda batch, lr: dict(fvu=None), 512, 0.0032)[0]["fvu"] is None


@pytest.mark.parametrize("key", ["fvu", "dead_share", "l0"])
@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_was_not_measured_is_not_sound(key, value):
    row = dict(fvu=0.1, dead_share=0.05, l0=31.5)
    assert is_sound(row, 32)
    assert not is_sound(row | {key: value}, 32)
    assert not is_sound(row | dict(l0=33), 32)
    assert not is_sound(row | dict(dead_share=0.06), 32)


@pytest.mark.parametrize("order", [(0.2, 0.1, math.nan), (math.nan, 0.2, 0.1)])
def test_a_median_with_a_nan_is_none(order):
    assert middle([dict(fvu=x) for x in order], "fvu") is None


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_diverged_is_never_best(value):
    def cliff(batch, lr):
        return dict(fvu=value) if lr > 0.003 else bowl(batch, lr)

    best, _ = climb(cliff, 512, 0.003)
    assert best["lr"] == 0.003 and best["fvu"] == 1.0


@pytest.mark.parametrize("batch,lr", [(64, 0.1), (8192, 0.1), (512, 0.0), (512, math.nan)])
def test_a_start_off_the_lattice_is_refused(batch, lr):
    refused(lambda: climb(bowl, batch, lr), "a start with batch 128 to 4096", code=BAD)


def test_worlds_are_asked_for_by_name():
    assert chosen("", ["a", "b"]) == ["a", "b"]
    assert chosen(" b ,a", ["a", "b"]) == ["b", "a"]
    refused(
        lambda: chosen("pros", ["prose", "minilm"]),
        "one of prose, minilm",
        "'pros'",
        "did you mean 'prose'?",
        code=BAD,
    )


def test_a_package_that_is_not_there_is_told():
    assert absent(None) == absent("json") == ""
    assert "no_such_package is not importable here" in absent("no_such_package")


def test_steps_are_whole_batches():
    assert Job(8, 16, 2, tokens=1000, batch=300).steps == 3
    assert Job(8, 16, 2, tokens=10, batch=300).steps == 1


def test_a_figure_that_one_seed_lacks_is_left_out():
    rows = [dict(a=1.0, b=2.0), dict(a=3.0, b=None), dict(a=2.0)]
    assert summed_up(rows, ["a", "b"]) == dict(seeds=3, a=2.0, a_lowest=1.0, a_highest=3.0)
    assert middle(rows, "b") is None and middle([], "a") is None


def test_bars_hold_at_their_limit_and_not_where_nothing_was_measured():
    assert at_least("x", 2.5, 2.5, "x") == dict(what="x", goal=">= 2.5x", measured=2.5, holds=True)
    assert not at_least("x", 2.49, 2.5)["holds"] and not at_least("x", None, 2.5)["holds"]
    assert at_most("x", 0.95, 0.95)["holds"] and not at_most("x", 0.9501, 0.95)["holds"]
    missed = at_most("x", 1.0021, 1)
    assert missed["measured"] == 1.002 and not missed["holds"]  # a bar that is missed is seen to be
    assert at_most("x", None, 1)["measured"] is None and not at_most("x", None, 1)["holds"]


def test_a_share_of_others_leaves_out_who_has_none():
    assert over(6.0, [2.0, None, 3.0], max) == 2.0 and over(6.0, [2.0, None, 3.0]) == 3.0
    assert over(6.0, [None]) is over(None, [1.0]) is over(1.0, []) is None


def test_what_a_call_costs():
    made, cost = timed(lambda: sum(range(10**6)), tokens=500)
    assert made == 499999500000 and cost["tokens"] == 500
    assert cost["tokens_per_cpu_second"] > 0


def test_a_search_that_was_broken_off_goes_on_where_it_was(tmp_path):
    measured = []

    def at(lr, arm="a"):
        what = dict(arm=arm, lr=lr)
        return remembered(tmp_path / "new" / "s.jsonl", what, lambda: measured.append(what) or what)

    rows = [at(0.1), at(0.1 / 3), at(0.1), at(0.1 / 3), at(0.1, "b")]
    assert len(measured) == 3
    assert rows[0] == rows[2] and rows[1] == rows[3] == dict(arm="a", lr=0.1 / 3)
